//! TLS of the mesh: TLS 1.3 between two SPIFFE identities.
//!
//! Owns the cryptographic choices, the credentials of this side ([`Credential`]) and what is asked of the other's
//! certificate ([`PeerFault`] names what was wrong with it). Private keys never leave this module and are never
//! printed.

mod credential;
mod fault;
mod rules;
pub(crate) mod verify;

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, ServerConfig};

use mesh::Identity;

pub use credential::{Credential, CredentialError, Validity, pem_certificates};
pub use fault::{HandshakeError, PeerFault};
pub(crate) use rules::{Presented, Side};
pub use rules::{RevocationError, Revocations, Rules};
pub use verify::identities;

/// Hybrid post-quantum key exchange first, and the cipher first that this processor does best.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: cipher_suites(has_aes()),
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// With instructions for AES, AES-128-GCM first (the same security margin here as with 256 bits, for less work); without
/// them, ChaCha20-Poly1305, which is several times as quick there, and leaks nothing through its timing.
fn cipher_suites(aes: bool) -> Vec<rustls::SupportedCipherSuite> {
    let chacha = aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256;
    let mut suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
    ];
    suites.insert(if aes { suites.len() } else { 0 }, chacha);
    suites
}

/// Whether this processor has instructions for AES and for GCM's multiplication.
fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes")
        && std::arch::is_aarch64_feature_detected!("pmull");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// The cryptography that tunnels use.
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// The same, as far as `rules` allow.
fn provider_for(rules: &Rules) -> Arc<CryptoProvider> {
    if !rules.tls12 && !rules.post_quantum_only {
        return provider();
    }
    let mut provider = (*provider()).clone();
    if rules.tls12 {
        provider.cipher_suites.extend([
            aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        ]);
    }
    if rules.post_quantum_only {
        provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768];
    }
    Arc::new(provider)
}

static ALSO_1_2: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

fn versions(rules: &Rules) -> &'static [&'static rustls::SupportedProtocolVersion] {
    if rules.tls12 { &ALSO_1_2 } else { &ALSO_1_2[..1] }
}

/// For a client with `credential` that accepts a server which proves to be one of `expected`.
pub fn client_config(
    credential: &Credential,
    expected: &[Identity],
    rules: &Rules,
) -> Result<Arc<ClientConfig>, HandshakeError> {
    let verifier = verify::ServerIdentity::new(credential.roots(), expected.to_vec(), rules);
    let mut config = ClientConfig::builder_with_provider(provider_for(rules))
        .with_protocol_versions(versions(rules))
        .map_err(HandshakeError::configuration)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(credential.resolver());
    config.alpn_protocols = vec![crate::ALPN.to_vec()];
    config.enable_sni = false;
    // Records are sealed where the data path has put them (see `secured`).
    config.enable_secret_extraction = true;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// For a server with `credential` that accepts clients of its own trust domain.
///
/// It is built once for a credential: `rules` are those of the process, not of a connection.
pub fn server_config(credential: &Credential, rules: &Rules) -> Result<Arc<ServerConfig>, HandshakeError> {
    credential.server_config(|| {
        let own = credential.identity().trust_domain();
        let verifier = verify::ClientIdentity::new(credential.roots(), own, rules)?;
        let mut config = ServerConfig::builder_with_provider(provider_for(rules))
            .with_protocol_versions(versions(rules))
            .map_err(HandshakeError::configuration)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(credential.resolver());
        config.alpn_protocols = vec![crate::ALPN.to_vec()];
        // Every tunnel proves its identities anew.
        config.send_tls13_tickets = 0;
        config.enable_secret_extraction = true;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(config))
    })
}

#[cfg(test)]
mod tests;
