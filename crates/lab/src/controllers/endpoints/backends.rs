//! The pods behind a Service, with the ports that the Service's ports mean on them. Pure.

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::{Resource, ResourceExt};

use crate::controllers::pods;

/// A port that clients reach on a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The Service port's name, empty if it has none.
    pub name: String,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: String,
    /// The number on the pod.
    pub number: i32,
    /// The application protocol, if the Service says so.
    pub app_protocol: Option<String>,
}

/// A pod that serves, or will, or did until a moment ago.
#[derive(Clone, Debug)]
pub struct Backend {
    /// Its addresses.
    pub addresses: Vec<std::net::IpAddr>,
    /// Its ports, in the order of the Service.
    pub ports: Vec<Port>,
    /// Clients may be sent there.
    pub ready: bool,
    /// It can answer, even if it is on its way out.
    pub serving: bool,
    /// It is on its way out.
    pub terminating: bool,
    /// Its stable name below the Service, if it has one.
    pub hostname: Option<String>,
    /// Its node.
    pub node: String,
    /// Its node's zone.
    pub zone: Option<String>,
    /// Which pod it is.
    pub pod: ObjectReference,
}

/// A pod as backend of a Service that selects it; `None` if it has no address (any more) or none of the ports.
pub fn of(service: &Service, pod: &Pod, zone: impl Fn(&str) -> Option<String>) -> Option<Backend> {
    if pods::is_finished(pod) {
        return None;
    }
    let node = pods::node(pod)?.to_owned();
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    let mut addresses: Vec<_> = listed.filter_map(|ip| ip.parse().ok()).collect();
    if addresses.is_empty() {
        addresses.extend(status.pod_ip.as_ref().and_then(|ip| ip.parse::<std::net::IpAddr>().ok()));
    }
    if addresses.is_empty() {
        return None;
    }
    let spec = service.spec.as_ref()?;
    let service_ports = spec.ports.as_deref().unwrap_or_default();
    let ports: Vec<Port> = service_ports.iter().filter_map(|port| resolve(port, pod)).collect();
    if ports.is_empty() && !service_ports.is_empty() {
        return None;
    }
    let (ready, terminating) = (pods::is_ready(pod), pods::is_terminating(pod));
    let publish_anyway = spec.publish_not_ready_addresses == Some(true);
    let pod_spec = pod.spec.as_ref()?;
    let below_service = pod_spec.subdomain.as_deref() == service.metadata.name.as_deref();
    Some(Backend {
        addresses,
        ports,
        ready: publish_anyway || (ready && !terminating),
        serving: ready,
        terminating,
        hostname: pod_spec.hostname.clone().filter(|name| below_service && !name.is_empty()),
        zone: zone(&node),
        node,
        pod: ObjectReference {
            kind: Some("Pod".into()),
            namespace: pod.namespace(),
            name: pod.metadata.name.clone(),
            uid: pod.meta().uid.clone(),
            ..ObjectReference::default()
        },
    })
}

fn resolve(port: &ServicePort, pod: &Pod) -> Option<Port> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => {
            let spec = pod.spec.as_ref()?;
            // Native sidecars are init containers.
            let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
            let mut ports = containers.flat_map(|container| container.ports.iter().flatten());
            let named = ports.find(|known| {
                known.name.as_ref() == Some(name) && known.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            named.map(|port| port.container_port)?
        }
    };
    Some(Port {
        name: port.name.clone().unwrap_or_default(),
        protocol: protocol.into(),
        number,
        app_protocol: port.app_protocol.clone(),
    })
}
