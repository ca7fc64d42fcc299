//! The objects and their history. One lock guards everything: a write runs as a closure that sees a consistent
//! world and changes it at once, so that uniqueness, allocation and optimistic concurrency need no retries.
//! Owns resource versions and what watches may still replay; never looks into an object beyond its key.

mod watcher;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::watch;

pub use watcher::{Change, Gone, Seen, Watcher};

use super::object;

/// (namespace, name); the namespace of cluster-scoped objects is "".
pub type Key = (String, String);

/// The store; cheap to share by reference.
pub struct Store {
    inner: Mutex<Inner>,
}

/// What is behind the lock, as seen by a read or a write.
pub struct Inner {
    revision: u64,
    capacity: usize,
    resources: HashMap<String, Resource>,
}

struct Resource {
    objects: BTreeMap<Key, Arc<Value>>,
    history: VecDeque<Change>,
    /// The newest revision that fell out of `history`.
    compacted: u64,
    changed: watch::Sender<u64>,
}

impl Default for Resource {
    fn default() -> Resource {
        Resource {
            objects: BTreeMap::new(),
            history: VecDeque::new(),
            compacted: 0,
            changed: watch::channel(0).0,
        }
    }
}

impl Store {
    /// An empty store that remembers the last `capacity` changes of each resource.
    pub fn new(capacity: usize) -> Store {
        Store {
            inner: Mutex::new(Inner { revision: 1, capacity: capacity.max(1), resources: HashMap::new() }),
        }
    }

    /// Looks at, or changes, a consistent state. `f` must not block.
    pub fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock())
    }

    /// One object.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.with(|inner| inner.get(resource, namespace, name))
    }

    /// All objects of a resource, or those of one namespace, with the revision they are of.
    pub fn list(&self, resource: &str, namespace: Option<&str>) -> (Vec<Arc<Value>>, u64) {
        self.with(|inner| (inner.list(resource, namespace).cloned().collect(), inner.revision()))
    }

    /// Follows the changes of a resource after `since`.
    pub fn watch(&self, resource: &str, since: u64) -> Result<Watcher, Gone> {
        self.with(|inner| inner.watch(resource, since))
    }
}

impl Inner {
    /// The revision of the last change.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// One object.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.resources.get(resource)?.objects.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    /// All objects of a resource, or those of one namespace, in key order.
    pub fn list<'a>(
        &'a self,
        resource: &str,
        namespace: Option<&'a str>,
    ) -> impl Iterator<Item = &'a Arc<Value>> + use<'a> {
        let objects = self.resources.get(resource).map(|r| &r.objects);
        let start = (namespace.unwrap_or("").to_owned(), String::new());
        objects
            .into_iter()
            .flat_map(move |objects| objects.range(start.clone()..))
            .take_while(move |((ns, _), _)| namespace.is_none_or(|want| ns == want))
            .map(|(_, object)| object)
    }

    /// Writes an object, giving it the next revision. Its name and namespace are its key.
    pub fn put(&mut self, resource: &str, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        object::metadata_mut(&mut object).insert("resourceVersion".into(), self.revision.to_string().into());
        let key = (object::namespace(&object).to_owned(), object::name(&object).to_owned());
        let now = Arc::new(object);
        let entry = self.resources.entry(resource.to_owned()).or_default();
        let before = entry.objects.insert(key, now.clone());
        entry.record(
            Change { revision: self.revision, before, now: now.clone(), deleted: false },
            self.capacity,
        );
        now
    }

    /// Removes an object; what is returned carries the revision of the removal.
    pub fn remove(&mut self, resource: &str, namespace: &str, name: &str) -> Option<Arc<Value>> {
        let entry = self.resources.get_mut(resource)?;
        let before = entry.objects.remove(&(namespace.to_owned(), name.to_owned()))?;
        self.revision += 1;
        let now = Arc::new(watcher::at_revision(&before, self.revision));
        let change =
            Change { revision: self.revision, before: Some(before), now: now.clone(), deleted: true };
        entry.record(change, self.capacity);
        Some(now)
    }

    /// Removes a resource with all its objects; its watches end.
    pub fn drop_resource(&mut self, resource: &str) {
        let keys: Vec<Key> =
            self.resources.get(resource).map(|r| r.objects.keys().cloned().collect()).unwrap_or_default();
        for (namespace, name) in keys {
            self.remove(resource, &namespace, &name);
        }
        self.resources.remove(resource);
    }

    /// Follows the changes of a resource after `since`. A version of the future is taken, as the real server takes it:
    /// nothing is heard until it has been reached.
    pub fn watch(&mut self, resource: &str, since: u64) -> Result<Watcher, Gone> {
        let entry = self.resources.entry(resource.to_owned()).or_default();
        if since < entry.compacted {
            return Err(Gone { asked: since, oldest: entry.compacted });
        }
        Ok(Watcher::new(resource.to_owned(), since, entry.changed.subscribe()))
    }
}

impl Resource {
    fn record(&mut self, change: Change, capacity: usize) {
        let revision = change.revision;
        self.history.push_back(change);
        while self.history.len() > capacity {
            if let Some(dropped) = self.history.pop_front() {
                self.compacted = dropped.revision;
            }
        }
        self.changed.send_replace(revision);
    }
}

#[cfg(test)]
mod tests;
