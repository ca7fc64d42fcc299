//! PeerAuthentications: the agent follows them to know where plaintext is illegal ([`crate::strict`]).
//!
//! A cluster that has no such resource, or an account that may not read it, is no fault: nothing is strict then, and
//! older connections end when they are idle. That is looked at again after a while.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt};
use tokio_util::sync::CancellationToken;

use super::Node;
use super::watch::heard;
use crate::strict::Peer;

/// How long after a failure the resource is asked for again.
const AGAIN: Duration = Duration::from_secs(30);

/// Follows them until `stop`.
pub(super) async fn follow(node: Arc<Node>, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        () = watch(node) => {}
    }
}

async fn watch(node: Arc<Node>) {
    let kind = GroupVersionKind::gvk("security.istio.io", "v1", "PeerAuthentication");
    let resource = ApiResource::from_gvk(&kind);
    let api = Api::<DynamicObject>::all_with(node.client.clone(), &resource);
    let mut known: BTreeMap<String, Peer> = BTreeMap::new();
    let mut fresh: Option<BTreeMap<String, Peer>> = None;
    let mut stream = heard::follow(api, watcher::Config::default());
    let mut told = false;
    while let Some(event) = stream.next().await {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                if !told {
                    tracing::info!(%error, "PeerAuthentications cannot be followed; older connections end when idle");
                    told = true;
                }
                tokio::time::sleep(AGAIN).await;
                continue;
            }
        };
        told &= matches!(event, Event::Init);
        match event {
            Event::Init => fresh = Some(BTreeMap::new()),
            Event::InitApply(object) => {
                fresh.get_or_insert_default().insert(key(&object), read(&object));
                continue;
            }
            Event::InitDone => known = fresh.take().unwrap_or_default(),
            Event::Apply(object) => {
                known.insert(key(&object), read(&object));
            }
            Event::Delete(object) => {
                known.remove(&key(&object));
            }
        }
        if fresh.is_some() {
            continue;
        }
        let peers: Vec<Peer> = known.values().cloned().collect();
        if **node.peers.load() != peers {
            node.peers.store(Arc::new(peers));
            let members: Vec<String> = node.members.lock().keys().cloned().collect();
            members.into_iter().for_each(|uid| node.push(uid));
        }
    }
}

fn key(object: &DynamicObject) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

fn read(object: &DynamicObject) -> Peer {
    let spec = object.data.get("spec").cloned().unwrap_or_default();
    let created = object.metadata.creation_timestamp.clone();
    Peer::read(&object.namespace().unwrap_or_default(), &object.name_any(), created, &spec)
}
