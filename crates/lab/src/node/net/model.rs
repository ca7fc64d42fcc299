//! What a node needs to know of Services: their addresses, ports and the endpoints behind them, as plain data.
//!
//! It owns the translation from Kubernetes objects, and nothing else: no IO, no clock. The packet rules
//! ([`super::services`]) and the resolver ([`super::dns`]) both read the same [`Snapshot`], so a name and the
//! address behind it cannot disagree.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// The label by which a slice names its Service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ServiceKey {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl ServiceKey {
    /// The key of `namespace/name`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// Layer 4 protocols a Service port may have here. SCTP is not carried by the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP, also when a port names none.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// `tcp` or `udp`, as packet rules and SRV names write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }

    fn parse(text: Option<&str>) -> Option<Self> {
        match text {
            None | Some("TCP") => Some(Protocol::Tcp),
            Some("UDP") => Some(Protocol::Udp),
            Some(_) => None,
        }
    }
}

/// One port of a Service with what is behind it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The port's name, empty when it has none.
    pub name: String,
    /// The protocol.
    pub protocol: Protocol,
    /// The port clients call.
    pub port: u16,
    /// The port on every node's own address, for Services of type NodePort and LoadBalancer.
    pub node_port: Option<u16>,
    /// Where a connection may go, sorted.
    pub backends: Vec<Backend>,
}

/// Where a connection to a Service port may go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Backend {
    /// Address and target port.
    pub address: SocketAddr,
    /// The node it runs on, as far as the slice says so.
    pub node: Option<String>,
}

/// One ready endpoint as names see it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Host {
    /// Its address.
    pub ip: IpAddr,
    /// Its host name, of pods with `hostname` and `subdomain` such as those of StatefulSets.
    pub hostname: Option<String>,
}

impl Host {
    /// The label under the Service's name by which this endpoint is found: its host name or its address with
    /// dashes, as cluster DNS does it.
    pub fn label(&self) -> String {
        self.hostname.clone().unwrap_or_else(|| dashed(self.ip))
    }
}

/// An address as one DNS label: `10-0-0-1`, `fd00--1`.
pub fn dashed(ip: IpAddr) -> String {
    ip.to_string().replace(['.', ':'], "-")
}

/// A Service as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceView {
    /// Virtual addresses; none for headless Services and ExternalNames.
    pub cluster_ips: Vec<IpAddr>,
    /// `clusterIP: None`: the name answers with the endpoints' own addresses.
    pub headless: bool,
    /// The name an ExternalName Service stands for.
    pub external_name: Option<String>,
    /// `sessionAffinity: ClientIP`.
    pub client_ip_affinity: bool,
    /// `internalTrafficPolicy: Local`: endpoints of the own node only.
    pub local_only: bool,
    /// The ports.
    pub ports: Vec<Port>,
    /// Ready endpoints, sorted and without duplicates.
    pub hosts: Vec<Host>,
}

/// All Services at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// By namespace and name.
    pub services: BTreeMap<ServiceKey, ServiceView>,
}

impl Snapshot {
    /// Joins Services with their EndpointSlices. Objects that make no sense are left out: one bad object must
    /// not take the others' traffic away.
    pub fn build<'a>(
        services: impl IntoIterator<Item = &'a Service>,
        slices: impl IntoIterator<Item = &'a EndpointSlice>,
    ) -> Self {
        let mut by_service: BTreeMap<ServiceKey, Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in slices {
            let name = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
            if let (Some(namespace), Some(name)) = (&slice.metadata.namespace, name) {
                by_service.entry(ServiceKey::new(namespace, name)).or_default().push(slice);
            }
        }
        let services = services.into_iter().filter_map(|service| {
            let key = ServiceKey::new(service.metadata.namespace.clone()?, service.metadata.name.clone()?);
            let slices = by_service.get(&key).map(Vec::as_slice).unwrap_or_default();
            Some((key, view(service, slices)?))
        });
        Self { services: services.collect() }
    }

    /// Whether any Service lives in `namespace`.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.services
            .range(ServiceKey::new(namespace, "")..)
            .next()
            .is_some_and(|(key, _)| key.namespace == namespace)
    }
}

