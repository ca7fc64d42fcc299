//! What the store knows of each node proxy that reports to it: its lives (epochs), how far each has been counted, and
//! what had to be refused of it.

use crate::flow::{Millis, Text};

/// Number of a proxy in the store.
pub type ProxyId = u32;

/// Lives of a proxy that are remembered; more is a proxy that restarts in a loop.
const EPOCHS: usize = 4;

/// A node proxy: one pod on one node.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// Kubernetes node it serves.
    pub node: Text,
    /// `namespace/name` of its pod.
    pub pod: Text,
    /// The identity its certificate proved.
    pub identity: Text,
    /// Its version, for people.
    pub version: Text,
    /// Streams open now.
    pub connected: u32,
    /// When it was heard last, by our clock.
    pub heard: Millis,
    /// When it last tried, whether or not it was let in.
    pub tried: Millis,
    /// Its clock minus ours when it said hello.
    pub skew_ms: i64,
    /// Pairs that it defined and that are kept.
    pub lanes: u32,
    /// Pairs refused, being beyond its bound.
    pub pairs_refused: u64,
    /// Rows refused: unreadable, or about pods of other nodes.
    pub rows_refused: u64,
    /// Why rows were refused the last time.
    pub last_refusal: Option<String>,
    /// Batches, rows and flows that it dropped itself, by its own count, over all its lives that we saw.
    pub lost: Lost,
    /// Its lives, newest last: (epoch, highest sequence applied, what it lost in that life).
    epochs: Vec<(u64, u64, Lost)>,
}

/// What a sender dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Lost {
    pub batches: u64,
    pub rows: u64,
    pub flows: u64,
}

impl Proxy {
    /// A proxy that was never heard of.
    pub fn new(node: Text, pod: Text) -> Self {
        Self {
            node,
            pod,
            identity: "".into(),
            version: "".into(),
            connected: 0,
            heard: 0,
            tried: 0,
            skew_ms: 0,
            lanes: 0,
            pairs_refused: 0,
            rows_refused: 0,
            last_refusal: None,
            lost: Lost::default(),
            epochs: Vec::new(),
        }
    }

    /// The highest sequence applied of an epoch; none when the epoch is not known.
    pub fn applied(&self, epoch: u64) -> Option<u64> {
        self.epochs.iter().find(|(known, ..)| *known == epoch).map(|(_, applied, _)| *applied)
    }

    /// Whether this is the life that was greeted last.
    pub fn is_current(&self, epoch: u64) -> bool {
        self.epochs.last().is_some_and(|(newest, ..)| *newest == epoch)
    }

    /// A life begins or goes on. True when it is a new one.
    pub fn begin(&mut self, epoch: u64) -> bool {
        match self.epochs.iter().position(|(known, ..)| *known == epoch) {
            Some(at) => {
                let life = self.epochs.remove(at);
                self.epochs.push(life);
                false
            }
            None => {
                if self.epochs.len() == EPOCHS {
                    self.epochs.remove(0);
                }
                self.epochs.push((epoch, 0, Lost::default()));
                true
            }
        }
    }

    /// A batch has been applied.
    pub fn advance(&mut self, epoch: u64, sequence: u64, lost: Lost) {
        let Some((_, applied, before)) = self.epochs.iter_mut().find(|(known, ..)| *known == epoch) else {
            return;
        };
        *applied = sequence;
        self.lost.batches += lost.batches.saturating_sub(before.batches);
        self.lost.rows += lost.rows.saturating_sub(before.rows);
        self.lost.flows += lost.flows.saturating_sub(before.flows);
        *before = lost;
    }

    /// How long it has been silent, if that is long enough to say so.
    pub fn stale(&self, now: Millis) -> Option<Millis> {
        let silent = now.saturating_sub(self.heard);
        (silent > super::SILENT).then_some(silent)
    }
}
