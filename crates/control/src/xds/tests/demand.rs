//! Clients that ask by name (`XDS_ON_DEMAND`).

use super::*;

const SERVICE: &str = "shop/web.shop.svc.cluster.local";

/// A client on node n1 that has asked for nothing yet.
fn opening(names: &[&str], known: BTreeMap<String, String>) -> DeltaDiscoveryRequest {
    let value = prost_types::value::Kind::StringValue("n1".into());
    let fields = [("NODE_NAME".to_string(), prost_types::Value { kind: Some(value) })].into();
    DeltaDiscoveryRequest {
        node: Some(Node { metadata: Some(prost_types::Struct { fields }), ..node() }),
        type_url: ADDRESS.into(),
        resource_names_subscribe: ["*"].iter().chain(names).map(|name| name.to_string()).collect(),
        resource_names_unsubscribe: vec!["*".into()],
        initial_resource_versions: known,
        ..Default::default()
    }
}

fn asking(subscribe: &[&str], unsubscribe: &[&str]) -> DeltaDiscoveryRequest {
    let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
    DeltaDiscoveryRequest {
        type_url: ADDRESS.into(),
        resource_names_subscribe: owned(subscribe),
        resource_names_unsubscribe: owned(unsubscribe),
        ..Default::default()
    }
}

fn sorted(push: &Push) -> Vec<&str> {
    let mut names = names(push);
    names.sort();
    names
}

fn removed(push: &Push) -> Vec<&str> {
    push.removed.iter().map(|name| &**name).collect()
}

fn elsewhere(over: Value) -> Value {
    let mut base = json!({ "spec": { "nodeName": "n2" } });
    fixtures::merge(&mut base, over);
    base
}

/// Pods web-0 on the client's node, web-1 and other elsewhere; service web has web-0 and web-1.
fn world() -> Talk {
    let mut talk = Talk::new();
    talk.happens(Event::Services(Delta::Put(fixtures::service("web", "10.1.0.1", json!({})))));
    talk.pod("web-0", json!({}));
    let at = |ip: &str| json!({ "status": { "podIP": ip, "podIPs": [{ "ip": ip }] } });
    talk.pod("web-1", elsewhere(at("10.0.0.2")));
    let mut other = elsewhere(at("10.0.0.3"));
    fixtures::merge(&mut other, json!({ "metadata": { "labels": { "app": "other" } } }));
    talk.pod("other", other);
    talk
}

#[test]
fn a_client_that_asks_for_nothing_has_the_workloads_of_its_own_node() {
    let mut talk = world();
    assert_eq!(talk.ask(opening(&[], BTreeMap::new())), Heard::Subscribed);
    let pushes = talk.pushes();
    assert_eq!((pushes.len(), sorted(&pushes[0])), (1, vec![WEB]));
    assert!(pushes[0].aliases);
    // Policies are followed as a whole all the same.
    assert_eq!(talk.ask(first(AUTHORIZATION)), Heard::Subscribed);
    assert!(!talk.pushes()[0].aliases);
    // What happens elsewhere is not its business; what happens on its node is.
    talk.pod("other", elsewhere(json!({ "status": { "conditions": [] } })));
    assert!(talk.update().is_empty());
    talk.pod("new", json!({}));
    assert_eq!(sorted(&talk.update()[0]), ["Kubernetes//Pod/shop/new"]);
}

#[test]
fn a_workload_is_found_by_its_uid_and_by_its_address() {
    let mut talk = world();
    talk.ask(opening(&[], BTreeMap::new()));
    talk.pushes();
    talk.ask(asking(&["/10.0.0.3"], &[]));
    let pushes = talk.pushes();
    assert_eq!((sorted(&pushes[0]), removed(&pushes[0])), (vec!["Kubernetes//Pod/shop/other"], vec![]));
    talk.ask(asking(&["Kubernetes//Pod/shop/web-1"], &[]));
    assert_eq!(sorted(&talk.pushes()[0]), ["Kubernetes//Pod/shop/web-1"]);
}

