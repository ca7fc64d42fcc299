use serde_json::{Value, json};

use super::*;

fn node(name: &str, ready: bool) -> Arc<Node> {
    let value = json!({
        "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name, "size": "7"}},
        "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    });
    Arc::new(serde_json::from_value(value).unwrap())
}

fn pod(spec: Value) -> Pod {
    let mut spec = spec;
    spec["containers"] = json!([]);
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r1", "controller": true}]);
    serde_json::from_value(json!({"metadata": {"name": "p", "ownerReferences": owner}, "spec": spec}))
        .unwrap()
}

fn placed(node: &str, owner: &str) -> Placement {
    Placement { node: node.into(), owner: Some(owner.into()) }
}

fn affinity(terms: Value) -> Value {
    json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": terms,
    }}}})
}

#[test]
fn pods_of_one_owner_are_spread_before_nodes_are_evened_out() {
    let nodes = [node("n1", true), node("n2", true)];
    assert_eq!(choose(&pod(json!({})), &nodes, &[]).unwrap(), "n1");
    let others = [placed("n1", "r1"), placed("n2", "x"), placed("n2", "x")];
    assert_eq!(choose(&pod(json!({})), &nodes, &others).unwrap(), "n2");
    assert_eq!(choose(&pod(json!({})), &nodes, &[placed("n1", "x")]).unwrap(), "n2");
}

#[test]
fn a_pod_gets_only_nodes_that_it_accepts_and_that_accept_it() {
    let nodes = [node("n1", true), node("n2", false)];
    let by_label = |name: &str| pod(json!({"nodeSelector": {"kubernetes.io/hostname": name}}));
    assert_eq!(choose(&by_label("n1"), &nodes, &[]).unwrap(), "n1");
    assert_eq!(
        choose(&by_label("n2"), &nodes, &[]).unwrap_err(),
        "0/2 nodes are available: 1 node(s) didn't match Pod's node affinity/selector, 1 node(s) were not ready."
    );
    assert!(choose(&pod(json!({})), &[], &[]).unwrap_err().contains("there are no nodes"));
}

#[test]
fn a_pod_that_names_its_node_gets_it_ready_or_not() {
    let nodes = [node("n1", true), node("n2", false)];
    let named =
        affinity(json!([{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["n2"]}]}]));
    assert_eq!(choose(&pod(named), &nodes, &[]).unwrap(), "n2");
}

#[test]
fn every_operator_of_node_affinity_does_what_it_says() {
    let node = node("n1", true);
    for (operator, values, accepted) in [
        ("In", json!(["7", "8"]), true),
        ("NotIn", json!(["7"]), false),
        ("Exists", json!([]), true),
        ("DoesNotExist", json!([]), false),
        ("Gt", json!(["6"]), true),
        ("Lt", json!(["6"]), false),
        ("Near", json!(["7"]), false),
    ] {
        let terms = json!([{"matchExpressions": [{"key": "size", "operator": operator, "values": values}]}]);
        let pod = pod(affinity(terms));
        assert_eq!(affinity::wants(pod.spec.as_ref(), &node), accepted, "{operator}");
    }
    let nothing = pod(affinity(json!([{}])));
    assert!(!affinity::wants(nothing.spec.as_ref(), &node), "an empty term matches nothing");
}
