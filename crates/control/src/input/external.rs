//! ServiceEntries and WorkloadEntries: services and workloads that Kubernetes does not run.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use kube::core::DynamicObject;
use mesh::{AppProtocol, Cidr};
use serde::Deserialize;

use super::condition::{self, StatusCondition};
use super::custom::{ObjectError, created, revision, spec};
use super::{Attachment, Key, Labels, TrafficDistribution};

/// A ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Namespace and name.
    pub key: Key,
    /// When it was created, seconds since 1970; the oldest wins.
    pub created: i64,
    /// Generation of its spec.
    pub generation: Option<i64>,
    /// Revision label, if any.
    pub revision: Option<String>,
    /// Labels.
    pub labels: Labels,
    /// It is captured: annotation `ambient.istio.io/redirection`.
    pub captured: bool,
    /// Names; one may be a wildcard.
    pub hosts: Vec<Arc<str>>,
    /// Addresses of its own; none when one of them is no address block.
    pub addresses: Option<Vec<Cidr>>,
    /// Ports.
    pub ports: Vec<EntryPort>,
    /// How its endpoints are found.
    pub resolution: Resolution,
    /// Labels of the workloads that serve it.
    pub selector: Option<Labels>,
    /// Endpoints that it lists itself.
    pub endpoints: Vec<Entry>,
    /// Identities accepted besides those of its workloads, as written.
    pub subject_alt_names: Vec<String>,
    /// How traffic is spread, when it says so.
    pub distribution: Option<TrafficDistribution>,
    /// Waypoints.
    pub attachment: Attachment,
    /// It asks for the first TCP connection that is made.
    pub racing: bool,
    /// It takes addresses from the mesh when it has none.
    pub allocates: bool,
    /// Addresses the mesh has given it, by host.
    pub allocated: BTreeMap<Arc<str>, Vec<IpAddr>>,
    /// Conditions that stand on it.
    pub conditions: Vec<StatusCondition>,
}

impl ServiceEntry {
    /// Whether the mesh gives it addresses: it has none, and its names can be answered.
    pub fn wants_addresses(&self) -> bool {
        let wildcard = self.hosts.iter().any(|host| host.starts_with('*'));
        self.allocates
            && self.resolution != Resolution::None
            && self.addresses.as_ref().is_some_and(Vec::is_empty)
            && !self.hosts.is_empty()
            && (!wildcard || self.resolution == Resolution::DynamicDns)
    }
}

/// A port of a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPort {
    /// Name.
    pub name: String,
    /// Port that clients call.
    pub port: u16,
    /// Port of the endpoints, when it is another.
    pub target: Option<u16>,
    /// What is spoken.
    pub app_protocol: AppProtocol,
}

/// How the endpoints of a ServiceEntry are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Resolution {
    #[default]
    None,
    Static,
    Dns,
    DynamicDns,
}

/// A workload that is written down: a WorkloadEntry's spec, or an endpoint of a ServiceEntry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Where it is: an address, a name, or not said.
    pub address: EntryAddress,
    /// Ports by name.
    pub ports: BTreeMap<String, u16>,
    /// Labels.
    pub labels: Labels,
    /// Network; none is the local one.
    pub network: Option<Arc<str>>,
    /// Region, zone and subzone.
    pub locality: mesh::Locality,
    /// Share in load balancing.
    pub weight: Option<u32>,
    /// Service account, verbatim.
    pub account: Arc<str>,
}

/// Where an entry is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum EntryAddress {
    #[default]
    Unknown,
    Ip(IpAddr),
    Hostname(Arc<str>),
}

impl EntryAddress {
    /// From text: an IP address, or else a name.
    pub fn parse(text: &str) -> Self {
        match text.parse::<IpAddr>() {
            Ok(ip) => Self::Ip(ip.to_canonical()),
            Err(_) if text.is_empty() => Self::Unknown,
            Err(_) => Self::Hostname(text.into()),
        }
    }
}

impl std::fmt::Display for EntryAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown => Ok(()),
            Self::Ip(ip) => ip.fmt(f),
            Self::Hostname(name) => name.fmt(f),
        }
    }
}

