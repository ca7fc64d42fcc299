use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::NamedGroup;
use rustls_pki_types::{PrivateKeyDer, ServerName};

use super::*;

#[derive(Debug)]
struct Settled {
    version: Option<rustls::ProtocolVersion>,
    suite: Option<rustls::CipherSuite>,
    group: Option<NamedGroup>,
    alpn: Option<Vec<u8>>,
}

fn credential() -> Credential {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().der().clone();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    let identity: Identity = "spiffe://cluster.local/ns/ns/sa/a".parse().unwrap();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
    let leaf = params.signed_by(&key, &issuer).unwrap().der().clone();
    Credential::new(identity, vec![leaf], PrivateKeyDer::try_from(key.serialize_der()).unwrap(), vec![root])
        .unwrap()
}

/// What a handshake settles on, and the server name that the client sent.
async fn settle(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> (Settled, Option<String>) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = ServerName::IpAddress(std::net::IpAddr::from([10, 0, 0, 1]).into());
    let accept = async {
        let start = tokio_rustls::LazyConfigAcceptor::new(Default::default(), far).await.unwrap();
        let name = start.client_hello().server_name().map(str::to_owned);
        (start.into_stream(server).await.unwrap(), name)
    };
    let (client, (_server, name)) =
        tokio::join!(tokio_rustls::TlsConnector::from(client).connect(name, near), accept);
    let client = client.unwrap();
    let state = client.get_ref().1;
    let summary = Settled {
        version: state.protocol_version(),
        suite: state.negotiated_cipher_suite().map(|suite| suite.suite()),
        group: state.negotiated_key_exchange_group().map(|group| group.name()),
        alpn: state.alpn_protocol().map(<[u8]>::to_vec),
    };
    (summary, name)
}

#[tokio::test]
async fn a_tunnel_is_tls_1_3_with_hybrid_key_exchange_and_names_no_server() {
    let credential = credential();
    let expected = [credential.identity().clone()];
    let client = client_config(&credential, &expected, &Rules::default()).unwrap();
    let (settled, name) = settle(client, server_config(&credential, &Rules::default()).unwrap()).await;
    assert_eq!(settled.version, Some(rustls::ProtocolVersion::TLSv1_3));
    assert_eq!(settled.suite, Some(rustls::CipherSuite::TLS13_AES_128_GCM_SHA256));
    assert_eq!(settled.group, Some(NamedGroup::X25519MLKEM768));
    assert_eq!(settled.alpn.as_deref(), Some(crate::ALPN));
    assert_eq!(name, None);
}

#[tokio::test]
async fn a_peer_without_post_quantum_key_exchange_is_served() {
    let credential = credential();
    let classical = CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..(*provider()).clone() };
    let verifier = verify::ServerIdentity::new(
        credential.roots(),
        vec![credential.identity().clone()],
        &Rules::default(),
    );
    let client = ClientConfig::builder_with_provider(Arc::new(classical))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(credential.resolver());
    let (settled, _) = settle(Arc::new(client), server_config(&credential, &Rules::default()).unwrap()).await;
    assert_eq!(settled.group, Some(NamedGroup::X25519));
}

#[tokio::test]
async fn tls_1_2_is_spoken_only_where_it_is_configured() {
    let credential = credential();
    let expected = [credential.identity().clone()];
    let old = Rules { tls12: true, ..Rules::default() };
    let both = client_config(&credential, &expected, &old).unwrap();
    let (settled, _) = settle(both, server_config(&credential, &old).unwrap()).await;
    assert_eq!(settled.version, Some(rustls::ProtocolVersion::TLSv1_3), "preferred all the same");
    let verifier = verify::ServerIdentity::new(credential.roots(), expected.to_vec(), &old);
    let mut client = ClientConfig::builder_with_provider(provider_for(&old))
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(credential.resolver());
    client.alpn_protocols = vec![crate::ALPN.to_vec()];
    let (settled, _) = settle(Arc::new(client.clone()), server_config(&credential, &old).unwrap()).await;
    assert_eq!(settled.version, Some(rustls::ProtocolVersion::TLSv1_2));
    let strict = self::credential();
    let (near, far) = tokio::io::duplex(1 << 16);
    let server = tokio_rustls::TlsAcceptor::from(server_config(&strict, &Rules::default()).unwrap());
    let name = ServerName::IpAddress(std::net::IpAddr::from([10, 0, 0, 1]).into());
    let connecting = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, near);
    let (client, server) = tokio::join!(connecting, server.accept(far));
    assert!(client.is_err() && server.is_err(), "1.3 only, unless told otherwise");
}

#[tokio::test]
async fn with_the_post_quantum_policy_classical_key_exchange_is_refused() {
    let credential = credential();
    let strict = Rules { post_quantum_only: true, ..Rules::default() };
    let classical = CryptoProvider { kx_groups: vec![aws_lc_rs::kx_group::X25519], ..(*provider()).clone() };
    let verifier = verify::ServerIdentity::new(
        credential.roots(),
        vec![credential.identity().clone()],
        &Rules::default(),
    );
    let client = ClientConfig::builder_with_provider(Arc::new(classical))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(credential.resolver());
    let (near, far) = tokio::io::duplex(1 << 16);
    let server = tokio_rustls::TlsAcceptor::from(server_config(&credential, &strict).unwrap());
    let name = ServerName::IpAddress(std::net::IpAddr::from([10, 0, 0, 1]).into());
    let connecting = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, near);
    let (client, server) = tokio::join!(connecting, server.accept(far));
    assert!(client.is_err() && server.is_err());
}

#[test]
fn what_is_no_revocation_list_replaces_nothing() {
    let revocations = Revocations::default();
    assert_eq!(revocations.replace(b" \n").unwrap(), 0);
    assert!(revocations.replace(b"junk").is_err());
    let pem = b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    assert_eq!(revocations.replace(pem).unwrap_err().number, 1);
}

#[test]
fn a_credential_never_shows_its_key() {
    let text = format!("{:?}", credential());
    assert!(text.contains("spiffe://cluster.local/ns/ns/sa/a"), "{text}");
    assert!(!text.to_lowercase().contains("key"), "{text}");
}

#[test]
fn half_life_is_half_way_between_the_ends() {
    let start = std::time::SystemTime::UNIX_EPOCH;
    let validity = Validity { not_before: start, not_after: start + std::time::Duration::from_secs(100) };
    assert_eq!(validity.half_life(), start + std::time::Duration::from_secs(50));
    assert!(validity.holds_at(start));
    assert!(!validity.holds_at(validity.not_after));
}

#[test]
fn the_cipher_that_the_processor_does_best_is_offered_first_and_the_others_are_offered_too() {
    let suites = |aes| cipher_suites(aes).iter().map(|suite| suite.suite()).collect::<Vec<_>>();
    let (with, without) = (suites(true), suites(false));
    assert_eq!(with[0], rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    assert_eq!(without[0], rustls::CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
    for suite in &with {
        assert!(without.contains(suite), "{suite:?} is offered in any case");
    }
    assert_eq!((with.len(), without.len()), (3, 3));
}
