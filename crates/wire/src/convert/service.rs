//! Services.

use std::net::IpAddr;
use std::sync::Arc;

use mesh::{
    AppProtocol, Cidr, HealthPolicy, Identity, IpFamilies, LoadBalancing, LoadBalancingMode, NetworkAddress,
    RoutingScope, Service, ServiceKey, ServicePort, Visibility, WeightedWaypoint,
};

use super::{
    ConvertError, gateway, gateway_to_wire, ip_from_bytes, ip_to_bytes, known, network_address, port,
};
use crate::workload as pb;

impl TryFrom<pb::Service> for Service {
    type Error = ConvertError;

    fn try_from(s: pb::Service) -> Result<Self, Self::Error> {
        if s.hostname.is_empty() {
            return Err(ConvertError::new("service.hostname", "empty"));
        }
        let (mut vips, mut cidr_vips) = (Vec::new(), Vec::new());
        for address in s.addresses {
            let ip = ip_from_bytes("service.addresses", &address.address)?;
            match address.length {
                None => vips.push(NetworkAddress::new(address.network, ip)),
                Some(length) => {
                    cidr_vips.push((Arc::from(address.network), cidr("service.addresses", ip, length)?))
                }
            }
        }
        let ports = s.ports.iter().map(|p| {
            let target = port("service.ports", p.target_port)?;
            Ok(ServicePort {
                service_port: port("service.ports", p.service_port)?,
                target_port: (target != 0).then_some(target),
                app_protocol: app_protocol(p.app_protocol),
            })
        });
        let weighted = s.weighted_waypoints.into_iter().map(|waypoint| {
            const FIELD: &str = "service.weighted_waypoints";
            let destination =
                waypoint.destination.ok_or_else(|| ConvertError::new(FIELD, "no destination"))?;
            Ok(WeightedWaypoint { gateway: gateway(FIELD, destination)?, weight: waypoint.weight })
        });
        Ok(Self {
            ports: ports.collect::<Result<_, ConvertError>>()?,
            weighted_waypoints: weighted.collect::<Result<_, ConvertError>>()?,
            name: s.name.into(),
            key: ServiceKey::new(s.namespace, s.hostname),
            vips,
            cidr_vips,
            // Names that are no SPIFFE identities (DNS names, say) play no role at this layer.
            subject_alt_names: s
                .subject_alt_names
                .iter()
                .filter_map(|san| san.parse::<Identity>().ok())
                .collect(),
            waypoint: s.waypoint.map(|g| gateway("service.waypoint", g)).transpose()?,
            load_balancing: s.load_balancing.map(load_balancing).transpose()?,
            ip_families: match known("service.ip_families", s.ip_families)? {
                pb::IpFamilies::Automatic => IpFamilies::Automatic,
                pb::IpFamilies::Ipv4Only => IpFamilies::Ipv4Only,
                pb::IpFamilies::Ipv6Only => IpFamilies::Ipv6Only,
                pb::IpFamilies::Dual => IpFamilies::Dual,
            },
            canonical: s.canonical,
            ingress_use_waypoint: s.ingress_use_waypoint,
            visibility: match pb::Visibility::try_from(s.visibility) {
                Ok(pb::Visibility::Namespace) => Visibility::Namespace,
                Ok(pb::Visibility::Public) | Err(_) => Visibility::Public,
            },
        })
    }
}

pub(super) fn cidr(field: &'static str, ip: IpAddr, length: u32) -> Result<Cidr, ConvertError> {
    let prefix =
        u8::try_from(length).map_err(|_| ConvertError::new(field, format!("prefix length {length}")))?;
    Cidr::new(ip, prefix).map_err(|error| ConvertError::new(field, error.to_string()))
}

fn app_protocol(number: i32) -> AppProtocol {
    match pb::AppProtocol::try_from(number) {
        Ok(pb::AppProtocol::Http11) => AppProtocol::Http11,
        Ok(pb::AppProtocol::Http2) => AppProtocol::Http2,
        Ok(pb::AppProtocol::Grpc) => AppProtocol::Grpc,
        Ok(pb::AppProtocol::Tcp) => AppProtocol::Tcp,
        Ok(pb::AppProtocol::Tls) => AppProtocol::Tls,
        Ok(pb::AppProtocol::Unknown) | Err(_) => AppProtocol::Unknown,
    }
}

