//! The root: made, read back, and used to sign.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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
    roots: Vec<CertificateDer<'static>>,
    /// Certificates between the leaf and the roots, from the signing one up, PEM.
    intermediates: Vec<String>,
    intermediates_der: Vec<CertificateDer<'static>>,
    crl: String,
    not_before: SystemTime,
    not_after: SystemTime,
    lifetime: Lifetime,
    /// The longest life signed so far, in seconds.
    longest: AtomicU64,
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
        Self::read_with(certificate, key, root_bundle, "", None)
    }

    /// An authority from its PEM files, with the chain from the signing certificate up and a revocation list. The chain
    /// must lead to one of the roots.
    pub fn read_with(
        certificate: &str,
        key: &str,
        root_bundle: &str,
        chain: &str,
        crl: Option<&str>,
    ) -> Result<Self, AuthorityError> {
        let bad = |what: &str, error: String| AuthorityError::Root(format!("{what}: {error}"));
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|error| bad("ca-cert.pem", error.to_string()))?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der)
            .map_err(|error| bad("ca-cert.pem", error.to_string()))?;
        let moment = |seconds: i64| {
            u64::try_from(seconds)
                .map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
                .map_err(|_| bad("ca-cert.pem", "it expired before 1970".into()))
        };
        let not_after = moment(parsed.validity().not_after.timestamp())?;
        let not_before = moment(parsed.validity().not_before.timestamp()).unwrap_or(SystemTime::UNIX_EPOCH);
        if !parsed.is_ca() {
            return Err(bad("ca-cert.pem", "it is not the certificate of an authority".into()));
        }
        // Never with the error's text: it must not carry key material.
        let key =
            KeyPair::from_pem(key).map_err(|_| bad("ca-key.pem", "no private key in PEM form".into()))?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            return Err(bad("ca-key.pem", "it is not the key of ca-cert.pem".into()));
        }
        let roots = certificates("root-cert.pem", root_bundle)?;
        if roots.is_empty() {
            return Err(bad("root-cert.pem", "no certificate in it".into()));
        }
        let mut path = vec![der.clone()];
        path.extend(certificates("cert-chain.pem", chain)?.into_iter().filter(|one| *one != der));
        path.retain(|one| !roots.contains(one));
        leads_to(&path, &roots)?;
        if let Some(crl) = crl {
            x509_parser::pem::parse_x509_pem(crl.as_bytes())
                .ok()
                .filter(|(_, pem)| pem.label == "X509 CRL")
                .ok_or_else(|| bad("ca-crl.pem", "it is no certificate revocation list".into()))?;
        }
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(&der, key)?,
            certificate: certificate.into(),
            root_bundle: root_bundle.into(),
            intermediates: path.iter().map(|one| pem(one)).collect(),
            intermediates_der: path,
            roots,
            crl: crl.unwrap_or_default().into(),
            not_before,
            not_after,
            lifetime: Lifetime::default(),
            longest: AtomicU64::new(0),
        })
    }

    /// Roots that clients trust.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Certificates between a leaf and the roots.
    pub fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.intermediates_der
    }

    /// The revocation list, PEM; empty when there is none.
    pub fn crl(&self) -> &str {
        &self.crl
    }

    /// The longest life that was signed since this authority was read.
    pub fn longest(&self) -> Duration {
        Duration::from_secs(self.longest.load(Relaxed))
    }

    /// Whether less than a fifth of its life is left.
    pub fn aged(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or_default();
        self.not_after.duration_since(now).unwrap_or_default() < life / 5
    }

    /// Whether another one signs and is trusted in the same way.
    pub fn same(&self, other: &Self) -> bool {
        (&self.certificate, &self.root_bundle, &self.intermediates, &self.crl)
            == (&other.certificate, &other.root_bundle, &other.intermediates, &other.crl)
    }

    /// SHA-256 of the signing certificate, hex.
    pub fn digest(&self) -> String {
        CertificateDer::from_pem_slice(self.certificate.as_bytes())
            .map_or_else(|_| String::new(), |der| digest(&der))
    }

    /// SHA-256 of each root, hex.
    pub fn root_digests(&self) -> Vec<String> {
        self.roots.iter().map(|root| digest(root)).collect()
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

    /// When the first of the roots ends that everybody trusts.
    pub fn roots_end(&self) -> SystemTime {
        let end = |root: &CertificateDer<'_>| {
            let (_, root) = x509_parser::parse_x509_certificate(root).ok()?;
            let seconds = u64::try_from(root.validity().not_after.timestamp()).unwrap_or(0);
            SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
        };
        self.roots.iter().filter_map(end).min().unwrap_or(self.not_after)
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
        let leaf = params.signed_by(&key, &self.issuer)?.pem();
        self.longest.fetch_max(life.as_secs(), Relaxed);
        let chain = std::iter::once(leaf).chain(self.intermediates.iter().cloned());
        Ok(chain.chain([self.root_bundle.clone()]).collect())
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

fn certificates(file: &str, text: &str) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
    CertificateDer::pem_slice_iter(text.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| AuthorityError::Root(format!("{file}: {error}")))
}

/// Whether each certificate of a path is signed by the next, and the last by a root. An empty path is a root itself.
fn leads_to(path: &[CertificateDer<'_>], roots: &[CertificateDer<'_>]) -> Result<(), AuthorityError> {
    let wrong = |reason: &str| AuthorityError::Root(format!("cert-chain.pem: {reason}"));
    let signed = |one: &CertificateDer<'_>, by: &CertificateDer<'_>| {
        let (Ok((_, one)), Ok((_, by))) =
            (x509_parser::parse_x509_certificate(one), x509_parser::parse_x509_certificate(by))
        else {
            return false;
        };
        by.is_ca() && one.issuer() == by.subject() && one.verify_signature(Some(by.public_key())).is_ok()
    };
    if !path.windows(2).all(|pair| matches!(pair, [one, by] if signed(one, by))) {
        return Err(wrong("a certificate in it is not signed by the next one"));
    }
    match path.last() {
        Some(last) if !roots.iter().any(|root| signed(last, root)) => {
            Err(wrong("it does not lead to a certificate of root-cert.pem"))
        }
        _ => Ok(()),
    }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect::<Vec<_>>();
    format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
}

fn digest(certificate: &CertificateDer<'_>) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
