//! Accounting: one handle a flow, and its counters feed the metrics, the access log and the list of live
//! connections alike, so that they cannot disagree.
//!
//! [`Flows::open`] is the only door. A [`Flow`] counts while bytes move and writes its line when it ends, also when
//! it is simply dropped.

mod labels;
mod log;
mod opening;
mod refused;
mod series;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mesh::{Identity, ResponseFlag};
use parking_lot::Mutex;

pub(crate) use labels::escape;
pub use labels::{Reporter, Security, ServiceLabels, Side};
pub use opening::Opening;
pub(crate) use refused::Refused;
use series::{Registry, Series};

use crate::copy::Meter;
use crate::failure::Failure;
use crate::reports::{self, Lane};

/// Series that nobody used for this long are dropped.
const IDLE_SERIES: Duration = Duration::from_secs(1800);

/// Policies and outcomes that are counted.
const MAX_DRY_RUN: usize = 4096;

/// All accounting of the proxy.
#[derive(Debug, Default)]
pub struct Flows {
    registry: Registry,
    sockets: [AtomicI64; 2],
    /// What is counted for the observer; none: nothing is.
    reports: Option<Arc<reports::Table>>,
    /// Connections refused before their context was known, by reporter and reason.
    refused: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    /// Connections that were refused or ended since a certificate has been revoked, by reporter.
    revoked: [AtomicU64; 2],
    /// What policies that are only tried out would have done, by policy and word.
    dry_run: Mutex<BTreeMap<(mesh::PolicyKey, &'static str), u64>>,
}

/// One TCP connection as the mesh saw it. Dropped without [`Flow::close`], it was cut by a drain.
pub struct Flow {
    flows: Arc<Flows>,
    first: Opening,
    /// The same with what whoever serves it said of itself.
    answered: OnceLock<Box<Opening>>,
    /// Once it counts.
    series: OnceLock<Arc<Series>>,
    since: Instant,
    up: AtomicU64,
    down: AtomicU64,
    closed: AtomicBool,
    /// Once it is established, its counters for the observer.
    lane: OnceLock<Option<Arc<Lane>>>,
}

impl Flows {
    /// Opens a flow.
    pub fn open(self: &Arc<Self>, opening: Opening) -> Flow {
        self.sockets[opening.reporter as usize].fetch_add(1, Ordering::Relaxed);
        let late = opening.late;
        let flow = Flow {
            flows: self.clone(),
            first: opening,
            answered: OnceLock::new(),
            series: OnceLock::new(),
            since: Instant::now(),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            lane: OnceLock::new(),
        };
        if !late {
            flow.series();
        }
        flow
    }

    /// All accounting, with counts for the observer.
    pub(crate) fn reporting(table: Arc<reports::Table>) -> Self {
        Self { reports: Some(table), ..Self::default() }
    }

    /// Counts what a policy that is only tried out would have done.
    pub(crate) fn dry_run(&self, outcome: &mesh::DryRun) {
        let Some(policy) = outcome.policy() else { return };
        let mut counts = self.dry_run.lock();
        if counts.len() < MAX_DRY_RUN || counts.contains_key(&(policy.clone(), outcome.word())) {
            *counts.entry((policy.clone(), outcome.word())).or_default() += 1;
        }
    }

    /// Drops series that have rested for long.
    pub fn sweep(&self) {
        self.registry.sweep(IDLE_SERIES);
    }

    /// Connections open now, at both ends.
    pub(crate) fn open_now(&self) -> i64 {
        self.sockets.iter().map(|open| open.load(Ordering::Relaxed)).sum()
    }

    /// Series that exist.
    pub fn series(&self) -> usize {
        self.registry.len()
    }

    /// All counters in OpenMetrics text.
    pub fn encode(&self, out: &mut String) {
        use std::fmt::Write;
        self.registry.encode(out);
        out.push_str(
            "# HELP istio_tcp_sockets_open Connections open now.\n# TYPE istio_tcp_sockets_open gauge\n",
        );
        for reporter in [Reporter::Source, Reporter::Destination] {
            let open = self.sockets[reporter as usize].load(Ordering::Relaxed);
            let _ = writeln!(out, "istio_tcp_sockets_open{{reporter=\"{}\"}} {open}", reporter.as_str());
        }
        out.push_str(
            "# HELP ambit_connections_refused Connections refused before their context was known.\n",
        );
        out.push_str("# TYPE ambit_connections_refused counter\n");
        for ((reporter, reason), count) in self.refused.lock().iter() {
            let labels = format!("reporter=\"{reporter}\",reason=\"{reason}\"");
            let _ = writeln!(out, "ambit_connections_refused_total{{{labels}}} {count}");
        }
        out.push_str(
            "# HELP istio_crl_policy_rejections Connections refused or ended for a revoked certificate.\n",
        );
        out.push_str("# TYPE istio_crl_policy_rejections counter\n");
        for reporter in [Reporter::Source, Reporter::Destination] {
            let count = self.revoked[reporter as usize].load(Ordering::Relaxed);
            let _ = writeln!(
                out,
                "istio_crl_policy_rejections_total{{reporter=\"{}\"}} {count}",
                reporter.as_str()
            );
        }
        // A peer whose certificates could not be looked up in a list would not have got past the handshake.
        out.push_str(
            "# HELP istio_crl_untracked_connections Connections that a list could not be applied to.\n",
        );
        out.push_str(
            "# TYPE istio_crl_untracked_connections counter\nistio_crl_untracked_connections_total 0\n",
        );
        out.push_str("# HELP ambit_policy_dry_run What policies that are only tried out would have done.\n");
        out.push_str("# TYPE ambit_policy_dry_run counter\n");
        for ((policy, outcome), count) in self.dry_run.lock().iter() {
            out.push_str("ambit_policy_dry_run_total{policy=\"");
            escape(out, policy);
            let _ = writeln!(out, "\",outcome=\"{outcome}\"}} {count}");
        }
    }
}

impl Flow {
    /// What is known of it by now.
    fn opening(&self) -> &Opening {
        self.answered.get().map_or(&self.first, |opening| opening)
    }

