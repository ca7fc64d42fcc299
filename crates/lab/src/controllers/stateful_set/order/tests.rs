use super::*;

const THREE: Order = Order { first: 0, replicas: 3, parallel: false, renew_from: Some(0) };

fn up(ordinal: i32) -> Member {
    Member { ordinal, current: true, ready: true, available: true, ..Member::default() }
}

fn starting(ordinal: i32) -> Member {
    Member { ready: false, available: false, ..up(ordinal) }
}

fn old(ordinal: i32) -> Member {
    Member { current: false, ..up(ordinal) }
}

#[test]
fn members_come_one_after_the_other_each_when_the_one_before_is_up() {
    assert_eq!(plan(&THREE, &[]), [Action::Create(0)]);
    assert_eq!(plan(&THREE, &[starting(0)]), []);
    assert_eq!(plan(&THREE, &[up(0)]), [Action::Create(1)]);
    assert_eq!(plan(&THREE, &[up(0), up(1), up(2)]), []);
}

#[test]
fn members_go_from_the_last_one_at_a_time() {
    let one = Order { replicas: 1, ..THREE };
    assert_eq!(plan(&one, &[up(0), up(1), up(2)]), [Action::Delete(2)]);
    let ending = Member { terminating: true, ..up(2) };
    assert_eq!(plan(&one, &[up(0), up(1), ending]), []);
}

#[test]
fn a_parallel_set_waits_for_nobody() {
    let parallel = Order { parallel: true, ..THREE };
    assert_eq!(plan(&parallel, &[starting(1)]), [Action::Create(0), Action::Create(2)]);
    let none = Order { replicas: 0, ..parallel };
    assert_eq!(plan(&none, &[up(0), up(1)]), [Action::Delete(1), Action::Delete(0)]);
}

#[test]
fn a_new_template_renews_from_the_last_to_the_partition() {
    assert_eq!(plan(&THREE, &[old(0), old(1), old(2)]), [Action::Delete(2)]);
    assert_eq!(plan(&THREE, &[old(0), old(1), starting(2)]), [], "2 is not up yet");
    assert_eq!(plan(&THREE, &[old(0), old(1), up(2)]), [Action::Delete(1)]);
    let held = Order { renew_from: Some(2), ..THREE };
    assert_eq!(plan(&held, &[old(0), old(1), up(2)]), []);
    let never = Order { renew_from: None, ..THREE };
    assert_eq!(plan(&never, &[old(0), old(1), old(2)]), []);
}

#[test]
fn an_old_member_that_never_comes_up_does_not_block_its_repair() {
    let broken = Member { current: false, ..starting(1) };
    assert_eq!(plan(&THREE, &[up(0), broken, old(2)]), [Action::Delete(1)]);
}

#[test]
fn a_member_that_ended_is_replaced() {
    let ended = Member { finished: true, ..starting(0) };
    assert_eq!(plan(&THREE, &[ended]), [Action::Delete(0)]);
}
