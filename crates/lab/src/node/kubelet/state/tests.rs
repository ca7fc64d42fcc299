use super::*;
use serde_json::json;

fn state(restart: &str, init: &[(&str, bool)], mains: &[&str]) -> PodState {
    let init: Vec<_> = init
        .iter()
        .map(
            |(n, sidecar)| {
                if *sidecar { json!({"name": n, "restartPolicy": "Always"}) } else { json!({"name": n}) }
            },
        )
        .collect();
    let mains: Vec<_> = mains.iter().map(|n| json!({"name": n})).collect();
    let pod = json!({"metadata": {}, "spec": {"restartPolicy": restart, "initContainers": init, "containers": mains}});
    PodState::new(&serde_json::from_value(pod).unwrap())
}

fn names(state: &PodState, now: Instant) -> Vec<&str> {
    state.next(now).start.into_iter().map(|i| state.containers[i].name.as_str()).collect()
}

fn run(state: &mut PodState, name: &str, now: Instant) {
    let container = state.get(name).unwrap();
    container.starting();
    container.running("id".into(), Timestamp::UNIX_EPOCH, now, Probes::default());
}

fn end(state: &mut PodState, name: &str, code: i32, now: Instant) {
    let ended = Ended {
        id: "id".into(),
        code,
        reason: "Error".into(),
        message: None,
        since: None,
        at: Timestamp::UNIX_EPOCH,
    };
    state.get(name).unwrap().ended(ended, now);
}

#[test]
fn init_containers_run_one_after_the_other_before_the_rest() {
    let now = Instant::now();
    let mut pod = state("Always", &[("i1", false), ("i2", false)], &["a", "b"]);
    assert_eq!(names(&pod, now), ["i1"]);
    run(&mut pod, "i1", now);
    assert_eq!(names(&pod, now), [""; 0]);
    end(&mut pod, "i1", 0, now);
    assert_eq!(names(&pod, now), ["i2"]);
    assert_eq!(pod.phase(now), "Pending");
    run(&mut pod, "i2", now);
    end(&mut pod, "i2", 0, now);
    assert!(pod.initialized());
    assert_eq!(names(&pod, now), ["a", "b"]);
}

#[test]
fn a_sidecar_runs_on_and_ends_with_the_others() {
    let now = Instant::now();
    let mut pod = state("Never", &[("proxy", true)], &["a"]);
    assert_eq!(names(&pod, now), ["proxy"]);
    run(&mut pod, "proxy", now);
    assert_eq!(names(&pod, now), ["a"]);
    run(&mut pod, "a", now);
    end(&mut pod, "proxy", 1, now);
    assert_eq!(names(&pod, now), ["proxy"], "a sidecar starts again whatever the policy of the pod");
    end(&mut pod, "a", 0, now);
    assert_eq!(pod.next(now).finished, Some(Outcome::Succeeded));
}

#[test]
fn a_sidecar_that_ends_before_it_is_up_holds_up_the_others() {
    let now = Instant::now();
    let mut pod = state("Always", &[("proxy", true)], &["a"]);
    let proxy = pod.get("proxy").unwrap();
    proxy.starting();
    proxy.running("id".into(), Timestamp::UNIX_EPOCH, now, Probes { startup: true, readiness: false });
    assert_eq!(names(&pod, now), [""; 0]);
    end(&mut pod, "proxy", 1, now);
    assert_eq!(names(&pod, now), ["proxy"]);
}

#[test]
fn a_crash_is_answered_at_once_and_the_next_ones_later_and_later() {
    let start = Instant::now();
    let mut pod = state("Always", &[], &["a"]);
    run(&mut pod, "a", start);
    end(&mut pod, "a", 1, start);
    assert_eq!(names(&pod, start), ["a"]);
    let mut now = start;
    for seconds in [10, 20, 40, 80, 160, 300, 300] {
        run(&mut pod, "a", now);
        end(&mut pod, "a", 1, now);
        let wake = pod.next(now).wake.unwrap();
        assert_eq!(wake - now, Duration::from_secs(seconds));
        now = wake;
        assert_eq!(names(&pod, now), ["a"]);
    }
    run(&mut pod, "a", now);
    now += Duration::from_secs(601);
    end(&mut pod, "a", 1, now);
    assert_eq!(names(&pod, now), ["a"], "a long run forgives the crashes before it");
    assert_eq!(pod.containers[0].restarts, 8);
}

#[test]
fn the_policy_decides_whether_a_pod_is_finished() {
    let now = Instant::now();
    for (policy, code, finished) in [
        ("Always", 0, None),
        ("OnFailure", 0, Some(Outcome::Succeeded)),
        ("OnFailure", 1, None),
        ("Never", 0, Some(Outcome::Succeeded)),
        ("Never", 1, Some(Outcome::Failed)),
    ] {
        let mut pod = state(policy, &[], &["a"]);
        run(&mut pod, "a", now);
        end(&mut pod, "a", code, now);
        assert_eq!(pod.next(now).finished, finished, "{policy} {code}");
    }
}

#[test]
fn a_pod_waits_for_its_last_container() {
    let now = Instant::now();
    let mut pod = state("Never", &[], &["a", "b"]);
    run(&mut pod, "a", now);
    run(&mut pod, "b", now);
    end(&mut pod, "a", 1, now);
    assert_eq!((pod.next(now).finished, pod.phase(now)), (None, "Running"));
    end(&mut pod, "b", 0, now);
    assert_eq!(pod.phase(now), "Failed");
}

#[test]
fn a_failed_init_container_fails_a_pod_that_never_restarts() {
    let now = Instant::now();
    let mut pod = state("Never", &[("i", false)], &["a"]);
    run(&mut pod, "i", now);
    end(&mut pod, "i", 3, now);
    assert_eq!(pod.next(now).finished, Some(Outcome::Failed));
    let mut pod = state("Always", &[("i", false)], &["a"]);
    run(&mut pod, "i", now);
    end(&mut pod, "i", 3, now);
    assert_eq!((names(&pod, now), pod.next(now).finished), (vec!["i"], None));
}

#[test]
fn what_cannot_be_started_is_tried_again_later_without_counting_as_a_restart() {
    let now = Instant::now();
    let mut pod = state("Always", &[], &["a"]);
    pod.get("a").unwrap().starting();
    pod.get("a").unwrap().refused("CreateContainerConfigError", "no configmap".into(), now);
    let next = pod.next(now);
    assert_eq!((next.start.len(), next.wake), (0, Some(now + BACKOFF_FIRST)));
    pod.get("a").unwrap().starting();
    assert_eq!((pod.containers[0].restarts, pod.phase(now)), (0, "Pending"));
}

#[test]
fn restart_counts_go_on_after_the_node_itself_was_restarted() {
    let pod = json!({"metadata": {}, "spec": {"containers": [{"name": "a"}]},
        "status": {"containerStatuses": [{"name": "a", "image": "", "imageID": "", "ready": true,
            "restartCount": 2, "containerID": "runc://x"}]}});
    assert_eq!(PodState::new(&serde_json::from_value(pod).unwrap()).containers[0].restarts, 3);
}
