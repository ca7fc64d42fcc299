//! The overview.

use serde::Serialize;

use super::{Coverage, Limits, Measure, Prometheus, ProofCounts, Proxy, Why};
use crate::flow::{Millis, Text};

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Overview {
    pub at: Millis,
    pub window_seconds: u64,
    pub coverage: Coverage,
    pub plaintext: Vec<Finding>,
    pub unproven: Vec<Finding>,
    pub denied: Vec<Finding>,
    pub failed: Vec<Finding>,
    pub namespaces: Vec<NamespaceRow>,
    pub scrapes: ProofCounts,
    pub prometheis: Vec<Prometheus>,
    pub blind: Blind,
    pub proxies: Vec<Proxy>,
    pub limits: Limits,
    pub hints: Vec<Hint>,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Finding {
    pub source: Text,
    pub target: Text,
    pub source_name: String,
    pub target_name: String,
    pub ports: Vec<u16>,
    pub why: Why,
    pub policy: Text,
    /// Workloads that were called; of several, `target` is their namespace.
    pub targets: usize,
    pub pairs: usize,
    pub bytes: u64,
    pub connections: u64,
    pub last_activity: Option<Millis>,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct NamespaceRow {
    pub id: Text,
    pub name: Text,
    pub labelled: Option<bool>,
    pub pods: Option<usize>,
    pub pods_enrolled: Option<usize>,
    pub pods_host_network: Option<usize>,
    pub coverage: Measure,
    pub denied: u64,
    pub sparkline: Vec<u64>,
}

#[derive(Clone, Debug, Default, Serialize)]
#[allow(missing_docs)]
pub struct Blind {
    pub known: bool,
    pub pods_enrolled: usize,
    pub pods_not_enrolled: usize,
    pub pods_host_network: usize,
    pub namespaces_not_enrolled: Vec<Text>,
    pub silent_nodes: Vec<Text>,
    pub text: String,
}

#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Hint {
    pub code: &'static str,
    pub text: String,
    pub command: String,
}
