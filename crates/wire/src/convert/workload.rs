//! Workloads.

use std::collections::BTreeMap;

use mesh::{
    ApplicationTunnel, Health, Identity, Locality, NetworkMode, PortMapping, ServiceKey, Tunnel, Workload,
    WorkloadType,
};

use super::{ConvertError, gateway, gateway_to_wire, ip_from_bytes, ip_to_bytes, known, or_default, port};
use crate::workload as pb;

/// What an empty `trust_domain` means.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";

impl TryFrom<pb::Workload> for Workload {
    type Error = ConvertError;

    fn try_from(w: pb::Workload) -> Result<Self, Self::Error> {
        if w.uid.is_empty() {
            return Err(ConvertError::new("workload.uid", "empty"));
        }
        let tunnel = match known("workload.tunnel_protocol", w.tunnel_protocol)? {
            pb::TunnelProtocol::None => Tunnel::None,
            pb::TunnelProtocol::Hbone => Tunnel::Hbone,
            pb::TunnelProtocol::LegacyIstioMtls => {
                return Err(ConvertError::new(
                    "workload.tunnel_protocol",
                    "LEGACY_ISTIO_MTLS is not supported",
                ));
            }
        };
        // Names that make no identity (a gateway has none, say) get one that nobody can present.
        let identity = Identity::new(
            or_default(w.trust_domain, DEFAULT_TRUST_DOMAIN),
            or_default(w.namespace.clone(), "-"),
            or_default(w.service_account, "default"),
        )
        .map_err(|error| ConvertError::new("workload.service_account", error.to_string()))?;
        let addresses = w.addresses.iter().map(|bytes| ip_from_bytes("workload.addresses", bytes));
        let services = w.services.into_iter().map(|(key, ports)| {
            let key: ServiceKey = key
                .parse()
                .map_err(|error: &str| ConvertError::new("workload.services", format!("{key:?}: {error}")))?;
            Ok((key, mappings(ports)?))
        });
        Ok(Self {
            addresses: addresses.collect::<Result<_, _>>()?,
            services: services.collect::<Result<BTreeMap<_, _>, ConvertError>>()?,
            uid: w.uid.into(),
            name: w.name.into(),
            namespace: w.namespace.into(),
            network: w.network.into(),
            hostname: (!w.hostname.is_empty()).then(|| w.hostname.into()),
            tunnel,
            native_tunnel: w.native_tunnel,
            identity,
            waypoint: w.waypoint.map(|g| gateway("workload.waypoint", g)).transpose()?,
            network_gateway: w.network_gateway.map(|g| gateway("workload.network_gateway", g)).transpose()?,
            node: w.node.into(),
            cluster: or_default(w.cluster_id, "Kubernetes"),
            canonical_name: w.canonical_name.into(),
            canonical_revision: w.canonical_revision.into(),
            workload_name: w.workload_name.into(),
            workload_type: match pb::WorkloadType::try_from(w.workload_type) {
                Ok(pb::WorkloadType::Cronjob) => WorkloadType::CronJob,
                Ok(pb::WorkloadType::Pod) => WorkloadType::Pod,
                Ok(pb::WorkloadType::Job) => WorkloadType::Job,
                Ok(pb::WorkloadType::Deployment) | Err(_) => WorkloadType::Deployment,
            },
            policies: w.authorization_policies.into_iter().map(Into::into).collect(),
            health: match known("workload.status", w.status)? {
                pb::WorkloadStatus::Healthy => Health::Healthy,
                pb::WorkloadStatus::Unhealthy => Health::Unhealthy,
            },
            application_tunnel: w.application_tunnel.map(application_tunnel).transpose()?,
            locality: w.locality.map(locality).unwrap_or_default(),
            network_mode: match known("workload.network_mode", w.network_mode)? {
                pb::NetworkMode::Standard => NetworkMode::Standard,
                pb::NetworkMode::HostNetwork => NetworkMode::HostNetwork,
            },
            capacity: w.capacity.unwrap_or(1),
        })
    }
}