fn view(service: &Service, slices: &[&EndpointSlice]) -> Option<ServiceView> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return Some(ServiceView { external_name: spec.external_name.clone(), ..ServiceView::default() });
    }
    let first = spec.cluster_ip.iter().filter(|ip| !ip.is_empty());
    let mut addresses: Vec<&String> = spec.cluster_ips.iter().flatten().chain(first).collect();
    addresses.dedup();
    let mut cluster_ips: Vec<IpAddr> = addresses.iter().filter_map(|ip| ip.parse().ok()).collect();
    cluster_ips.sort();
    cluster_ips.dedup();
    let ports = spec.ports.iter().flatten().filter_map(|port| {
        let name = port.name.clone().unwrap_or_default();
        let protocol = Protocol::parse(port.protocol.as_deref())?;
        Some(Port {
            backends: backends(slices, &name, protocol),
            port: u16::try_from(port.port).ok().filter(|port| *port != 0)?,
            node_port: port.node_port.and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0),
            name,
            protocol,
        })
    });
    Some(ServiceView {
        headless: addresses.iter().any(|ip| *ip == "None"),
        cluster_ips,
        external_name: None,
        client_ip_affinity: spec.session_affinity.as_deref() == Some("ClientIP"),
        local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
        ports: ports.collect(),
        hosts: hosts(slices),
    })
}

/// The endpoints of one port: the ready ones, or, when there is none, those that end but still serve.
fn backends(slices: &[&EndpointSlice], name: &str, protocol: Protocol) -> Vec<Backend> {
    let mut ready = Vec::new();
    let mut ending = Vec::new();
    for slice in slices {
        let port = slice.ports.iter().flatten().find(|port| {
            port.name.as_deref().unwrap_or_default() == name
                && Protocol::parse(port.protocol.as_deref()) == Some(protocol)
        });
        let Some(port) = port.and_then(|port| u16::try_from(port.port?).ok()) else { continue };
        for endpoint in &slice.endpoints {
            let into = match state(endpoint) {
                State::Ready => &mut ready,
                State::EndingButServing => &mut ending,
                State::NotReady => continue,
            };
            // Kubernetes: consumers use the first address only, the others are the same endpoint again.
            let address = endpoint.addresses.first().and_then(|ip| ip.parse::<IpAddr>().ok());
            into.extend(
                address.map(|ip| Backend {
                    address: SocketAddr::new(ip, port),
                    node: endpoint.node_name.clone(),
                }),
            );
        }
    }
    let mut chosen = if ready.is_empty() { ending } else { ready };
    chosen.sort();
    chosen.dedup_by(|a, b| a.address == b.address);
    chosen
}

fn hosts(slices: &[&EndpointSlice]) -> Vec<Host> {
    let endpoints = slices.iter().flat_map(|slice| &slice.endpoints);
    let mut hosts: Vec<Host> = endpoints
        .filter(|endpoint| matches!(state(endpoint), State::Ready))
        .filter_map(|endpoint| {
            let ip = endpoint.addresses.first()?.parse().ok()?;
            let hostname = endpoint.hostname.clone().filter(|name| !name.is_empty());
            Some(Host { ip, hostname })
        })
        .collect();
    hosts.sort();
    hosts.dedup();
    hosts
}

enum State {
    Ready,
    EndingButServing,
    NotReady,
}

/// A condition that is not set reads as ready and serving: the API says consumers should take it so.
fn state(endpoint: &Endpoint) -> State {
    let conditions = endpoint.conditions.as_ref();
    if conditions.and_then(|c| c.ready).unwrap_or(true) {
        return State::Ready;
    }
    let serving = conditions.and_then(|c| c.serving).unwrap_or(false);
    let terminating = conditions.and_then(|c| c.terminating).unwrap_or(false);
    if serving && terminating { State::EndingButServing } else { State::NotReady }
}

#[cfg(test)]
pub(super) mod tests;
