//! From Kubernetes objects to the mesh: pure functions, one row of reference/control-plane.md §1 and §2 after the
//! other.
//!
//! Nothing here waits, reads a clock or remembers: the same objects always give the same workloads, services and
//! policies. Which objects belong together is found by [`crate::state`].

mod aliases;
mod allocate;
mod authorization;
mod conditions;
mod external;
mod network;
mod owner;
mod peer;
mod protocol;
mod service;
mod waypoint;
mod workload;

#[cfg(test)]
pub(crate) mod tests;

use std::sync::Arc;

use mesh::ServiceKey;

use crate::input;

pub use allocate::allocation;
pub use authorization::{Effect, Omitted, authorization, effect};
pub use conditions::{Targets, binding, policy, waypoint_policy};
pub use external::{EntryContext, HostContext, endpoints, host, workload_entry, workload_entry_uid};
pub use network::{NetworkGateway, network_gateways};
pub use owner::workload_name;
pub use peer::{STATIC_STRICT, converted, converted_name, peer_keys, static_strict};
pub use protocol::app_protocol;
pub use service::service;
pub use waypoint::{Bindable, Bound, Candidate, Traffic, Unbound, Waypoint, bind, waypoint};
pub use workload::{Skip, WorkloadContext, endpoint, endpoint_uid, pod, pod_uid};

/// What holds for the whole mesh.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this cluster.
    pub cluster: Arc<str>,
    /// Trust domain of every identity.
    pub trust_domain: Arc<str>,
    /// Other names of it, under which policies may name accounts.
    pub trust_domain_aliases: Arc<[Arc<str>]>,
    /// DNS domain of services.
    pub domain: Arc<str>,
    /// Namespace whose policies hold for all, and whose network label names the local network.
    pub root_namespace: Arc<str>,
    /// Revision; policies labelled with another one are left out.
    pub revision: Arc<str>,
}

impl Settings {
    /// Name of a Kubernetes service in the mesh.
    pub fn service_key(&self, key: &input::Key) -> ServiceKey {
        ServiceKey::new(key.namespace.clone(), format!("{}.{}.svc.{}", key.name, key.namespace, self.domain))
    }

    /// Whether an object with this revision label is ours.
    pub fn in_revision(&self, label: Option<&str>) -> bool {
        label.is_none_or(|label| label == &*self.revision)
    }
}
