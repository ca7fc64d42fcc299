//! Who is bound to which waypoint (reference/control-plane.md §1.6).

use serde_json::Value;

use super::told::*;
use super::*;

#[test]
fn a_service_is_bound_to_its_waypoint_once_that_has_an_address_and_says_so() {
    let wants = || service(named(json!({ "istio.io/use-waypoint": "w" })));
    let mut world = World::new(vec![wants(), gateway("w", json!({ "status": { "addresses": [] } }))]);
    assert!(world.service(SERVICE).waypoint.is_none());
    assert_eq!(world.bound("web"), Some((false, "WaypointIsNotReady".into())));

    let (changed, _, _) = world.hear(vec![gateway("w", json!({}))]);
    assert_eq!(changed, [SERVICE]);
    assert_eq!(world.service(SERVICE).waypoint.unwrap().hbone_mtls_port, 15008);
    assert_eq!(world.bound("web"), Some((true, "WaypointAccepted".into())));

    world.hear(vec![Event::Gateways(Delta::Gone(Key::new("shop", "w")))]);
    assert!(world.service(SERVICE).waypoint.is_none());
    world.hear(vec![service(json!({}))]);
    assert!(world.wanted(StatusKind::Service, "web").is_none());
}

#[test]
fn a_namespace_speaks_for_what_says_nothing_itself() {
    let mut world = World::new(vec![
        service(json!({})),
        Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", json!({})))),
        gateway("w", json!({ "metadata": { "labels": { "istio.io/waypoint-for": "all" } } })),
        namespace(named(json!({ "istio.io/use-waypoint": "w" }))),
    ]);
    assert!(world.service(SERVICE).waypoint.is_some() && world.workload(WEB_0).waypoint.is_some());
    world.hear(vec![service(named(json!({ "istio.io/use-waypoint": "none" })))]);
    assert!(world.service(SERVICE).waypoint.is_none() && world.workload(WEB_0).waypoint.is_some());
    // A waypoint for services is none for workloads that only inherited it.
    world.hear(vec![gateway("w", json!({})), service(json!({}))]);
    assert!(world.service(SERVICE).waypoint.is_some() && world.workload(WEB_0).waypoint.is_none());
    world.hear(vec![namespace(json!({}))]);
    assert!(world.service(SERVICE).waypoint.is_none());
}

#[test]
fn who_may_not_be_bound_is_told_why() {
    let elsewhere = |over: Value| {
        let mut gateway = fixtures::gateway("w", over);
        gateway.key = Key::new("other", "w");
        Event::Gateways(Delta::Put(gateway))
    };
    let wants = json!({ "istio.io/use-waypoint": "w", "istio.io/use-waypoint-namespace": "other" });
    let mut world = World::new(vec![
        service(named(wants)),
        namespace(named(json!({ "team": "a" }))),
        elsewhere(json!({})),
    ]);
    assert_eq!(world.bound("web"), Some((false, "AttachmentDenied".into())));
    let from = |from: Value| json!({ "spec": { "listeners": [{ "port": 15008, "protocol": "HBONE", "allowedRoutes": { "namespaces": from } }] } });
    world.hear(vec![elsewhere(from(json!({ "from": "All" })))]);
    assert_eq!(world.bound("web"), Some((true, "WaypointAccepted".into())));
    let team = |team: &str| {
        from(
            json!({ "from": "Selector", "selector": { "matchExpressions": [{ "key": "team", "operator": "In", "values": [team] }] } }),
        )
    };
    world.hear(vec![elsewhere(team("b"))]);
    assert_eq!(world.bound("web"), Some((false, "AttachmentDenied".into())));
    world.hear(vec![elsewhere(team("a"))]);
    assert_eq!(world.bound("web"), Some((true, "WaypointAccepted".into())));
    let mut only_workloads = from(json!({ "from": "All" }));
    fixtures::merge(&mut only_workloads, named(json!({ "istio.io/waypoint-for": "workload" })));
    world.hear(vec![elsewhere(only_workloads)]);
    assert_eq!(world.bound("web"), Some((false, "UnsupportedTrafficType".into())));
}

#[test]
fn a_canary_waypoint_takes_its_share_and_a_wrong_one_leaves_the_first_alone() {
    let canary = |name: &str, weight: &str| {
        service(json!({ "metadata": {
            "labels": { "istio.io/use-waypoint": "w", "istio.io/use-waypoint-canary": name },
            "annotations": { "istio.io/use-waypoint-canary-weight": weight },
        } }))
    };
    let second =
        json!({ "status": { "addresses": [{ "type": "Hostname", "value": "c.shop.svc.cluster.local" }] } });
    let mut world = World::new(vec![gateway("w", json!({})), gateway("c", second), canary("c", "20")]);
    let weights = |world: &World| -> Vec<u32> {
        world.service(SERVICE).weighted_waypoints.iter().map(|one| one.weight).collect()
    };
    assert_eq!(weights(&world), [80, 20]);
    for (name, weight, why) in
        [("w", "20", "itself"), ("c", "120", "no whole number"), ("x", "20", "not ready")]
    {
        world.hear(vec![canary(name, weight)]);
        assert!(weights(&world).is_empty() && world.service(SERVICE).waypoint.is_some());
        let (status, _, message) =
            world.condition(StatusKind::Service, "web", "istio.io/WaypointBound").unwrap();
        assert!(
            status && message.contains("Canary waypoint not attached") && message.contains(why),
            "{message}"
        );
    }
}

