//! Scheduler: gives every pod that has no node one.
//!
//! It looks at node selectors, required node affinity, readiness and cordons, and spreads the pods of one owner
//! over the nodes. Resources, taints, pod affinity and preferences are not looked at: a lab's nodes share one
//! machine.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Binding, Node, ObjectReference, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Status};
use kube::ResourceExt;
use kube::api::PostParams;
use parking_lot::Mutex;

use super::hub::{Change, Hub, Key};
use super::objects::{self, controller_of};
use super::pods;

pub(super) mod affinity;

/// Gives pods nodes. It works on one pod at a time, so that each choice knows the one before.
#[derive(Default)]
pub struct Controller {
    /// Bindings made that the store may not show yet, by the pod's UID.
    bound: Mutex<HashMap<String, String>>,
}

const NAME: &str = "default-scheduler";

impl super::Controller for Controller {
    const NAME: &'static str = "scheduler";
    const WORKERS: usize = 1;

    fn keys(&self, hub: &Hub, change: &Change) -> Vec<Key> {
        match change {
            Change::Pod(pod) if is_waiting(pod) => vec![Key::of(&pod.metadata)],
            // A node may be what waiting pods wait for. Heartbeats change nothing here, but are rare enough.
            Change::Node(_) => {
                let pods = hub.pods.all();
                pods.iter().filter(|pod| is_waiting(pod)).map(|pod| Key::of(&pod.metadata)).collect()
            }
            _ => Vec::new(),
        }
    }

    async fn reconcile(&self, hub: &Hub, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(pod) = hub.pods.get(key).filter(|pod| is_waiting(pod)) else { return Ok(None) };
        let uid = pod.uid().unwrap_or_default();
        let everybody = hub.pods.all();
        let choice = {
            let mut bound = self.bound.lock();
            bound.retain(|uid, _| {
                everybody.iter().any(|pod| pod.uid().as_ref() == Some(uid) && is_waiting(pod))
            });
            if bound.contains_key(&uid) {
                return Ok(None);
            }
            choose(&pod, &hub.nodes.all(), &placements(&everybody, &bound))
        };
        match choice {
            Ok(node) => {
                bind(hub, &pod, &node).await?;
                self.bound.lock().insert(uid, node);
            }
            Err(why) => say_unschedulable(hub, &pod, &why).await?,
        }
        Ok(None)
    }
}

fn is_waiting(pod: &Pod) -> bool {
    let ours =
        pod.spec.as_ref().and_then(|spec| spec.scheduler_name.as_deref()).is_none_or(|name| name == NAME);
    let gates = pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref());
    ours && pods::node(pod).is_none() && pods::is_active(pod) && gates.is_none_or(Vec::is_empty)
}

/// A pod that has a node already: where, and whose it is.
struct Placement {
    node: String,
    owner: Option<String>,
}

fn owner(pod: &Pod) -> Option<String> {
    controller_of(&pod.metadata).map(|owner| owner.uid.clone())
}

fn placements(pods: &[Arc<Pod>], bound: &HashMap<String, String>) -> Vec<Placement> {
    let active = pods.iter().filter(|pod| pods::is_active(pod));
    active
        .filter_map(|pod| {
            let node = pods::node(pod).or_else(|| bound.get(&pod.uid()?).map(String::as_str))?;
            Some(Placement { node: node.to_owned(), owner: owner(pod) })
        })
        .collect()
}

/// The node for a pod, or why there is none.
fn choose(pod: &Pod, nodes: &[Arc<Node>], placed: &[Placement]) -> Result<String, String> {
    let owner = owner(pod);
    let mut refusals: Vec<&str> = Vec::new();
    let mut best: Option<(usize, usize, String)> = None;
    for node in nodes {
        match refusal(pod, node) {
            Some(why) => refusals.push(why),
            None => {
                let name = node.name_any();
                let here: Vec<_> = placed.iter().filter(|placement| placement.node == name).collect();
                let siblings = here.iter().filter(|other| owner.is_some() && other.owner == owner).count();
                let rank = (siblings, here.len(), name);
                if best.as_ref().is_none_or(|best| rank < *best) {
                    best = Some(rank);
                }
            }
        }
    }
    best.map(|(_, _, name)| name).ok_or_else(|| {
        let mut kinds = refusals.clone();
        kinds.sort_unstable();
        kinds.dedup();
        let count = |kind: &&str| refusals.iter().filter(|why| *why == kind).count();
        let reasons: Vec<String> =
            kinds.iter().map(|kind| format!("{} node(s) {kind}", count(kind))).collect();
        let reasons = if reasons.is_empty() { "there are no nodes".into() } else { reasons.join(", ") };
        format!("0/{} nodes are available: {reasons}.", nodes.len())
    })
}

/// Why a node is not for a pod.
fn refusal(pod: &Pod, node: &Node) -> Option<&'static str> {
    if !affinity::wants(pod.spec.as_ref(), node) {
        return Some("didn't match Pod's node affinity/selector");
    }
    // A pod that names its node is a DaemonSet's: those run on nodes that are not ready and make them so.
    if affinity::names_node(pod.spec.as_ref()) {
        return None;
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        return Some("were unschedulable");
    }
    (!pods::is_node_ready(node)).then_some("were not ready")
}

async fn bind(hub: &Hub, pod: &Pod, node: &str) -> anyhow::Result<()> {
    let name = pod.name_any();
    let binding = Binding {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: pod.namespace(),
            uid: pod.uid(),
            ..ObjectMeta::default()
        },
        target: ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Node".into()),
            name: Some(node.to_owned()),
            ..ObjectReference::default()
        },
    };
    let api = hub.api::<Pod>(&pod.namespace().unwrap_or_default());
    let _: Status = api.create_subresource("binding", &name, &PostParams::default(), &binding).await?;
    tracing::debug!(pod = %Key::of(&pod.metadata), node, "pod scheduled");
    Ok(())
}

async fn say_unschedulable(hub: &Hub, pod: &Pod, why: &str) -> anyhow::Result<()> {
    let known = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut same = known.filter(|condition| condition.type_ == "PodScheduled");
    if same.any(|condition| condition.status == "False" && condition.message.as_deref() == Some(why)) {
        return Ok(());
    }
    let condition = PodCondition {
        type_: "PodScheduled".into(),
        status: "False".into(),
        reason: Some("Unschedulable".into()),
        message: Some(why.into()),
        last_transition_time: Some(objects::now()),
        ..PodCondition::default()
    };
    let mut pod = pod.clone();
    let conditions = pod.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != "PodScheduled");
    conditions.push(condition);
    let api = hub.api::<Pod>(&pod.namespace().unwrap_or_default());
    api.replace_status(&pod.name_any(), &PostParams::default(), &pod).await?;
    super::children::warn(hub, &kube::Resource::object_ref(&pod, &()), "FailedScheduling", why).await;
    Ok(())
}

#[cfg(test)]
mod tests;
