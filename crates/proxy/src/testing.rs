//! What several unit tests need.

use std::sync::Arc;

use hbone::Credential;
use mesh::Identity;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls_pki_types::PrivateKeyDer;

pub(crate) fn identity() -> Identity {
    "spiffe://cluster.local/ns/ns/sa/a".parse().unwrap()
}

/// A credential of [`identity`], by an authority of its own.
pub(crate) fn credential() -> Arc<Credential> {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(identity().to_string().try_into().unwrap())];
    let leaf = params.signed_by(&key, &issuer).unwrap().der().clone();
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    Arc::new(Credential::new(identity(), vec![leaf], key, vec![root]).unwrap())
}
