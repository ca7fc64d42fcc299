//! What is signed, what is refused, and how the root is kept.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh::Identity;
use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use serde_json::{Value, json};
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;

use super::*;
use crate::auth::Caller;
use crate::config::Account;
use crate::fixtures;
use crate::state::{Delta, Event, Pods, State};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn identity() -> Identity {
    "spiffe://cluster.local/ns/shop/sa/web".parse().unwrap()
}

fn request(key: &KeyPair) -> String {
    CertificateParams::default().serialize_request(key).unwrap().pem().unwrap()
}

fn authority() -> Authority {
    Authority::self_signed("cluster.local", SystemTime::now()).unwrap()
}

fn der(pem: &str) -> Vec<u8> {
    x509_parser::pem::parse_x509_pem(pem.as_bytes()).unwrap().1.contents
}

#[test]
fn a_leaf_has_exactly_what_the_reference_says() {
    let now = SystemTime::now();
    let authority = authority();
    let key = KeyPair::generate().unwrap();
    let chain = authority.sign(&request(&key), &identity(), DAY, now).unwrap();
    assert_eq!(chain.len(), 2);
    assert_eq!(chain[1], authority.root_bundle());
    let (leaf, root) = (der(&chain[0]), der(&chain[1]));
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
    let (_, root) = x509_parser::certificate::X509Certificate::from_der(&root).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
    assert_eq!(leaf.issuer(), root.subject());
    assert_eq!(leaf.subject().iter().count(), 0);
    assert_eq!(leaf.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));

    let life = leaf.validity();
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert!((life.not_before.timestamp() - (seconds - 120)).abs() <= 1);
    assert!((life.not_after.timestamp() - (seconds + 24 * 3600)).abs() <= 1);
    assert!(leaf.serial.bits() > 64);

    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert!(names.critical);
    assert_eq!(names.value.general_names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]);
    let usage = leaf.key_usage().unwrap().unwrap();
    assert!(usage.critical && usage.value.digital_signature() && usage.value.key_encipherment());
    assert!(!usage.value.key_cert_sign());
    let extended = leaf.extended_key_usage().unwrap().unwrap();
    assert!(extended.value.server_auth && extended.value.client_auth);
    assert!(!leaf.basic_constraints().unwrap().unwrap().value.ca);
    let known_by = |extension: &&x509_parser::extensions::X509Extension<'_>| {
        matches!(extension.parsed_extension(), ParsedExtension::AuthorityKeyIdentifier(_))
    };
    assert!(leaf.extensions().iter().any(|extension| known_by(&extension)));

    assert!(root.is_ca() && root.key_usage().unwrap().unwrap().value.key_cert_sign());
    assert_eq!(root.subject().iter_organization().next().unwrap().as_str().unwrap(), "cluster.local");
}

#[test]
fn what_a_request_would_like_to_be_is_ignored() {
    let key = KeyPair::generate().unwrap();
    let mut wish = CertificateParams::default();
    wish.distinguished_name.push(DnType::CommonName, "admin");
    wish.subject_alt_names = vec![
        SanType::DnsName("kubernetes.default".try_into().unwrap()),
        SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().unwrap()),
    ];
    wish.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let csr = wish.serialize_request(&key).unwrap().pem().unwrap();
    let chain = authority().sign(&csr, &identity(), DAY, SystemTime::now()).unwrap();
    let leaf = der(&chain[0]);
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
    assert!(!leaf.is_ca());
    assert_eq!(leaf.subject().iter().count(), 0);
    let names = leaf.subject_alternative_name().unwrap().unwrap();
    assert_eq!(names.value.general_names, [GeneralName::URI("spiffe://cluster.local/ns/shop/sa/web")]);
}

