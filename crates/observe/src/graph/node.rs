//! The nodes of a graph: the ends of its edges, and the boxes they stand in.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::query::Level;
use crate::flow::{Millis, Text};
use crate::model::{Edge, Node, PairCounts, State, Why};
use crate::store::place::{OUTSIDE, Place};
use crate::table::{Row, Table};
use crate::why::{code_outside, outside};

const IDENTITIES: usize = 4;
const REASONS: usize = 4;

pub(super) struct Nodes<'a> {
    table: &'a Table,
    level: Level,
    parts: HashMap<Text, Parts<'a>>,
    /// Nodes that are shown although no edge of their own leads to them.
    reached: HashSet<Text>,
}

struct Parts<'a> {
    place: &'a Place,
    pods: HashSet<&'a Text>,
    enrolled: usize,
    /// Pods that are not in the mesh; by name, so that the same one stands for all of a kind each time.
    outside: BTreeMap<&'a Text, &'a Place>,
    pairs: PairCounts,
    identities: BTreeSet<&'a Text>,
    stale_ms: Option<Millis>,
}

impl<'a> Nodes<'a> {
    pub(super) fn new(table: &'a Table, level: Level) -> Self {
        Self { table, level, parts: HashMap::new(), reached: HashSet::new() }
    }

    /// A row touches the node `id`, which stands for `place`, and the boxes around it.
    pub(super) fn add(&mut self, id: &Text, place: &'a Place, row: &'a Row) {
        self.touch(id, place, row);
        let boxes = [&place.workload_id, &place.namespace_id];
        for parent in boxes {
            let around =
                parent != id && place.is_inside() && (parent == &place.namespace_id || id == &place.id);
            if around && id != &place.namespace_id {
                self.touch(parent, place, row);
            }
        }
    }

    /// A trunk that ends at the namespace leads to the node `id`, which stands for `place`.
    pub(super) fn reach(&mut self, id: &Text, place: &'a Place, row: &'a Row) {
        self.touch(id, place, row);
        if *id != place.workload_id {
            self.touch(&place.workload_id, place, row);
        }
        if !self.reached.contains(id) {
            self.reached.insert(id.clone());
        }
    }

    fn touch(&mut self, id: &Text, place: &'a Place, row: &'a Row) {
        if !self.parts.contains_key(id) {
            let parts = Parts {
                place,
                pods: HashSet::new(),
                enrolled: 0,
                outside: BTreeMap::new(),
                pairs: PairCounts::default(),
                identities: BTreeSet::new(),
                stale_ms: None,
            };
            self.parts.insert(id.clone(), parts);
        }
        let enrolled = self.is_enrolled(place);
        let Some(parts) = self.parts.get_mut(id) else { return };
        if parts.pods.insert(&place.id) {
            parts.enrolled += usize::from(enrolled);
            if !enrolled && place.is_inside() {
                parts.outside.insert(&place.id, place);
            }
        }
        parts.pairs.add(row.state);
        parts.stale_ms = parts.stale_ms.max(row.stale_ms);
        if let Some(identities) = &row.identities {
            let own = if place.id == row.source.id { &identities.source } else { &identities.destination };
            if parts.identities.len() < IDENTITIES {
                parts.identities.insert(own);
            }
        }
    }

    fn is_enrolled(&self, place: &Place) -> bool {
        let known = self.table.directory.pod(&place.end.namespace, &place.end.pod);
        known.map_or(place.end.enrolled, |pod| pod.enrolled)
    }

    /// Why pods of a node are outside, a code once.
    fn reasons(&self, parts: &Parts<'a>) -> Vec<Why> {
        let directory = &self.table.directory;
        let mut reasons: Vec<Why> = Vec::new();
        for place in parts.outside.values() {
            let Some(pod) = directory.pod(&place.end.namespace, &place.end.pod) else { continue };
            let Some(code) = code_outside(pod) else { continue };
            match reasons.iter_mut().find(|known| known.code == code) {
                Some(known) => known.count += 1,
                None => reasons.push(outside(code, place, directory)),
            }
        }
        reasons.sort_by_key(|why| std::cmp::Reverse(why.count));
        reasons.truncate(REASONS);
        reasons
    }

    /// Those that are ends of edges, or around such ends; sorted by id.
    pub(super) fn finish(self, edges: &[Edge]) -> Vec<Node> {
        let mut wanted: HashSet<Text> = HashSet::new();
        let ends = edges.iter().flat_map(|edge| [&edge.source, &edge.target]);
        for id in ends.chain(&self.reached) {
            if let Some(parts) = self.parts.get(id)
                && wanted.insert(id.clone())
            {
                let mut around = parent(id, parts.place);
                while let Some(id) = around {
                    around = parent(&id, parts.place);
                    wanted.insert(id);
                }
            }
        }
        let mut nodes: Vec<Node> = wanted.iter().filter_map(|id| self.node(id)).collect();
        nodes.sort_by(|a, b| a.id.cmp(&b.id));
        nodes
    }

    fn node(&self, id: &Text) -> Option<Node> {
        let parts = self.parts.get(id)?;
        let place = parts.place;
        let end = &place.end;
        let (kind, name): (_, Text) = match () {
            () if **id == *OUTSIDE => ("outside", "outside the mesh".into()),
            () if !place.is_inside() => ("outside", place.name().into()),
            () if *id == place.namespace_id => ("namespace", end.namespace.clone()),
            () if *id == place.id && !end.pod.is_empty() && self.level == Level::Pod => {
                ("pod", end.pod.clone())
            }
            () => ("workload", if end.workload.is_empty() { end.pod.clone() } else { end.workload.clone() }),
        };
        let (pod, below) = (kind == "pod", kind == "pod" || kind == "workload");
        let text = |text: &Text, show: bool| if show { text.clone() } else { "".into() };
        let known = self.table.directory.pod(&end.namespace, &end.pod);
        let node = known.map_or(&end.node, |pod| &pod.node);
        Some(Node {
            id: id.clone(),
            kind,
            name,
            namespace: end.namespace.clone(),
            parent: parent(id, place),
            workload_type: text(&end.workload_type, below),
            canonical_name: text(&end.canonical_name, below),
            canonical_revision: text(&end.canonical_revision, below),
            cluster: end.cluster.clone(),
            node: text(node, pod),
            address: end
                .address
                .filter(|_| pod || kind == "outside" && **id != *OUTSIDE)
                .map(|ip| ip.to_string())
                .unwrap_or_default(),
            hub: below && self.table.hubs.contains(&place.workload_id),
            mesh: below && known.is_some_and(|pod| pod.mesh),
            pods: if kind == "outside" { 0 } else { parts.pods.len() },
            pods_enrolled: (kind != "outside").then_some(parts.enrolled),
            outside: self.reasons(parts),
            identities: parts.identities.iter().map(|identity| (*identity).clone()).collect(),
            state: node_state(&parts.pairs),
            stale_ms: parts.stale_ms,
        })
    }
}

/// The box around a node of this place.
fn parent(id: &Text, place: &Place) -> Option<Text> {
    match () {
        () if !place.is_inside() || *id == place.namespace_id => None,
        () if *id == place.id && place.id != place.workload_id => Some(place.workload_id.clone()),
        () => Some(place.namespace_id.clone()),
    }
}

/// A denied neighbour does not make a node bad, so what was carried counts.
fn node_state(pairs: &PairCounts) -> State {
    pairs.state()
}
