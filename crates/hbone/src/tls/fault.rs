//! What can be wrong with a peer, as types.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use mesh::{Identity, ResponseFlag};
use rustls::CertificateError;

/// What is wrong with a peer's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum PeerFault {
    /// It proved to be somebody else.
    WrongIdentity {
        /// Who it is.
        got: Vec<Identity>,
        /// Who was expected.
        expected: Vec<Identity>,
    },
    /// It belongs to another trust domain.
    WrongTrustDomain {
        /// Who it is.
        got: Vec<Identity>,
        /// Our trust domain.
        expected: String,
    },
    /// Its certificate names no SPIFFE identity of a workload.
    NoIdentity,
    /// It has no certificate.
    NoCertificate,
    /// Its certificate has expired.
    Expired,
    /// Its certificate is not valid yet.
    NotYetValid,
    /// Its certificate was signed by nobody we trust.
    UnknownIssuer,
    /// Its certificate has been revoked.
    Revoked,
    /// Its certificate is not meant for this end of a connection.
    WrongPurpose,
    /// Anything else.
    Invalid(String),
}

impl PeerFault {
    /// Reason code, the same everywhere.
    pub fn code(&self) -> &'static str {
        match self {
            Self::WrongIdentity { .. } => "wrong_identity",
            Self::WrongTrustDomain { .. } => "wrong_trust_domain",
            Self::NoIdentity => "no_identity",
            Self::NoCertificate => "no_client_certificate",
            Self::Expired => "certificate_expired",
            Self::NotYetValid => "certificate_not_yet_valid",
            Self::UnknownIssuer => "unknown_issuer",
            Self::Revoked => "certificate_revoked",
            Self::WrongPurpose => "certificate_wrong_purpose",
            Self::Invalid(_) => "certificate_invalid",
        }
    }

    pub(crate) fn of(error: &CertificateError) -> Self {
        match error {
            CertificateError::Other(other) => match other.0.downcast_ref::<Self>() {
                Some(fault) => fault.clone(),
                None => Self::Invalid(error.to_string()),
            },
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => Self::NotYetValid,
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Self::UnknownIssuer,
            CertificateError::Revoked => Self::Revoked,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::WrongPurpose
            }
            other => Self::Invalid(other.to_string()),
        }
    }
}

impl std::error::Error for PeerFault {}

impl fmt::Display for PeerFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |identities: &[Identity]| {
            let texts: Vec<String> = identities.iter().map(ToString::to_string).collect();
            texts.join(", ")
        };
        match self {
            Self::WrongIdentity { got, expected } => write!(
                f,
                "presented {}, expected one of {}: is its pod enrolled under another service account?",
                list(got),
                list(expected)
            ),
            Self::WrongTrustDomain { got, expected } => {
                write!(f, "presented {}, which is not of our trust domain {expected}", list(got))
            }
            Self::NoIdentity => {
                f.write_str("presented a certificate without a SPIFFE identity of a workload")
            }
            Self::NoCertificate => f.write_str("presented no certificate"),
            Self::Expired => f.write_str("presented a certificate that has expired: are the clocks right?"),
            Self::NotYetValid => f.write_str("presented a certificate not valid yet: are the clocks right?"),
            Self::UnknownIssuer => f.write_str(
                "presented a certificate that no root of the mesh has signed: is it of another mesh?",
            ),
            Self::Revoked => f.write_str("presented a certificate that has been revoked"),
            Self::WrongPurpose => f.write_str("presented a certificate that is not meant for this use"),
            Self::Invalid(why) => write!(f, "presented an invalid certificate: {why}"),
        }
    }
}

/// Why a tunnel could not be made of a connection.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandshakeError {
    /// The peer's certificate was refused.
    #[error("{peer} {fault}")]
    Peer {
        /// The peer.
        peer: SocketAddr,
        /// What is wrong with it.
        fault: PeerFault,
    },
    /// TLS failed otherwise; when the peer refuses our certificate it says so here.
    #[error("TLS with {peer} failed: {reason}")]
    Tls {
        /// The peer.
        peer: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// TLS took too long.
    #[error("{peer} did not finish the TLS handshake within {within:?}")]
    TlsTimeout {
        /// The peer.
        peer: SocketAddr,
        /// The limit.
        within: Duration,
    },
    /// HTTP/2 failed.
    #[error("HTTP/2 with {peer} failed: {reason}")]
    Http2 {
        /// The peer.
        peer: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// HTTP/2 took too long.
    #[error("{peer} did not finish the HTTP/2 handshake within {within:?}")]
    Http2Timeout {
        /// The peer.
        peer: SocketAddr,
        /// The limit.
        within: Duration,
    },
    /// Our own TLS configuration cannot be built.
    #[error("cannot set up TLS: {0}")]
    Configuration(String),
}

impl HandshakeError {
    pub(crate) fn configuration(error: impl fmt::Display) -> Self {
        Self::Configuration(error.to_string())
    }

    pub(crate) fn from_tls(peer: SocketAddr, error: &rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(error) => Self::Peer { peer, fault: PeerFault::of(error) },
            rustls::Error::NoCertificatesPresented => Self::Peer { peer, fault: PeerFault::NoCertificate },
            error => Self::Tls { peer, reason: error.to_string() },
        }
    }

    pub(crate) fn from_io(peer: SocketAddr, error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(error) => Self::from_tls(peer, error),
            None => Self::Tls { peer, reason: error.to_string() },
        }
    }

    pub(crate) fn from_h2(peer: SocketAddr, error: &h2::Error) -> Self {
        // In TLS 1.3 a server judges our certificate only after our handshake is complete.
        let io = error.get_io();
        match io.and_then(|io| io.get_ref()).and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::AlertReceived(alert)) => {
                Self::Tls { peer, reason: format!("it refused our certificate ({alert:?})") }
            }
            Some(error) => Self::Tls { peer, reason: error.to_string() },
            None => Self::Http2 { peer, reason: error.to_string() },
        }
    }

    /// The flag that metrics carry for it (reference/data-plane.md §10).
    pub fn flag(&self) -> ResponseFlag {
        match self {
            Self::Peer { fault: PeerFault::Revoked, .. } => ResponseFlag::CertRevoked,
            Self::Peer { .. } | Self::Tls { .. } | Self::TlsTimeout { .. } => ResponseFlag::Connect,
            Self::Http2 { .. } | Self::Http2Timeout { .. } => ResponseFlag::H2HandshakeFailure,
            Self::Configuration(_) => ResponseFlag::TlsFailure,
        }
    }

    /// Reason code, the same everywhere.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Peer { fault, .. } => fault.code(),
            Self::Tls { .. } => "tls_failed",
            Self::TlsTimeout { .. } => "tls_timeout",
            Self::Http2 { .. } => "http2_failed",
            Self::Http2Timeout { .. } => "http2_timeout",
            Self::Configuration(_) => "tls_configuration",
        }
    }
}
