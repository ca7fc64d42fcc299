use super::*;
use crate::flow::Counts;
use crate::testing::{Says, T0, World, identity, pod, scrape};

const PROM: (&str, &str) = ("monitoring", "prometheus-0");
const CART: (&str, &str) = ("shop", "cart-0");

fn world() -> World {
    World::new([pod(PROM.0, PROM.1, "n1", 1), pod(CART.0, CART.1, "n2", 2)])
}

fn raw() -> RawTarget {
    RawTarget {
        pool: "pods".into(),
        scrape_url: "http://10.0.0.2:8080/metrics".into(),
        address: "10.0.0.2:8080".into(),
        ip: Some([10, 0, 0, 2].into()),
        port: 8080,
        namespace: CART.0.into(),
        pod: CART.1.into(),
        health: "up",
        last_scrape: Some(T0 - 500),
        duration_ms: 10.0,
        interval: 15_000,
        ..RawTarget::default()
    }
}

fn judged(world: &World, raws: Vec<RawTarget>, now: Millis) -> Vec<Target> {
    let scraper = Scraper {
        id: "monitoring/prometheus-0".into(),
        namespace: PROM.0.into(),
        pod: PROM.1.into(),
        polled: Some(now),
        targets: Arc::new(raws),
        ..Scraper::default()
    };
    prove(&scraper, &Facts { store: &world.store, directory: &world.directory, now }).0
}

fn code_of(target: &Target) -> Option<Code> {
    target.why.as_ref().map(|why| why.code)
}

fn one_of(world: &World) -> (Proof, Option<Code>) {
    let target = judged(world, vec![raw()], T0 + 5_000).remove(0);
    (target.proof, code_of(&target))
}

#[test]
fn proven_is_said_with_both_identities_and_the_bytes_of_both_proxies() {
    let mut world = world();
    world.both(T0, |reporter| scrape(reporter, PROM, CART));
    let target = judged(&world, vec![raw()], T0 + 5_000).remove(0);
    assert_eq!((target.proof, target.why.is_none()), (Proof::Proven, true));
    assert_eq!(*target.source_identity, *identity("monitoring", "default"));
    assert_eq!(*target.destination_identity, *identity("shop", "default"));
    assert_eq!(target.evidence.records.len(), 2);
    assert!(
        target.evidence.records.iter().all(|record| record.sent == 1_000 && record.security == "mutual_tls")
    );
    assert_eq!(&*target.target_id, "pod:shop/cart-0");
}

#[test]
fn a_lie_from_one_side_proves_nothing() {
    // The source's proxy alone.
    let mut world = world();
    world.hear("n1", T0, &[scrape(Reporter::Source, PROM, CART)]);
    assert_eq!(one_of(&world), (Proof::OneSided, Some(Code::ProxyDown)));
    world.hear("n2", T0 + 4_000, &[]);
    assert_eq!(one_of(&world), (Proof::OneSided, Some(Code::NotReported)));
    // It says mutual TLS, and the other says plaintext.
    world.hear("n2", T0, &[scrape(Reporter::Destination, PROM, CART).plaintext("")]);
    assert_eq!(one_of(&world), (Proof::Unproven, Some(Code::ReportsDisagree)));
}

#[test]
fn a_proxy_that_also_plays_the_other_side_proves_nothing() {
    let mut world = world();
    let directory = world.directory.clone();
    // As long as the cluster is not known to the observer, the lie is taken in …
    let blind = Arc::new(Directory::default());
    world.directory = blind;
    world.hear("n1", T0, &[scrape(Reporter::Source, PROM, CART), scrape(Reporter::Destination, PROM, CART)]);
    // … and is found out when it is.
    world.directory = directory.clone();
    assert_eq!(one_of(&world).0, Proof::OneSided, "at once, not only when the store looks again");
    world.store.tick(T0 + 1_000, &directory);
    assert_eq!(one_of(&world).0, Proof::OneSided);
}

/// A pod that is new: the proxy of another node tells of its address before the observer hears of the pod.
#[test]
fn a_lie_about_a_bare_address_proves_nothing() {
    let mut world = world();
    let directory = world.directory.clone();
    let early = Directory::new([pod(PROM.0, PROM.1, "n1", 1)], [], []);
    world.directory = Arc::new(early);
    let bare = ("", "10.0.0.2");
    let identities = Some((identity("monitoring", "default"), identity("shop", "default")));
    let lie = |reporter| Says { identities: identities.clone(), ..scrape(reporter, PROM, bare) };
    world.hear("n1", T0, &[lie(Reporter::Source), lie(Reporter::Destination)]);
    assert_ne!(one_of(&world).0, Proof::Proven);
    world.directory = directory;
    assert_ne!(one_of(&world).0, Proof::Proven);
}