fn mappings(ports: pb::PortList) -> Result<Vec<PortMapping>, ConvertError> {
    const FIELD: &str = "workload.services";
    let mapping = |p: &pb::Port| {
        Ok(PortMapping {
            service_port: port(FIELD, p.service_port)?,
            target_port: port(FIELD, p.target_port)?,
        })
    };
    ports.ports.iter().map(mapping).collect()
}

fn application_tunnel(tunnel: pb::ApplicationTunnel) -> Result<ApplicationTunnel, ConvertError> {
    use pb::application_tunnel::Protocol;
    let port = port("workload.application_tunnel.port", tunnel.port)?;
    let protocol: Protocol = known("workload.application_tunnel.protocol", tunnel.protocol)?;
    Ok(ApplicationTunnel { proxy_protocol: protocol == Protocol::Proxy, port: (port != 0).then_some(port) })
}

fn locality(locality: pb::Locality) -> Locality {
    Locality { region: locality.region.into(), zone: locality.zone.into(), subzone: locality.subzone.into() }
}

impl From<&Workload> for pb::Workload {
    fn from(w: &Workload) -> Self {
        let trust_domain = match w.identity.trust_domain() {
            DEFAULT_TRUST_DOMAIN => String::new(),
            other => other.to_owned(),
        };
        let known_locality = w.locality != Locality::default();
        Self {
            name: w.name.to_string(),
            namespace: w.namespace.to_string(),
            addresses: w.addresses.iter().copied().map(ip_to_bytes).collect(),
            network: w.network.to_string(),
            tunnel_protocol: match w.tunnel {
                Tunnel::None => pb::TunnelProtocol::None,
                Tunnel::Hbone => pb::TunnelProtocol::Hbone,
            }
            .into(),
            trust_domain,
            service_account: w.identity.service_account().to_owned(),
            waypoint: w.waypoint.as_ref().map(gateway_to_wire),
            node: w.node.to_string(),
            canonical_name: w.canonical_name.to_string(),
            canonical_revision: w.canonical_revision.to_string(),
            workload_type: match w.workload_type {
                WorkloadType::Deployment => pb::WorkloadType::Deployment,
                WorkloadType::CronJob => pb::WorkloadType::Cronjob,
                WorkloadType::Pod => pb::WorkloadType::Pod,
                WorkloadType::Job => pb::WorkloadType::Job,
            }
            .into(),
            workload_name: w.workload_name.to_string(),
            native_tunnel: w.native_tunnel,
            authorization_policies: w.policies.iter().map(|key| key.to_string()).collect(),
            status: match w.health {
                Health::Healthy => pb::WorkloadStatus::Healthy,
                Health::Unhealthy => pb::WorkloadStatus::Unhealthy,
            }
            .into(),
            cluster_id: w.cluster.to_string(),
            network_gateway: w.network_gateway.as_ref().map(gateway_to_wire),
            uid: w.uid.to_string(),
            hostname: w.hostname.as_deref().unwrap_or_default().to_owned(),
            services: w.services.iter().map(|(key, ports)| (key.to_string(), port_list(ports))).collect(),
            application_tunnel: w.application_tunnel.map(|tunnel| pb::ApplicationTunnel {
                protocol: i32::from(tunnel.proxy_protocol),
                port: tunnel.port.unwrap_or(0).into(),
            }),
            locality: known_locality.then(|| pb::Locality {
                region: w.locality.region.to_string(),
                zone: w.locality.zone.to_string(),
                subzone: w.locality.subzone.to_string(),
            }),
            network_mode: match w.network_mode {
                NetworkMode::Standard => pb::NetworkMode::Standard,
                NetworkMode::HostNetwork => pb::NetworkMode::HostNetwork,
            }
            .into(),
            extensions: Vec::new(),
            capacity: (w.capacity != 1).then_some(w.capacity),
        }
    }
}

fn port_list(ports: &[PortMapping]) -> pb::PortList {
    let port = |mapping: &PortMapping| pb::Port {
        service_port: mapping.service_port.into(),
        target_port: mapping.target_port.into(),
        app_protocol: 0,
    };
    pb::PortList { ports: ports.iter().map(port).collect() }
}
