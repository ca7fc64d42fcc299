use super::*;

#[test]
fn many_events_about_one_key_are_one_piece_of_work() {
    let now = Instant::now();
    let mut queue = Queue::default();
    queue.add("a");
    queue.add("a");
    assert_eq!(queue.take(now), Next::Key("a"));
    assert_eq!(queue.take(now), Next::Idle);
}

#[test]
fn a_key_in_work_is_not_given_out_again_but_comes_back_when_it_changed_meanwhile() {
    let now = Instant::now();
    let mut queue = Queue::default();
    queue.add("a");
    assert_eq!(queue.take(now), Next::Key("a"));
    queue.add("a");
    assert_eq!(queue.take(now), Next::Idle);
    queue.done(&"a", Outcome::Settled, now);
    assert_eq!(queue.take(now), Next::Key("a"));
    queue.done(&"a", Outcome::Settled, now);
    assert_eq!(queue.take(now), Next::Idle);
}

#[test]
fn failures_come_back_later_and_later_up_to_a_limit_and_success_forgets_them() {
    let now = Instant::now();
    let mut queue = Queue::default();
    queue.add("a");
    let mut delays = Vec::new();
    for _ in 0..12 {
        let at = match queue.take(now) {
            Next::Key(_) => now,
            Next::At(at) => {
                assert_eq!(queue.take(at), Next::Key("a"));
                at
            }
            Next::Idle => panic!("the failed key was lost"),
        };
        queue.done(&"a", Outcome::Failed, now);
        delays.push(at - now);
    }
    assert!(delays.windows(2).all(|pair| pair[0] <= pair[1]), "{delays:?}");
    assert_eq!(delays[1], FIRST_RETRY);
    assert_eq!(*delays.last().unwrap(), LAST_RETRY);

    let later = now + LAST_RETRY;
    assert_eq!(queue.take(later), Next::Key("a"));
    queue.done(&"a", Outcome::Settled, later);
    queue.add("a");
    assert_eq!(queue.take(later), Next::Key("a"));
    queue.done(&"a", Outcome::Failed, later);
    assert_eq!(queue.take(later), Next::At(later + FIRST_RETRY));
}

#[test]
fn a_date_does_not_hold_back_an_event() {
    let now = Instant::now();
    let mut queue = Queue::default();
    queue.add("a");
    assert_eq!(queue.take(now), Next::Key("a"));
    queue.done(&"a", Outcome::Again(Duration::from_secs(5)), now);
    assert_eq!(queue.take(now), Next::At(now + Duration::from_secs(5)));
    queue.add("a");
    assert_eq!(queue.take(now), Next::Key("a"));
}
