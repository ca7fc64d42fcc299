//! Where a captured connection goes and how it is secured: the pure function of the outbound path
//! (reference/data-plane.md §3 and §4). Table tests in `decide/tests.rs` read like its documentation.

mod endpoints;
mod gateways;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::{
    HBONE_PORT, Identity, IpFamilies, LoadBalancingMode, Lookup, MESH_PORTS, NetworkAddress, Refusal,
    Service, Tunnel, View, Workload,
};
use endpoints::{For, choose_address, choose_endpoint};
pub(crate) use gateways::is_gateway;
use gateways::{abroad, choose_waypoint, to_waypoint};

/// A captured outbound connection.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The workload that calls.
    pub source: &'a Workload,
    /// Where it wanted to go.
    pub destination: SocketAddr,
    /// A uniformly random number: the dice are thrown by the caller.
    pub random: u64,
    /// What has been resolved for it, after [`Decision::Resolve`] asked for it; [`NOTHING_RESOLVED`] at first.
    pub resolved: &'a Resolved,
}

/// Hostnames of workloads that DNS has been asked for, and what it said.
pub type Resolved = BTreeMap<Arc<str>, Vec<IpAddr>>;

/// Nothing has been asked yet.
pub static NOTHING_RESOLVED: Resolved = BTreeMap::new();

/// What becomes of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Through an HBONE tunnel.
    Tunnel(Route),
    /// In plaintext.
    Passthrough {
        /// What is dialled.
        to: SocketAddr,
        /// The destination workload, if it is known.
        workload: Option<Arc<Workload>>,
        /// The service that was called, if one was.
        service: Option<Arc<Service>>,
        /// Why it is not encrypted.
        why: Plaintext,
    },
    /// Not at all.
    Refuse(Refusal),
    /// Cannot be said before the control plane has been asked for this.
    Need(Lookup),
    /// Cannot be said before this hostname of the destination workload has been resolved.
    Resolve {
        /// The name.
        hostname: Arc<str>,
        /// The workload that has it.
        workload: Arc<Workload>,
    },
}

/// An HBONE tunnel to be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The proxy to dial.
    pub hop: SocketAddr,
    /// The `:authority` of the CONNECT request.
    pub authority: Authority,
    /// The peer must present one of these.
    pub expect: Vec<Identity>,
    /// The workload behind the hop.
    pub workload: Arc<Workload>,
    /// The service that was called, if one was.
    pub service: Option<Arc<Service>>,
    /// What the hop is.
    pub via: Via,
    /// Through this tunnel a second one leads, to another network.
    pub inner: Option<Inner>,
}

/// A tunnel inside a tunnel; its `:authority` is that of the outer one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inner {
    /// The far end must present one of these.
    pub expect: Vec<Identity>,
}

/// The `:authority` of a CONNECT request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Authority {
    /// `ip:port`.
    Address(SocketAddr),
    /// `hostname:port`.
    Hostname(Arc<str>, u16),
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Hostname(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// What a tunnel leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// The destination's own proxy.
    Direct,
    /// A waypoint.
    Waypoint,
    /// The gateway of another network.
    Gateway,
}

/// Why a connection is carried in plaintext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Plaintext {
    /// The destination is nothing the mesh knows.
    UnknownDestination,
    /// The destination workload is not enrolled.
    NotEnrolled,
    /// The destination shares its node's network and cannot be enrolled.
    HostNetwork,
    /// The service asks that its original destination be kept.
    PassthroughService,
}

impl Plaintext {
    /// Reason code, the same everywhere.
    pub fn code(self) -> &'static str {
        match self {
            Self::UnknownDestination => "unknown_destination",
            Self::NotEnrolled => "not_enrolled",
            Self::HostNetwork => "host_network",
            Self::PassthroughService => "passthrough_service",
        }
    }
}

