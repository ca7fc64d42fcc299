//! Kubernetes Service to mesh service (reference/control-plane.md §1.5).

use std::sync::Arc;

use mesh::{
    HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, NetworkAddress, RoutingScope, Service,
    ServicePort,
};

use super::{Bound, Settings, app_protocol};
use crate::input::{self, TargetPort, TrafficDistribution};

/// The service, or nothing when it is no part of the mesh: a DNS alias, or addresses that are none.
///
/// `namespace` is how traffic is spread in its namespace when the service says nothing; `bound` is its waypoint.
pub fn service(
    settings: &Settings,
    network: &Arc<str>,
    namespace: Option<TrafficDistribution>,
    bound: Option<&Bound>,
    input: &input::Service,
) -> Option<Service> {
    if input.external {
        return None;
    }
    let vips = input.vips.as_ref()?;
    let mut service = Service::new(input.key.name.clone(), settings.service_key(&input.key));
    service.vips = vips.iter().map(|ip| NetworkAddress::new(network.clone(), *ip)).collect();
    service.ports = input
        .ports
        .iter()
        .map(|port| ServicePort {
            service_port: port.port,
            target_port: match &port.target {
                TargetPort::Number(number) => Some(*number),
                TargetPort::Name(_) => None,
            },
            app_protocol: app_protocol(port),
        })
        .collect();
    service.load_balancing = load_balancing(input, namespace);
    service.ip_families = match input.families {
        (0, 0) => IpFamilies::Automatic,
        (_, 0) => IpFamilies::Ipv4Only,
        (0, _) => IpFamilies::Ipv6Only,
        _ => IpFamilies::Dual,
    };
    service.canonical = true;
    if let Some(bound) = bound {
        service.waypoint = Some(bound.primary.gateway.clone());
        service.weighted_waypoints = bound.weighted();
        service.ingress_use_waypoint = bound.ingress;
    }
    Some(service)
}

fn load_balancing(input: &input::Service, namespace: Option<TrafficDistribution>) -> Option<LoadBalancing> {
    let (mode, routing_preference) = if input.local_only {
        (LoadBalancingMode::Strict, vec![RoutingScope::Node])
    } else {
        spread(input.distribution.or(namespace)).unwrap_or((LoadBalancingMode::Unspecified, Vec::new()))
    };
    let health_policy =
        if input.publish_not_ready { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    let says_something = mode != LoadBalancingMode::Unspecified || input.publish_not_ready;
    says_something.then_some(LoadBalancing { routing_preference, mode, health_policy })
}

/// What it means to spread traffic so; nothing when anywhere will do.
pub(super) fn spread(
    distribution: Option<TrafficDistribution>,
) -> Option<(LoadBalancingMode, Vec<RoutingScope>)> {
    use RoutingScope::{Network, Node, Region, Subzone, Zone};
    match distribution? {
        TrafficDistribution::SameZone => Some((LoadBalancingMode::Failover, vec![Network, Region, Zone])),
        TrafficDistribution::SameNode => {
            Some((LoadBalancingMode::Failover, vec![Network, Region, Zone, Subzone, Node]))
        }
        TrafficDistribution::Any => None,
    }
}
