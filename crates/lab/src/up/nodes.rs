//! The nodes of a lab: their names and places, their processes, and what the cluster says of them.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use futures::StreamExt;
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::DeleteParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::process::Child;

use super::fabric::{self, NodeNet};
use super::processes::Process;
use super::record::{NodeRecord, Record};
use super::{Options, Progress};
use crate::node;

/// Starts a node's process and notes it in the record.
pub fn start_node(config: &node::Config, record: &mut Record) -> anyhow::Result<Child> {
    let child = node::spawn(config).with_context(|| format!("cannot start {}", config.name))?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let process = pid.and_then(Process::find).with_context(|| format!("{} ended at once", config.name))?;
    record.nodes.push(NodeRecord { name: config.name.clone(), process });
    Ok(child)
}

/// Takes nodes out of a cluster that goes on without them.
pub async fn leave(client: Client, names: impl Iterator<Item = &str>) {
    let api: Api<Node> = Api::all(client);
    for name in names {
        if let Err(error) = api.delete(name, &DeleteParams::default()).await {
            tracing::warn!(node = name, %error, "cannot take a node out of the cluster");
        }
    }
}

/// Nodes of a lab of its own are `node1`, `node2`, …; those that join another cluster carry the lab's name, so that
/// several labs can join the same one.
pub fn node_name(options: &Options, number: u8) -> String {
    if options.join.is_some() { format!("{}-node{number}", options.name) } else { format!("node{number}") }
}

/// A node's zone and region: every node of a lab is a zone of its own.
pub fn labels(place: &NodeNet) -> BTreeMap<String, String> {
    BTreeMap::from([
        ("topology.kubernetes.io/region".to_owned(), "lab".to_owned()),
        ("topology.kubernetes.io/zone".to_owned(), format!("zone{}", place.number)),
    ])
}

/// The range of Services of a cluster that is not the lab's own: what it says, or what its own Service suggests.
pub async fn service_cidr_of(client: &Client) -> IpNet {
    if let Ok(found) = Api::<ServiceCIDR>::all(client.clone()).get("kubernetes").await
        && let Some(cidr) = found.spec.and_then(|spec| spec.cidrs?.first()?.parse().ok())
    {
        return cidr;
    }
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let ip = services.get("kubernetes").await.ok().and_then(|service| service.spec?.cluster_ip);
    let net = ip.and_then(|ip| format!("{ip}/16").parse::<IpNet>().ok());
    net.map_or_else(fabric::service_cidr, |net| net.trunc())
}

/// Waits until all these nodes are ready.
pub async fn wait_ready(client: Client, mut names: Vec<String>, progress: Progress) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client);
    let mut seen =
        std::pin::pin!(watcher(nodes, watcher::Config::default()).default_backoff().applied_objects());
    while !names.is_empty() {
        match seen.next().await {
            Some(Ok(node)) if names.contains(&node.name_any()) && is_ready(&node) => {
                names.retain(|name| *name != node.name_any());
                progress(&format!("{} is ready", node.name_any()));
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => tracing::debug!(%error, "cannot watch the nodes"),
            None => bail!("the watch of the nodes ended"),
        }
    }
    Ok(())
}

/// The kubelet says that the node is ready.
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
