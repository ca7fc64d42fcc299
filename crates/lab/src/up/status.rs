//! What a lab looks like at the moment.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde::Serialize;

use super::answers::plainly;
use super::record::Record;
use super::{LabName, nodes, preflight};

/// How long the API may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// A lab in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Everything is there: process, API, and every node ready.
    pub up: bool,
    /// Why it is not, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The API's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<String>,
    /// The kubeconfig that users have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubeconfig: Option<String>,
    /// Seconds since it was started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<i64>,
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
    /// Pods that are ready.
    pub pods_ready: usize,
    /// Pods that should be.
    pub pods: usize,
}

/// A node in numbers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NodeStatus {
    /// Its name.
    pub name: String,
    /// Its kubelet says that it is ready.
    pub ready: bool,
    /// Its address.
    pub ip: String,
    /// Pods that are ready.
    pub pods_ready: usize,
    /// Pods that should be.
    pub pods: usize,
}

/// Looks at a lab. One that does not exist is one that is not up.
pub async fn status(lab: &LabName) -> Status {
    let name = lab.to_string();
    let Some(record) = Record::load(lab) else {
        return Status { name, reason: Some("it was not started".into()), ..Status::default() };
    };
    let mut status = Status {
        name,
        api: Some(record.api.clone()).filter(|api| !api.is_empty()),
        kubeconfig: record.published.as_ref().map(|published| published.path.display().to_string()),
        age_seconds: record
            .created
            .parse::<jiff::Timestamp>()
            .ok()
            .map(|created| jiff::Timestamp::now().as_second() - created.as_second()),
        ..Status::default()
    };
    if !record.process.is_alive() {
        status.reason =
            Some(format!("its process is gone: clear it away with `ambit lab down --name {lab}`"));
        return status;
    }
    match tokio::time::timeout(PATIENCE, look(&record)).await {
        Ok(Ok((nodes, pods))) => count(&mut status, &nodes, &pods),
        Ok(Err(error)) => status.reason = Some(format!("{error:#}")),
        Err(_) => status.reason = Some("its API does not answer".into()),
    }
    let unready: Vec<&str> =
        status.nodes.iter().filter(|node| !node.ready).map(|node| node.name.as_str()).collect();
    if status.reason.is_none() && !record.ready {
        status.reason = Some("it is still starting".into());
    } else if status.reason.is_none() && !unready.is_empty() {
        status.reason = Some(format!("not ready: {}", unready.join(", ")));
    }
    status.up = status.reason.is_none();
    status
}

async fn look(record: &Record) -> anyhow::Result<(Vec<Node>, Vec<Pod>)> {
    let client = preflight::client(&record.kubeconfig).await?;
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await.map_err(plainly)?;
    let pods = Api::<Pod>::all(client).list(&ListParams::default()).await.map_err(plainly)?;
    let mine = |node: &Node| {
        record.nodes.is_empty() || record.nodes.iter().any(|known| known.name == node.name_any())
    };
    Ok((nodes.items.into_iter().filter(mine).collect(), pods.items))
}

fn count(status: &mut Status, nodes: &[Node], pods: &[Pod]) {
    let mut by_node: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for pod in pods {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        // Those that ran to their end are done.
        if matches!(phase, "Succeeded" | "Failed") {
            continue;
        }
        let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let ready = conditions.into_iter().any(|known| known.type_ == "Ready" && known.status == "True");
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()).unwrap_or_default();
        let counted = by_node.entry(node).or_default();
        counted.1 += 1;
        counted.0 += usize::from(ready);
        status.pods += 1;
        status.pods_ready += usize::from(ready);
    }
    for node in nodes {
        let name = node.name_any();
        let (pods_ready, pods) = by_node.get(name.as_str()).copied().unwrap_or_default();
        let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
        let ip = addresses.into_iter().find(|address| address.type_ == "InternalIP");
        let ip = ip.map(|address| address.address.clone()).unwrap_or_default();
        status.nodes.push(NodeStatus { name, ready: nodes::is_ready(node), ip, pods_ready, pods });
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pods_are_counted_where_they_run_and_finished_ones_are_not() {
        let node = json!({
            "metadata": {"name": "node1"},
            "status": {
                "addresses": [{"type": "Hostname", "address": "x"}, {"type": "InternalIP", "address": "10.98.0.11"}],
                "conditions": [{"type": "Ready", "status": "True"}],
            },
        });
        let pod = |node: Option<&str>, phase: &str, ready: &str| {
            serde_json::from_value::<Pod>(json!({
                "metadata": {"name": "p"}, "spec": {"nodeName": node, "containers": []},
                "status": {"phase": phase, "conditions": [{"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        let pods = [
            pod(Some("node1"), "Running", "True"),
            pod(Some("node1"), "Running", "False"),
            pod(Some("node1"), "Succeeded", "False"),
            pod(None, "Pending", "False"),
        ];
        let mut status = Status::default();
        count(&mut status, &[serde_json::from_value(node).unwrap()], &pods);
        assert_eq!((status.pods_ready, status.pods), (1, 3));
        let expected =
            NodeStatus { name: "node1".into(), ready: true, ip: "10.98.0.11".into(), pods_ready: 1, pods: 2 };
        assert_eq!(status.nodes, [expected]);
    }
}
