//! Whoever should not be trusted is refused, with the reason by name.

use hbone::{CredentialError, HandshakeError, PeerFault, Settings};
use mesh::Identity;
use rcgen::{ExtendedKeyUsagePurpose, SanType, date_time_ymd};

use crate::handshake;
use crate::pki::{Authority, identity};

fn fault<T>(result: Result<T, HandshakeError>) -> PeerFault {
    match result {
        Err(HandshakeError::Peer { fault, .. }) => fault,
        Err(other) => panic!("not the peer's fault: {other}"),
        Ok(_) => panic!("it was trusted"),
    }
}

#[tokio::test]
async fn two_identities_of_one_mesh_trust_each_other() {
    let ca = Authority::new();
    let (a, b) = (ca.credential(&identity("a")), ca.credential(&identity("b")));
    let (client, server) = handshake(&a, &b, &[identity("x"), identity("b")], &Settings::default()).await;
    assert_eq!(client.unwrap().identity(), &identity("b"));
    assert_eq!(server.unwrap().identity(), &identity("a"));
}

#[tokio::test]
async fn a_server_that_is_somebody_else_is_refused_by_name() {
    let ca = Authority::new();
    let (a, b) = (ca.credential(&identity("a")), ca.credential(&identity("b")));
    let (client, server) = handshake(&a, &b, &[identity("c")], &Settings::default()).await;
    let got = fault(client);
    assert_eq!(got, PeerFault::WrongIdentity { got: vec![identity("b")], expected: vec![identity("c")] });
    assert!(got.to_string().contains("enrolled under another service account"));
    assert!(server.is_err());
}

#[tokio::test]
async fn certificates_out_of_time_are_refused_each_with_its_reason() {
    let ca = Authority::new();
    let good = ca.credential(&identity("a"));
    let expired = ca.credential_with(&identity("b"), |params| {
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(2001, 1, 1);
    });
    let early = ca.credential_with(&identity("b"), |params| {
        params.not_before = date_time_ymd(3000, 1, 1);
        params.not_after = date_time_ymd(3001, 1, 1);
    });
    for (bad, reason) in [(expired, PeerFault::Expired), (early, PeerFault::NotYetValid)] {
        let (client, _) = handshake(&good, &bad, &[identity("b")], &Settings::default()).await;
        assert_eq!(fault(client), reason, "as a server");
        let (client, server) = handshake(&bad, &good, &[identity("a")], &Settings::default()).await;
        assert_eq!(fault(server), reason, "as a client");
        assert!(client.is_err(), "a client learns that it was refused before it sends anything");
    }
}

#[tokio::test]
async fn a_stranger_is_refused_at_either_end() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    let good = ours.credential(&identity("a"));
    let stranger = theirs.credential_trusting(&identity("b"), &ours);
    let (client, _) = handshake(&good, &stranger, &[identity("b")], &Settings::default()).await;
    assert_eq!(fault(client), PeerFault::UnknownIssuer);
    let (_, server) = handshake(&stranger, &good, &[identity("a")], &Settings::default()).await;
    assert_eq!(fault(server), PeerFault::UnknownIssuer);
}

#[tokio::test]
async fn a_client_of_another_trust_domain_is_refused() {
    let ca = Authority::new();
    let other = Identity::new("elsewhere", "ns", "a").unwrap();
    let (a, b) = (ca.credential(&other), ca.credential(&identity("b")));
    let (_, server) = handshake(&a, &b, &[identity("b")], &Settings::default()).await;
    assert_eq!(
        fault(server),
        PeerFault::WrongTrustDomain { got: vec![other], expected: "cluster.local".into() }
    );
}

#[tokio::test]
async fn a_purpose_counts_only_where_the_certificate_names_purposes() {
    let ca = Authority::new();
    let a = ca.credential(&identity("a"));
    let any = ca.credential_with(&identity("b"), |params| params.extended_key_usages.clear());
    assert!(handshake(&a, &any, &[identity("b")], &Settings::default()).await.0.is_ok());
    assert!(handshake(&any, &a, &[identity("a")], &Settings::default()).await.1.is_ok());
    let client_only = ca.credential_with(&identity("b"), |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let (client, _) = handshake(&a, &client_only, &[identity("b")], &Settings::default()).await;
    assert_eq!(fault(client), PeerFault::WrongPurpose);
}

#[tokio::test]
async fn a_certificate_for_another_identity_makes_no_credential() {
    let ca = Authority::new();
    let (leaf, key) = ca.leaf(&identity("b"), |params| {
        params.subject_alt_names.push(SanType::DnsName("b.example".try_into().unwrap()));
    });
    let root = Authority::new().leaf(&identity("root"), |_| {}).0;
    let error = hbone::Credential::new(identity("a"), vec![leaf], key, vec![root]).unwrap_err();
    assert_eq!(error, CredentialError::OtherIdentity { got: vec![identity("b")], expected: identity("a") });
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_given_up() {
    let ca = Authority::new();
    let settings =
        Settings { handshake_timeout: std::time::Duration::from_millis(50), ..Settings::default() };
    let peer = "10.0.0.9:15008".parse().unwrap();
    let (near, _silent) = tokio::io::duplex(1 << 16);
    let tunnel = hbone::Tunnel::handshake(near, peer, &ca.credential(&identity("a")), &[], &settings).await;
    assert!(matches!(tunnel, Err(HandshakeError::TlsTimeout { .. })));
    let (near, _silent) = tokio::io::duplex(1 << 16);
    let server = hbone::Server::handshake(near, peer, &ca.credential(&identity("a")), &settings).await;
    assert!(matches!(server, Err(HandshakeError::TlsTimeout { .. })));
}

#[tokio::test]
async fn a_self_signed_certificate_is_refused() {
    let (ca, own) = (Authority::new(), Authority::new());
    let good = ca.credential(&identity("a"));
    // Signed by an authority that only its owner trusts.
    let selfish = own.credential_trusting(&identity("b"), &ca);
    let (client, _) = handshake(&good, &selfish, &[identity("b")], &Settings::default()).await;
    assert_eq!(fault(client), PeerFault::UnknownIssuer);
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_at_either_end_and_ends_the_tunnels_it_made() {
    let ca = Authority::new();
    let a = ca.credential_with(&identity("a"), |params| params.serial_number = Some(7.into()));
    let b = ca.credential_with(&identity("b"), |params| params.serial_number = Some(8.into()));
    let settings = Settings::default();
    let lists = &settings.rules.revocations;
    // A list of another authority says nothing of ours.
    lists.replace(Authority::new().revoke(&[7, 8]).as_bytes()).unwrap();
    let (client, server) = handshake(&a, &b, &[identity("b")], &settings).await;
    let (client, server) = (client.unwrap(), server.unwrap());
    assert!(!client.is_revoked() && !server.is_revoked());
    lists.replace(ca.revoke(&[8]).as_bytes()).unwrap();
    assert!(client.is_revoked(), "the client's peer is b");
    assert!(!server.is_revoked());
    let (again, _) = handshake(&a, &b, &[identity("b")], &settings).await;
    assert_eq!(fault(again), PeerFault::Revoked);
    lists.replace(ca.revoke(&[7]).as_bytes()).unwrap();
    assert!(server.is_revoked() && !client.is_revoked());
    let (_, again) = handshake(&a, &b, &[identity("b")], &settings).await;
    assert_eq!(fault(again), PeerFault::Revoked);
    client.cut();
    client.closed().await;
    assert!(client.is_closed());
}
