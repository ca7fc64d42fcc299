//! Gateways and their classes (Gateway API), as far as waypoints need them.

use std::net::IpAddr;
use std::sync::Arc;

use kube::core::DynamicObject;
use serde::Deserialize;

use super::custom::{ObjectError, revision, spec};
use super::{Key, Labels};

/// Class of Gateways that stand for those of other networks.
pub(crate) const REMOTE: &str = "istio-remote";

/// A Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Namespace and name.
    pub key: Key,
    /// Revision label, if any.
    pub revision: Option<String>,
    /// Name of its class.
    pub class: Arc<str>,
    /// Label `istio.io/waypoint-for`.
    pub waypoint_for: Option<String>,
    /// Annotation `ambient.istio.io/waypoint-inbound-binding`.
    pub binding: Option<String>,
    /// Label `topology.istio.io/network`.
    pub network: Option<Arc<str>>,
    /// Service account of its instances, when it is said.
    pub account: Option<Arc<str>>,
    /// Listeners.
    pub listeners: Vec<Listener>,
    /// Where it is reached, once it is.
    pub addresses: Vec<Address>,
}

/// A listener of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Port.
    pub port: u16,
    /// Protocol.
    pub protocol: String,
    /// From which namespaces it may be used.
    pub allowed: Allowed,
}

/// From which namespaces a listener may be used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Allowed {
    /// Its own.
    #[default]
    Same,
    /// Any.
    All,
    /// Those with these labels.
    Selector(Selector),
}

/// A label selector in full.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Selector {
    /// All of these.
    pub match_labels: Labels,
    /// And all of these.
    pub match_expressions: Vec<Requirement>,
}

/// One expression of a selector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Requirement {
    pub key: String,
    pub operator: String,
    pub values: Vec<String>,
}

impl Selector {
    /// Whether labels are selected. An operator that is not known selects nothing.
    pub fn selects(&self, labels: &Labels) -> bool {
        super::selects(&self.match_labels, labels)
            && self.match_expressions.iter().all(|one| {
                let value = labels.get(&one.key);
                match one.operator.as_str() {
                    "In" => value.is_some_and(|value| one.values.contains(value)),
                    "NotIn" => value.is_none_or(|value| !one.values.contains(value)),
                    "Exists" => value.is_some(),
                    "DoesNotExist" => value.is_none(),
                    _ => false,
                }
            })
    }
}

/// Where a Gateway is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Address {
    Hostname(Arc<str>),
    Ip(IpAddr),
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct GatewaySpec {
    gateway_class_name: String,
    listeners: Vec<ListenerSpec>,
    addresses: Vec<serde_json::Value>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ListenerSpec {
    port: u16,
    protocol: String,
    allowed_routes: Option<AllowedRoutes>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AllowedRoutes {
    namespaces: Option<AllowedNamespaces>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct AllowedNamespaces {
    from: Option<String>,
    selector: Option<Selector>,
}

impl TryFrom<DynamicObject> for Gateway {
    type Error = ObjectError;

    fn try_from(mut object: DynamicObject) -> Result<Self, ObjectError> {
        let key = super::key_of(&object.metadata);
        let spec: GatewaySpec = spec("Gateway", &key, &mut object)?;
        let label = |key: &str| object.metadata.labels.as_ref().and_then(|labels| labels.get(key)).cloned();
        let annotation =
            |key: &str| object.metadata.annotations.as_ref().and_then(|labels| labels.get(key)).cloned();
        // Nobody runs what a Gateway of class `istio-remote` stands for, so nobody need have written its status.
        let stated = (spec.gateway_class_name == REMOTE).then_some(&spec.addresses);
        let given = object.data.pointer("/status/addresses").and_then(serde_json::Value::as_array);
        let addresses = given.filter(|given| !given.is_empty()).or(stated);
        let addresses = addresses.into_iter().flatten().filter_map(|address| {
            let read = place(address);
            if read.is_none() {
                tracing::warn!(gateway = %key, %address, "an address of a Gateway is left out: it is neither an IP address nor a hostname");
            }
            read
        });
        let addresses = addresses.collect();
        Ok(Self {
            revision: revision(&object),
            class: spec.gateway_class_name.as_str().into(),
            waypoint_for: label("istio.io/waypoint-for"),
            binding: annotation("ambient.istio.io/waypoint-inbound-binding"),
            network: label("topology.istio.io/network").map(Arc::from),
            account: annotation("gateway.istio.io/service-account").map(Arc::from),
            listeners: spec
                .listeners
                .into_iter()
                .map(|listener| Listener {
                    port: listener.port,
                    protocol: listener.protocol,
                    allowed: allowed(listener.allowed_routes),
                })
                .collect(),
            addresses,
            key,
        })
    }
}

/// An address as it stands in spec or status; none when it is neither an IP address nor a name.
fn place(address: &serde_json::Value) -> Option<Address> {
    let value = address.get("value")?.as_str().filter(|value| !value.is_empty())?;
    match address.get("type").and_then(serde_json::Value::as_str).unwrap_or("IPAddress") {
        "Hostname" => Some(Address::Hostname(value.into())),
        "IPAddress" => Some(Address::Ip(value.parse::<IpAddr>().ok()?.to_canonical())),
        _ => None,
    }
}

fn allowed(routes: Option<AllowedRoutes>) -> Allowed {
    let Some(namespaces) = routes.and_then(|routes| routes.namespaces) else { return Allowed::Same };
    match namespaces.from.as_deref() {
        Some("All") => Allowed::All,
        Some("Selector") => Allowed::Selector(namespaces.selector.unwrap_or_default()),
        _ => Allowed::Same,
    }
}

/// A GatewayClass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayClass {
    /// Name.
    pub name: Arc<str>,
    /// Label `istio.io/waypoint-for`.
    pub waypoint_for: Option<String>,
    /// Annotation `ambient.istio.io/waypoint-inbound-binding`.
    pub binding: Option<String>,
}

impl TryFrom<DynamicObject> for GatewayClass {
    type Error = ObjectError;

    fn try_from(object: DynamicObject) -> Result<Self, ObjectError> {
        let meta = object.metadata;
        Ok(Self {
            name: meta.name.as_deref().unwrap_or_default().into(),
            waypoint_for: meta.labels.as_ref().and_then(|all| all.get("istio.io/waypoint-for")).cloned(),
            binding: meta
                .annotations
                .as_ref()
                .and_then(|all| all.get("ambient.istio.io/waypoint-inbound-binding"))
                .cloned(),
        })
    }
}
