//! Gateways as waypoints, and who is bound to which (reference/control-plane.md §1.6).

use std::fmt;
use std::sync::Arc;

use mesh::{ApplicationTunnel, GatewayTarget, NetworkAddress, ServiceKey, WeightedWaypoint};

use crate::input::{self, Address, Allowed, Attachment, Key, Labels, Wants};

/// Port of the tunnels of a waypoint.
const HBONE: u16 = 15008;

/// A Gateway that can be used as a waypoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waypoint {
    /// Namespace and name of the Gateway.
    pub key: Key,
    /// Where it is.
    pub gateway: mesh::Gateway,
    /// What may be bound to it.
    pub traffic: Traffic,
    /// From which namespaces.
    pub allowed: Allowed,
    /// How its instances take what the tunnel carries.
    pub tunnel: Option<ApplicationTunnel>,
}

/// What may be bound to a waypoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Traffic {
    Service,
    Workload,
    All,
    None,
}

impl Traffic {
    fn parse(text: Option<&str>) -> Option<Self> {
        match text? {
            "service" => Some(Self::Service),
            "workload" => Some(Self::Workload),
            "all" => Some(Self::All),
            "none" => Some(Self::None),
            _ => None,
        }
    }

    fn takes(self, what: Bindable) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Service => what == Bindable::Service,
            Self::Workload => what == Bindable::Workload,
        }
    }
}

/// What is bound: a service or a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Bindable {
    Service,
    Workload,
}

impl fmt::Display for Bindable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Service { "service" } else { "workload" })
    }
}

/// The waypoint that a Gateway is, once it has an address.
pub fn waypoint(
    gateway: &input::Gateway,
    class: Option<&input::GatewayClass>,
    network: &Arc<str>,
) -> Option<Waypoint> {
    let named = gateway.addresses.iter().find_map(|address| match address {
        Address::Hostname(name) => Some(name.clone()),
        Address::Ip(_) => None,
    });
    let target = match named {
        Some(name) => GatewayTarget::Hostname(ServiceKey::new(gateway.key.namespace.clone(), name)),
        None => GatewayTarget::Address(gateway.addresses.iter().find_map(|address| match address {
            Address::Ip(ip) => Some(NetworkAddress::new(network.clone(), *ip)),
            Address::Hostname(_) => None,
        })?),
    };
    let traffic = Traffic::parse(gateway.waypoint_for.as_deref())
        .or_else(|| Traffic::parse(class?.waypoint_for.as_deref()))
        .unwrap_or(Traffic::Service);
    let tunnel = gateway.binding.as_deref().or_else(|| class?.binding.as_deref()).and_then(binding);
    let bound = |listener: &&input::Listener| match tunnel {
        Some(ApplicationTunnel { port: Some(port), .. }) => listener.port == port,
        Some(_) => listener.protocol == "istio.io/PROXY",
        None => listener.protocol == "HBONE" && listener.port == HBONE,
    };
    Some(Waypoint {
        key: gateway.key.clone(),
        gateway: mesh::Gateway { target, hbone_port: HBONE },
        traffic,
        allowed: gateway.listeners.iter().find(bound).map(|one| one.allowed.clone()).unwrap_or_default(),
        tunnel,
    })
}

/// `NONE` or `PROXY`, and a port if there is a slash.
fn binding(text: &str) -> Option<ApplicationTunnel> {
    let (protocol, port) = match text.split_once('/') {
        Some((protocol, port)) => (protocol, Some(port.parse().ok()?)),
        None => (text, None),
    };
    match protocol {
        "NONE" => Some(ApplicationTunnel { proxy_protocol: false, port }),
        "PROXY" => Some(ApplicationTunnel { proxy_protocol: true, port }),
        _ => None,
    }
}

/// What an object is bound to.
#[derive(Clone, Debug)]
pub struct Bound {
    /// The waypoint.
    pub primary: Arc<Waypoint>,
    /// A second one and its share in percent.
    pub canary: Option<(Arc<Waypoint>, u8)>,
    /// Why there is no second one although one is asked for.
    pub canary_refused: Option<Unbound>,
    /// Ingress gateways go through it too.
    pub ingress: bool,
}

impl Bound {
    /// Both waypoints with their shares, when there are two.
    pub fn weighted(&self) -> Vec<WeightedWaypoint> {
        let one = |waypoint: &Waypoint, weight: u8| WeightedWaypoint {
            gateway: waypoint.gateway.clone(),
            weight: weight.into(),
        };
        self.canary
            .iter()
            .flat_map(|(canary, share)| [one(&self.primary, 100 - share), one(canary, *share)])
            .collect()
    }
}

