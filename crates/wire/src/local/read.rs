//! From the file's form to the types of the mesh; what makes no sense is refused with the object's name.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use mesh::{Cidr, GatewayTarget, Identity, NetworkAddress, PortMapping, ServiceKey, Tunnel};

use super::{Local, LocalError, shape};

impl shape::File {
    pub(super) fn read(self) -> Result<Local, LocalError> {
        fn all<S, M>(
            kind: &str,
            shapes: Vec<S>,
            name: impl Fn(&S) -> String,
            read: impl Fn(S) -> Result<M, String>,
        ) -> Result<Vec<M>, LocalError> {
            let one = |shape: S| {
                let object = || format!("{kind} {}", name(&shape));
                // Named only when it is needed: there may be very many.
                let label = object();
                read(shape).map_err(|reason| LocalError::Object { object: label, reason })
            };
            shapes.into_iter().map(one).collect()
        }
        Ok(Local {
            workloads: all("workload", self.workloads, |w| format!("{}/{}", w.namespace, w.name), workload)?,
            services: all("service", self.services, |s| format!("{}/{}", s.namespace, s.hostname), service)?,
            policies: all("policy", self.policies, |p| format!("{}/{}", p.namespace, p.name), policy)?,
        })
    }
}

fn or(text: Arc<str>, default: &str) -> Arc<str> {
    if text.is_empty() { default.into() } else { text }
}

fn workload(w: shape::Workload) -> Result<mesh::Workload, String> {
    let text = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
    let identity = Identity::new(
        text(&w.trust_domain, "cluster.local"),
        text(&w.namespace, "-"),
        text(&w.service_account, "default"),
    );
    let uid = match w.uid.is_empty() {
        true => format!("Kubernetes//Pod/{}/{}", w.namespace, w.name),
        false => w.uid,
    };
    let mut services = BTreeMap::new();
    for (name, ports) in w.services.0 {
        let key: ServiceKey = name.parse().map_err(|error| format!("services: {name:?}: {error}"))?;
        let mapping = |(service_port, target_port)| PortMapping { service_port, target_port };
        services.insert(key, ports.into_iter().map(mapping).collect());
    }
    let name: Arc<str> = w.name.into();
    Ok(mesh::Workload {
        uid: uid.into(),
        namespace: w.namespace.into(),
        network: w.network,
        addresses: w.workload_ips.iter().map(IpAddr::to_canonical).collect(),
        hostname: (!w.hostname.is_empty()).then_some(w.hostname),
        tunnel: match w.protocol {
            shape::Protocol::Tcp => Tunnel::None,
            shape::Protocol::Hbone => Tunnel::Hbone,
        },
        native_tunnel: w.native_tunnel,
        identity: identity.map_err(|error| error.to_string())?,
        waypoint: gateway("waypoint", w.waypoint)?,
        network_gateway: gateway("networkGateway", w.network_gateway)?,
        node: w.node,
        cluster: or(w.cluster_id, "Kubernetes"),
        canonical_name: or(w.canonical_name, &name),
        canonical_revision: or(w.canonical_revision, "latest"),
        workload_name: or(w.workload_name, &name),
        workload_type: match w.workload_type {
            shape::WorkloadType::Deployment => mesh::WorkloadType::Deployment,
            shape::WorkloadType::CronJob => mesh::WorkloadType::CronJob,
            shape::WorkloadType::Pod => mesh::WorkloadType::Pod,
            shape::WorkloadType::Job => mesh::WorkloadType::Job,
        },
        policies: w.authorization_policies,
        health: match w.status {
            shape::Status::Healthy => mesh::Health::Healthy,
            shape::Status::Unhealthy => mesh::Health::Unhealthy,
        },
        services,
        application_tunnel: w.application_tunnel.map(|tunnel| mesh::ApplicationTunnel {
            proxy_protocol: matches!(tunnel.protocol, shape::TunnelProtocol::Proxy),
            port: tunnel.port.filter(|port| *port != 0),
        }),
        locality: mesh::Locality {
            region: w.locality.region,
            zone: w.locality.zone,
            subzone: w.locality.subzone,
        },
        network_mode: match w.network_mode {
            shape::NetworkMode::Standard => mesh::NetworkMode::Standard,
            shape::NetworkMode::HostNetwork => mesh::NetworkMode::HostNetwork,
        },
        capacity: w.capacity.unwrap_or(1),
        name,
    })
}

