//! Services and endpoint slices.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::condition::{self, StatusCondition};
use super::{Attachment, Key, Labels};

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: Key,
    /// What it selects; empty selects nothing.
    pub selector: Labels,
    /// Type ExternalName: a DNS alias, no part of the mesh.
    pub external: bool,
    /// Cluster addresses; none when one of them is no address.
    pub vips: Option<Vec<IpAddr>>,
    /// Ports.
    pub ports: Vec<Port>,
    /// Number of IPv4 and IPv6 entries of `spec.ipFamilies`.
    pub families: (usize, usize),
    /// `internalTrafficPolicy: Local`.
    pub local_only: bool,
    /// Endpoints count even when not ready.
    pub publish_not_ready: bool,
    /// How traffic is spread, when it says so itself.
    pub distribution: Option<TrafficDistribution>,
    /// Waypoints.
    pub attachment: Attachment,
    /// Conditions that stand on it.
    pub conditions: Vec<StatusCondition>,
}

/// A port of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Name; may be empty.
    pub name: String,
    /// Port that clients call.
    pub port: u16,
    /// Port of the endpoints.
    pub target: TargetPort,
    /// Transport.
    pub protocol: Protocol,
    /// What is spoken there, when declared.
    pub app_protocol: Option<String>,
}

/// Port of the endpoints of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum TargetPort {
    Number(u16),
    Name(String),
}

/// Transport of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Protocol {
    Tcp,
    Other,
}

impl Protocol {
    fn parse(text: Option<&str>) -> Self {
        if text.unwrap_or("TCP") == "TCP" { Self::Tcp } else { Self::Other }
    }
}

/// How traffic of a service is spread over its endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrafficDistribution {
    /// Anywhere.
    Any,
    /// Close ones first.
    SameZone,
    /// Those of the client's node first.
    SameNode,
}

impl TrafficDistribution {
    /// From annotation `networking.istio.io/traffic-distribution`; an unknown value means anywhere.
    pub fn from_annotations(annotations: Option<&Labels>) -> Option<Self> {
        let value = annotations?.get("networking.istio.io/traffic-distribution")?;
        Some(Self::parse(value).unwrap_or(Self::Any))
    }

    fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "preferclose" | "prefersamezone" => Some(Self::SameZone),
            "prefersamenode" => Some(Self::SameNode),
            _ => None,
        }
    }
}

impl From<core::Service> for Service {
    fn from(service: core::Service) -> Self {
        let key = super::key_of(&service.metadata);
        let spec = service.spec.unwrap_or_default();
        let mut texts = spec.cluster_ips.unwrap_or_default();
        if texts.is_empty() {
            texts.extend(spec.cluster_ip);
        }
        texts.retain(|text| !text.is_empty() && text != "None");
        let vips = texts.iter().map(|text| text.parse::<IpAddr>().map(|ip| ip.to_canonical())).collect();
        let vips = match vips {
            Ok(vips) => Some(vips),
            Err(_) => {
                tracing::warn!(service = %key, addresses = ?texts, "service left out of the mesh: not all of its cluster addresses are IP addresses");
                None
            }
        };
        let ports = spec
            .ports
            .unwrap_or_default()
            .into_iter()
            .filter_map(|port| {
                let number = u16::try_from(port.port).ok()?;
                Some(Port {
                    name: port.name.unwrap_or_default(),
                    port: number,
                    target: match port.target_port {
                        None | Some(IntOrString::Int(0)) => TargetPort::Number(number),
                        Some(IntOrString::Int(target)) => TargetPort::Number(u16::try_from(target).ok()?),
                        // Whatever wrote the object may have written a number as text.
                        Some(IntOrString::String(name)) => match name.parse() {
                            Ok(target) => TargetPort::Number(target),
                            Err(_) => TargetPort::Name(name),
                        },
                    },
                    protocol: Protocol::parse(port.protocol.as_deref()),
                    app_protocol: port.app_protocol,
                })
            })
            .collect();
        let families = spec.ip_families.unwrap_or_default();
        let count = |family: &str| families.iter().filter(|have| *have == family).count();
        Self {
            selector: spec.selector.unwrap_or_default(),
            external: spec.type_.as_deref() == Some("ExternalName"),
            vips,
            ports,
            families: (count("IPv4"), count("IPv6")),
            local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
            publish_not_ready: spec.publish_not_ready_addresses.unwrap_or(false),
            distribution: spec
                .traffic_distribution
                .as_deref()
                .and_then(TrafficDistribution::parse)
                .or_else(|| TrafficDistribution::from_annotations(service.metadata.annotations.as_ref())),
            attachment: Attachment::read(
                service.metadata.labels.as_ref(),
                service.metadata.annotations.as_ref(),
                &key.namespace,
            ),
            conditions: condition::of_builtin(service.status.and_then(|status| status.conditions)),
            key,
        }
    }
}

/// An endpoint slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// Namespace and name.
    pub key: Key,
    /// The service it belongs to; slices without one are no part of the mesh.
    pub service: Option<Arc<str>>,
    /// Its endpoints are names, not addresses.
    pub fqdn: bool,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
    /// Ports.
    pub ports: Vec<SlicePort>,
}

/// An endpoint of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Addresses; none when one of them is no address.
    pub addresses: Option<Vec<IpAddr>>,
    /// Ready, or nothing said about it.
    pub ready: bool,
    /// The pod it is, with its UID.
    pub pod: Option<(Key, Arc<str>)>,
}

/// A port of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the service's port.
    pub name: String,
    /// Number.
    pub port: u16,
    /// Transport.
    pub protocol: Protocol,
}

impl From<discovery::EndpointSlice> for Slice {
    fn from(slice: discovery::EndpointSlice) -> Self {
        let key = super::key_of(&slice.metadata);
        let service = slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get("kubernetes.io/service-name"))
            .filter(|name| !name.is_empty())
            .map(|name| name.as_str().into());
        let endpoints = slice
            .endpoints
            .into_iter()
            .map(|endpoint| Endpoint {
                addresses: endpoint
                    .addresses
                    .iter()
                    .map(|text| text.parse::<IpAddr>().map(|ip| ip.to_canonical()).ok())
                    .collect(),
                ready: endpoint.conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
                pod: endpoint.target_ref.filter(|target| target.kind.as_deref() == Some("Pod")).map(
                    |target| {
                        (
                            Key::new(
                                target.namespace.as_deref().unwrap_or(&key.namespace),
                                target.name.as_deref().unwrap_or_default(),
                            ),
                            target.uid.as_deref().unwrap_or_default().into(),
                        )
                    },
                ),
            })
            .collect();
        let ports = slice
            .ports
            .unwrap_or_default()
            .into_iter()
            .filter_map(|port| {
                Some(SlicePort {
                    name: port.name.unwrap_or_default(),
                    port: u16::try_from(port.port?).ok()?,
                    protocol: Protocol::parse(port.protocol.as_deref()),
                })
            })
            .collect();
        Self { service, fqdn: slice.address_type == "FQDN", endpoints, ports, key }
    }
}
