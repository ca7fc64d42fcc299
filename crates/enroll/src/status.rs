//! What a node agent says of one pod of its node: whether it is in the mesh and why, and what is really there.
//!
//! The agent writes it ([`crate::agent`]), `ambit explain pod` reads it. Plain data; field names are those of its JSON.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// One pod as the agent of its node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// The node.
    pub node: String,
    /// Whether it is to be in the mesh.
    pub wanted: bool,
    /// Why it is, or is not, to be in the mesh.
    pub why: String,
    /// Whether it is in: rules, probes and annotation are done.
    pub enrolled: bool,
    /// Since when, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// The agent is working on it at this moment.
    #[serde(default)]
    pub changing: bool,
    /// What keeps it from being as it should be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Which tools write rules on this node.
    pub firewall: String,
    /// The mesh's tables (iptables: chains) that are in the pod's network namespace now.
    #[serde(default)]
    pub rules: Vec<String>,
    /// Where something listens for the mesh in the pod's network namespace now.
    #[serde(default)]
    pub listeners: Vec<SocketAddr>,
    /// A connected node proxy has confirmed that it serves the pod.
    #[serde(default)]
    pub carried: bool,
    /// Its addresses that are exempt as targets of the node's probes.
    #[serde(default)]
    pub probes: Vec<IpAddr>,
    /// Connections older than the enrolment that are still open: plaintext.
    #[serde(default)]
    pub older_connections: Vec<OlderConnection>,
}

/// A connection that is older than the enrolment of its pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OlderConnection {
    /// The pod's end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// The pod dialled it; otherwise it was dialled.
    pub dialled: bool,
}
