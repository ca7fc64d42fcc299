//! What the mesh needs of each Kubernetes object, and nothing else.
//!
//! Objects are reduced here, at the border, as they arrive: a heartbeat that changes nothing the mesh knows of then
//! compares equal and costs nothing, and 100,000 pods are held in a fraction of their size. Nothing is decided here;
//! what an object means is the business of [`crate::model`].

mod attachment;
mod condition;
mod custom;
mod external;
mod gateway;
mod mesh_config;
mod node;
mod pod;
mod policy;
mod service;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use attachment::{Attachment, Wants};
pub use condition::StatusCondition;
pub use custom::ObjectError;
pub use external::{Entry, EntryAddress, EntryPort, Resolution, ServiceEntry, WorkloadEntry};
pub(crate) use gateway::REMOTE;
pub use gateway::{Address, Allowed, Gateway, GatewayClass, Listener, Requirement, Selector};
pub use mesh_config::{EntryVisibility, MeshConfig, VisibilityPolicy, VisibilityRules};
pub use node::{Namespace, Node};
pub(crate) use pod::speaks_hbone;
pub use pod::{Enrolment, MODE, Owner, Phase, Pod};
pub use policy::{
    AuthorizationPolicy, Condition, MtlsMode, Operation, PeerAuthentication, PolicyAction, PolicyRule,
    Source, TargetRef,
};
pub use service::{Endpoint, Port, Protocol, Service, Slice, SlicePort, TargetPort, TrafficDistribution};

/// Labels or annotations.
pub type Labels = BTreeMap<String, String>;

/// Name of a namespaced object.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl Key {
    /// A key from its parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Whether labels carry everything that a selector asks for. An empty selector asks for nothing and selects all.
pub fn selects(selector: &Labels, labels: &Labels) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

fn key_of(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Key {
    Key::new(meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}
