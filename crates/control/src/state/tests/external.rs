//! ServiceEntries, WorkloadEntries and the mesh configuration.

use prost::Message;
use serde_json::Value;

use super::told::*;
use super::*;

fn external(over: Value) -> Value {
    let mut base = json!({ "spec": {
        "hosts": ["api.example"], "resolution": "STATIC", "addresses": ["192.0.2.10", "198.51.100.0/24"],
        "ports": [{ "name": "https", "number": 443, "protocol": "TLS", "targetPort": 8443 }],
        "endpoints": [
            { "address": "203.0.113.1", "ports": { "https": 9443 }, "serviceAccount": "api", "weight": 3, "locality": "r/z" },
            { "address": "backend.example" },
        ],
    } });
    fixtures::merge(&mut base, over);
    base
}

#[test]
fn a_service_entry_is_a_service_with_its_own_endpoints() {
    let mut world = World::new(vec![entry("api", external(json!({})))]);
    let service = world.service("shop/api.example");
    assert_eq!((service.hostname.as_str(), service.canonical), ("api.example", true));
    assert_eq!(service.addresses.iter().map(|one| one.length).collect::<Vec<_>>(), [None, Some(24)]);
    assert_eq!(
        (service.ports[0].service_port, service.ports[0].target_port, service.ports[0].app_protocol),
        (443, 8443, 5)
    );
    let uid = |address: &str| format!("Kubernetes/networking.istio.io/ServiceEntry/shop/api/{address}");
    let first = world.workload(&uid("203.0.113.1"));
    assert_eq!((first.service_account.as_str(), first.capacity), ("api", Some(3)));
    assert_eq!(first.services["shop/api.example"].ports[0].target_port, 9443);
    assert_eq!(first.locality.unwrap().zone, "z");
    let second = world.workload(&uid("backend.example"));
    assert_eq!((second.hostname.as_str(), second.addresses.len()), ("backend.example", 0));
    assert_eq!(second.services["shop/api.example"].ports[0].target_port, 8443);

    let (_, removed, _) = world.hear(vec![entry("api", external(json!({ "spec": { "endpoints": [] } })))]);
    assert_eq!(removed.len(), 2);
    let (_, removed, _) = world.hear(vec![Event::Entries(Delta::Gone(Key::new("shop", "api")))]);
    assert_eq!(removed, ["shop/api.example"]);
    assert!(world.state.snapshot.addresses.is_empty() && world.state.snapshot.statuses.is_empty());
}

#[test]
fn names_to_resolve_are_endpoints_themselves_and_none_passes_through() {
    let dns =
        json!({ "spec": { "resolution": "DNS", "endpoints": [], "hosts": ["a.example", "b.example"] } });
    let mut world = World::new(vec![entry("api", external(dns))]);
    for host in ["a.example", "b.example"] {
        let workload =
            world.workload(&format!("Kubernetes/networking.istio.io/ServiceEntry/shop/api/{host}"));
        assert_eq!(workload.services.keys().collect::<Vec<_>>(), [&format!("shop/{host}")]);
    }
    world.hear(vec![entry("api", external(json!({ "spec": { "resolution": "NONE", "endpoints": [] } })))]);
    let balancing = world.service("shop/api.example").load_balancing.unwrap();
    assert_eq!((balancing.mode, balancing.health_policy), (3, 1));
    // An address that is none leaves the whole entry out.
    world.hear(vec![entry("api", external(json!({ "spec": { "addresses": ["no address"] } })))]);
    assert!(world.published("shop/api.example").is_none());
}

