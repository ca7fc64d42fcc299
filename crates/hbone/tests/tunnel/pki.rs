//! Certificates for tests.

use hbone::Credential;
use mesh::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    root: CertificateDer<'static>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    pub fn credential(&self, identity: &Identity) -> Credential {
        self.credential_with(identity, |_| {})
    }

    /// A credential whose certificate is a bit different.
    pub fn credential_with(
        &self,
        identity: &Identity,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Credential {
        let (leaf, key) = self.leaf(identity, change);
        Credential::new(identity.clone(), vec![leaf], key, vec![self.root.clone()]).unwrap()
    }

    /// A credential that trusts another authority's peers, for whoever wants to be refused.
    pub fn credential_trusting(&self, identity: &Identity, other: &Authority) -> Credential {
        let (leaf, key) = self.leaf(identity, |_| {});
        Credential::new(identity.clone(), vec![leaf], key, vec![other.root.clone()]).unwrap()
    }

    pub fn leaf(
        &self,
        identity: &Identity,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        (leaf, PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }
}

pub fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "ns", account).unwrap()
}