fn load_balancing(lb: pb::LoadBalancing) -> Result<LoadBalancing, ConvertError> {
    use pb::load_balancing::{HealthPolicy as PbHealth, Mode, Scope};
    let scope = |number: &i32| match known("service.load_balancing.routing_preference", *number)? {
        Scope::Region => Ok(RoutingScope::Region),
        Scope::Zone => Ok(RoutingScope::Zone),
        Scope::Subzone => Ok(RoutingScope::Subzone),
        Scope::Node => Ok(RoutingScope::Node),
        Scope::Cluster => Ok(RoutingScope::Cluster),
        Scope::Network => Ok(RoutingScope::Network),
        Scope::UnspecifiedScope => {
            Err(ConvertError::new("service.load_balancing.routing_preference", "unspecified scope"))
        }
    };
    Ok(LoadBalancing {
        routing_preference: lb.routing_preference.iter().map(scope).collect::<Result<_, _>>()?,
        mode: match known("service.load_balancing.mode", lb.mode)? {
            Mode::UnspecifiedMode => LoadBalancingMode::Unspecified,
            Mode::Strict => LoadBalancingMode::Strict,
            Mode::Failover => LoadBalancingMode::Failover,
            Mode::Passthrough => LoadBalancingMode::Passthrough,
        },
        health_policy: match known("service.load_balancing.health_policy", lb.health_policy)? {
            PbHealth::OnlyHealthy => HealthPolicy::OnlyHealthy,
            PbHealth::AllowAll => HealthPolicy::AllowAll,
        },
    })
}

impl From<&Service> for pb::Service {
    fn from(s: &Service) -> Self {
        let blocks = s.cidr_vips.iter().map(|(network, block)| pb::NetworkAddress {
            network: network.to_string(),
            address: ip_to_bytes(block.network()),
            length: Some(block.prefix().into()),
        });
        let port = |p: &ServicePort| pb::Port {
            service_port: p.service_port.into(),
            target_port: p.target_port.unwrap_or(0).into(),
            app_protocol: match p.app_protocol {
                AppProtocol::Unknown => pb::AppProtocol::Unknown,
                AppProtocol::Http11 => pb::AppProtocol::Http11,
                AppProtocol::Http2 => pb::AppProtocol::Http2,
                AppProtocol::Grpc => pb::AppProtocol::Grpc,
                AppProtocol::Tcp => pb::AppProtocol::Tcp,
                AppProtocol::Tls => pb::AppProtocol::Tls,
            }
            .into(),
        };
        let weighted = |waypoint: &WeightedWaypoint| pb::WeightedWaypoint {
            destination: Some(gateway_to_wire(&waypoint.gateway)),
            weight: waypoint.weight,
        };
        Self {
            name: s.name.to_string(),
            namespace: s.key.namespace.to_string(),
            hostname: s.key.hostname.to_string(),
            addresses: s.vips.iter().map(network_address).chain(blocks).collect(),
            ports: s.ports.iter().map(port).collect(),
            subject_alt_names: s.subject_alt_names.iter().map(ToString::to_string).collect(),
            waypoint: s.waypoint.as_ref().map(gateway_to_wire),
            load_balancing: s.load_balancing.as_ref().map(load_balancing_to_wire),
            ip_families: match s.ip_families {
                IpFamilies::Automatic => pb::IpFamilies::Automatic,
                IpFamilies::Ipv4Only => pb::IpFamilies::Ipv4Only,
                IpFamilies::Ipv6Only => pb::IpFamilies::Ipv6Only,
                IpFamilies::Dual => pb::IpFamilies::Dual,
            }
            .into(),
            extensions: Vec::new(),
            canonical: s.canonical,
            ingress_use_waypoint: s.ingress_use_waypoint,
            weighted_waypoints: s.weighted_waypoints.iter().map(weighted).collect(),
            visibility: match s.visibility {
                Visibility::Public => pb::Visibility::Public,
                Visibility::Namespace => pb::Visibility::Namespace,
            }
            .into(),
        }
    }
}

fn load_balancing_to_wire(lb: &LoadBalancing) -> pb::LoadBalancing {
    use pb::load_balancing::{HealthPolicy as PbHealth, Mode, Scope};
    let scope = |scope: &RoutingScope| {
        match scope {
            RoutingScope::Region => Scope::Region,
            RoutingScope::Zone => Scope::Zone,
            RoutingScope::Subzone => Scope::Subzone,
            RoutingScope::Node => Scope::Node,
            RoutingScope::Cluster => Scope::Cluster,
            RoutingScope::Network => Scope::Network,
        }
        .into()
    };
    pb::LoadBalancing {
        routing_preference: lb.routing_preference.iter().map(scope).collect(),
        mode: match lb.mode {
            LoadBalancingMode::Unspecified => Mode::UnspecifiedMode,
            LoadBalancingMode::Strict => Mode::Strict,
            LoadBalancingMode::Failover => Mode::Failover,
            LoadBalancingMode::Passthrough => Mode::Passthrough,
        }
        .into(),
        health_policy: match lb.health_policy {
            HealthPolicy::OnlyHealthy => PbHealth::OnlyHealthy,
            HealthPolicy::AllowAll => PbHealth::AllowAll,
        }
        .into(),
    }
}
