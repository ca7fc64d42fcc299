//! Certificates for tests.

use hbone::Credential;
use mesh::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    SerialNumber, date_time_ymd,
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
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: Issuer::new(params, key), root }
    }

    /// A list, signed by the authority, that revokes certificates of these serial numbers.
    pub fn revoke(&self, serials: &[u64]) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2034, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.issuer).unwrap().pem().unwrap()
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
