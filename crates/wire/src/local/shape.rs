//! The form of the file, field by field.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// Service port → port of the workload.
pub(super) type Ports = BTreeMap<u16, u16>;

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct File {
    pub(super) workloads: Vec<Workload>,
    pub(super) services: Vec<Service>,
    pub(super) policies: Vec<Policy>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Gateway {
    pub(super) destination: String,
    #[serde(default)]
    pub(super) hbone_mtls_port: u16,
}

#[derive(Clone, Copy, Default, Deserialize)]
pub(super) enum Protocol {
    #[default]
    #[serde(rename = "TCP", alias = "NONE")]
    Tcp,
    #[serde(rename = "HBONE")]
    Hbone,
}

#[derive(Clone, Copy, Default, Deserialize)]
pub(super) enum Status {
    #[default]
    Healthy,
    Unhealthy,
}

#[derive(Clone, Copy, Default, Deserialize)]
pub(super) enum NetworkMode {
    #[default]
    Standard,
    HostNetwork,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum WorkloadType {
    Deployment,
    CronJob,
    #[default]
    Pod,
    Job,
}

#[derive(Clone, Copy, Deserialize)]
pub(super) enum TunnelProtocol {
    #[serde(rename = "NONE")]
    None,
    #[serde(rename = "PROXY")]
    Proxy,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ApplicationTunnel {
    pub(super) protocol: TunnelProtocol,
    #[serde(default)]
    pub(super) port: Option<u16>,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Locality {
    pub(super) region: Arc<str>,
    pub(super) zone: Arc<str>,
    pub(super) subzone: Arc<str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Workload {
    pub(super) name: String,
    #[serde(default)]
    pub(super) namespace: String,
    #[serde(default)]
    pub(super) uid: String,
    #[serde(default, alias = "workloadIp")]
    pub(super) workload_ips: Vec<IpAddr>,
    #[serde(default)]
    pub(super) waypoint: Option<Gateway>,
    #[serde(default)]
    pub(super) network_gateway: Option<Gateway>,
    #[serde(default)]
    pub(super) protocol: Protocol,
    #[serde(default)]
    pub(super) network_mode: NetworkMode,
    #[serde(default)]
    pub(super) trust_domain: String,
    #[serde(default)]
    pub(super) service_account: String,
    #[serde(default)]
    pub(super) network: Arc<str>,
    #[serde(default)]
    pub(super) workload_name: Arc<str>,
    #[serde(default)]
    pub(super) workload_type: WorkloadType,
    #[serde(default)]
    pub(super) canonical_name: Arc<str>,
    #[serde(default)]
    pub(super) canonical_revision: Arc<str>,
    #[serde(default)]
    pub(super) hostname: Arc<str>,
    #[serde(default)]
    pub(super) node: Arc<str>,
    #[serde(default)]
    pub(super) native_tunnel: bool,
    #[serde(default)]
    pub(super) application_tunnel: Option<ApplicationTunnel>,
    #[serde(default)]
    pub(super) authorization_policies: Vec<Arc<str>>,
    #[serde(default)]
    pub(super) status: Status,
    #[serde(default)]
    pub(super) cluster_id: Arc<str>,
    #[serde(default)]
    pub(super) locality: Locality,
    #[serde(default)]
    pub(super) services: Membership,
    #[serde(default)]
    pub(super) capacity: Option<u32>,
}

/// The services of a workload: with its own ports, or, as in a dump, their names alone.
#[derive(Default)]
pub(super) struct Membership(pub(super) Vec<(String, Ports)>);

impl<'de> Deserialize<'de> for Membership {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Membership;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map from namespace/hostname to ports, or a list of namespace/hostname")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut services = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    services.push(entry);
                }
                Ok(Membership(services))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut services = Vec::new();
                while let Some(name) = list.next_element()? {
                    services.push((name, Ports::new()));
                }
                Ok(Membership(services))
            }
        }
        from.deserialize_any(Either)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Block {
    pub(super) network: String,
    pub(super) cidr: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WeightedWaypoint {
    pub(super) destination: Gateway,
    pub(super) weight: u32,
}

#[derive(Clone, Copy, Deserialize)]
pub(super) enum RoutingScope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

#[derive(Clone, Copy, Default, Deserialize)]
pub(super) enum Mode {
    #[default]
    Standard,
    Strict,
    Failover,
    Passthrough,
}

#[derive(Clone, Copy, Default, Deserialize)]
pub(super) enum HealthPolicy {
    #[default]
    OnlyHealthy,
    AllowAll,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct LoadBalancer {
    #[serde(default)]
    pub(super) routing_preferences: Vec<RoutingScope>,
    #[serde(default)]
    pub(super) mode: Mode,
    #[serde(default)]
    pub(super) health_policy: HealthPolicy,
}

#[derive(Clone, Copy, Deserialize)]
pub(super) enum IpFamilies {
    #[serde(rename = "IPv4")]
    V4,
    #[serde(rename = "IPv6")]
    V6,
    Dual,
}

#[derive(Clone, Copy, Default, Deserialize)]
pub(super) enum Visibility {
    #[default]
    Public,
    Namespace,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Service {
    pub(super) name: Arc<str>,
    pub(super) namespace: Arc<str>,
    pub(super) hostname: Arc<str>,
    #[serde(default)]
    pub(super) vips: Vec<String>,
    #[serde(default)]
    pub(super) cidr_vips: Vec<Block>,
    #[serde(default)]
    pub(super) ports: Ports,
    /// Endpoints are the workloads that name the service.
    #[serde(default, rename = "endpoints")]
    _endpoints: Option<IgnoredAny>,
    #[serde(default)]
    pub(super) subject_alt_names: Vec<String>,
    #[serde(default)]
    pub(super) waypoint: Option<Gateway>,
    #[serde(default)]
    pub(super) weighted_waypoints: Vec<WeightedWaypoint>,
    #[serde(default)]
    pub(super) load_balancer: Option<LoadBalancer>,
    #[serde(default)]
    pub(super) ip_families: Option<IpFamilies>,
    #[serde(default)]
    pub(super) canonical: bool,
    #[serde(default)]
    pub(super) visibility: Visibility,
}

#[derive(Clone, Copy, Deserialize)]
pub(super) enum Scope {
    Global,
    Namespace,
    WorkloadSelector,
}

#[derive(Clone, Copy, Deserialize)]
pub(super) enum Action {
    Allow,
    Deny,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Policy {
    pub(super) name: Arc<str>,
    pub(super) namespace: Arc<str>,
    pub(super) scope: Scope,
    pub(super) action: Action,
    #[serde(default)]
    pub(super) dry_run: bool,
    /// Rules (or) of clauses (and) of matches (or).
    #[serde(default)]
    pub(super) rules: Vec<Vec<Vec<Match>>>,
}

#[derive(Deserialize)]
pub(super) enum Text {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    Presence(IgnoredAny),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Account {
    pub(super) namespace: Arc<str>,
    pub(super) service_account: Arc<str>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Match {
    pub(super) namespaces: Vec<Text>,
    pub(super) not_namespaces: Vec<Text>,
    pub(super) principals: Vec<Text>,
    pub(super) not_principals: Vec<Text>,
    pub(super) service_accounts: Vec<Account>,
    pub(super) not_service_accounts: Vec<Account>,
    pub(super) source_ips: Vec<String>,
    pub(super) not_source_ips: Vec<String>,
    pub(super) destination_ips: Vec<String>,
    pub(super) not_destination_ips: Vec<String>,
    pub(super) destination_ports: Vec<u16>,
    pub(super) not_destination_ports: Vec<u16>,
}