#[test]
fn an_instance_of_a_waypoint_has_none_itself_and_takes_tunnels_as_its_gateway_says() {
    let pod = named(json!({ "gateway.networking.k8s.io/gateway-name": "w" }));
    let bound = json!({ "metadata": {
        "labels": { "istio.io/waypoint-for": "all" },
        "annotations": { "ambient.istio.io/waypoint-inbound-binding": "PROXY/15088" },
    } });
    let world = World::new(vec![
        namespace(named(json!({ "istio.io/use-waypoint": "w" }))),
        Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", pod))),
        gateway("w", bound),
    ]);
    let workload = world.workload(WEB_0);
    assert!(workload.waypoint.is_none());
    let tunnel = workload.application_tunnel.unwrap();
    assert_eq!((tunnel.protocol, tunnel.port), (1, 15088));
}

#[test]
fn what_only_its_own_namespace_sees_takes_no_waypoint_of_another() {
    let wants = json!({ "istio.io/use-waypoint": "w", "istio.io/use-waypoint-namespace": "other" });
    let mut over = named(wants);
    fixtures::merge(&mut over, json!({ "spec": { "hosts": ["api.example"], "resolution": "STATIC" } }));
    let everybody = json!({ "spec": { "listeners": [{ "port": 15008, "protocol": "HBONE", "allowedRoutes": { "namespaces": { "from": "All" } } }] } });
    let mut waypoint = fixtures::gateway("w", everybody);
    waypoint.key = Key::new("other", "w");
    let mut world = World::new(vec![entry("api", over), Event::Gateways(Delta::Put(waypoint))]);
    let said = |world: &World| {
        world
            .condition(StatusKind::ServiceEntry, "api", "istio.io/WaypointBound")
            .map(|(status, reason, _)| (status, reason))
    };
    assert_eq!(said(&world), Some((true, "WaypointAccepted".into())));
    world.hear(vec![mesh_config("serviceEntryVisibility: {default: NAMESPACE}")]);
    assert_eq!(said(&world), Some((false, "CrossNamespaceWaypointForbidden".into())));
    assert!(world.service("shop/api.example").waypoint.is_none());
}

#[test]
fn ingress_goes_through_a_waypoint_where_service_or_namespace_say_so() {
    let ingress = |on: &str, value: Option<&str>, waypoint: Option<&str>| {
        named(json!({ "istio.io/use-waypoint": waypoint, on: value }))
    };
    let key = "istio.io/ingress-use-waypoint";
    let table = [
        (ingress(key, Some("true"), Some("w")), json!({}), true),
        (ingress(key, Some("True"), Some("w")), json!({}), true),
        (ingress(key, Some("yes"), Some("w")), json!({}), false),
        (ingress(key, None, Some("w")), ingress(key, Some("true"), None), true),
        (ingress(key, Some("false"), Some("w")), ingress(key, Some("true"), None), false),
        // Only with a waypoint.
        (ingress(key, Some("true"), None), json!({}), false),
    ];
    for (of_service, of_namespace, wanted) in table {
        let world = World::new(vec![
            gateway("w", json!({})),
            namespace(of_namespace.clone()),
            service(of_service.clone()),
        ]);
        let found = world.service(SERVICE).ingress_use_waypoint;
        assert_eq!(found, wanted, "{of_service} in {of_namespace}");
    }
}

#[test]
fn what_a_gateway_leaves_open_its_class_says() {
    let class = |labels: Value, annotations: Value| {
        let mut object = fixtures::custom(
            "",
            "istio-waypoint",
            json!({ "metadata": { "labels": labels, "annotations": annotations } }),
        );
        object.metadata.namespace = None;
        Event::Classes(Delta::Put(object.try_into().expect("a class")))
    };
    let mut world =
        World::new(vec![service(named(json!({ "istio.io/use-waypoint": "w" }))), gateway("w", json!({}))]);
    assert_eq!(
        world.bound("web"),
        Some((true, "WaypointAccepted".into())),
        "services, when nobody says anything"
    );
    world.hear(vec![class(json!({ "istio.io/waypoint-for": "workload" }), json!({}))]);
    assert_eq!(world.bound("web"), Some((false, "UnsupportedTrafficType".into())));
    world.hear(vec![gateway("w", named(json!({ "istio.io/waypoint-for": "all" })))]);
    assert_eq!(world.bound("web"), Some((true, "WaypointAccepted".into())), "the Gateway comes first");
    world.hear(vec![gateway("w", named(json!({ "istio.io/waypoint-for": "none" })))]);
    assert_eq!(world.bound("web"), Some((false, "UnsupportedTrafficType".into())));
    // The way in to its instances, too.
    let instance = named(json!({ "gateway.networking.k8s.io/gateway-name": "w" }));
    let binding = json!({ "ambient.istio.io/waypoint-inbound-binding": "NONE" });
    world.hear(vec![
        Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", instance))),
        class(json!({}), binding),
    ]);
    let tunnel = world.workload(WEB_0).application_tunnel.unwrap();
    assert_eq!((tunnel.protocol, tunnel.port), (0, 0));
}

/// A waypoint's own service through that waypoint would be a circle; an east-west gateway's is for others to enter by.
#[test]
fn services_that_gateways_are_made_of_have_no_waypoint() {
    let mut world =
        World::new(vec![gateway("w", json!({})), namespace(named(json!({ "istio.io/use-waypoint": "w" })))]);
    let table =
        [("istio.io-mesh-controller", false), ("istio.io-eastwest-controller", false), ("somebody", true)];
    for (by, bound) in table {
        world.hear(vec![service(named(json!({ "gateway.istio.io/managed": by })))]);
        assert_eq!(world.service(SERVICE).waypoint.is_some(), bound, "{by}");
        assert_eq!(world.bound("web").is_some(), bound, "{by}");
    }
}