#[test]
fn requests_that_are_none_or_not_signed_by_their_key_are_refused() {
    let authority = authority();
    let sign = |csr: &str| authority.sign(csr, &identity(), DAY, SystemTime::now());
    let (mine, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    for csr in ["", "hello", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"]
    {
        assert!(matches!(sign(csr), Err(AuthorityError::Request(_))), "{csr:?}");
    }
    // The key of one request in another one's envelope.
    let (good, stolen) = (der(&request(&mine)), rcgen::PublicKeyData::subject_public_key_info(&other));
    let own = rcgen::PublicKeyData::subject_public_key_info(&mine);
    let at = good.windows(own.len()).position(|window| window == own).unwrap();
    let mut forged = good.clone();
    forged[at..at + own.len()].copy_from_slice(&stolen);
    use base64::Engine;
    let forged = format!(
        "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
        base64::engine::general_purpose::STANDARD.encode(forged)
    );
    let error = sign(&forged).unwrap_err().to_string();
    assert!(error.contains("signature"), "{error}");
}

#[test]
fn the_life_of_a_leaf_is_bounded_and_never_beyond_the_root() {
    let authority = authority();
    assert_eq!(authority.life(0).unwrap(), DAY);
    assert_eq!(authority.life(-5).unwrap(), DAY);
    assert_eq!(authority.life(60).unwrap(), Duration::from_secs(60));
    assert!(matches!(authority.life(91 * 24 * 3600), Err(AuthorityError::TooLong { .. })));
    assert!(matches!(authority.life(i64::MAX), Err(AuthorityError::TooLong { .. })));
    let key = KeyPair::generate().unwrap();
    let late = authority.not_after() - Duration::from_secs(60);
    let chain = authority.sign(&request(&key), &identity(), DAY, late).unwrap();
    let leaf = der(&chain[0]);
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
    let ends = authority.not_after().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64;
    assert_eq!(leaf.validity().not_after.timestamp(), ends);
    let expired = authority.sign(&request(&key), &identity(), DAY, authority.not_after());
    assert!(matches!(expired, Err(AuthorityError::Expired)));
}

#[test]
fn a_root_is_read_back_from_its_secret_and_signs_as_before() {
    let authority = authority();
    let secret = store::secret("ambit-system", &authority);
    assert_eq!(secret.type_.as_deref(), Some("istio.io/ca-root"));
    let keys: Vec<&str> = secret.data.as_ref().unwrap().keys().map(String::as_str).collect();
    assert_eq!(keys, ["ca-cert.pem", "ca-key.pem", "cert-chain.pem", "key.pem", "root-cert.pem"]);
    let read = store::read(&secret).unwrap();
    let key = KeyPair::generate().unwrap();
    let chain = read.sign(&request(&key), &identity(), DAY, SystemTime::now()).unwrap();
    let (leaf, root) = (der(&chain[0]), der(authority.root_bundle()));
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
    let (_, root) = x509_parser::certificate::X509Certificate::from_der(&root).unwrap();
    leaf.verify_signature(Some(root.public_key())).unwrap();
}

#[test]
fn a_damaged_secret_is_refused_with_the_part_that_is_wrong() {
    let (one, two) = (authority(), authority());
    let broken = |key: &str, value: &str| {
        let mut secret = store::secret("ambit-system", &one);
        let bytes = k8s_openapi::ByteString(value.as_bytes().to_vec());
        secret.data.as_mut().unwrap().insert(key.into(), bytes);
        store::read(&secret).unwrap_err()
    };
    assert!(broken("ca-cert.pem", "").contains("missing"));
    assert!(broken("ca-cert.pem", "x").contains("ca-cert.pem"));
    assert!(broken("ca-cert.pem", two.certificate()).contains("not the key of"));
    let wrong = broken("ca-key.pem", "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n");
    assert!(wrong.contains("ca-key.pem") && !wrong.contains("c2VjcmV0"), "{wrong}");
    assert!(broken("root-cert.pem", "x").contains("root-cert.pem"));
}

#[test]
fn an_authority_never_prints_its_key() {
    let authority = authority();
    let printed = format!("{authority:?}");
    assert!(!printed.contains("PRIVATE") && printed.len() < 200, "{printed}");
}

/// Pods of two nodes: the proxy and a web pod on n1, another on n2.
fn pods(over: Value) -> Pods {
    let mut state = State::new(fixtures::settings());
    let mut proxy = json!({ "metadata": { "namespace": "ambit-system" }, "spec": { "serviceAccountName": "ambit-proxy" } });
    fixtures::merge(&mut proxy, over);
    let idle = json!({ "spec": { "nodeName": "n2", "serviceAccountName": "idle" } });
    let done = json!({ "spec": { "serviceAccountName": "done" }, "status": { "phase": "Succeeded" } });
    for pod in [
        fixtures::pod("proxy", "10.0.0.9", proxy),
        fixtures::pod("web-0", "10.0.0.1", json!({})),
        fixtures::pod("idle-0", "10.0.0.2", idle),
        fixtures::pod("done-0", "10.0.0.3", done),
    ] {
        state.apply(Event::Pods(Delta::Put(pod)));
    }
    state.flush().unwrap().pods
}

fn proxy() -> Caller {
    Caller {
        account: Account { namespace: "ambit-system".into(), name: "ambit-proxy".into() },
        pod: Some(("proxy".into(), "uid-proxy".into())),
    }
}

fn decide(pods: &Pods, caller: &Caller, trusted: bool, wanted: &str) -> Result<Identity, Refused> {
    let trust_domain: Arc<str> = "cluster.local".into();
    may_impersonate(pods, caller, trusted, wanted, &trust_domain)
}

#[test]
fn a_node_proxy_may_hold_the_identities_of_its_node() {
    let wanted = "spiffe://cluster.local/ns/shop/sa/web";
    assert_eq!(decide(&pods(json!({})), &proxy(), true, wanted).unwrap().to_string(), wanted);
}

#[test]
fn a_node_proxy_may_hold_no_other_identity() {
    let all = pods(json!({}));
    let refused = |caller: &Caller, trusted, wanted: &str| decide(&all, caller, trusted, wanted).unwrap_err();
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    assert!(matches!(refused(&proxy(), false, web), Refused::NotTrusted(_)));
    assert!(matches!(refused(&proxy(), true, "web"), Refused::NoIdentity(_)));
    let foreign = refused(&proxy(), true, "spiffe://other.domain/ns/shop/sa/web");
    assert!(matches!(foreign, Refused::TrustDomain { .. }));
    // Runs on another node; has finished; exists nowhere.
    for account in ["idle", "done", "nobody"] {
        let wanted = format!("spiffe://cluster.local/ns/shop/sa/{account}");
        assert!(matches!(refused(&proxy(), true, &wanted), Refused::NotOnNode { .. }), "{account}");
    }
    let unbound = Caller { pod: None, ..proxy() };
    assert_eq!(refused(&unbound, true, web), Refused::NoPod);
    let unknown = Caller { pod: Some(("ghost".into(), "u".into())), ..proxy() };
    assert!(matches!(refused(&unknown, true, web), Refused::UnknownPod(_)));
    let stale = Caller { pod: Some(("proxy".into(), "an-earlier-one".into())), ..proxy() };
    assert!(matches!(refused(&stale, true, web), Refused::StalePod(_)));
}

/// Istiod does not look at enrolment; a proxy that needs no certificate for a pod need not be able to have it.
#[test]
fn a_node_proxy_may_hold_only_the_identities_of_pods_that_are_in_the_mesh() {
    use crate::fixtures::merge;
    let allowed = |namespace: Option<&str>, over: serde_json::Value| {
        let mut state = State::new(fixtures::settings());
        let labels = json!({ "metadata": { "labels": { "istio.io/dataplane-mode": namespace } } });
        state.apply(Event::Namespaces(Delta::Put(fixtures::namespace("shop", labels))));
        let own = json!({ "metadata": { "namespace": "ambit-system" }, "spec": { "serviceAccountName": "ambit-proxy" } });
        let mut bare = json!({ "metadata": { "annotations": { "ambient.istio.io/redirection": null } } });
        merge(&mut bare, over);
        for pod in [fixtures::pod("proxy", "10.0.0.9", own), fixtures::pod("web-0", "10.0.0.1", bare)] {
            state.apply(Event::Pods(Delta::Put(pod)));
        }
        let pods = state.flush().unwrap().pods;
        decide(&pods, &proxy(), true, "spiffe://cluster.local/ns/shop/sa/web").is_ok()
    };
    let mode = |mode: &str| json!({ "metadata": { "labels": { "istio.io/dataplane-mode": mode } } });
    let redirection =
        |value: &str| json!({ "metadata": { "annotations": { "ambient.istio.io/redirection": value } } });
    let native = json!({ "metadata": { "labels": { "networking.istio.io/tunnel": "http" } } });
    let host = json!({ "spec": { "hostNetwork": true } });
    let table = [
        (None, json!({}), false),
        (Some("none"), json!({}), false),
        // Before the agent has said that it is done, the proxy asks already.
        (Some("ambient"), json!({}), true),
        (None, mode("ambient"), true),
        (None, redirection("pending"), true),
        (None, redirection("enabled"), true),
        (None, native, true),
        (Some("ambient"), mode("none"), false),
        (Some("ambient"), host, false),
    ];
    for (namespace, over, wanted) in table {
        assert_eq!(allowed(namespace, over.clone()), wanted, "{namespace:?} {over}");
    }
}

#[test]
fn enrolment_of_a_namespace_is_followed() {
    let mut state = State::new(fixtures::settings());
    let mut label = |mode: Option<&str>| {
        let labels = json!({ "metadata": { "labels": { "istio.io/dataplane-mode": mode } } });
        state.apply(Event::Namespaces(Delta::Put(fixtures::namespace("shop", labels))));
        let bare = json!({ "metadata": { "annotations": { "ambient.istio.io/redirection": null } } });
        state.apply(Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", bare))));
        let snapshot = state.flush().expect("whoever asks for certificates must hear of it");
        snapshot.pods.runs(&"n1".into(), "shop", "web")
    };
    assert!(!label(None));
    assert!(label(Some("ambient")));
    assert!(!label(None));
}

#[test]
fn a_proxy_pod_that_has_ended_or_runs_as_somebody_else_holds_nothing() {
    let web = "spiffe://cluster.local/ns/shop/sa/web";
    let ended = pods(json!({ "status": { "phase": "Failed" } }));
    assert!(matches!(decide(&ended, &proxy(), true, web), Err(Refused::FinishedPod(_))));
    let other = pods(json!({ "spec": { "serviceAccountName": "someone" } }));
    assert!(matches!(decide(&other, &proxy(), true, web), Err(Refused::OtherAccount { .. })));
    let unplaced = pods(json!({ "spec": { "nodeName": "" } }));
    assert!(matches!(decide(&unplaced, &proxy(), true, web), Err(Refused::NotOnNode { .. })));
}

/// An intermediate authority under a root, as files.
fn intermediate() -> (Authority, std::collections::BTreeMap<String, String>) {
    let now = SystemTime::now();
    let root_key = KeyPair::generate().unwrap();
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::OrganizationName, "root");
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    root.not_after = (now + DAY * 100).into();
    let root_certificate = root.self_signed(&root_key).unwrap().pem();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "intermediate");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.not_after = (now + DAY * 50).into();
    let issuer = rcgen::Issuer::from_params(&root, &root_key);
    let certificate = params.signed_by(&key, &issuer).unwrap().pem();
    let root = Authority::read(&root_certificate, &root_key.serialize_pem(), &root_certificate).unwrap();
    let files = [
        ("ca-cert.pem", certificate.clone()),
        ("ca-key.pem", key.serialize_pem()),
        ("root-cert.pem", root_certificate.clone()),
        ("cert-chain.pem", certificate + &root_certificate),
    ];
    (root, files.map(|(name, text)| (name.to_string(), text)).into())
}

#[test]
fn a_plugged_in_intermediate_signs_with_its_chain_up_to_the_root() {
    let (root, files) = intermediate();
    let authority = plugin::read(&files).unwrap().unwrap();
    let key = KeyPair::generate().unwrap();
    let chain = authority.sign(&request(&key), &identity(), DAY, SystemTime::now()).unwrap();
    // Leaf, intermediate, and the roots last.
    assert_eq!((chain.len(), chain[2].as_str()), (3, root.root_bundle()));
    let (leaf, middle) = (der(&chain[0]), der(&chain[1]));
    let (_, leaf) = x509_parser::certificate::X509Certificate::from_der(&leaf).unwrap();
    let (_, middle) = x509_parser::certificate::X509Certificate::from_der(&middle).unwrap();
    leaf.verify_signature(Some(middle.public_key())).unwrap();
    assert!(chain[1].ends_with('\n'));

    let tls = [("tls.crt", "cert-chain.pem"), ("tls.key", "ca-key.pem"), ("ca.crt", "root-cert.pem")]
        .map(|(name, from)| (name.to_string(), files[from].clone()));
    let same = plugin::read(&tls.into()).unwrap().unwrap();
    assert_eq!((same.digest(), same.roots()), (authority.digest(), authority.roots()));
}

#[test]
fn half_an_authority_or_one_that_leads_nowhere_is_refused() {
    let (_, files) = intermediate();
    assert!(plugin::read(&Default::default()).unwrap().is_none());
    let mut half = files.clone();
    half.remove("ca-key.pem");
    let error = plugin::read(&half).unwrap_err();
    assert!(error.contains("incomplete signing CA bundle: ca-key.pem"), "{error}");
    let mut astray = files.clone();
    astray.insert("root-cert.pem".into(), authority().root_bundle().into());
    let error = plugin::read(&astray).unwrap_err();
    assert!(error.contains("does not lead to"), "{error}");
    let mut crl = files;
    crl.insert("ca-crl.pem".into(), "x".into());
    assert!(plugin::read(&crl).unwrap_err().contains("ca-crl.pem"));
}

#[test]
fn a_plugged_in_authority_may_be_followed_only_by_one_that_shares_its_roots() {
    let (_, files) = intermediate();
    let old = plugin::read(&files).unwrap().unwrap();
    let mut both = files.clone();
    both.insert("root-cert.pem".into(), files["root-cert.pem"].clone() + authority().root_bundle());
    let both = plugin::read(&both).unwrap().unwrap();
    let (_, strange) = intermediate();
    let strange = plugin::read(&strange).unwrap().unwrap();
    assert!(plugin::may_follow(&old, &both) && plugin::may_follow(&both, &old));
    assert!(!plugin::may_follow(&old, &strange));
}
