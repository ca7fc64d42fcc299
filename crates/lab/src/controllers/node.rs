//! Nodes: noticing that one has fallen silent, and clearing away the pods of one that is gone.
//!
//! Pods of a silent node are marked as not ready, so that nobody is sent there; they are not moved elsewhere.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, PodCondition};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};

use super::hub::{Change, Hub, Key};
use super::{objects, pods};

/// The namespace in which kubelets renew their leases.
pub const LEASES: &str = "kube-node-lease";
/// How long after its last renewal a node counts as silent, in seconds.
const GRACE: i64 = 40;

/// Marks silent nodes.
pub struct Controller;

impl super::Controller for Controller {
    const NAME: &'static str = "node";

    fn keys(&self, _: &Hub, change: &Change) -> Vec<Key> {
        match change {
            Change::Node(node) => vec![Key::new("", node.name_any())],
            Change::Lease(lease) => vec![Key::new("", lease.name_any())],
            _ => Vec::new(),
        }
    }

    async fn reconcile(&self, hub: &Hub, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(node) = hub.nodes.get(key) else { return Ok(None) };
        let lease = hub.leases.get(&Key::new(LEASES, &*key.name));
        let renewed = lease.as_ref().and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref());
        // A node that never had a lease is kept alive by other means, or not at all.
        let Some(renewed) = renewed else { return Ok(None) };
        let silent_for = objects::now().0.as_second() - renewed.0.as_second();
        if silent_for < GRACE {
            return Ok(Some(Duration::from_secs(u64::try_from(GRACE - silent_for).unwrap_or(1))));
        }
        let node = mark_unknown(hub, &node).await?;
        if node {
            tracing::warn!(node = %key, silent_for, "node stopped renewing its lease");
        }
        for pod in hub.pods.all() {
            if pods::node(&pod) == Some(&key.name) && pods::is_ready(&pod) {
                mark_unready(hub, &pod).await?;
            }
        }
        Ok(None)
    }
}

/// Whether the node had to be marked.
async fn mark_unknown(hub: &Hub, node: &Node) -> anyhow::Result<bool> {
    let mut node = node.clone();
    let conditions = node.status.get_or_insert_default().conditions.get_or_insert_default();
    if conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "Unknown") {
        return Ok(false);
    }
    conditions.retain(|condition| condition.type_ != "Ready");
    conditions.push(NodeCondition {
        type_: "Ready".into(),
        status: "Unknown".into(),
        reason: Some("NodeStatusUnknown".into()),
        message: Some("Kubelet stopped posting node status.".into()),
        last_heartbeat_time: Some(objects::now()),
        last_transition_time: Some(objects::now()),
    });
    let api = Api::<Node>::all(hub.client.clone());
    api.replace_status(&node.name_any(), &PostParams::default(), &node).await?;
    Ok(true)
}

async fn mark_unready(hub: &Hub, pod: &Pod) -> anyhow::Result<()> {
    let mut pod = pod.clone();
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != "Ready");
    conditions.push(PodCondition {
        type_: "Ready".into(),
        status: "False".into(),
        reason: Some("NodeNotReady".into()),
        last_transition_time: Some(objects::now()),
        ..PodCondition::default()
    });
    let api = hub.api::<Pod>(&pod.namespace().unwrap_or_default());
    match api.replace_status(&pod.name_any(), &PostParams::default(), &pod).await {
        Err(error) if !objects::is_not_found(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Deletes pods whose node no longer exists: no kubelet will ever end them.
pub struct Abandoned;

impl super::Controller for Abandoned {
    const NAME: &'static str = "pod-gc";

    fn keys(&self, hub: &Hub, change: &Change) -> Vec<Key> {
        let is_on = |pod: &Pod, node: &str| pods::node(pod) == Some(node);
        match change {
            Change::Pod(pod) => {
                let node = pods::node(pod).filter(|node| hub.nodes.get(&Key::new("", *node)).is_none());
                node.map(|_| Key::of(&pod.metadata)).into_iter().collect()
            }
            Change::Node(node) => {
                let name = node.name_any();
                if hub.nodes.get(&Key::new("", &*name)).is_some() {
                    return Vec::new();
                }
                let pods = hub.pods.all();
                pods.iter().filter(|pod| is_on(pod, &name)).map(|pod| Key::of(&pod.metadata)).collect()
            }
            _ => Vec::new(),
        }
    }

    async fn reconcile(&self, hub: &Hub, key: &Key) -> anyhow::Result<Option<Duration>> {
        let api = hub.api::<Pod>(&key.namespace);
        let Some(pod) = api.get_opt(&key.name).await? else { return Ok(None) };
        let Some(node) = pods::node(&pod) else { return Ok(None) };
        // The store may be behind: only the API's word counts for something that final.
        if Api::<Node>::all(hub.client.clone()).get_metadata_opt(node).await?.is_some() {
            return Ok(None);
        }
        tracing::info!(pod = %key, node, "deleting the pod of a node that is gone");
        objects::delete(&api, &key.name, pod.uid(), DeleteParams::background().grace_period(0)).await?;
        Ok(None)
    }
}
