//! Calls that do not go to their destination itself: through a waypoint, or through the gateway of another network
//! (reference/data-plane.md §3, steps 3, 5 and 7).

use std::net::SocketAddr;
use std::sync::Arc;

use super::endpoints::{For, choose_address, choose_endpoint, pick};
use super::{Authority, Call, Decision, Inner, Route, Via, address_of};
use crate::{Gateway, GatewayTarget, Identity, IpFamilies, Lookup, Refusal, Service, View, Workload};

/// The workload behind a gateway, further identities it may have, and the port to dial.
struct Found {
    workload: Arc<Workload>,
    sans: Vec<Identity>,
    port: u16,
}

/// Sends the call, its destination unchanged, to a waypoint.
pub(super) fn to_waypoint(
    view: &View,
    call: &Call<'_>,
    destination: SocketAddr,
    gateway: &Gateway,
    called: Option<&Arc<Service>>,
) -> Decision {
    let unknown =
        || Decision::Refuse(Refusal::UnknownWaypoint { gateway: gateway.target.label().to_string() });
    if let Some(lookup) = lacking(view, gateway) {
        return Decision::Need(lookup);
    }
    let Some(found) = find(view, call, gateway, For::Waypoint) else { return unknown() };
    if found.workload.network != call.source.network {
        return match called {
            Some(service) => abroad(view, call, destination.port(), &found.workload, service, found.sans),
            // What no service names cannot be named to another network.
            None => unknown(),
        };
    }
    let Some(ip) = choose_address(&found.workload, destination.ip(), IpFamilies::Automatic) else {
        return unknown();
    };
    let expect = std::iter::once(found.workload.identity.clone()).chain(found.sans).collect();
    Decision::Tunnel(Route {
        hop: SocketAddr::new(ip, found.port),
        authority: Authority::Address(destination),
        expect,
        workload: found.workload,
        service: called.cloned(),
        via: Via::Waypoint,
        inner: None,
    })
}

/// Sends a call to `service` to the gateway of the network where `workload` lives, and in that tunnel, in a second
/// one, to whoever proves to be one of `expect`.
pub(super) fn abroad(
    view: &View,
    call: &Call<'_>,
    service_port: u16,
    workload: &Workload,
    service: &Arc<Service>,
    expect: Vec<Identity>,
) -> Decision {
    let unknown = || Decision::Refuse(Refusal::UnknownGateway { destination: workload.uid.to_string() });
    let Some(gateway) = &workload.network_gateway else { return unknown() };
    if let Some(lookup) = lacking(view, gateway) {
        return Decision::Need(lookup);
    }
    let found = find(view, call, gateway, For::Call).or_else(|| by_name(view, gateway, &workload.network));
    let Some(found) = found else { return unknown() };
    if expect.is_empty() {
        // Whoever answers over there could be anybody.
        return Decision::Refuse(Refusal::NoServiceIdentity { service: service.key.clone() });
    }
    let called = call.destination.ip().to_canonical();
    let ip = match address_of(call, &found.workload, called, IpFamilies::Automatic) {
        Ok(ip) => ip,
        Err(decision) if matches!(*decision, Decision::Refuse(_)) => return unknown(),
        Err(decision) => return *decision,
    };
    let authority = Authority::Hostname(service.key.hostname.clone(), service_port);
    let outer = std::iter::once(found.workload.identity.clone()).chain(found.sans).collect();
    Decision::Tunnel(Route {
        hop: SocketAddr::new(ip, found.port),
        authority,
        expect: outer,
        workload: found.workload,
        service: Some(service.clone()),
        via: Via::Gateway,
        inner: Some(Inner { expect }),
    })
}

/// What has to be asked for before the gateway can be found.
fn lacking(view: &View, gateway: &Gateway) -> Option<Lookup> {
    let lookup = match &gateway.target {
        GatewayTarget::Hostname(key) => Lookup::Service(key.clone()),
        GatewayTarget::Address(address) => Lookup::Address(address.clone()),
    };
    view.lacks(&lookup).then_some(lookup)
}

fn find(view: &View, call: &Call<'_>, gateway: &Gateway, purpose: For) -> Option<Found> {
    let namespace = &call.source.namespace;
    let service = match &gateway.target {
        GatewayTarget::Hostname(key) => view.service(key),
        GatewayTarget::Address(address) => {
            if let Some(workload) = view.workload_by_address(address) {
                return Some(Found {
                    workload: workload.clone(),
                    sans: Vec::new(),
                    port: gateway.hbone_port,
                });
            }
            view.service_by_vip(address, namespace)
        }
    }?;
    let (workload, port) = choose_endpoint(view, call, service, gateway.hbone_port, purpose)?;
    Some(Found { workload, sans: service.subject_alt_names.clone(), port })
}

/// The gateway of a network that is named by a hostname which no service has: a load balancer's, to be resolved.
fn by_name(view: &View, gateway: &Gateway, network: &str) -> Option<Found> {
    let GatewayTarget::Hostname(key) = &gateway.target else { return None };
    let uid = Gateway::network_uid(network, &key.hostname, gateway.hbone_port);
    let workload = view.workload(&uid)?.clone();
    Some(Found { workload, sans: Vec::new(), port: gateway.hbone_port })
}

/// Whether `workload` is the gateway itself: what it sends must not be sent to it again, and what is sent to it may be
/// meant for others.
pub(crate) fn is_gateway(view: &View, workload: &Workload, gateway: &Gateway) -> bool {
    match &gateway.target {
        GatewayTarget::Hostname(key) => view.endpoints(key).any(|endpoint| endpoint.uid == workload.uid),
        GatewayTarget::Address(address) => {
            view.workload_by_address(address).is_some_and(|found| found.uid == workload.uid)
                || view.service_by_vip(address, &workload.namespace).is_some_and(|service| {
                    view.endpoints(&service.key).any(|endpoint| endpoint.uid == workload.uid)
                })
        }
    }
}

pub(super) fn choose_waypoint(service: &Service, random: u64) -> Option<&Gateway> {
    let weights = service.weighted_waypoints.iter().map(|waypoint| u64::from(waypoint.weight));
    match pick(weights, random) {
        Some(index) => service.weighted_waypoints.get(index).map(|waypoint| &waypoint.gateway),
        None => service.waypoint.as_ref(),
    }
}
