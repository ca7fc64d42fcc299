use serde_json::json;

use super::*;

fn pod(value: serde_json::Value) -> (Pod, Option<Candidate>) {
    let special = Special { system: "ambit-system".into(), excluded: vec!["kube-system".into()] };
    pod_of(&serde_json::from_value(value).unwrap(), &special)
}

#[test]
fn a_pod_is_read_as_far_as_the_proof_needs_it() {
    let (found, candidate) = pod(json!({
        "metadata": {
            "namespace": "monitoring", "name": "prometheus-6d4-x1",
            "labels": { "app": "prometheus", "pod-template-hash": "6d4" },
            "annotations": { "ambient.istio.io/redirection": "enabled" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "prometheus-6d4", "uid": "u", "controller": true }]
        },
        "spec": { "nodeName": "n1", "serviceAccountName": "prometheus",
                  "containers": [{ "name": "prometheus", "ports": [{ "name": "web", "containerPort": 9091 }] }] },
        "status": { "phase": "Running", "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }], "startTime": "2026-01-02T03:04:05Z" }
    }));
    assert_eq!((&*found.workload, &*found.workload_type, &*found.node), ("prometheus", "deployment", "n1"));
    assert!(found.enrolled && found.running && !found.finished && !found.host_network);
    assert_eq!((found.addresses.len(), found.started), (1, 1_767_323_045_000));
    assert_eq!(candidate.unwrap().api, "10.0.0.1:9091".parse().unwrap());
}

#[test]
fn what_has_finished_or_opted_out_or_belongs_to_the_mesh_is_known_as_such() {
    let (found, candidate) = pod(json!({
        "metadata": { "namespace": "batch", "name": "backup-29000000-x",
            "labels": { "istio.io/dataplane-mode": "none", "app": "prometheus" },
            "ownerReferences": [{ "apiVersion": "batch/v1", "kind": "Job", "name": "backup-29000000", "uid": "u", "controller": true }] },
        "spec": { "containers": [{ "name": "c" }] }, "status": { "phase": "Succeeded" }
    }));
    assert!(found.finished && found.opted_out && candidate.is_none());
    assert_eq!((&*found.workload, &*found.workload_type), ("backup", "cronjob"));
    let (found, _) = pod(json!({ "metadata": { "namespace": "ambit-system", "name": "x" } }));
    assert!(found.mesh && !found.running);
}

#[test]
fn what_keeps_a_pod_out_beside_labels_is_read_too() {
    let (found, _) = pod(json!({ "metadata": {
        "namespace": "shop", "name": "x", "labels": { "istio.io/dataplane-mode": "ambient" },
        "annotations": { "sidecar.istio.io/status": "" } } }));
    assert!(found.opted_in && found.sidecar && !found.excluded && !found.opted_out);
    let (found, _) = pod(json!({ "metadata": { "namespace": "kube-system", "name": "dns" } }));
    assert!(found.excluded && !found.opted_in && !found.sidecar);
}

#[test]
fn a_list_replaces_what_was_known_only_at_its_end() {
    let (mut listing, mut known) = (HashMap::new(), HashMap::new());
    let mut listed = [false; 3];
    let named = |name: &str| -> core::Namespace {
        serde_json::from_value(
            json!({ "metadata": { "name": name, "labels": { "istio.io/dataplane-mode": "ambient" } } }),
        )
        .unwrap()
    };
    let mut apply = |event| super::apply(2, event, &mut listing, &mut known, &mut listed, is_labelled);
    apply(watcher::Event::Init);
    apply(watcher::Event::InitApply(named("a")));
    apply(watcher::Event::InitDone);
    apply(watcher::Event::Init);
    apply(watcher::Event::InitApply(named("b")));
    assert_eq!(known.keys().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["a"]);
    let mut apply = |event| super::apply(2, event, &mut listing, &mut known, &mut listed, is_labelled);
    apply(watcher::Event::InitDone);
    apply(watcher::Event::Apply(named("c")));
    apply(watcher::Event::Delete(named("b")));
    assert_eq!(known.keys().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), ["c"]);
    assert_eq!(listed, [false, false, true]);
}

#[test]
fn the_addresses_of_a_node_include_its_bridge() {
    let node = serde_json::from_value(json!({
        "metadata": { "name": "n1" }, "spec": { "podCIDRs": ["10.1.2.0/24"] },
        "status": { "addresses": [{ "type": "InternalIP", "address": "192.168.0.1" }, { "type": "Hostname", "address": "n1" }] }
    }));
    let addresses = addresses_of(&node.unwrap());
    assert_eq!(addresses, ["192.168.0.1".parse::<IpAddr>().unwrap(), "10.1.2.1".parse().unwrap()]);
}

/// Versions went back from 100 to 7: a watch from 100 on would hear nothing, for a long time or ever.
#[tokio::test]
async fn an_api_that_was_away_is_listed_anew_whatever_it_counts_from_now() {
    let list = |version: &str, name: &str| {
        let item = json!({ "metadata": { "name": name, "resourceVersion": version } });
        (200, json!({ "metadata": { "resourceVersion": version }, "items": [item] }))
    };
    let refusal =
        json!({ "kind": "Status", "status": "Failure", "code": 503, "reason": "x", "message": "x" });
    let script = [list("100", "new"), (503, refusal), list("7", "old")];
    let script = Arc::new(parking_lot::Mutex::new(script.into_iter()));
    let client = Client::new(
        tower::service_fn(move |_: http::Request<kube::client::Body>| {
            let answer = script.lock().next();
            async move {
                let Some((status, body)) = answer else { return std::future::pending().await };
                let body = kube::client::Body::from(body.to_string().into_bytes());
                let answer = http::Response::builder().status(status).body(body).unwrap();
                Ok::<_, std::convert::Infallible>(answer)
            }
        }),
        "default",
    );
    let mut changes = events::<core::Namespace>(client, "namespaces", Change::Namespace);
    let mut names = Vec::new();
    while names.len() < 2 {
        if let Change::Namespace(event) = changes.next().await.unwrap()
            && let watcher::Event::InitApply(namespace) = *event
        {
            names.push(namespace.name_any());
        }
    }
    assert_eq!(names, ["new", "old"]);
}
