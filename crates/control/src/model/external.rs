//! ServiceEntries and WorkloadEntries to services and workloads (reference/control-plane.md §1.4, §1.5).

use std::collections::BTreeMap;
use std::sync::Arc;

use mesh::{
    Health, HealthPolicy, Identity, IpFamilies, LoadBalancing, LoadBalancingMode, NetworkAddress, PolicyKey,
    PortMapping, Service, ServiceKey, ServicePort, Tunnel, Uid, Visibility, Workload, WorkloadType,
};

use super::service::spread;
use super::workload::{canonical_name, canonical_revision};
use super::{Bound, Settings};
use crate::input::{
    self, Entry, EntryAddress, EntryPort, Key, Labels, Resolution, ServiceEntry, TargetPort,
    TrafficDistribution, speaks_hbone,
};

/// What belongs to the service of a host besides its ServiceEntry.
#[derive(Debug)]
pub struct HostContext<'a> {
    /// Network of this cluster.
    pub network: &'a Arc<str>,
    /// How traffic is spread in its namespace when it says nothing.
    pub distribution: Option<TrafficDistribution>,
    /// Of all services of that name, this one is meant when the caller's namespace has none.
    pub canonical: bool,
    /// Who sees it.
    pub visibility: Visibility,
    /// Its waypoint.
    pub bound: Option<&'a Bound>,
}

/// The service of one host of a ServiceEntry; none when an address of it is none.
pub fn host(context: &HostContext<'_>, entry: &ServiceEntry, host: &Arc<str>) -> Option<Service> {
    let given = entry.addresses.as_ref()?;
    let key = ServiceKey::new(entry.key.namespace.clone(), host.clone());
    let mut service = Service::new(entry.key.name.clone(), key);
    for block in given {
        let whole = if block.network().is_ipv4() { 32 } else { 128 };
        if block.prefix() == whole {
            service.vips.push(NetworkAddress::new(context.network.clone(), block.network()));
        } else {
            service.cidr_vips.push((context.network.clone(), *block));
        }
    }
    if entry.wants_addresses() {
        let allocated = entry.allocated.get(host).into_iter().flatten();
        service.vips.extend(allocated.map(|ip| NetworkAddress::new(context.network.clone(), *ip)));
    }
    service.ports = entry
        .ports
        .iter()
        .map(|port| ServicePort {
            service_port: port.port,
            target_port: Some(port.target.unwrap_or(port.port)),
            app_protocol: port.app_protocol,
        })
        .collect();
    service.subject_alt_names =
        entry.subject_alt_names.iter().filter_map(|name| name.parse::<Identity>().ok()).collect();
    service.load_balancing =
        if entry.resolution == Resolution::None {
            Some(LoadBalancing {
                routing_preference: Vec::new(),
                mode: LoadBalancingMode::Passthrough,
                health_policy: HealthPolicy::AllowAll,
            })
        } else {
            spread(entry.distribution.or(context.distribution)).map(|(mode, routing_preference)| {
                LoadBalancing { routing_preference, mode, health_policy: HealthPolicy::OnlyHealthy }
            })
        };
    service.ip_families = IpFamilies::Automatic;
    service.canonical = context.canonical;
    service.visibility = context.visibility;
    if let Some(bound) = context.bound {
        service.waypoint = Some(bound.primary.gateway.clone());
        service.weighted_waypoints = bound.weighted();
        service.ingress_use_waypoint = bound.ingress;
    }
    Some(service)
}

/// What belongs to a workload that is written down.
#[derive(Debug, Default)]
pub struct EntryContext<'a> {
    /// Network of this cluster.
    pub network: Arc<str>,
    /// Kubernetes services that select it.
    pub services: Vec<&'a input::Service>,
    /// Hosts it serves, each with its ServiceEntry.
    pub hosts: Vec<(&'a ServiceEntry, Arc<str>)>,
    /// Policies bound to it.
    pub policies: Vec<PolicyKey>,
    /// Its waypoint.
    pub waypoint: Option<mesh::Gateway>,
}

/// Unique name of a WorkloadEntry in the mesh.
pub fn workload_entry_uid(settings: &Settings, key: &Key) -> Uid {
    format!("{}/networking.istio.io/WorkloadEntry/{}/{}", settings.cluster, key.namespace, key.name).into()
}

/// The workload that a WorkloadEntry is.
pub fn workload_entry(
    settings: &Settings,
    context: EntryContext<'_>,
    input: &input::WorkloadEntry,
) -> Result<Workload, mesh::IdentityError> {
    let uid = workload_entry_uid(settings, &input.key);
    let labels = &input.entry.labels;
    let name: Arc<str> = match (&input.group, labels.get("service.istio.io/workload-name")) {
        (Some(group), _) => group.clone(),
        (None, Some(name)) => name.as_str().into(),
        (None, None) => input.key.name.clone(),
    };
    written(settings, context, uid, &input.key, name, labels, input.captured, &input.entry)
}

