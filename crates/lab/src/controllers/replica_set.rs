//! ReplicaSet: as many pods of one template as asked for.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::hub::{Change, Hub, Key};
use super::objects::{self, controller_of, owner_name, write_status};
use super::{children, pods};

/// Keeps ReplicaSets at their size.
pub struct Controller;

impl super::Controller for Controller {
    const NAME: &'static str = "replicaset";

    fn keys(&self, hub: &Hub, change: &Change) -> Vec<Key> {
        match change {
            Change::ReplicaSet(set) => vec![Key::of(&set.metadata)],
            Change::Pod(pod) => {
                let namespace = pod.namespace().unwrap_or_default();
                if let Some(owner) = owner_name(&pod.metadata, "ReplicaSet") {
                    return vec![Key::new(namespace, owner)];
                }
                if controller_of(&pod.metadata).is_some() {
                    return Vec::new();
                }
                let sets = hub.replica_sets.of_namespace(&namespace);
                let wants = |set: &ReplicaSet| {
                    objects::selector(set.spec.as_ref().map(|spec| &spec.selector))
                        .is_some_and(|selector| objects::selects(&selector, &pod.metadata))
                };
                sets.iter().filter(|set| wants(set)).map(|set| Key::of(&set.metadata)).collect()
            }
            _ => Vec::new(),
        }
    }

    async fn reconcile(&self, hub: &Hub, key: &Key) -> anyhow::Result<Option<Duration>> {
        let api = hub.api::<ReplicaSet>(&key.namespace);
        let Some(mut set) = api.get_opt(&key.name).await? else { return Ok(None) };
        let Some(spec) = set.spec.clone() else { return Ok(None) };
        let Some(selector) = objects::selector(Some(&spec.selector)) else { return Ok(None) };
        let mut mine = children::owned_or_adopted(hub, &set, &selector).await?;
        mine.retain(pods::is_active);

        if set.metadata.deletion_timestamp.is_none() {
            match plan(spec.replicas.unwrap_or(1), &mine) {
                Action::Nothing => {}
                Action::Create(count) => {
                    let template = spec.template.clone().unwrap_or_default();
                    let new = vec![children::from_template(&set, &template); count];
                    children::create_for(hub, &set, new).await?;
                    mine = children::owned(hub, &set, &selector).await?;
                    mine.retain(pods::is_active);
                }
                Action::Delete(names) => {
                    children::remove(hub, mine.iter().filter(|pod| names.contains(&pod.name_any()))).await?;
                    mine.retain(|pod| !names.contains(&pod.name_any()));
                }
            }
        }

        let now = objects::now();
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let available: Vec<_> =
            mine.iter().filter_map(|pod| pods::available_in(pod, min_ready, &now)).collect();
        let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        let template_labels = spec
            .template
            .and_then(|template| template.metadata)
            .and_then(|meta| meta.labels)
            .unwrap_or_default();
        let labelled = mine
            .iter()
            .filter(|pod| template_labels.iter().all(|(name, value)| pod.labels().get(name) == Some(value)));
        let before = set.status.clone().unwrap_or_default();
        let after = ReplicaSetStatus {
            replicas: count(mine.len()),
            fully_labeled_replicas: Some(count(labelled.count())),
            ready_replicas: Some(count(available.len())),
            available_replicas: Some(count(available.iter().filter(|wait| wait.is_zero()).count())),
            observed_generation: set.metadata.generation,
            ..before.clone()
        };
        set.status = Some(after.clone());
        write_status(&api, &set, &before, &after).await?;
        Ok(available.into_iter().filter(|wait| !wait.is_zero()).min())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Nothing,
    Create(usize),
    Delete(Vec<String>),
}

/// What brings `active` pods to `desired`. The pods that are missed least go first: those without a node, not
/// running, not ready; then those that share their node with most others; then the youngest.
fn plan(desired: i32, active: &[Pod]) -> Action {
    let desired = usize::try_from(desired).unwrap_or(0);
    if active.len() < desired {
        return Action::Create(desired - active.len());
    }
    if active.len() == desired {
        return Action::Nothing;
    }
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in active {
        *on_node.entry(pods::node(pod).unwrap_or_default()).or_default() += 1;
    }
    let mut ranked: Vec<&Pod> = active.iter().collect();
    ranked.sort_by_key(|pod| {
        let node = pods::node(pod);
        (
            node.is_some(),
            pods::phase(pod) == "Running",
            pods::is_ready(pod),
            std::cmp::Reverse(on_node.get(node.unwrap_or_default()).copied().unwrap_or(0)),
            std::cmp::Reverse(pod.metadata.creation_timestamp.as_ref().map(|at| at.0)),
            pod.name_any(),
        )
    });
    ranked.truncate(active.len() - desired);
    Action::Delete(ranked.into_iter().map(|pod| pod.name_any()).collect())
}

#[cfg(test)]
mod tests;
