//! What is known of the mesh at one moment.
//!
//! One owner changes a [`View`] and publishes clones of it; a clone is cheap, since the maps inside are persistent
//! and share structure. Indexes are kept here and nowhere else, so they cannot disagree with the objects.

mod discovery;

use std::sync::Arc;

use imbl::{HashMap, HashSet, OrdSet};

pub use discovery::Lookup;

use crate::{
    Cidr, NetworkAddress, NetworkMode, Policy, PolicyKey, Scope, Service, ServiceKey, Tunnel, Uid,
    Visibility, Workload,
};

/// All workloads, services and policies that are known.
#[derive(Clone, Debug, Default)]
pub struct View {
    workloads: HashMap<Uid, Arc<Workload>>,
    workloads_by_address: HashMap<NetworkAddress, OrdSet<Uid>>,
    // Workloads on their node's network share its addresses: they are named, never routed to.
    hosts_by_address: HashMap<NetworkAddress, OrdSet<Uid>>,
    workloads_by_name: HashMap<(Arc<str>, Arc<str>), OrdSet<Uid>>,
    services: HashMap<ServiceKey, Arc<Service>>,
    services_by_vip: HashMap<NetworkAddress, OrdSet<ServiceKey>>,
    services_by_hostname: HashMap<Arc<str>, OrdSet<ServiceKey>>,
    services_with_cidrs: OrdSet<ServiceKey>,
    // Kept for services that are not known yet, too: order of arrival must not matter.
    endpoints: HashMap<ServiceKey, OrdSet<Uid>>,
    policies: HashMap<PolicyKey, Arc<Policy>>,
    global_policies: OrdSet<PolicyKey>,
    namespace_policies: HashMap<Arc<str>, OrdSet<PolicyKey>>,
    /// Whether more exists than is known: see [`Lookup`].
    partial: bool,
    absent: HashSet<Lookup>,
}

impl View {
    /// Adds a workload or replaces the one of the same uid.
    pub fn insert_workload(&mut self, workload: Workload) {
        let workload = Arc::new(workload);
        self.remove_workload(&workload.uid);
        let uid = &workload.uid;
        let host_network = workload.network_mode == NetworkMode::HostNetwork;
        let index = if host_network { &mut self.hosts_by_address } else { &mut self.workloads_by_address };
        for address in addresses_of(&workload) {
            index.entry(address).or_default().insert(uid.clone());
        }
        let name = (workload.namespace.clone(), workload.name.clone());
        self.workloads_by_name.entry(name).or_default().insert(uid.clone());
        for service in workload.services.keys() {
            self.endpoints.entry(service.clone()).or_default().insert(uid.clone());
        }
        self.workloads.insert(uid.clone(), workload);
    }

    /// Forgets a workload.
    pub fn remove_workload(&mut self, uid: &str) -> Option<Arc<Workload>> {
        let workload = self.workloads.remove(uid)?;
        let host_network = workload.network_mode == NetworkMode::HostNetwork;
        let index = if host_network { &mut self.hosts_by_address } else { &mut self.workloads_by_address };
        for address in addresses_of(&workload) {
            discard(index, &address, &workload.uid);
        }
        let name = (workload.namespace.clone(), workload.name.clone());
        discard(&mut self.workloads_by_name, &name, &workload.uid);
        for service in workload.services.keys() {
            discard(&mut self.endpoints, service, &workload.uid);
        }
        Some(workload)
    }

    /// Adds a service or replaces the one of the same key.
    pub fn insert_service(&mut self, service: Service) {
        let service = Arc::new(service);
        self.remove_service(&service.key);
        let key = &service.key;
        for vip in &service.vips {
            self.services_by_vip.entry(vip.clone()).or_default().insert(key.clone());
        }
        self.services_by_hostname.entry(key.hostname.clone()).or_default().insert(key.clone());
        if !service.cidr_vips.is_empty() {
            self.services_with_cidrs.insert(key.clone());
        }
        self.services.insert(key.clone(), service);
    }

    /// Forgets a service; its endpoints are remembered for its return.
    pub fn remove_service(&mut self, key: &ServiceKey) -> Option<Arc<Service>> {
        let service = self.services.remove(key)?;
        for vip in &service.vips {
            discard(&mut self.services_by_vip, vip, key);
        }
        discard(&mut self.services_by_hostname, &key.hostname, key);
        self.services_with_cidrs.remove(key);
        Some(service)
    }

    /// Adds a policy or replaces the one of the same key.
    pub fn insert_policy(&mut self, policy: Policy) {
        let policy = Arc::new(policy);
        let key = policy.key();
        self.remove_policy(&key);
        match policy.scope {
            Scope::Global => {
                self.global_policies.insert(key.clone());
            }
            Scope::Namespace => {
                self.namespace_policies.entry(policy.namespace.clone()).or_default().insert(key.clone());
            }
            Scope::WorkloadSelector => {}
        }
        self.policies.insert(key, policy);
    }

    /// Forgets a policy.
    pub fn remove_policy(&mut self, key: &str) -> Option<Arc<Policy>> {
        let policy = self.policies.remove(key)?;
        self.global_policies.remove(key);
        discard(&mut self.namespace_policies, &policy.namespace, &policy.key());
        Some(policy)
    }

