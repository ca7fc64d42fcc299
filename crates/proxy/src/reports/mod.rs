//! What the observer is told of the flows of this node: who talks to whom, how secured, how many bytes.
//!
//! [`table`] counts, fed by the one handle that every flow has; [`outbox`] makes batches of the counts and keeps them,
//! bounded, until the observer has acknowledged them; [`stream`] carries them there. A slow, unreachable or restarted
//! observer never holds up a connection: counters go on growing where they are, and what cannot be counted at all is
//! itself counted.

mod outbox;
mod stream;
mod table;

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use tokio::sync::Notify;

use outbox::Outbox;
pub(crate) use stream::Observer;
pub(crate) use table::{End, Lane, Pair, Table, Verdict};

/// How often counts are taken, unless the observer wants them more rarely.
const INTERVAL: Duration = Duration::from_secs(1);
/// However rarely it wants them: the graph is to be of today.
const MAX_INTERVAL: Duration = Duration::from_secs(60);
/// How long the end of the process waits for the last batch.
const LAST_WORDS: Duration = Duration::from_millis(1500);

/// The reports of this proxy. Clones share them.
#[derive(Clone)]
pub(crate) struct Reports(Arc<Inner>);

struct Inner {
    table: Arc<Table>,
    outbox: Mutex<Outbox>,
    news: Notify,
    delivered: Notify,
    connected: AtomicBool,
    acknowledged: AtomicU64,
    refused: AtomicU64,
    /// How often the observer wants counts, milliseconds.
    interval_ms: AtomicU32,
}

impl Reports {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Inner {
            table: Arc::default(),
            outbox: Mutex::new(Outbox::new(rand::random::<u64>().max(1), unix_ms())),
            news: Notify::new(),
            delivered: Notify::new(),
            connected: AtomicBool::new(false),
            acknowledged: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            interval_ms: AtomicU32::new(0),
        }))
    }

    /// Where flows are counted.
    pub(crate) fn table(&self) -> Arc<Table> {
        self.0.table.clone()
    }

    /// Takes counts each second and brings them to `observer`, for ever.
    pub(crate) async fn run(self, observer: Observer) {
        let collecting = async {
            let mut next = tokio::time::Instant::now();
            loop {
                tokio::time::sleep_until(next).await;
                self.collect();
                // What was missed is not made up for: the counters have gone on.
                next = (next + self.interval()).max(tokio::time::Instant::now());
            }
        };
        tokio::join!(collecting, observer.serve(&self));
    }

    fn interval(&self) -> Duration {
        let wanted = Duration::from_millis(self.0.interval_ms.load(Ordering::Relaxed).into());
        wanted.clamp(INTERVAL, MAX_INTERVAL)
    }

    fn collect(&self) {
        self.0.outbox.lock().collect(&self.0.table, unix_ms());
        self.0.news.notify_one();
    }

    /// Brings the last counts away before the process ends; bounded.
    pub(crate) async fn finish(&self) {
        if !self.0.connected.load(Ordering::Relaxed) {
            return;
        }
        self.collect();
        let delivered = async {
            loop {
                let notified = self.0.delivered.notified();
                if self.0.outbox.lock().is_empty() {
                    return;
                }
                notified.await;
            }
        };
        let _ = tokio::time::timeout(LAST_WORDS, delivered).await;
    }

    /// Metrics of the reporting itself.
    pub(crate) fn encode(&self, out: &mut String) {
        let inner = &self.0;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let waiting = inner.outbox.lock().len() as u64;
        let lost = inner.outbox.lock().lost(&inner.table);
        for (name, help, value) in [
            (
                "ambit_flow_connected",
                "Whether the observer takes reports",
                u64::from(inner.connected.load(Ordering::Relaxed)),
            ),
            ("ambit_flow_pairs", "Pairs that are counted for the observer", inner.table.len() as u64),
            ("ambit_flow_batches_waiting", "Batches that the observer has not acknowledged", waiting),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} gauge\n{name} {value}");
        }
        for (name, help, value) in [
            ("ambit_flow_batches", "Batches that the observer has acknowledged", load(&inner.acknowledged)),
            ("ambit_flow_rows_refused", "Rows that the observer did not take", load(&inner.refused)),
            ("ambit_flow_batches_dropped", "Batches thrown away before they were acknowledged", lost.batches),
            ("ambit_flow_flows_dropped", "Flows not reported, since the table of pairs was full", lost.flows),
        ] {
            let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} counter\n{name}_total {value}");
        }
    }
}

/// Milliseconds since 1970 by our clock.
fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