/// The workloads of a ServiceEntry's own endpoints; for names to resolve, of the hosts themselves.
///
/// `hosts` are those that this ServiceEntry has won: one that it has lost to another has no endpoints here.
pub fn endpoints(
    settings: &Settings,
    network: &Arc<str>,
    entry: &ServiceEntry,
    hosts: &[Arc<str>],
    policies: &[PolicyKey],
    waypoint: impl Fn(&Entry) -> Option<mesh::Gateway>,
) -> Vec<Workload> {
    if hosts.is_empty() {
        return Vec::new();
    }
    let build = |endpoint: &Entry, hosts: &[Arc<str>], waypoint: Option<mesh::Gateway>| {
        let uid = format!(
            "{}/networking.istio.io/ServiceEntry/{}/{}/{}",
            settings.cluster, entry.key.namespace, entry.key.name, endpoint.address
        );
        let context = EntryContext {
            network: network.clone(),
            hosts: hosts.iter().map(|host| (entry, host.clone())).collect(),
            policies: policies.to_vec(),
            waypoint,
            ..EntryContext::default()
        };
        let (key, name) = (&entry.key, entry.key.name.clone());
        written(settings, context, uid.into(), key, name, &entry.labels, entry.captured, endpoint).ok()
    };
    if !entry.endpoints.is_empty() {
        let usable = entry.endpoints.iter().filter(|endpoint| endpoint.address != EntryAddress::Unknown);
        return usable.filter_map(|endpoint| build(endpoint, hosts, waypoint(endpoint))).collect();
    }
    let resolved = matches!(entry.resolution, Resolution::Dns | Resolution::DynamicDns);
    if entry.selector.is_some() || !resolved {
        return Vec::new();
    }
    let implicit = hosts.iter().filter_map(|host| {
        let endpoint = Entry { address: EntryAddress::Hostname(host.clone()), ..Entry::default() };
        build(&endpoint, std::slice::from_ref(host), None)
    });
    implicit.collect()
}

/// A workload that is written down: nobody probes it, so it counts as healthy.
#[allow(clippy::too_many_arguments)]
fn written(
    settings: &Settings,
    context: EntryContext<'_>,
    uid: Uid,
    key: &Key,
    workload_name: Arc<str>,
    labels: &Labels,
    captured: bool,
    entry: &Entry,
) -> Result<Workload, mesh::IdentityError> {
    let account = if entry.account.is_empty() { "default".into() } else { entry.account.clone() };
    let identity = Identity::new(settings.trust_domain.clone(), key.namespace.clone(), account)?;
    let mut workload = Workload::new(uid, key.name.clone(), identity);
    workload.cluster = settings.cluster.clone();
    workload.network = entry.network.clone().unwrap_or(context.network);
    match &entry.address {
        EntryAddress::Ip(ip) => workload.addresses = vec![*ip],
        EntryAddress::Hostname(name) => workload.hostname = Some(name.clone()),
        EntryAddress::Unknown => {}
    }
    workload.native_tunnel = speaks_hbone(labels);
    workload.tunnel = if workload.native_tunnel || captured { Tunnel::Hbone } else { Tunnel::None };
    workload.health = Health::Healthy;
    workload.locality = entry.locality.clone();
    workload.capacity = entry.weight.unwrap_or(1);
    workload.workload_type = WorkloadType::Pod;
    workload.canonical_name = canonical_name(labels).map_or_else(|| workload_name.clone(), Arc::from);
    workload.canonical_revision = canonical_revision(labels).into();
    workload.workload_name = workload_name;
    workload.waypoint = context.waypoint;
    workload.policies = context.policies;
    let named = |name: &str| entry.ports.get(name).copied();
    let mut services: BTreeMap<ServiceKey, Vec<PortMapping>> = BTreeMap::new();
    for service in context.services {
        let ports = service.ports.iter().filter_map(|port| {
            let target_port = match &port.target {
                TargetPort::Name(name) => named(name)?,
                TargetPort::Number(number) => named(&port.name).unwrap_or(*number),
            };
            Some(PortMapping { service_port: port.port, target_port })
        });
        services.insert(settings.service_key(&service.key), ports.collect());
    }
    for (entry, host) in context.hosts {
        let key = ServiceKey::new(entry.key.namespace.clone(), host);
        services.insert(key, host_ports(&entry.ports, named));
    }
    workload.services = services;
    Ok(workload)
}

/// Ports of a ServiceEntry as a workload serves them: what the workload itself calls by the port's name comes first.
pub fn host_ports(ports: &[EntryPort], named: impl Fn(&str) -> Option<u16>) -> Vec<PortMapping> {
    ports
        .iter()
        .map(|port| PortMapping {
            service_port: port.port,
            target_port: named(&port.name).or(port.target).unwrap_or(port.port),
        })
        .collect()
}