#[test]
fn of_two_with_a_host_the_oldest_has_it_and_a_kubernetes_service_has_it_before_all() {
    let aged = |name: &str, year: u32, over: Value| {
        let mut object =
            external(json!({ "metadata": { "creationTimestamp": format!("{year}-01-01T00:00:00Z") } }));
        fixtures::merge(&mut object, over);
        entry(name, object)
    };
    let mut world = World::new(vec![
        aged("young", 2025, json!({ "spec": { "addresses": ["192.0.2.1"] } })),
        aged("old", 2020, json!({ "spec": { "addresses": ["192.0.2.2"] } })),
    ]);
    assert_eq!(world.service("shop/api.example").name, "old");
    let (status, _, message) =
        world.condition(StatusKind::ServiceEntry, "young", "ambit.io/HostOwned").unwrap();
    assert!(!status && message.contains("ServiceEntry shop/old"), "{message}");
    assert!(world.published("Kubernetes/networking.istio.io/ServiceEntry/shop/young/203.0.113.1").is_none());

    // In another namespace it is a service too, and exactly one of them is meant by default.
    let mut other = fixtures::entry(
        "older",
        external(json!({ "metadata": { "creationTimestamp": "2019-01-01T00:00:00Z" } })),
    );
    other.key = Key::new("else", "older");
    world.hear(vec![Event::Entries(Delta::Put(other))]);
    assert!(world.service("else/api.example").canonical && !world.service("shop/api.example").canonical);

    world.hear(vec![Event::Entries(Delta::Gone(Key::new("shop", "old")))]);
    assert_eq!(world.service("shop/api.example").name, "young");

    let own = json!({ "spec": { "hosts": ["web.shop.svc.cluster.local"] } });
    world.hear(vec![aged("web-too", 2010, own)]);
    assert_eq!(world.service(SERVICE).name, "web-too");
    world.hear(vec![service(json!({}))]);
    assert_eq!((world.service(SERVICE).name.as_str(), world.service(SERVICE).canonical), ("web", true));
    world.hear(vec![Event::Services(Delta::Gone(Key::new("shop", "web")))]);
    assert_eq!(world.service(SERVICE).name, "web-too");
}

#[test]
fn pods_and_workload_entries_serve_what_selects_them() {
    let selecting =
        json!({ "spec": { "endpoints": [], "workloadSelector": { "labels": { "app": "web" } } } });
    let written = json!({
        "metadata": { "labels": { "app": "web" }, "annotations": { "istio.io/autoRegistrationGroup": "vms" } },
        "spec": { "address": "203.0.113.7", "labels": { "app": "not this", "version": "v2" }, "ports": { "http": 8081 } },
    });
    let mut world = World::new(vec![
        entry("api", external(selecting)),
        service(json!({})),
        Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", json!({})))),
        Event::Written(Delta::Put(fixtures::written("vm", written))),
    ]);
    let pod = world.workload(WEB_0);
    assert_eq!(pod.services["shop/api.example"].ports[0].target_port, 8443);
    const VM: &str = "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm";
    let vm = world.workload(VM);
    assert_eq!(
        (vm.workload_name.as_str(), vm.canonical_name.as_str(), vm.canonical_revision.as_str()),
        ("vms", "web", "v2")
    );
    assert_eq!(vm.services[SERVICE].ports[0].target_port, 8081);
    assert_eq!(vm.services["shop/api.example"].ports[0].target_port, 8443);
    world.hear(vec![Event::Entries(Delta::Gone(Key::new("shop", "api")))]);
    assert_eq!(world.workload(WEB_0).services.len(), 1);
    assert_eq!(world.workload(VM).services.len(), 1);
    let (_, removed, _) = world.hear(vec![Event::Written(Delta::Gone(Key::new("shop", "vm")))]);
    assert_eq!(removed, [VM]);
}

#[test]
fn a_service_entry_without_addresses_is_given_some_that_stay() {
    let bare = |host: &str, status: Value| {
        external(
            json!({ "spec": { "hosts": [host], "addresses": [], "resolution": "DNS", "endpoints": [] }, "status": status }),
        )
    };
    let mut world =
        World::new(vec![entry("a", bare("a.example", json!({}))), entry("b", bare("b.example", json!({})))]);
    let given =
        |world: &World, name: &str| world.wanted(StatusKind::ServiceEntry, name).unwrap().addresses.clone();
    let (a, b) = (given(&world, "a"), given(&world, "b"));
    assert!(a.len() == 2 && a[0].1.is_ipv4() && a[1].1.is_ipv6() && a[0] != b[0]);
    // Not used before they stand on the object, so that replicas agree.
    assert!(world.service("shop/a.example").addresses.is_empty());
    let stands = |given: &[(Arc<str>, IpAddr)]| {
        let list: Vec<Value> =
            given.iter().map(|(host, ip)| json!({ "host": **host, "value": ip.to_string() })).collect();
        json!({ "addresses": list })
    };
    world.hear(vec![entry("a", bare("a.example", stands(&a)))]);
    assert_eq!(world.service("shop/a.example").addresses.len(), 2);
    assert!(world.wanted(StatusKind::ServiceEntry, "a").is_none());
    // A younger one that claims the same gets others.
    let copied: Vec<(Arc<str>, IpAddr)> = a.iter().map(|(_, ip)| (Arc::from("b.example"), *ip)).collect();
    world.hear(vec![entry("b", bare("b.example", stands(&copied)))]);
    assert_ne!(given(&world, "b")[0].1, a[0].1);
    assert!(world.wanted(StatusKind::ServiceEntry, "a").is_none());
}

