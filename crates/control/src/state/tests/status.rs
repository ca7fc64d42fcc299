//! What is written on objects (reference/control-plane.md §1.10).

use serde_json::Value;

use super::told::*;
use super::*;

/// Case D15.
#[test]
fn a_policy_says_truthfully_what_of_it_is_enforced() {
    let mut world = two_pods();
    let mut said = |spec: Value| {
        world.hear(vec![policy(spec)]);
        world.condition(StatusKind::AuthorizationPolicy, "p", "ZtunnelAccepted").unwrap()
    };
    let (status, reason, message) = said(
        json!({ "action": "DENY", "rules": [{ "from": [{ "source": { "notRequestPrincipals": ["*"] } }] }] }),
    );
    assert!(!status && reason == "UnsupportedValue", "{reason}");
    assert!(message.contains("no enforceable rules") && message.contains("no effect"), "{message}");

    let (status, _, message) = said(
        json!({ "action": "DENY", "rules": [{ "to": [{ "operation": { "ports": ["8080"], "methods": ["GET"] } }] }] }),
    );
    assert!(status && message.contains("more restrictive than requested"), "{message}");
    assert!(!message.contains("not denied"), "{message}");

    let (status, _, message) = said(
        json!({ "action": "DENY", "rules": [{ "to": [{ "operation": { "ports": ["8080"] } }, { "operation": { "methods": ["GET"] } }] }] }),
    );
    assert!(
        status && message.contains("is not denied") && !message.contains("more restrictive"),
        "{message}"
    );

    let (status, _, message) =
        said(json!({ "rules": [{ "to": [{ "operation": { "methods": ["GET"] } }] }] }));
    assert!(status && message.contains("rules matching HTTP attributes are omitted"), "{message}");
    let (status, reason, _) = said(json!({ "action": "AUDIT" }));
    assert!(!status && reason == "UnsupportedValue");
    let (status, reason, message) = said(json!({ "rules": [{}] }));
    assert_eq!((status, reason.as_str(), message.as_str()), (true, "Accepted", "attached to ztunnel"));
}

#[test]
fn a_policy_for_waypoints_says_what_its_targets_are_bound_to() {
    let target = json!({ "targetRefs": [{ "kind": "Service", "group": "", "name": "web" }] });
    let mut world = two_pods();
    world.hear(vec![policy(target)]);
    let said =
        |world: &World| world.condition(StatusKind::AuthorizationPolicy, "p", "WaypointAccepted").unwrap();
    assert_eq!(said(&world).1, "AncestorNotBound");
    world.hear(vec![gateway("w", json!({})), service(named(json!({ "istio.io/use-waypoint": "w" })))]);
    assert_eq!(said(&world), (true, "Accepted".into(), "bound to shop/w".into()));
    world.hear(vec![Event::Services(Delta::Gone(Key::new("shop", "web")))]);
    assert_eq!(said(&world).1, "TargetNotFound");
}

#[test]
fn what_stands_on_an_object_is_not_written_again() {
    let mut world = two_pods();
    world.hear(vec![policy(json!({}))]);
    let wanted = world.wanted(StatusKind::AuthorizationPolicy, "p").unwrap();
    let mut written = fixtures::authorization("shop", "p", json!({}));
    written.conditions.clone_from(&wanted.conditions);
    written.conditions[0].since = "2026-01-01T00:00:00Z".into();
    let told = world.hear(vec![Event::Authorizations(Delta::Put(written.clone()))]);
    assert_eq!(told, none());
    assert!(world.state.snapshot.statuses.is_empty());
    // Another generation of the same verdict is written with the time it has had.
    written.generation = Some(7);
    world.hear(vec![Event::Authorizations(Delta::Put(written))]);
    let again = world.wanted(StatusKind::AuthorizationPolicy, "p").unwrap();
    assert_eq!(
        (again.conditions[0].since.as_str(), again.conditions[0].generation),
        ("2026-01-01T00:00:00Z", Some(7))
    );
}

#[test]
fn a_service_entry_says_what_only_a_waypoint_could_do_for_it() {
    let wants = |over: Value| {
        let mut base = json!({ "spec": { "hosts": ["api.example"], "resolution": "STATIC", "ports": [{ "name": "http", "number": 80 }] } });
        fixtures::merge(&mut base, over);
        entry("api", base)
    };
    let racing =
        json!({ "metadata": { "annotations": { "istio.io/connect-strategy": "RACE_FIRST_TCP_CONNECT" } } });
    let wildcard = json!({ "spec": { "hosts": ["*.example"] } });
    let mut world = World::new(vec![wants(json!({}))]);
    let missing = |world: &World| {
        world
            .condition(StatusKind::ServiceEntry, "api", "istio.io/WaypointMissing")
            .map(|(status, reason, _)| (status, reason))
    };
    assert_eq!(missing(&world), None);
    world.hear(vec![wants(racing)]);
    assert_eq!(missing(&world), Some((true, "NoWaypointForRacingConnectStrategy".into())));
    world.hear(vec![wants(wildcard.clone())]);
    assert_eq!(missing(&world), Some((true, "NoWaypointForWildcardService".into())));
    let mut bound = named(json!({ "istio.io/use-waypoint": "w" }));
    fixtures::merge(&mut bound, wildcard);
    world.hear(vec![gateway("w", json!({})), wants(bound)]);
    assert_eq!(missing(&world), None);
}

