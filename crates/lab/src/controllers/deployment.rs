//! Deployment: one ReplicaSet a pod template, and an orderly way from the old one to the new one.
//!
//! The rollout itself is decided in [`rollout`]; this module finds the ReplicaSets, does what was decided and
//! reports.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentSpec, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;

use super::hub::{Change, Hub, Key};
use super::objects::{self, is_controlled_by, owned_by, owner_name, share, write_status};
use super::pods;

mod rollout;
mod status;

use rollout::{Action, Rollout, Set};

/// Marks the pods of one template, in ReplicaSet, selector and pods alike.
const HASH_LABEL: &str = "pod-template-hash";
/// Counts the templates that a Deployment has had; `kubectl rollout history` and `undo` read it.
const REVISION: &str = "deployment.kubernetes.io/revision";

/// Rolls Deployments out.
pub struct Controller;

impl super::Controller for Controller {
    const NAME: &'static str = "deployment";

    fn keys(&self, hub: &Hub, change: &Change) -> Vec<Key> {
        match change {
            Change::Deployment(deployment) => vec![Key::of(&deployment.metadata)],
            Change::ReplicaSet(set) => owner_name(&set.metadata, "Deployment")
                .map(|owner| vec![Key::new(set.namespace().unwrap_or_default(), owner)])
                .unwrap_or_default(),
            // Only Recreate waits for pods themselves; everybody else reads the ReplicaSets.
            Change::Pod(pod) => {
                let namespace = pod.namespace().unwrap_or_default();
                let set = owner_name(&pod.metadata, "ReplicaSet").map(|set| Key::new(&*namespace, set));
                let set = set.and_then(|key| hub.replica_sets.get(&key));
                let owner = set.as_ref().and_then(|set| owner_name(&set.metadata, "Deployment"));
                let key = owner.map(|owner| Key::new(namespace, owner));
                key.filter(|key| hub.deployments.get(key).is_some_and(|found| is_recreate(&found)))
                    .into_iter()
                    .collect()
            }
            _ => Vec::new(),
        }
    }

    async fn reconcile(&self, hub: &Hub, key: &Key) -> anyhow::Result<Option<Duration>> {
        let api = hub.api::<Deployment>(&key.namespace);
        let Some(mut deployment) = api.get_opt(&key.name).await? else { return Ok(None) };
        let Some(spec) = deployment.spec.clone() else { return Ok(None) };
        if deployment.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let mut sets = owned_sets(hub, &deployment, &spec).await?;
        let mut current = sets.iter().position(|set| has_template(set, &spec.template));
        if current.is_none() && spec.paused != Some(true) {
            // The first one starts at full size; a later one is scaled up as the rollout allows.
            let replicas = if sets.is_empty() { spec.replicas.unwrap_or(1) } else { 0 };
            let new = create_set(hub, &deployment, &spec, &sets, replicas).await?;
            sets.push(new);
            current = Some(sets.len() - 1);
        }
        keep_revision(hub, &mut deployment, &mut sets, current).await?;

        let facts: Vec<Set> = sets.iter().map(describe).collect();
        let rollout = Rollout {
            replicas: spec.replicas.unwrap_or(1),
            surge: surge(&spec),
            unavailable: unavailable(&spec),
            recreate: is_recreate(&deployment),
            old_pods: old_pods(hub, key, &without(&sets, current)),
            paused: spec.paused == Some(true),
        };
        let (old, new) = split(&facts, current);
        for action in rollout::plan(&rollout, new.as_ref(), &old) {
            let Action::Scale { name, to } = action;
            scale(hub, &key.namespace, &name, to).await?;
        }
        if let Some(new) = &new
            && status::is_complete(&rollout, new, &old)
        {
            forget_old(hub, &spec, &without(&sets, current)).await?;
        }

        let before = deployment.status.clone().unwrap_or_default();
        let deadline = spec.progress_deadline_seconds.unwrap_or(600);
        let (after, again) = status::of(
            &before,
            &status::Facts { rollout: &rollout, new: new.as_ref(), old: &old, deadline },
            deployment.metadata.generation,
            &objects::now(),
        );
        deployment.status = Some(after.clone());
        write_status(&api, &deployment, &before, &after).await?;
        Ok(again)
    }
}