fn network_address(field: &str, text: &str) -> Result<NetworkAddress, String> {
    let parsed = text.split_once('/').and_then(|(network, ip)| Some((network, ip.parse().ok()?)));
    let (network, ip) = parsed.ok_or_else(|| format!("{field}: {text:?} is not of the form network/ip"))?;
    Ok(NetworkAddress::new(network, ip))
}

fn gateway(field: &str, gateway: Option<shape::Gateway>) -> Result<Option<mesh::Gateway>, String> {
    let Some(gateway) = gateway else { return Ok(None) };
    let destination = gateway.destination;
    let target =
        match network_address(field, &destination) {
            Ok(address) => GatewayTarget::Address(address),
            Err(_) => GatewayTarget::Hostname(destination.parse().map_err(|_| {
                format!("{field}: {destination:?} is neither network/ip nor namespace/hostname")
            })?),
        };
    let hbone_port = if gateway.hbone_mtls_port == 0 { mesh::HBONE_PORT } else { gateway.hbone_mtls_port };
    Ok(Some(mesh::Gateway { target, hbone_port }))
}

fn service(s: shape::Service) -> Result<mesh::Service, String> {
    if s.hostname.is_empty() {
        return Err("hostname: empty".into());
    }
    let block = |block: shape::Block| {
        let cidr = block.cidr.parse().map_err(|error: mesh::CidrError| format!("cidrVips: {error}"))?;
        Ok((block.network.into(), cidr))
    };
    let weighted = |waypoint: shape::WeightedWaypoint| {
        let destination = gateway("weightedWaypoints", Some(waypoint.destination))?;
        Ok(destination.map(|gateway| mesh::WeightedWaypoint { gateway, weight: waypoint.weight }))
    };
    let port = |(service_port, target): (u16, u16)| mesh::ServicePort {
        service_port,
        target_port: (target != 0).then_some(target),
        app_protocol: mesh::AppProtocol::Unknown,
    };
    let weighted: Result<Vec<_>, String> = s.weighted_waypoints.into_iter().map(weighted).collect();
    Ok(mesh::Service {
        vips: s.vips.iter().map(|vip| network_address("vips", vip)).collect::<Result<_, _>>()?,
        cidr_vips: s.cidr_vips.into_iter().map(block).collect::<Result<_, String>>()?,
        ports: s.ports.into_iter().map(port).collect(),
        subject_alt_names: s.subject_alt_names.iter().filter_map(|san| san.parse().ok()).collect(),
        waypoint: gateway("waypoint", s.waypoint)?,
        weighted_waypoints: weighted?.into_iter().flatten().collect(),
        load_balancing: s.load_balancer.map(load_balancing),
        ip_families: match s.ip_families {
            None => mesh::IpFamilies::Automatic,
            Some(shape::IpFamilies::V4) => mesh::IpFamilies::Ipv4Only,
            Some(shape::IpFamilies::V6) => mesh::IpFamilies::Ipv6Only,
            Some(shape::IpFamilies::Dual) => mesh::IpFamilies::Dual,
        },
        canonical: s.canonical,
        ingress_use_waypoint: false,
        visibility: match s.visibility {
            shape::Visibility::Public => mesh::Visibility::Public,
            shape::Visibility::Namespace => mesh::Visibility::Namespace,
        },
        name: s.name,
        key: ServiceKey::new(s.namespace, s.hostname),
    })
}

