//! Pods.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;

use super::{Key, Labels};

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: Key,
    /// UID of this incarnation.
    pub uid: Arc<str>,
    /// Labels.
    pub labels: Labels,
    /// Annotation `ambient.istio.io/redirection` is `enabled`: the pod's traffic is captured.
    pub captured: bool,
    /// Whether it is to be in the mesh.
    pub enrolment: Enrolment,
    /// Controller, when the pod was made from a template.
    pub owner: Option<Owner>,
    /// Its addresses in order; empty when it has none, or any that is no address.
    pub addresses: Vec<IpAddr>,
    /// Node, empty until scheduled.
    pub node: Arc<str>,
    /// Service account, verbatim.
    pub service_account: Arc<str>,
    /// Phase.
    pub phase: Phase,
    /// Condition Ready is True.
    pub ready: bool,
    /// It is being deleted.
    pub deleting: bool,
    /// It shares its node's network.
    pub host_network: bool,
    /// Named TCP ports: those of containers first, then those of native sidecars.
    pub ports: Vec<(String, u16)>,
}

/// Whether a pod is to be in the mesh (reference/control-plane.md §6), as far as it says so itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enrolment {
    /// It is: it is captured or about to be, asks for it, or speaks HBONE itself.
    Own,
    /// It says nothing; its namespace's label decides.
    Namespace,
    /// It is not: it opted out, or is on its node's network.
    Never,
}

impl Enrolment {
    fn of(labels: &Labels, redirection: Option<&str>, host_network: bool) -> Self {
        let native = speaks_hbone(labels);
        match labels.get(MODE).map(String::as_str) {
            _ if host_network => Self::Never,
            _ if native || matches!(redirection, Some("enabled" | "pending")) => Self::Own,
            Some("ambient") => Self::Own,
            Some("none") => Self::Never,
            _ => Self::Namespace,
        }
    }
}

/// Label `networking.istio.io/tunnel` is a comma list with `http`: the workload speaks HBONE itself.
pub(crate) fn speaks_hbone(labels: &Labels) -> bool {
    labels
        .get("networking.istio.io/tunnel")
        .is_some_and(|list| list.split(',').any(|item| item.trim() == "http"))
}

/// Label of pods and namespaces that says whether they are in the mesh.
pub const MODE: &str = "istio.io/dataplane-mode";

/// The controller of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Kind, such as `ReplicaSet`.
    pub kind: String,
    /// Name.
    pub name: String,
}

/// Phase of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Phase {
    Pending,
    Running,
    Succeeded,
    Failed,
    Unknown,
}

impl Pod {
    /// Whether the pod has come to its end and runs nothing any more.
    pub fn finished(&self) -> bool {
        matches!(self.phase, Phase::Succeeded | Phase::Failed)
    }

    /// Whether its addresses are its own, so that it can be found by them.
    pub fn has_place(&self) -> bool {
        !self.finished() && !self.host_network
    }
}

impl From<core::Pod> for Pod {
    fn from(pod: core::Pod) -> Self {
        let key = super::key_of(&pod.metadata);
        let meta = pod.metadata;
        let spec = pod.spec.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let generated = meta.generate_name.as_deref().is_some_and(|name| !name.is_empty());
        let owner = meta
            .owner_references
            .unwrap_or_default()
            .into_iter()
            .find(|owner| owner.controller == Some(true))
            .filter(|_| generated)
            .map(|owner| Owner { kind: owner.kind, name: owner.name });
        let addresses = addresses(&key, &status);
        let ready = status
            .conditions
            .iter()
            .flatten()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True");
        let ports = spec
            .containers
            .iter()
            .chain(
                spec.init_containers
                    .iter()
                    .flatten()
                    .filter(|container| container.restart_policy.as_deref() == Some("Always")),
            )
            .flat_map(|container| container.ports.iter().flatten())
            .filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP")
            .filter_map(|port| Some((port.name.clone()?, u16::try_from(port.container_port).ok()?)))
            .collect();
        let redirection = meta
            .annotations
            .as_ref()
            .and_then(|annotations| annotations.get("ambient.istio.io/redirection"))
            .map(String::as_str);
        let host_network = spec.host_network.unwrap_or(false);
        let labels = meta.labels.unwrap_or_default();
        Self {
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            captured: redirection == Some("enabled"),
            enrolment: Enrolment::of(&labels, redirection, host_network),
            labels,
            owner,
            addresses,
            node: spec.node_name.as_deref().unwrap_or_default().into(),
            service_account: spec.service_account_name.as_deref().unwrap_or_default().into(),
            phase: match status.phase.as_deref() {
                Some("Pending") => Phase::Pending,
                Some("Running") => Phase::Running,
                Some("Succeeded") => Phase::Succeeded,
                Some("Failed") => Phase::Failed,
                _ => Phase::Unknown,
            },
            ready,
            deleting: meta.deletion_timestamp.is_some(),
            host_network,
            ports,
            key,
        }
    }
}

/// All of `status.podIPs` in order, or `status.podIP`. One that is no address takes the pod out of the mesh, and is
/// said so: a workload with some of its addresses would be half reachable.
fn addresses(key: &Key, status: &core::PodStatus) -> Vec<IpAddr> {
    let mut texts: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if texts.is_empty() {
        texts.extend(status.pod_ip.as_deref());
    }
    let parsed: Result<Vec<IpAddr>, _> = texts
        .iter()
        .filter(|text| !text.is_empty())
        .map(|text| text.parse::<IpAddr>().map(|ip| ip.to_canonical()))
        .collect();
    parsed.unwrap_or_else(|_| {
        tracing::warn!(pod = %key, addresses = ?texts, "pod left out of the mesh: not all of its addresses are IP addresses");
        Vec::new()
    })
}
