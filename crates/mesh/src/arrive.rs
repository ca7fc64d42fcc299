//! Where a stream that arrives in a tunnel leads: always to the workload whose proxy was dialled, at a port that is to be
//! found out, or, for waypoints, to its application tunnel (reference/data-plane.md §5, steps 1 and 2).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::decide::is_gateway;
use crate::{Authority, MESH_PORTS, NetworkAddress, Refusal, Service, View, Workload};

/// What becomes of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// Address and port of the workload, as policies see them.
    pub target: SocketAddr,
    /// What is dialled; differs from `target` for an application tunnel that listens on loopback.
    pub dial: SocketAddr,
    /// A PROXY protocol header precedes the stream, with this as the destination that was asked for.
    pub proxy_header: Option<SocketAddr>,
}

/// Why a stream is not for this workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotHere {
    /// Somebody else has the address.
    #[error("ip mismatch: {asked} was asked for at {at}, which is another pod")]
    IpMismatch {
        /// What was asked for.
        asked: Authority,
        /// Where.
        at: SocketAddr,
    },
    /// The name leads nowhere.
    #[error("no valid destination: {0} names no service whose port leads to this workload")]
    Unresolvable(Authority),
    /// It leads to the mesh itself.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

/// Decides where a stream to `authority`, arriving at `local` (the address that was dialled) of `workload`, leads.
/// With `on_loopback`, application tunnels are reached on loopback.
pub fn arrive(
    view: &View,
    workload: &Workload,
    local: SocketAddr,
    authority: &Authority,
    on_loopback: bool,
) -> Result<Arrival, NotHere> {
    let tunnel = workload.application_tunnel;
    let (port, asked) = match authority {
        Authority::Address(asked) => {
            let ours = asked.ip() == local.ip() || tunnel.is_some() || waypoint_for(view, workload, *asked);
            if !ours {
                return Err(NotHere::IpMismatch { asked: authority.clone(), at: local });
            }
            (asked.port(), Some(*asked))
        }
        Authority::Hostname(hostname, port) => {
            let service = view.service_by_hostname(hostname, &workload.namespace);
            let target = service.and_then(|service| {
                let own = workload.services.get(&service.key).into_iter().flatten();
                let own = own.filter(|mapping| mapping.service_port == *port);
                let own = own.map(|mapping| mapping.target_port).next();
                own.or_else(|| service.port(*port)?.target_port)
            });
            let overridden = tunnel.and_then(|tunnel| tunnel.port);
            let target = target.or(overridden).ok_or_else(|| NotHere::Unresolvable(authority.clone()))?;
            let vip = service.and_then(|service| vip(service, &workload.network));
            (target, vip.map(|vip| SocketAddr::new(vip, *port)))
        }
    };
    let port = tunnel.and_then(|tunnel| tunnel.port).unwrap_or(port);
    let target = SocketAddr::new(local.ip(), port);
    if MESH_PORTS.contains(&port) {
        return Err(Refusal::SelfCall(target).into());
    }
    let loopback: IpAddr = match local.ip() {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let dial = if tunnel.is_some() && on_loopback { SocketAddr::new(loopback, port) } else { target };
    let proxied = tunnel.is_some_and(|tunnel| tunnel.proxy_protocol);
    Ok(Arrival { target, dial, proxy_header: asked.filter(|_| proxied) })
}

/// Whether whoever has the address named this workload as a waypoint.
fn waypoint_for(view: &View, workload: &Workload, asked: SocketAddr) -> bool {
    let address = NetworkAddress::new(workload.network.clone(), asked.ip());
    let by_address = view.workload_by_address(&address);
    let by_vip = view.service_by_vip(&address, &workload.namespace);
    let of_workload = by_address.and_then(|found| found.waypoint.as_ref()).into_iter();
    let of_service = by_vip.into_iter().flat_map(|service| {
        let weighted = service.weighted_waypoints.iter().map(|waypoint| &waypoint.gateway);
        service.waypoint.iter().chain(weighted)
    });
    of_workload.chain(of_service).any(|gateway| is_gateway(view, workload, gateway))
}

/// The address of a service that an application is told: of the own network first, IPv4 first.
fn vip(service: &Service, network: &str) -> Option<IpAddr> {
    let rank = |address: &&NetworkAddress| (&*address.network != network, address.ip.is_ipv6());
    service.vips.iter().min_by_key(rank).map(|address| address.ip)
}

#[cfg(test)]
mod tests;