#[test]
fn other_identities_on_the_other_side_prove_nothing() {
    let mut world = world();
    world.hear("n1", T0, &[scrape(Reporter::Source, PROM, CART)]);
    let identities = Some((identity("evil", "default"), identity("shop", "default")));
    world.hear("n2", T0, &[Says { identities, ..scrape(Reporter::Destination, PROM, CART) }]);
    assert_eq!(one_of(&world), (Proof::Unproven, Some(Code::IdentityMismatch)));
}

#[test]
fn some_plaintext_beside_mutual_tls_is_plaintext() {
    let mut world = world();
    world.both(T0, |reporter| scrape(reporter, PROM, CART));
    world.both(T0, |reporter| scrape(reporter, PROM, CART).plaintext(""));
    assert_eq!(one_of(&world).0, Proof::Plaintext);
}

/// `SAME_NODE=splice`: both ends are named, and it is still no mutual TLS.
#[test]
fn a_scrape_within_a_node_without_encryption_is_not_proven_and_says_why() {
    let mut world = world();
    world.both(T0, |reporter| Says { security: Security::NodeLocal, ..scrape(reporter, PROM, CART) });
    assert_eq!(one_of(&world), (Proof::Plaintext, Some(Code::SameNode)));
}

#[test]
fn a_connection_kept_alive_proves_only_scrapes_in_which_bytes_moved() {
    let mut world = world();
    world.both(T0 - 60_000, |reporter| scrape(reporter, PROM, CART));
    // Open ever since, and quiet.
    let quiet = |reporter| Says { counts: Counts::default(), ..scrape(reporter, PROM, CART) };
    world.both(T0, quiet);
    assert_eq!(one_of(&world), (Proof::Unproven, Some(Code::NoFlow)));
    // No connection was opened for this scrape, and it is proven all the same.
    world.both(T0, |reporter| scrape(reporter, PROM, CART));
    assert_eq!(one_of(&world).0, Proof::Proven);
}

#[test]
fn a_scrape_whose_flows_are_still_on_their_way_is_judged_by_the_one_before() {
    let mut world = world();
    world.both(T0 - 15_000, |reporter| scrape(reporter, PROM, CART));
    let now = T0 + 100;
    let target = judged(&world, vec![RawTarget { last_scrape: Some(T0), ..raw() }], now).remove(0);
    assert_eq!(target.proof, Proof::Proven);
    let later = judged(&world, vec![RawTarget { last_scrape: Some(T0), ..raw() }], T0 + 20_000).remove(0);
    assert_eq!(later.proof, Proof::Unproven);
}

/// Case D05: four targets, one address.
#[test]
fn a_finished_pod_is_never_given_what_another_answers() {
    let finished = |i: u8| Pod {
        finished: true,
        running: false,
        workload: "backup".into(),
        ..pod("batch", ["backup-1-a", "backup-2-b", "backup-3-c"][usize::from(i)], "n2", 2)
    };
    let metrics = Pod { started: 5, ..pod("monitoring", "kube-state-metrics-0", "n2", 2) };
    let mut world =
        World::new([pod(PROM.0, PROM.1, "n1", 1), metrics, finished(0), finished(1), finished(2)]);
    world.both(T0, |reporter| scrape(reporter, PROM, ("monitoring", "kube-state-metrics-0")));
    let named =
        |namespace: &str, name: &str| RawTarget { namespace: namespace.into(), pod: name.into(), ..raw() };
    let raws = vec![
        named("batch", "backup-1-a"),
        named("batch", "backup-2-b"),
        named("monitoring", "kube-state-metrics-0"),
        named("batch", "backup-3-c"),
    ];
    let targets = judged(&world, raws, T0 + 5_000);
    let proven: Vec<_> = targets.iter().filter(|target| target.proof == Proof::Proven).collect();
    assert_eq!(proven.len(), 1);
    assert_eq!(
        (&*proven[0].pod, &*proven[0].destination_identity),
        ("kube-state-metrics-0", &*identity("monitoring", "default"))
    );
    for target in targets.iter().filter(|target| target.proof != Proof::Proven) {
        let why = target.why.as_ref().unwrap();
        assert_eq!(why.text, "answered by another workload: the pod has finished");
        assert!(why.command.contains("__meta_kubernetes_pod_phase"));
        assert!(target.evidence.records.is_empty() && target.destination_identity.is_empty());
        assert_eq!(&*target.namespace, "batch");
    }
}

