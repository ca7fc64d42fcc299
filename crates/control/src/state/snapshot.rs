//! The state of the mesh at one moment, as everybody else reads it.

use std::sync::Arc;

use imbl::{HashMap, HashSet, OrdMap};

use super::shelf::Shelf;
use super::status::{StatusOf, Wanted};
use crate::input::{Enrolment, Key, Pod};

/// The state of the mesh at one moment. Clones share everything, so that readers hold it as long as they like.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Number of the last change; 0 before anything was published.
    pub change: u64,
    /// When the first event was heard that led to it, for the metrics.
    pub heard: Option<std::time::Instant>,
    /// Inputs that have not been listed yet; nothing known of it before the first one was heard of.
    pub waiting_for: Option<Vec<&'static str>>,
    /// Workloads and services.
    pub addresses: Shelf,
    /// Policies.
    pub policies: Shelf,
    /// Pods, for the node authorizer.
    pub pods: Pods,
    /// What is still to be written on objects.
    pub statuses: OrdMap<StatusOf, Arc<Wanted>>,
}

/// Node, namespace and account.
type Slot = (Arc<str>, Arc<str>, Arc<str>);

impl Snapshot {
    /// Whether every input has been listed once, so that this is the whole mesh.
    pub fn synced(&self) -> bool {
        self.waiting_for.as_ref().is_some_and(Vec::is_empty)
    }
}

/// Who runs where.
#[derive(Clone, Debug, Default)]
pub struct Pods {
    by_key: OrdMap<Key, Arc<Pod>>,
    /// How many pods may hold an identity.
    accounts: HashMap<Slot, Count>,
    /// Namespaces whose pods are in the mesh when they do not say otherwise.
    enrolled: HashSet<Arc<str>>,
}

/// Pods of one account on a node: those that are in the mesh, and those that are if their namespace is.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    own: usize,
    namespace: usize,
}

impl Count {
    fn of(&mut self, enrolment: Enrolment) -> &mut usize {
        match enrolment {
            Enrolment::Own => &mut self.own,
            // Those that are kept out are not counted at all: see `slot`.
            Enrolment::Namespace | Enrolment::Never => &mut self.namespace,
        }
    }
}

impl Pods {
    /// A pod.
    pub fn get(&self, key: &Key) -> Option<&Arc<Pod>> {
        self.by_key.get(key)
    }

    /// How many pods there are.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// Whether a node runs a pod of this account that the mesh carries.
    pub fn runs(&self, node: &Arc<str>, namespace: &str, account: &str) -> bool {
        let count = self.accounts.get(&(node.clone(), namespace.into(), account.into()));
        count.is_some_and(|count| count.own > 0 || (count.namespace > 0 && self.enrolled.contains(namespace)))
    }

    /// Whether pods of a namespace are in the mesh when they do not say otherwise.
    pub(super) fn enrol(&mut self, namespace: &Arc<str>, enrolled: bool) {
        match enrolled {
            true => drop(self.enrolled.insert(namespace.clone())),
            false => drop(self.enrolled.remove(namespace)),
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.by_key.values()
    }

    /// Pods of a namespace.
    pub(super) fn of<'a>(&'a self, namespace: &'a Arc<str>) -> impl Iterator<Item = &'a Arc<Pod>> {
        self.by_key
            .range(Key::new(namespace.clone(), "")..)
            .take_while(move |(key, _)| key.namespace == *namespace)
            .map(|(_, pod)| pod)
    }

    pub(super) fn put(&mut self, pod: Arc<Pod>) {
        if let Some(slot) = slot(&pod) {
            *self.accounts.entry(slot).or_default().of(pod.enrolment) += 1;
        }
        if let Some(old) = self.by_key.insert(pod.key.clone(), pod) {
            self.leave(&old);
        }
    }

    pub(super) fn remove(&mut self, key: &Key) -> Option<Arc<Pod>> {
        let old = self.by_key.remove(key)?;
        self.leave(&old);
        Some(old)
    }

    fn leave(&mut self, pod: &Pod) {
        let Some(slot) = slot(pod) else { return };
        if let Some(count) = self.accounts.get_mut(&slot) {
            *count.of(pod.enrolment) -= 1;
            if count.own + count.namespace == 0 {
                self.accounts.remove(&slot);
            }
        }
    }
}

/// Where a pod counts: it must be placed, not finished and not kept out of the mesh, for only then its node's proxy may
/// need its identity.
fn slot(pod: &Pod) -> Option<Slot> {
    let counts = !pod.finished() && !pod.node.is_empty() && pod.enrolment != Enrolment::Never;
    counts.then(|| (pod.node.clone(), pod.key.namespace.clone(), pod.service_account.clone()))
}
