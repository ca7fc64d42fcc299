//! The owner of everything the control plane knows.
//!
//! [`State`] is plain data: [`State::apply`] takes in what was heard and notes what that touches, [`State::flush`]
//! recomputes just that and returns a new [`Snapshot`] when anything really changed. [`own`] is the one task that
//! holds it; everybody else reads snapshots. Nothing is timed: whatever arrived while the last flush was computed
//! goes into the next one, so a single change is out at once and churn makes its own batches.

mod dirty;
mod resource;
mod shelf;
mod snapshot;
mod table;
#[cfg(test)]
mod tests;

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use mesh::PolicyKey;
use tokio::sync::{mpsc, watch};

use crate::input::{AuthorizationPolicy, Key, Namespace, Node, PeerAuthentication, Service, Slice, selects};
use crate::model::{self, Settings, WorkloadContext};
use dirty::Dirty;
use table::Table;

pub use resource::{Name, Resource};
pub use shelf::{Changes, Shelf, TooFarBehind};
pub use snapshot::{Pods, Snapshot};
pub use table::{Delta, Event, Keyed};

/// Everything the control plane knows, and what it has made of it.
#[derive(Debug)]
pub struct State {
    settings: Settings,
    nodes: Table<Node>,
    namespaces: Table<Namespace>,
    services: Table<Service>,
    slices: Table<Slice>,
    authorizations: Table<AuthorizationPolicy>,
    peers: Table<PeerAuthentication>,
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
        ])
    }
}

impl Missing {
    fn note<T>(&mut self, input: &str, delta: &Delta<T>) {
        if matches!(delta, Delta::All(_)) {
            self.0.retain(|missing| *missing != input);
        }
    }
}

