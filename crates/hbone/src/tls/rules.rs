//! What a process demands of all its tunnels: versions, key exchange, and which certificates have been revoked.

use std::fmt;
use std::sync::Arc;

use parking_lot::RwLock;
use rustls::RootCertStore;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, UnixTime};
use tokio::sync::watch;
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, OwnedCertRevocationList,
    RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy,
};

use super::provider;

/// What is demanded of all tunnels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// TLS 1.2 is spoken, too, with peers that have no 1.3.
    pub tls12: bool,
    /// Only hybrid post-quantum key exchange will do.
    pub post_quantum_only: bool,
    /// Certificates that are no longer trusted.
    pub revocations: Revocations,
}

/// Which end of a tunnel a certificate was presented for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Server,
}

/// Certificate revocation lists, replaced as a whole while tunnels are up. Clones share them.
#[derive(Clone)]
pub struct Revocations(Arc<Shared>);

struct Shared {
    lists: RwLock<Arc<Vec<CertRevocationList<'static>>>>,
    changes: watch::Sender<u64>,
}

/// Why revocation lists cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revocation list {number} cannot be read: {reason}")]
pub struct RevocationError {
    /// Position in the file, from 1.
    pub number: usize,
    /// What is wrong with it.
    pub reason: String,
}

impl Default for Revocations {
    fn default() -> Self {
        Self(Arc::new(Shared { lists: RwLock::default(), changes: watch::Sender::new(0) }))
    }
}

impl Revocations {
    /// Replaces all lists by those in `text`: PEM blocks, or one list in DER. How many there are. When one of them cannot
    /// be read the old ones stay.
    pub fn replace(&self, text: &[u8]) -> Result<usize, RevocationError> {
        let wrong =
            |number: usize, reason: &dyn fmt::Display| RevocationError { number, reason: reason.to_string() };
        let ders: Vec<CertificateRevocationListDer<'_>> = match text.trim_ascii().first() {
            None => Vec::new(),
            Some(b'-') => {
                let lists = CertificateRevocationListDer::pem_slice_iter(text).enumerate();
                let lists = lists.map(|(at, list)| list.map_err(|error| wrong(at + 1, &error)));
                lists.collect::<Result<_, _>>()?
            }
            Some(_) => vec![CertificateRevocationListDer::from(text)],
        };
        let mut lists = Vec::with_capacity(ders.len());
        for (at, der) in ders.iter().enumerate() {
            let list = OwnedCertRevocationList::from_der(der).map_err(|error| wrong(at + 1, &error))?;
            lists.push(CertRevocationList::from(list));
        }
        let count = lists.len();
        *self.0.lists.write() = Arc::new(lists);
        self.0.changes.send_modify(|count| *count += 1);
        Ok(count)
    }

    /// Changes whenever the lists are replaced.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// Whether a certificate of `chain` (leaf first), which chains to `roots`, has been revoked. A list that nobody of
    /// the chain has signed, or that is out of date, says nothing.
    pub(crate) fn has(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        roots: &RootCertStore,
        now: UnixTime,
        side: Side,
    ) -> bool {
        let lists = self.0.lists.read().clone();
        let lists: Vec<&CertRevocationList<'_>> = lists.iter().collect();
        let Ok(options) = RevocationOptionsBuilder::new(&lists) else { return false };
        let options = options
            .with_depth(RevocationCheckDepth::Chain)
            .with_status_policy(UnknownStatusPolicy::Allow)
            .with_expiration_policy(ExpirationPolicy::Ignore)
            .build();
        let Ok(leaf) = EndEntityCert::try_from(leaf) else { return false };
        let usage = match side {
            Side::Client => KeyUsage::client_auth(),
            Side::Server => KeyUsage::server_auth(),
        };
        let algorithms = provider().signature_verification_algorithms;
        let verified = leaf.verify_for_usage(
            algorithms.all,
            &roots.roots,
            intermediates,
            now,
            usage,
            Some(options),
            None,
        );
        matches!(verified, Err(webpki::Error::CertRevoked))
    }
}

impl PartialEq for Revocations {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Revocations {}

impl fmt::Debug for Revocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Revocations({})", self.0.lists.read().len())
    }
}

/// The certificates that a peer presented, to be asked about again when something has been revoked.
#[derive(Clone, Debug)]
pub(crate) struct Presented {
    chain: Arc<[CertificateDer<'static>]>,
    roots: Arc<RootCertStore>,
    revocations: Revocations,
    side: Side,
}

impl Presented {
    pub(crate) fn new(
        chain: Option<&[CertificateDer<'static>]>,
        roots: Arc<RootCertStore>,
        rules: &Rules,
        side: Side,
    ) -> Self {
        Self { chain: chain.unwrap_or_default().into(), roots, revocations: rules.revocations.clone(), side }
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.chain.split_first().is_some_and(|(leaf, intermediates)| {
            self.revocations.has(leaf, intermediates, &self.roots, UnixTime::now(), self.side)
        })
    }
}
