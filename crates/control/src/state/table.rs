//! Objects of one kind by key, and what changed when one arrives.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::input::{
    AuthorizationPolicy, Gateway, GatewayClass, Key, MeshConfig, Namespace, Node, PeerAuthentication, Pod,
    Service, ServiceEntry, Slice, WorkloadEntry,
};

/// What was heard of objects of one kind.
#[derive(Clone, Debug)]
pub enum Delta<T> {
    /// One is new or has changed.
    Put(T),
    /// One is gone.
    Gone(Key),
    /// These are all there are.
    All(Vec<T>),
    /// These are all there are, but for some that are there and cannot be read: what is known of those stays.
    AllBut(Vec<T>, BTreeSet<Key>),
}

/// What was heard.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Event {
    Pods(Delta<Pod>),
    Nodes(Delta<Node>),
    Namespaces(Delta<Namespace>),
    Services(Delta<Service>),
    Slices(Delta<Slice>),
    Authorizations(Delta<AuthorizationPolicy>),
    Peers(Delta<PeerAuthentication>),
    Entries(Delta<ServiceEntry>),
    Written(Delta<WorkloadEntry>),
    Gateways(Delta<Gateway>),
    Classes(Delta<GatewayClass>),
    Mesh(Delta<MeshConfig>),
}

/// An object with a key. Objects without a namespace have an empty one.
pub trait Keyed {
    /// Its key.
    fn key(&self) -> Key;
}

macro_rules! keyed {
    ($($kind:ty),*) => {$(impl Keyed for $kind {
        fn key(&self) -> Key {
            self.key.clone()
        }
    })*};
}
keyed!(Pod, Service, Slice, AuthorizationPolicy, PeerAuthentication, ServiceEntry, WorkloadEntry, Gateway);

macro_rules! named {
    ($($kind:ty),*) => {$(impl Keyed for $kind {
        fn key(&self) -> Key {
            Key::new("", self.name.clone())
        }
    })*};
}
named!(Node, Namespace, GatewayClass, MeshConfig);

/// Objects of one kind.
#[derive(Debug)]
pub(super) struct Table<T>(BTreeMap<Key, Arc<T>>);

/// An object before and after; never equal, never both absent.
pub(super) type Step<T> = (Option<Arc<T>>, Option<Arc<T>>);

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Keyed + PartialEq> Table<T> {
    /// Takes in what was heard; returns what really changed.
    pub fn apply(&mut self, delta: Delta<T>) -> Vec<Step<T>> {
        match delta {
            Delta::Put(object) => self.put(object).into_iter().collect(),
            Delta::Gone(key) => self.0.remove(&key).map(|old| (Some(old), None)).into_iter().collect(),
            Delta::All(objects) => self.apply(Delta::AllBut(objects, BTreeSet::new())),
            Delta::AllBut(objects, unreadable) => {
                let listed: BTreeSet<Key> = objects.iter().map(Keyed::key).collect();
                let lost = |key: &&Key| !listed.contains(key) && !unreadable.contains(key);
                let lost: Vec<Key> = self.0.keys().filter(lost).cloned().collect();
                let lost = lost.iter().filter_map(|key| self.0.remove(key)).map(|old| (Some(old), None));
                let mut steps: Vec<Step<T>> = lost.collect();
                steps.extend(objects.into_iter().filter_map(|object| self.put(object)));
                steps
            }
        }
    }

    fn put(&mut self, object: T) -> Option<Step<T>> {
        let key = object.key();
        if self.0.get(&key).is_some_and(|old| **old == object) {
            return None;
        }
        let new = Arc::new(object);
        let old = self.0.insert(key, new.clone());
        Some((old, Some(new)))
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<T>> {
        self.0.get(key)
    }

    pub fn values(&self) -> impl Iterator<Item = &Arc<T>> + Clone {
        self.0.values()
    }

    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.0.keys()
    }

    /// Objects of a namespace.
    pub fn of<'a>(&'a self, namespace: &'a Arc<str>) -> impl Iterator<Item = &'a Arc<T>> + Clone {
        self.0
            .range(Key::new(namespace.clone(), "")..)
            .take_while(move |(key, _)| key.namespace == *namespace)
            .map(|(_, object)| object)
    }
}
