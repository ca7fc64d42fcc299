//! What a change touches.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::State;
use super::table::{Event, Keyed, Step};
use crate::input::{
    AuthorizationPolicy, Key, Labels, Namespace, Node, PeerAuthentication, Pod, Service, Slice, selects,
};

/// What has to be recomputed.
#[derive(Debug, Default)]
pub(super) struct Dirty {
    pub pods: BTreeSet<Key>,
    pub services: BTreeSet<Key>,
    pub slices: BTreeSet<Key>,
    pub authorizations: BTreeSet<Key>,
    /// Policies made of PeerAuthentications.
    pub peers: bool,
    /// Who runs where has changed, though perhaps nothing a client sees.
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
            super::Delta::All(all) => {
                let listed: BTreeSet<Key> = all.iter().map(Keyed::key).collect();
                let lost: Vec<Key> =
                    pods.all().map(|pod| pod.key.clone()).filter(|key| !listed.contains(key)).collect();
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
        self.dirty.accounts = true;
        self.dirty.pods.extend(new.or(old).map(|pod| pod.key.clone()));
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
        let distribution =
            |namespace: &Option<Arc<Namespace>>| namespace.as_ref().and_then(|one| one.distribution);
        let network = |namespace: &Option<Arc<Namespace>>| {
            namespace.as_ref().map(|one| one.network.clone()).unwrap_or_default()
        };
        let (spread, moved) = (distribution(&old) != distribution(&new), network(&old) != network(&new));
        let Some(namespace) = new.or(old) else { return };
        if moved && namespace.name == self.settings.root_namespace {
            // The network is part of every address.
            self.dirty.pods.extend(self.snapshot.pods.all().map(|pod| pod.key.clone()));
            self.dirty.services.extend(self.services.keys().cloned());
            self.dirty.slices.extend(self.slices.keys().cloned());
        } else if spread {
            self.dirty.services.extend(self.services.of(&namespace.name).map(|service| service.key.clone()));
        }
    }

    fn service(&mut self, (old, new): Step<Service>) {
        let sides = || [&old, &new].into_iter().flatten();
        let Some(key) = sides().next().map(|service| service.key.clone()) else { return };
        self.dirty.services.insert(key.clone());
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
                self.dirty.pods.extend(pods_of(slice));
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
                self.dirty.pods.extend(pods_of(slice));
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
    }
}

fn pods_of(slice: &Slice) -> impl Iterator<Item = Key> + '_ {
    slice.endpoints.iter().filter_map(|endpoint| endpoint.pod.as_ref().map(|(key, _)| key.clone()))
}
