use super::*;

#[test]
fn renewal_is_due_at_half_of_what_is_left_and_up_to_a_tenth_earlier() {
    let now = SystemTime::now();
    let end = now + Duration::from_secs(86_400);
    assert_eq!(renewal(end, now, 0), Duration::from_secs(43_200));
    assert!(renewal(end, now, u32::MAX) >= Duration::from_secs(38_880));
    assert!(renewal(end, now, u32::MAX / 2) < Duration::from_secs(43_200));
}

#[test]
fn renewal_never_becomes_a_storm() {
    let now = SystemTime::now();
    assert_eq!(renewal(now - Duration::from_secs(5), now, 0), Duration::from_secs(1));
    assert_eq!(renewal(now + Duration::from_secs(1), now, 0), Duration::from_secs(1));
}

#[test]
fn retries_vary_by_a_fifth() {
    let second = Duration::from_secs(1);
    assert_eq!(jitter(second, 0), Duration::from_millis(800));
    assert_eq!(jitter(second, u32::MAX), Duration::from_millis(1200));
}

#[tokio::test]
async fn what_a_connection_waits_for_is_not_held_up_by_what_is_fetched_ahead() {
    let turns = Turns { ahead: Semaphore::new(1), urgent: Semaphore::new(1) };
    let (calm, hurry) = (Notify::new(), Notify::new());
    let _taken = turns.mine(&calm).await.unwrap();
    let ahead = turns.mine(&calm);
    let urgent = turns.mine(&hurry);
    tokio::pin!(ahead, urgent);
    assert!(futures::poll!(&mut ahead).is_pending() && futures::poll!(&mut urgent).is_pending());
    hurry.notify_one();
    assert!(urgent.await.is_ok());
    assert!(futures::poll!(&mut ahead).is_pending());
}
