//! Why the control plane cannot start or go on, one sentence each with what to do.

use std::net::SocketAddr;

/// Why the control plane stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener could not be made.
    #[error(
        "cannot listen on {address} for {purpose}: {source}; stop what uses the port or choose another one with {flag}"
    )]
    Listen {
        /// Address.
        address: SocketAddr,
        /// What for.
        purpose: &'static str,
        /// The flag that changes it.
        flag: &'static str,
        /// Cause.
        source: std::io::Error,
    },
    /// The Kubernetes API refused.
    #[error(
        "the Kubernetes API does not let the control plane {what}: {message}; grant it with the ClusterRole that `ambit install` applies"
    )]
    Forbidden {
        /// What was tried.
        what: String,
        /// What the API said.
        message: String,
    },
    /// The Kubernetes API could not be reached or failed.
    #[error("cannot {what}: {reason}; is the Kubernetes API reachable from this pod?")]
    Api {
        /// What was tried.
        what: String,
        /// The cause, down to its own causes.
        reason: String,
    },
    /// The stored certificate authority cannot be used.
    #[error(
        "the certificate authority in Secret {secret} cannot be used: {reason}; repair it, or delete the Secret to make a new root (every workload certificate is then renewed)"
    )]
    Authority {
        /// `namespace/name`.
        secret: String,
        /// What is wrong.
        reason: String,
    },
    /// The authority that was plugged in cannot be used.
    #[error(
        "the certificate authority that was plugged in at {place} cannot be used: {reason}; repair it, or take it away to go on with a self-signed one"
    )]
    Plugged {
        /// Secret or directory.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// A setting makes no sense.
    #[error("{0}")]
    Setting(String),
    /// Something inside ended that must not end.
    #[error("{0} ended unexpectedly")]
    Ended(&'static str),
}

impl Error {
    /// Sorts an API error into what can be done about it.
    pub fn api(what: impl Into<String>, source: kube::Error) -> Self {
        let what = what.into();
        match &source {
            kube::Error::Api(status) if status.is_forbidden() => {
                Self::Forbidden { what, message: status.message.clone() }
            }
            _ => Self::Api { what, reason: causes(&source) },
        }
    }
}

/// An error with the errors behind it: a failed connection is no news without what the system said.
pub(crate) fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
