use serde_json::json;

use super::*;

fn pod(name: &str, node: Option<&str>, ready: bool) -> Pod {
    serde_json::from_value(json!({
        "metadata": {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"nodeName": node, "containers": []},
        "status": {
            "phase": if ready { "Running" } else { "Pending" },
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
        },
    }))
    .unwrap()
}

#[test]
fn missing_pods_are_made_and_enough_pods_are_left_alone() {
    let pods = [pod("a", Some("n1"), true), pod("b", Some("n2"), true)];
    assert_eq!(plan(3, &pods), Action::Create(1));
    assert_eq!(plan(2, &pods), Action::Nothing);
    assert_eq!(plan(0, &[]), Action::Nothing);
}

#[test]
fn the_pods_that_serve_nobody_go_first() {
    let pods =
        [pod("serving", Some("n1"), true), pod("nowhere", None, false), pod("starting", Some("n2"), false)];
    assert_eq!(plan(2, &pods), Action::Delete(vec!["nowhere".into()]));
    assert_eq!(plan(1, &pods), Action::Delete(vec!["nowhere".into(), "starting".into()]));
}

#[test]
fn of_equal_pods_those_on_the_fuller_node_go_first() {
    let pods = [pod("a", Some("n1"), true), pod("b", Some("n2"), true), pod("c", Some("n2"), true)];
    assert_eq!(plan(2, &pods), Action::Delete(vec!["b".into()]));
}
