//! Accounting: one handle a flow, and its counters feed the metrics, the access log and the list of live
//! connections alike, so that they cannot disagree.
//!
//! [`Flows::open`] is the only door. A [`Flow`] counts while bytes move and writes its line when it ends, also when
//! it is simply dropped.

mod labels;
mod log;
mod series;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use mesh::{Authority, Decision, Identity, ResponseFlag, Service, Workload};
use parking_lot::Mutex;

pub(crate) use labels::escape;
pub use labels::{Labels, Reporter, ServiceLabels, Side};
use series::{Registry, Series};

use crate::copy::Meter;
use crate::failure::Failure;
use crate::reports::{self, End, Lane, Pair, Security};

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
    refused: Mutex<std::collections::BTreeMap<(&'static str, &'static str), u64>>,
    /// What policies that are only tried out would have done, by policy and word.
    dry_run: Mutex<std::collections::BTreeMap<(mesh::PolicyKey, &'static str), u64>>,
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
    /// What only the observer is told.
    pub facts: Facts,
}

/// What metrics and log do not say, and the observer is told.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Where the ends run, and what kind of workloads they are.
    pub(crate) ends: [Place; 2],
    /// Port at the destination workload.
    pub(crate) port: u16,
    /// Why it is not encrypted; empty when it is.
    pub(crate) plaintext: &'static str,
}

/// Where an end runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    node: Arc<str>,
    address: Option<std::net::IpAddr>,
    kind: Option<mesh::WorkloadType>,
    enrolled: bool,
}

impl Place {
    fn of(workload: Option<&Workload>, address: std::net::IpAddr) -> Self {
        Self {
            node: workload.map(|workload| workload.node.clone()).unwrap_or_default(),
            address: Some(address),
            kind: workload.map(|workload| workload.workload_type),
            enrolled: workload.is_some_and(|workload| workload.tunnel == mesh::Tunnel::Hbone),
        }
    }
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
        let plaintext = match decision {
            Decision::Passthrough { why, .. } => why.code(),
            _ => "",
        };
        let port = match route.map(|route| (&route.authority, route.via)) {
            Some((Authority::Address(target), mesh::Via::Direct)) => target.port(),
            _ => dst.port(),
        };
        let facts = Facts {
            ends: [
                Place::of(Some(source), client.ip()),
                Place::of(workload.map(|workload| &**workload), dst.ip()),
            ],
            port,
            plaintext,
        };
        // Who answers behind a gateway is not known here.
        let near = workload.filter(|_| route.is_none_or(|route| route.via != mesh::Via::Gateway));
        // Behind a waypoint the destination is not ours to name.
        let direct = workload.filter(|_| route.is_none_or(|route| route.via == mesh::Via::Direct));
        Some(Self {
            reporter: Reporter::Source,
            source: Side::of(source, mutual_tls.then(|| source.identity.clone())),
            source_pod: Some(source.name.clone()),
            destination: near.map(|w| Side::of(w, Some(w.identity.clone()))).unwrap_or_default(),
            destination_pod: near.map(|w| w.name.clone()),
            service: ServiceLabels::of(service.map(|s| &**s), direct.map(|w| &**w)),
            mutual_tls,
            src: client,
            dst,
            hbone: route.map(|route| route.authority.clone()),
            facts,
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
        let port = match &hbone {
            Some(Authority::Address(target)) => target.port(),
            Some(Authority::Hostname(_, port)) => *port,
            None => dst.port(),
        };
        let facts = Facts {
            ends: [Place::of(source, src.ip()), Place::of(Some(destination), dst.ip())],
            port,
            plaintext: "",
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
            facts,
        }
    }

    fn end(side: &Side, pod: Option<&Arc<str>>, place: &Place) -> End {
        End {
            cluster: side.cluster.clone(),
            namespace: side.namespace.clone(),
            pod: pod.cloned().unwrap_or_default(),
            workload: side.workload.clone(),
            kind: place.kind,
            canonical: side.canonical.clone(),
            revision: side.revision.clone(),
            node: place.node.clone(),
            address: place.address,
            enrolled: place.enrolled,
        }
    }

    /// What the observer counts the flow under. Identities are named only where certificates proved them.
    fn pair(&self, peer: Option<&Identity>, verdict: reports::Verdict, reason: &'static str) -> Pair {
        let carried = verdict == reports::Verdict::Allowed && self.mutual_tls;
        let [source_place, destination_place] = &self.facts.ends;
        let at_source = self.reporter == Reporter::Source;
        let proven = |own: bool, side: &Side| match (own, peer) {
            (false, Some(peer)) => Some(peer.clone()),
            _ => side.principal.clone(),
        };
        // At the destination the client has proven itself before anything could be refused.
        let known = carried || (self.mutual_tls && !at_source);
        Pair {
            reporter: self.reporter,
            source: Self::end(&self.source, self.source_pod.as_ref(), source_place),
            destination: Self::end(&self.destination, self.destination_pod.as_ref(), destination_place),
            source_identity: proven(at_source, &self.source).filter(|_| known),
            destination_identity: proven(!at_source, &self.destination).filter(|_| known),
            service: self.service.clone(),
            port: self.facts.port,
            security: match () {
                () if known => Security::MutualTls,
                () if source_place.address == destination_place.address => Security::NodeLocal,
                () => Security::Plaintext,
            },
            verdict,
            reason,
            policy: "".into(),
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
    closed: AtomicBool,
    /// Once it is established, its counters for the observer.
    lane: OnceLock<Option<Arc<Lane>>>,
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
            closed: AtomicBool::new(false),
            lane: OnceLock::new(),
        }
    }

    /// All accounting, with counts for the observer.
    pub(crate) fn reporting(table: Arc<reports::Table>) -> Self {
        Self { reports: Some(table), ..Self::default() }
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
    /// Bytes can move from now on; `peer` is who the other end of the tunnel proved to be, where that is news.
    pub(crate) fn established(&self, peer: Option<&Identity>) {
        let Some(table) = &self.flows.reports else { return };
        self.lane.get_or_init(|| {
            let lane =
                table.lane(self.opening.pair(peer, reports::Verdict::Allowed, self.opening.facts.plaintext));
            if let Some(lane) = &lane {
                lane.opened();
            }
            lane
        });
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
                let mut pair = self.opening.pair(None, verdict, flag.as_str());
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
        if !*self.closed.get_mut() {
            self.report_end(None);
            self.end(ResponseFlag::None, Some("connection closed due to connection drain".into()));
        }
    }
}

impl Meter for Flow {
    fn client_to_server(&self, bytes: u64) {
        self.up.fetch_add(bytes, Ordering::Relaxed);
        self.series.received.fetch_add(bytes, Ordering::Relaxed);
        if let Some(Some(lane)) = self.lane.get() {
            lane.received(bytes);
        }
    }

    fn server_to_client(&self, bytes: u64) {
        self.down.fetch_add(bytes, Ordering::Relaxed);
        self.series.sent.fetch_add(bytes, Ordering::Relaxed);
        if let Some(Some(lane)) = self.lane.get() {
            lane.sent(bytes);
        }
    }
}

#[cfg(test)]
mod tests;
