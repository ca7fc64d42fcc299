use super::super::state::Probes;
use super::*;
use serde_json::json;

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n"}, "spec": spec})).unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap()
}

fn view<'a>(pod: &'a Pod, state: &'a PodState, ips: &'a [IpAddr]) -> View<'a> {
    View {
        pod,
        state,
        ips,
        host_ip: "10.0.0.1".parse().unwrap(),
        sandbox: !ips.is_empty(),
        terminating: false,
        start: at(0),
        verdict: None,
    }
}

fn is(status: &PodStatus, kind: &str) -> (bool, i64) {
    let condition = status.conditions.iter().flatten().find(|c| c.type_ == kind).unwrap();
    (condition.status == "True", condition.last_transition_time.as_ref().unwrap().0.as_second())
}

#[test]
fn a_pod_is_ready_when_its_containers_are_and_keeps_the_time_of_it() {
    let pod = pod(json!({"containers": [{"name": "a", "image": "nginx"}]}));
    let now = Instant::now();
    let mut state = PodState::new(&pod);
    let ips = ["10.1.0.2".parse().unwrap()];
    let first = status(&view(&pod, &state, &[]), &PodStatus::default(), at(1), now);
    assert_eq!((first.phase.as_deref(), is(&first, "Ready")), (Some("Pending"), (false, 1)));

    let a = state.get("a").unwrap();
    a.starting();
    a.running("x".into(), at(5), now, Probes { startup: false, readiness: true });
    let second = status(&view(&pod, &state, &ips), &first, at(6), now);
    assert_eq!((second.phase.as_deref(), is(&second, "Ready")), (Some("Running"), (false, 1)));

    if let Run::Running { ready, .. } = &mut state.get("a").unwrap().run {
        *ready = true;
    }
    let third = status(&view(&pod, &state, &ips), &second, at(7), now);
    assert_eq!((is(&third, "Ready"), third.pod_ip.as_deref()), ((true, 7), Some("10.1.0.2")));
    let container = &third.container_statuses.as_ref().unwrap()[0];
    assert!(container.ready && container.container_id.as_deref() == Some("runc://x"));

    let ending = View { terminating: true, ..view(&pod, &state, &ips) };
    let last = status(&ending, &third, at(8), now);
    assert_eq!((is(&last, "Ready"), last.phase.as_deref()), ((false, 8), Some("Running")));
}

#[test]
fn a_readiness_gate_keeps_a_pod_unready_until_it_opens() {
    let mut pod = pod(json!({"containers": [{"name": "a"}], "readinessGates": [{"conditionType": "x/y"}]}));
    let now = Instant::now();
    let mut state = PodState::new(&pod);
    state.get("a").unwrap().running("x".into(), at(1), now, Probes::default());
    let ips = ["10.1.0.2".parse().unwrap()];
    let closed = status(&view(&pod, &state, &ips), &PodStatus::default(), at(2), now);
    assert_eq!((is(&closed, "ContainersReady").0, is(&closed, "Ready").0), (true, false));
    pod.status = serde_json::from_value(json!({"conditions": [{"type": "x/y", "status": "True"}]})).unwrap();
    let open = status(&view(&pod, &state, &ips), &closed, at(3), now);
    assert!(is(&open, "Ready").0);
}

#[test]
fn a_container_that_crashes_again_and_again_says_so() {
    let pod = pod(json!({"containers": [{"name": "a"}]}));
    let now = Instant::now();
    let mut state = PodState::new(&pod);
    for _ in 0..2 {
        let a = state.get("a").unwrap();
        a.starting();
        a.running("x".into(), at(1), now, Probes::default());
        let reason = "Error".to_owned();
        a.ended(Ended { id: "x".into(), code: 1, reason, message: None, since: Some(at(1)), at: at(2) }, now);
    }
    let status =
        status(&view(&pod, &state, &["10.1.0.2".parse().unwrap()]), &PodStatus::default(), at(3), now);
    let container = &status.container_statuses.as_ref().unwrap()[0];
    let waiting = container.state.as_ref().unwrap().waiting.as_ref().unwrap();
    assert_eq!(waiting.reason.as_deref(), Some("CrashLoopBackOff"));
    assert_eq!(container.last_state.as_ref().unwrap().terminated.as_ref().unwrap().exit_code, 1);
    assert_eq!((container.restart_count, status.phase.as_deref()), (1, Some("Running")));
}

#[test]
fn a_finished_pod_keeps_its_address_and_is_not_ready() {
    let pod = pod(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
    let now = Instant::now();
    let mut state = PodState::new(&pod);
    let reason = "Completed".to_owned();
    let ended = Ended { id: "x".into(), code: 0, reason, message: None, since: None, at: at(2) };
    state.get("a").unwrap().ended(ended, now);
    let ips = ["10.1.0.2".parse().unwrap()];
    let status =
        status(&View { sandbox: false, ..view(&pod, &state, &ips) }, &PodStatus::default(), at(3), now);
    assert_eq!(status.phase.as_deref(), Some("Succeeded"));
    assert_eq!((is(&status, "Ready").0, is(&status, "Initialized").0), (false, true));
    assert_eq!(status.pod_ip.as_deref(), Some("10.1.0.2"));
}