fn is_recreate(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref());
    strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}

fn surge(spec: &DeploymentSpec) -> i32 {
    let rolling = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    share(rolling.and_then(|rolling| rolling.max_surge.as_ref()), "25%", spec.replicas.unwrap_or(1), true)
}

fn unavailable(spec: &DeploymentSpec) -> i32 {
    let rolling = spec.strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref());
    let value = rolling.and_then(|rolling| rolling.max_unavailable.as_ref());
    let count = share(value, "25%", spec.replicas.unwrap_or(1), false);
    // With neither room above nor below nothing could ever move.
    if count == 0 && surge(spec) == 0 { 1 } else { count }
}

async fn owned_sets(
    hub: &Hub,
    deployment: &Deployment,
    spec: &DeploymentSpec,
) -> anyhow::Result<Vec<ReplicaSet>> {
    let selector = objects::selector(Some(&spec.selector)).context("the selector is malformed")?;
    let params = ListParams::default().labels_from(&selector);
    let uid = deployment.uid().unwrap_or_default();
    let mut sets =
        hub.api::<ReplicaSet>(&deployment.namespace().unwrap_or_default()).list(&params).await?.items;
    sets.retain(|set| is_controlled_by(&set.metadata, &uid));
    sets.sort_by_key(|set| (set.metadata.creation_timestamp.as_ref().map(|at| at.0), set.name_any()));
    Ok(sets)
}

/// Whether a ReplicaSet was made of this template: equal but for the label that was added.
fn has_template(set: &ReplicaSet, template: &PodTemplateSpec) -> bool {
    let Some(mut of_set) = set.spec.as_ref().and_then(|spec| spec.template.clone()) else { return false };
    let mut wanted = template.clone();
    for template in [&mut of_set, &mut wanted] {
        let meta = template.metadata.get_or_insert_default();
        meta.labels.get_or_insert_default().remove(HASH_LABEL);
        meta.annotations.get_or_insert_default();
        // Some clients send it, and it means nothing.
        meta.creation_timestamp = None;
    }
    of_set == wanted
}

async fn create_set(
    hub: &Hub,
    deployment: &Deployment,
    spec: &DeploymentSpec,
    known: &[ReplicaSet],
    replicas: i32,
) -> anyhow::Result<ReplicaSet> {
    let namespace = deployment.namespace().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count).unwrap_or(0);
    let new = new_set(deployment, spec, collisions, replicas)?;
    let api = hub.api::<ReplicaSet>(&namespace);
    match api.create(&PostParams::default(), &new).await {
        Ok(set) => Ok(set),
        Err(error) if objects::is_already_there(&error) => {
            let there = api.get(&new.name_any()).await?;
            let uid = deployment.uid().unwrap_or_default();
            let known = known.iter().any(|set| set.uid() == there.uid());
            if is_controlled_by(&there.metadata, &uid) && has_template(&there, &spec.template) && !known {
                return Ok(there);
            }
            // Somebody else has that name: choose another one the next time.
            let mut changed = deployment.clone();
            changed.status.get_or_insert_default().collision_count = Some(collisions + 1);
            hub.api::<Deployment>(&namespace)
                .replace_status(&deployment.name_any(), &PostParams::default(), &changed)
                .await?;
            Err(error.into())
        }
        Err(error) => Err(error.into()),
    }
}

