//! Workloads, services and policies from a file instead of from a control plane (`LOCAL_XDS_PATH`), in YAML or JSON.
//!
//! The form is that of the proxy's configuration dump (reference/enrolment.md §6.2), so that a dump can be edited and
//! read again, and files written for ztunnel are understood. An unknown field is an error that names it: a misspelt
//! policy that silently does nothing would be worse.

mod read;
mod shape;

use mesh::{Policy, Service, Workload};

/// What such a file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Local {
    /// Workloads.
    pub workloads: Vec<Workload>,
    /// Services.
    pub services: Vec<Service>,
    /// Policies.
    pub policies: Vec<Policy>,
}

/// Why a file cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    /// It is not of the right form.
    #[error("{0}")]
    Form(String),
    /// An object of it makes no sense.
    #[error("{object}: {reason}")]
    Object {
        /// `workload …`, `service …` or `policy …`.
        object: String,
        /// What is wrong.
        reason: String,
    },
}

impl Local {
    /// Reads YAML, or JSON, which is faster, when the text begins with a brace.
    pub fn parse(text: &str) -> Result<Self, LocalError> {
        let form = |error: String| LocalError::Form(error);
        let shape: shape::File = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|error| form(error.to_string()))?
        } else if text.trim().is_empty() {
            shape::File::default()
        } else {
            // It is the administrator's own file: nothing has to be bounded, and 100,000 workloads are many nodes.
            let mut options = serde_saphyr::Options::default();
            options.budget = None;
            options.with_snippet = false;
            serde_saphyr::from_str_with_options(text, options).map_err(|error| form(error.to_string()))?
        };
        shape.read()
    }
}

#[cfg(test)]
mod tests;