#[test]
fn a_namespace_that_is_not_discovered_is_not_there_but_the_root_namespace_always_is() {
    let mut world = two_pods();
    let (_, removed, _) =
        world.hear(vec![mesh_config("discoverySelectors:\n- matchLabels: {mesh: \"yes\"}\n")]);
    assert_eq!(removed.len(), 3);
    let (added, _, _) = world.hear(vec![namespace(named(json!({ "mesh": "yes" })))]);
    assert_eq!(added.len(), 3);
    let global =
        || Event::Authorizations(Delta::Put(fixtures::authorization("ambit-system", "p", json!({}))));
    let (_, _, policies) = world.hear(vec![global()]);
    assert_eq!(policies, ["ambit-system/p"]);
    let (_, removed, _) = world.hear(vec![namespace(json!({}))]);
    assert_eq!(removed.len(), 3);
}

#[test]
fn the_mesh_configuration_names_the_root_namespace_and_who_sees_external_services() {
    let mut world = two_pods();
    world.hear(vec![
        mesh_config("rootNamespace: security\nserviceEntryVisibility:\n  policies:\n  - namespaceSelectors: [{matchLabels: {private: \"yes\"}}]\n    visibility: NAMESPACE\n"),
        Event::Peers(Delta::Put(fixtures::peer("security", "all", json!({ "mtls": { "mode": "STRICT" } })))),
        entry("api", external(json!({}))),
    ]);
    assert_eq!(world.workload(WEB_0).authorization_policies, ["security/istio_converted_static_strict"]);
    assert_eq!(world.service("shop/api.example").visibility, 0);
    world.hear(vec![namespace(named(json!({ "private": "yes" })))]);
    assert_eq!(world.service("shop/api.example").visibility, 1);
    assert!(!world.service("shop/api.example").canonical);
    world.hear(vec![mesh_config("serviceEntryVisibility: {default: NONE}\n")]);
    assert!(world.published("shop/api.example").is_none());
    assert!(world.workload(WEB_0).authorization_policies.is_empty());
}

/// Case D08.
#[test]
fn a_service_without_selector_follows_its_hand_made_slice_with_the_pods_identity_and_port() {
    let db = || {
        let over = json!({ "spec": { "selector": null, "ports": [{ "name": "pg", "port": 5432 }] } });
        Event::Services(Delta::Put(fixtures::service("db", "10.1.0.9", over)))
    };
    let slice = |endpoint: Value| {
        let over =
            json!({ "endpoints": [endpoint], "ports": [{ "name": "pg", "port": 6432, "protocol": "TCP" }] });
        Event::Slices(Delta::Put(fixtures::slice("db-1", "db", over)))
    };
    let by_name = |pod: &str| json!({ "addresses": ["10.0.0.1"], "targetRef": { "kind": "Pod", "name": pod, "namespace": "shop", "uid": format!("uid-{pod}") } });
    const DB: &str = "shop/db.shop.svc.cluster.local";
    let mut world = two_pods();
    world.hear(vec![db(), slice(by_name("web-0"))]);
    assert_eq!(world.workload(WEB_0).services[DB].ports[0].target_port, 6432);
    // The same by address alone, and then the other pod: exactly the two pods change.
    let (changed, _, _) = world.hear(vec![slice(json!({ "addresses": ["10.0.0.1"] }))]);
    assert!(changed.is_empty(), "{changed:?}");
    let (changed, _, _) = world.hear(vec![slice(json!({ "addresses": ["10.0.0.2"] }))]);
    assert_eq!(changed, [WEB_0, WEB_1]);
    assert!(!world.workload(WEB_0).services.contains_key(DB));
    assert_eq!(world.workload(WEB_1).services[DB].ports[0].target_port, 6432);
    // And a place outside of the cluster, of which nothing is known.
    let (changed, _, _) = world.hear(vec![slice(json!({ "addresses": ["192.0.2.1"] }))]);
    let outside = "Kubernetes/discovery.k8s.io/EndpointSlice/shop/db-1/192.0.2.1";
    assert_eq!(changed, [WEB_1, outside]);
    assert_eq!(world.workload(outside).tunnel_protocol, 0);
}

