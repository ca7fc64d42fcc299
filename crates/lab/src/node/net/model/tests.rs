//! Promises of the translation; also the objects that the tests of rules and names start from.

use serde_json::json;

use super::*;

/// A snapshot from manifests: Services and EndpointSlices, told apart by `kind`.
pub(in crate::node::net) fn snapshot(objects: &[serde_json::Value]) -> Snapshot {
    let of = |kind: &str| objects.iter().filter(|o| o["kind"] == kind).cloned().collect::<Vec<_>>();
    let services: Vec<Service> =
        of("Service").into_iter().map(|o| serde_json::from_value(o).unwrap()).collect();
    let slices: Vec<EndpointSlice> =
        of("EndpointSlice").into_iter().map(|o| serde_json::from_value(o).unwrap()).collect();
    Snapshot::build(&services, &slices)
}

/// A Service manifest.
pub(in crate::node::net) fn service(
    namespace: &str,
    name: &str,
    spec: serde_json::Value,
) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": namespace, "name": name}, "spec": spec})
}

/// An EndpointSlice manifest of one Service.
pub(in crate::node::net) fn slice(
    namespace: &str,
    service: &str,
    ports: serde_json::Value,
    endpoints: serde_json::Value,
) -> serde_json::Value {
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": namespace, "name": format!("{service}-x"),
            "labels": {"kubernetes.io/service-name": service}},
        "ports": ports, "endpoints": endpoints})
}

fn addresses(snapshot: &Snapshot, name: &str) -> Vec<String> {
    let view = &snapshot.services[&ServiceKey::new("default", name)];
    view.ports[0].backends.iter().map(|backend| backend.address.to_string()).collect()
}

#[test]
fn only_ready_endpoints_take_connections() {
    let snapshot = snapshot(&[
        service("default", "web", json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]})),
        slice(
            "default",
            "web",
            json!([{"port": 8080}]),
            json!([
                {"addresses": ["10.1.0.2"], "conditions": {"ready": true}},
                {"addresses": ["10.1.0.3"], "conditions": {"ready": false}},
                {"addresses": ["10.1.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
                {"addresses": ["10.1.0.1"]},
            ]),
        ),
    ]);
    assert_eq!(addresses(&snapshot, "web"), ["10.1.0.1:8080", "10.1.0.2:8080"]);
}

#[test]
fn pods_that_end_but_still_serve_are_the_last_resort() {
    let snapshot = snapshot(&[
        service("default", "web", json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]})),
        slice(
            "default",
            "web",
            json!([{"port": 8080}]),
            json!([
                {"addresses": ["10.1.0.3"], "conditions": {"ready": false}},
                {"addresses": ["10.1.0.4"], "conditions": {"ready": false, "serving": true, "terminating": true}},
            ]),
        ),
    ]);
    assert_eq!(addresses(&snapshot, "web"), ["10.1.0.4:8080"]);
}

#[test]
fn named_ports_find_their_own_target() {
    let ports = json!([{"name": "http", "port": 80}, {"name": "dns", "protocol": "UDP", "port": 53}]);
    let snapshot = snapshot(&[
        service("default", "web", json!({"clusterIP": "10.96.0.5", "ports": ports})),
        slice(
            "default",
            "web",
            json!([{"name": "dns", "protocol": "UDP", "port": 5353}, {"name": "http", "port": 8080}]),
            json!([{"addresses": ["10.1.0.1"]}]),
        ),
    ]);
    let view = &snapshot.services[&ServiceKey::new("default", "web")];
    assert_eq!(view.ports[0].backends[0].address.port(), 8080);
    assert_eq!(view.ports[1].backends[0].address.port(), 5353);
}

#[test]
fn objects_that_make_no_sense_take_nothing_else_away() {
    let snapshot = snapshot(&[
        service("default", "bad", json!({"clusterIP": "not an address", "ports": [{"port": 700000}]})),
        service("default", "web", json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]})),
        slice("default", "web", json!([{"port": 99999}]), json!([{"addresses": ["10.1.0.1"]}])),
        slice("default", "bad", json!([{"port": 80}]), json!([{"addresses": ["nonsense"]}])),
    ]);
    assert!(snapshot.services[&ServiceKey::new("default", "bad")].ports.is_empty());
    assert!(addresses(&snapshot, "web").is_empty());
}

#[test]
fn a_namespace_is_known_by_its_services() {
    let snapshot = snapshot(&[service("shop", "web", json!({"clusterIP": "None"}))]);
    assert!(snapshot.has_namespace("shop"));
    assert!(!snapshot.has_namespace("sho"));
    assert!(!snapshot.has_namespace("shopping"));
}
