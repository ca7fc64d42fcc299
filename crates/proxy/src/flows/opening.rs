//! What is known of a flow when it opens: the labels of both ends, and what only the observer is told.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh::{Authority, Decision, Identity, Service, Workload};

use super::labels::{Labels, Reporter, Security, ServiceLabels, Side};
use crate::reports::{self, End, Pair};

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
    /// How it is secured.
    pub security: Security,
    /// The caller's address.
    pub src: SocketAddr,
    /// What is dialled; for tunnels the tunnel's address.
    pub dst: SocketAddr,
    /// Inside the tunnel.
    pub hbone: Option<Authority>,
    /// What only the observer is told.
    pub facts: Facts,
    /// Whoever serves it tells its own labels when it answers; until then nothing is counted.
    pub late: bool,
}

/// What metrics and log do not say, and the observer is told.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Where the ends run, and what kind of workloads they are.
    pub(super) ends: [Place; 2],
    /// Port at the destination workload.
    pub(super) port: u16,
    /// Why it is not encrypted; empty when it is.
    pub(super) plaintext: &'static str,
}

/// Where an end runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Place {
    node: Arc<str>,
    address: Option<IpAddr>,
    kind: Option<mesh::WorkloadType>,
    enrolled: bool,
}

impl Place {
    pub(super) fn of(workload: Option<&Workload>, address: IpAddr) -> Self {
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
            Decision::Refuse(_) | Decision::Need(_) | Decision::Resolve { .. } => return None,
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
            security: Self::tunnelled(mutual_tls),
            src: client,
            dst,
            hbone: route.map(|route| route.authority.clone()),
            facts,
            late: route.is_some_and(|route| route.via == mesh::Via::Gateway),
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
            security: Self::tunnelled(mutual_tls),
            src,
            dst,
            hbone,
            facts,
            late: false,
        }
    }

    fn tunnelled(mutual_tls: bool) -> Security {
        if mutual_tls { Security::MutualTls } else { Security::Plaintext }
    }

    /// The same flow when no tunnel is needed, since both ends are at home here: it leads straight to `target`.
    pub(crate) fn within_node(self, target: SocketAddr) -> Self {
        Self { security: Security::NodeLocal, dst: target, hbone: None, ..self }
    }

    /// The labels of its series.
    pub(super) fn labels(&self) -> Labels {
        Labels {
            reporter: self.reporter,
            source: self.source.clone(),
            destination: self.destination.clone(),
            service: self.service.clone(),
            security: self.security,
        }
    }

    /// The same flow, now that whoever serves it has said who it is (reference/data-plane.md §10).
    pub(super) fn answered(&self, by: Option<&hbone::Baggage>, proven: &Identity) -> Self {
        let principal = Some(proven.clone());
        let destination = match by {
            Some(baggage) => Side::from_baggage(baggage, principal),
            None => Side { principal, ..Side::default() },
        };
        Self { destination, destination_pod: None, ..self.clone() }
    }

    pub(super) fn end(side: &Side, pod: Option<&Arc<str>>, place: &Place) -> End {
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
    pub(super) fn pair(
        &self,
        peer: Option<&Identity>,
        verdict: reports::Verdict,
        reason: Cow<'static, str>,
    ) -> Pair {
        let allowed = verdict == reports::Verdict::Allowed;
        let [source_place, destination_place] = &self.facts.ends;
        let at_source = self.reporter == Reporter::Source;
        let proven = |own: bool, side: &Side| match (own, peer) {
            (false, Some(peer)) => Some(peer.clone()),
            _ => side.principal.clone(),
        };
        let known = match self.security {
            // At the destination the client has proven itself before anything could be refused.
            Security::MutualTls => allowed || !at_source,
            Security::NodeLocal => true,
            Security::Plaintext => false,
        };
        Pair {
            reporter: self.reporter,
            source: Self::end(&self.source, self.source_pod.as_ref(), source_place),
            destination: Self::end(&self.destination, self.destination_pod.as_ref(), destination_place),
            source_identity: proven(at_source, &self.source).filter(|_| known),
            destination_identity: proven(!at_source, &self.destination).filter(|_| known),
            service: self.service.clone(),
            port: self.facts.port,
            security: match () {
                () if known => self.security,
                () if source_place.address == destination_place.address => Security::NodeLocal,
                () => Security::Plaintext,
            },
            verdict,
            reason,
            policy: "".into(),
        }
    }
}
