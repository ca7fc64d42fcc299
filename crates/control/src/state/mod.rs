//! The owner of everything the control plane knows.
//!
//! [`State`] is plain data: [`State::apply`] takes in what was heard and notes what that touches, [`State::flush`]
//! recomputes just that and returns a new [`Snapshot`] when anything really changed. [`own`] is the one task that
//! holds it; everybody else reads snapshots. Nothing is timed: whatever arrived while the last flush was computed
//! goes into the next one, so a single change is out at once and churn makes its own batches.

mod attach;
mod dirty;
mod external;
mod network;
mod policy;
mod resource;
mod shelf;
mod snapshot;
mod status;
mod table;
mod tally;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use mesh::PolicyKey;
use tokio::sync::{mpsc, watch};

use crate::input::{
    AuthorizationPolicy, Endpoint, Gateway, GatewayClass, Key, MeshConfig, Namespace, Node,
    PeerAuthentication, Service, ServiceEntry, Slice, WorkloadEntry, selects,
};
use crate::model::{self, NetworkGateway, Settings, Waypoint, WorkloadContext};
use dirty::Dirty;
use table::Table;

pub use resource::{Link, Name, Resource};
pub use shelf::{Changes, Shelf, TooFarBehind};
pub use snapshot::{Pods, Snapshot};
pub use status::{StatusKind, StatusOf, Wanted};
pub use table::{Delta, Event, Keyed};
pub use tally::Tally;

/// Everything the control plane knows, and what it has made of it.
#[derive(Debug)]
pub struct State {
    /// As started.
    base: Settings,
    /// As the mesh configuration has it.
    settings: Settings,
    mesh: MeshConfig,
    mesh_configs: Table<MeshConfig>,
    nodes: Table<Node>,
    namespaces: Table<Namespace>,
    services: Table<Service>,
    slices: Table<Slice>,
    authorizations: Table<AuthorizationPolicy>,
    peers: Table<PeerAuthentication>,
    entries: Table<ServiceEntry>,
    written: Table<WorkloadEntry>,
    gateways: Table<Gateway>,
    classes: Table<GatewayClass>,
    waypoints: BTreeMap<Key, Arc<Waypoint>>,
    /// By Gateway, the ways into other networks that it stands for.
    ways: BTreeMap<Key, Vec<NetworkGateway>>,
    /// Policies that name what they apply to.
    targeted: BTreeSet<Key>,
    entries_of_host: BTreeMap<Arc<str>, BTreeSet<Key>>,
    /// By host and namespace, the ServiceEntry that has it.
    winners: HashMap<Arc<str>, BTreeMap<Arc<str>, Key>>,
    /// Names published for the endpoints of a ServiceEntry.
    endpoints_of_entry: HashMap<Key, BTreeSet<Name>>,
    /// Allocated addresses and the ServiceEntries that have them, oldest first.
    holders: HashMap<IpAddr, BTreeSet<(i64, Key)>>,
    held: HashMap<Key, Vec<IpAddr>>,
    /// The pod at an address of its own.
    pod_at: HashMap<IpAddr, Key>,
    pods_of_node: HashMap<Arc<str>, BTreeSet<Key>>,
    slices_of_service: HashMap<Key, BTreeSet<Key>>,
    /// Names published for the endpoints of a slice.
    endpoints_of_slice: HashMap<Key, BTreeSet<Name>>,
    /// Policies each published pod lists; pods without any are absent.
    policies_of_pod: HashMap<Key, Vec<PolicyKey>>,
    /// Names published for PeerAuthentications.
    peer_policies: BTreeSet<PolicyKey>,
    missing: Missing,
    dirty: Dirty,
    snapshot: Snapshot,
    tally: Arc<Tally>,
}