fn load_balancing(lb: shape::LoadBalancer) -> mesh::LoadBalancing {
    let scope = |scope: shape::RoutingScope| match scope {
        shape::RoutingScope::Region => mesh::RoutingScope::Region,
        shape::RoutingScope::Zone => mesh::RoutingScope::Zone,
        shape::RoutingScope::Subzone => mesh::RoutingScope::Subzone,
        shape::RoutingScope::Node => mesh::RoutingScope::Node,
        shape::RoutingScope::Cluster => mesh::RoutingScope::Cluster,
        shape::RoutingScope::Network => mesh::RoutingScope::Network,
    };
    mesh::LoadBalancing {
        routing_preference: lb.routing_preferences.into_iter().map(scope).collect(),
        mode: match lb.mode {
            shape::Mode::Standard => mesh::LoadBalancingMode::Unspecified,
            shape::Mode::Strict => mesh::LoadBalancingMode::Strict,
            shape::Mode::Failover => mesh::LoadBalancingMode::Failover,
            shape::Mode::Passthrough => mesh::LoadBalancingMode::Passthrough,
        },
        health_policy: match lb.health_policy {
            shape::HealthPolicy::OnlyHealthy => mesh::HealthPolicy::OnlyHealthy,
            shape::HealthPolicy::AllowAll => mesh::HealthPolicy::AllowAll,
        },
    }
}

fn policy(p: shape::Policy) -> Result<mesh::Policy, String> {
    let clause = |matches: Vec<shape::Match>| {
        Ok(mesh::Clause { matches: matches.into_iter().map(matching).collect::<Result<_, String>>()? })
    };
    let rule = |clauses: Vec<Vec<shape::Match>>| {
        Ok(mesh::Rule { clauses: clauses.into_iter().map(clause).collect::<Result<_, String>>()? })
    };
    Ok(mesh::Policy {
        name: p.name,
        namespace: p.namespace,
        scope: match p.scope {
            shape::Scope::Global => mesh::Scope::Global,
            shape::Scope::Namespace => mesh::Scope::Namespace,
            shape::Scope::WorkloadSelector => mesh::Scope::WorkloadSelector,
        },
        action: match p.action {
            shape::Action::Allow => mesh::Action::Allow,
            shape::Action::Deny => mesh::Action::Deny,
        },
        rules: p.rules.into_iter().map(rule).collect::<Result<_, String>>()?,
        dry_run: p.dry_run,
    })
}

fn matching(m: shape::Match) -> Result<mesh::Match, String> {
    let texts = |texts: Vec<shape::Text>| {
        let one = |text| match text {
            shape::Text::Exact(text) => mesh::StringMatch::Exact(text),
            shape::Text::Prefix(text) => mesh::StringMatch::Prefix(text),
            shape::Text::Suffix(text) => mesh::StringMatch::Suffix(text),
            shape::Text::Presence(_) => mesh::StringMatch::Presence,
        };
        texts.into_iter().map(one).collect()
    };
    let accounts = |accounts: Vec<shape::Account>| {
        let one = |account: shape::Account| mesh::ServiceAccountMatch {
            namespace: account.namespace,
            service_account: account.service_account,
        };
        accounts.into_iter().map(one).collect()
    };
    let blocks = |field: &str, blocks: &[String]| -> Result<Vec<Cidr>, String> {
        blocks.iter().map(|block| block.parse().map_err(|error| format!("{field}: {error}"))).collect()
    };
    Ok(mesh::Match {
        namespaces: texts(m.namespaces),
        not_namespaces: texts(m.not_namespaces),
        principals: texts(m.principals),
        not_principals: texts(m.not_principals),
        service_accounts: accounts(m.service_accounts),
        not_service_accounts: accounts(m.not_service_accounts),
        source_ips: blocks("sourceIps", &m.source_ips)?,
        not_source_ips: blocks("notSourceIps", &m.not_source_ips)?,
        destination_ips: blocks("destinationIps", &m.destination_ips)?,
        not_destination_ips: blocks("notDestinationIps", &m.not_destination_ips)?,
        destination_ports: m.destination_ports,
        not_destination_ports: m.not_destination_ports,
    })
}
