//! Batches on their way to the observer: numbered, kept until acknowledged, bounded. No IO, no clock.
//!
//! When the observer is away for long, no further batches are made: the counters in the table simply go on, and come
//! in one larger interval later. So bytes are late, not lost.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use wire::flow;

use super::table::{Counts, End, Lane, Pair, Table, Verdict};
use crate::flows::{Reporter, Security};

/// Rows of one batch; with their definitions they stay far below a message of 1 MiB.
const ROWS: usize = 512;
/// Batches and rows kept for an observer that is away.
const MAX_BATCHES: usize = 120;
const MAX_ROWS: usize = 65_536;
/// Without news an empty batch says that we are alive, milliseconds.
const SIGN_OF_LIFE: i64 = 10_000;
/// The observer takes no larger message.
const MAX_MESSAGE: usize = (1 << 20) - 1024;

/// What waits for the observer.
pub(super) struct Outbox {
    pub(super) epoch: u64,
    next: u64,
    waiting: VecDeque<Stored>,
    /// How many of `waiting` have been sent on this stream.
    sent: usize,
    /// Where the next interval begins.
    from: i64,
    /// The next batch names all that is open.
    baseline: bool,
    dropped: flow::Dropped,
}

struct Stored {
    sequence: u64,
    from: i64,
    to: i64,
    baseline: bool,
    rows: Vec<(Arc<Lane>, Counts)>,
    forgotten: Vec<u32>,
}

/// What one stream has been told so far.
pub(super) struct Dictionary {
    workloads: HashMap<End, u32>,
    pairs: HashSet<u32>,
    /// As many pairs as the observer keeps.
    max_pairs: usize,
}

impl Dictionary {
    /// The observer keeps so many pairs; 0: it does not say.
    pub(super) fn bounded(max_pairs: u32) -> Self {
        let max_pairs = match max_pairs {
            0 => usize::MAX,
            some => usize::try_from(some).unwrap_or(usize::MAX),
        };
        Self { workloads: HashMap::new(), pairs: HashSet::new(), max_pairs }
    }

    /// Whether the stream knows the pair; whether it may learn of it otherwise.
    fn may_name(&self, pair: u32) -> bool {
        self.pairs.contains(&pair) || self.pairs.len() < self.max_pairs
    }

    /// Workloads that the stream has been told of; they cannot be taken back.
    pub(super) fn workloads(&self) -> usize {
        self.workloads.len()
    }
}

