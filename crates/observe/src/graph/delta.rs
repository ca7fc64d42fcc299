//! What has changed between two graphs of the same query: a walk along two sorted lists.

use crate::flow::{Millis, Text};
use crate::model::{Edge, Graph, Node};

/// Ages and byte counts change all the time; below these steps it is not worth telling.
const AGE_STEP: Millis = 5_000;
const BYTES_STEP: f64 = 0.05;

/// What has changed.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Changes<'a> {
    pub nodes: Vec<&'a Node>,
    pub edges: Vec<&'a Edge>,
    pub removed_nodes: Vec<Text>,
    pub removed_edges: Vec<Text>,
    pub coverage: bool,
    pub proxies: bool,
    pub limits: bool,
}

impl Changes<'_> {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
            && self.edges.is_empty()
            && self.removed_nodes.is_empty()
            && self.removed_edges.is_empty()
            && !(self.coverage || self.proxies || self.limits)
    }
}

/// From `old` to `new`.
pub fn changes<'a>(old: &Graph, new: &'a Graph) -> Changes<'a> {
    let (nodes, removed_nodes) = walk(&old.nodes, &new.nodes, |node| &node.id, same_node);
    let (edges, removed_edges) = walk(&old.edges, &new.edges, |edge| &edge.id, same_edge);
    let coverage = old.coverage.denied != new.coverage.denied
        || old.coverage.failed != new.coverage.failed
        || old.coverage.by_bytes.percent != new.coverage.by_bytes.percent
        || old.coverage.by_pairs != new.coverage.by_pairs;
    Changes {
        nodes,
        edges,
        removed_nodes,
        removed_edges,
        coverage,
        proxies: !same_proxies(old, new),
        limits: old.limits != new.limits,
    }
}

fn walk<'a, T>(
    old: &[T],
    new: &'a [T],
    id: fn(&T) -> &Text,
    same: fn(&T, &T) -> bool,
) -> (Vec<&'a T>, Vec<Text>) {
    let (mut changed, mut removed) = (Vec::new(), Vec::new());
    let mut old = old.iter().peekable();
    for item in new {
        while let Some(gone) = old.next_if(|before| id(before) < id(item)) {
            removed.push(id(gone).clone());
        }
        match old.next_if(|before| id(before) == id(item)) {
            Some(before) if same(before, item) => {}
            _ => changed.push(item),
        }
    }
    removed.extend(old.map(|gone| id(gone).clone()));
    (changed, removed)
}

fn same_age(a: Option<Millis>, b: Option<Millis>) -> bool {
    a.map(|age| age / AGE_STEP) == b.map(|age| age / AGE_STEP)
}

fn same_amount(a: u64, b: u64) -> bool {
    a == b || (a > 0 && b > 0 && a.abs_diff(b) as f64 <= BYTES_STEP * a as f64)
}

fn same_node(a: &Node, b: &Node) -> bool {
    same_age(a.stale_ms, b.stale_ms)
        && Node { stale_ms: None, ..a.clone() } == Node { stale_ms: None, ..b.clone() }
}

fn same_edge(a: &Edge, b: &Edge) -> bool {
    a.state == b.state
        && a.pairs == b.pairs
        && a.percent_mutual_tls == b.percent_mutual_tls
        && a.unseen == b.unseen
        && same_age(a.stale_ms, b.stale_ms)
        && same_amount(a.bytes.sent, b.bytes.sent)
        && same_amount(a.bytes.received, b.bytes.received)
        && same_amount(a.connections.opened, b.connections.opened)
        && (a.connections.denied, a.connections.failed) == (b.connections.denied, b.connections.failed)
        && same_amount(a.connections.open_now, b.connections.open_now)
        && (&a.ports, &a.services, &a.identities) == (&b.ports, &b.services, &b.identities)
        && (&a.policies, &a.reasons) == (&b.policies, &b.reasons)
        && a.exceptions.len() == b.exceptions.len()
        && a.exceptions
            .iter()
            .zip(&b.exceptions)
            .all(|(a, b)| (&a.source, &a.target, a.port, a.state) == (&b.source, &b.target, b.port, b.state))
}

fn same_proxies(old: &Graph, new: &Graph) -> bool {
    old.proxies.len() == new.proxies.len()
        && old.proxies.iter().zip(&new.proxies).all(|(a, b)| {
            (&a.node, &a.pod, a.connected, a.pairs_refused, a.rows_refused, a.rows_lost)
                == (&b.node, &b.pod, b.connected, b.pairs_refused, b.rows_refused, b.rows_lost)
                && same_age(a.stale_ms, b.stale_ms)
        })
}
