//! What this side presents: a certificate for an identity, its key, and the roots it trusts.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use mesh::Identity;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::verify::identities;
use super::{HandshakeError, provider};

/// A certificate for one identity, its key, and the roots that peers are checked against.
pub struct Credential {
    identity: Identity,
    validity: Validity,
    chain: Vec<CertificateDer<'static>>,
    root_certificates: Vec<CertificateDer<'static>>,
    roots: Arc<RootCertStore>,
    key: Arc<SingleCertAndKey>,
    server: OnceLock<Arc<ServerConfig>>,
}

/// When a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Validity {
    pub not_before: SystemTime,
    pub not_after: SystemTime,
}

/// Why certificates and a key make no credential.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CredentialError {
    /// The certificate names somebody else.
    #[error("the certificate is for {got:?}, not for {expected}")]
    OtherIdentity {
        /// Whom it names.
        got: Vec<Identity>,
        /// Whom it must name first.
        expected: Identity,
    },
    /// There is no certificate, or it cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    /// Without a root nobody could be trusted.
    #[error("no root certificate came with it")]
    NoRoots,
    /// The key does not fit.
    #[error("the private key does not fit: {0}")]
    Key(String),
}

impl Credential {
    /// Puts a credential together: `chain` is the leaf and its intermediates, `roots` what peers are checked
    /// against. The leaf's first identity must be `identity`.
    pub fn new(
        identity: Identity,
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        root_certificates: Vec<CertificateDer<'static>>,
    ) -> Result<Self, CredentialError> {
        let leaf = chain.first().ok_or_else(|| CredentialError::Certificate("there is none".into()))?;
        let validity = validity_of(leaf)?;
        let got = identities(Some(&chain));
        if got.first() != Some(&identity) {
            return Err(CredentialError::OtherIdentity { got, expected: identity });
        }
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(root_certificates.iter().cloned());
        if added == 0 {
            return Err(CredentialError::NoRoots);
        }
        let key = provider().key_provider.load_private_key(key);
        let key = key.map_err(|error| CredentialError::Key(error.to_string()))?;
        let certified = CertifiedKey::new(chain.clone(), key);
        certified.keys_match().map_err(|error| CredentialError::Key(error.to_string()))?;
        Ok(Self {
            identity,
            validity,
            chain,
            root_certificates,
            roots: Arc::new(roots),
            key: Arc::new(SingleCertAndKey::from(certified)),
            server: OnceLock::new(),
        })
    }

    /// Who this is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// When it is valid.
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Leaf first, then intermediates.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// What peers are checked against.
    pub fn root_certificates(&self) -> &[CertificateDer<'static>] {
        &self.root_certificates
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        self.roots.clone()
    }

    pub(crate) fn resolver(&self) -> Arc<SingleCertAndKey> {
        self.key.clone()
    }

    /// The server's configuration is the same for all clients, so it is built once.
    pub(crate) fn server_config(
        &self,
        build: impl FnOnce() -> Result<Arc<ServerConfig>, HandshakeError>,
    ) -> Result<Arc<ServerConfig>, HandshakeError> {
        match self.server.get() {
            Some(config) => Ok(config.clone()),
            None => build().map(|config| self.server.get_or_init(|| config).clone()),
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credential")
            .field("identity", &self.identity)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

impl Validity {
    /// Whether it has begun and not ended.
    pub fn holds_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now < self.not_after
    }

    /// When half of its life is over.
    pub fn half_life(&self) -> SystemTime {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_before + life / 2
    }
}

fn validity_of(leaf: &CertificateDer<'_>) -> Result<Validity, CredentialError> {
    let (_, parsed) =
        X509Certificate::from_der(leaf).map_err(|error| CredentialError::Certificate(error.to_string()))?;
    let time = |seconds: i64| {
        let since = Duration::from_secs(u64::try_from(seconds).unwrap_or_default());
        SystemTime::UNIX_EPOCH.checked_add(since)
    };
    let validity = parsed.validity();
    match (time(validity.not_before.timestamp()), time(validity.not_after.timestamp())) {
        (Some(not_before), Some(not_after)) => Ok(Validity { not_before, not_after }),
        _ => Err(CredentialError::Certificate("its validity lies outside of time".into())),
    }
}

/// All certificates of a PEM text.
pub fn pem_certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, CredentialError> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    certificates.map_err(|error| CredentialError::Certificate(error.to_string()))
}
