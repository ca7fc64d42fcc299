//! Nodes and namespaces.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;

use super::{Attachment, Labels, TrafficDistribution};

/// A node: only where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: Arc<str>,
    /// Region, zone and subzone from its labels (reference/control-plane.md §1.2).
    pub locality: mesh::Locality,
}

impl From<core::Node> for Node {
    fn from(node: core::Node) -> Self {
        let labels = node.metadata.labels.unwrap_or_default();
        let label =
            |key: &str| -> Arc<str> { labels.get(key).map(String::as_str).unwrap_or_default().into() };
        Self {
            name: node.metadata.name.as_deref().unwrap_or_default().into(),
            locality: mesh::Locality {
                region: label("topology.kubernetes.io/region"),
                zone: label("topology.kubernetes.io/zone"),
                subzone: label("topology.istio.io/subzone"),
            },
        }
    }
}

/// A namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Name.
    pub name: Arc<str>,
    /// Label `topology.istio.io/network`; of the system namespace it names the local network.
    pub network: Arc<str>,
    /// How traffic of its services is spread, when they do not say it themselves.
    pub distribution: Option<TrafficDistribution>,
    /// Labels.
    pub labels: Labels,
    /// Waypoints of what says nothing itself.
    pub attachment: Attachment,
}

impl From<core::Namespace> for Namespace {
    fn from(namespace: core::Namespace) -> Self {
        let meta = namespace.metadata;
        let name: Arc<str> = meta.name.as_deref().unwrap_or_default().into();
        Self {
            attachment: Attachment::read(meta.labels.as_ref(), meta.annotations.as_ref(), &name),
            name,
            network: meta
                .labels
                .as_ref()
                .and_then(|labels| labels.get("topology.istio.io/network"))
                .map(String::as_str)
                .unwrap_or_default()
                .into(),
            distribution: TrafficDistribution::from_annotations(meta.annotations.as_ref()),
            labels: meta.labels.unwrap_or_default(),
        }
    }
}