impl Outbox {
    pub(super) fn new(epoch: u64, now: i64) -> Self {
        Self {
            epoch,
            next: 1,
            waiting: VecDeque::new(),
            sent: 0,
            from: now,
            baseline: true,
            dropped: flow::Dropped::default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// What was lost since the process began.
    pub(super) fn lost(&self, table: &Table) -> flow::Dropped {
        flow::Dropped { flows: table.dropped(), ..self.dropped }
    }

    /// Makes batches of what has happened until `now`, if there is room for them.
    pub(super) fn collect(&mut self, table: &Table, now: i64) {
        let rows: usize = self.waiting.iter().map(|stored| stored.rows.len()).sum();
        if self.waiting.len() >= MAX_BATCHES || rows >= MAX_ROWS {
            return;
        }
        let taken = table.take(self.baseline);
        let quiet = taken.rows.is_empty() && taken.forgotten.is_empty() && !self.baseline;
        if quiet && now.saturating_sub(self.from) < SIGN_OF_LIFE {
            return;
        }
        let mut rows = taken.rows.into_iter().peekable();
        let mut forgotten = taken.forgotten;
        let from = self.from.min(now);
        loop {
            let part: Vec<_> = rows.by_ref().take(ROWS).collect();
            let some: Vec<u32> = forgotten.split_off(forgotten.len().saturating_sub(8 * ROWS));
            let baseline = std::mem::take(&mut self.baseline);
            let sequence = self.next;
            self.next += 1;
            self.waiting.push_back(Stored { sequence, from, to: now, baseline, rows: part, forgotten: some });
            if rows.peek().is_none() && forgotten.is_empty() {
                break;
            }
        }
        self.from = now;
    }

    /// A new stream has begun; the observer says what it has of this epoch.
    pub(super) fn welcome(&mut self, known: bool, applied: u64) {
        self.sent = 0;
        if known {
            self.acknowledge(applied);
            return;
        }
        // It has lost all gauges. What was not made as a baseline names only a part of what is open: the rest follows
        // in the next batch that is made.
        match self.waiting.front_mut() {
            Some(first) if first.baseline => {}
            Some(first) => {
                first.baseline = true;
                self.baseline = true;
            }
            None => self.baseline = true,
        }
    }

    /// The observer has counted all batches up to `sequence`.
    pub(super) fn acknowledge(&mut self, sequence: u64) {
        while self.waiting.front().is_some_and(|stored| stored.sequence <= sequence) {
            self.waiting.pop_front();
            self.sent = self.sent.saturating_sub(1);
        }
    }

    /// Whether something has not been sent on this stream.
    pub(super) fn has_unsent(&self) -> bool {
        self.sent < self.waiting.len()
    }

    /// The next batch to send, with the definitions that the stream lacks.
    pub(super) fn next(&mut self, dictionary: &mut Dictionary, table: &Table) -> Option<flow::Batch> {
        while let Some(stored) = self.waiting.get(self.sent) {
            let (batch, left_out) = stored.encode(dictionary, self.lost(table));
            // Not sent in vain: it would refuse them.
            self.dropped.rows += left_out;
            if prost::Message::encoded_len(&batch) <= MAX_MESSAGE {
                self.sent += 1;
                return Some(batch);
            }
            // Names of a size that no cluster has. The observer would end the stream for it, for ever.
            self.dropped.batches += 1;
            self.dropped.rows += stored.rows.len() as u64;
            self.waiting.remove(self.sent);
        }
        None
    }
}

impl Stored {
    /// The batch, and how many rows had no place in it.
    fn encode(&self, dictionary: &mut Dictionary, dropped: flow::Dropped) -> (flow::Batch, u64) {
        let mut left_out = 0;
        let mut batch = flow::Batch {
            sequence: self.sequence,
            from_ms: self.from,
            to_ms: self.to,
            baseline: self.baseline,
            dropped: (dropped != flow::Dropped::default()).then_some(dropped),
            ..flow::Batch::default()
        };
        for (lane, counts) in &self.rows {
            if !dictionary.may_name(lane.id) {
                left_out += 1;
                continue;
            }
            if dictionary.pairs.insert(lane.id) {
                let source = define(&mut dictionary.workloads, &lane.pair.source, &mut batch);
                let destination = define(&mut dictionary.workloads, &lane.pair.destination, &mut batch);
                batch.pairs.push(definition(lane.id, &lane.pair, source, destination));
            }
            let small = |count: u64| u32::try_from(count).unwrap_or(u32::MAX);
            batch.rows.push(flow::Row {
                pair: lane.id,
                opened: small(counts.opened),
                closed: small(counts.closed),
                failed: small(counts.failed),
                bytes_sent: counts.sent,
                bytes_received: counts.received,
                open_now: counts.open,
                last_activity_ago_ms: small(counts.idle_ms),
            });
        }
        batch.forgotten_pairs =
            self.forgotten.iter().copied().filter(|id| dictionary.pairs.remove(id)).collect();
        (batch, left_out)
    }
}

fn define(workloads: &mut HashMap<End, u32>, end: &End, batch: &mut flow::Batch) -> u32 {
    if let Some(id) = workloads.get(end) {
        return *id;
    }
    let id = u32::try_from(workloads.len() + 1).unwrap_or(u32::MAX);
    workloads.insert(end.clone(), id);
    batch.workloads.push(flow::WorkloadDefinition {
        id,
        cluster: end.cluster.to_string(),
        namespace: end.namespace.to_string(),
        pod: end.pod.to_string(),
        workload: end.workload.to_string(),
        workload_type: end.kind.map(|kind| kind.word().to_owned()).unwrap_or_default(),
        canonical_name: end.canonical.to_string(),
        canonical_revision: end.revision.to_string(),
        node: end.node.to_string(),
        address: end.address.map(|ip| ip.to_string()).unwrap_or_default(),
        enrolled: end.enrolled,
    });
    id
}

fn definition(id: u32, pair: &Pair, source: u32, destination: u32) -> flow::PairDefinition {
    let identity =
        |identity: &Option<mesh::Identity>| identity.as_ref().map(ToString::to_string).unwrap_or_default();
    flow::PairDefinition {
        id,
        reporter: match pair.reporter {
            Reporter::Source => flow::Reporter::Source,
            Reporter::Destination => flow::Reporter::Destination,
        }
        .into(),
        source,
        destination,
        source_identity: identity(&pair.source_identity),
        destination_identity: identity(&pair.destination_identity),
        source_proven: pair.source_identity.is_some(),
        destination_proven: pair.destination_identity.is_some(),
        service: pair.service.host.to_string(),
        service_name: pair.service.name.to_string(),
        service_namespace: pair.service.namespace.to_string(),
        destination_port: pair.port.into(),
        security: match pair.security {
            Security::MutualTls => flow::Security::MutualTls,
            Security::Plaintext => flow::Security::Plaintext,
            Security::NodeLocal => flow::Security::NodeLocal,
        }
        .into(),
        verdict: match pair.verdict {
            Verdict::Allowed => flow::Verdict::Allowed,
            Verdict::Denied => flow::Verdict::Denied,
            Verdict::Failed => flow::Verdict::Failed,
        }
        .into(),
        reason: pair.reason.clone().into_owned(),
        policy: pair.policy.to_string(),
    }
}
