//! Pods as targets for a Prometheus without Kubernetes discovery.
//!
//! Debian builds Prometheus without `kubernetes_sd_configs`. This serves the same targets with the same
//! `__meta_kubernetes_pod_*` labels over `http_sd_configs`, so that the relabelling rules of a real cluster work
//! unchanged in the lab. One group a container port, and one for a container without ports, as role `pod` has it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use axum::{Json, Router, extract::State, routing::get};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client, ResourceExt};
use serde::Serialize;
use tokio::net::TcpListener;

/// Targets that share labels, as Prometheus' HTTP discovery wants them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Group {
    /// `ip:port` or `ip`.
    pub targets: Vec<String>,
    /// `__meta_kubernetes_…`
    pub labels: BTreeMap<String, String>,
}

/// Serves `GET /pods` at `listen` for ever, fed by a watch of all pods.
pub async fn serve(client: Client, listen: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    let (pods, writer) = reflector::store::<Pod>();
    let watch = watcher(Api::all(client), watcher::Config::default()).default_backoff().reflect(writer);
    let watching = tokio::spawn(watch.for_each(|event| async {
        if let Err(error) = event {
            tracing::warn!(%error, "the watch of pods was interrupted");
        }
    }));
    let router = Router::new().route("/pods", get(targets)).with_state(pods);
    let served = axum::serve(listener, router).await;
    watching.abort();
    served.context("the discovery server ended")
}

async fn targets(State(pods): State<reflector::Store<Pod>>) -> Json<Vec<Group>> {
    let mut all: Vec<Arc<Pod>> = pods.state();
    all.sort_by_key(|pod| (pod.namespace(), pod.name_any()));
    Json(all.iter().flat_map(|pod| groups(pod)).collect())
}

/// The targets of one pod; a pod without an address has none.
pub fn groups(pod: &Pod) -> Vec<Group> {
    let status = pod.status.as_ref();
    let Some(ip) = status.and_then(|status| status.pod_ip.as_deref()).filter(|ip| !ip.is_empty()) else {
        return Vec::new();
    };
    let host = |port: Option<i32>| match (port, ip.contains(':')) {
        (Some(port), true) => format!("[{ip}]:{port}"),
        (Some(port), false) => format!("{ip}:{port}"),
        (None, true) => format!("[{ip}]"),
        (None, false) => ip.to_owned(),
    };
    let labels = pod_labels(pod, ip);
    let containers = pod.spec.as_ref().map_or(&[][..], |spec| &spec.containers);
    let of_container = |container: &Container| -> Vec<Group> {
        let group = |port: Option<(i32, String)>| {
            let mut labels = labels.clone();
            put(&mut labels, "pod_container_name", &container.name);
            put(&mut labels, "pod_container_image", container.image.as_deref().unwrap_or_default());
            if let Some((number, name)) = &port {
                put(&mut labels, "pod_container_port_number", &number.to_string());
                put(&mut labels, "pod_container_port_name", name);
                put(&mut labels, "pod_container_port_protocol", "TCP");
            }
            Group { targets: vec![host(port.map(|(number, _)| number))], labels }
        };
        let ports: Vec<_> = container.ports.iter().flatten().collect();
        if ports.is_empty() {
            return vec![group(None)];
        }
        ports
            .iter()
            .map(|port| group(Some((port.container_port, port.name.clone().unwrap_or_default()))))
            .collect()
    };
    containers.iter().flat_map(of_container).collect()
}

fn pod_labels(pod: &Pod, ip: &str) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let ready =
        conditions.filter(|condition| condition.type_ == "Ready").map(|c| c.status.to_lowercase()).next();
    for (name, value) in [
        ("namespace", pod.namespace().unwrap_or_default()),
        ("pod_name", pod.name_any()),
        ("pod_ip", ip.to_owned()),
        ("pod_uid", pod.uid().unwrap_or_default()),
        ("pod_node_name", spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default()),
        ("pod_host_ip", status.and_then(|status| status.host_ip.clone()).unwrap_or_default()),
        ("pod_phase", status.and_then(|status| status.phase.clone()).unwrap_or_default()),
        ("pod_ready", ready.unwrap_or_else(|| "unknown".to_owned())),
    ] {
        put(&mut labels, name, &value);
    }
    if let Some(owner) = pod.owner_references().iter().find(|owner| owner.controller == Some(true)) {
        put(&mut labels, "pod_controller_kind", &owner.kind);
        put(&mut labels, "pod_controller_name", &owner.name);
    }
    for (kind, pairs) in [("label", pod.labels()), ("annotation", pod.annotations())] {
        for (name, value) in pairs {
            let name: String =
                name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
            put(&mut labels, &format!("pod_{kind}_{name}"), value);
            put(&mut labels, &format!("pod_{kind}present_{name}"), "true");
        }
    }
    labels
}

fn put(labels: &mut BTreeMap<String, String>, name: &str, value: &str) {
    labels.insert(format!("__meta_kubernetes_{name}"), value.to_owned());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(value: serde_json::Value) -> Pod {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_pod_has_a_target_a_container_port_with_the_labels_of_role_pod() {
        let groups = groups(&pod(serde_json::json!({
            "metadata": {"name": "web-0", "namespace": "app", "labels": {"app.kubernetes.io/name": "web"},
                         "annotations": {"prometheus.io/scrape": "true"}},
            "spec": {"nodeName": "n1", "containers": [
                {"name": "a", "ports": [{"containerPort": 80, "name": "http"}, {"containerPort": 81}]}, {"name": "b"}]},
            "status": {"podIP": "10.0.0.1", "phase": "Running",
                       "conditions": [{"type": "Ready", "status": "True"}]}
        })));
        let targets: Vec<_> = groups.iter().map(|group| group.targets[0].as_str()).collect();
        assert_eq!(targets, ["10.0.0.1:80", "10.0.0.1:81", "10.0.0.1"]);
        let labels = &groups[0].labels;
        assert_eq!(labels["__meta_kubernetes_namespace"], "app");
        assert_eq!(labels["__meta_kubernetes_pod_ready"], "true");
        assert_eq!(labels["__meta_kubernetes_pod_label_app_kubernetes_io_name"], "web");
        assert_eq!(labels["__meta_kubernetes_pod_annotation_prometheus_io_scrape"], "true");
        assert_eq!(labels["__meta_kubernetes_pod_container_port_name"], "http");
    }

    #[test]
    fn a_pod_without_an_address_is_no_target() {
        assert!(
            groups(&pod(serde_json::json!({"metadata": {"name": "x"}, "spec": {"containers": []}})))
                .is_empty()
        );
    }
}
