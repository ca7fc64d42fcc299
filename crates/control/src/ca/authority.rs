//! The root: made, read back, and used to sign.

use std::fmt;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::prelude::FromDer;

use mesh::Identity;

/// Life of a self-signed root.
const ROOT_LIFE: Duration = Duration::from_secs(3650 * 24 * 3600);
/// Clocks of nodes may be behind by this much.
const BACKDATED: Duration = Duration::from_secs(120);

/// How long workload certificates live.
#[derive(Clone, Copy, Debug)]
pub struct Lifetime {
    /// When the caller asks for none.
    pub default: Duration,
    /// The longest one that can be asked for.
    pub max: Duration,
}

impl Default for Lifetime {
    fn default() -> Self {
        Self { default: Duration::from_secs(24 * 3600), max: Duration::from_secs(90 * 24 * 3600) }
    }
}

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The request is no certificate signing request, or its signature is wrong.
    #[error("{0}")]
    Request(String),
    /// The life asked for is too long.
    #[error("requested TTL {asked} seconds is greater than the max allowed TTL {max} seconds")]
    TooLong {
        /// What was asked for.
        asked: u64,
        /// What is allowed.
        max: u64,
    },
    /// The root itself has expired.
    #[error("the signing certificate has expired")]
    Expired,
    /// The root cannot be used.
    #[error("{0}")]
    Root(String),
    /// Signing failed.
    #[error("{0}")]
    Sign(#[from] rcgen::Error),
}

/// The certificate authority of the mesh.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
    root_bundle: String,
    not_after: SystemTime,
    lifetime: Lifetime,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

impl Authority {
    /// A new self-signed ECDSA P-256 root.
    pub fn self_signed(trust_domain: &str, now: SystemTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.serial_number = Some(serial());
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + ROOT_LIFE).into();
        let certificate = params.self_signed(&key)?.pem();
        Self::read(&certificate, &key.serialize_pem(), &certificate)
    }

    /// A root from its PEM files: signing certificate, its key, and the bundle of roots that clients trust.
    pub fn read(certificate: &str, key: &str, root_bundle: &str) -> Result<Self, AuthorityError> {
        let bad = |what: &str, error: String| AuthorityError::Root(format!("{what}: {error}"));
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| bad("ca-cert.pem", error.to_string()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)
            .map_err(|error| bad("ca-cert.pem", error.to_string()))?;
        let not_after = u64::try_from(parsed.validity().not_after.timestamp())
            .map_err(|_| bad("ca-cert.pem", "it expired before 1970".into()))?;
        if !parsed.is_ca() {
            return Err(bad("ca-cert.pem", "it is not the certificate of an authority".into()));
        }
        // Never with the error's text: it must not carry key material.
        let key =
            KeyPair::from_pem(key).map_err(|_| bad("ca-key.pem", "no private key in PEM form".into()))?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            return Err(bad("ca-key.pem", "it is not the key of ca-cert.pem".into()));
        }
        let roots = CertificateDer::pem_slice_iter(root_bundle.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| bad("root-cert.pem", error.to_string()))?;
        if roots.is_empty() {
            return Err(bad("root-cert.pem", "no certificate in it".into()));
        }
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&der, key)?,
            certificate: certificate.into(),
            root_bundle: root_bundle.into(),
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(not_after),
            lifetime: Lifetime::default(),
        })
    }

    /// The signing certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The signing key, PEM. For the Secret only.
    pub(super) fn key(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// Roots that clients trust, PEM.
    pub fn root_bundle(&self) -> &str {
        &self.root_bundle
    }

    /// When the signing certificate ends.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The life of a certificate for which `asked` seconds were asked.
    pub fn life(&self, asked: i64) -> Result<Duration, AuthorityError> {
        let asked = u64::try_from(asked).unwrap_or(0);
        match Duration::from_secs(asked) {
            Duration::ZERO => Ok(self.lifetime.default),
            life if life > self.lifetime.max => {
                Err(AuthorityError::TooLong { asked, max: self.lifetime.max.as_secs() })
            }
            life => Ok(life),
        }
    }

    /// Signs a workload's certificate: the public key is the request's, everything else is ours. Returns the chain
    /// as it is answered: the leaf, and last the bundle of roots.
    pub fn sign(
        &self,
        request: &str,
        identity: &Identity,
        life: Duration,
        now: SystemTime,
    ) -> Result<Vec<String>, AuthorityError> {
        let key = public_key(request)?;
        let mut params = self.leaf(life, now)?;
        params.subject_alt_names.push(SanType::URI(identity.to_string().try_into()?));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        Ok(vec![params.signed_by(&key, &self.issuer)?.pem(), self.root_bundle.clone()])
    }

    /// Signs a server certificate for these DNS names.
    pub fn serving(
        &self,
        key: &KeyPair,
        names: &[String],
        life: Duration,
        now: SystemTime,
    ) -> Result<CertificateDer<'static>, AuthorityError> {
        let mut params = self.leaf(life, now)?;
        for name in names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }

    /// What all leaves have in common. The subject is empty, which makes the alternative names critical.
    fn leaf(&self, life: Duration, now: SystemTime) -> Result<CertificateParams, AuthorityError> {
        if now >= self.not_after {
            return Err(AuthorityError::Expired);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial());
        params.not_before = (now - BACKDATED).into();
        params.not_after = (now + life).min(self.not_after).into();
        Ok(params)
    }
}

/// The public key of a signing request, after its signature was checked: the caller holds the private key. Subject,
/// names and extensions are what the caller would like to be and are not even looked at.
fn public_key(request: &str) -> Result<SubjectPublicKeyInfo, AuthorityError> {
    let refused = |reason: &str| AuthorityError::Request(reason.into());
    let (_, pem) = x509_parser::pem::parse_x509_pem(request.as_bytes())
        .map_err(|_| refused("the certificate signing request is not in PEM form"))?;
    let (_, parsed) = x509_parser::certification_request::X509CertificationRequest::from_der(&pem.contents)
        .map_err(|_| refused("the certificate signing request is not PKCS#10"))?;
    parsed
        .verify_signature()
        .map_err(|_| refused("the signature of the certificate signing request is wrong"))?;
    SubjectPublicKeyInfo::from_der(parsed.certification_request_info.subject_pki.raw)
        .map_err(|_| refused("keys of this kind are not signed; use ECDSA P-256, P-384, Ed25519 or RSA"))
}

/// 127 random bits: unique, positive.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] &= 0x7f;
    bytes[0] |= 0x01;
    SerialNumber::from_slice(&bytes)
}
