//! Two replicas of the control plane under a mesh at work: any of them may be killed at any moment.

#[path = "enrolment/load.rs"]
mod load;
mod support;

use std::collections::BTreeMap;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Client, ResourceExt};
use load::Load;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use support::{TestLab, eventually, netns_of, processes};

const MESH: &str = "ambit-system";
const NAMESPACE: &str = "crowd";
const PORT: u16 = 8080;

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = |kind: &str, value: &str| kind == "Ready" && value == "True";
    conditions.into_iter().flatten().any(|one| ready(&one.type_, &one.status))
        && pod.metadata.deletion_timestamp.is_none()
}

fn ip(pod: &Pod) -> String {
    pod.status.as_ref().and_then(|status| status.pod_ip.clone()).expect("a ready pod has an address")
}

/// Makes pods, each of an account of its own, whose certificate nobody has yet.
async fn make(client: &Client, names: &[&str]) {
    for name in names {
        let account = json!({ "metadata": { "name": name } });
        let accounts = Api::<ServiceAccount>::namespaced(client.clone(), NAMESPACE);
        accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await.unwrap();
        let pod = json!({
            "metadata": { "name": name },
            "spec": {
                "serviceAccountName": name, "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "app", "image": "ambit",
                    "args": ["lab", "app", "--name", name, "--port", PORT.to_string()],
                    "readinessProbe": { "httpGet": { "path": "/healthz", "port": PORT }, "periodSeconds": 2 },
                }],
            },
        });
        let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    }
}

/// Waits until pods are ready and in the mesh.
async fn enrolled(client: &Client, names: &[&str]) -> Vec<Pod> {
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let mut found = Vec::new();
    for name in names {
        let what = format!("{name} to be in the mesh");
        let pod = eventually(&what, || async {
            let pod = pods.get(name).await.map_err(|error| error.to_string())?;
            let annotation = pod.annotations().get("ambient.istio.io/redirection").map(String::as_str);
            match ready(&pod) && annotation == Some("enabled") {
                true => Ok(pod),
                false => Err(format!("{annotation:?}, {:?}", pod.status)),
            }
        });
        found.push(pod.await);
    }
    found
}

/// Every one of `from` can call every one of `to`; under STRICT that takes a certificate at both ends.
async fn calls(from: &[Pod], to: &[Pod]) {
    for (caller, called) in from.iter().flat_map(|caller| to.iter().map(move |called| (caller, called))) {
        let netns = netns_of(caller).expect("a ready pod has a process");
        let (what, to) = (format!("{} calling {}", caller.name_any(), called.name_any()), ip(called));
        eventually(&what, || load::get(&netns, &to, PORT, "/hello")).await;
    }
}

/// Both replicas, once both are ready.
async fn replicas(client: &Client) -> BTreeMap<String, Pod> {
    let pods = Api::<Pod>::namespaced(client.clone(), MESH);
    eventually("two replicas", || async {
        let list = pods.list(&ListParams::default().labels("app=ambit-control")).await;
        let all = list.map_err(|error| error.to_string())?.items;
        let ready: BTreeMap<_, _> = all.into_iter().filter(ready).map(|pod| (pod.name_any(), pod)).collect();
        if ready.len() == 2 { Ok(ready) } else { Err(format!("{:?}", ready.keys())) }
    })
    .await
}

async fn leader(client: &Client) -> String {
    let leases = Api::<Lease>::namespaced(client.clone(), MESH);
    eventually("a leader", || async {
        let lease = leases.get("istio-status-leader").await.map_err(|error| error.to_string())?;
        let holder = lease.spec.and_then(|spec| spec.holder_identity).filter(|holder| !holder.is_empty());
        holder.ok_or("nobody holds the lease".into())
    })
    .await
}

/// How many node proxies a replica serves, by its own metrics.
async fn serves(replica: &Pod) -> f64 {
    let netns = netns_of(replica).expect("a ready pod has a process");
    let metrics = load::get(&netns, &ip(replica), 15014, "/metrics").await.unwrap();
    let lines = metrics.lines().filter(|line| line.starts_with("pilot_xds{"));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

/// `kill -9` of the one process of a replica.
fn slay(lab: &TestLab, replica: &Pod) {
    let uid = replica.uid().unwrap();
    let of_pod = |pid: &i32| {
        let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        groups.contains(&uid) || groups.contains(&uid.replace('-', "_"))
    };
    let found: Vec<i32> = processes(lab, "control").into_iter().filter(of_pod).collect();
    assert_eq!(found.len(), 1, "one process of {}", replica.name_any());
    kill(Pid::from_raw(found[0]), Signal::SIGKILL).unwrap();
}

/// Goes on until that many more requests have been answered.
async fn answered(load: &Load, more: u64) {
    let from = load.requests();
    eventually("requests to go on", || async {
        let since = load.requests() - from;
        if since >= more { Ok(()) } else { Err(format!("{since} of {more} so far")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_leader_and_then_the_replica_that_serves_are_killed_and_no_request_fails() {
    let lab = TestLab::new("c4r");
    lab.must(&["lab", "up", "--name", &lab.name]);
    lab.must(&["install", "--set", "control.replicas=2"]);
    let client = lab.client().await;
    let namespace = json!({
        "metadata": { "name": NAMESPACE, "labels": { "istio.io/dataplane-mode": "ambient" } }
    });
    let namespaces = Api::<Namespace>::all(client.clone());
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
    let kind = GroupVersionKind::gvk("security.istio.io", "v1", "PeerAuthentication");
    let kind = ApiResource::from_gvk_with_plural(&kind, "peerauthentications");
    let peers = Api::<DynamicObject>::namespaced_with(client.clone(), NAMESPACE, &kind);
    let strict = json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": { "name": "default" },
        "spec": { "mtls": { "mode": "STRICT" } },
    });
    peers.patch("default", &PatchParams::apply("test"), &Patch::Apply(&strict)).await.unwrap();
    let first = ["a", "b", "c", "d"];
    make(&client, &first).await;
    let there = enrolled(&client, &first).await;
    calls(&there, &there).await;
    let load = Load::start(&there.iter().collect::<Vec<_>>(), PORT);

    // The leader first, in the midst of new pods; then the one that is left, which serves all by then.
    let both = replicas(&client).await;
    let leads = leader(&client).await;
    make(&client, &["e", "f"]).await;
    slay(&lab, &both[&leads]);
    load.say("word-leader-killed");
    make(&client, &["g"]).await;
    let come = enrolled(&client, &["e", "f", "g"]).await;
    calls(&come, &there).await;
    answered(&load, 60).await;

    let both = replicas(&client).await;
    let left = both.values().find(|pod| pod.name_any() != leads).unwrap();
    assert!(serves(left).await >= 1.0, "the other one has taken over");
    make(&client, &["h", "i"]).await;
    slay(&lab, left);
    load.say("word-server-killed");
    make(&client, &["j"]).await;
    let late = enrolled(&client, &["h", "i", "j"]).await;
    calls(&late, &there).await;
    calls(&there, &late).await;
    answered(&load, 60).await;
    replicas(&client).await;

    let outcome = load.stop().await;
    println!("{} requests, {} sent again, {} of pools", outcome.requests, outcome.again, outcome.pooled);
    assert!(outcome.requests > 100 && outcome.pooled > 10);
    assert_eq!((outcome.failed, outcome.again), (Vec::<String>::new(), 0), "no connection was touched");
}