/// Decides where `call` goes, given what is known.
pub fn decide(view: &View, call: &Call<'_>) -> Decision {
    let destination = SocketAddr::new(call.destination.ip().to_canonical(), call.destination.port());
    if destination.ip().is_loopback() && MESH_PORTS.contains(&destination.port()) {
        return Decision::Refuse(Refusal::SelfCall(destination));
    }
    let address = NetworkAddress::new(call.source.network.clone(), destination.ip());
    let own_namespace = &call.source.namespace;
    let by_address = view.workload_by_address(&address);
    let by_vip = view.service_by_vip(&address, own_namespace);
    if by_address.is_none() && by_vip.is_none() {
        let lookup = Lookup::Address(address);
        return match view.lacks(&lookup) {
            true => Decision::Need(lookup),
            false => plain(destination, None, None, Plaintext::UnknownDestination),
        };
    }
    match by_vip {
        // An address that is both is a direct call: it names one workload.
        Some(service) if by_address.is_none() => to_service(view, call, destination, service),
        _ => match by_address {
            Some(workload) => to_workload(view, call, destination, workload),
            None => plain(destination, None, None, Plaintext::UnknownDestination),
        },
    }
}

fn to_service(view: &View, call: &Call<'_>, destination: SocketAddr, service: &Arc<Service>) -> Decision {
    if let Some(gateway) = choose_waypoint(service, call.random) {
        return to_waypoint(view, call, destination, gateway, Some(service));
    }
    if service.mode() == LoadBalancingMode::Passthrough {
        return plain(destination, None, Some(service), Plaintext::PassthroughService);
    }
    let port = destination.port();
    let Some((workload, target_port)) = choose_endpoint(view, call, service, port, For::Call) else {
        return Decision::Refuse(Refusal::NoHealthyUpstream { service: service.key.clone(), port });
    };
    if workload.network != call.source.network {
        return abroad(view, call, port, &workload, service, service.subject_alt_names.clone());
    }
    direct(call, destination, &workload, Some(service), target_port)
}

fn to_workload(view: &View, call: &Call<'_>, destination: SocketAddr, workload: &Arc<Workload>) -> Decision {
    match &workload.waypoint {
        Some(gateway) if !is_gateway(view, call.source, gateway) => {
            to_waypoint(view, call, destination, gateway, None)
        }
        _ => direct(call, destination, workload, None, destination.port()),
    }
}

fn direct(
    call: &Call<'_>,
    destination: SocketAddr,
    workload: &Arc<Workload>,
    service: Option<&Arc<Service>>,
    target_port: u16,
) -> Decision {
    let families = service.map_or(IpFamilies::Automatic, |service| service.ip_families);
    let ip = match address_of(call, workload, destination.ip(), families) {
        Ok(ip) => ip,
        Err(decision) => return *decision,
    };
    let target = SocketAddr::new(ip, target_port);
    match workload.tunnel {
        Tunnel::Hbone => {
            let sans = service.map_or(&[][..], |service| &service.subject_alt_names);
            let expect = std::iter::once(&workload.identity).chain(sans).cloned().collect();
            Decision::Tunnel(Route {
                hop: SocketAddr::new(ip, HBONE_PORT),
                authority: Authority::Address(target),
                expect,
                workload: workload.clone(),
                service: service.cloned(),
                via: Via::Direct,
                inner: None,
            })
        }
        Tunnel::None => {
            let host_network = workload.network_mode == crate::NetworkMode::HostNetwork;
            let why = if host_network { Plaintext::HostNetwork } else { Plaintext::NotEnrolled };
            plain(target, Some(workload), service, why)
        }
    }
}

/// The address of a workload to dial; one that has only a name is resolved first.
fn address_of(
    call: &Call<'_>,
    workload: &Arc<Workload>,
    called: IpAddr,
    families: IpFamilies,
) -> Result<IpAddr, Box<Decision>> {
    let none = || Box::new(Decision::Refuse(Refusal::NoAddress { workload: workload.uid.to_string() }));
    match (choose_address(workload, called, families), &workload.hostname) {
        (Some(ip), _) => Ok(ip),
        (None, Some(hostname)) => match call.resolved.get(hostname) {
            None => {
                Err(Box::new(Decision::Resolve { hostname: hostname.clone(), workload: workload.clone() }))
            }
            Some(found) => prefer(found, called).ok_or_else(none),
        },
        (None, None) => Err(none()),
    }
}

fn plain(
    to: SocketAddr,
    workload: Option<&Arc<Workload>>,
    service: Option<&Arc<Service>>,
    why: Plaintext,
) -> Decision {
    Decision::Passthrough { to, workload: workload.cloned(), service: service.cloned(), why }
}

/// An address of the family that was called, else any.
fn prefer(found: &[IpAddr], called: IpAddr) -> Option<IpAddr> {
    found.iter().find(|ip| ip.is_ipv4() == called.is_ipv4()).or_else(|| found.first()).copied()
}

#[cfg(test)]
mod tests;
