//! The answers of the API, field by field as `openapi.json` describes them.

use serde::Serialize;

use crate::flow::{Millis, Text};
use crate::why::Code;

/// What two pods' traffic is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum State {
    Proven,
    OneSided,
    Contradiction,
    Mixed,
    Plaintext,
    NodeLocal,
    Denied,
    Failed,
    Idle,
}

/// What the padlock shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Lock {
    Closed,
    Open,
    Unproven,
    None,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Proven,
        Self::OneSided,
        Self::Contradiction,
        Self::Mixed,
        Self::Plaintext,
        Self::NodeLocal,
        Self::Denied,
        Self::Failed,
        Self::Idle,
    ];

    /// The padlock of traffic in this state.
    pub fn lock(self) -> Lock {
        match self {
            Self::Proven => Lock::Closed,
            Self::Mixed | Self::Plaintext => Lock::Open,
            Self::OneSided | Self::Contradiction => Lock::Unproven,
            Self::NodeLocal | Self::Denied | Self::Failed | Self::Idle => Lock::None,
        }
    }

    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Proven => "proven",
            Self::OneSided => "one_sided",
            Self::Contradiction => "contradiction",
            Self::Mixed => "mixed",
            Self::Plaintext => "plaintext",
            Self::NodeLocal => "node_local",
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::Idle => "idle",
        }
    }

    /// How much it wants to be seen: the worst is the smallest.
    pub fn rank(self) -> u8 {
        match self {
            Self::Plaintext => 0,
            Self::Mixed => 1,
            Self::Contradiction => 2,
            Self::OneSided => 3,
            Self::Denied => 4,
            Self::Failed => 5,
            Self::NodeLocal => 6,
            Self::Proven => 7,
            Self::Idle => 8,
        }
    }
}

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
pub struct Why {
    pub code: Code,
    pub reason: Text,
    pub text: String,
    pub fix: String,
    pub command: String,
    pub count: usize,
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

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Coverage {
    pub by_bytes: Measure,
    pub by_connections: Measure,
    pub by_pairs: Measure,
    pub denied: u64,
    pub failed: u64,
    pub denominator: &'static str,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Measure {
    pub total: u64,
    pub proven: u64,
    pub unproven: u64,
    pub plaintext: u64,
    pub percent: Option<f64>,
}

impl Measure {
    /// Sums, and the percentage of them.
    pub fn of(proven: u64, unproven: u64, plaintext: u64) -> Self {
        let total = proven + unproven + plaintext;
        Self { total, proven, unproven, plaintext, percent: percent(proven, total) }
    }
}

/// Cut to hundredths, so that 100 means all and 0 means none.
pub fn percent(part: u64, total: u64) -> Option<f64> {
    if total == 0 {
        return None;
    }
    let hundredths = u128::from(part) * 10_000 / u128::from(total);
    Some(hundredths as f64 / 100.0)
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

/// How a scrape is secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Proof {
    // Worst first: rows are sorted so.
    Plaintext,
    Unproven,
    OneSided,
    Denied,
    Proven,
}

impl Proof {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Plaintext, Self::Unproven, Self::OneSided, Self::Denied, Self::Proven];

    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Unproven => "unproven",
            Self::OneSided => "one_sided",
            Self::Denied => "denied",
            Self::Proven => "proven",
        }
    }
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Targets {
    pub at: Millis,
    pub prometheis: Vec<Prometheus>,
    pub summary: ProofCounts,
    pub total: usize,
    pub targets: Vec<Target>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)]
pub struct ProofCounts {
    pub total: usize,
    pub proven: usize,
    pub one_sided: usize,
    pub plaintext: usize,
    pub denied: usize,
    pub unproven: usize,
    pub up: usize,
}

impl ProofCounts {
    /// Counts one more target.
    pub fn add(&mut self, proof: Proof, up: bool) {
        self.total += 1;
        self.up += usize::from(up);
        *match proof {
            Proof::Proven => &mut self.proven,
            Proof::OneSided => &mut self.one_sided,
            Proof::Plaintext => &mut self.plaintext,
            Proof::Denied => &mut self.denied,
            Proof::Unproven => &mut self.unproven,
        } += 1;
    }

    /// How many have a proof.
    pub fn of(&self, proof: Proof) -> usize {
        match proof {
            Proof::Proven => self.proven,
            Proof::OneSided => self.one_sided,
            Proof::Plaintext => self.plaintext,
            Proof::Denied => self.denied,
            Proof::Unproven => self.unproven,
        }
    }
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Prometheus {
    pub id: Text,
    pub url: String,
    pub namespace: Text,
    pub pod: Text,
    pub identity: Text,
    pub enrolled: Option<bool>,
    pub reachable: bool,
    pub error: String,
    pub polled_at: Option<Millis>,
    pub summary: ProofCounts,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Target {
    pub id: String,
    pub prometheus: Text,
    pub pool: Text,
    pub scrape_url: String,
    pub address: String,
    pub health: &'static str,
    pub last_error: String,
    pub last_scrape: Option<Millis>,
    pub last_scrape_duration_ms: f64,
    pub scrape_interval_ms: Millis,
    pub proof: Proof,
    pub namespace: Text,
    pub pod: Text,
    pub workload: Text,
    pub node: Text,
    pub target_id: Text,
    pub source_identity: Text,
    pub destination_identity: Text,
    pub why: Option<Why>,
    pub notes: Vec<Why>,
    pub evidence: Evidence,
}

#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Evidence {
    pub from: Option<Millis>,
    pub to: Option<Millis>,
    pub records: Vec<Record>,
    pub text: String,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Overview {
    pub at: Millis,
    pub window_seconds: u64,
    pub coverage: Coverage,
    pub plaintext: Vec<Finding>,
    pub unproven: Vec<Finding>,
    pub denied: Vec<Finding>,
    pub failed: Vec<Finding>,
    pub namespaces: Vec<NamespaceRow>,
    pub scrapes: ProofCounts,
    pub prometheis: Vec<Prometheus>,
    pub blind: Blind,
    pub proxies: Vec<Proxy>,
    pub limits: Limits,
    pub hints: Vec<Hint>,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Finding {
    pub source: Text,
    pub target: Text,
    pub source_name: String,
    pub target_name: String,
    pub ports: Vec<u16>,
    pub why: Why,
    pub policy: Text,
    pub pairs: usize,
    pub bytes: u64,
    pub connections: u64,
    pub last_activity: Option<Millis>,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct NamespaceRow {
    pub id: Text,
    pub name: Text,
    pub labelled: Option<bool>,
    pub pods: Option<usize>,
    pub pods_enrolled: Option<usize>,
    pub pods_host_network: Option<usize>,
    pub coverage: Measure,
    pub denied: u64,
    pub sparkline: Vec<u64>,
}

#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Blind {
    pub known: bool,
    pub pods_enrolled: usize,
    pub pods_not_enrolled: usize,
    pub pods_host_network: usize,
    pub namespaces_not_enrolled: Vec<Text>,
    pub silent_nodes: Vec<Text>,
    pub text: String,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Hint {
    pub code: &'static str,
    pub text: String,
    pub command: String,
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn a_hundred_means_all_and_nothing_is_rounded_up() {
        assert_eq!(percent(9_999_999, 10_000_000), Some(99.99));
        assert_eq!((percent(5, 5), percent(0, 5), percent(0, 0)), (Some(100.0), Some(0.0), None));
        assert_eq!(percent(u64::MAX - 1, u64::MAX), Some(99.99));
    }
}