#[test]
fn a_recycled_address_is_that_of_the_pod_that_has_it_now() {
    let mut world = world();
    world.both(T0, |reporter| scrape(reporter, PROM, CART));
    // Prometheus has not yet heard that web-9 is gone.
    let target = judged(&world, vec![RawTarget { pod: "web-9".into(), ..raw() }], T0 + 5_000).remove(0);
    assert_eq!((target.proof, code_of(&target)), (Proof::Unproven, Some(Code::AnsweredByAnother)));
}

/// Case D14: certificates left over from the sidecar days.
#[test]
fn a_target_that_speaks_http_where_tls_was_asked_is_proven_and_told_so() {
    let mut world = world();
    world.both(T0, |reporter| scrape(reporter, PROM, CART));
    let error = "Get \"https://10.0.0.2:8080/metrics\": http: server gave HTTP response to HTTPS client";
    let job1 = RawTarget { https: true, health: "down", last_error: error.into(), ..raw() };
    let job2 = RawTarget { https: true, ..raw() };
    let targets = judged(&world, vec![job1, job2, raw()], T0 + 5_000);
    assert!(targets.iter().all(|target| target.proof == Proof::Proven));
    assert_eq!(
        targets[0].evidence.text,
        "tunnel proven; scrape fails because the target speaks HTTP: remove scheme and tlsConfig"
    );
    assert_eq!(targets[0].notes[0].code, Code::TargetSpeaksHttp);
    assert!(targets[1].notes.is_empty() && targets[2].notes.is_empty());
}

/// Case D25: the policy guards the Service, the scrape goes to the pod.
#[test]
fn a_denied_scrape_names_its_policy() {
    let mut world = world();
    world.hear("n2", T0, &[scrape(Reporter::Destination, PROM, CART).denied("shop/allow-nothing")]);
    let down = RawTarget { health: "down", last_error: "EOF".into(), ..raw() };
    let target = judged(&world, vec![down], T0 + 5_000).remove(0);
    let why = target.why.unwrap();
    assert_eq!((target.proof, why.code), (Proof::Denied, Code::DeniedByPolicy));
    assert!(why.text.contains("shop/allow-nothing"));
    assert!(why.fix.contains("waypoint") && why.fix.contains("pod's own address"));
}

/// The caller's proxy reports the refusal too, without knowing by which policy.
#[test]
fn the_policy_is_named_whichever_proxy_reports_first() {
    let mut world = world();
    world.hear("n1", T0, &[scrape(Reporter::Source, PROM, CART).denied("")]);
    world.hear("n2", T0, &[scrape(Reporter::Destination, PROM, CART).denied("shop/allow-nothing")]);
    world.hear("n1", T0, &[scrape(Reporter::Source, PROM, CART).denied("")]);
    let down = RawTarget { health: "down", ..raw() };
    let target = judged(&world, vec![down], T0 + 5_000).remove(0);
    assert!(target.why.unwrap().text.contains("shop/allow-nothing"));
    let table = world.table(T0 + 5_000);
    assert_eq!(&*table.rows[0].policy, "shop/allow-nothing");
}

