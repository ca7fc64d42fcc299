//! The live connections of a pod: listed for dumps, and judged anew when policies or the workload change.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh::{Connection, Identity, Policy, Verdict, View, Workload, authorize};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// All live connections of one pod. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Connections(Arc<Mutex<Live>>);

#[derive(Default)]
struct Live {
    next: u64,
    by_id: HashMap<u64, Entry>,
}

struct Entry {
    row: Row,
    /// For inbound connections: the facts that policies ask about, and how to say that they are no longer allowed.
    judged: Option<(Connection, Option<oneshot::Sender<Verdict>>)>,
    /// For outbound connections: whom the other end has proven to be.
    proven: Option<Box<Identity>>,
}

impl Entry {
    /// Whom the other end has proven to be.
    fn identity(&self) -> Option<&Identity> {
        let caller = self.judged.as_ref().and_then(|(connection, _)| connection.identity.as_ref());
        caller.or(self.proven.as_deref())
    }
}

/// A connection in a dump.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) src: SocketAddr,
    /// Outbound: where the application wanted to go; inbound: the service that was called, if one was.
    pub(crate) original: Option<String>,
    pub(crate) actual: SocketAddr,
    pub(crate) protocol: &'static str,
}

/// Takes the connection off the list when dropped.
pub(crate) struct Registration {
    connections: Connections,
    id: u64,
    revoked: Option<oneshot::Receiver<Verdict>>,
}

impl Connections {
    /// Lists an outbound connection.
    pub(crate) fn outbound(&self, row: Row) -> Registration {
        self.insert(row, None, None)
    }

    /// Lists an inbound connection, to be judged anew when something changes.
    pub(crate) fn inbound(&self, row: Row, connection: Connection) -> Registration {
        let (revoke, revoked) = oneshot::channel();
        self.insert(row, Some((connection, Some(revoke))), Some(revoked))
    }

    fn insert(
        &self,
        row: Row,
        judged: Option<(Connection, Option<oneshot::Sender<Verdict>>)>,
        revoked: Option<oneshot::Receiver<Verdict>>,
    ) -> Registration {
        let mut live = self.0.lock();
        live.next += 1;
        let id = live.next;
        live.by_id.insert(id, Entry { row, judged, proven: None });
        Registration { connections: self.clone(), id, revoked }
    }

    /// Revokes what is no longer allowed. Policies that are not known yet say nothing about what runs already.
    pub(crate) fn judge(&self, view: &View, workload: &Workload) {
        let mut live = self.0.lock();
        for entry in live.by_id.values_mut() {
            let Some((connection, revoke)) = &mut entry.judged else { continue };
            let verdict = authorize(view, workload, connection);
            if matches!(verdict, Verdict::Denied(_) | Verdict::NotAllowed(_))
                && let Some(revoke) = revoke.take()
            {
                let _ = revoke.send(verdict);
            }
        }
    }

    /// For dumps.
    pub(crate) fn dump(&self) -> Value {
        let live = self.0.lock();
        let mut rows: Vec<_> = live.by_id.iter().collect();
        rows.sort_by_key(|(id, _)| **id);
        let list = |inbound: bool| -> Vec<Value> {
            let rows = rows.iter().filter(|(_, entry)| entry.judged.is_some() == inbound);
            let entry = |entry: &Entry| {
                let row = &entry.row;
                let mut shown = json!({
                    "src": row.src.to_string(),
                    "originalDst": row.original,
                    "actualDst": row.actual.to_string(),
                    "protocol": row.protocol,
                });
                if let Some(identity) = entry.identity() {
                    shown["identity"] = identity.to_string().into();
                }
                shown
            };
            rows.map(|(_, shown)| entry(shown)).collect()
        };
        json!({ "inbound": list(true), "outbound": list(false) })
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().by_id.len()
    }
}

impl Registration {
    /// The other end of an outbound connection has proven to be `identity`.
    pub(crate) fn proven(&self, identity: &Identity) {
        if let Some(entry) = self.connections.0.lock().by_id.get_mut(&self.id) {
            entry.proven = Some(Box::new(identity.clone()));
        }
    }

    /// Waits until the connection is no longer allowed.
    pub(crate) async fn revoked(&mut self) -> Verdict {
        match &mut self.revoked {
            Some(revoked) => match revoked.await {
                Ok(verdict) => verdict,
                Err(_) => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.connections.0.lock().by_id.remove(&self.id);
    }
}

/// What a pod's connections are judged by; equal objects mean that nothing has to be judged anew.
#[derive(Default)]
pub(crate) struct Basis {
    workload: Option<Arc<Workload>>,
    policies: Vec<Arc<Policy>>,
}

impl Basis {
    pub(crate) fn of(view: &View, workload: &Arc<Workload>) -> Self {
        let policies = view.policies_for(workload).cloned().collect();
        Self { workload: Some(workload.clone()), policies }
    }

    /// Whether nothing has changed.
    pub(crate) fn same(&self, other: &Self) -> bool {
        let workload = match (&self.workload, &other.workload) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        workload
            && self.policies.len() == other.policies.len()
            && self.policies.iter().zip(&other.policies).all(|(a, b)| Arc::ptr_eq(a, b))
    }
}

#[cfg(test)]
mod tests;
