//! One edge of the graph, put together from rows.

use std::collections::{BTreeSet, HashMap};

use crate::directory::Directory;
use crate::flow::{Millis, Text};
use crate::model::{
    Bytes, Connections, Edge, Exception, IdentityPair, Lock, PairCounts, Rate, State, Why, percent,
};
use crate::table::Row;
use crate::why::{Code, explain};

const PORTS: usize = 8;
const SOME: usize = 4;
const EXCEPTIONS: usize = 8;

/// What has been gathered so far.
#[derive(Default)]
pub(super) struct EdgeParts<'a> {
    pairs: PairCounts,
    bytes: Bytes,
    connections: Connections,
    ports: BTreeSet<u16>,
    services: BTreeSet<&'a Text>,
    identities: BTreeSet<&'a IdentityPair>,
    reasons: HashMap<(Code, &'a Text), (usize, &'a Row)>,
    policies: BTreeSet<&'a Text>,
    wrong: Vec<&'a Row>,
    last_activity: Option<Millis>,
    stale_ms: Option<Millis>,
    unseen: usize,
}

/// Inserts while there is room; what is there already never needs more.
fn put<T: Ord>(set: &mut BTreeSet<T>, value: T, room: usize) {
    if set.len() < room {
        set.insert(value);
    }
}

impl<'a> EdgeParts<'a> {
    pub(super) fn add(&mut self, row: &'a Row) {
        self.pairs.add(row.state);
        self.bytes.add(&row.bytes);
        self.connections.add(&row.connections);
        put(&mut self.ports, row.port, PORTS);
        if !row.service.is_empty() {
            put(&mut self.services, &row.service, SOME);
        }
        if let Some(identities) = &row.identities {
            put(&mut self.identities, identities, SOME);
        }
        if row.connections.denied > 0 && !row.policy.is_empty() {
            put(&mut self.policies, &row.policy, SOME);
        }
        if let Some(code) = row.code {
            self.reasons.entry((code, &row.reason)).or_insert((0, row)).0 += 1;
        }
        if !matches!(row.state, State::Proven | State::NodeLocal | State::Idle) {
            self.wrong.push(row);
            if self.wrong.len() > 8 * EXCEPTIONS {
                self.keep_worst();
            }
        }
        self.last_activity = self.last_activity.max(row.last_activity);
        self.stale_ms = self.stale_ms.max(row.stale_ms);
        self.unseen += usize::from(row.unseen);
    }

    fn keep_worst(&mut self) {
        self.wrong.sort_by(|a, b| {
            let key = |row: &Row| (row.state.rank(), std::cmp::Reverse(row.bytes.sent + row.bytes.received));
            let ids = |row: &'a Row| (&row.source.id, &row.target.id, row.port);
            key(a).cmp(&key(b)).then_with(|| ids(a).cmp(&ids(b)))
        });
        self.wrong.truncate(EXCEPTIONS);
    }

    pub(super) fn finish(
        mut self,
        source: Text,
        target: Text,
        trunk: bool,
        seconds: u64,
        directory: &Directory,
    ) -> Edge {
        self.keep_worst();
        let state = self.pairs.state();
        let percent = self.percent();
        let prefix = if trunk { "trunk:" } else { "" };
        let mut reasons: Vec<_> = self.reasons.into_iter().collect();
        reasons.sort_by(|((a, x), (m, _)), ((b, y), (n, _))| n.cmp(m).then_with(|| (a, x).cmp(&(b, y))));
        let why = |((code, reason), (count, row)): ((Code, &Text), (usize, &Row))| Why {
            count,
            ..explain(code, &row.source, &row.target, reason, &row.policy, directory)
        };
        let exception = |row: &Row| Exception {
            source: row.source.id.clone(),
            target: row.target.id.clone(),
            port: row.port,
            state: row.state,
            code: row.code.unwrap_or(Code::Unknown),
            bytes: row.bytes.sent + row.bytes.received,
        };
        let per_second = |count: u64| count as f64 / seconds.max(1) as f64;
        Edge {
            id: format!("{prefix}{source}>{target}").into(),
            kind: if trunk { "trunk" } else { "edge" },
            source,
            target,
            state,
            lock: state.lock(),
            label: label(state, &self.pairs, percent, &self.connections, trunk),
            pairs: self.pairs,
            bytes: self.bytes,
            percent_mutual_tls: percent,
            rate: Rate {
                sent: per_second(self.bytes.sent),
                received: per_second(self.bytes.received),
                opened: per_second(self.connections.opened),
            },
            connections: self.connections,
            ports: self.ports.into_iter().collect(),
            services: self.services.into_iter().cloned().collect(),
            identities: self.identities.into_iter().cloned().collect(),
            reasons: reasons.into_iter().take(SOME).map(why).collect(),
            policies: self.policies.into_iter().cloned().collect(),
            exceptions: self.wrong.into_iter().map(exception).collect(),
            last_activity: self.last_activity,
            stale_ms: self.stale_ms,
            unseen: self.unseen,
        }
    }

    /// Of bytes; of pairs where none moved, or where nobody counted all of them.
    fn percent(&self) -> Option<f64> {
        let bytes = &self.bytes;
        let total = bytes.proven + bytes.plaintext + bytes.unproven;
        let of_pairs = || percent(self.pairs.proven as u64, self.pairs.carried() as u64);
        percent(bytes.proven, total).filter(|_| self.unseen == 0).or_else(of_pairs)
    }
}

/// The edge in a few words. What was refused is said beside what was carried: a policy may be newer than the traffic.
fn label(
    state: State,
    pairs: &PairCounts,
    percent: Option<f64>,
    connections: &Connections,
    trunk: bool,
) -> String {
    let carried = carried(state, pairs, percent, connections, trunk);
    match connections.denied {
        0 => carried,
        _ if state == State::Denied && !trunk => carried,
        denied => format!("{carried} · {denied} denied"),
    }
}

fn carried(
    state: State,
    pairs: &PairCounts,
    percent: Option<f64>,
    connections: &Connections,
    trunk: bool,
) -> String {
    let denied = pairs.denied + pairs.failed;
    if trunk && (pairs.carried() > 0 || denied > 0) {
        return format!("{}/{} mTLS", pairs.proven, pairs.carried() + denied);
    }
    match (state, state.lock()) {
        (State::Denied, _) => format!("denied {}", connections.denied),
        (State::Failed, _) => format!("failed {}", connections.failed),
        (State::NodeLocal, _) => "node-local".into(),
        (State::OneSided, _) => "one-sided".into(),
        (State::Contradiction, _) => "contradiction".into(),
        (State::Plaintext, _) => "plaintext".into(),
        (State::Proven, Lock::Closed) => "mTLS".into(),
        _ => percent.map(|percent| format!("{percent:.2} % mTLS")).unwrap_or_default(),
    }
}
