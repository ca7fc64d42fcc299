//! Who may speak to the kubelet server: the TLS side of it and the reading of client certificates.

use std::sync::Arc;

use anyhow::Context as _;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};

/// The name the API server gives itself towards kubelets, on every cluster made the usual way.
const API_SERVER: &str = "kube-apiserver-kubelet-client";
/// The group that may do everything.
const ADMINISTRATORS: &str = "system:masters";

/// A server with a certificate of its own making: API servers do not verify kubelets unless told to.
///
/// A client without a certificate gets through the handshake, to be told why it is refused.
pub(super) fn server(client_ca_pem: &str) -> anyhow::Result<ServerConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(client_ca_pem.as_bytes()) {
        let certificate = certificate.context("the cluster's CA is not PEM")?;
        roots.add(certificate).context("the cluster's CA is no usable certificate")?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .context("the kubelet server needs the cluster's CA to know its callers; the kubeconfig has none")?;

    let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
    let own = rcgen::generate_simple_self_signed(names).context("cannot make a certificate")?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![own.cert.der().clone()], key)?;
    // Upgrades (exec, port-forward) exist in HTTP/1.1 only.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Whether the peer of a finished handshake may call, and if not, why.
pub(super) fn allowed(connection: &ServerConnection) -> Result<(), String> {
    let Some(certificate) = connection.peer_certificates().and_then(|chain| chain.first()) else {
        return Err("the kubelet server answers only to client certificates of the cluster's CA".into());
    };
    // The chain was verified in the handshake; here only the name is read.
    let (_, certificate) = X509Certificate::from_der(certificate)
        .map_err(|error| format!("the client certificate cannot be read: {error}"))?;
    judge(certificate.subject())
}

fn judge(subject: &X509Name<'_>) -> Result<(), String> {
    let is = |value: Result<&str, _>, wanted: &str| value.ok() == Some(wanted);
    let administrator = subject.iter_organization().any(|name| is(name.as_str(), ADMINISTRATORS));
    let api_server = subject.iter_common_name().any(|name| is(name.as_str(), API_SERVER));
    if administrator || api_server {
        return Ok(());
    }
    Err(format!("{subject} may not use the kubelet server: it takes O={ADMINISTRATORS} or CN={API_SERVER}"))
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn judged(common_name: &str, organization: &str) -> bool {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.distinguished_name.push(DnType::OrganizationName, organization);
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        let (_, certificate) = X509Certificate::from_der(certificate.der()).unwrap();
        judge(certificate.subject()).is_ok()
    }

    #[test]
    fn only_the_api_server_and_administrators_may_call() {
        assert!(judged("kube-apiserver-kubelet-client", "kubeadm:whatever"));
        assert!(judged("anybody", "system:masters"));
        assert!(!judged("system:masters", "anybody"));
        assert!(!judged("system:node:node-1", "system:nodes"));
    }

    #[test]
    fn without_a_ca_there_is_no_server() {
        assert!(server("").is_err());
        assert!(server("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n").is_err());
    }
}
