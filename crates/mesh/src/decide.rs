//! Where a captured connection goes and how it is secured: the pure function of the outbound path
//! (reference/data-plane.md §3 and §4). Table tests in `decide/tests.rs` read like its documentation.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::{
    Gateway, GatewayTarget, HBONE_PORT, HealthPolicy, Identity, IpFamilies, LoadBalancingMode, MESH_PORTS,
    NetworkAddress, Refusal, RoutingScope, Service, Tunnel, View, Workload,
};

/// A captured outbound connection.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// The workload that calls.
    pub source: &'a Workload,
    /// Where it wanted to go.
    pub destination: SocketAddr,
    /// A uniformly random number: the dice are thrown by the caller.
    pub random: u64,
}

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
    match view.service_by_vip(&address, own_namespace) {
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
    let Some((workload, target_port)) = choose_endpoint(view, call, service, port) else {
        return Decision::Refuse(Refusal::NoHealthyUpstream { service: service.key.clone(), port });
    };
    if workload.network != call.source.network {
        // Crossing networks needs a tunnel inside a tunnel, which is not built yet.
        return Decision::Refuse(Refusal::UnknownGateway { destination: workload.uid.to_string() });
    }
    direct(destination, &workload, Some(service), target_port)
}

fn to_workload(view: &View, call: &Call<'_>, destination: SocketAddr, workload: &Arc<Workload>) -> Decision {
    match &workload.waypoint {
        Some(gateway) if !comes_from(view, call.source, gateway) => {
            to_waypoint(view, call, destination, gateway, None)
        }
        _ => direct(destination, workload, None, destination.port()),
    }
}

fn direct(
    destination: SocketAddr,
    workload: &Arc<Workload>,
    service: Option<&Arc<Service>>,
    target_port: u16,
) -> Decision {
    let families = service.map_or(IpFamilies::Automatic, |service| service.ip_families);
    let Some(ip) = choose_address(workload, destination.ip(), families) else {
        return match &workload.hostname {
            Some(hostname) => Decision::Resolve { hostname: hostname.clone(), workload: workload.clone() },
            None => Decision::Refuse(Refusal::NoAddress { workload: workload.uid.to_string() }),
        };
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
            })
        }
        Tunnel::None => {
            let host_network = workload.network_mode == crate::NetworkMode::HostNetwork;
            let why = if host_network { Plaintext::HostNetwork } else { Plaintext::NotEnrolled };
            plain(target, Some(workload), service, why)
        }
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

/// Sends the call, its destination unchanged, to a waypoint.
fn to_waypoint(
    view: &View,
    call: &Call<'_>,
    destination: SocketAddr,
    gateway: &Gateway,
    called: Option<&Arc<Service>>,
) -> Decision {
    let unknown =
        || Decision::Refuse(Refusal::UnknownWaypoint { gateway: gateway.target.label().to_string() });
    let Some(found) = find_gateway(view, call, gateway) else { return unknown() };
    let (workload, sans, port) = found;
    let Some(ip) = choose_address(&workload, destination.ip(), IpFamilies::Automatic) else {
        return unknown();
    };
    let expect = std::iter::once(workload.identity.clone()).chain(sans).collect();
    Decision::Tunnel(Route {
        hop: SocketAddr::new(ip, port),
        authority: Authority::Address(destination),
        expect,
        workload,
        service: called.cloned(),
        via: Via::Waypoint,
    })
}

/// The workload behind a gateway, further identities it may have, and the port to dial.
fn find_gateway(
    view: &View,
    call: &Call<'_>,
    gateway: &Gateway,
) -> Option<(Arc<Workload>, Vec<Identity>, u16)> {
    let namespace = &call.source.namespace;
    let service = match &gateway.target {
        GatewayTarget::Hostname(key) => view.service(key),
        GatewayTarget::Address(address) => {
            if let Some(workload) = view.workload_by_address(address) {
                return Some((workload.clone(), Vec::new(), gateway.hbone_port));
            }
            view.service_by_vip(address, namespace)
        }
    }?;
    let (workload, port) = choose_endpoint(view, call, service, gateway.hbone_port)?;
    Some((workload, service.subject_alt_names.clone(), port))
}

/// Whether the caller is the waypoint itself: then the call must not be sent there again.
fn comes_from(view: &View, source: &Workload, gateway: &Gateway) -> bool {
    match &gateway.target {
        GatewayTarget::Hostname(key) => view.endpoints(key).any(|endpoint| endpoint.uid == source.uid),
        GatewayTarget::Address(address) => {
            view.workload_by_address(address).is_some_and(|workload| workload.uid == source.uid)
                || view.service_by_vip(address, &source.namespace).is_some_and(|service| {
                    view.endpoints(&service.key).any(|endpoint| endpoint.uid == source.uid)
                })
        }
    }
}