/// A WorkloadEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadEntry {
    /// Namespace and name.
    pub key: Key,
    /// Generation of its spec.
    pub generation: Option<i64>,
    /// Revision label, if any.
    pub revision: Option<String>,
    /// What it says; its labels are those of spec and metadata, metadata first.
    pub entry: Entry,
    /// It is captured: annotation `ambient.istio.io/redirection`.
    pub captured: bool,
    /// Annotation `istio.io/autoRegistrationGroup`.
    pub group: Option<Arc<str>>,
    /// Waypoints.
    pub attachment: Attachment,
    /// Conditions that stand on it.
    pub conditions: Vec<StatusCondition>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct EntrySpec {
    address: String,
    ports: BTreeMap<String, u16>,
    labels: Labels,
    network: String,
    locality: String,
    weight: u32,
    service_account: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PortSpec {
    name: String,
    number: u16,
    protocol: String,
    target_port: u16,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WorkloadSelector {
    labels: Labels,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ServiceEntrySpec {
    hosts: Vec<String>,
    addresses: Vec<String>,
    ports: Vec<PortSpec>,
    resolution: String,
    workload_selector: Option<WorkloadSelector>,
    endpoints: Vec<EntrySpec>,
    subject_alt_names: Vec<String>,
}

impl From<EntrySpec> for Entry {
    fn from(spec: EntrySpec) -> Self {
        let mut places = spec.locality.split('/').map(Arc::from);
        let mut place = || places.next().unwrap_or_default();
        Self {
            address: EntryAddress::parse(&spec.address),
            ports: spec.ports,
            labels: spec.labels,
            network: Some(spec.network).filter(|network| !network.is_empty()).map(Arc::from),
            locality: mesh::Locality { region: place(), zone: place(), subzone: place() },
            weight: Some(spec.weight).filter(|weight| *weight > 0),
            account: spec.service_account.as_str().into(),
        }
    }
}

impl TryFrom<DynamicObject> for ServiceEntry {
    type Error = ObjectError;

    fn try_from(mut object: DynamicObject) -> Result<Self, ObjectError> {
        let key = super::key_of(&object.metadata);
        let spec: ServiceEntrySpec = spec("ServiceEntry", &key, &mut object)?;
        let resolution = match spec.resolution.as_str() {
            "" | "NONE" => Resolution::None,
            "STATIC" => Resolution::Static,
            "DNS" | "DNS_ROUND_ROBIN" => Resolution::Dns,
            "DYNAMIC_DNS" => Resolution::DynamicDns,
            other => {
                tracing::warn!(service_entry = %key, resolution = other, "unknown resolution, treated as NONE");
                Resolution::None
            }
        };
        let addresses: Result<Vec<Cidr>, _> = spec.addresses.iter().map(|text| text.parse()).collect();
        let addresses = addresses
            .inspect_err(|error| {
                tracing::warn!(service_entry = %key, %error, "service entry left out of the mesh");
            })
            .ok();
        let created = created(&object);
        let revision = revision(&object);
        let meta = object.metadata;
        let annotation =
            |name: &str| meta.annotations.as_ref().and_then(|all| all.get(name)).map(String::as_str);
        let label = |name: &str| meta.labels.as_ref().and_then(|all| all.get(name)).map(String::as_str);
        let status = object.data.get("status");
        let mut allocated: BTreeMap<Arc<str>, Vec<IpAddr>> = BTreeMap::new();
        let given = status.and_then(|status| status.get("addresses")).and_then(serde_json::Value::as_array);
        for address in given.into_iter().flatten() {
            let text = |key: &str| address.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
            if let Ok(ip) = text("value").parse::<IpAddr>() {
                allocated.entry(text("host").into()).or_default().push(ip.to_canonical());
            }
        }
        Ok(Self {
            created,
            generation: meta.generation,
            revision,
            captured: annotation("ambient.istio.io/redirection") == Some("enabled"),
            hosts: spec.hosts.iter().map(|host| host.to_ascii_lowercase().into()).collect(),
            addresses,
            ports: spec
                .ports
                .into_iter()
                .map(|port| EntryPort {
                    name: port.name,
                    port: port.number,
                    target: Some(port.target_port).filter(|port| *port > 0),
                    app_protocol: protocol(&port.protocol),
                })
                .collect(),
            resolution,
            selector: spec.workload_selector.map(|selector| selector.labels),
            endpoints: spec.endpoints.into_iter().map(Entry::from).collect(),
            subject_alt_names: spec.subject_alt_names,
            distribution: TrafficDistribution::from_annotations(meta.annotations.as_ref()),
            attachment: Attachment::read(meta.labels.as_ref(), meta.annotations.as_ref(), &key.namespace),
            racing: annotation("istio.io/connect-strategy") == Some("RACE_FIRST_TCP_CONNECT"),
            allocates: label("networking.istio.io/enable-autoallocate-ip") != Some("false"),
            allocated,
            conditions: condition::of_status(status),
            labels: meta.labels.unwrap_or_default(),
            key,
        })
    }
}

/// A ServiceEntry's protocol is one word, not a prefix of a name (reference/control-plane.md §11.10).
fn protocol(text: &str) -> AppProtocol {
    match text.to_ascii_uppercase().as_str() {
        "HTTP" => AppProtocol::Http11,
        "HTTP2" => AppProtocol::Http2,
        "GRPC" => AppProtocol::Grpc,
        "TCP" => AppProtocol::Tcp,
        "TLS" | "HTTPS" => AppProtocol::Tls,
        _ => AppProtocol::Unknown,
    }
}

impl TryFrom<DynamicObject> for WorkloadEntry {
    type Error = ObjectError;

    fn try_from(mut object: DynamicObject) -> Result<Self, ObjectError> {
        let key = super::key_of(&object.metadata);
        let spec: EntrySpec = spec("WorkloadEntry", &key, &mut object)?;
        let revision = revision(&object);
        let conditions = condition::of_status(object.data.get("status"));
        let meta = object.metadata;
        let mut entry = Entry::from(spec);
        entry.labels.extend(meta.labels.clone().unwrap_or_default());
        if matches!(entry.address, EntryAddress::Unknown) && entry.network.is_none() {
            tracing::warn!(workload_entry = %key, "WorkloadEntry without a usable address; nobody can reach it");
        }
        let annotation = |name: &str| meta.annotations.as_ref().and_then(|all| all.get(name));
        Ok(Self {
            generation: meta.generation,
            revision,
            captured: annotation("ambient.istio.io/redirection").is_some_and(|value| value == "enabled"),
            group: annotation("istio.io/autoRegistrationGroup").map(|group| group.as_str().into()),
            attachment: Attachment::read(Some(&entry.labels), meta.annotations.as_ref(), &key.namespace),
            conditions,
            entry,
            key,
        })
    }
}
