//! A connection with its handshake done: against itself, and against rustls' own buffered connections.

use std::io::{Read, Write};
use std::net::SocketAddr;

use mesh::Identity;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::tls::{Rules, client_config, server_config};
use crate::{Credential, Settings};

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "ns", account).unwrap()
}

struct Pki {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    root: CertificateDer<'static>,
}

impl Pki {
    fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { issuer: rcgen::Issuer::new(params, key), root }
    }

    fn credential(&self, account: &str) -> Credential {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        let name = identity(account).to_string();
        params.subject_alt_names = vec![rcgen::SanType::URI(name.try_into().unwrap())];
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        Credential::new(identity(account), vec![leaf], key, vec![self.root.clone()]).unwrap()
    }
}

fn peer() -> SocketAddr {
    "10.0.0.1:15008".parse().unwrap()
}

fn settings(tls12: bool) -> Settings {
    Settings { rules: Rules { tls12, ..Rules::default() }, ..Settings::default() }
}

async fn pair(settings: &Settings) -> (Secured, Secured) {
    let pki = Pki::new();
    let (client, server) = (pki.credential("client"), pki.credential("server"));
    let (mut a, mut b) = duplex(64 << 10);
    let expected = [identity("server")];
    let (a, b) = tokio::join!(
        super::client(&mut a, peer(), &client, &expected, settings),
        super::server(&mut b, peer(), &server, settings),
    );
    (a.unwrap(), b.unwrap())
}

fn sealed(sealer: &mut Sealer, payload: &[u8], content: Content) -> Vec<u8> {
    let mut record = vec![0; sealer.head()];
    record.extend_from_slice(payload);
    record.resize(record.len() + sealer.tail(), 0);
    sealer.seal(&mut record, content).unwrap();
    record
}

fn opened(opener: &mut Opener, record: &mut [u8]) -> (Content, Vec<u8>) {
    assert_eq!(opener.length(record), Ok(Some(record.len())));
    let (content, range) = opener.open(record).unwrap();
    (content, record[range].to_vec())
}

#[tokio::test]
async fn both_ends_know_each_other_and_records_pass_both_ways() {
    let (mut client, mut server) = pair(&settings(false)).await;
    assert_eq!((&client.identity, &server.identity), (&identity("server"), &identity("client")));
    for size in [0, 1, 100, MAX_PAYLOAD] {
        let payload: Vec<u8> = (0..size).map(|n| n as u8).collect();
        let mut up = sealed(&mut client.sealer, &payload, Content::Data);
        assert_eq!(opened(&mut server.opener, &mut up), (Content::Data, payload.clone()));
        let mut down = sealed(&mut server.sealer, &payload, Content::Alert);
        assert_eq!(opened(&mut client.opener, &mut down), (Content::Alert, payload));
    }
}

#[tokio::test]
async fn a_record_that_was_altered_cut_or_swapped_is_refused() {
    let (mut client, mut server) = pair(&settings(false)).await;
    let first = sealed(&mut client.sealer, b"first", Content::Data);
    let second = sealed(&mut client.sealer, b"second", Content::Data);
    assert_eq!(server.opener.open(&mut second.clone()), Err(RecordError::Decrypt), "out of order");
    for at in 0..first.len() {
        let mut altered = first.clone();
        altered[at] ^= 1;
        assert!(server.opener.open(&mut altered).is_err(), "byte {at}");
        assert!(server.opener.open(&mut first[..at].to_vec()).is_err(), "cut at {at}");
    }
    assert_eq!(opened(&mut server.opener, &mut first.clone()).1, b"first");
}

#[tokio::test]
async fn lengths_that_no_record_has_are_refused_before_they_are_waited_for() {
    let (_, server) = pair(&settings(false)).await;
    assert_eq!(server.opener.length(&[23, 3, 3, 0xff]), Ok(None));
    assert_eq!(server.opener.length(&[23, 3, 3, 0xff, 0xff]), Err(RecordError::Length(0xffff)));
    assert_eq!(server.opener.length(&[23, 3, 3, 0, 3]), Err(RecordError::Length(3)));
    assert_eq!(server.opener.length(&[20, 3, 3, 0, 1]), Err(RecordError::Type(20)));
}

