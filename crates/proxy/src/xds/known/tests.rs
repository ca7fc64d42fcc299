use mesh::{NetworkAddress, Scope, Service};
use wire::type_url::{ADDRESS, AUTHORIZATION};

use super::*;

fn workload(name: &str, node: &str) -> Workload {
    let identity = Identity::new("cluster.local", "ns", name).unwrap();
    let mut workload = Workload::new(format!("c//Pod/ns/{name}"), name, identity);
    workload.addresses = vec!["10.0.0.1".parse().unwrap()];
    workload.node = node.into();
    workload.tunnel = Tunnel::Hbone;
    workload
}

fn resource(type_url: &str, name: &str, value: Vec<u8>) -> Resource {
    Resource {
        name: name.into(),
        version: "v1".into(),
        resource: Some(prost_types::Any { type_url: type_url.into(), value }),
        ..Resource::default()
    }
}

fn of_workload(workload: &Workload) -> Resource {
    resource(ADDRESS, &workload.uid, wire::workload::Address::from(workload).encode_to_vec())
}

fn response(resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    let removed_resources = removed.iter().map(|name| (*name).to_owned()).collect();
    DeltaDiscoveryResponse { resources, removed_resources, ..DeltaDiscoveryResponse::default() }
}

#[test]
fn what_is_told_is_known_with_its_version_and_what_is_removed_is_not() {
    let (mut known, _) = Known::new(Some("n"));
    let service = Service::new("web", ServiceKey::new("ns", "web.ns.svc"));
    let a = workload("a", "n");
    let told = vec![
        of_workload(&a),
        resource(ADDRESS, "ns/web.ns.svc", wire::workload::Address::from(&service).encode_to_vec()),
    ];
    assert!(known.apply(ADDRESS, response(told, &[])).is_empty());
    assert_eq!(known.versions(ADDRESS).len(), 2);
    assert_eq!(known.versions(ADDRESS)["c//Pod/ns/a"], "v1");
    let view = known.view();
    assert!(view.service(&service.key).is_some());
    assert!(view.workload_by_address(&NetworkAddress::new("", a.addresses[0])).is_some());
    assert!(
        known.apply(ADDRESS, response(vec![], &["c//Pod/ns/a", "ns/web.ns.svc", "never/was"])).is_empty()
    );
    assert!(known.versions(ADDRESS).is_empty());
    assert_eq!(known.view().workloads().count() + known.view().services().count(), 0);
}

#[test]
fn each_resource_is_judged_alone_and_a_bad_update_keeps_the_old_object() {
    let (mut known, _) = Known::new(None);
    assert!(known.apply(ADDRESS, response(vec![of_workload(&workload("a", "n"))], &[])).is_empty());
    let told = vec![
        resource(ADDRESS, "c//Pod/ns/a", vec![0xff]),
        resource(ADDRESS, "empty", vec![]),
        resource("another.type", "other", vec![]),
        Resource { name: "bare".into(), ..Resource::default() },
        of_workload(&workload("b", "n")),
    ];
    let rejected = known.apply(ADDRESS, response(told, &[]));
    assert_eq!(rejected.len(), 4);
    for (reason, name) in rejected.iter().zip(["c//Pod/ns/a", "empty", "other", "bare"]) {
        assert!(reason.starts_with(&format!("{name}: ")), "{reason}");
    }
    assert!(known.view().workload("c//Pod/ns/a").is_some());
    assert!(known.view().workload("c//Pod/ns/b").is_some());
}

#[test]
fn certificates_are_wanted_for_tunnelled_workloads_of_this_node() {
    let (mut known, local) = Known::new(Some("here"));
    let mut plain = workload("plain", "here");
    plain.tunnel = Tunnel::None;
    let told =
        vec![of_workload(&workload("a", "here")), of_workload(&workload("b", "there")), of_workload(&plain)];
    known.apply(ADDRESS, response(told, &[]));
    assert_eq!(**local.borrow(), BTreeSet::from([workload("a", "here").identity]));
    // Moved to another node.
    known.apply(ADDRESS, response(vec![of_workload(&workload("a", "there"))], &[]));
    assert!(local.borrow().is_empty());
}

#[test]
fn policies_come_and_go_by_their_names() {
    let (mut known, _) = Known::new(None);
    let policy = Policy {
        name: "p".into(),
        namespace: "ns".into(),
        scope: Scope::Global,
        action: mesh::Action::Deny,
        rules: vec![],
        dry_run: false,
    };
    let told = resource(AUTHORIZATION, "ns/p", wire::security::Authorization::from(&policy).encode_to_vec());
    assert!(known.apply(AUTHORIZATION, response(vec![told], &[])).is_empty());
    assert!(known.view().policy("ns/p").is_some());
    known.apply(AUTHORIZATION, response(vec![], &["ns/p"]));
    assert!(known.view().policy("ns/p").is_none());
}

