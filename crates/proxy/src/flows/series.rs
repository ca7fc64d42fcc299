//! The counters of the flows, one set for each pair of workloads, service and security.
//!
//! Label texts are rendered once a series; a connection only looks its series up. Series without a live flow are
//! dropped when nothing has happened on them for long.

use std::collections::HashMap;
use std::fmt::Write;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mesh::ResponseFlag;
use parking_lot::RwLock;

use super::labels::Labels;

const SHARDS: usize = 16;

/// All flags, in the order of the arrays of a [`Series`].
const FLAGS: [ResponseFlag; 8] = [
    ResponseFlag::None,
    ResponseFlag::Deny,
    ResponseFlag::Connect,
    ResponseFlag::TlsFailure,
    ResponseFlag::H2HandshakeFailure,
    ResponseFlag::NetworkPolicy,
    ResponseFlag::IdentityError,
    ResponseFlag::CertRevoked,
];

/// Counters of one set of labels.
#[derive(Debug)]
pub(super) struct Series {
    text: String,
    pub(super) opened: AtomicU64,
    /// Client to server.
    pub(super) received: AtomicU64,
    /// Server to client.
    pub(super) sent: AtomicU64,
    closed: [AtomicU64; FLAGS.len()],
    /// Seconds since the start of the registry.
    touched: AtomicU64,
    pub(super) source_principal: Option<Arc<str>>,
    pub(super) destination_principal: Option<Arc<str>>,
}

impl Series {
    fn new(labels: &Labels) -> Self {
        let principal =
            |side: &super::Side| side.principal.as_ref().map(|identity| identity.to_string().into());
        Self {
            text: labels.render(),
            opened: AtomicU64::new(0),
            received: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            closed: Default::default(),
            touched: AtomicU64::new(0),
            source_principal: principal(&labels.source),
            destination_principal: principal(&labels.destination),
        }
    }

    pub(super) fn close(&self, flag: ResponseFlag) {
        let index = FLAGS.iter().position(|known| *known == flag).unwrap_or(0);
        self.closed[index].fetch_add(1, Ordering::Relaxed);
    }
}

/// All series.
#[derive(Debug)]
pub(super) struct Registry {
    shards: [RwLock<HashMap<Labels, Arc<Series>>>; SHARDS],
    hasher: RandomState,
    start: Instant,
}

impl Default for Registry {
    fn default() -> Self {
        Self { shards: Default::default(), hasher: RandomState::new(), start: Instant::now() }
    }
}

impl Registry {
    /// The series of `labels`; made when there is none.
    pub(super) fn get(&self, labels: Labels) -> Arc<Series> {
        let shard = &self.shards[self.hasher.hash_one(&labels) as usize % SHARDS];
        let now = self.start.elapsed().as_secs();
        let found = shard.read().get(&labels).cloned();
        let series = found.unwrap_or_else(|| {
            let mut series = shard.write();
            series.entry(labels).or_insert_with_key(|labels| Arc::new(Series::new(labels))).clone()
        });
        series.touched.store(now, Ordering::Relaxed);
        series
    }

    pub(super) fn touch(&self, series: &Series) {
        series.touched.store(self.start.elapsed().as_secs(), Ordering::Relaxed);
    }

    /// Forgets series that no flow uses and that have rested for `idle`.
    pub(super) fn sweep(&self, idle: Duration) {
        let now = self.start.elapsed().as_secs();
        for shard in &self.shards {
            shard.write().retain(|_, series| {
                // Clones are only made under the lock of the shard, so a count of one stays one here.
                let used = Arc::strong_count(series) > 1;
                used || now.saturating_sub(series.touched.load(Ordering::Relaxed)) < idle.as_secs()
            });
        }
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.read().len()).sum()
    }

    /// The counters in OpenMetrics text.
    pub(super) fn encode(&self, out: &mut String) {
        let mut all: Vec<Arc<Series>> = Vec::new();
        for shard in &self.shards {
            all.extend(shard.read().values().cloned());
        }
        all.sort_by(|a, b| a.text.cmp(&b.text));
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        type Read = fn(&Series) -> &AtomicU64;
        let plain: [(&str, &str, Read); 3] = [
            ("istio_tcp_connections_opened", "The total number of TCP connections opened", |s| &s.opened),
            ("istio_tcp_received_bytes", "The size of total bytes received during request", |s| &s.received),
            ("istio_tcp_sent_bytes", "The size of total bytes sent during response", |s| &s.sent),
        ];
        for (name, help, read) in plain {
            family(out, name, help);
            for series in &all {
                let _ = writeln!(
                    out,
                    "{name}_total{{{},response_flags=\"-\"}} {}",
                    series.text,
                    load(read(series))
                );
            }
        }
        let closed = |out: &mut String, name: &str, flags: &[ResponseFlag]| {
            for series in &all {
                for (flag, counter) in FLAGS.iter().zip(&series.closed) {
                    let count = load(counter);
                    if count > 0 && flags.contains(flag) {
                        let flag = flag.as_str();
                        let _ = writeln!(
                            out,
                            "{name}_total{{{},response_flags=\"{flag}\"}} {count}",
                            series.text
                        );
                    }
                }
            }
        };
        family(out, "istio_tcp_connections_closed", "The total number of TCP connections closed");
        closed(out, "istio_tcp_connections_closed", &FLAGS);
        family(out, "istio_tcp_connections_failed", "The total number of TCP connections that failed");
        closed(out, "istio_tcp_connections_failed", &FLAGS[1..]);
    }
}

fn family(out: &mut String, name: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} counter");
}
