//! What a change touches.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::State;
use super::table::{Event, Keyed, Step};
use crate::input::{
    Allowed, AuthorizationPolicy, Key, Labels, MODE, MeshConfig, Namespace, Node, PeerAuthentication, Pod,
    Service, ServiceEntry, Slice, WorkloadEntry, selects,
};

/// What has to be recomputed.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub pods: BTreeSet<Key>,
    pub services: BTreeSet<Key>,
    pub slices: BTreeSet<Key>,
    pub authorizations: BTreeSet<Key>,
    pub gateways: BTreeSet<Key>,
    pub hosts: BTreeSet<Arc<str>>,
    pub entries: BTreeSet<Key>,
    pub written: BTreeSet<Key>,
    /// Policies made of PeerAuthentications.
    pub peers: bool,
    /// Something has changed that no client sees: who runs where, or what is to be written on objects.
    pub accounts: bool,
}

impl State {
    /// Takes in what was heard and notes what it touches.
    pub fn apply(&mut self, event: Event) {
        match event {
            Event::Pods(delta) => {
                self.missing.note("pods", &delta);
                for step in self.pod_steps(delta) {
                    self.pod(step);
                }
            }
            Event::Nodes(delta) => {
                self.missing.note("nodes", &delta);
                for step in self.nodes.apply(delta) {
                    self.node(step);
                }
            }
            Event::Namespaces(delta) => {
                self.missing.note("namespaces", &delta);
                for step in self.namespaces.apply(delta) {
                    self.namespace(step);
                }
            }
            Event::Services(delta) => {
                self.missing.note("services", &delta);
                for step in self.services.apply(delta) {
                    self.service(step);
                }
            }
            Event::Slices(delta) => {
                self.missing.note("endpointslices", &delta);
                for step in self.slices.apply(delta) {
                    self.slice(step);
                }
            }
            Event::Authorizations(delta) => {
                self.missing.note("authorizationpolicies", &delta);
                for step in self.authorizations.apply(delta) {
                    self.authorization(step);
                }
            }
            Event::Peers(delta) => {
                self.missing.note("peerauthentications", &delta);
                for step in self.peers.apply(delta) {
                    self.peer(step);
                }
            }
            Event::Entries(delta) => {
                self.missing.note("serviceentries", &delta);
                for step in self.entries.apply(delta) {
                    self.entry(step);
                }
            }
            Event::Written(delta) => {
                self.missing.note("workloadentries", &delta);
                for step in self.written.apply(delta) {
                    let sides: [Option<Arc<WorkloadEntry>>; 2] = step.into();
                    self.dirty.written.extend(sides.iter().flatten().map(|one| one.key.clone()));
                }
            }
            Event::Gateways(delta) => {
                self.missing.note("gateways", &delta);
                for (old, new) in self.gateways.apply(delta) {
                    self.dirty.gateways.extend(new.or(old).map(|gateway| gateway.key.clone()));
                }
            }
            Event::Classes(delta) => {
                self.missing.note("gatewayclasses", &delta);
                for (old, new) in self.classes.apply(delta) {
                    let Some(class) = new.or(old) else { continue };
                    let of = self.gateways.values().filter(|gateway| gateway.class == class.name);
                    self.dirty.gateways.extend(of.map(|gateway| gateway.key.clone()));
                }
            }
            Event::Mesh(delta) => {
                self.missing.note("meshconfig", &delta);
                for (_, new) in self.mesh_configs.apply(delta) {
                    self.mesh_config(new.as_deref());
                }
            }
        }
    }