fn new_set(
    deployment: &Deployment,
    spec: &DeploymentSpec,
    collisions: i32,
    replicas: i32,
) -> anyhow::Result<ReplicaSet> {
    let hash = objects::hash(&spec.template, collisions)?;
    let mut template = spec.template.clone();
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(HASH_LABEL.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector.clone();
    selector.match_labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.clone());
    let mut annotations: BTreeMap<_, _> = deployment.annotations().clone();
    annotations
        .retain(|name, _| name != REVISION && name != "kubectl.kubernetes.io/last-applied-configuration");
    Ok(ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{}-{hash}", deployment.name_any())),
            namespace: deployment.namespace(),
            labels: Some(labels),
            annotations: Some(annotations),
            owner_references: Some(vec![owned_by(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(replicas),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    })
}

fn revision(annotations: &BTreeMap<String, String>) -> i64 {
    annotations.get(REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// The current ReplicaSet carries the highest revision, and the Deployment shows it.
async fn keep_revision(
    hub: &Hub,
    deployment: &mut Deployment,
    sets: &mut [ReplicaSet],
    current: Option<usize>,
) -> anyhow::Result<()> {
    let Some(current) = current else { return Ok(()) };
    let namespace = deployment.namespace().unwrap_or_default();
    let others = sets.iter().enumerate().filter(|(at, _)| *at != current);
    let highest = others.map(|(_, set)| revision(set.annotations())).max().unwrap_or(0);
    let mut number = revision(sets[current].annotations());
    if number <= highest {
        number = highest + 1;
        let name = sets[current].name_any();
        let patch = json!({"metadata": {"annotations": {REVISION: number.to_string()}}});
        let api = hub.api::<ReplicaSet>(&namespace);
        sets[current] = api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    }
    if revision(deployment.annotations()) != number {
        let patch = json!({"metadata": {"annotations": {REVISION: number.to_string()}}});
        let api = hub.api::<Deployment>(&namespace);
        *deployment =
            api.patch(&deployment.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await?;
    }
    Ok(())
}

async fn scale(hub: &Hub, namespace: &str, name: &str, to: i32) -> anyhow::Result<()> {
    let patch = json!({"spec": {"replicas": to}});
    let api = hub.api::<ReplicaSet>(namespace);
    api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    Ok(())
}

/// Deletes the oldest empty ReplicaSets beyond the revision history limit.
async fn forget_old(hub: &Hub, spec: &DeploymentSpec, old: &[ReplicaSet]) -> anyhow::Result<()> {
    let limit = usize::try_from(spec.revision_history_limit.unwrap_or(10)).unwrap_or(0);
    let mut empty: Vec<&ReplicaSet> = old
        .iter()
        .filter(|set| set.spec.as_ref().and_then(|spec| spec.replicas) == Some(0))
        .filter(|set| set.status.as_ref().is_none_or(|status| status.replicas == 0))
        .collect();
    empty.sort_by_key(|set| revision(set.annotations()));
    let surplus = empty.len().saturating_sub(limit);
    for set in empty.into_iter().take(surplus) {
        let api = hub.api::<ReplicaSet>(&set.namespace().unwrap_or_default());
        objects::delete(&api, &set.name_any(), set.uid(), DeleteParams::background()).await?;
    }
    Ok(())
}

/// Pods of these ReplicaSets that still exist and have not ended.
fn old_pods(hub: &Hub, key: &Key, old: &[ReplicaSet]) -> usize {
    let pods = hub.pods.of_namespace(&key.namespace);
    let of_old = |uid: &str| old.iter().any(|set| set.uid().as_deref() == Some(uid));
    pods.iter()
        .filter(|pod| !pods::is_finished(pod))
        .filter(|pod| objects::controller_of(&pod.metadata).is_some_and(|owner| of_old(&owner.uid)))
        .count()
}

fn describe(set: &ReplicaSet) -> Set {
    let status = set.status.clone().unwrap_or_default();
    Set {
        name: set.name_any(),
        replicas: set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1),
        pods: status.replicas,
        ready: status.ready_replicas.unwrap_or(0),
        available: status.available_replicas.unwrap_or(0),
    }
}

fn without(sets: &[ReplicaSet], current: Option<usize>) -> Vec<ReplicaSet> {
    sets.iter().enumerate().filter(|(at, _)| Some(*at) != current).map(|(_, set)| set.clone()).collect()
}

fn split(facts: &[Set], current: Option<usize>) -> (Vec<Set>, Option<Set>) {
    let old = facts.iter().enumerate().filter(|(at, _)| Some(*at) != current);
    (old.map(|(_, set)| set.clone()).collect(), current.and_then(|at| facts.get(at).cloned()))
}