fn address(ip: &str) -> Lookup {
    Lookup::Address(NetworkAddress::new("", ip.parse().unwrap()))
}

fn by_name() -> Known {
    let mut known = Known::new(Some("n")).0;
    known.on_demand();
    known
}

#[test]
fn what_is_asked_by_name_is_told_once_and_what_does_not_exist_is_known_not_to() {
    let mut known = by_name();
    known.ask([address("10.0.0.1"), address("10.0.0.2")]);
    known.ask([address("10.0.0.1")]);
    assert_eq!(known.questions(), Some((vec!["/10.0.0.1".into(), "/10.0.0.2".into()], vec![])));
    assert_eq!(known.questions(), None);
    assert!(known.view().lacks(&address("10.0.0.1")) && known.view().lacks(&address("10.0.0.2")));
    known.apply(ADDRESS, response(vec![of_workload(&workload("a", "other"))], &["/10.0.0.2"]));
    assert!(!known.view().lacks(&address("10.0.0.1")) && !known.view().lacks(&address("10.0.0.2")));
    // It goes, or moves: nobody has to ask again, and nothing is taken for unknown.
    known.apply(ADDRESS, response(vec![], &["c//Pod/ns/a"]));
    let view = known.view();
    assert!(!view.has(&address("10.0.0.1")) && !view.lacks(&address("10.0.0.1")), "it is known to be gone");
    known.apply(ADDRESS, response(vec![of_workload(&workload("a", "other"))], &[]));
    assert!(known.view().has(&address("10.0.0.1")), "and to be back");
    let mut again: Vec<String> = known.all_questions().unwrap();
    again.sort();
    assert_eq!(again, ["/10.0.0.1", "/10.0.0.2"], "a new stream hears of all");
}

#[test]
fn a_refused_answer_is_not_taken_for_absence() {
    let mut known = by_name();
    known.ask([address("10.0.0.1")]);
    let told = Resource { aliases: vec!["/10.0.0.1".into()], ..resource(ADDRESS, "c//Pod/ns/a", vec![0xff]) };
    assert_eq!(known.apply(ADDRESS, response(vec![told], &[])).len(), 1);
    assert!(known.view().lacks(&address("10.0.0.1")), "otherwise calls would leave in plaintext");
}

#[test]
fn the_services_of_this_nodes_workloads_are_asked_for_before_anybody_calls_them() {
    let mut known = by_name();
    let mut here = workload("a", "n");
    here.services.insert(ServiceKey::new("ns", "web.ns.svc"), Vec::new());
    known.apply(ADDRESS, response(vec![of_workload(&here)], &[]));
    assert_eq!(known.questions(), Some((vec!["ns/web.ns.svc".into()], vec![])));
    let mut elsewhere = workload("b", "m");
    elsewhere.services.insert(ServiceKey::new("ns", "other.ns.svc"), Vec::new());
    known.apply(ADDRESS, response(vec![of_workload(&elsewhere)], &[]));
    assert_eq!(known.questions(), None);
}

#[test]
fn an_application_that_scans_addresses_does_not_fill_the_memory() {
    let mut known = by_name();
    let ips =
        |from: u32| (from..from + 40_000).map(|n| std::net::Ipv4Addr::from(0x0a00_0000 + n).to_string());
    for from in [0, 40_000] {
        known.ask(ips(from).map(|ip| address(&ip)));
        known.questions().unwrap();
        let removed: Vec<String> = ips(from).map(|ip| format!("/{ip}")).collect();
        let removed: Vec<&str> = removed.iter().map(String::as_str).collect();
        known.apply(ADDRESS, response(vec![], &removed));
    }
    assert_eq!(known.view().absent(), 65_536);
    let (subscribe, unsubscribe) = known.questions().unwrap();
    assert_eq!((subscribe.len(), unsubscribe.len()), (0, 80_000 - 65_536));
    assert!(
        known.view().lacks(&address("10.0.0.0")),
        "the oldest is forgotten, and would be asked for again"
    );
}

#[test]
fn a_local_mesh_is_known_from_the_start_and_its_pods_get_certificates() {
    let (mut known, identities) = Known::new(Some("n"));
    known.take_in(wire::Local {
        workloads: vec![workload("a", "n"), workload("b", "m")],
        ..wire::Local::default()
    });
    assert_eq!(known.view().workloads().count(), 2);
    assert_eq!(identities.borrow().iter().map(|id| id.service_account()).collect::<Vec<_>>(), ["a"]);
}
