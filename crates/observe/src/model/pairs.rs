//! What stands behind an edge.

use serde::Serialize;

use super::{Bytes, Connections, Lock, State, Why};
use crate::flow::{Millis, Text};

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Pairs {
    pub at: Millis,
    pub window_seconds: u64,
    pub total: usize,
    pub pairs: Vec<Pair>,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Pair {
    pub source: End,
    pub target: End,
    pub port: u16,
    pub state: State,
    pub lock: Lock,
    pub why: Option<Why>,
    pub bytes: Bytes,
    pub connections: Connections,
    pub records: Vec<Record>,
    pub last_activity: Option<Millis>,
    pub stale_ms: Option<Millis>,
    /// Known from Prometheus alone: there are no records.
    pub unseen: bool,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct End {
    pub id: Text,
    pub workload_id: Text,
    pub namespace: Text,
    pub pod: Text,
    pub workload: Text,
    pub workload_type: Text,
    pub address: String,
    pub node: Text,
    pub enrolled: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Record {
    pub reporter: &'static str,
    pub proxy_node: Text,
    pub proxy_pod: Text,
    pub security: &'static str,
    pub verdict: &'static str,
    pub reason: Text,
    pub policy: Text,
    pub source_identity: Text,
    pub destination_identity: Text,
    pub source_proven: bool,
    pub destination_proven: bool,
    pub service: Text,
    pub sent: u64,
    pub received: u64,
    pub opened: u64,
    pub closed: u64,
    pub failed: u64,
    pub open_now: u32,
    pub sent_total: u64,
    pub received_total: u64,
    pub last_activity: Option<Millis>,
}
