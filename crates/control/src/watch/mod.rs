//! Hears of Kubernetes objects and tells the owner of the state.
//!
//! One task an input. Each lists, then watches, and lists again after whatever breaks the watch (an outage, 410 Gone,
//! a restarted API server): what it tells is right after every list, and until the first one is told the control
//! plane does not serve. An outage leaves the state as it was last known; nothing is ever forgotten because the API
//! is silent.

mod custom;
mod follow;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt::Debug;

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::input::MeshConfig;
use crate::state::{Delta, Event, Keyed};

pub(crate) use follow::follow;

pub use custom::{
    AUTHORIZATION_POLICIES, CustomKind, GATEWAY_CLASSES, GATEWAYS, PEER_AUTHENTICATIONS, SERVICE_ENTRIES,
    WORKLOAD_ENTRIES,
};

/// Starts the watches of all inputs. They end when `events` is closed. `mesh` is the namespace and name of the mesh
/// configuration.
pub fn all(client: &Client, mesh: (&str, &str), events: &mpsc::Sender<Event>) -> JoinSet<()> {
    let mut tasks = JoinSet::new();
    tasks.spawn(builtin::<core::Pod, _>(client.clone(), "pods", events.clone(), Event::Pods));
    tasks.spawn(builtin::<core::Node, _>(client.clone(), "nodes", events.clone(), Event::Nodes));
    tasks.spawn(builtin::<core::Namespace, _>(
        client.clone(),
        "namespaces",
        events.clone(),
        Event::Namespaces,
    ));
    tasks.spawn(builtin::<core::Service, _>(client.clone(), "services", events.clone(), Event::Services));
    tasks.spawn(builtin::<discovery::EndpointSlice, _>(
        client.clone(),
        "endpointslices",
        events.clone(),
        Event::Slices,
    ));
    tasks.spawn(custom::watch(client.clone(), AUTHORIZATION_POLICIES, events.clone(), Event::Authorizations));
    tasks.spawn(custom::watch(client.clone(), PEER_AUTHENTICATIONS, events.clone(), Event::Peers));
    tasks.spawn(custom::watch(client.clone(), SERVICE_ENTRIES, events.clone(), Event::Entries));
    tasks.spawn(custom::watch(client.clone(), WORKLOAD_ENTRIES, events.clone(), Event::Written));
    tasks.spawn(custom::watch(client.clone(), GATEWAYS, events.clone(), Event::Gateways));
    tasks.spawn(custom::watch(client.clone(), GATEWAY_CLASSES, events.clone(), Event::Classes));
    tasks.spawn(mesh_config(client.clone(), mesh.0.into(), mesh.1.into(), events.clone()));
    tasks
}

/// Watches the mesh configuration, which may be absent.
async fn mesh_config(client: Client, namespace: String, name: String, events: mpsc::Sender<Event>) {
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let api = Api::<core::ConfigMap>::namespaced(client, &namespace);
    let start = || watcher(api.clone(), config.clone());
    let read = move |map: core::ConfigMap| {
        // A server that does not know the selector sends all of them.
        if map.metadata.name.as_deref() == Some(&name) { MeshConfig::read(&map) } else { None }
    };
    let key =
        |map: &core::ConfigMap| crate::input::Key::new("", map.metadata.name.as_deref().unwrap_or_default());
    pump(start, "meshconfig", read, key, &events, Event::Mesh).await;
}

/// Watches a kind that every cluster has.
async fn builtin<K, T>(
    client: Client,
    name: &'static str,
    events: mpsc::Sender<Event>,
    wrap: fn(Delta<T>) -> Event,
) where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    T: From<K> + Keyed + Send + 'static,
{
    let start = || watcher(Api::<K>::all(client.clone()), watcher::Config::default());
    pump(start, name, |object: K| Some(T::from(object)), key, &events, wrap).await;
}

fn key<K: Resource>(object: &K) -> crate::input::Key {
    let meta = object.meta();
    crate::input::Key::new(
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

/// Says what broke a watch and, where it is known, what to do about it.
fn complain(input: &str, error: &watcher::Error) {
    use watcher::Error::{InitialListFailed, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(kube::Error::Api(status))
        | WatchStartFailed(kube::Error::Api(status))
        | WatchFailed(kube::Error::Api(status))
            if status.is_forbidden() =>
        {
            tracing::error!(
                input,
                reason = status.message,
                "not allowed to watch; grant it with the ClusterRole that `ambit install` applies"
            );
        }
        _ => tracing::warn!(
            input,
            error = crate::error::causes(error),
            "watch broken, trying again until the API answers"
        ),
    }
}

/// Carries what a watch says to the owner of the state, until nobody listens any more.
///
/// `read` reduces an object; one that cannot be read keeps its last readable form, so that a broken object neither
/// blocks the others nor silently drops what stood there before.
async fn pump<K, T, S>(
    start: impl Fn() -> S + Send,
    name: &'static str,
    read: impl Fn(K) -> Option<T>,
    key: impl Fn(&K) -> crate::input::Key,
    events: &mpsc::Sender<Event>,
    wrap: fn(Delta<T>) -> Event,
) where
    K: Clone + Debug + Send + 'static,
    S: Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
{
    let mut stream = std::pin::pin!(follow(start));
    let mut listing: Vec<T> = Vec::new();
    let mut unreadable: BTreeSet<crate::input::Key> = BTreeSet::new();
    let mut failing = false;
    while let Some(heard) = stream.next().await {
        let event = match heard {
            Ok(event) => event,
            Err(error) => {
                // Said once an outage, not once a try.
                if !std::mem::replace(&mut failing, true) {
                    complain(name, &error);
                }
                continue;
            }
        };
        // That a list begins does not say that it is answered.
        if !matches!(event, watcher::Event::Init) && std::mem::replace(&mut failing, false) {
            tracing::info!(input = name, "watch works again");
        }
        let delta = match event {
            watcher::Event::Init => {
                listing.clear();
                unreadable.clear();
                continue;
            }
            watcher::Event::InitApply(object) => {
                let name = key(&object);
                match read(object) {
                    Some(object) => listing.push(object),
                    None => drop(unreadable.insert(name)),
                }
                continue;
            }
            watcher::Event::InitDone => {
                Delta::AllBut(std::mem::take(&mut listing), std::mem::take(&mut unreadable))
            }
            watcher::Event::Apply(object) => match read(object) {
                Some(object) => Delta::Put(object),
                None => continue,
            },
            watcher::Event::Delete(object) => Delta::Gone(key(&object)),
        };
        if events.send(wrap(delta)).await.is_err() {
            return;
        }
    }
}
