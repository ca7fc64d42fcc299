//! What is asked of a peer's certificate: a chain to the roots of the mesh, validity, purpose, and an identity.

use std::sync::Arc;

use mesh::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::{HandshakeError, PeerFault, Revocations, Rules, Side, provider};

/// The SPIFFE identities that the first certificate of a chain names, in their order.
pub fn identities(chain: Option<&[CertificateDer<'_>]>) -> Vec<Identity> {
    let leaf = chain.and_then(<[_]>::first);
    leaf.map(identities_of).unwrap_or_default()
}

fn identities_of(leaf: &CertificateDer<'_>) -> Vec<Identity> {
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return Vec::new() };
    let names = certificate.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let uris = names.flatten().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    uris.filter_map(|uri| uri.parse().ok()).collect()
}

fn refuse(fault: PeerFault) -> Error {
    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(fault))))
}

/// The client's check of a server.
#[derive(Debug)]
pub(super) struct ServerIdentity {
    roots: Arc<RootCertStore>,
    expected: Vec<Identity>,
    algorithms: WebPkiSupportedAlgorithms,
    revocations: Revocations,
}

impl ServerIdentity {
    pub(super) fn new(roots: Arc<RootCertStore>, expected: Vec<Identity>, rules: &Rules) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self { roots, expected, algorithms, revocations: rules.revocations.clone() }
    }
}

impl ServerCertVerifier for ServerIdentity {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        if self.revocations.has(leaf, intermediates, &self.roots, now, Side::Server) {
            return Err(CertificateError::Revoked.into());
        }
        let got = identities_of(leaf);
        if got.is_empty() {
            return Err(refuse(PeerFault::NoIdentity));
        }
        if !got.iter().any(|identity| self.expected.contains(identity)) {
            return Err(refuse(PeerFault::WrongIdentity { got, expected: self.expected.clone() }));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The server's check of a client.
#[derive(Debug)]
pub(crate) struct ClientIdentity {
    chain: Arc<dyn ClientCertVerifier>,
    roots: Arc<RootCertStore>,
    trust_domain: String,
    revocations: Revocations,
}

impl ClientIdentity {
    pub(crate) fn new(
        roots: Arc<RootCertStore>,
        trust_domain: &str,
        rules: &Rules,
    ) -> Result<Self, HandshakeError> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider()).build();
        let chain = chain.map_err(HandshakeError::configuration)?;
        let revocations = rules.revocations.clone();
        Ok(Self { chain, roots, trust_domain: trust_domain.to_owned(), revocations })
    }
}

impl ClientCertVerifier for ClientIdentity {
    // Naming our roots would only make the handshake longer: a peer has one certificate.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(leaf, intermediates, now)?;
        if self.revocations.has(leaf, intermediates, &self.roots, now, Side::Client) {
            return Err(CertificateError::Revoked.into());
        }
        let got = identities_of(leaf);
        if got.is_empty() {
            return Err(refuse(PeerFault::NoIdentity));
        }
        if !got.iter().any(|identity| identity.trust_domain() == self.trust_domain) {
            return Err(refuse(PeerFault::WrongTrustDomain { got, expected: self.trust_domain.clone() }));
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
