//! What each change of an object publishes, and what it does not.

mod external;
mod hostile;
mod network;
mod status;
mod told;
mod waypoints;

use serde_json::json;

use super::*;
use crate::fixtures::{self, settings};

/// A state that has been told everything once, and the change number it is at.
struct World {
    state: State,
    seen: u64,
}

impl World {
    fn new(events: Vec<Event>) -> Self {
        let mut world = Self { state: State::new(settings()), seen: 0 };
        for event in [
            Event::Nodes(Delta::All(vec![])),
            Event::Namespaces(Delta::All(vec![])),
            Event::Services(Delta::All(vec![])),
            Event::Slices(Delta::All(vec![])),
            Event::Pods(Delta::All(vec![])),
            Event::Authorizations(Delta::All(vec![])),
            Event::Peers(Delta::All(vec![])),
            Event::Entries(Delta::All(vec![])),
            Event::Written(Delta::All(vec![])),
            Event::Gateways(Delta::All(vec![])),
            Event::Classes(Delta::All(vec![])),
            Event::Mesh(Delta::All(vec![])),
        ] {
            world.state.apply(event);
        }
        world.hear(events);
        world
    }

    /// Tells of something; returns names of addresses updated and removed, and of policies updated or sent again.
    fn hear(&mut self, events: Vec<Event>) -> (Vec<String>, Vec<String>, Vec<String>) {
        for event in events {
            self.state.apply(event);
        }
        self.state.flush();
        let snapshot = &self.state.snapshot;
        let (addresses, policies) =
            (snapshot.addresses.since(self.seen).unwrap(), snapshot.policies.since(self.seen).unwrap());
        self.seen = snapshot.change;
        let names = |resources: Vec<Arc<Resource>>| -> Vec<String> {
            let mut names: Vec<String> = resources.iter().map(|resource| resource.name.to_string()).collect();
            names.sort();
            names
        };
        let removed = addresses.removed.iter().map(|name| name.to_string()).collect();
        (names(addresses.updated), removed, names([policies.updated, policies.again].concat()))
    }
}

const WEB_0: &str = "Kubernetes//Pod/shop/web-0";
const WEB_1: &str = "Kubernetes//Pod/shop/web-1";
const SERVICE: &str = "shop/web.shop.svc.cluster.local";

fn none() -> (Vec<String>, Vec<String>, Vec<String>) {
    Default::default()
}

fn updated(names: &[&str]) -> (Vec<String>, Vec<String>, Vec<String>) {
    (names.iter().map(|name| name.to_string()).collect(), vec![], vec![])
}

fn two_pods() -> World {
    World::new(vec![
        Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", json!({})))),
        Event::Pods(Delta::Put(fixtures::pod("web-1", "10.0.0.2", json!({})))),
        Event::Services(Delta::Put(fixtures::service("web", "10.1.0.1", json!({})))),
    ])
}

#[test]
fn nothing_is_synced_before_every_input_has_been_listed() {
    let mut state = State::new(settings());
    state.apply(Event::Pods(Delta::All(vec![fixtures::pod("web-0", "10.0.0.1", json!({}))])));
    let snapshot = state.flush().unwrap();
    assert!(!snapshot.synced() && !snapshot.waiting_for.unwrap().contains(&"pods"));
    assert!(two_pods().state.snapshot.synced());
}

