//! Pods and endpoints to workloads (reference/control-plane.md §1.1, §1.3, §1.4).

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh::{
    Health, Identity, IdentityError, Locality, NetworkMode, PolicyKey, PortMapping, Tunnel, Uid, Workload,
    WorkloadType,
};

use super::external::host_ports;
use super::{Settings, workload_name};
use crate::input::{self, Labels, Protocol, TargetPort, speaks_hbone};

/// What belongs to a workload besides its own object.
#[derive(Debug, Default)]
pub struct WorkloadContext<'a> {
    /// Network of this cluster.
    pub network: Arc<str>,
    /// Where its node is.
    pub locality: Option<&'a Locality>,
    /// Services that select it.
    pub services: Vec<&'a input::Service>,
    /// Services without a selector that reach it by an endpoint slice, whose ports count.
    pub sliced: Vec<(&'a input::Service, &'a input::Slice)>,
    /// Hosts of ServiceEntries that select it.
    pub hosts: Vec<(&'a input::ServiceEntry, Arc<str>)>,
    /// Policies bound to it by selector, in the order they are to be listed.
    pub policies: Vec<PolicyKey>,
    /// Its waypoint.
    pub waypoint: Option<mesh::Gateway>,
    /// How it takes what tunnels carry, when it is an instance of a waypoint that says so.
    pub tunnel: Option<mesh::ApplicationTunnel>,
}

/// Why an object is no workload.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Skip {
    /// It has come to its end.
    #[error("it has finished")]
    Finished,
    /// It has no address yet.
    #[error("it has no address")]
    NoAddress,
    /// Its names make no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// Unique name of a pod in the mesh. The double slash is the empty API group.
pub fn pod_uid(settings: &Settings, key: &input::Key) -> Uid {
    format!("{}//Pod/{}/{}", settings.cluster, key.namespace, key.name).into()
}

/// The workload that a pod is.
pub fn pod(settings: &Settings, context: WorkloadContext<'_>, pod: &input::Pod) -> Result<Workload, Skip> {
    if pod.finished() {
        return Err(Skip::Finished);
    }
    if pod.addresses.is_empty() {
        return Err(Skip::NoAddress);
    }
    let account = if pod.service_account.is_empty() { "default".into() } else { pod.service_account.clone() };
    let identity = Identity::new(settings.trust_domain.clone(), pod.key.namespace.clone(), account)?;
    let native = speaks_hbone(&pod.labels);
    let workload_name: Arc<str> = workload_name(pod).into();
    let mut services: BTreeMap<_, Vec<PortMapping>> = context
        .services
        .iter()
        .map(|service| {
            let ports = service.ports.iter().filter_map(|port| {
                let target_port = match &port.target {
                    TargetPort::Number(number) => *number,
                    TargetPort::Name(name) => {
                        pod.ports.iter().find(|(have, _)| have == name).map(|(_, number)| *number)?
                    }
                };
                Some(PortMapping { service_port: port.port, target_port })
            });
            (settings.service_key(&service.key), ports.collect())
        })
        .collect();
    for (service, slice) in &context.sliced {
        services.entry(settings.service_key(&service.key)).or_default().extend(slice_ports(service, slice));
    }
    for (entry, host) in &context.hosts {
        let named = |name: &str| pod.ports.iter().find(|(have, _)| have == name).map(|(_, number)| *number);
        let key = mesh::ServiceKey::new(entry.key.namespace.clone(), host.clone());
        services.insert(key, host_ports(&entry.ports, named));
    }
    let mut workload = Workload::new(pod_uid(settings, &pod.key), pod.key.name.clone(), identity);
    workload.network = context.network;
    workload.cluster = settings.cluster.clone();
    workload.addresses = pod.addresses.clone();
    workload.node = pod.node.clone();
    workload.health = if pod.ready && !pod.deleting { Health::Healthy } else { Health::Unhealthy };
    workload.locality = context.locality.cloned().unwrap_or_default();
    workload.network_mode = if pod.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard };
    workload.canonical_name = canonical_name(&pod.labels).map_or_else(|| workload_name.clone(), Arc::from);
    workload.canonical_revision = canonical_revision(&pod.labels).into();
    workload.workload_name = workload_name;
    // What istiod says of every pod, whatever made it; consumers expect it.
    workload.workload_type = WorkloadType::Pod;
    workload.native_tunnel = native;
    workload.tunnel = if native || pod.captured { Tunnel::Hbone } else { Tunnel::None };
    workload.services = services;
    workload.policies = context.policies;
    workload.waypoint = context.waypoint;
    workload.application_tunnel = context.tunnel;
    Ok(workload)
}

/// Name of the application that labels give.
pub(super) fn canonical_name(labels: &Labels) -> Option<&str> {
    first_label(labels, &["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
}

/// Version of the application that labels give.
pub(super) fn canonical_revision(labels: &Labels) -> &str {
    let keys = ["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"];
    first_label(labels, &keys).unwrap_or("latest")
}

fn first_label<'a>(labels: &'a Labels, keys: &[&str]) -> Option<&'a str> {
    keys.iter().find_map(|key| labels.get(*key)).map(String::as_str)
}

/// Unique name of an endpoint that is no pod.
pub fn endpoint_uid(settings: &Settings, slice: &input::Key, endpoint: &input::Endpoint) -> Option<Uid> {
    let first = endpoint.addresses.as_ref()?.first()?;
    Some(
        format!(
            "{}/discovery.k8s.io/EndpointSlice/{}/{}/{first}",
            settings.cluster, slice.namespace, slice.name
        )
        .into(),
    )
}

/// The workload that an endpoint of a slice is, when it is no pod and its service exists.
pub fn endpoint(
    settings: &Settings,
    network: &Arc<str>,
    slice: &input::Slice,
    endpoint: &input::Endpoint,
    service: &input::Service,
) -> Option<Workload> {
    if slice.fqdn || endpoint.pod.is_some() || service.external {
        return None;
    }
    let uid = endpoint_uid(settings, &slice.key, endpoint)?;
    // Nothing is known of who it is; the account is what consumers assume when none is given.
    let identity =
        Identity::new(settings.trust_domain.clone(), slice.key.namespace.clone(), "default").ok()?;
    let ports = slice_ports(service, slice);
    let mut workload = Workload::new(uid, slice.key.name.clone(), identity);
    workload.network = network.clone();
    workload.cluster = settings.cluster.clone();
    workload.addresses = endpoint.addresses.clone()?;
    workload.health = if endpoint.ready { Health::Healthy } else { Health::Unhealthy };
    workload.network_mode = NetworkMode::HostNetwork;
    workload.workload_type = WorkloadType::Deployment;
    workload.canonical_name = "".into();
    workload.canonical_revision = "".into();
    workload.workload_name = "".into();
    workload.services = BTreeMap::from([(settings.service_key(&service.key), ports)]);
    Some(workload)
}

/// Ports of a service as the endpoints of a slice serve them: joined by name.
fn slice_ports(service: &input::Service, slice: &input::Slice) -> Vec<PortMapping> {
    let ports = service.ports.iter().filter_map(|port| {
        let served =
            slice.ports.iter().find(|served| served.name == port.name && served.protocol == Protocol::Tcp)?;
        Some(PortMapping { service_port: port.port, target_port: served.port })
    });
    ports.collect()
}