#[test]
fn a_service_entry_says_who_sees_it_where_the_mesh_has_rules_for_that() {
    let mut world = World::new(vec![entry(
        "api",
        json!({ "spec": { "hosts": ["api.example"], "resolution": "STATIC" } }),
    )]);
    let said = |world: &World| {
        world
            .condition(StatusKind::ServiceEntry, "api", "istio.io/VisibilityApplied")
            .map(|(status, reason, _)| (status, reason))
    };
    assert_eq!(said(&world), None);
    for (visibility, wanted) in
        [("PUBLIC", (true, "Public")), ("NAMESPACE", (true, "Namespace")), ("NONE", (false, "None"))]
    {
        world.hear(vec![mesh_config(&format!("serviceEntryVisibility: {{default: {visibility}}}"))]);
        assert_eq!(said(&world), Some((wanted.0, wanted.1.into())));
        assert_eq!(world.state.snapshot.addresses.get("shop/api.example").is_some(), visibility != "NONE");
    }
}

/// A dry run is never enforced here, so it is never sent either.
#[test]
fn a_dry_run_is_not_sent_and_says_so() {
    let mut policy = json!({ "metadata": { "annotations": { "istio.io/dry-run": "true" } }, "spec": { "action": "DENY", "rules": [{}] } });
    let said =
        |world: &World| world.condition(StatusKind::AuthorizationPolicy, "p", "ZtunnelAccepted").unwrap();
    let put = |policy: &Value| {
        Event::Authorizations(Delta::Put(
            fixtures::custom("shop", "p", policy.clone()).try_into().expect("a policy"),
        ))
    };
    let mut world = World::new(vec![put(&policy)]);
    assert!(world.state.snapshot.policies.get("shop/p").is_none());
    let (status, reason, message) = said(&world);
    assert!(!status && reason == "UnsupportedValue" && message.contains("dry-run"), "{message}");
    policy["metadata"]["annotations"]["istio.io/dry-run"] = "false".into();
    world.hear(vec![put(&policy)]);
    assert!(world.state.snapshot.policies.get("shop/p").is_some());
    assert!(said(&world).0);
}

/// Whatever is labelled for another control plane is none of ours: neither published nor written on.
#[test]
fn objects_of_another_revision_are_left_out_whatever_their_kind() {
    let world = |revision: Option<&str>| {
        let of = |spec: Value| {
            let mut object = named(json!({ "istio.io/rev": revision }));
            fixtures::merge(&mut object, json!({ "spec": spec }));
            object
        };
        let custom = |spec: Value| fixtures::custom("shop", "p", of(spec));
        let strict = json!({ "selector": { "matchLabels": { "app": "web" } }, "mtls": { "mode": "STRICT" } });
        World::new(vec![
            service(named(json!({ "istio.io/use-waypoint": "w" }))),
            gateway("w", named(json!({ "istio.io/rev": revision }))),
            Event::Authorizations(Delta::Put(custom(json!({ "rules": [{}] })).try_into().expect("a policy"))),
            Event::Peers(Delta::Put(custom(strict).try_into().expect("a policy"))),
            entry("api", of(json!({ "hosts": ["api.example"], "resolution": "STATIC" }))),
            Event::Written(Delta::Put(fixtures::written("vm", of(json!({ "address": "10.9.9.9" }))))),
        ])
    };
    let held = |world: &World| {
        let there = |name: &str| world.state.snapshot.addresses.get(name).is_some();
        (
            world.service(SERVICE).waypoint.is_some(),
            there("shop/api.example"),
            there("Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"),
            world.state.snapshot.policies.get("shop/p").is_some(),
            world.state.snapshot.policies.get("ambit-system/istio_converted_static_strict").is_some(),
            world.wanted(StatusKind::AuthorizationPolicy, "p").is_some(),
        )
    };
    for ours in [None, Some("default")] {
        assert_eq!(held(&world(ours)), (true, true, true, true, true, true), "{ours:?}");
    }
    let other = world(Some("canary"));
    assert_eq!(held(&other), (false, false, false, false, false, false));
    // A service has no revision; that its waypoint is another's is said of it.
    assert_eq!(other.bound("web"), Some((false, "WaypointIsNotReady".into())));
}
