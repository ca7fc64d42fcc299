//! Which endpoint of a service takes a call, and at which of its addresses (reference/data-plane.md §4).

use std::net::IpAddr;
use std::sync::Arc;

use super::Call;
use crate::{
    HealthPolicy, IpFamilies, LoadBalancingMode, NetworkAddress, RoutingScope, Service, Tunnel, View,
    Workload,
};

/// What an endpoint is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// A call to one of the service's ports.
    Call,
    /// To be the waypoint: an application tunnel makes up for a port that the service does not list.
    Waypoint,
}

/// One of the endpoints of `service` that can take a call to `service_port`, and the port to call there.
pub(super) fn choose_endpoint(
    view: &View,
    call: &Call<'_>,
    service: &Service,
    service_port: u16,
    purpose: For,
) -> Option<(Arc<Workload>, u16)> {
    let port = service.port(service_port);
    if port.is_none() && purpose == For::Call {
        return None;
    }
    let usable = view.endpoints(&service.key).filter_map(|workload| {
        let healthy =
            service.health_policy() == HealthPolicy::AllowAll || workload.health == crate::Health::Healthy;
        let foreign = workload.network != call.source.network && workload.network_gateway.is_some();
        let reachable = !workload.addresses.is_empty() || workload.hostname.is_some() || foreign;
        let mapping =
            workload.services.get(&service.key)?.iter().find(|mapping| mapping.service_port == service_port);
        let tunnelled = || workload.application_tunnel.is_some().then_some(service_port);
        let target = mapping.map(|mapping| mapping.target_port);
        let target = target.or(port.and_then(|port| port.target_port)).or_else(tunnelled)?;
        (healthy && reachable && !has_moved_on(view, workload)).then_some((workload, target))
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
pub(super) fn choose_address(workload: &Workload, called: IpAddr, families: IpFamilies) -> Option<IpAddr> {
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
pub(super) fn pick(weights: impl Iterator<Item = u64> + Clone, random: u64) -> Option<usize> {
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

/// Whether an address of a workload that takes no tunnels now belongs to one that does: a finished pod's address is
/// given to the next. What was meant for the one must not reach the other, least of all in plaintext.
fn has_moved_on(view: &View, workload: &Workload) -> bool {
    let taken = |ip: &IpAddr| {
        let owner = view.workload_by_address(&NetworkAddress::new(workload.network.clone(), *ip));
        owner.is_some_and(|owner| owner.uid != workload.uid && owner.tunnel == Tunnel::Hbone)
    };
    workload.tunnel == Tunnel::None && workload.addresses.iter().any(taken)
}
