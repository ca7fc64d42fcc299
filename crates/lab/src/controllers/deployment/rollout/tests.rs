use super::*;

fn rollout(replicas: i32, surge: i32, unavailable: i32) -> Rollout {
    Rollout { replicas, surge, unavailable, recreate: false, old_pods: 0, paused: false }
}

fn set(name: &str, replicas: i32, available: i32) -> Set {
    Set { name: name.into(), replicas, pods: replicas, ready: available, available }
}

fn to(name: &str, to: i32) -> Action {
    Action::Scale { name: name.into(), to }
}

#[test]
fn the_size_of_a_settled_deployment_follows_its_replicas() {
    for (now, wanted) in [(1, 3), (3, 0), (0, 2)] {
        let steps = plan(&rollout(wanted, 1, 0), Some(&set("new", now, now)), &[set("old", 0, 0)]);
        assert_eq!(steps, [to("new", wanted)], "{now} to {wanted}");
    }
    assert_eq!(plan(&rollout(2, 1, 0), Some(&set("new", 2, 2)), &[]), []);
}

#[test]
fn a_rollout_ends_within_its_bounds_from_every_start() {
    for (replicas, surge, unavailable) in [(1, 1, 0), (3, 1, 0), (4, 0, 1), (4, 1, 1), (10, 3, 2), (3, 0, 3)]
    {
        let rollout = rollout(replicas, surge, unavailable);
        let mut sets = [set("new", 0, 0), set("old", replicas, replicas)];
        let mut steps = 0;
        loop {
            let actions = plan(&rollout, Some(&sets[0]), &sets[1..]);
            for Action::Scale { name, to } in &actions {
                let set = sets.iter_mut().find(|set| set.name == *name).unwrap();
                set.replicas = *to;
                set.available = set.available.min(*to);
            }
            let wanted: i32 = sets.iter().map(|set| set.replicas).sum();
            let serving: i32 = sets.iter().map(|set| set.available).sum();
            assert!(wanted <= replicas + surge, "{rollout:?} {sets:?}");
            assert!(serving >= replicas - unavailable, "{rollout:?} {sets:?}");
            // One pod more becomes available.
            let settled = sets.iter().all(|set| set.available == set.replicas);
            if let Some(set) = sets.iter_mut().find(|set| set.available < set.replicas) {
                set.available += 1;
            }
            steps += 1;
            if actions.is_empty() && settled {
                break;
            }
            assert!(steps < 200, "{rollout:?} never ends: {sets:?}");
        }
        assert_eq!((sets[0].replicas, sets[1].replicas), (replicas, 0), "{rollout:?}");
    }
}

#[test]
fn a_broken_new_template_never_takes_serving_pods_away() {
    let steps = plan(&rollout(3, 1, 0), Some(&set("new", 1, 0)), &[set("old", 3, 3)]);
    assert_eq!(steps, []);
}

#[test]
fn pods_that_serve_nobody_make_room_first() {
    let steps = plan(&rollout(3, 1, 0), Some(&set("new", 1, 1)), &[set("broken", 1, 0), set("old", 2, 2)]);
    assert_eq!(steps, [to("broken", 0)]);
}

#[test]
fn recreate_waits_until_the_last_old_pod_is_gone() {
    let mut recreate = Rollout { recreate: true, old_pods: 2, ..rollout(2, 0, 0) };
    let new = set("new", 0, 0);
    assert_eq!(plan(&recreate, Some(&new), &[set("old", 2, 2)]), [to("old", 0)]);
    assert_eq!(plan(&recreate, Some(&new), &[set("old", 0, 0)]), []);
    recreate.old_pods = 0;
    assert_eq!(plan(&recreate, Some(&new), &[set("old", 0, 0)]), [to("new", 2)]);
}

#[test]
fn a_paused_deployment_changes_its_size_but_not_its_template() {
    let paused = Rollout { paused: true, ..rollout(5, 1, 0) };
    assert_eq!(plan(&paused, None, &[set("old", 3, 3)]), [to("old", 5)]);
    assert_eq!(plan(&paused, Some(&set("new", 2, 2)), &[set("old", 3, 3)]), []);
}