/// Why an object is not bound to the waypoint that it asks for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Unbound {
    #[error("waypoint \"{0}\" is not ready")]
    NotReady(Key),
    #[error("we are not permitted to attach to waypoint \"{0}\" (missing allowedRoutes?)")]
    Denied(Key),
    #[error(
        "attempting to bind to traffic type \"{traffic}\" which the waypoint \"{waypoint}\" does not support"
    )]
    Unsupported { traffic: Bindable, waypoint: Key },
    #[error("canary weight {0:?} is no whole number from 0 to 100")]
    CanaryWeight(String),
    #[error("the canary waypoint is the waypoint itself")]
    CanarySame,
    #[error("a service that only its namespace sees cannot use waypoint \"{0}\" of another namespace")]
    CrossNamespace(Key),
}

impl Unbound {
    /// The reason's word in a condition.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::NotReady(_) => "WaypointIsNotReady",
            Self::Denied(_) => "AttachmentDenied",
            Self::Unsupported { .. } => "UnsupportedTrafficType",
            Self::CanaryWeight(_) => "CanaryInvalidWeight",
            Self::CanarySame => "CanarySameAsPrimary",
            Self::CrossNamespace(_) => "CrossNamespaceWaypointForbidden",
        }
    }
}

/// An object that may be bound to a waypoint.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// What it asks for.
    pub attachment: &'a Attachment,
    /// Its namespace.
    pub namespace: &'a Arc<str>,
    /// What its namespace asks for, and the labels of that.
    pub namespace_says: Option<(&'a Attachment, &'a Labels)>,
    /// What it is.
    pub what: Bindable,
    /// Only its own namespace sees it.
    pub private: bool,
}

/// What an object is bound to; nothing when it asks for nothing.
pub fn bind(
    candidate: Candidate<'_>,
    find: impl Fn(&Key) -> Option<Arc<Waypoint>>,
) -> Result<Option<Bound>, Unbound> {
    let own = candidate.attachment;
    if own.managed {
        return Ok(None);
    }
    let said = candidate.namespace_says.map(|(attachment, _)| attachment);
    let (wanted, level, inherited) = match (&own.wants, said.map(|said| &said.wants)) {
        (Wants::Nothing, _) => return Ok(None),
        (Wants::Waypoint(key), _) => (key, own, false),
        (Wants::Inherit, Some(Wants::Waypoint(key))) => (key, said.unwrap_or(own), true),
        (Wants::Inherit, _) => return Ok(None),
    };
    let attach = |key: &Key| -> Result<Arc<Waypoint>, Unbound> {
        let waypoint = find(key).ok_or_else(|| Unbound::NotReady(key.clone()))?;
        if !allows(&waypoint, candidate) {
            return Err(Unbound::Denied(key.clone()));
        }
        if !waypoint.traffic.takes(candidate.what) {
            return Err(Unbound::Unsupported { traffic: candidate.what, waypoint: key.clone() });
        }
        if candidate.private && waypoint.key.namespace != *candidate.namespace {
            return Err(Unbound::CrossNamespace(key.clone()));
        }
        Ok(waypoint)
    };
    let primary = match attach(wanted) {
        Ok(primary) => primary,
        // What a namespace asks for its services is no fault of its workloads.
        Err(Unbound::Unsupported { .. }) if inherited && candidate.what == Bindable::Workload => {
            return Ok(None);
        }
        Err(unbound) => return Err(unbound),
    };
    let canary = match (&level.canary, candidate.what) {
        (Some(key), Bindable::Service) => Some(second(key, level, wanted, attach)),
        _ => None,
    };
    let (canary, canary_refused) = match canary {
        Some(Ok(canary)) => (Some(canary), None),
        Some(Err(refused)) => (None, Some(refused)),
        None => (None, None),
    };
    let ingress = own.ingress.or_else(|| said?.ingress).unwrap_or(false);
    Ok(Some(Bound { primary, canary, canary_refused, ingress }))
}

fn second(
    key: &Key,
    level: &Attachment,
    primary: &Key,
    attach: impl Fn(&Key) -> Result<Arc<Waypoint>, Unbound>,
) -> Result<(Arc<Waypoint>, u8), Unbound> {
    if key == primary {
        return Err(Unbound::CanarySame);
    }
    let text = level.canary_weight.as_deref().unwrap_or("0");
    let share = text.parse::<u8>().ok().filter(|share| *share <= 100);
    let share = share.ok_or_else(|| Unbound::CanaryWeight(text.chars().take(40).collect()))?;
    Ok((attach(key)?, share))
}

fn allows(waypoint: &Waypoint, candidate: Candidate<'_>) -> bool {
    match &waypoint.allowed {
        Allowed::All => true,
        Allowed::Same => waypoint.key.namespace == *candidate.namespace,
        Allowed::Selector(selector) => {
            candidate.namespace_says.is_some_and(|(_, labels)| selector.selects(labels))
        }
    }
}
