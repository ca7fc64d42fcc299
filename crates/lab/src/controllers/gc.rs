//! Garbage collection: what happens to objects when their owners go.
//!
//! It watches the metadata of every kind that the API serves, custom ones included, and keeps a [`graph`] of who
//! owns whom. Background deletion takes dependents after their owner, foreground before it, orphaning leaves them.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PropagationPolicy};
use kube::core::{ApiResource, GroupVersionKind, PartialObjectMeta};
use kube::discovery::{ApiCapabilities, Discovery, Scope, verbs};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::objects;
use super::queue::{Next, Outcome, Queue};

mod graph;

use graph::{Decision, Graph, Item, Place};

type Object = PartialObjectMeta<DynamicObject>;

/// How often the API is asked for new kinds; a new CustomResourceDefinition is noticed at once.
const DISCOVERY_INTERVAL: Duration = Duration::from_secs(60);

/// A kind as the API serves it, and whether its objects live in namespaces.
type Kinds = HashMap<GroupVersionKind, (ApiResource, bool)>;

struct Collector {
    client: Client,
    graph: Mutex<Graph>,
    queue: Mutex<Queue<String>>,
    kinds: Mutex<Arc<Kinds>>,
    wake: Notify,
    new_kinds: Notify,
}

/// Collects garbage for ever.
pub async fn run(client: Client) {
    let collector = Arc::new(Collector {
        client,
        graph: Mutex::default(),
        queue: Mutex::default(),
        kinds: Mutex::default(),
        wake: Notify::new(),
        new_kinds: Notify::new(),
    });
    tokio::join!(collector.clone().follow_kinds(), collector.collect());
}

