//! Workloads: running instances with an identity and addresses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::{Gateway, Identity, PolicyKey, ServiceKey};

/// Unique name of a workload in the mesh, such as `Kubernetes//Pod/default/web-0`.
pub type Uid = Arc<str>;

/// One running instance; on Kubernetes a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Unique name.
    pub uid: Uid,
    /// Pod name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Network its addresses belong to; empty is the default network.
    pub network: Arc<str>,
    /// Its addresses, never IPv4-mapped. May be empty when it has a hostname.
    pub addresses: Vec<IpAddr>,
    /// Name to resolve when it has no address.
    pub hostname: Option<Arc<str>>,
    /// Whether a proxy accepts tunnels for it.
    pub tunnel: Tunnel,
    /// The workload speaks HBONE itself.
    pub native_tunnel: bool,
    /// Who it is.
    pub identity: Identity,
    /// Waypoint for calls addressed to the workload itself.
    pub waypoint: Option<Gateway>,
    /// The way in when it lives on another network.
    pub network_gateway: Option<Gateway>,
    /// Node it runs on.
    pub node: Arc<str>,
    /// Cluster it runs in.
    pub cluster: Arc<str>,
    /// Name of the application, for telemetry.
    pub canonical_name: Arc<str>,
    /// Version of the application, for telemetry.
    pub canonical_revision: Arc<str>,
    /// Name of the owner (Deployment …), for telemetry.
    pub workload_name: Arc<str>,
    /// Kind of the owner, for telemetry.
    pub workload_type: WorkloadType,
    /// Policies bound to it by selector.
    pub policies: Vec<PolicyKey>,
    /// Whether it is ready to serve.
    pub health: Health,
    /// Services it is an endpoint of, with its own ports.
    pub services: BTreeMap<ServiceKey, Vec<PortMapping>>,
    /// How an inbound stream is handed to the application, when not plainly.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Where it runs.
    pub locality: Locality,
    /// Whether it shares its node's addresses.
    pub network_mode: NetworkMode,
    /// Weight in load balancing.
    pub capacity: u32,
}

impl Workload {
    /// A workload on the default network with nothing set but what it must have; for builders and tests.
    pub fn new(uid: impl Into<Uid>, name: impl Into<Arc<str>>, identity: Identity) -> Self {
        let name = name.into();
        Self {
            uid: uid.into(),
            namespace: identity.namespace().into(),
            network: "".into(),
            addresses: Vec::new(),
            hostname: None,
            tunnel: Tunnel::None,
            native_tunnel: false,
            identity,
            waypoint: None,
            network_gateway: None,
            node: "".into(),
            cluster: "Kubernetes".into(),
            canonical_name: name.clone(),
            canonical_revision: "latest".into(),
            workload_name: name.clone(),
            workload_type: WorkloadType::Pod,
            policies: Vec::new(),
            health: Health::Healthy,
            services: BTreeMap::new(),
            application_tunnel: None,
            locality: Locality::default(),
            network_mode: NetworkMode::Standard,
            capacity: 1,
            name,
        }
    }
}

/// Whether a proxy accepts tunnels for a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tunnel {
    /// No: it is reached in plaintext.
    None,
    /// Yes, on port 15008 of its address.
    Hbone,
}

/// Kind of a workload's owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum WorkloadType {
    Deployment,
    CronJob,
    Pod,
    Job,
}

impl WorkloadType {
    /// The word in baggage keys: `k8s.<word>.name`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}

/// Whether a workload is ready to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Health {
    Healthy,
    Unhealthy,
}

/// Whether a workload shares its node's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NetworkMode {
    /// It has addresses of its own.
    Standard,
    /// It uses its node's; it is never found by address.
    HostNetwork,
}

/// One port of a service as this workload serves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortMapping {
    /// Port of the service.
    pub service_port: u16,
    /// Port of the workload.
    pub target_port: u16,
}

/// Hands inbound streams to the application in a special way (waypoints).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    /// A PROXY protocol header precedes the stream.
    pub proxy_protocol: bool,
    /// Overrides the target port.
    pub port: Option<u16>,
}

/// Where something runs; empty parts are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
}
