//! What was heard, and how often that changed what is published: counted where it happens, read by the metrics.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::table::{Delta, Event};

/// Kinds of inputs.
const KINDS: [&str; 12] = [
    "Pod",
    "Node",
    "Namespace",
    "Service",
    "EndpointSlice",
    "AuthorizationPolicy",
    "PeerAuthentication",
    "ServiceEntry",
    "WorkloadEntry",
    "Gateway",
    "GatewayClass",
    "MeshConfig",
];
/// What happened to one, in the words of the metric.
const HAPPENED: [&str; 3] = ["update", "delete", "list"];

/// The counters.
#[derive(Debug, Default)]
pub struct Tally {
    heard: [[AtomicU64; HAPPENED.len()]; KINDS.len()],
    addresses: AtomicU64,
    policies: AtomicU64,
}

impl Tally {
    pub(super) fn heard(&self, event: &Event) {
        fn what<T>(delta: &Delta<T>) -> usize {
            match delta {
                Delta::Put(_) => 0,
                Delta::Gone(_) => 1,
                Delta::All(_) | Delta::AllBut(..) => 2,
            }
        }
        let (kind, happened) = match event {
            Event::Pods(delta) => (0, what(delta)),
            Event::Nodes(delta) => (1, what(delta)),
            Event::Namespaces(delta) => (2, what(delta)),
            Event::Services(delta) => (3, what(delta)),
            Event::Slices(delta) => (4, what(delta)),
            Event::Authorizations(delta) => (5, what(delta)),
            Event::Peers(delta) => (6, what(delta)),
            Event::Entries(delta) => (7, what(delta)),
            Event::Written(delta) => (8, what(delta)),
            Event::Gateways(delta) => (9, what(delta)),
            Event::Classes(delta) => (10, what(delta)),
            Event::Mesh(delta) => (11, what(delta)),
        };
        if let Some(counter) = self.heard.get(kind).and_then(|row| row.get(happened)) {
            counter.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn published(&self, addresses: bool, policies: bool) {
        self.addresses.fetch_add(u64::from(addresses), Relaxed);
        self.policies.fetch_add(u64::from(policies), Relaxed);
    }

    /// By kind of input and what happened to it, how often that was heard.
    pub fn inputs(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
        KINDS.iter().zip(&self.heard).flat_map(|(kind, row)| {
            HAPPENED.iter().zip(row).map(move |(happened, count)| (*kind, *happened, count.load(Relaxed)))
        })
    }

    /// How often what is published of workloads and services, and of policies, has changed.
    pub fn triggers(&self) -> [(&'static str, u64); 2] {
        [("address", self.addresses.load(Relaxed)), ("policy", self.policies.load(Relaxed))]
    }
}