fn choose_waypoint(service: &Service, random: u64) -> Option<&Gateway> {
    let weights = service.weighted_waypoints.iter().map(|waypoint| u64::from(waypoint.weight));
    match pick(weights, random) {
        Some(index) => service.weighted_waypoints.get(index).map(|waypoint| &waypoint.gateway),
        None => service.waypoint.as_ref(),
    }
}

/// One of the endpoints of `service` that can take a call to `service_port`, and the port to call there.
fn choose_endpoint(
    view: &View,
    call: &Call<'_>,
    service: &Service,
    service_port: u16,
) -> Option<(Arc<Workload>, u16)> {
    let port = service.port(service_port)?;
    let usable = view.endpoints(&service.key).filter_map(|workload| {
        let healthy =
            service.health_policy() == HealthPolicy::AllowAll || workload.health == crate::Health::Healthy;
        let reachable = !workload.addresses.is_empty() || workload.hostname.is_some();
        let mapping =
            workload.services.get(&service.key)?.iter().find(|mapping| mapping.service_port == service_port);
        let target = mapping.map(|mapping| mapping.target_port).or(port.target_port)?;
        (healthy && reachable).then_some((workload, target))
    });
    let ranked: Vec<_> = match service.mode() {
        LoadBalancingMode::Strict | LoadBalancingMode::Failover => {
            preferred(call.source, service, usable.collect())
        }
        LoadBalancingMode::Unspecified | LoadBalancingMode::Passthrough => usable.collect(),
    };
    let index = pick(ranked.iter().map(|(workload, _)| u64::from(workload.capacity)), call.random)?;
    ranked.get(index).map(|(workload, target)| (Arc::clone(workload), *target))
}

fn preferred<'a>(
    source: &Workload,
    service: &Service,
    endpoints: Vec<(&'a Arc<Workload>, u16)>,
) -> Vec<(&'a Arc<Workload>, u16)> {
    let scopes = service.load_balancing.as_ref().map_or(&[][..], |lb| &lb.routing_preference);
    let ranks: Vec<usize> = endpoints.iter().map(|(endpoint, _)| rank(source, endpoint, scopes)).collect();
    let full =
        if scopes.first() == Some(&RoutingScope::Network) { 2 * (scopes.len() - 1) } else { scopes.len() };
    let wanted = match service.mode() {
        LoadBalancingMode::Strict => full,
        _ => ranks.iter().copied().max().unwrap_or(0),
    };
    endpoints
        .into_iter()
        .zip(ranks)
        .filter(|(_, rank)| *rank == wanted)
        .map(|(endpoint, _)| endpoint)
        .collect()
}

/// How many leading scopes match. A leading NETWORK is special: a mismatch does not end the count, and a match
/// outweighs all the others together.
fn rank(source: &Workload, endpoint: &Workload, scopes: &[RoutingScope]) -> usize {
    let same = |scope: &RoutingScope| match scope {
        RoutingScope::Region => source.locality.region == endpoint.locality.region,
        RoutingScope::Zone => source.locality.zone == endpoint.locality.zone,
        RoutingScope::Subzone => source.locality.subzone == endpoint.locality.subzone,
        RoutingScope::Node => source.node == endpoint.node,
        RoutingScope::Cluster => source.cluster == endpoint.cluster,
        RoutingScope::Network => source.network == endpoint.network,
    };
    match scopes.split_first() {
        Some((RoutingScope::Network, rest)) => {
            let network = if same(&RoutingScope::Network) { rest.len() } else { 0 };
            network + rest.iter().take_while(|scope| same(scope)).count()
        }
        _ => scopes.iter().take_while(|scope| same(scope)).count(),
    }
}

/// The address of a workload to dial: the one that was called, else one of an allowed family, that of the call first.
fn choose_address(workload: &Workload, called: IpAddr, families: IpFamilies) -> Option<IpAddr> {
    if workload.addresses.contains(&called) {
        return Some(called);
    }
    let allowed = |ip: &&IpAddr| match families {
        IpFamilies::Ipv4Only => ip.is_ipv4(),
        IpFamilies::Ipv6Only => ip.is_ipv6(),
        IpFamilies::Automatic | IpFamilies::Dual => true,
    };
    let addresses = || workload.addresses.iter().filter(allowed);
    addresses().find(|ip| ip.is_ipv4() == called.is_ipv4()).or_else(|| addresses().next()).copied()
}

/// Index of one item, chosen by weight.
fn pick(weights: impl Iterator<Item = u64> + Clone, random: u64) -> Option<usize> {
    let total: u64 = weights.clone().sum();
    if total == 0 {
        return None;
    }
    let mut left = random % total;
    weights.enumerate().find_map(|(index, weight)| {
        if left < weight {
            return Some(index);
        }
        left -= weight;
        None
    })
}

#[cfg(test)]
mod tests;