/// Case D02.
#[test]
fn a_port_exception_alone_holds_under_a_mesh_wide_strict() {
    let strict = Event::Peers(Delta::Put(fixtures::peer(
        "ambit-system",
        "all",
        json!({ "mtls": { "mode": "STRICT" } }),
    )));
    let exception = json!({ "selector": { "matchLabels": { "app": "web" } }, "portLevelMtls": { "9443": { "mode": "PERMISSIVE" } } });
    let unset =
        Event::Peers(Delta::Put(fixtures::peer("shop", "unset", json!({ "mtls": { "mode": "UNSET" } }))));
    let mut world = two_pods();
    world.hear(vec![strict, Event::Peers(Delta::Put(fixtures::peer("shop", "hook", exception)))]);
    for _ in 0..2 {
        assert_eq!(world.workload(WEB_0).authorization_policies, ["shop/converted_peer_authentication_hook"]);
        let policy = world.state.snapshot.policies.get("shop/converted_peer_authentication_hook").unwrap();
        let policy = wire::xds::Resource::decode(&policy.bytes[..]).unwrap().resource.unwrap();
        let policy = wire::security::Authorization::decode(&policy.value[..]).unwrap();
        let ports: Vec<u32> = policy.rules[0]
            .clauses
            .iter()
            .flat_map(|clause| clause.matches.iter().flat_map(|one| one.not_destination_ports.clone()))
            .collect();
        assert_eq!(ports, [9443]);
        world.hear(vec![unset.clone()]);
    }
}

#[test]
fn a_policy_that_cannot_be_read_in_a_new_list_keeps_its_last_form() {
    let mut world = two_pods();
    world.hear(vec![policy(json!({ "action": "DENY", "rules": [{}] }))]);
    let unreadable = [Key::new("shop", "p")].into();
    let told = world.hear(vec![Event::Authorizations(Delta::AllBut(vec![], unreadable))]);
    assert_eq!(told, none());
    assert!(world.state.snapshot.policies.get("shop/p").is_some());
    world.hear(vec![Event::Authorizations(Delta::All(vec![]))]);
    assert!(world.state.snapshot.policies.get("shop/p").is_none());
}

/// Case D17.
#[test]
fn heartbeats_in_annotations_send_nothing() {
    let beat = |turn: u32| {
        let over = json!({ "metadata": { "annotations": { "lease": turn.to_string() }, "resourceVersion": turn.to_string() } });
        let slice = json!({ "metadata": { "annotations": { "lease": turn.to_string() } }, "endpoints": [{ "addresses": ["192.0.2.9"] }] });
        vec![
            Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", over))),
            Event::Slices(Delta::Put(fixtures::slice("web-s", "web", slice))),
        ]
    };
    let mut world = two_pods();
    world.hear(beat(0));
    for turn in 1..100 {
        for event in beat(turn) {
            world.state.apply(event);
        }
        assert!(world.state.flush().is_none(), "turn {turn}");
    }
    let (changed, _, _) =
        world.hear(vec![Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.8", json!({}))))]);
    assert_eq!(changed, [WEB_0]);
}

/// Case D27: told at once, before the process has ended.
#[test]
fn a_pod_that_is_going_away_is_no_endpoint_from_the_moment_it_is_told_to_go() {
    let mut world = two_pods();
    let going = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } });
    let (changed, _, _) =
        world.hear(vec![Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", going)))]);
    assert_eq!(changed, [WEB_0]);
    assert_eq!(world.workload(WEB_0).status, 1);
}