#[test]
fn the_same_object_again_publishes_nothing() {
    let mut world = two_pods();
    assert_eq!(
        world.hear(vec![Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", json!({}))))]),
        none()
    );
    let restarted =
        vec![fixtures::pod("web-0", "10.0.0.1", json!({})), fixtures::pod("web-1", "10.0.0.2", json!({}))];
    assert_eq!(world.hear(vec![Event::Pods(Delta::All(restarted))]), none());
}

#[test]
fn a_changed_pod_publishes_itself_and_nothing_else() {
    let mut world = two_pods();
    let unready = json!({ "status": { "conditions": [] } });
    let event = Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", unready)));
    assert_eq!(world.hear(vec![event]), updated(&[WEB_0]));
}

#[test]
fn a_pod_that_is_gone_or_finished_is_removed() {
    let mut world = two_pods();
    let gone = Event::Pods(Delta::Gone(Key::new("shop", "web-0")));
    assert_eq!(world.hear(vec![gone]), (vec![], vec![WEB_0.into()], vec![]));
    let finished = json!({ "status": { "phase": "Succeeded" } });
    let finished = Event::Pods(Delta::Put(fixtures::pod("web-1", "10.0.0.2", finished)));
    assert_eq!(world.hear(vec![finished]), (vec![], vec![WEB_1.into()], vec![]));
}

#[test]
fn what_a_new_list_does_not_name_is_gone() {
    let mut world = two_pods();
    let list = vec![fixtures::pod("web-1", "10.0.0.2", json!({}))];
    assert_eq!(world.hear(vec![Event::Pods(Delta::All(list))]), (vec![], vec![WEB_0.into()], vec![]));
}

#[test]
fn a_services_ports_change_it_and_the_pods_it_selects() {
    let mut world = two_pods();
    let ports = json!({ "spec": { "ports": [{ "name": "http", "port": 81, "targetPort": 8080 }] } });
    let event = Event::Services(Delta::Put(fixtures::service("web", "10.1.0.1", ports)));
    assert_eq!(world.hear(vec![event]), updated(&[WEB_0, WEB_1, SERVICE]));
    let vip = json!({ "spec": { "ports": [{ "name": "http", "port": 81, "targetPort": 8080 }], "clusterIPs": ["10.1.0.7"] } });
    let event = Event::Services(Delta::Put(fixtures::service("web", "10.1.0.1", vip)));
    assert_eq!(world.hear(vec![event]), updated(&[SERVICE]));
}

#[test]
fn a_service_that_takes_all_endpoints_has_the_unhealthy_ones_sent_again() {
    let mut world = two_pods();
    let unready = json!({ "status": { "conditions": [] } });
    world.hear(vec![Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", unready)))]);
    let version = |world: &World| world.state.snapshot.addresses.get(WEB_0).unwrap().version.clone();
    let before = version(&world);
    let all = json!({ "spec": { "publishNotReadyAddresses": true } });
    let event = Event::Services(Delta::Put(fixtures::service("web", "10.1.0.1", all)));
    assert_eq!(world.hear(vec![event]), updated(&[WEB_0, SERVICE]));
    assert_ne!(version(&world), before, "nor is it withheld from a client that comes back");
}

#[test]
fn a_nodes_zone_changes_the_workloads_on_it() {
    let mut world = two_pods();
    let zone = json!({ "topology.kubernetes.io/zone": "z" });
    let event = |labels| Event::Nodes(Delta::Put(fixtures::node("n1", labels)));
    assert_eq!(world.hear(vec![event(zone.clone())]), updated(&[WEB_0, WEB_1]));
    let mut heartbeat = zone;
    fixtures::merge(&mut heartbeat, json!({ "beat": "1" }));
    assert_eq!(world.hear(vec![event(heartbeat)]), none());
}

#[test]
fn the_network_of_the_system_namespace_is_part_of_every_address() {
    let mut world = two_pods();
    let labels = json!({ "metadata": { "labels": { "topology.istio.io/network": "net" } } });
    let other = Event::Namespaces(Delta::Put(fixtures::namespace("shop", labels.clone())));
    assert_eq!(world.hear(vec![other]), none());
    let system = Event::Namespaces(Delta::Put(fixtures::namespace("ambit-system", labels)));
    assert_eq!(world.hear(vec![system]), updated(&[WEB_0, WEB_1, SERVICE]));
}

#[test]
fn a_service_without_selector_reaches_exactly_the_pod_of_its_slice() {
    let mut world = two_pods();
    let manual = fixtures::service("manual", "10.1.0.2", json!({ "spec": { "selector": null } }));
    world.hear(vec![Event::Services(Delta::Put(manual))]);
    let target = |uid: &str| {
        let endpoint = json!({
            "addresses": ["10.0.0.1"],
            "targetRef": { "kind": "Pod", "namespace": "shop", "name": "web-0", "uid": uid },
        });
        Event::Slices(Delta::Put(fixtures::slice("manual-1", "manual", json!({ "endpoints": [endpoint] }))))
    };
    assert_eq!(world.hear(vec![target("another")]), none());
    assert_eq!(world.hear(vec![target("uid-web-0")]), updated(&[WEB_0]));
    let gone = Event::Slices(Delta::Gone(Key::new("shop", "manual-1")));
    assert_eq!(world.hear(vec![gone]), updated(&[WEB_0]));
}

#[test]
fn endpoints_that_are_no_pods_come_and_go_with_their_slice_and_service() {
    let mut world = World::new(vec![]);
    let name = "Kubernetes/discovery.k8s.io/EndpointSlice/shop/db-1/192.0.2.1";
    let slice = fixtures::slice("db-1", "db", json!({ "endpoints": [{ "addresses": ["192.0.2.1"] }] }));
    assert_eq!(world.hear(vec![Event::Slices(Delta::Put(slice))]), none());
    let service = fixtures::service("db", "10.1.0.3", json!({ "spec": { "selector": null } }));
    let (got, ..) = world.hear(vec![Event::Services(Delta::Put(service))]);
    assert_eq!(got, [name, "shop/db.shop.svc.cluster.local"]);
    let (_, removed, _) = world.hear(vec![Event::Services(Delta::Gone(Key::new("shop", "db")))]);
    assert_eq!(removed, ["shop/db.shop.svc.cluster.local", name]);
}

#[test]
fn a_selector_policy_is_listed_by_the_workloads_it_selects() {
    let mut world = two_pods();
    let spec = json!({ "selector": { "matchLabels": { "app": "web" } }, "action": "DENY", "rules": [{}] });
    let policy = fixtures::authorization("shop", "no", spec);
    let heard = world.hear(vec![Event::Authorizations(Delta::Put(policy))]);
    assert_eq!(heard, (vec![WEB_0.into(), WEB_1.into()], vec![], vec!["shop/no".into()]));
    let heard = world.hear(vec![Event::Authorizations(Delta::Gone(Key::new("shop", "no")))]);
    assert_eq!(heard, (vec![WEB_0.into(), WEB_1.into()], vec![], vec![]));
    assert!(world.state.snapshot.policies.is_empty());
}

#[test]
fn a_policy_is_sent_again_when_it_is_attached_to_another_workload() {
    let mut world = two_pods();
    let spec = json!({ "selector": { "matchLabels": { "tier": "db" } }, "action": "DENY", "rules": [{}] });
    let policy = fixtures::authorization("shop", "no", spec);
    let (addresses, _, policies) = world.hear(vec![Event::Authorizations(Delta::Put(policy))]);
    assert_eq!((addresses.len(), policies.len()), (0, 1));
    let labelled = json!({ "metadata": { "labels": { "tier": "db" } } });
    let event = Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", labelled)));
    assert_eq!(world.hear(vec![event]), (vec![WEB_0.into()], vec![], vec!["shop/no".into()]));
}

#[test]
fn mutual_tls_is_demanded_and_released_by_peer_authentication() {
    let mut world = two_pods();
    let strict = fixtures::peer("shop", "default", json!({ "mtls": { "mode": "STRICT" } }));
    let name = "ambit-system/istio_converted_static_strict";
    let heard = world.hear(vec![Event::Peers(Delta::Put(strict))]);
    assert_eq!(heard, (vec![WEB_0.into(), WEB_1.into()], vec![], vec![name.into()]));
    let heard = world.hear(vec![Event::Peers(Delta::Gone(Key::new("shop", "default")))]);
    assert_eq!(heard, (vec![WEB_0.into(), WEB_1.into()], vec![], vec![]));
    assert!(world.state.snapshot.policies.is_empty());
}

/// A proxy keeps the door shut, or skips the policy, when a workload lists one that it is never sent.
#[test]
fn a_policy_that_is_given_a_target_leaves_the_node_proxies_and_its_workloads_and_comes_back_without() {
    let policy = |targets: serde_json::Value| {
        let spec = json!({
            "selector": { "matchLabels": { "app": "web" } }, "action": "DENY", "rules": [{}], "targetRefs": targets,
        });
        vec![Event::Authorizations(Delta::Put(fixtures::authorization("shop", "p", spec)))]
    };
    let mut world = two_pods();
    for _ in 0..2 {
        world.hear(policy(json!([])));
        assert!(world.state.snapshot.policies.get("shop/p").is_some());
        assert_eq!(world.workload(WEB_0).authorization_policies, ["shop/p"]);
        for kind in ["Gateway", "Service"] {
            world.hear(policy(json!([{ "kind": kind, "name": "web" }])));
            assert!(world.state.snapshot.policies.get("shop/p").is_none(), "{kind}");
            assert!(world.workload(WEB_0).authorization_policies.is_empty(), "{kind}");
        }
    }
}

#[test]
fn aliases_of_the_trust_domain_change_the_policies_that_name_it_and_no_others() {
    let allow = |name: &str, principal: &str| {
        let rules = json!({ "rules": [{ "from": [{ "source": { "principals": [principal] } }] }] });
        Event::Authorizations(Delta::Put(fixtures::authorization("shop", name, rules)))
    };
    let mesh = |text: &str| {
        Event::Mesh(Delta::Put(crate::input::MeshConfig::parse("istio", text).expect("it can be read")))
    };
    let mut world = World::new(vec![
        allow("ours", "old.example/ns/shop/sa/web"),
        allow("theirs", "other.example/ns/shop/sa/web"),
    ]);
    let changed =
        |policies: &[&str]| (vec![], vec![], policies.iter().map(|name| name.to_string()).collect());
    assert_eq!(world.hear(vec![mesh("trustDomainAliases: [old.example]")]), changed(&["shop/ours"]));
    assert_eq!(world.hear(vec![mesh("trustDomainAliases: [old.example, '', 'a/b', '*']")]), changed(&[]));
    assert_eq!(world.hear(vec![mesh("rootNamespace: ambit-system")]), changed(&["shop/ours"]));
}

#[test]
fn the_node_authorizer_knows_who_runs_where() {
    let mut world = two_pods();
    let n1: Arc<str> = "n1".into();
    assert!(world.state.snapshot.pods.runs(&n1, "shop", "web"));
    assert!(!world.state.snapshot.pods.runs(&"n2".into(), "shop", "web"));
    world.hear(vec![Event::Pods(Delta::Gone(Key::new("shop", "web-0")))]);
    assert!(world.state.snapshot.pods.runs(&n1, "shop", "web"));
    let finished = json!({ "status": { "phase": "Failed" } });
    world.hear(vec![Event::Pods(Delta::Put(fixtures::pod("web-1", "10.0.0.2", finished)))]);
    assert!(!world.state.snapshot.pods.runs(&n1, "shop", "web"));
}

#[test]
fn versions_are_the_same_in_every_replica() {
    let versions = |world: World| {
        let mut versions: Vec<(String, String)> = world
            .state
            .snapshot
            .addresses
            .iter()
            .map(|resource| (resource.name.to_string(), resource.version.to_string()))
            .collect();
        versions.sort();
        versions
    };
    assert_eq!(versions(two_pods()), versions(two_pods()));
}

#[test]
fn a_client_that_slept_through_forgotten_removals_must_start_over() {
    let mut shelf = Shelf::remembering(2);
    let service = |name: &str| {
        Resource::service(&mesh::Service::new(name, mesh::ServiceKey::new("shop", format!("{name}.shop"))))
    };
    for (at, name) in (1..).zip(["a", "b", "c"]) {
        assert!(shelf.put(at, service(name)));
    }
    for (at, name) in (4..).zip(["shop/a.shop", "shop/b.shop", "shop/c.shop"]) {
        assert!(shelf.remove(at, name));
    }
    assert_eq!(shelf.since(3).unwrap_err(), TooFarBehind);
    assert_eq!(shelf.since(4).unwrap().removed.len(), 2);
    // A name that comes back is not told as removed any more.
    assert!(shelf.put(7, service("b")));
    let changes = shelf.since(4).unwrap();
    assert_eq!((changes.updated.len(), changes.removed.len()), (1, 1));
}

proptest::proptest! {
    /// Whatever happens and whenever a client looks, in the end it has what is there.
    #[test]
    fn a_client_that_follows_the_log_ends_up_with_what_is_published(
        steps in proptest::collection::vec((0u8..4, 0u8..6, 0u8..3, proptest::bool::ANY), 0..80)
    ) {
        let mut world = World::new(vec![]);
        let mut client: std::collections::BTreeMap<String, String> = Default::default();
        let mut seen = 0;
        let mut look = |state: &State, client: &mut std::collections::BTreeMap<String, String>| {
            let changes = state.snapshot.addresses.since(seen).unwrap();
            for resource in changes.updated.iter().chain(&changes.again) {
                client.insert(resource.name.to_string(), resource.version.to_string());
            }
            for name in changes.removed {
                client.remove(&*name);
            }
            seen = state.snapshot.change;
        };
        for (kind, which, how, looks) in steps {
            let name = format!("x{which}");
            let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": if how == 0 { "True" } else { "False" } }] } });
            let event = match (kind, how) {
                (0, 2) => Event::Pods(Delta::Gone(Key::new("shop", name.as_str()))),
                (0, _) => Event::Pods(Delta::Put(fixtures::pod(&name, &format!("10.0.0.{}", which + 1), ready))),
                (1, 2) => Event::Services(Delta::Gone(Key::new("shop", name.as_str()))),
                (1, _) => Event::Services(Delta::Put(fixtures::service(&name, "10.1.0.1", json!({ "spec": {
                    "publishNotReadyAddresses": how == 1, "selector": if which % 2 == 0 { json!({ "app": "web" }) } else { json!(null) },
                } })))),
                (2, 2) => Event::Slices(Delta::Gone(Key::new("shop", name.as_str()))),
                (2, _) => Event::Slices(Delta::Put(fixtures::slice(&name, &format!("x{}", how), json!({ "endpoints": [
                    { "addresses": [format!("192.0.2.{which}")] },
                ] })))),
                _ => Event::Nodes(Delta::Put(fixtures::node("n1", json!({ "topology.kubernetes.io/zone": format!("z{how}") })))),
            };
            world.state.apply(event);
            world.state.flush();
            if looks {
                look(&world.state, &mut client);
            }
        }
        look(&world.state, &mut client);
        // What is published is what a state that hears only the end of it all would publish.
        let mut fresh = State::new(settings());
        fresh.apply(Event::Nodes(Delta::All(world.state.nodes.values().map(|one| (**one).clone()).collect())));
        fresh.apply(Event::Pods(Delta::All(world.state.snapshot.pods.all().map(|one| (**one).clone()).collect())));
        fresh.apply(Event::Slices(Delta::All(world.state.slices.values().map(|one| (**one).clone()).collect())));
        fresh.apply(Event::Services(Delta::All(world.state.services.values().map(|one| (**one).clone()).collect())));
        fresh.flush();
        let wanted: std::collections::BTreeMap<String, String> = fresh
            .snapshot
            .addresses
            .iter()
            .map(|resource| (resource.name.to_string(), resource.version.to_string()))
            .collect();
        proptest::prop_assert_eq!(client, wanted);
    }
}