    /// Pods live in the snapshot, where the node authorizer reads them, rather than in a table.
    fn pod_steps(&mut self, delta: super::Delta<Pod>) -> Vec<Step<Pod>> {
        let pods = &mut self.snapshot.pods;
        let put = |pods: &mut super::Pods, pod: Pod| {
            let old = pods.get(&pod.key).cloned();
            if old.as_deref() == Some(&pod) {
                return None;
            }
            let new = Arc::new(pod);
            pods.put(new.clone());
            Some((old, Some(new)))
        };
        match delta {
            super::Delta::Put(pod) => put(pods, pod).into_iter().collect(),
            super::Delta::Gone(key) => pods.remove(&key).map(|old| (Some(old), None)).into_iter().collect(),
            super::Delta::All(all) => self.pod_steps(super::Delta::AllBut(all, BTreeSet::new())),
            super::Delta::AllBut(all, unreadable) => {
                let listed: BTreeSet<Key> = all.iter().map(Keyed::key).collect();
                let lost = |key: &Key| !listed.contains(key) && !unreadable.contains(key);
                let lost: Vec<Key> = pods.all().map(|pod| pod.key.clone()).filter(lost).collect();
                let mut steps: Vec<Step<Pod>> =
                    lost.iter().filter_map(|key| pods.remove(key)).map(|old| (Some(old), None)).collect();
                steps.extend(all.into_iter().filter_map(|pod| put(pods, pod)));
                steps
            }
        }
    }

    fn pod(&mut self, (old, new): Step<Pod>) {
        if let Some(old) = &old
            && let Some(pods) = self.pods_of_node.get_mut(&old.node)
        {
            pods.remove(&old.key);
            if pods.is_empty() {
                self.pods_of_node.remove(&old.node);
            }
        }
        if let Some(new) = &new {
            self.pods_of_node.entry(new.node.clone()).or_default().insert(new.key.clone());
        }
        let places = |pod: &Option<Arc<Pod>>| {
            pod.as_ref().filter(|pod| pod.has_place()).map(|pod| pod.addresses.clone()).unwrap_or_default()
        };
        let (left, taken) = (places(&old), places(&new));
        self.dirty.accounts = true;
        let Some(pod) = new.or(old) else { return };
        self.dirty.pods.insert(pod.key.clone());
        if left == taken {
            return;
        }
        for ip in left {
            if self.pod_at.get(&ip) == Some(&pod.key) {
                self.pod_at.remove(&ip);
            }
        }
        for ip in taken {
            self.pod_at.insert(ip, pod.key.clone());
        }
        // An endpoint that somebody wrote down may be this pod.
        let by_hand = self.services.of(&pod.key.namespace).filter(|service| service.selector.is_empty());
        for service in by_hand {
            self.dirty.slices.extend(self.slices_of_service.get(&service.key).into_iter().flatten().cloned());
        }
    }

    fn node(&mut self, (old, new): Step<Node>) {
        let place =
            |node: &Option<Arc<Node>>| node.as_ref().map(|node| node.locality.clone()).unwrap_or_default();
        if place(&old) != place(&new)
            && let Some(node) = new.or(old)
            && let Some(pods) = self.pods_of_node.get(&node.name)
        {
            self.dirty.pods.extend(pods.iter().cloned());
        }
    }

