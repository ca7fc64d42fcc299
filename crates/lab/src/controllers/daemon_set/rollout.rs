//! Which daemons to make and which to take away. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// A pod of a DaemonSet.
#[derive(Clone, Debug, Default)]
pub struct Daemon {
    /// Its name.
    pub pod: String,
    /// The node that it is for.
    pub node: String,
    /// Made of the current template.
    pub current: bool,
    /// Ready.
    pub ready: bool,
    /// Ready for long enough.
    pub available: bool,
    /// On its way out.
    pub terminating: bool,
    /// Ended by itself.
    pub finished: bool,
    /// When it was made, in seconds since 1970.
    pub created: i64,
}

/// How a new template reaches the nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Only when somebody deletes the old pod.
    OnDelete,
    /// Old pods go first, while at most this many nodes have no available daemon.
    Replace {
        /// How many nodes.
        unavailable: usize,
    },
    /// New pods come first, on at most this many nodes at once.
    Surge {
        /// How many nodes.
        nodes: usize,
    },
}

/// A thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Make a daemon for a node.
    Create {
        /// The node.
        node: String,
    },
    /// Take a pod away.
    Delete {
        /// Its name.
        pod: String,
    },
}

fn delete(daemon: &Daemon) -> Action {
    Action::Delete { pod: daemon.pod.clone() }
}

/// The next steps for daemons on the `wanted` nodes.
pub fn plan(wanted: &BTreeSet<String>, daemons: &[Daemon], strategy: Strategy) -> Vec<Action> {
    let mut actions = Vec::new();
    let mut by_node: BTreeMap<&str, Vec<&Daemon>> =
        wanted.iter().map(|node| (node.as_str(), Vec::new())).collect();
    let mut ending = BTreeSet::new();
    for daemon in daemons {
        if daemon.terminating {
            ending.insert(daemon.node.as_str());
        } else if daemon.finished {
            // It ended, which a daemon should not: another one takes its place when it is gone.
            actions.push(delete(daemon));
            ending.insert(daemon.node.as_str());
        } else if let Some(here) = by_node.get_mut(daemon.node.as_str()) {
            here.push(daemon);
        } else {
            actions.push(delete(daemon));
        }
    }
    // What each node has: the oldest pod of the current template and the oldest of an earlier one.
    let mut nodes: Vec<(&str, Option<&Daemon>, Option<&Daemon>)> = Vec::new();
    for (node, mut here) in by_node {
        here.sort_by_key(|daemon| (daemon.created, &daemon.pod));
        let new = here.iter().find(|daemon| daemon.current).copied();
        let old = here.iter().find(|daemon| !daemon.current).copied();
        let kept = [new, old].map(|kept| kept.map(|kept| kept.pod.as_str()));
        actions.extend(
            here.iter()
                .filter(|daemon| !kept.contains(&Some(daemon.pod.as_str())))
                .map(|daemon| delete(daemon)),
        );
        nodes.push((node, new, old));
    }
    let is_available = |daemon: Option<&Daemon>| daemon.is_some_and(|daemon| daemon.available);
    let unavailable = nodes.iter().filter(|(_, new, old)| !is_available(*new) && !is_available(*old)).count();
    let surging = nodes.iter().filter(|(_, new, old)| new.is_some() && old.is_some()).count();
    let mut budget = match strategy {
        Strategy::OnDelete => 0,
        Strategy::Replace { unavailable: limit } => limit.saturating_sub(unavailable),
        Strategy::Surge { nodes } => nodes.saturating_sub(surging),
    };
    for (node, new, old) in nodes {
        match (new, old) {
            // One at a time: the predecessor may still hold what only one can have.
            (None, None) if ending.contains(node) => {}
            (None, None) => actions.push(Action::Create { node: node.into() }),
            (Some(_), None) => {}
            (Some(new), Some(old)) => {
                let surging = matches!(strategy, Strategy::Surge { .. });
                if new.available || !old.available || !surging {
                    actions.push(delete(old));
                }
            }
            (None, Some(old)) => {
                let allowed = match strategy {
                    Strategy::OnDelete => false,
                    // An old pod that serves nobody costs nothing.
                    Strategy::Replace { .. } | Strategy::Surge { .. } if !old.available => true,
                    Strategy::Replace { .. } | Strategy::Surge { .. } => {
                        let allowed = budget > 0;
                        budget = budget.saturating_sub(1);
                        allowed
                    }
                };
                match strategy {
                    _ if !allowed => {}
                    Strategy::Surge { .. } => actions.push(Action::Create { node: node.into() }),
                    _ => actions.push(delete(old)),
                }
            }
        }
    }
    actions
}

#[cfg(test)]
mod tests;
