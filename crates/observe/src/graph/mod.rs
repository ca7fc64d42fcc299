//! The traffic graph: rows of a [`Table`] put together to namespaces, workloads or pods, the flood of a hub to one
//! trunk a namespace. Pure; ids are made of names, so that nothing moves on a refresh.

mod delta;
mod edge;
mod node;
pub mod query;

use std::collections::HashMap;

use crate::flow::Text;
use crate::model::{Coverage, Graph, Measure, PairCounts, State};
use crate::store::place::{OUTSIDE, Place};
use crate::table::{Row, Table};
pub use delta::{Changes, changes};
use edge::EdgeParts;
use node::Nodes;
pub use query::{Filter, Hubs, Level, Query, Visible, words};

/// Up to so many workloads, a graph of workloads can be read.
const READABLE: usize = 150;

/// What the percentages are of.
pub const DENOMINATOR: &str = "traffic that at least one node proxy carried or accepted in this window, without what \
     crossed no wire; among pods outside the mesh only scrapes are known, by Prometheus' own word and without their bytes";

/// Builds the graph that a query asks for.
pub fn build(table: &Table, query: &Query, visible: &Visible) -> Graph {
    let rows = table.rows.iter().filter(|row| {
        row.state != State::Idle && visible.pair(&row.source, &row.target) && query.filter.takes(row)
    });
    let rows: Vec<&Row> = rows.collect();
    let workloads = if query.level.is_some() { 0 } else { workloads(&rows) };
    let fitting = if workloads > READABLE { Level::Namespace } else { Level::Workload };
    let level = query.level.unwrap_or(fitting);
    let cut = Cut { table, query, level };

    let mut edges: HashMap<(Text, Text, bool), EdgeParts<'_>> = HashMap::new();
    let mut nodes = Nodes::new(table, level);
    let mut sums = Sums::default();
    for row in rows {
        let Some((source, target, trunk)) = cut.ends(row) else { continue };
        if let Some(focus) = &query.focus
            && *source != **focus
            && *target != **focus
        {
            continue;
        }
        sums.add(row);
        nodes.add(&source, &row.source, row);
        nodes.add(&target, &row.target, row);
        if trunk && level != Level::Namespace && row.target.is_inside() {
            // What a trunk reaches stands in its box, each in its own state.
            nodes.reach(&cut.node(&row.target), &row.target, row);
        }
        edges.entry((source, target, trunk)).or_default().add(row);
    }
    let seconds = table.window.seconds;
    let mut edges: Vec<_> = edges
        .into_iter()
        .map(|((source, target, trunk), parts)| {
            parts.finish(source, target, trunk, seconds, &table.directory)
        })
        .collect();
    let mut limits = table.limits.clone();
    if edges.len() > query.limit {
        // What is wrong is shown first, and what is large.
        edges.sort_by_key(|edge| {
            (edge.state.rank(), std::cmp::Reverse(edge.bytes.sent + edge.bytes.received))
        });
        limits.edges_left_out = edges.len() - query.limit;
        edges.truncate(query.limit);
    }
    edges.sort_by(|a, b| a.id.cmp(&b.id));
    Graph {
        at: table.window.at,
        window_seconds: seconds,
        level: level.word(),
        nodes: nodes.finish(&edges),
        edges,
        coverage: sums.coverage(),
        proxies: table.proxies.clone(),
        limits,
    }
}

fn workloads(rows: &[&Row]) -> usize {
    let ids = rows.iter().flat_map(|row| [&row.source.workload_id, &row.target.workload_id]);
    ids.collect::<std::collections::HashSet<_>>().len()
}

/// How rows are put together.
struct Cut<'a> {
    table: &'a Table,
    query: &'a Query,
    level: Level,
}

impl Cut<'_> {
    /// The nodes between which a row is drawn, and whether as part of a trunk; none when it is hidden.
    fn ends(&self, row: &Row) -> Option<(Text, Text, bool)> {
        let hub = self.table.hubs.contains(&row.source.workload_id);
        match self.query.hubs {
            Hubs::Hide if hub => return None,
            Hubs::Only if !hub => return None,
            Hubs::Trunks if hub => {
                let source = if self.level == Level::Pod { &row.source.id } else { &row.source.workload_id };
                let fans_out =
                    self.query.expand.contains(&*row.target.end.namespace) && row.target.is_inside();
                if !fans_out {
                    return Some((source.clone(), row.target.namespace_id.clone(), true));
                }
                let target = if self.level == Level::Pod { &row.target.id } else { &row.target.workload_id };
                return Some((source.clone(), target.clone(), false));
            }
            _ => {}
        }
        Some((self.node(&row.source), self.node(&row.target), false))
    }

    fn node(&self, place: &Place) -> Text {
        match self.level {
            // A hub is a node of its own at every level, else its trunks would begin nowhere.
            Level::Namespace
                if self.query.hubs == Hubs::Trunks && self.table.hubs.contains(&place.workload_id) =>
            {
                place.workload_id.clone()
            }
            Level::Namespace => place.namespace_id.clone(),
            Level::Workload => place.workload_id.clone(),
            Level::Pod => place.id.clone(),
        }
    }
}

/// The coverage of rows.
#[derive(Default)]
pub struct Sums {
    bytes: [u64; 3],
    connections: [u64; 3],
    pairs: PairCounts,
    denied: u64,
    failed: u64,
    unseen: u64,
}

impl Sums {
    /// Adds a row.
    pub fn add(&mut self, row: &Row) {
        let of_bytes = [row.bytes.proven, row.bytes.unproven, row.bytes.plaintext];
        for (sum, bytes) in self.bytes.iter_mut().zip(of_bytes) {
            *sum += bytes;
        }
        // A connection that was open all the while was opened before.
        let connections = row.connections.opened.max(row.connections.open_now);
        match row.state {
            State::Proven => self.connections[0] += connections,
            State::OneSided | State::Contradiction => self.connections[1] += connections,
            // How many of them were which is not known of every one: none is called proven.
            State::Mixed | State::Plaintext => self.connections[2] += connections,
            State::NodeLocal | State::Denied | State::Failed | State::Idle => {}
        }
        self.pairs.add(row.state);
        self.denied += row.connections.denied;
        self.failed += row.connections.failed;
        self.unseen += u64::from(row.unseen);
    }

    /// Shares of the whole.
    pub fn coverage(&self) -> Coverage {
        let measure = |[proven, unproven, plaintext]: [u64; 3]| Measure::of(proven, unproven, plaintext);
        let pairs = &self.pairs;
        let count = |count: usize| count as u64;
        Coverage {
            by_bytes: measure(self.bytes),
            by_connections: measure(self.connections),
            by_pairs: Measure::of(
                count(pairs.proven),
                count(pairs.one_sided + pairs.contradiction),
                count(pairs.plaintext + pairs.mixed),
            ),
            denied: self.denied,
            failed: self.failed,
            uncounted_pairs: self.unseen,
            denominator: DENOMINATOR,
        }
    }

    /// The share to show first: of bytes, or of pairs while there are some whose bytes nobody counted.
    pub fn headline(&self) -> Measure {
        let coverage = self.coverage();
        if self.unseen > 0 { coverage.by_pairs } else { coverage.by_bytes }
    }

    /// Connections refused.
    pub fn denied(&self) -> u64 {
        self.denied
    }

    /// Pairs by state.
    pub fn pairs(&self) -> &PairCounts {
        &self.pairs
    }
}

/// The id of the box that stands for all that is outside.
pub fn outside() -> Text {
    OUTSIDE.into()
}

#[cfg(test)]
mod tests;
