//! Why a connection did not go well: what happened, to whom, and what to do; with the reason code and the flag that
//! are the same in logs, metrics and dumps.

use std::io;
use std::net::SocketAddr;

use ::http::StatusCode;
use hbone::{HandshakeError, HeadError, OpenError};
use mesh::{NotHere, Refusal, ResponseFlag, Unproven, Verdict};

use crate::certs::CertError;
use crate::pool::PoolError;
use crate::sockets::ConnectError;
use crate::xds::DISCOVERY_WAIT as WAIT;

/// Why a connection failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(
        "unknown source: pod {namespace}/{name} (service account {service_account}) is not among the workloads of \
         this node that the control plane has announced"
    )]
    UnknownPod { namespace: String, name: String, service_account: String },
    #[error("no certificate: {0}")]
    Certificate(#[from] CertError),
    #[error("{0}")]
    Connect(#[source] ConnectError),
    #[error("{0}")]
    Handshake(#[from] HandshakeError),
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error("connection closed due to policy rejection: {0}{explained}", explained = explained(.1.as_ref()))]
    Denied(Verdict, Option<Unproven>),
    #[error("connection closed due to policy change: {0}")]
    PolicyChange(Verdict),
    #[error("{0}")]
    Head(#[from] HeadError),
    #[error(transparent)]
    NotHere(#[from] NotHere),
    #[error("the certificate of {0} has been revoked: connections with it are closed")]
    Revoked(SocketAddr),
    #[error("connection failed while bytes were copied: {0}")]
    Copy(#[source] io::Error),
    #[error("the client gave up before the connection was established")]
    Abandoned,
    #[error("cannot find out where the connection wanted to go: {0}")]
    OriginalDestination(#[source] io::Error),
    #[error("no valid destination: {hostname} cannot be resolved: {reason}")]
    Hostname { hostname: String, reason: String },
    #[error(
        "no valid destination: the control plane has not said within {WAIT:?} what {what} is; is it up, and does it \
         know clients that ask by name (XDS_ON_DEMAND)?"
    )]
    Undiscovered { what: String },
}

/// What a refused caller without an identity is told in addition.
fn explained(unproven: Option<&Unproven>) -> String {
    unproven.map(|unproven| format!("; {unproven}: {}", unproven.cure())).unwrap_or_default()
}

impl Failure {
    /// Reason code.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => refusal.code(),
            Self::UnknownPod { .. } => "unknown_source",
            Self::Certificate(_) => "no_certificate",
            Self::Connect(ConnectError::Failed { .. }) => "connect_failed",
            Self::Connect(ConnectError::Timeout { .. }) => "connect_timeout",
            Self::Handshake(error) => error.code(),
            Self::Open(OpenError::Refused { status: StatusCode::UNAUTHORIZED }) => "denied_by_peer",
            Self::Open(OpenError::Refused { .. }) => "refused_by_peer",
            Self::Open(OpenError::Timeout { .. }) => "connect_answer_timeout",
            Self::Open(_) => "tunnel_broken",
            Self::Pool(error) => error.code(),
            Self::Denied(_, None) => "denied",
            Self::Denied(_, Some(_)) => "denied_without_identity",
            Self::PolicyChange(_) => "policy_change",
            Self::Head(_) => "bad_request",
            Self::NotHere(NotHere::IpMismatch { .. }) => "ip_mismatch",
            Self::NotHere(NotHere::Unresolvable(_)) => "unresolvable",
            Self::NotHere(NotHere::Refused(refusal)) => refusal.code(),
            Self::Revoked(_) => "certificate_revoked",
            Self::Copy(_) => "copy_failed",
            Self::Abandoned => "abandoned",
            Self::OriginalDestination(_) => "no_original_destination",
            Self::Hostname { .. } => "hostname",
            Self::Undiscovered { .. } => "undiscovered",
        }
    }

    /// What the observer is told in words, where a flag says too little.
    pub(crate) fn why(&self) -> Option<String> {
        match self {
            Self::Denied(_, Some(unproven)) => Some(format!("policy: {unproven}")),
            _ => None,
        }
    }

    /// The policy that decided, `namespace/name#rule`; empty when none did.
    pub(crate) fn policy(&self) -> std::sync::Arc<str> {
        match self {
            Self::Denied(verdict, _) | Self::PolicyChange(verdict) => match verdict {
                Verdict::Denied(by) | Verdict::Allowed(by) => format!("{}#{}", by.policy, by.rule).into(),
                Verdict::NotAllowed(policies) | Verdict::Unknown(policies) => {
                    policies.first().cloned().unwrap_or_default()
                }
                Verdict::AllowedByDefault => "".into(),
            },
            _ => "".into(),
        }
    }

    /// The `response_flags` of the metrics (reference/data-plane.md §10). A source whose peer answered 401 says
    /// DENY as the destination does.
    pub(crate) fn flag(&self) -> ResponseFlag {
        match self {
            Self::Denied(..)
            | Self::PolicyChange(_)
            | Self::Open(OpenError::Refused { status: StatusCode::UNAUTHORIZED }) => ResponseFlag::Deny,
            Self::Open(OpenError::Closing(_) | OpenError::Broken { .. }) => ResponseFlag::H2HandshakeFailure,
            Self::Certificate(_) => ResponseFlag::IdentityError,
            Self::Revoked(_) => ResponseFlag::CertRevoked,
            Self::Handshake(error) => error.flag(),
            Self::Pool(error) => error.flag(),
            Self::Abandoned => ResponseFlag::None,
            _ => ResponseFlag::Connect,
        }
    }

    /// What a CONNECT request is answered.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Head(_) | Self::NotHere(NotHere::IpMismatch { .. }) => StatusCode::BAD_REQUEST,
            Self::Denied(..) => StatusCode::UNAUTHORIZED,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}