#[test]
fn an_address_of_a_service_brings_the_service_and_all_its_workloads() {
    for name in ["/10.1.0.1", SERVICE] {
        let mut talk = world();
        talk.ask(opening(&[], BTreeMap::new()));
        talk.pushes();
        talk.ask(asking(&[name], &[]));
        let pushes = talk.pushes();
        assert_eq!(sorted(&pushes[0]), [WEB, "Kubernetes//Pod/shop/web-1", SERVICE], "{name}");
        assert!(pushes[0].removed.is_empty());
        // A new endpoint is pushed wherever it runs, and one that leaves the service is taken back.
        talk.pod("web-2", elsewhere(json!({})));
        assert_eq!(sorted(&talk.update()[0]), ["Kubernetes//Pod/shop/web-2"]);
        talk.pod("web-2", elsewhere(json!({ "metadata": { "labels": { "app": "gone" } } })));
        assert_eq!(removed(&talk.update()[0]), ["Kubernetes//Pod/shop/web-2"]);
    }
}

#[test]
fn a_name_of_nothing_is_answered_as_removed_and_told_when_it_appears() {
    let mut talk = world();
    talk.ask(opening(&[], BTreeMap::new()));
    talk.pushes();
    talk.ask(asking(&["/10.9.9.9", "shop/late.shop.svc.cluster.local"], &[]));
    let mut told = removed(&talk.pushes()[0]).into_iter().map(str::to_string).collect::<Vec<_>>();
    told.sort();
    assert_eq!(told, ["/10.9.9.9", "shop/late.shop.svc.cluster.local"]);
    let at = json!({ "status": { "podIP": "10.9.9.9", "podIPs": [{ "ip": "10.9.9.9" }] }, "metadata": { "labels": { "app": "late" } } });
    talk.pod("late-0", elsewhere(at));
    assert_eq!(sorted(&talk.update()[0]), ["Kubernetes//Pod/shop/late-0"]);
    // A service that appears brings the workloads it selects, those told before included.
    let late = json!({ "spec": { "selector": { "app": "late" } } });
    talk.happens(Event::Services(Delta::Put(fixtures::service("late", "10.1.0.9", late))));
    let pushes = talk.update();
    assert_eq!(sorted(&pushes[0]), ["Kubernetes//Pod/shop/late-0", "shop/late.shop.svc.cluster.local"]);
}

#[test]
fn what_is_no_longer_asked_for_is_no_longer_told() {
    let mut talk = world();
    talk.ask(opening(&[], BTreeMap::new()));
    talk.ask(asking(&[SERVICE, "/10.0.0.3"], &[]));
    talk.pushes();
    talk.ask(asking(&[], &[SERVICE, "/10.0.0.3"]));
    assert_eq!(talk.pushes().len(), 1, "every request with names is answered");
    talk.pod("other", elsewhere(json!({ "status": { "conditions": [] } })));
    talk.pod("web-1", elsewhere(json!({ "status": { "conditions": [] } })));
    talk.happens(Event::Services(Delta::Gone(Key::new("shop", "web"))));
    // Only the workload of its own node, which has left the service.
    let pushes = talk.update();
    assert_eq!((pushes.len(), sorted(&pushes[0]), removed(&pushes[0])), (1, vec![WEB], vec![]));
}

#[test]
fn a_client_that_comes_back_is_told_what_is_new_of_what_it_had() {
    let mut talk = world();
    let version = |talk: &Talk, name: &str| talk.snapshot.addresses.get(name).unwrap().version.to_string();
    let known = BTreeMap::from([
        (WEB.to_string(), version(&talk, WEB)),
        ("Kubernetes//Pod/shop/other".to_string(), "older".to_string()),
        ("Kubernetes//Pod/shop/gone".to_string(), "1".to_string()),
    ]);
    talk.ask(opening(&[], known));
    let pushes = talk.pushes();
    assert_eq!(sorted(&pushes[0]), ["Kubernetes//Pod/shop/other"]);
    assert_eq!(removed(&pushes[0]), ["Kubernetes//Pod/shop/gone"]);
    // It is still told of what it had.
    talk.pod("other", elsewhere(json!({ "status": { "conditions": [] } })));
    assert_eq!(sorted(&talk.update()[0]), ["Kubernetes//Pod/shop/other"]);
}

#[test]
fn names_count_even_when_the_request_crosses_a_push() {
    let mut talk = world();
    talk.ask(opening(&[], BTreeMap::new()));
    talk.pushes();
    let mut request = asking(&["/10.0.0.3"], &[]);
    request.response_nonce = "an older one".into();
    assert_eq!(talk.ask(request), Heard::Subscribed);
    assert_eq!(sorted(&talk.pushes()[0]), ["Kubernetes//Pod/shop/other"]);
}
