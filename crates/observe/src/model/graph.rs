//! The graph and its live stream.

use serde::Serialize;

use super::{Coverage, Lock, State, Why};
use crate::flow::{Millis, Text};
use crate::why::Code;

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Graph {
    pub at: Millis,
    pub window_seconds: u64,
    pub level: &'static str,
    pub nodes: Vec<Node>,
    pub edges: Vec<Edge>,
    pub coverage: Coverage,
    pub proxies: Vec<Proxy>,
    pub limits: Limits,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Limits {
    pub workloads: usize,
    pub namespaces: usize,
    pub pods: usize,
    pub pairs: usize,
    pub edges_left_out: usize,
    pub pairs_refused: u64,
    pub rows_lost_by_proxies: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Node {
    pub id: Text,
    pub kind: &'static str,
    pub name: Text,
    pub namespace: Text,
    pub parent: Option<Text>,
    pub workload_type: Text,
    pub canonical_name: Text,
    pub canonical_revision: Text,
    pub cluster: Text,
    pub node: Text,
    pub address: String,
    pub hub: bool,
    pub mesh: bool,
    pub pods: usize,
    pub pods_enrolled: Option<usize>,
    pub identities: Vec<Text>,
    /// Why pods of it are not in the mesh, a code once, most frequent first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outside: Vec<Why>,
    pub state: State,
    pub stale_ms: Option<Millis>,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Edge {
    pub id: Text,
    pub kind: &'static str,
    pub source: Text,
    pub target: Text,
    pub state: State,
    pub lock: Lock,
    pub label: String,
    pub pairs: PairCounts,
    pub bytes: Bytes,
    pub percent_mutual_tls: Option<f64>,
    pub rate: Rate,
    pub connections: Connections,
    pub ports: Vec<u16>,
    pub services: Vec<Text>,
    pub identities: Vec<IdentityPair>,
    pub reasons: Vec<Why>,
    pub policies: Vec<Text>,
    pub exceptions: Vec<Exception>,
    pub last_activity: Option<Millis>,
    pub stale_ms: Option<Millis>,
    /// Pairs that are known from Prometheus alone: no proxy saw them, nobody counted their bytes.
    pub unseen: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct PairCounts {
    pub total: usize,
    pub proven: usize,
    pub one_sided: usize,
    pub contradiction: usize,
    pub mixed: usize,
    pub plaintext: usize,
    pub node_local: usize,
    pub denied: usize,
    pub failed: usize,
    pub idle: usize,
}

impl PairCounts {
    /// Counts one more pair.
    pub fn add(&mut self, state: State) {
        self.total += 1;
        *match state {
            State::Proven => &mut self.proven,
            State::OneSided => &mut self.one_sided,
            State::Contradiction => &mut self.contradiction,
            State::Mixed => &mut self.mixed,
            State::Plaintext => &mut self.plaintext,
            State::NodeLocal => &mut self.node_local,
            State::Denied => &mut self.denied,
            State::Failed => &mut self.failed,
            State::Idle => &mut self.idle,
        } += 1;
    }

    /// The state of all of them together: what is wrong is never hidden by what is right.
    pub fn state(&self) -> State {
        let secured = self.proven + self.one_sided + self.contradiction;
        match () {
            () if self.mixed > 0 || (self.plaintext > 0 && secured > 0) => State::Mixed,
            () if self.plaintext > 0 => State::Plaintext,
            () if self.contradiction > 0 => State::Contradiction,
            () if self.one_sided > 0 => State::OneSided,
            () if self.proven > 0 => State::Proven,
            () if self.denied > 0 => State::Denied,
            () if self.failed > 0 => State::Failed,
            () if self.node_local > 0 => State::NodeLocal,
            () => State::Idle,
        }
    }

    /// How many carried something, or tried to keep it on no wire aside.
    pub fn carried(&self) -> usize {
        self.proven + self.one_sided + self.contradiction + self.mixed + self.plaintext
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Bytes {
    pub sent: u64,
    pub received: u64,
    pub proven: u64,
    pub plaintext: u64,
    pub unproven: u64,
    pub node_local: u64,
}

impl Bytes {
    /// Adds what another counted.
    pub fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.received += other.received;
        self.proven += other.proven;
        self.plaintext += other.plaintext;
        self.unproven += other.unproven;
        self.node_local += other.node_local;
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Rate {
    pub sent: f64,
    pub received: f64,
    pub opened: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Connections {
    pub opened: u64,
    pub closed: u64,
    pub failed: u64,
    pub denied: u64,
    pub open_now: u64,
}

impl Connections {
    /// Adds what another counted.
    pub fn add(&mut self, other: &Self) {
        self.opened += other.opened;
        self.closed += other.closed;
        self.failed += other.failed;
        self.denied += other.denied;
        self.open_now += other.open_now;
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[allow(missing_docs)]
pub struct IdentityPair {
    pub source: Text,
    pub destination: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct Exception {
    pub source: Text,
    pub target: Text,
    pub port: u16,
    pub state: State,
    pub code: Code,
    pub bytes: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Proxy {
    pub node: Text,
    pub pod: Text,
    pub identity: Text,
    pub version: Text,
    pub connected: bool,
    pub last_heard: Millis,
    pub stale_ms: Option<Millis>,
    pub clock_skew_ms: i64,
    pub pairs: u32,
    pub pairs_refused: u64,
    pub rows_refused: u64,
    pub rows_lost: u64,
    pub problems: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Snapshot<'a> {
    pub sequence: &'a str,
    pub graph: &'a Graph,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Delta<'a> {
    pub sequence: &'a str,
    pub since: &'a str,
    pub at: Millis,
    pub nodes: Vec<&'a Node>,
    pub edges: Vec<&'a Edge>,
    pub removed_nodes: Vec<Text>,
    pub removed_edges: Vec<Text>,
    pub coverage: &'a Coverage,
    pub proxies: Option<&'a [Proxy]>,
    pub limits: Option<&'a Limits>,
    pub dropped: u64,
}