    fn namespace(&mut self, (old, new): Step<Namespace>) {
        let sides = || [&old, &new].into_iter().flatten();
        let Some(name) = sides().next().map(|namespace| namespace.name.clone()) else { return };
        let network = |namespace: &Option<Arc<Namespace>>| {
            namespace.as_ref().map(|one| one.network.clone()).unwrap_or_default()
        };
        let says = |namespace: &Option<Arc<Namespace>>| {
            namespace.as_ref().map(|one| (one.distribution, one.attachment.clone())).unwrap_or_default()
        };
        let labels = |namespace: &Option<Arc<Namespace>>| {
            namespace.as_ref().map(|one| one.labels.clone()).unwrap_or_default()
        };
        let enrolled = |namespace: &Option<Arc<Namespace>>| {
            namespace.as_ref().and_then(|one| one.labels.get(MODE)).is_some_and(|mode| mode == "ambient")
        };
        if enrolled(&old) != enrolled(&new) {
            self.snapshot.pods.enrol(&name, enrolled(&new));
            self.dirty.accounts = true;
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        if network(&old) != network(&new) && name == self.base.root_namespace {
            // The network is part of every address.
            self.touch_all(&mut dirty);
        }
        let selected = !self.mesh.discovery.is_empty()
            || self.mesh.visibility.is_some()
            || self.waypoints.values().any(|waypoint| matches!(waypoint.allowed, Allowed::Selector(_)));
        if says(&old) != says(&new) || (selected && labels(&old) != labels(&new)) {
            self.touch_namespace(&name, &mut dirty);
        }
        if !self.mesh.discovery.is_empty() && labels(&old) != labels(&new) {
            dirty.gateways.extend(self.gateways.of(&name).map(|gateway| gateway.key.clone()));
            dirty.authorizations.extend(self.authorizations.of(&name).map(|policy| policy.key.clone()));
            dirty.peers = true;
        }
        self.dirty = dirty;
    }

    fn mesh_config(&mut self, new: Option<&MeshConfig>) {
        let mesh = new.cloned().unwrap_or_default();
        if mesh == self.mesh {
            return;
        }
        if let Some(domain) = &mesh.trust_domain
            && *domain != self.settings.trust_domain
        {
            tracing::warn!(
                configured = %domain,
                in_use = %self.settings.trust_domain,
                "the trust domain is read at the start only; restart the control plane to change it"
            );
        }
        self.settings.root_namespace =
            mesh.root_namespace.clone().unwrap_or_else(|| self.base.root_namespace.clone());
        self.settings.trust_domain_aliases = mesh.aliases.clone();
        self.mesh = mesh;
        let mut dirty = std::mem::take(&mut self.dirty);
        self.touch_all(&mut dirty);
        self.dirty = dirty;
    }

    fn entry(&mut self, (old, new): Step<ServiceEntry>) {
        let selected = |entry: &Option<Arc<ServiceEntry>>| {
            entry.as_ref().map(|one| (one.selector.clone(), one.ports.clone(), one.hosts.clone()))
        };
        let endpoints = selected(&old) != selected(&new);
        for entry in [&old, &new].into_iter().flatten() {
            self.dirty.entries.insert(entry.key.clone());
            self.dirty.hosts.extend(entry.hosts.iter().cloned());
        }
        for host in old.iter().flat_map(|entry| &entry.hosts) {
            if let Some(entries) = self.entries_of_host.get_mut(host)
                && let Some(entry) = &old
            {
                entries.remove(&entry.key);
                if entries.is_empty() {
                    self.entries_of_host.remove(host);
                }
            }
        }
        if let Some(entry) = &new {
            for host in &entry.hosts {
                self.entries_of_host.entry(host.clone()).or_default().insert(entry.key.clone());
            }
        }
        if endpoints {
            let mut dirty = std::mem::take(&mut self.dirty);
            for entry in [&old, &new].into_iter().flatten() {
                if let Some(selector) = &entry.selector {
                    self.touch_selector(&entry.key.namespace, selector, &mut dirty);
                }
            }
            self.dirty = dirty;
        }
    }

    fn service(&mut self, (old, new): Step<Service>) {
        let sides = || [&old, &new].into_iter().flatten();
        let Some(key) = sides().next().map(|service| service.key.clone()) else { return };
        self.dirty.services.insert(key.clone());
        let host = self.settings.service_key(&key).hostname;
        if self.entries_of_host.contains_key(&host) {
            self.dirty.hosts.insert(host);
        }
        let for_endpoints = |service: &Option<Arc<Service>>| {
            service
                .as_ref()
                .map(|one| (one.selector.clone(), one.ports.clone(), one.external, one.publish_not_ready))
        };
        if for_endpoints(&old) == for_endpoints(&new) {
            return;
        }
        for selector in sides().map(|service| &service.selector).filter(|selector| !selector.is_empty()) {
            self.touch_selected(Some(&key.namespace), Some(selector));
        }
        let by_slice = sides().any(|service| service.selector.is_empty());
        for slice in self.slices_of_service.get(&key).into_iter().flatten() {
            self.dirty.slices.insert(slice.clone());
            if by_slice && let Some(slice) = self.slices.get(slice) {
                let pods: Vec<Key> = self.pods_of_slice(slice).collect();
                self.dirty.pods.extend(pods);
            }
        }
    }

    fn slice(&mut self, (old, new): Step<Slice>) {
        let sides = || [&old, &new].into_iter().flatten();
        let Some(key) = sides().next().map(|slice| slice.key.clone()) else { return };
        self.dirty.slices.insert(key.clone());
        let service = |slice: &Slice| Some(Key::new(slice.key.namespace.clone(), slice.service.clone()?));
        if let Some(service) = old.as_deref().and_then(service)
            && let Some(slices) = self.slices_of_service.get_mut(&service)
        {
            slices.remove(&key);
            if slices.is_empty() {
                self.slices_of_service.remove(&service);
            }
        }
        if let Some(service) = new.as_deref().and_then(service) {
            self.slices_of_service.entry(service).or_default().insert(key);
        }
        for slice in sides() {
            // Pods of a service with a selector belong to it by that alone.
            let by_slice = service(slice)
                .and_then(|key| self.services.get(&key))
                .is_some_and(|service| service.selector.is_empty());
            if by_slice {
                let pods: Vec<Key> = self.pods_of_slice(slice).collect();
                self.dirty.pods.extend(pods);
            }
        }
    }

    fn authorization(&mut self, (old, new): Step<AuthorizationPolicy>) {
        for policy in [&old, &new].into_iter().flatten() {
            self.dirty.authorizations.insert(policy.key.clone());
            if policy.selector.is_some() {
                let namespace = self.reach(&policy.key.namespace);
                self.touch_selected(namespace.as_ref(), policy.selector.as_ref());
            }
        }
    }

    fn peer(&mut self, (old, new): Step<PeerAuthentication>) {
        self.dirty.peers = true;
        for peer in [&old, &new].into_iter().flatten() {
            let namespace = self.reach(&peer.key.namespace);
            self.touch_selected(namespace.as_ref(), peer.selector.as_ref());
        }
    }

    /// The namespace that policies of a namespace reach; none: all of them.
    fn reach(&self, namespace: &Arc<str>) -> Option<Arc<str>> {
        (*namespace != self.settings.root_namespace).then(|| namespace.clone())
    }

    /// Touches the pods of a namespace (or of all) that a selector selects (or all of them).
    fn touch_selected(&mut self, namespace: Option<&Arc<str>>, selector: Option<&Labels>) {
        let selected = |pod: &&Arc<Pod>| selector.is_none_or(|selector| selects(selector, &pod.labels));
        let pods = &self.snapshot.pods;
        match namespace {
            Some(namespace) => {
                self.dirty.pods.extend(pods.of(namespace).filter(selected).map(|pod| pod.key.clone()));
            }
            None => self.dirty.pods.extend(pods.all().filter(selected).map(|pod| pod.key.clone())),
        }
        let selects = |labels: &Labels| selector.is_none_or(|selector| selects(selector, labels));
        let reached = |key: &Key| namespace.is_none_or(|namespace| key.namespace == *namespace);
        let written = self.written.values().filter(|one| reached(&one.key) && selects(&one.entry.labels));
        self.dirty.written.extend(written.map(|one| one.key.clone()));
        let entries = self.entries.values().filter(|one| reached(&one.key) && selects(&one.labels));
        self.dirty.entries.extend(entries.map(|one| one.key.clone()));
    }

    /// The pods that endpoints of a slice are.
    fn pods_of_slice(&self, slice: &Slice) -> impl Iterator<Item = Key> {
        slice.endpoints.iter().filter_map(|endpoint| self.pod_behind(&slice.key.namespace, endpoint))
    }
}
