//! Under the node agent of Istio: pods come, leave and go, and connections outlive the agent and the proxy.

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::eventually;
use crate::traffic::{answering, ask, pair};
use crate::world::{MESH, NAMESPACE, PORT, World, is_enrolled};

/// Whether one of the proxies serves a pod of this name.
async fn is_served(world: &World, name: &str) -> bool {
    world.ask_proxies(15000, "/config_dump").await.iter().any(|dump| {
        let dump: Value = serde_json::from_str(dump).unwrap();
        let pods = dump["workloadState"].as_object().expect("workloadState is an object");
        pods.values().any(|pod| pod["info"]["name"] == name && pod["state"] == "Up")
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs install-cni and istio-cni in AMBIT_FOREIGN_CNI"]
async fn pods_come_leave_and_go_by_the_word_of_istios_agent() {
    let world = World::new("isn").await;
    world.hand_nodes_to_istio_cni().await;
    let a = world.start(NAMESPACE, 1, "a").await;
    let b = world.start(NAMESPACE, 2, "b").await;
    let _answering = answering(b.listen(PORT));
    assert_eq!(ask(&a, world.service(&b).await, "enrolled").await.unwrap(), "ENROLLED");
    eventually("both ends to call it mutual TLS", || async {
        let metrics = world.ask_proxies(15020, "/metrics").await;
        let secured = |metrics: &String| {
            metrics.lines().any(|line| {
                line.starts_with("istio_tcp_connections_opened_total{")
                    && line.contains("connection_security_policy=\"mutual_tls\"")
                    && line.contains("destination_workload=\"b\"")
            })
        };
        if metrics.iter().all(secured) { Ok(()) } else { Err(metrics.join("\n")) }
    })
    .await;

    // It leaves the mesh, and lives on.
    let pods = Api::<Pod>::namespaced(world.client.clone(), NAMESPACE);
    let mode =
        |value: Value| Patch::Merge(json!({"metadata": {"labels": {"istio.io/dataplane-mode": value}}}));
    pods.patch("a", &PatchParams::default(), &mode("none".into())).await.unwrap();
    eventually("a to leave", || async {
        let enrolled = is_enrolled(&pods.get("a").await.unwrap());
        if enrolled || is_served(&world, "a").await { Err(format!("enrolled: {enrolled}")) } else { Ok(()) }
    })
    .await;
    assert_eq!(ask(&a, b.at(PORT), "outside").await.unwrap(), "OUTSIDE");
    pods.patch("a", &PatchParams::default(), &mode(Value::Null)).await.unwrap();
    eventually("a to be back", || async {
        let enrolled = is_enrolled(&pods.get("a").await.unwrap());
        if enrolled && is_served(&world, "a").await { Ok(()) } else { Err(format!("enrolled: {enrolled}")) }
    })
    .await;
    assert_eq!(ask(&a, b.at(PORT), "back").await.unwrap(), "BACK");

    world.delete("a").await;
    eventually("a to be forgotten", || async {
        if is_served(&world, "a").await { Err("it is still served".into()) } else { Ok(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs install-cni and istio-cni in AMBIT_FOREIGN_CNI"]
async fn connections_outlive_istios_agent_and_calls_the_change_of_proxies() {
    let world = World::new("isk").await;
    world.hand_nodes_to_istio_cni().await;
    let a = world.start(NAMESPACE, 1, "a").await;
    let b = world.start(NAMESPACE, 2, "b").await;
    let _answering = answering(b.listen(PORT));
    let listener = b.listen(9000);
    let (mut client, mut server) = pair(&a, b.at(9000), &listener).await;

    world.kill("install-cni").await;
    assert_eq!(ask(&a, b.at(PORT), "no agent").await.unwrap(), "NO AGENT");
    let late = world.start(NAMESPACE, 1, "late").await;
    assert_eq!(ask(&late, b.at(PORT), "late").await.unwrap(), "LATE");
    client.write_all(b"still").await.unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still", "the connection from before is the same");

    // New proxies beside the old ones: the agent tells both, and no call is refused.
    let before: Vec<_> = world.pods("app=ztunnel").await.into_iter().map(|pod| pod.metadata.uid).collect();
    let sets = Api::<DaemonSet>::namespaced(world.client.clone(), MESH);
    sets.restart("ambit-proxy").await.unwrap();
    eventually("other proxies", || async {
        for from in [&a, &late] {
            assert_eq!(ask(from, b.at(PORT), "meanwhile").await.unwrap(), "MEANWHILE");
        }
        let now = world.pods("app=ztunnel").await;
        let changed = now.len() == 2 && now.iter().all(|pod| !before.contains(&pod.metadata.uid));
        if changed { Ok(()) } else { Err(format!("{} proxies", now.len())) }
    })
    .await;
    let last = world.start(NAMESPACE, 2, "last").await;
    assert_eq!(ask(&last, b.at(PORT), "last").await.unwrap(), "LAST");
    assert_eq!(ask(&a, b.at(PORT), "as before").await.unwrap(), "AS BEFORE");
}
