//! Accounting: one handle a flow, and its counters feed the metrics, the access log and the list of live
//! connections alike, so that they cannot disagree.
//!
//! [`Flows::open`] is the only door. A [`Flow`] counts while bytes move and writes its line when it ends, also when
//! it is simply dropped.

mod labels;
mod log;
mod series;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mesh::{Authority, Decision, Identity, ResponseFlag, Service, Workload};
use parking_lot::Mutex;

pub(crate) use labels::escape;
pub use labels::{Labels, Reporter, ServiceLabels, Side};
use series::{Registry, Series};

use crate::copy::Meter;
use crate::failure::Failure;

/// Series that nobody used for this long are dropped.
const IDLE_SERIES: Duration = Duration::from_secs(1800);

/// All accounting of the proxy.
#[derive(Debug, Default)]
pub struct Flows {
    registry: Registry,
    sockets: [AtomicI64; 2],
    /// Connections refused before their context was known, by reporter and reason.
    refused: Mutex<std::collections::BTreeMap<(&'static str, &'static str), u64>>,
}

/// What is known of a flow when it opens.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Which end we are.
    pub reporter: Reporter,
    /// The caller's labels.
    pub source: Side,
    /// The caller's pod name, if known.
    pub source_pod: Option<Arc<str>>,
    /// The callee's labels.
    pub destination: Side,
    /// The callee's pod name, if known.
    pub destination_pod: Option<Arc<str>>,
    /// The service that was called.
    pub service: ServiceLabels,
    /// Whether both ends have proven their identities.
    pub mutual_tls: bool,
    /// The caller's address.
    pub src: SocketAddr,
    /// What is dialled; for tunnels the tunnel's address.
    pub dst: SocketAddr,
    /// Inside the tunnel.
    pub hbone: Option<Authority>,
}

impl Opening {
    /// The flow of an outbound call of `source` from `client`; nothing when the call is refused.
    pub fn outbound(source: &Workload, client: SocketAddr, decision: &Decision) -> Option<Self> {
        let (workload, service, route, dst) = match decision {
            Decision::Tunnel(route) => {
                (Some(&route.workload), route.service.as_ref(), Some(route), route.hop)
            }
            Decision::Passthrough { to, workload, service, .. } => {
                (workload.as_ref(), service.as_ref(), None, *to)
            }
            Decision::Refuse(_) | Decision::Resolve { .. } => return None,
        };
        let mutual_tls = route.is_some();
        // Behind a waypoint the destination is not ours to name.
        let direct = workload.filter(|_| route.is_none_or(|route| route.via == mesh::Via::Direct));
        Some(Self {
            reporter: Reporter::Source,
            source: Side::of(source, mutual_tls.then(|| source.identity.clone())),
            source_pod: Some(source.name.clone()),
            destination: workload.map(|w| Side::of(w, Some(w.identity.clone()))).unwrap_or_default(),
            destination_pod: workload.map(|w| w.name.clone()),
            service: ServiceLabels::of(service.map(|s| &**s), direct.map(|w| &**w)),
            mutual_tls,
            src: client,
            dst,
            hbone: route.map(|route| route.authority.clone()),
        })
    }

    /// The flow of an inbound connection to `destination`.
    #[allow(clippy::too_many_arguments)]
    pub fn inbound(
        destination: &Workload,
        service: Option<&Service>,
        source: Option<&Workload>,
        described: Option<&hbone::Baggage>,
        proven: Option<Identity>,
        src: SocketAddr,
        dst: SocketAddr,
        hbone: Option<Authority>,
    ) -> Self {
        let mutual_tls = proven.is_some();
        let side = match (source, described) {
            (Some(workload), _) => Side::of(workload, proven),
            (None, Some(baggage)) => Side::from_baggage(baggage, proven),
            (None, None) => Side { principal: proven, ..Side::default() },
        };
        Self {
            reporter: Reporter::Destination,
            source: side,
            source_pod: source.map(|workload| workload.name.clone()),
            destination: Side::of(destination, Some(destination.identity.clone())),
            destination_pod: Some(destination.name.clone()),
            service: ServiceLabels::of(service, Some(destination)),
            mutual_tls,
            src,
            dst,
            hbone,
        }
    }
}

/// One TCP connection as the mesh saw it. Dropped without [`Flow::close`], it was cut by a drain.
pub struct Flow {
    flows: Arc<Flows>,
    opening: Opening,
    series: Arc<Series>,
    since: Instant,
    up: AtomicU64,
    down: AtomicU64,
    closed: bool,
}

impl Flows {
    /// Opens a flow.
    pub fn open(self: &Arc<Self>, opening: Opening) -> Flow {
        let labels = Labels {
            reporter: opening.reporter,
            source: opening.source.clone(),
            destination: opening.destination.clone(),
            service: opening.service.clone(),
            mutual_tls: opening.mutual_tls,
        };
        let series = self.registry.get(labels);
        series.opened.fetch_add(1, Ordering::Relaxed);
        self.sockets[opening.reporter as usize].fetch_add(1, Ordering::Relaxed);
        log::opened(&opening, &series);
        Flow {
            flows: self.clone(),
            opening,
            series,
            since: Instant::now(),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            closed: false,
        }
    }

    /// A connection that was refused before anything else was known of it.
    pub(crate) fn refused(
        &self,
        reporter: Reporter,
        src: SocketAddr,
        dst: Option<SocketAddr>,
        failure: &Failure,
    ) {
        *self.refused.lock().entry((reporter.as_str(), failure.code())).or_default() += 1;
        log::refused(reporter, src, dst, failure);
    }

    /// Drops series that have rested for long.
    pub fn sweep(&self) {
        self.registry.sweep(IDLE_SERIES);
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
    }
}

impl Flow {
    /// The flow ended as it should, or with a failure.
    pub(crate) fn close(mut self, result: Result<(), &Failure>) {
        self.closed = true;
        let flag = result.err().map_or(ResponseFlag::None, Failure::flag);
        self.end(flag, result.err().map(ToString::to_string));
    }

    fn end(&self, flag: ResponseFlag, error: Option<String>) {
        self.series.close(flag);
        self.flows.registry.touch(&self.series);
        self.flows.sockets[self.opening.reporter as usize].fetch_sub(1, Ordering::Relaxed);
        let bytes = (self.up.load(Ordering::Relaxed), self.down.load(Ordering::Relaxed));
        log::complete(&self.opening, &self.series, bytes, self.since.elapsed(), error.as_deref());
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        if !self.closed {
            self.end(ResponseFlag::None, Some("connection closed due to connection drain".into()));
        }
    }
}

impl Meter for Flow {
    fn client_to_server(&self, bytes: u64) {
        self.up.fetch_add(bytes, Ordering::Relaxed);
        self.series.received.fetch_add(bytes, Ordering::Relaxed);
    }

    fn server_to_client(&self, bytes: u64) {
        self.down.fetch_add(bytes, Ordering::Relaxed);
        self.series.sent.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