/// Bytes between a secured end and a rustls connection that does its own buffering.
fn exchange(ours: &mut Secured, theirs: &mut rustls::Connection, payloads: &[&[u8]]) -> Vec<u8> {
    for payload in payloads {
        let record = sealed(&mut ours.sealer, payload, Content::Data);
        let mut rest = &record[..];
        while !rest.is_empty() {
            theirs.read_tls(&mut rest).unwrap();
            theirs.process_new_packets().unwrap();
        }
        let mut got = vec![0; payload.len()];
        theirs.reader().read_exact(&mut got).unwrap();
        assert_eq!(&got, payload);
        theirs.writer().write_all(payload).unwrap();
    }
    let mut bytes = Vec::new();
    while theirs.wants_write() {
        theirs.write_tls(&mut bytes).unwrap();
    }
    let mut received = Vec::new();
    let mut rest = &mut bytes[..];
    while let Some(length) = ours.opener.length(rest).unwrap() {
        let (record, after) = std::mem::take(&mut rest).split_at_mut(length);
        match opened(&mut ours.opener, record) {
            (Content::Data, payload) => received.extend_from_slice(&payload),
            (Content::Handshake, message) => {
                ours.keys.handshake_message(&message, &mut ours.opener).unwrap();
            }
            (Content::Alert, _) => {}
        }
        rest = after;
    }
    received
}

/// Makes the handshake of a buffered rustls connection at the other end of `io`.
async fn buffered(mut connection: rustls::Connection, mut io: DuplexStream) -> rustls::Connection {
    loop {
        while connection.wants_write() {
            let mut bytes = Vec::new();
            connection.write_tls(&mut bytes).unwrap();
            io.write_all(&bytes).await.unwrap();
        }
        if !connection.is_handshaking() {
            return connection;
        }
        let mut bytes = vec![0; 4096];
        let read = io.read(&mut bytes).await.unwrap();
        assert!(read > 0, "the handshake failed");
        connection.read_tls(&mut &bytes[..read]).unwrap();
        connection.process_new_packets().unwrap();
    }
}

#[tokio::test]
async fn a_buffered_server_understands_our_records_and_new_keys() {
    for tls12 in [false, true] {
        let pki = Pki::new();
        let (client, server) = (pki.credential("client"), pki.credential("server"));
        let settings = settings(tls12);
        let mut config = (*server_config(&server, &settings.rules).unwrap()).clone();
        if tls12 {
            config = rustls::ServerConfig::builder_with_provider(config.crypto_provider().clone())
                .with_protocol_versions(&[&rustls::version::TLS12])
                .unwrap()
                .with_client_cert_verifier(config_verifier(&server, &settings.rules))
                .with_cert_resolver(server.resolver());
            config.alpn_protocols = vec![crate::ALPN.to_vec()];
        }
        let theirs = rustls::ServerConnection::new(config.into()).unwrap();
        let (mut a, b) = duplex(64 << 10);
        let expected = [identity("server")];
        let (ours, theirs) = tokio::join!(
            super::client(&mut a, peer(), &client, &expected, &settings),
            buffered(theirs.into(), b),
        );
        let (mut ours, mut theirs) = (ours.unwrap(), theirs);
        let large = vec![7; MAX_PAYLOAD];
        assert_eq!(exchange(&mut ours, &mut theirs, &[b"one", b"two"]), b"onetwo");
        if !tls12 {
            // Each end takes a new key, and both go on understanding each other.
            theirs.refresh_traffic_keys().unwrap();
            assert_eq!(exchange(&mut ours, &mut theirs, &[b"three"]), b"three");
            let update = sealed(&mut ours.sealer, &KEY_UPDATE_MESSAGE, Content::Handshake);
            theirs.read_tls(&mut &update[..]).unwrap();
            theirs.process_new_packets().unwrap();
            ours.sealer = ours.keys.next_sealer().unwrap();
        }
        assert_eq!(exchange(&mut ours, &mut theirs, &[b"four", &large]), [b"four", &large[..]].concat());
    }
}