/// Inputs that have not been listed yet.
#[derive(Debug)]
struct Missing(Vec<&'static str>);

impl Default for Missing {
    fn default() -> Self {
        Self(vec![
            "pods",
            "nodes",
            "namespaces",
            "services",
            "endpointslices",
            "authorizationpolicies",
            "peerauthentications",
            "serviceentries",
            "workloadentries",
            "gateways",
            "gatewayclasses",
            "meshconfig",
        ])
    }
}

impl Missing {
    fn note<T>(&mut self, input: &str, delta: &Delta<T>) {
        if matches!(delta, Delta::All(_) | Delta::AllBut(..)) {
            self.0.retain(|missing| *missing != input);
        }
    }
}

impl State {
    /// Knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            base: settings.clone(),
            settings,
            mesh: MeshConfig::default(),
            mesh_configs: Table::default(),
            entries: Table::default(),
            written: Table::default(),
            gateways: Table::default(),
            classes: Table::default(),
            waypoints: BTreeMap::new(),
            ways: BTreeMap::new(),
            targeted: BTreeSet::new(),
            entries_of_host: BTreeMap::new(),
            winners: HashMap::new(),
            endpoints_of_entry: HashMap::new(),
            holders: HashMap::new(),
            held: HashMap::new(),
            pod_at: HashMap::new(),
            nodes: Table::default(),
            namespaces: Table::default(),
            services: Table::default(),
            slices: Table::default(),
            authorizations: Table::default(),
            peers: Table::default(),
            pods_of_node: HashMap::new(),
            slices_of_service: HashMap::new(),
            endpoints_of_slice: HashMap::new(),
            policies_of_pod: HashMap::new(),
            peer_policies: BTreeSet::new(),
            missing: Missing::default(),
            dirty: Dirty::default(),
            snapshot: Snapshot::default(),
            tally: Arc::default(),
        }
    }

    /// What is counted of it.
    pub fn tally(&self) -> Arc<Tally> {
        self.tally.clone()
    }

    /// Recomputes what was touched. Returns the new snapshot when anything in it is different.
    pub fn flush(&mut self) -> Option<Snapshot> {
        let mut dirty = std::mem::take(&mut self.dirty);
        let before = (self.snapshot.change, self.snapshot.waiting_for.clone());
        let shelves = |snapshot: &Snapshot| (snapshot.addresses.last(), snapshot.policies.last());
        let (addresses, policies) = shelves(&self.snapshot);
        let network = self.network();
        for key in std::mem::take(&mut dirty.gateways) {
            self.flush_ways(&network, &key, &mut dirty);
            self.flush_gateway(&network, &key, &mut dirty);
        }
        if !dirty.services.is_empty() || !dirty.hosts.is_empty() {
            dirty.authorizations.extend(self.targeted.iter().cloned());
        }
        for key in &dirty.authorizations {
            self.flush_authorization(key);
        }
        if dirty.peers {
            self.flush_peers();
        }
        for key in &dirty.services {
            self.flush_service(&network, key);
        }
        for host in std::mem::take(&mut dirty.hosts) {
            self.flush_host(&network, &host, &mut dirty);
        }
        for key in &dirty.slices {
            self.flush_slice(&network, key);
        }
        for key in &dirty.entries {
            self.flush_entry(&network, key);
        }
        for key in &dirty.pods {
            self.flush_pod(&network, key);
        }
        for key in &dirty.written {
            self.flush_written(&network, key);
        }
        let (now_addresses, now_policies) = shelves(&self.snapshot);
        self.tally.published(addresses != now_addresses, policies != now_policies);
        self.snapshot.waiting_for = Some(self.missing.0.clone());
        let unseen = std::mem::take(&mut self.dirty.accounts) || dirty.accounts;
        let changed = unseen || before != (self.snapshot.change, self.snapshot.waiting_for.clone());
        changed.then(|| self.snapshot.clone())
    }

    /// Network of this cluster: a label of the system namespace.
    fn network(&self) -> Arc<str> {
        let system = Key::new("", self.base.root_namespace.clone());
        self.namespaces.get(&system).map_or_else(|| "".into(), |namespace| namespace.network.clone())
    }

    fn flush_service(&mut self, network: &Arc<str>, key: &Key) {
        let input = self.services.get(key).cloned().filter(|_| self.discovers(&key.namespace));
        let bound = input.as_ref().map(|input| self.bind_service(input));
        let service = input.as_ref().and_then(|input| {
            let namespace = self.namespace_named(&key.namespace);
            let distribution = namespace.and_then(|namespace| namespace.distribution);
            let bound = bound.as_ref().and_then(|bound| bound.as_ref().ok()?.as_ref());
            model::service(&self.settings, network, distribution, bound, input)
        });
        match service {
            Some(service) => self.put_address(Resource::service(&service)),
            None => self.remove_address(&self.settings.service_key(key).to_string()),
        }
        match (input, bound) {
            (Some(input), Some(bound)) => {
                let condition = model::binding(&bound, true);
                self.want(StatusKind::Service, key, None, &input.conditions, condition, None);
            }
            _ => self.unwanted(&StatusOf { kind: StatusKind::Service, key: key.clone() }),
        }
    }

    fn flush_slice(&mut self, network: &Arc<str>, key: &Key) {
        let resources: Vec<Resource> = self
            .slices
            .get(key)
            .filter(|_| self.discovers(&key.namespace))
            .and_then(|slice| {
                let service = self.services.get(&Key::new(key.namespace.clone(), slice.service.clone()?))?;
                let endpoints = slice.endpoints.iter().filter_map(|endpoint| {
                    let by_hand = service.selector.is_empty();
                    if by_hand && self.pod_behind(&key.namespace, endpoint).is_some() {
                        return None;
                    }
                    let workload = model::endpoint(&self.settings, network, slice, endpoint, service)?;
                    Some(self.encode(workload, [&**service]))
                });
                Some(endpoints.collect())
            })
            .unwrap_or_default();
        let names: BTreeSet<Name> = resources.iter().map(|resource| resource.name.clone()).collect();
        let before = self.endpoints_of_slice.remove(key).unwrap_or_default();
        for resource in resources {
            self.put_address(resource);
        }
        for name in before.difference(&names) {
            self.remove_address(name);
        }
        if !names.is_empty() {
            self.endpoints_of_slice.insert(key.clone(), names);
        }
    }

    fn flush_pod(&mut self, network: &Arc<str>, key: &Key) {
        let pod = self.snapshot.pods.get(key).filter(|_| self.discovers(&key.namespace));
        let built = pod.and_then(|pod| {
            let services: Vec<&Service> = self.services_of(pod).collect();
            let sliced = self.slices_with(pod);
            let policies = self.policies_of(pod);
            let (waypoint, tunnel) = self.waypoint_of(pod);
            let all: Vec<&Service> =
                services.iter().copied().chain(sliced.iter().map(|(service, _)| *service)).collect();
            let context = WorkloadContext {
                network: network.clone(),
                locality: self.nodes.get(&Key::new("", pod.node.clone())).map(|node| &node.locality),
                services,
                sliced,
                hosts: self.hosts_selecting(&key.namespace, &pod.labels),
                policies: policies.clone(),
                waypoint,
                tunnel,
            };
            match model::pod(&self.settings, context, pod) {
                Ok(workload) => Some((self.encode(workload, all), policies)),
                Err(model::Skip::Identity(error)) => {
                    tracing::warn!(pod = %key, %error, "pod left out of the mesh");
                    None
                }
                Err(model::Skip::Finished | model::Skip::NoAddress) => None,
            }
        });
        let Some((resource, policies)) = built else {
            self.policies_of_pod.remove(key);
            return self.remove_address(&model::pod_uid(&self.settings, key));
        };
        self.put_address(resource);
        let before = self.policies_of_pod.remove(key).unwrap_or_default();
        for policy in policies.iter().filter(|policy| !before.contains(policy)) {
            // A client re-checks open connections when a policy arrives, not when a workload lists it.
            let at = self.next();
            self.snapshot.policies.touch(at, policy);
        }
        if !policies.is_empty() {
            self.policies_of_pod.insert(key.clone(), policies);
        }
    }

    /// Services that select a pod.
    fn services_of<'a>(&'a self, pod: &'a crate::input::Pod) -> impl Iterator<Item = &'a Service> {
        self.services.of(&pod.key.namespace).map(|service| &**service).filter(move |service| {
            !service.external && !service.selector.is_empty() && selects(&service.selector, &pod.labels)
        })
    }

    /// Services without a selector that reach a pod by an endpoint slice, each with the slice.
    fn slices_with<'a>(&'a self, pod: &crate::input::Pod) -> Vec<(&'a Service, &'a Slice)> {
        let Some(namespace) = self.snapshot.pods.get(&pod.key).map(|pod| &pod.key.namespace) else {
            return Vec::new();
        };
        let by_hand =
            self.services.of(namespace).filter(|service| !service.external && service.selector.is_empty());
        let slices = by_hand.flat_map(|service| {
            let slices = self.slices_of_service.get(&service.key).into_iter().flatten();
            slices.filter_map(|slice| self.slices.get(slice)).map(move |slice| (&**service, &**slice))
        });
        slices
            .filter(|(_, slice)| {
                slice.endpoints.iter().any(|endpoint| match &endpoint.pod {
                    Some((key, uid)) => *key == pod.key && *uid == pod.uid,
                    None => self.pod_behind(namespace, endpoint).as_ref() == Some(&pod.key),
                })
            })
            .collect()
    }

    /// The pod that an endpoint is: the one it names, or the one of its namespace that has its address.
    fn pod_behind(&self, namespace: &Arc<str>, endpoint: &Endpoint) -> Option<Key> {
        if let Some((key, _)) = &endpoint.pod {
            return Some(key.clone());
        }
        let first = endpoint.addresses.as_ref()?.first()?;
        self.pod_at.get(first).filter(|key| key.namespace == *namespace).cloned()
    }

    fn encode<'a>(
        &self,
        mut workload: mesh::Workload,
        services: impl IntoIterator<Item = &'a Service>,
    ) -> Resource {
        self.with_way_in(&mut workload);
        if workload.health == mesh::Health::Healthy {
            return Resource::workload(&workload, &[]);
        }
        let all: Vec<mesh::ServiceKey> = services
            .into_iter()
            .filter(|service| service.publish_not_ready)
            .map(|service| self.settings.service_key(&service.key))
            .collect();
        Resource::workload(&workload, &all.iter().collect::<Vec<_>>())
    }

    fn next(&mut self) -> u64 {
        self.snapshot.change += 1;
        self.snapshot.change
    }

    fn put_address(&mut self, resource: Resource) {
        let at = self.snapshot.change + 1;
        if self.snapshot.addresses.put(at, resource) {
            self.snapshot.change = at;
        }
    }

    fn remove_address(&mut self, name: &str) {
        let at = self.snapshot.change + 1;
        if self.snapshot.addresses.remove(at, name) {
            self.snapshot.change = at;
        }
    }
}

/// Events taken in before a flush, at most: bounds how long a flush can be put off under churn.
const BATCH: usize = 4096;

/// Owns a state: takes in events, publishes snapshots, until nobody sends any more.
pub async fn own(mut state: State, mut events: mpsc::Receiver<Event>, snapshots: watch::Sender<Snapshot>) {
    let mut batch = Vec::new();
    while events.recv_many(&mut batch, BATCH).await > 0 {
        let heard = Instant::now();
        for event in batch.drain(..) {
            state.tally.heard(&event);
            state.apply(event);
        }
        if let Some(mut snapshot) = state.flush() {
            snapshot.heard = Some(heard);
            snapshots.send_replace(snapshot);
        }
    }
}
