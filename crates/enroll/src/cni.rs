//! The CNI plugin and its line to the node agent.
//!
//! The plugin is chained last. At ADD it tells the agent which pod is about to start, in which namespace and with
//! which addresses, and waits until the agent has enrolled it or said that it is not to be enrolled; only then may
//! the runtime start the pod. While the agent answers nobody else is asked: it watches the API server anyway.
//!
//! **When the agent cannot be reached** the plugin must find out by itself whether the pod may start ([`exempt`],
//! [`access`], [`offline`]):
//!
//! 1. The agent's own pods always start (its namespace *and* its name prefix, both from the plugin's
//!    configuration): otherwise an agent that is away could never come back. Nobody else can use this exemption
//!    without the right to create pods in the mesh's namespace.
//! 2. Pods of excluded namespaces always start, since they are never enrolled.
//! 3. The API server is asked for the pod and its namespace, with what the agent has left for that ([`access`]), and
//!    they are judged as the agent would. A pod that is to be in the mesh is refused with one line that names the
//!    agent; the runtime tries again, so it starts by itself once the agent is back. Any other pod starts at once.
//! 4. Where it does not answer, nobody can tell, and the pod waits: it could be one of the mesh since a moment.
//! 5. Where it refuses to tell (what the agent left has expired, an agent being away for a day), the list of enrolled
//!    namespaces decides that the agent leaves beside its socket ([`Known`]): pods of those are refused, pods of all
//!    others start at once, or wait too where the configuration says so (`hold_all`).
//! 6. Without that list (a node that has just booted and whose `/run` is empty) every other pod counts as one that
//!    could be in the mesh and is refused: starting it could send its traffic past the mesh for ever unnoticed.
//!    The agent itself needs no CNI (it uses the network of its host), so this ends as soon as it runs.
//!
//! Two things the list cannot know: a pod that is opted out by its own label in an enrolled namespace waits too, and
//! what was labelled since starts and is enrolled, running, when the agent is back. Only after such a refusal do they
//! matter.
//!
//! DEL, CHECK, GC and STATUS do nothing and succeed, whatever is gone: there is nothing of the plugin's own to
//! undo, and a STATUS that failed would stop pods that are not in the mesh.

pub mod access;
pub mod client;
pub mod event;
pub mod plugin;
pub mod server;

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// What the agent leaves for the plugin while it is away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// Namespaces whose labels put pods into the mesh, and those in which pods were in by their own.
    pub namespaces: BTreeSet<String>,
}

impl Known {
    /// Reads the list; nothing if there is none that can be understood.
    pub fn read(file: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(file).ok()?).ok()
    }

    /// Replaces the list in one step.
    pub fn write(&self, file: &Path) -> std::io::Result<()> {
        crate::netns_of::remembered::replace(file, &serde_json::to_vec(self)?, 0o644)
    }
}

/// Whether a pod may start although the agent cannot be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offline {
    /// It may: it is not in the mesh, or it is the agent itself.
    Start,
    /// It could be in the mesh.
    Refuse,
}

/// Whether the pod `namespace`/`name` starts whatever anybody could say of it.
pub fn exempt(config: &plugin::Config, namespace: &str, name: &str) -> bool {
    let agent = !config.agent_pod_prefix.is_empty()
        && namespace == config.pod_namespace
        && name.starts_with(&config.agent_pod_prefix);
    agent || config.exclude_namespaces.iter().any(|excluded| excluded == namespace)
}

/// What becomes of a pod of `namespace` that neither the agent nor the API server knows anything of.
pub fn offline(config: &plugin::Config, known: Option<&Known>, namespace: &str) -> Offline {
    match known {
        Some(known) if !config.hold_all && !known.namespaces.contains(namespace) => Offline::Start,
        _ => Offline::Refuse,
    }
}

#[cfg(test)]
mod tests;
