//! A lab from outside: bring one up, look at it, go into its pods, take it down.
//!
//! One process carries a lab: it holds the API, the controllers and the fabric between the nodes, and each node is
//! a process tree below it. Everything that has to be undone stands in a record under `/run/ambit/<lab>` before it
//! is made, so that [`down`] works the same after Ctrl-C and after a crash. Nothing is ever made in the host's own
//! network namespace.

mod answers;
mod background;
mod cgroups;
mod down;
mod exec;
mod fabric;
mod kubeconfig;
mod manifests;
mod name;
mod nodes;
mod preflight;
mod processes;
mod record;
mod run;
mod status;

pub use background::{carry, in_background};
pub use down::down;
pub use exec::{Exec, exec};
pub use manifests::Manifests;
pub use name::LabName;
pub use run::run;
pub use status::{NodeStatus, Status, status};

use std::path::PathBuf;
use std::sync::Arc;

/// What a lab is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its name: several labs can be up at once.
    pub name: LabName,
    /// How many nodes; none for an API alone.
    pub nodes: u8,
    /// Applied once the nodes are ready.
    pub manifests: Manifests,
    /// Where the kubeconfig goes; none: merged into the user's own.
    pub kubeconfig: Option<PathBuf>,
    /// The port of the API on the loopback interface; none: a free one.
    pub port: Option<u16>,
    /// No API and no controllers: the nodes join the cluster of this kubeconfig.
    pub join: Option<PathBuf>,
}

/// Gets a line about what is happening.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// A lab that is up.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub struct Ready {
    /// The API's address.
    pub api: String,
    /// The context of the kubeconfig that leads there.
    pub context: String,
    /// The kubeconfig.
    pub kubeconfig: PathBuf,
}
