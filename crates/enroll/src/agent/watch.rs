//! Watches of the node's pods and of all namespaces: they fill the stores and put UIDs into the queue.

pub(super) mod heard;

use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::runtime::reflector::{self, Store, store::Writer};
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt};
use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Node;
use crate::cni::Known;
use crate::config::known_file;
use crate::eligibility::{Verdict, judge};

/// The writing ends of the stores, until the watches run.
pub(super) struct Watches {
    pods: Writer<Pod>,
    namespaces: Writer<Namespace>,
    synced: signal::Sender<bool>,
}

impl Watches {
    pub(super) fn new() -> (Self, Store<Pod>, Store<Namespace>, signal::Receiver<bool>) {
        let (pods_reader, pods) = reflector::store();
        let (namespaces_reader, namespaces) = reflector::store();
        let (synced, synced_reader) = signal::channel(false);
        (Self { pods, namespaces, synced }, pods_reader, namespaces_reader, synced_reader)
    }

    pub(super) fn spawn(self, node: &Arc<Node>, tasks: &TaskTracker, stop: &CancellationToken) {
        let Self { pods, namespaces, synced } = self;
        let both = Arc::new(synced);
        tasks.spawn(until(stop.clone(), watch_pods(node.clone(), pods, both.clone())));
        tasks.spawn(until(stop.clone(), watch_namespaces(node.clone(), namespaces, both)));
    }
}

async fn until(stop: CancellationToken, work: impl Future<Output = ()>) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = work => {}
    }
}

fn note_synced(node: &Node, synced: &signal::Sender<bool>) {
    let ready =
        |store: futures::future::BoxFuture<'_, bool>| futures::FutureExt::now_or_never(store) == Some(true);
    let both = ready(Box::pin(async { node.pods.wait_until_ready().await.is_ok() }))
        && ready(Box::pin(async { node.namespaces.wait_until_ready().await.is_ok() }));
    if both {
        synced.send_replace(true);
    }
}

async fn watch_pods(node: Arc<Node>, mut store: Writer<Pod>, synced: Arc<signal::Sender<bool>>) {
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", node.config.node_name));
    let mut stream = heard::follow(Api::<Pod>::all(node.client.clone()), config);
    let mut told = false;
    while let Some(event) = stream.next().await {
        let event = match event {
            Ok(event) => event.modify(|pod| pod.managed_fields_mut().clear()),
            Err(error) => {
                // Said once an outage.
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "the watch of pods broke off; trying until the API answers");
                }
                continue;
            }
        };
        // That a list begins does not say that it is answered.
        told &= matches!(event, Event::Init);
        let known = |pod: &Pod| pod.metadata.uid.as_deref().is_some_and(|uid| node.pod(uid).is_some());
        let (kind, uids) = match &event {
            Event::Apply(pod) => (Some(if known(pod) { "update" } else { "add" }), pod.metadata.uid.clone()),
            Event::Delete(pod) => (Some("delete"), pod.metadata.uid.clone()),
            Event::Init | Event::InitApply(_) | Event::InitDone => (None, None),
        };
        store.apply_watcher_event(&event);
        uids.into_iter().for_each(|uid| node.push(uid));
        kind.inspect(|kind| node.metrics.reconciled(kind));
        if let Event::Apply(pod) = &event {
            note_own_label(&node, pod);
        }
        if matches!(event, Event::InitDone) {
            node.pods.state().iter().for_each(|pod| note_own_label(&node, pod));
            // Whatever was missed while nobody watched: those that are there, and those that were.
            push_all(&node);
            note_synced(&node, &synced);
        }
    }
}

async fn watch_namespaces(node: Arc<Node>, mut store: Writer<Namespace>, synced: Arc<signal::Sender<bool>>) {
    let api = Api::<Namespace>::all(node.client.clone());
    let mut stream = heard::follow(api, watcher::Config::default());
    let mut told = false;
    while let Some(event) = stream.next().await {
        let event = match event {
            Ok(event) => event.modify(|namespace| namespace.managed_fields_mut().clear()),
            Err(error) => {
                // Said once an outage.
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(%error, "the watch of namespaces broke off; trying until the API answers");
                }
                continue;
            }
        };
        // That a list begins does not say that it is answered.
        told &= matches!(event, Event::Init);
        store.apply_watcher_event(&event);
        match &event {
            Event::Apply(namespace) => {
                note_known(&node);
                let name = namespace.name_any();
                let pods =
                    node.pods.state().into_iter().filter(|pod| pod.namespace().as_deref() == Some(&name));
                pods.filter_map(|pod| pod.uid()).for_each(|uid| node.push(uid));
            }
            Event::Delete(namespace) => {
                node.by_own_label.lock().remove(&namespace.name_any());
                note_known(&node);
            }
            Event::InitDone => {
                note_known(&node);
                push_all(&node);
                note_synced(&node, &synced);
            }
            Event::Init | Event::InitApply(_) => {}
        }
    }
}

fn push_all(node: &Node) {
    let there = node.pods.state().into_iter().filter_map(|pod| pod.uid());
    let were: Vec<String> = node.members.lock().keys().cloned().collect();
    there.chain(were).chain(node.remembered.all().into_keys()).for_each(|uid| node.push(uid));
}

/// A pod that is in by its own label: others like it will come to its namespace, also while no agent is there.
fn note_own_label(node: &Node, pod: &Pod) {
    let nothing = std::collections::BTreeMap::new();
    let Some(namespace) = pod.namespace() else { return };
    if judge(&node.rules, pod, &nothing) == Verdict::Enrol && node.by_own_label.lock().insert(namespace) {
        note_known(node);
    }
}

/// Leaves the list of enrolled namespaces for the plugin.
fn note_known(node: &Node) {
    let none = std::collections::BTreeMap::new();
    let namespaces = node
        .namespaces
        .state()
        .iter()
        .filter(|namespace| {
            let labels = namespace.metadata.labels.as_ref().unwrap_or(&none);
            node.rules.namespace_is_enrolled(&namespace.name_any(), labels)
        })
        .map(|namespace| namespace.name_any())
        .chain(node.by_own_label.lock().iter().cloned())
        .collect();
    let file = known_file(&node.config.run_dir);
    let known = Known { namespaces };
    if Known::read(&file).as_ref() != Some(&known)
        && let Err(error) = known.write(&file)
    {
        tracing::warn!(file = %file.display(), %error, "cannot leave the enrolled namespaces for the CNI plugin");
    }
}
