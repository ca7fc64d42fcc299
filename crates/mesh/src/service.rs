//! Services: a name with virtual IPs and ports that selects workloads.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::{Cidr, Gateway, Identity, NetworkAddress};

/// Name of a service in the mesh: `namespace/hostname`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Full hostname, such as `web.default.svc.cluster.local`.
    pub hostname: Arc<str>,
}

impl ServiceKey {
    /// A key from its parts.
    pub fn new(namespace: impl Into<Arc<str>>, hostname: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), hostname: hostname.into() }
    }
}

impl FromStr for ServiceKey {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once('/') {
            Some((namespace, hostname)) if !hostname.is_empty() => Ok(Self::new(namespace, hostname)),
            _ => Err("a service is named namespace/hostname"),
        }
    }
}

impl fmt::Display for ServiceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// A service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Short name.
    pub name: Arc<str>,
    /// Namespace and hostname.
    pub key: ServiceKey,
    /// Virtual addresses.
    pub vips: Vec<NetworkAddress>,
    /// Virtual address blocks, each with its network.
    pub cidr_vips: Vec<(Arc<str>, Cidr)>,
    /// Ports.
    pub ports: Vec<ServicePort>,
    /// Identities accepted besides those of the workloads.
    pub subject_alt_names: Vec<Identity>,
    /// Waypoint for calls addressed to the service.
    pub waypoint: Option<Gateway>,
    /// Several waypoints by weight; when set, `waypoint` still holds the first.
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// How an endpoint is chosen.
    pub load_balancing: Option<LoadBalancing>,
    /// Families of its addresses.
    pub ip_families: IpFamilies,
    /// Wins look-ups by hostname or VIP when the caller's own namespace has none.
    pub canonical: bool,
    /// Ingress gateways call through the waypoint too.
    pub ingress_use_waypoint: bool,
    /// Who can see it.
    pub visibility: Visibility,
}

impl Service {
    /// A service with nothing set but its names; for builders and tests.
    pub fn new(name: impl Into<Arc<str>>, key: ServiceKey) -> Self {
        Self {
            name: name.into(),
            key,
            vips: Vec::new(),
            cidr_vips: Vec::new(),
            ports: Vec::new(),
            subject_alt_names: Vec::new(),
            waypoint: None,
            weighted_waypoints: Vec::new(),
            load_balancing: None,
            ip_families: IpFamilies::Automatic,
            canonical: false,
            ingress_use_waypoint: false,
            visibility: Visibility::Public,
        }
    }

    /// The port that clients call, if the service has it.
    pub fn port(&self, service_port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.service_port == service_port)
    }

    /// How an endpoint is chosen.
    pub fn mode(&self) -> LoadBalancingMode {
        self.load_balancing.as_ref().map_or(LoadBalancingMode::Unspecified, |lb| lb.mode)
    }

    /// Which endpoints count.
    pub fn health_policy(&self) -> HealthPolicy {
        self.load_balancing.as_ref().map_or(HealthPolicy::OnlyHealthy, |lb| lb.health_policy)
    }
}

/// A port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    /// Port that clients call.
    pub service_port: u16,
    /// Port of the endpoints; none: a named port, which each endpoint maps itself.
    pub target_port: Option<u16>,
    /// What is spoken there.
    pub app_protocol: AppProtocol,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum AppProtocol {
    #[default]
    Unknown,
    Http11,
    Http2,
    Grpc,
    Tcp,
    Tls,
}

/// One of several waypoints of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightedWaypoint {
    /// The waypoint.
    pub gateway: Gateway,
    /// Its share among the sum of weights.
    pub weight: u32,
}

/// How an endpoint of a service is chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadBalancing {
    /// Scopes, most important first.
    pub routing_preference: Vec<RoutingScope>,
    /// What the preference means.
    pub mode: LoadBalancingMode,
    /// Which endpoints count.
    pub health_policy: HealthPolicy,
}

/// A property of client and endpoint that may be equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum RoutingScope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

/// What a routing preference means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LoadBalancingMode {
    /// All endpoints alike.
    Unspecified,
    /// Only endpoints that match every scope.
    Strict,
    /// The endpoints that match the longest prefix of the scopes.
    Failover,
    /// No choice: the original destination is kept.
    Passthrough,
}

/// Which endpoints count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HealthPolicy {
    /// Healthy ones.
    OnlyHealthy,
    /// All.
    AllowAll,
}

/// Families of a service's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum IpFamilies {
    Automatic,
    Ipv4Only,
    Ipv6Only,
    Dual,
}

/// Who can see a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// Everyone.
    Public,
    /// Its own namespace.
    Namespace,
}
