//! Answers what is known of one pod, on a port of the node's loopback: whoever may forward a port to the agent's pod
//! may ask. Looks into the pod's namespace at the moment of the question, and changes nothing.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use netns::NetNs;
use tokio_util::sync::CancellationToken;

use super::Node;
use super::wish::{annotation, ips, namespace_labels};
use crate::eligibility::{Verdict, chosen_by, judge};
use crate::older::diag::{Diag, State as SocketState};
use crate::redirect::{self, DNS_PORT, HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};
use crate::status::PodStatus;

/// How long one answer may take.
const PATIENCE: Duration = Duration::from_secs(8);

/// Serves `/pods/<namespace>/<name>` on `port` until `stop`; nothing when it is 0.
pub(super) async fn serve(node: &Arc<Node>, stop: CancellationToken) -> anyhow::Result<()> {
    let port = node.config.status_port;
    if port == 0 {
        return Ok(());
    }
    let listener = tokio::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
        .await
        .with_context(|| format!("cannot serve status on 127.0.0.1:{port}; is the port taken?"))?;
    let router = Router::new().route("/pods/{namespace}/{name}", get(answer)).with_state(node.clone());
    tokio::spawn(async move {
        let _ = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
    });
    Ok(())
}

async fn answer(State(node): State<Arc<Node>>, Path((namespace, name)): Path<(String, String)>) -> Response {
    let found = node
        .pods
        .find(|pod| pod.name_any() == name && pod.namespace().as_deref() == Some(namespace.as_str()));
    let Some(pod) = found else {
        let text = format!("no pod {namespace}/{name} on node {}", node.config.node_name);
        return (StatusCode::NOT_FOUND, text).into_response();
    };
    match tokio::time::timeout(PATIENCE, of_pod(&node, &pod)).await {
        Ok(status) => axum::Json(status).into_response(),
        Err(_) => (StatusCode::GATEWAY_TIMEOUT, "looking into the pod takes too long").into_response(),
    }
}

async fn of_pod(node: &Node, pod: &Pod) -> PodStatus {
    let uid = pod.uid().unwrap_or_default();
    let (wanted, why) = match namespace_labels(node, pod) {
        None => (false, "its namespace is not known to the node agent yet".to_owned()),
        Some(labels) => match judge(&node.rules, pod, &labels) {
            Verdict::Enrol => (true, chosen_by(&node.rules, pod, &labels)),
            Verdict::Not(reason) => (false, reason.to_string()),
        },
    };
    let member = node.members.lock().get(&uid).cloned();
    let changing = node.queue.lock().is_working(&uid);
    let record = node.remembered.get(&uid);
    let addresses = ips(pod);
    let mut status = PodStatus {
        namespace: pod.namespace().unwrap_or_default(),
        name: pod.name_any(),
        node: node.config.node_name.clone(),
        wanted,
        why,
        enrolled: match &member {
            Some(member) => member.is_enrolled(),
            None => changing && annotation(pod) == Some("enabled"),
        },
        since: record.as_ref().and_then(|record| record.since),
        changing,
        problem: member.as_ref().and_then(|member| member.waiting_for.clone()),
        firewall: node.config.firewall.to_string(),
        probes: node.probes.addresses().into_iter().filter(|ip| addresses.contains(ip)).collect(),
        older_connections: node.sweeper.open(&uid),
        ..PodStatus::default()
    };
    let held = member.and_then(|member| member.netns);
    let told = || record.and_then(|record| record.path).and_then(|path| node.finder.open(&path).ok());
    if let Some(netns) = held.or_else(told) {
        status.carried = node.zds.carried(&uid, &netns);
        match redirect::present(&netns, node.config.firewall).await {
            Ok(rules) => status.rules = rules,
            Err(error) => {
                status.problem.get_or_insert_with(|| format!("its rules cannot be listed: {error}"));
            }
        }
        match tokio::task::spawn_blocking(move || listeners(&netns)).await {
            Ok(Ok(listeners)) => status.listeners = listeners,
            Ok(Err(error)) => {
                status.problem.get_or_insert_with(|| format!("its sockets cannot be listed: {error}"));
            }
            Err(_) => {}
        }
    }
    status.uid = uid;
    status
}

fn listeners(netns: &NetNs) -> std::io::Result<Vec<SocketAddr>> {
    let ours = [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT, DNS_PORT];
    let mut all: Vec<SocketAddr> = Diag::open(netns)?
        .list()?
        .into_iter()
        .filter(|socket| socket.state == SocketState::Listen && ours.contains(&socket.local.port()))
        .map(|socket| socket.local)
        .collect();
    all.sort();
    all.dedup();
    Ok(all)
}