impl State {
    /// Knows nothing yet.
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
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
        }
    }

    /// Recomputes what was touched. Returns the new snapshot when anything in it is different.
    pub fn flush(&mut self) -> Option<Snapshot> {
        let dirty = std::mem::take(&mut self.dirty);
        let before = (self.snapshot.change, self.snapshot.waiting_for.clone());
        let network = self.network();
        for key in &dirty.authorizations {
            self.flush_authorization(key);
        }
        if dirty.peers {
            self.flush_peers();
        }
        for key in &dirty.services {
            self.flush_service(&network, key);
        }
        for key in &dirty.slices {
            self.flush_slice(&network, key);
        }
        for key in &dirty.pods {
            self.flush_pod(&network, key);
        }
        self.snapshot.waiting_for = Some(self.missing.0.clone());
        let changed = dirty.accounts || before != (self.snapshot.change, self.snapshot.waiting_for.clone());
        changed.then(|| self.snapshot.clone())
    }

    /// Network of this cluster: a label of the system namespace.
    fn network(&self) -> Arc<str> {
        let system = Key::new("", self.settings.root_namespace.clone());
        self.namespaces.get(&system).map_or_else(|| "".into(), |namespace| namespace.network.clone())
    }

    fn flush_authorization(&mut self, key: &Key) {
        let policy = self.authorizations.get(key).and_then(|input| {
            let policy = model::authorization(&self.settings, input);
            match &policy {
                Err(omitted) => tracing::info!(policy = %key, reason = %omitted, "policy not enforced by node proxies"),
                Ok(_) => {
                    let left_out = model::effect(input);
                    if !left_out.is_empty() {
                        tracing::warn!(policy = %key, http_attributes = ?left_out, "policy enforced without its HTTP attributes");
                    }
                }
            }
            policy.ok()
        });
        match policy {
            Some(policy) => self.put_policy(&policy),
            None => self.remove_policy(&key.to_string()),
        }
    }

    fn flush_peers(&mut self) {
        let ours = || {
            self.peers
                .values()
                .map(|peer| &**peer)
                .filter(|peer| self.settings.in_revision(peer.revision.as_deref()))
        };
        let mut policies: Vec<mesh::Policy> =
            ours().filter_map(|peer| model::converted(&self.settings, ours(), peer)).collect();
        if ours().next().is_some() {
            policies.push(model::static_strict(&self.settings));
        }
        let names: BTreeSet<PolicyKey> = policies.iter().map(mesh::Policy::key).collect();
        let lost: Vec<PolicyKey> = self.peer_policies.difference(&names).cloned().collect();
        for policy in &policies {
            self.put_policy(policy);
        }
        for name in lost {
            self.remove_policy(&name);
        }
        self.peer_policies = names;
    }

    fn flush_service(&mut self, network: &Arc<str>, key: &Key) {
        let service = self.services.get(key).and_then(|input| {
            let namespace = self.namespaces.get(&Key::new("", key.namespace.clone()));
            let distribution = namespace.and_then(|namespace| namespace.distribution);
            model::service(&self.settings, network, distribution, input)
        });
        match service {
            Some(service) => self.put_address(Resource::service(&service)),
            None => self.remove_address(&self.settings.service_key(key).to_string()),
        }
    }

    fn flush_slice(&mut self, network: &Arc<str>, key: &Key) {
        let resources: Vec<Resource> = self
            .slices
            .get(key)
            .and_then(|slice| {
                let service = self.services.get(&Key::new(key.namespace.clone(), slice.service.clone()?))?;
                let endpoints = slice.endpoints.iter().filter_map(|endpoint| {
                    let workload = model::endpoint(&self.settings, network, slice, endpoint, service)?;
                    Some(self.encode(&workload, [&**service]))
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
        let built = self.snapshot.pods.get(key).and_then(|pod| {
            let services: Vec<&Service> = self.services_of(pod).collect();
            let policies = self.policies_of(pod);
            let context = WorkloadContext {
                network: network.clone(),
                locality: self.nodes.get(&Key::new("", pod.node.clone())).map(|node| &node.locality),
                services: services.clone(),
                policies: policies.clone(),
            };
            match model::pod(&self.settings, context, pod) {
                Ok(workload) => Some((self.encode(&workload, services), policies)),
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

    /// Services that a pod is an endpoint of: by selector, or, for services without one, by endpoint slice.
    fn services_of<'a>(&'a self, pod: &'a crate::input::Pod) -> impl Iterator<Item = &'a Service> {
        let sliced = move |service: &Service| {
            let slices = self.slices_of_service.get(&service.key).into_iter().flatten();
            slices.filter_map(|slice| self.slices.get(slice)).flat_map(|slice| &slice.endpoints).any(
                |endpoint| endpoint.pod.as_ref().is_some_and(|(key, uid)| *key == pod.key && *uid == pod.uid),
            )
        };
        self.services.of(&pod.key.namespace).map(|service| &**service).filter(move |service| {
            !service.external
                && if service.selector.is_empty() {
                    sliced(service)
                } else {
                    selects(&service.selector, &pod.labels)
                }
        })
    }

    /// Policies bound to a pod by selector, then those of PeerAuthentications.
    fn policies_of(&self, pod: &crate::input::Pod) -> Vec<PolicyKey> {
        let namespaces = [&self.settings.root_namespace, &pod.key.namespace];
        let same = namespaces[0] == namespaces[1];
        let mut keys: Vec<PolicyKey> = namespaces[usize::from(same)..]
            .iter()
            .flat_map(|namespace| self.authorizations.of(namespace))
            .filter(|policy| policy.selector.as_ref().is_some_and(|selector| selects(selector, &pod.labels)))
            .map(|policy| PolicyKey::from(policy.key.to_string()))
            // Only what is published: a client skips a policy that it is told of and does not have.
            .filter(|policy| self.snapshot.policies.get(policy).is_some())
            .collect();
        keys.sort();
        let ours = self
            .peers
            .values()
            .map(|peer| &**peer)
            .filter(|peer| self.settings.in_revision(peer.revision.as_deref()));
        keys.extend(model::peer_keys(&self.settings, ours, &pod.key.namespace, &pod.labels));
        keys
    }

    fn encode<'a>(
        &self,
        workload: &mesh::Workload,
        services: impl IntoIterator<Item = &'a Service>,
    ) -> Resource {
        if workload.health == mesh::Health::Healthy {
            return Resource::workload(workload, &[]);
        }
        let all: Vec<mesh::ServiceKey> = services
            .into_iter()
            .filter(|service| service.publish_not_ready)
            .map(|service| self.settings.service_key(&service.key))
            .collect();
        Resource::workload(workload, &all.iter().collect::<Vec<_>>())
    }

    fn next(&mut self) -> u64 {
        self.snapshot.change += 1;
        self.snapshot.change
    }

    fn put_policy(&mut self, policy: &mesh::Policy) {
        let at = self.snapshot.change + 1;
        if self.snapshot.policies.put(at, Resource::policy(policy)) {
            self.snapshot.change = at;
        }
    }

    fn remove_policy(&mut self, name: &str) {
        let at = self.snapshot.change + 1;
        if self.snapshot.policies.remove(at, name) {
            self.snapshot.change = at;
        }
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
        for event in batch.drain(..) {
            state.apply(event);
        }
        if let Some(snapshot) = state.flush() {
            snapshots.send_replace(snapshot);
        }
    }
}
