//! DaemonSet: one pod on every node that its template accepts.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetSpec, DaemonSetStatus};
use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, Pod};
use kube::ResourceExt;

use super::hub::{Change, Hub, Key};
use super::objects::{self, owner_name, share, write_status};
use super::scheduler::affinity;
use super::{children, pods};

mod rollout;

use rollout::{Action, Daemon, Strategy};

/// Tells which template a pod was made of.
pub(super) const HASH_LABEL: &str = "controller-revision-hash";

/// Keeps daemons on their nodes.
pub struct Controller;

impl super::Controller for Controller {
    const NAME: &'static str = "daemonset";

    fn keys(&self, hub: &Hub, change: &Change) -> Vec<Key> {
        match change {
            Change::DaemonSet(set) => vec![Key::of(&set.metadata)],
            Change::Pod(pod) => owner_name(&pod.metadata, "DaemonSet")
                .map(|owner| vec![Key::new(pod.namespace().unwrap_or_default(), owner)])
                .unwrap_or_default(),
            Change::Node(_) => hub.daemon_sets.all().iter().map(|set| Key::of(&set.metadata)).collect(),
            _ => Vec::new(),
        }
    }

    async fn reconcile(&self, hub: &Hub, key: &Key) -> anyhow::Result<Option<Duration>> {
        let api = hub.api::<DaemonSet>(&key.namespace);
        let Some(mut set) = api.get_opt(&key.name).await? else { return Ok(None) };
        let Some(spec) = set.spec.clone() else { return Ok(None) };
        let Some(selector) = objects::selector(Some(&spec.selector)) else { return Ok(None) };
        let hash = objects::hash(&spec.template, 0)?;
        let now = objects::now();
        let min_ready = spec.min_ready_seconds.unwrap_or(0);
        let mine = children::owned_or_adopted(hub, &set, &selector).await?;
        let daemons: Vec<Daemon> = mine.iter().map(|pod| describe(pod, &hash, min_ready, &now)).collect();
        let nodes = hub.nodes.all();
        let accepts = nodes.iter().filter(|node| affinity::wants(spec.template.spec.as_ref(), node));
        let wanted: BTreeSet<String> = accepts.map(|node| node.name_any()).collect();

        if set.metadata.deletion_timestamp.is_none() {
            let actions = rollout::plan(&wanted, &daemons, strategy(&spec, wanted.len()));
            let mut new = Vec::new();
            let mut doomed = BTreeSet::new();
            for action in actions {
                match action {
                    Action::Create { node } => new.push(pod_for(&set, &spec, &hash, &node)),
                    Action::Delete { pod } => _ = doomed.insert(pod),
                }
            }
            children::remove(hub, mine.iter().filter(|pod| doomed.contains(&pod.name_any()))).await?;
            children::create_for(hub, &set, new).await?;
        }

        let before = set.status.clone().unwrap_or_default();
        let after = status(&before, &wanted, &daemons, set.metadata.generation);
        set.status = Some(after.clone());
        write_status(&api, &set, &before, &after).await?;
        let waits = mine.iter().filter_map(|pod| pods::available_in(pod, min_ready, &now));
        Ok(waits.filter(|wait| !wait.is_zero()).min())
    }
}

fn strategy(spec: &DaemonSetSpec, nodes: usize) -> Strategy {
    let strategy = spec.update_strategy.as_ref();
    if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete") {
        return Strategy::OnDelete;
    }
    let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
    let nodes = i32::try_from(nodes).unwrap_or(i32::MAX);
    let surge = share(rolling.and_then(|rolling| rolling.max_surge.as_ref()), "0", nodes, true);
    let unavailable = share(rolling.and_then(|rolling| rolling.max_unavailable.as_ref()), "1", nodes, true);
    let count = |number: i32| usize::try_from(number).unwrap_or(0);
    if surge > 0 {
        Strategy::Surge { nodes: count(surge) }
    } else {
        Strategy::Replace { unavailable: count(unavailable).max(1) }
    }
}

/// The node a daemon is for: its own, or the one it was made for when it has none yet.
fn home(pod: &Pod) -> Option<String> {
    if let Some(node) = pods::node(pod) {
        return Some(node.to_owned());
    }
    let affinity = pod.spec.as_ref()?.affinity.as_ref()?.node_affinity.as_ref()?;
    let terms = &affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms;
    let mut fields = terms.iter().flat_map(|term| term.match_fields.iter().flatten());
    fields.find(|field| field.key == "metadata.name")?.values.as_ref()?.first().cloned()
}

fn describe(
    pod: &Pod,
    hash: &str,
    min_ready: i32,
    now: &k8s_openapi::apimachinery::pkg::apis::meta::v1::Time,
) -> Daemon {
    Daemon {
        pod: pod.name_any(),
        node: home(pod).unwrap_or_default(),
        current: pod.labels().get(HASH_LABEL).is_some_and(|label| label == hash),
        ready: pods::is_ready(pod),
        available: pods::available_in(pod, min_ready, now).is_some_and(|wait| wait.is_zero()),
        terminating: pods::is_terminating(pod),
        finished: pods::is_finished(pod),
        created: pod.metadata.creation_timestamp.as_ref().map_or(0, |at| at.0.as_second()),
    }
}

fn pod_for(set: &DaemonSet, spec: &DaemonSetSpec, hash: &str, node: &str) -> Pod {
    let mut pod = children::from_template(set, &spec.template);
    pod.metadata.labels.get_or_insert_default().insert(HASH_LABEL.into(), hash.into());
    let to_node = NodeSelectorRequirement {
        key: "metadata.name".into(),
        operator: "In".into(),
        values: Some(vec![node.into()]),
    };
    let of_pod = pod.spec.get_or_insert_default();
    let required = of_pod
        .affinity
        .get_or_insert_default()
        .node_affinity
        .get_or_insert_default()
        .required_during_scheduling_ignored_during_execution
        .get_or_insert_default();
    // The node was chosen by these terms already.
    required.node_selector_terms =
        vec![NodeSelectorTerm { match_fields: Some(vec![to_node]), match_expressions: None }];
    pod
}

fn status(
    before: &DaemonSetStatus,
    wanted: &BTreeSet<String>,
    daemons: &[Daemon],
    generation: Option<i64>,
) -> DaemonSetStatus {
    let mut by_node: BTreeMap<&str, Vec<&Daemon>> = BTreeMap::new();
    for daemon in daemons.iter().filter(|daemon| !daemon.finished && !daemon.terminating) {
        by_node.entry(&daemon.node).or_default().push(daemon);
    }
    let count = |what: &dyn Fn(&[&Daemon]) -> bool| {
        let nodes = by_node.iter().filter(|(node, here)| wanted.contains(**node) && what(here)).count();
        i32::try_from(nodes).unwrap_or(i32::MAX)
    };
    let desired = i32::try_from(wanted.len()).unwrap_or(i32::MAX);
    let available = count(&|here| here.iter().any(|daemon| daemon.available));
    let misplaced = by_node.keys().filter(|node| !wanted.contains(**node)).count();
    let some = |count: i32| (count > 0).then_some(count);
    DaemonSetStatus {
        desired_number_scheduled: desired,
        current_number_scheduled: count(&|_| true),
        number_misscheduled: i32::try_from(misplaced).unwrap_or(i32::MAX),
        number_ready: count(&|here| here.iter().any(|daemon| daemon.ready)),
        number_available: some(available),
        number_unavailable: some(desired - available),
        updated_number_scheduled: some(count(&|here| here.iter().any(|daemon| daemon.current))),
        observed_generation: generation,
        ..before.clone()
    }
}
