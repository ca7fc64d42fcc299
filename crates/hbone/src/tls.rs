//! TLS of the mesh: TLS 1.3 between two SPIFFE identities.
//!
//! Owns the cryptographic choices, the credentials of this side ([`Credential`]) and what is asked of the other's
//! certificate ([`PeerFault`] names what was wrong with it). Private keys never leave this module and are never
//! printed.

mod credential;
mod fault;
mod verify;

use std::sync::{Arc, LazyLock};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, ServerConfig};

use mesh::Identity;

pub use credential::{Credential, CredentialError, Validity, pem_certificates};
pub use fault::{HandshakeError, PeerFault};
pub use verify::identities;

/// AES-128-GCM first (the same security margin here for less work), hybrid post-quantum key exchange first.
static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let suites = &aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256;
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            *suites,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![
            aws_lc_rs::kx_group::X25519MLKEM768,
            aws_lc_rs::kx_group::X25519,
            aws_lc_rs::kx_group::SECP256R1,
            aws_lc_rs::kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

/// The cryptography that tunnels use.
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

/// For a client with `credential` that accepts a server which proves to be one of `expected`.
pub fn client_config(
    credential: &Credential,
    expected: &[Identity],
) -> Result<Arc<ClientConfig>, HandshakeError> {
    let verifier = verify::ServerIdentity::new(credential.roots(), expected.to_vec());
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(HandshakeError::configuration)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(credential.resolver());
    config.alpn_protocols = vec![crate::ALPN.to_vec()];
    config.enable_sni = false;
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// For a server with `credential` that accepts clients of its own trust domain.
pub fn server_config(credential: &Credential) -> Result<Arc<ServerConfig>, HandshakeError> {
    credential.server_config(|| {
        let own = credential.identity().trust_domain();
        let verifier = verify::ClientIdentity::new(credential.roots(), own)?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(HandshakeError::configuration)?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(credential.resolver());
        config.alpn_protocols = vec![crate::ALPN.to_vec()];
        // Every tunnel proves its identities anew.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(config))
    })
}

#[cfg(test)]
mod tests;
