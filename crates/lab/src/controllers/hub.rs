//! What the controllers see of the cluster: one watch a kind, one store a kind, shared by all of them.
//!
//! The hub owns the watches and the stores. A controller gets every change (deletions that a broken watch missed
//! included) and turns it into keys of its own queue; stores are a little behind the API, so whoever is about to
//! create or delete children reads them from the API instead.

use std::collections::{BTreeMap, HashSet};
use std::fmt::{Debug, Display};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::RwLock;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

/// Names an object of a kind that is known from the context; the namespace of a cluster-wide object is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key from its two names.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Key {
        Key { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of(meta: &ObjectMeta) -> Key {
        Key::new(meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// The objects of one kind as last seen.
pub struct Store<K>(RwLock<BTreeMap<Key, Arc<K>>>);

impl<K> Default for Store<K> {
    fn default() -> Self {
        Store(RwLock::default())
    }
}

impl<K> Store<K> {
    /// One object.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.0.read().get(key).cloned()
    }

    /// All objects.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.0.read().values().cloned().collect()
    }

    /// The objects of one namespace.
    pub fn of_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = Key::new(namespace, "");
        let objects = self.0.read();
        let of_namespace = objects.range(from..).take_while(|(key, _)| key.namespace == namespace);
        of_namespace.map(|(_, object)| object.clone()).collect()
    }

    fn apply(&self, key: Key, object: Arc<K>) {
        self.0.write().insert(key, object);
    }

    fn remove(&self, key: &Key) {
        self.0.write().remove(key);
    }

    /// Takes out everything that is not in `seen` and returns it.
    fn retain(&self, seen: &HashSet<Key>) -> Vec<Arc<K>> {
        let mut gone = Vec::new();
        self.0.write().retain(|key, object| {
            let keep = seen.contains(key);
            if !keep {
                gone.push(object.clone());
            }
            keep
        });
        gone
    }
}

/// A kind that the hub watches.
trait Watched: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static {
    fn store(hub: &Hub) -> &Store<Self>;
    fn change(object: Arc<Self>) -> Change;
}

macro_rules! kinds {
    ($($store:ident: $kind:ident),* $(,)?) => {
        /// The cluster as the controllers see it.
        pub struct Hub {
            /// The way to the API.
            pub client: Client,
            $(
                /// All objects of this kind.
                pub $store: Store<$kind>,
            )*
        }

        impl Hub {
            /// A hub that has seen nothing yet.
            pub fn new(client: Client) -> Hub {
                Hub { client, $($store: Store::default(),)* }
            }
        }

        /// An object that appeared, changed or went away, as last seen.
        #[derive(Clone, Debug)]
        pub enum Change {
            $(
                /// An object of this kind.
                $kind(Arc<$kind>),
            )*
        }

        $(
            impl Watched for $kind {
                fn store(hub: &Hub) -> &Store<Self> {
                    &hub.$store
                }
                fn change(object: Arc<Self>) -> Change {
                    Change::$kind(object)
                }
            }
        )*
    };
}

kinds! {
    namespaces: Namespace,
    nodes: Node,
    leases: Lease,
    pods: Pod,
    services: Service,
    endpoints: Endpoints,
    endpoint_slices: EndpointSlice,
    service_accounts: ServiceAccount,
    config_maps: ConfigMap,
    deployments: Deployment,
    replica_sets: ReplicaSet,
    daemon_sets: DaemonSet,
    stateful_sets: StatefulSet,
    jobs: Job,
}

/// Where changes go: the controllers' queues.
pub type Sink = Arc<dyn Fn(&Hub, &Change) + Send + Sync>;

impl Hub {
    /// The API of a kind in a namespace.
    pub fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
        &self,
        namespace: &str,
    ) -> Api<K> {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// Watches everything for ever. `synced` gets one message a kind once its first list is complete;
    /// [`Hub::KINDS`] of them mean that the stores are whole.
    pub async fn watch(self: Arc<Self>, sink: Sink, synced: mpsc::Sender<()>) {
        let all = watcher::Config::default;
        // Only the objects that the namespace controller looks after; service accounts and config maps can be many.
        let default_account = || all().fields("metadata.name=default");
        let root_ca = || all().fields(&format!("metadata.name={}", super::namespace::ROOT_CA));
        let leases = watcher::Config::default;
        tokio::join!(
            follow::<Namespace>(&self, &sink, &synced, Api::all(self.client.clone()), all()),
            follow::<Node>(&self, &sink, &synced, Api::all(self.client.clone()), all()),
            follow::<Lease>(&self, &sink, &synced, self.api(super::node::LEASES), leases()),
            follow::<Pod>(&self, &sink, &synced, Api::all(self.client.clone()), all()),
            follow::<Service>(&self, &sink, &synced, Api::all(self.client.clone()), all()),
            follow::<Endpoints>(&self, &sink, &synced, Api::all(self.client.clone()), all()),
            follow::<EndpointSlice>(&self, &sink, &synced, Api::all(self.client.clone()), all()),
            follow::<ServiceAccount>(&self, &sink, &synced, Api::all(self.client.clone()), default_account()),
            follow::<ConfigMap>(&self, &sink, &synced, Api::all(self.client.clone()), root_ca()),
            follow::<Deployment>(&self, &sink, &synced, Api::all(self.client.clone()), all()),
            follow::<ReplicaSet>(&self, &sink, &synced, Api::all(self.client.clone()), all()),
            follow::<DaemonSet>(&self, &sink, &synced, Api::all(self.client.clone()), all()),
            follow::<StatefulSet>(&self, &sink, &synced, Api::all(self.client.clone()), all()),
            follow::<Job>(&self, &sink, &synced, Api::all(self.client.clone()), all()),
        );
    }

    /// How many kinds [`Hub::watch`] watches.
    pub const KINDS: usize = 14;
}

/// Keeps the store of one kind in step with the API and passes every change on.
async fn follow<K: Watched>(
    hub: &Hub,
    sink: &Sink,
    synced: &mpsc::Sender<()>,
    api: Api<K>,
    config: watcher::Config,
) {
    let mut events = std::pin::pin!(watcher(api, config).default_backoff());
    let mut listed = HashSet::new();
    let mut first = true;
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => {
                listed.insert(Key::of(object.meta()));
                applied(hub, sink, object);
            }
            Ok(watcher::Event::InitDone) => {
                for gone in K::store(hub).retain(&listed) {
                    sink(hub, &K::change(gone));
                }
                listed.clear();
                if std::mem::take(&mut first) {
                    // The receiver goes away only when the controllers stop.
                    let _ = synced.send(()).await;
                }
            }
            Ok(watcher::Event::Apply(object)) => applied(hub, sink, object),
            Ok(watcher::Event::Delete(object)) => {
                K::store(hub).remove(&Key::of(object.meta()));
                sink(hub, &K::change(Arc::new(object)));
            }
            Err(error) => tracing::warn!(kind = %K::kind(&()), %error, "watch interrupted"),
        }
    }
}

fn applied<K: Watched>(hub: &Hub, sink: &Sink, object: K) {
    let key = Key::of(object.meta());
    // A list after an interruption mostly repeats what is known.
    if K::store(hub).get(&key).is_some_and(|known| {
        known.resource_version().is_some() && known.resource_version() == object.resource_version()
    }) {
        return;
    }
    let object = Arc::new(object);
    K::store(hub).apply(key, object.clone());
    sink(hub, &K::change(object));
}