fn config_verifier(
    credential: &Credential,
    rules: &Rules,
) -> std::sync::Arc<dyn rustls::server::danger::ClientCertVerifier> {
    let domain = credential.identity().trust_domain();
    std::sync::Arc::new(crate::tls::verify::ClientIdentity::new(credential.roots(), domain, rules).unwrap())
}

#[tokio::test]
async fn a_buffered_client_understands_our_records() {
    let pki = Pki::new();
    let (client, server) = (pki.credential("client"), pki.credential("server"));
    let settings = settings(false);
    let config = client_config(&client, &[identity("server")], &settings.rules).unwrap();
    let name = rustls_pki_types::ServerName::IpAddress(peer().ip().into());
    let theirs = rustls::ClientConnection::new(config, name).unwrap();
    let (a, mut b) = duplex(64 << 10);
    let (theirs, ours) =
        tokio::join!(buffered(theirs.into(), a), super::server(&mut b, peer(), &server, &settings));
    let (mut theirs, mut ours) = (theirs, ours.unwrap());
    assert_eq!(exchange(&mut ours, &mut theirs, &[b"one", b"two"]), b"onetwo");
}

#[tokio::test]
async fn bytes_that_came_with_the_handshake_are_not_lost() {
    let pki = Pki::new();
    let (client, server) = (pki.credential("client"), pki.credential("server"));
    let settings = settings(false);
    let config = client_config(&client, &[identity("server")], &settings.rules).unwrap();
    let name = rustls_pki_types::ServerName::IpAddress(peer().ip().into());
    let mut theirs: rustls::Connection = rustls::ClientConnection::new(config, name).unwrap().into();
    // Written before the handshake, so that it leaves in one flight with its end.
    theirs.writer().write_all(b"at once").unwrap();
    let (a, mut b) = duplex(64 << 10);
    let (_theirs, ours) =
        tokio::join!(buffered(theirs, a), super::server(&mut b, peer(), &server, &settings));
    let mut ours = ours.unwrap();
    let mut got = std::mem::take(&mut ours.early);
    let mut received = std::mem::take(&mut ours.received);
    let mut rest = &mut received[..];
    while let Some(length) = ours.opener.length(rest).unwrap() {
        let (record, after) = std::mem::take(&mut rest).split_at_mut(length);
        got.extend(opened(&mut ours.opener, record).1);
        rest = after;
    }
    assert_eq!(got, b"at once");
}

#[tokio::test]
async fn messages_about_keys_that_make_no_sense_end_the_tunnel() {
    let (_, mut server) = pair(&settings(false)).await;
    let opener = &mut server.opener;
    assert_eq!(server.keys.handshake_message(&[KEY_UPDATE, 0, 0, 1, 2], opener), Err(KeyError));
    let (_, mut server) = pair(&settings(false)).await;
    assert_eq!(server.keys.handshake_message(&[1, 0, 0, 0], &mut server.opener), Err(KeyError));
    let (_, mut server) = pair(&settings(false)).await;
    assert_eq!(server.keys.handshake_message(&vec![4; MAX_MESSAGE + 1], &mut server.opener), Err(KeyError));
    // A message may come in pieces.
    let (mut client, _) = pair(&settings(false)).await;
    let ticket = [NEW_SESSION_TICKET, 0, 0, 3, 1, 2, 3];
    for byte in ticket {
        assert_eq!(client.keys.handshake_message(&[byte], &mut client.opener), Ok(Asked::default()));
    }
    assert!(client.keys.partial.is_empty());
}