/// Case D30: who scrapes the mesh itself?
#[test]
fn every_target_is_listed_with_a_proof_or_a_reason() {
    let mesh = Pod { enrolled: false, mesh: true, ..pod("ambit-system", "ambit-proxy-0", "n1", 3) };
    let out = Pod { enrolled: false, ..pod("legacy", "old-0", "n2", 4) };
    let host = Pod {
        enrolled: false,
        host_network: true,
        addresses: vec![[192, 168, 0, 2].into()],
        ..pod("kube-system", "node-exporter-0", "n2", 5)
    };
    let mut world = World::new([pod(PROM.0, PROM.1, "n1", 1), pod(CART.0, CART.1, "n2", 2), mesh, out, host]);
    world.both(T0, |reporter| scrape(reporter, PROM, CART));
    let says =
        |name: (&'static str, &'static str), reason| scrape(Reporter::Source, PROM, name).plaintext(reason);
    world.hear("n1", T0, &[says(("ambit-system", "ambit-proxy-0"), "not_enrolled")]);
    let at = |last: u8, namespace: &str, name: &str| RawTarget {
        ip: Some([10, 0, 0, last].into()),
        address: format!("10.0.0.{last}:8080"),
        namespace: namespace.into(),
        pod: name.into(),
        ..raw()
    };
    let raws = vec![
        raw(),
        at(3, "ambit-system", "ambit-proxy-0"),
        at(4, "legacy", "old-0"),
        RawTarget { ip: Some([192, 168, 0, 2].into()), ..at(5, "kube-system", "node-exporter-0") },
        at(1, PROM.0, PROM.1),
        RawTarget {
            ip: None,
            address: "localhost:9090".into(),
            namespace: "".into(),
            pod: "".into(),
            ..raw()
        },
        RawTarget { ip: Some([203, 0, 113, 9].into()), namespace: "".into(), pod: "".into(), ..raw() },
        RawTarget {
            ip: None,
            address: "db.example:9100".into(),
            namespace: "".into(),
            pod: "".into(),
            ..raw()
        },
        RawTarget { last_scrape: None, health: "unknown", ..raw() },
    ];
    let expected = [
        (Proof::Proven, None),
        (Proof::Plaintext, Some(Code::MeshComponent)),
        (Proof::Plaintext, Some(Code::DstNotEnrolled)),
        (Proof::Plaintext, Some(Code::DstHostNetwork)),
        (Proof::Plaintext, Some(Code::Loopback)),
        (Proof::Plaintext, Some(Code::Loopback)),
        (Proof::Plaintext, Some(Code::DstOutside)),
        (Proof::Unproven, Some(Code::TargetUnknown)),
        (Proof::Unproven, Some(Code::NotScrapedYet)),
    ];
    let targets = judged(&world, raws, T0 + 5_000);
    let got: Vec<_> = targets.iter().map(|target| (target.proof, code_of(target))).collect();
    assert_eq!(got, expected);
    assert!(targets.iter().all(|target| !target.evidence.text.is_empty()));
}

#[test]
fn without_the_pod_of_prometheus_nothing_is_proven() {
    let mut world = world();
    world.both(T0, |reporter| scrape(reporter, PROM, CART));
    let scraper = Scraper { id: "http://x".into(), targets: Arc::new(vec![raw()]), ..Scraper::default() };
    let facts = Facts { store: &world.store, directory: &world.directory, now: T0 + 5_000 };
    let target = prove(&scraper, &facts).0.remove(0);
    assert_eq!((target.proof, code_of(&target)), (Proof::Unproven, Some(Code::ScraperUnknown)));
}

#[test]
fn an_unenrolled_prometheus_makes_its_scrapes_plaintext_with_the_cure() {
    let out = Pod { enrolled: false, ..pod(PROM.0, PROM.1, "n1", 1) };
    let mut world = World::new([out, pod(CART.0, CART.1, "n2", 2)]);
    world.hear("n2", T0, &[scrape(Reporter::Destination, PROM, CART).plaintext("")]);
    let target = judged(&world, vec![raw()], T0 + 5_000).remove(0);
    let why = target.why.unwrap();
    assert_eq!((target.proof, why.code), (Proof::Plaintext, Code::SrcNotEnrolled));
    assert_eq!(why.command, "kubectl label namespace monitoring istio.io/dataplane-mode=ambient");
}

#[test]
fn another_prometheus_does_not_borrow_a_proof() {
    let other = ("monitoring", "prometheus-1");
    let mut world = World::new([
        pod(PROM.0, PROM.1, "n1", 1),
        pod(other.0, other.1, "n1", 3),
        pod(CART.0, CART.1, "n2", 2),
    ]);
    world.both(T0, |reporter| scrape(reporter, other, CART));
    assert_ne!(one_of(&world).0, Proof::Proven);
}

#[test]
fn csv_has_a_line_a_target_and_no_formulas() {
    let mut world = world();
    world.both(T0, |reporter| scrape(reporter, PROM, CART));
    let evil = RawTarget { pool: "=HYPERLINK(\"x\"),\"y\"".into(), ..raw() };
    let targets = judged(&world, vec![raw(), evil], T0 + 5_000);
    let text = csv(&targets);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[1].contains(",proven,,spiffe://cluster.local/ns/monitoring/sa/default,"), "{}", lines[1]);
    assert!(lines[2].contains("\"'=HYPERLINK(\"\"x\"\"),\"\"y\"\"\""), "{}", lines[2]);
}