impl Collector {
    /// Watches every kind there is, those that come later included.
    async fn follow_kinds(self: Arc<Self>) {
        let mut watches: HashMap<GroupVersionKind, tokio::task::AbortHandle> = HashMap::new();
        let mut tasks = JoinSet::new();
        loop {
            let mut pause = DISCOVERY_INTERVAL;
            match self.discover().await {
                Ok(kinds) => {
                    watches.retain(|kind, watch| {
                        let keep = kinds.contains_key(kind);
                        if !keep {
                            watch.abort();
                        }
                        keep
                    });
                    for (kind, (resource, _)) in &kinds {
                        watches
                            .entry(kind.clone())
                            .or_insert_with(|| tasks.spawn(self.clone().follow(resource.clone())));
                    }
                    *self.kinds.lock() = Arc::new(kinds);
                }
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "cannot discover kinds");
                    pause = Duration::from_secs(2);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.new_kinds.notified() => {}
            }
            while tasks.try_join_next().is_some() {}
        }
    }

    async fn discover(&self) -> anyhow::Result<Kinds> {
        let discovery = Discovery::new(self.client.clone()).run().await?;
        let usable = |can: &ApiCapabilities| {
            [verbs::LIST, verbs::WATCH, verbs::DELETE].iter().all(|verb| can.supports_operation(verb))
        };
        let mut kinds = HashMap::new();
        for group in discovery.groups() {
            for (resource, can) in group.recommended_resources() {
                // Events belong to nobody and are many.
                if usable(&can) && resource.plural != "events" {
                    let kind = GroupVersionKind::gvk(&resource.group, &resource.version, &resource.kind);
                    kinds.insert(kind, (resource, can.scope == Scope::Namespaced));
                }
            }
        }
        Ok(kinds)
    }

    async fn follow(self: Arc<Self>, resource: ApiResource) {
        let api: Api<Object> = Api::all_with(self.client.clone(), &resource);
        let place = |object: &Object| Place {
            api_version: resource.api_version.clone(),
            kind: resource.kind.clone(),
            namespace: object.namespace().unwrap_or_default(),
            name: object.name_any(),
        };
        let mut known: BTreeSet<String> = BTreeSet::new();
        let mut listed: BTreeSet<String> = BTreeSet::new();
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => {
                    listed.extend(object.uid());
                    known.extend(object.uid());
                    self.seen(place(&object), &object);
                }
                Ok(watcher::Event::InitDone) => {
                    for uid in known.difference(&listed) {
                        self.gone(uid);
                    }
                    known = std::mem::take(&mut listed);
                }
                Ok(watcher::Event::Apply(object)) => {
                    known.extend(object.uid());
                    self.seen(place(&object), &object);
                    if resource.kind == "CustomResourceDefinition" {
                        self.new_kinds.notify_one();
                    }
                }
                Ok(watcher::Event::Delete(object)) => {
                    let uid = object.uid().unwrap_or_default();
                    known.remove(&uid);
                    self.gone(&uid);
                    if resource.kind == "CustomResourceDefinition" {
                        self.new_kinds.notify_one();
                    }
                }
                Err(error) => tracing::debug!(kind = %resource.kind, %error, "watch interrupted"),
            }
        }
    }

    fn seen(&self, place: Place, object: &Object) {
        let affected = self.graph.lock().put(Item::new(place, &object.metadata));
        self.look_at(affected);
    }

    fn gone(&self, uid: &str) {
        let affected = self.graph.lock().remove(uid);
        self.look_at(affected);
    }

    fn look_at(&self, affected: Vec<String>) {
        if !affected.is_empty() {
            let mut queue = self.queue.lock();
            affected.into_iter().for_each(|uid| queue.add(uid));
            self.wake.notify_one();
        }
    }

    async fn collect(&self) {
        loop {
            let next = self.queue.lock().take(Instant::now());
            match next {
                Next::Key(uid) => {
                    let outcome = match self.handle(&uid).await {
                        Ok(()) => Outcome::Settled,
                        Err(error) => {
                            tracing::debug!(
                                uid,
                                error = format!("{error:#}"),
                                "cannot collect, trying again"
                            );
                            Outcome::Failed
                        }
                    };
                    self.queue.lock().done(&uid, outcome, Instant::now());
                }
                Next::At(at) => tokio::select! {
                    () = self.wake.notified() => {}
                    () = tokio::time::sleep_until(at.into()) => {}
                },
                Next::Idle => self.wake.notified().await,
            }
        }
    }

    async fn handle(&self, uid: &str) -> anyhow::Result<()> {
        let decision = self.graph.lock().decide(uid);
        match decision {
            Decision::Nothing => Ok(()),
            Decision::Release { item, finalizer } => self.release(&item, finalizer).await,
            Decision::DeleteFirst { dependents } => {
                for dependent in &dependents {
                    self.delete(dependent, PropagationPolicy::Foreground).await?;
                }
                Ok(())
            }
            Decision::Orphan { item, dependents } => {
                for dependent in &dependents {
                    self.disown(dependent, std::slice::from_ref(&item.uid)).await?;
                }
                self.release(&item, graph::ORPHAN).await
            }
            Decision::CheckOwners { item } => self.check_owners(&item).await,
        }
    }

    /// An owner that the graph does not show may have been missed, and the object itself may have been let go a
    /// moment ago: each kind has a watch of its own, and they are not in step. The API has the last word on both.
    async fn check_owners(&self, item: &Item) -> anyhow::Result<()> {
        let Some(live) = self.api(&item.place)?.get_opt(&item.place.name).await? else { return Ok(()) };
        let live = Item::new(item.place.clone(), &live.metadata);
        if live.uid != item.uid || live.deleting || live.owners.is_empty() {
            return Ok(());
        }
        let mut absent = Vec::new();
        for owner in &live.owners {
            if self.is_absent(&live, owner).await? {
                absent.push(owner.uid.clone());
            }
        }
        if absent.is_empty() {
            return Ok(());
        }
        if absent.len() < live.owners.len() {
            return self.disown(&live, &absent).await;
        }
        tracing::debug!(object = %live.place, "deleting an object whose owners are gone");
        self.delete(&live, PropagationPolicy::Background).await
    }

    async fn is_absent(&self, item: &Item, owner: &OwnerReference) -> anyhow::Result<bool> {
        let api = self.api(&Place {
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            namespace: item.place.namespace.clone(),
            name: owner.name.clone(),
        })?;
        Ok(api.get_opt(&owner.name).await?.is_none_or(|found| found.uid().as_deref() != Some(&owner.uid)))
    }

    fn api(&self, place: &Place) -> anyhow::Result<Api<Object>> {
        let kinds = self.kinds.lock().clone();
        let (group, version) = place.api_version.rsplit_once('/').unwrap_or(("", &place.api_version));
        let exact = GroupVersionKind::gvk(group, version, &place.kind);
        // An owner may be named in a version that the API does not prefer.
        let found = kinds.get(&exact).or_else(|| {
            let same = |kind: &GroupVersionKind| kind.group == group && kind.kind == place.kind;
            kinds.iter().find(|(kind, _)| same(kind)).map(|(_, found)| found)
        });
        let (resource, namespaced) =
            found.with_context(|| format!("the API does not serve {} {}", place.api_version, place.kind))?;
        Ok(if *namespaced {
            Api::namespaced_with(self.client.clone(), &place.namespace, resource)
        } else {
            Api::all_with(self.client.clone(), resource)
        })
    }

    async fn delete(&self, item: &Item, policy: PropagationPolicy) -> anyhow::Result<()> {
        let params = DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() };
        objects::delete(&self.api(&item.place)?, &item.place.name, Some(item.uid.clone()), params).await
    }

    /// Takes owners off an object.
    async fn disown(&self, item: &Item, owners: &[String]) -> anyhow::Result<()> {
        let left: Vec<_> = item.owners.iter().filter(|owner| !owners.contains(&owner.uid)).collect();
        let patch = json!({"metadata": {"uid": item.uid, "ownerReferences": left}});
        self.patch(item, &patch).await
    }

    /// Takes a finalizer off an object, so that it may go.
    async fn release(&self, item: &Item, finalizer: &str) -> anyhow::Result<()> {
        let left: Vec<_> = item.finalizers.iter().filter(|name| *name != finalizer).collect();
        let patch = json!({"metadata": {
            "uid": item.uid, "resourceVersion": item.resource_version, "finalizers": left,
        }});
        self.patch(item, &patch).await
    }

    async fn patch(&self, item: &Item, patch: &serde_json::Value) -> anyhow::Result<()> {
        let api = self.api(&item.place)?;
        match api.patch_metadata(&item.place.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => Ok(()),
            Err(error) if objects::is_not_found(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
