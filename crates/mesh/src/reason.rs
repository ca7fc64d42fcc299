//! Why a connection was refused, in words that are the same in logs, metrics, UI and command line.

use std::net::{IpAddr, SocketAddr};

use crate::ServiceKey;

/// Why [`decide`](crate::decide) refuses a call.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The application called a port of the mesh on its own loopback.
    #[error(
        "attempted recursive call to ourselves: {0} is a port of the mesh itself; call the application's own port"
    )]
    SelfCall(SocketAddr),
    /// No endpoint of the service can take the call.
    #[error(
        "no healthy upstream: {service} has no usable endpoint for port {port}; are its pods ready and is the port listed in the service?"
    )]
    NoHealthyUpstream {
        /// The service that was called.
        service: ServiceKey,
        /// The service port.
        port: u16,
    },
    /// A waypoint is demanded, and cannot be found.
    #[error(
        "unknown waypoint: {gateway} leads to nothing that can be called; does its Gateway have an address, and are its pods ready?"
    )]
    UnknownWaypoint {
        /// As configured.
        gateway: String,
    },
    /// The destination is on another network, and no gateway leads there.
    #[error("unknown gateway: no usable network gateway leads to {destination}")]
    UnknownGateway {
        /// The workload or service.
        destination: String,
    },
    /// The service is on another network, and nothing says who would answer there.
    #[error(
        "no identity: service {service} is on another network and has no subjectAltNames, so nobody there could prove to be it"
    )]
    NoServiceIdentity {
        /// The service that was called.
        service: ServiceKey,
    },
    /// The workload has no address that could be dialled.
    #[error("no valid destination: workload {workload} has no address")]
    NoAddress {
        /// Uid of the workload.
        workload: String,
    },
    /// Nobody knows the pod the call came from.
    #[error("unknown source: {0} is not a workload of this node that the control plane has announced")]
    UnknownSource(IpAddr),
}

impl Refusal {
    /// Reason code, the same everywhere.
    pub fn code(&self) -> &'static str {
        match self {
            Self::SelfCall(_) => "self_call",
            Self::NoHealthyUpstream { .. } => "no_healthy_upstream",
            Self::UnknownWaypoint { .. } => "unknown_waypoint",
            Self::UnknownGateway { .. } => "unknown_gateway",
            Self::NoServiceIdentity { .. } => "no_service_identity",
            Self::NoAddress { .. } => "no_address",
            Self::UnknownSource(_) => "unknown_source",
        }
    }
}

/// The `response_flags` of the metrics (reference/data-plane.md §10).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ResponseFlag {
    /// Nothing wrong: `-`.
    #[default]
    None,
    /// Refused or later closed by policy.
    Deny,
    /// The destination could not be reached.
    Connect,
    /// A TLS handshake failed.
    TlsFailure,
    /// HTTP/2 failed.
    H2HandshakeFailure,
    /// The tunnel port did not answer; perhaps a NetworkPolicy blocks it.
    NetworkPolicy,
    /// There is no certificate for the own identity.
    IdentityError,
    /// The peer's certificate has been revoked.
    CertRevoked,
}

impl ResponseFlag {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "-",
            Self::Deny => "DENY",
            Self::Connect => "CONNECT",
            Self::TlsFailure => "TLS_FAILURE",
            Self::H2HandshakeFailure => "H2_HANDSHAKE_FAILURE",
            Self::NetworkPolicy => "NETWORK_POLICY",
            Self::IdentityError => "IDENTITY_ERROR",
            Self::CertRevoked => "CERT_REVOKED",
        }
    }
}
