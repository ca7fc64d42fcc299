//! The words of the observer: what a node proxy says of the flows between two ends. Plain data, already judged at the
//! border ([`crate::ingest::parse`]); nothing here knows protobuf or a clock.

use std::net::IpAddr;
use std::sync::Arc;

/// Milliseconds since 1970-01-01 UTC.
pub type Millis = u64;

/// A text that many records share.
pub type Text = Arc<str>;

/// Which end's proxy says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Reporter {
    Source,
    Destination,
}

/// How it was carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Security {
    MutualTls,
    Plaintext,
    NodeLocal,
    Unknown,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Verdict {
    Allowed,
    Denied,
    Failed,
}

impl Reporter {
    /// The word of the API and of the metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

impl Security {
    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Plaintext => "plaintext",
            Self::NodeLocal => "node_local",
            Self::Unknown => "unknown",
        }
    }
}

impl Verdict {
    /// The word of the API.
    pub fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

/// One end of a flow as a proxy describes it. Empty texts are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct End {
    pub cluster: Text,
    pub namespace: Text,
    pub pod: Text,
    pub workload: Text,
    pub workload_type: Text,
    pub canonical_name: Text,
    pub canonical_revision: Text,
    pub node: Text,
    pub address: Option<IpAddr>,
    pub enrolled: bool,
}

/// What flows have in common that a proxy counts together.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Definition {
    pub source: Arc<End>,
    pub destination: Arc<End>,
    pub port: u16,
    pub lane: Lane,
}

/// The part of a [`Definition`] that says how, not who: one lane of the road between two ends.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Lane {
    pub reporter: Reporter,
    pub security: Security,
    pub verdict: Verdict,
    pub source_identity: Text,
    pub destination_identity: Text,
    pub source_proven: bool,
    pub destination_proven: bool,
    pub service: Text,
    pub reason: Text,
    pub policy: Text,
}

/// What was counted within some time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Bytes, server to client.
    pub sent: u64,
    /// Bytes, client to server.
    pub received: u64,
    /// Connections opened.
    pub opened: u64,
    /// Connections closed.
    pub closed: u64,
    /// Connections refused or not carried.
    pub failed: u64,
}

impl Counts {
    /// Bytes of both directions.
    pub fn bytes(&self) -> u64 {
        self.sent.saturating_add(self.received)
    }

    /// Whether nothing was counted.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// Adds what `other` counted.
    pub fn add(&mut self, other: &Self) {
        self.sent = self.sent.saturating_add(other.sent);
        self.received = self.received.saturating_add(other.received);
        self.opened = self.opened.saturating_add(other.opened);
        self.closed = self.closed.saturating_add(other.closed);
        self.failed = self.failed.saturating_add(other.failed);
    }
}

/// What changed on one pair within a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Row {
    /// The sender's number for the pair.
    pub pair: u32,
    /// Deltas.
    pub counts: Counts,
    /// Gauge: open at the end of the interval.
    pub open_now: u32,
    /// When bytes last moved, before the end of the interval.
    pub activity_ago: Millis,
}