    /// Its counters; opened with the first use.
    fn series(&self) -> &Arc<Series> {
        self.series.get_or_init(|| {
            let opening = self.opening();
            let series = self.flows.registry.get(opening.labels());
            series.opened.fetch_add(1, Ordering::Relaxed);
            log::opened(opening, &series);
            series
        })
    }

    /// Bytes can move from now on; `peer` is who the other end of the tunnel proved to be, where that is news.
    pub(crate) fn established(&self, peer: Option<&Identity>) {
        let Some(table) = &self.flows.reports else { return };
        self.lane.get_or_init(|| {
            let opening = self.opening();
            let why = Cow::Borrowed(opening.facts.plaintext);
            let lane = table.lane(opening.pair(peer, reports::Verdict::Allowed, why));
            if let Some(lane) = &lane {
                lane.opened();
            }
            lane
        });
    }

    /// The same for a flow whose labels were not known before: whoever serves it proved to be `peer` and may have
    /// described itself.
    pub(crate) fn answered(&self, by: Option<&hbone::Baggage>, peer: &Identity) {
        let _ = self.answered.set(Box::new(self.first.answered(by, peer)));
        self.series();
        self.established(Some(peer));
    }

    fn report_end(&self, failure: Option<&Failure>) {
        let Some(table) = &self.flows.reports else { return };
        match (self.lane.get(), failure) {
            (Some(lane), _) => {
                if let Some(lane) = lane {
                    lane.closed();
                }
            }
            // A client that gave up has not been failed.
            (None, None | Some(Failure::Abandoned)) => {}
            (None, Some(failure)) => {
                let flag = failure.flag();
                let verdict = match flag {
                    ResponseFlag::Deny => reports::Verdict::Denied,
                    _ => reports::Verdict::Failed,
                };
                let why = failure.why().map_or(Cow::Borrowed(flag.as_str()), Cow::Owned);
                let mut pair = self.opening().pair(None, verdict, why);
                pair.policy = failure.policy();
                if let Some(lane) = table.lane(pair) {
                    lane.failed();
                }
            }
        }
    }

    /// The flow ended as it should, or with a failure.
    pub(crate) fn close(&self, result: Result<(), &Failure>) {
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        let flag = result.err().map_or(ResponseFlag::None, Failure::flag);
        self.report_end(result.err());
        if let Err(failure) = result {
            self.flows.note_revoked(self.first.reporter, failure);
        }
        self.end(flag, result.err().map(ToString::to_string));
    }

    fn end(&self, flag: ResponseFlag, error: Option<String>) {
        let (opening, series) = (self.opening(), self.series());
        let bytes = (self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed));
        // The line first: whoever sees it counted finds it written.
        log::complete(opening, series, bytes, self.since.elapsed(), error.as_deref());
        series.close(flag);
        self.flows.registry.touch(series);
        self.flows.sockets[opening.reporter as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if !*self.closed.get_mut() {
            self.report_end(None);
            self.end(ResponseFlag::None, Some("connection closed due to connection drain".into()));
        }
    }
}

impl Meter for Flow {
    fn client_to_server(&self, bytes: u64) {
        self.up.fetch_add(bytes, Ordering::Relaxed);
        self.series().received.fetch_add(bytes, Ordering::Relaxed);
        if let Some(Some(lane)) = self.lane.get() {
            lane.received(bytes);
        }
    }

    fn server_to_client(&self, bytes: u64) {
        self.down.fetch_add(bytes, Ordering::Relaxed);
        self.series().sent.fetch_add(bytes, Ordering::Relaxed);
        if let Some(Some(lane)) = self.lane.get() {
            lane.sent(bytes);
        }
    }
}

#[cfg(test)]
mod tests;
