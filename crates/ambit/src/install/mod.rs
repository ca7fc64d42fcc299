//! Installing the mesh into a cluster and removing it again.
//!
//! What is installed is the YAML under `manifests/`, filled in with [`values`]; this module renders, applies and
//! waits, and never decides what a component does.

mod apply;
pub mod cluster;
mod remove;
pub mod render;
pub mod values;

pub use apply::apply;
pub use remove::{Leaving, leaving, remove};

/// The field manager of everything that is applied.
pub const FIELD_MANAGER: &str = "ambit";
/// The label that everything installed carries.
pub const MANAGED_BY: (&str, &str) = ("app.kubernetes.io/managed-by", "ambit");