    /// A workload by uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid)
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.values()
    }

    /// All services, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// A service by key.
    pub fn service(&self, key: &ServiceKey) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// A policy by `namespace/name`.
    pub fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// The workload that owns an address. Several may share one: a pod that accepts tunnels wins, then any pod, then
    /// whoever accepts tunnels. Workloads on their node's network are never found this way.
    pub fn workload_by_address(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        let owners = self.workloads_by_address.get(address)?;
        owners.iter().filter_map(|uid| self.workloads.get(uid)).max_by_key(|workload| {
            let pod = workload.uid.contains("//Pod/");
            let hbone = workload.tunnel == Tunnel::Hbone;
            (pod && hbone, pod, hbone)
        })
    }

    /// A workload on the network of the node that has this address; says which node that is, and no more.
    pub fn host_by_address(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        self.hosts_by_address.get(address)?.iter().find_map(|uid| self.workloads.get(uid))
    }

    /// The workload with this pod name, as a node agent names it.
    pub fn workload_by_name(
        &self,
        namespace: &str,
        name: &str,
        service_account: &str,
        node: Option<&str>,
    ) -> Option<&Arc<Workload>> {
        let uids = self.workloads_by_name.get(&(namespace.into(), name.into()))?;
        uids.iter().filter_map(|uid| self.workloads.get(uid)).find(|workload| {
            workload.identity.service_account() == service_account
                && node.is_none_or(|node| &*workload.node == node)
        })
    }

    /// The service behind a VIP as seen from `namespace`: the own namespace's wins, then the canonical one, then the
    /// first by name; without an exact VIP, the longest matching block decides in the same order.
    pub fn service_by_vip(&self, address: &NetworkAddress, namespace: &str) -> Option<&Arc<Service>> {
        let rank = |service: &Service| (&*service.key.namespace == namespace, service.canonical);
        let exact = self.services_by_vip.get(address).into_iter().flatten();
        let exact =
            exact.filter_map(|key| self.services.get(key)).filter(|service| visible(service, namespace));
        first_max(exact.map(|service| (rank(service), service))).or_else(|| {
            let blocks = self.services_with_cidrs.iter().filter_map(|key| self.services.get(key));
            let matching = blocks.filter(|service| visible(service, namespace)).filter_map(|service| {
                let prefix = longest_prefix(service, address)?;
                let (own, canonical) = rank(service);
                Some(((own, prefix, canonical), service))
            });
            first_max(matching)
        })
    }

    /// A service by hostname as seen from `namespace`: own namespace, then canonical, then the first by name.
    pub fn service_by_hostname(&self, hostname: &str, namespace: &str) -> Option<&Arc<Service>> {
        let keys = self.services_by_hostname.get(hostname)?;
        let services = keys.iter().filter_map(|key| self.services.get(key));
        let visible = services.filter(|service| visible(service, namespace));
        first_max(visible.map(|service| ((&*service.key.namespace == namespace, service.canonical), service)))
    }

    /// All services with this hostname, by namespace, whoever may see them.
    pub fn services_by_hostname(&self, hostname: &str) -> impl Iterator<Item = &Arc<Service>> {
        self.services_by_hostname.get(hostname).into_iter().flatten().filter_map(|key| self.services.get(key))
    }

    /// The workloads that are endpoints of a service.
    pub fn endpoints(&self, service: &ServiceKey) -> impl Iterator<Item = &Arc<Workload>> {
        self.endpoints.get(service).into_iter().flatten().filter_map(|uid| self.workloads.get(uid))
    }

    /// The policies that apply to a workload: global ones, its namespace's, and those bound to it.
    pub fn policies_for<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Policy>> {
        let namespace = self.namespace_policies.get(&workload.namespace).into_iter().flatten();
        let keys = self.global_policies.iter().chain(namespace).chain(workload.policies.iter());
        keys.filter_map(|key| self.policies.get(key))
            .filter(|policy| crate::authorize::applies(policy, workload))
    }

    /// Policies that are bound to a workload and not known.
    pub fn missing_policies(&self, workload: &Workload) -> Vec<PolicyKey> {
        workload.policies.iter().filter(|key| !self.policies.contains_key(*key)).cloned().collect()
    }
}

fn addresses_of(workload: &Workload) -> impl Iterator<Item = NetworkAddress> + '_ {
    workload.addresses.iter().map(|ip| NetworkAddress::new(workload.network.clone(), *ip))
}

fn visible(service: &Service, namespace: &str) -> bool {
    service.visibility == Visibility::Public || &*service.key.namespace == namespace
}

fn longest_prefix(service: &Service, address: &NetworkAddress) -> Option<u8> {
    let matching =
        |(network, block): &&(Arc<str>, Cidr)| *network == address.network && block.contains(address.ip);
    service.cidr_vips.iter().filter(matching).map(|(_, block)| block.prefix()).max()
}

fn first_max<K: Ord, T>(items: impl Iterator<Item = (K, T)>) -> Option<T> {
    let best = items.reduce(|best, next| if next.0 > best.0 { next } else { best });
    best.map(|(_, item)| item)
}

fn discard<K, V>(index: &mut HashMap<K, OrdSet<V>>, key: &K, value: &V)
where
    K: std::hash::Hash + Eq + Clone,
    V: Ord + Clone,
{
    if let Some(set) = index.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            index.remove(key);
        }
    }
}

#[cfg(test)]
mod tests;
