//! Counters of flows, one set for each pair of ends that differ in nothing an observer could ask about.
//!
//! A connection looks its pair up once, when it is established; from then on it only adds to atomics. The table is
//! bounded: what finds no room is counted as dropped.

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use mesh::{Identity, WorkloadType};
use parking_lot::RwLock;

use crate::flows::{Reporter, Security, ServiceLabels};

const SHARDS: usize = 16;
/// Pairs at once.
const MAX_PAIRS: usize = 32_768;
/// A pair without a connection and without news for this long is forgotten, milliseconds.
const IDLE: u64 = 300_000;

/// One end as far as it is known. Empty texts are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct End {
    pub(crate) cluster: Arc<str>,
    pub(crate) namespace: Arc<str>,
    pub(crate) pod: Arc<str>,
    pub(crate) workload: Arc<str>,
    pub(crate) kind: Option<WorkloadType>,
    pub(crate) canonical: Arc<str>,
    pub(crate) revision: Arc<str>,
    pub(crate) node: Arc<str>,
    pub(crate) address: Option<IpAddr>,
    pub(crate) enrolled: bool,
}

/// What became of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Verdict {
    Allowed,
    Denied,
    Failed,
}

/// What flows have in common that are counted together.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Pair {
    pub(crate) reporter: Reporter,
    pub(crate) source: End,
    pub(crate) destination: End,
    /// Identities are named only where a certificate proved them.
    pub(crate) source_identity: Option<Identity>,
    pub(crate) destination_identity: Option<Identity>,
    pub(crate) service: ServiceLabels,
    pub(crate) port: u16,
    pub(crate) security: Security,
    pub(crate) verdict: Verdict,
    pub(crate) reason: Cow<'static, str>,
    pub(crate) policy: Arc<str>,
}

/// The counters of a pair.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) id: u32,
    pub(crate) pair: Pair,
    start: Instant,
    opened: AtomicU64,
    closed: AtomicU64,
    failed: AtomicU64,
    sent: AtomicU64,
    received: AtomicU64,
    open: AtomicU32,
    /// Milliseconds after `start`.
    last: AtomicU64,
}

impl Lane {
    pub(crate) fn opened(&self) {
        self.opened.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_add(1, Ordering::Relaxed);
        self.touch();
    }

    pub(crate) fn closed(&self) {
        self.closed.fetch_add(1, Ordering::Relaxed);
        self.open.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.touch();
    }

    /// Server to client.
    pub(crate) fn sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
        self.touch();
    }

    /// Client to server.
    pub(crate) fn received(&self, bytes: u64) {
        self.received.fetch_add(bytes, Ordering::Relaxed);
        self.touch();
    }

    fn touch(&self) {
        self.last.store(millis(self.start), Ordering::Relaxed);
    }

    fn take(&self) -> Counts {
        let take = |counter: &AtomicU64| counter.swap(0, Ordering::Relaxed);
        Counts {
            // What is closed is taken first: otherwise a flow could seem to close before it opened.
            closed: take(&self.closed),
            opened: take(&self.opened),
            failed: take(&self.failed),
            sent: take(&self.sent),
            received: take(&self.received),
            open: self.open.load(Ordering::Relaxed),
            idle_ms: millis(self.start).saturating_sub(self.last.load(Ordering::Relaxed)),
        }
    }
}

/// What happened on a pair since it was last looked at; `open` is a gauge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) opened: u64,
    pub(crate) closed: u64,
    pub(crate) failed: u64,
    pub(crate) sent: u64,
    pub(crate) received: u64,
    pub(crate) open: u32,
    /// Since something moved.
    pub(crate) idle_ms: u64,
}

impl Counts {
    /// Whether nothing has happened.
    pub(crate) fn is_quiet(&self) -> bool {
        self.opened == 0 && self.closed == 0 && self.failed == 0 && self.sent == 0 && self.received == 0
    }
}

/// What the table gave.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) rows: Vec<(Arc<Lane>, Counts)>,
    /// Numbers of pairs that will not be used again.
    pub(crate) forgotten: Vec<u32>,
}

/// All pairs.
#[derive(Debug)]
pub(crate) struct Table {
    shards: [RwLock<HashMap<Pair, Arc<Lane>>>; SHARDS],
    hasher: RandomState,
    start: Instant,
    next: AtomicU32,
    count: AtomicUsize,
    dropped: AtomicU64,
    max: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self::bounded(MAX_PAIRS)
    }
}

impl Table {
    pub(super) fn bounded(max: usize) -> Self {
        Self {
            shards: Default::default(),
            hasher: RandomState::new(),
            start: Instant::now(),
            next: AtomicU32::new(1),
            count: AtomicUsize::new(0),
            dropped: AtomicU64::new(0),
            max,
        }
    }

    /// The counters of `pair`; none when the table is full.
    pub(crate) fn lane(&self, pair: Pair) -> Option<Arc<Lane>> {
        let shard = &self.shards[self.hasher.hash_one(&pair) as usize % SHARDS];
        if let Some(lane) = shard.read().get(&pair) {
            return Some(lane.clone());
        }
        let mut shard = shard.write();
        if let Some(lane) = shard.get(&pair) {
            return Some(lane.clone());
        }
        if self.count.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.count.fetch_sub(1, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        let lane = Arc::new(Lane {
            id: self.number(),
            pair: pair.clone(),
            start: self.start,
            opened: AtomicU64::new(0),
            closed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            open: AtomicU32::new(0),
            last: AtomicU64::new(millis(self.start)),
        });
        shard.insert(pair, lane.clone());
        Some(lane)
    }

    fn number(&self) -> u32 {
        match self.next.fetch_add(1, Ordering::Relaxed) {
            // Only after four thousand million pairs.
            0 => self.next.fetch_add(1, Ordering::Relaxed),
            number => number,
        }
    }

    /// Takes what has happened since the last time. With `all`, pairs with open connections are named in any case.
    pub(crate) fn take(&self, all: bool) -> Taken {
        let mut taken = Taken::default();
        for shard in &self.shards {
            let mut idle = false;
            for lane in shard.read().values() {
                let counts = lane.take();
                idle |= counts.is_quiet() && counts.open == 0 && counts.idle_ms >= IDLE;
                if !counts.is_quiet() || (all && counts.open > 0) {
                    taken.rows.push((lane.clone(), counts));
                }
            }
            if idle {
                self.forget(&mut shard.write(), &mut taken.forgotten);
            }
        }
        taken
    }

    fn forget(&self, shard: &mut HashMap<Pair, Arc<Lane>>, forgotten: &mut Vec<u32>) {
        shard.retain(|_, lane| {
            // Clones are only made under the lock of the shard, so a count of one stays one here, and nothing can
            // have happened on it since it was looked at.
            let used = Arc::strong_count(lane) > 1;
            let last = lane.last.load(Ordering::Relaxed);
            let news = lane.failed.load(Ordering::Relaxed) + lane.closed.load(Ordering::Relaxed) > 0;
            if used || news || millis(self.start).saturating_sub(last) < IDLE {
                return true;
            }
            self.count.fetch_sub(1, Ordering::Relaxed);
            forgotten.push(lane.id);
            false
        });
    }

    /// Flows that found no room.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Pairs that exist.
    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}
