//! A watch is a cursor into the history of its resource, not a queue: a slow reader costs no memory, and one that
//! fell behind what is remembered is told so.

use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;

use super::{Inner, Store};
use crate::api::object;
use crate::api::selector::Selector;

/// One change of one object.
#[derive(Clone, Debug)]
pub struct Change {
    /// Revision of the change.
    pub revision: u64,
    /// The object before, unless it was created.
    pub before: Option<Arc<Value>>,
    /// The object after; for a deletion its last state with the revision of the deletion.
    pub now: Arc<Value>,
    /// Whether it was deleted.
    pub deleted: bool,
}

/// What a watch with a selector is told about a change.
#[derive(Clone, Debug)]
pub enum Seen {
    /// It exists, or began to match.
    Added(Arc<Value>),
    /// It changed and still matches.
    Modified(Arc<Value>),
    /// It is gone, or stopped matching.
    Deleted(Arc<Value>),
}

impl Change {
    /// This change as a watch of one namespace (or all) with this selector sees it.
    pub fn seen(&self, namespace: Option<&str>, selector: &Selector) -> Option<Seen> {
        if namespace.is_some_and(|want| object::namespace(&self.now) != want) {
            return None;
        }
        let before = self.before.as_ref().is_some_and(|object| selector.matches(object));
        if self.deleted {
            return before.then(|| Seen::Deleted(self.now.clone()));
        }
        match (before, selector.matches(&self.now)) {
            (false, false) => None,
            (false, true) => Some(Seen::Added(self.now.clone())),
            (true, true) => Some(Seen::Modified(self.now.clone())),
            // The client is given the last state it could select, at the revision of the change.
            (true, false) => {
                self.before.as_ref().map(|object| Seen::Deleted(Arc::new(at_revision(object, self.revision))))
            }
        }
    }
}

/// The history after the asked revision is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone {
    /// The revision asked for.
    pub asked: u64,
    /// The oldest that could have been.
    pub oldest: u64,
}

/// A place in the history of a resource.
pub struct Watcher {
    resource: String,
    cursor: u64,
    changed: watch::Receiver<u64>,
}

impl Watcher {
    pub(super) fn new(resource: String, cursor: u64, changed: watch::Receiver<u64>) -> Watcher {
        Watcher { resource, cursor, changed }
    }

    /// What happened since the last call, and the revision up to which that is complete.
    pub fn drain(&mut self, store: &Store) -> Result<(Vec<Change>, u64), Gone> {
        self.changed.borrow_and_update();
        store.with(|inner| self.drain_locked(inner))
    }

    fn drain_locked(&mut self, inner: &Inner) -> Result<(Vec<Change>, u64), Gone> {
        let Some(entry) = inner.resources.get(&self.resource) else { return Ok((Vec::new(), self.cursor)) };
        if self.cursor < entry.compacted {
            return Err(Gone { asked: self.cursor, oldest: entry.compacted });
        }
        let from = entry.history.partition_point(|change| change.revision <= self.cursor);
        let changes = entry.history.range(from..).cloned().collect();
        self.cursor = self.cursor.max(inner.revision);
        Ok((changes, self.cursor))
    }

    /// Waits until there may be something to drain; false when the resource itself is gone.
    pub async fn wait(&mut self) -> bool {
        self.changed.changed().await.is_ok()
    }
}

/// A copy of the object that says this revision.
pub(super) fn at_revision(object: &Value, revision: u64) -> Value {
    let mut object = object.clone();
    object::metadata_mut(&mut object).insert("resourceVersion".into(), revision.to_string().into());
    object
}
