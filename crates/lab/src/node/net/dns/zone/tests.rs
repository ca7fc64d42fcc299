use std::str::FromStr as _;

use serde_json::json;

use super::*;
use crate::node::net::model::tests::{service, slice, snapshot};

/// A cluster with a Service of each kind.
fn cluster() -> Snapshot {
    snapshot(&[
        service(
            "shop",
            "web",
            json!({"clusterIP": "10.96.0.5", "ports": [{"name": "http", "port": 80}, {"port": 9}]}),
        ),
        service("shop", "db", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})),
        service("shop", "idle", json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]})),
        service("shop", "old", json!({"type": "ExternalName", "externalName": "web.shop.svc.cluster.local"})),
        service("shop", "away", json!({"type": "ExternalName", "externalName": "example.com"})),
        service(
            "shop",
            "loop",
            json!({"type": "ExternalName", "externalName": "loop.shop.svc.cluster.local"}),
        ),
        slice(
            "shop",
            "db",
            json!([{"name": "sql", "port": 5432}]),
            json!([
                {"addresses": ["10.1.0.1"], "hostname": "db-0"},
                {"addresses": ["10.1.0.2"], "conditions": {"ready": false}, "hostname": "db-1"},
                {"addresses": ["10.1.0.3"]},
            ]),
        ),
        slice("shop", "web", json!([{"name": "http", "port": 8080}]), json!([{"addresses": ["10.1.0.9"]}])),
    ])
}

/// The answer as text: records' data, or what was said instead.
fn ask(name: &str, kind: RecordType) -> Vec<String> {
    match Zone::cluster_local().answer(&cluster(), &Name::from_str(name).unwrap(), kind) {
        Answer::Found { answers, .. } => answers.iter().map(|record| record.data.to_string()).collect(),
        Answer::NoSuchName => vec!["no such name".into()],
        Answer::NotOurs => vec!["not ours".into()],
    }
}

#[test]
fn a_service_answers_with_its_virtual_address() {
    assert_eq!(ask("web.shop.svc.cluster.local.", RecordType::A), ["10.96.0.5"]);
    assert_eq!(ask("WEB.Shop.svc.Cluster.local.", RecordType::A), ["10.96.0.5"]);
    assert!(
        ask("web.shop.svc.cluster.local.", RecordType::AAAA).is_empty(),
        "the name exists, the type does not"
    );
}

#[test]
fn a_headless_service_answers_with_its_ready_pods() {
    assert_eq!(ask("db.shop.svc.cluster.local.", RecordType::A), ["10.1.0.1", "10.1.0.3"]);
    assert_eq!(ask("idle.shop.svc.cluster.local.", RecordType::A), ["no such name"]);
}

#[test]
fn pods_of_a_headless_service_have_names() {
    assert_eq!(ask("db-0.db.shop.svc.cluster.local.", RecordType::A), ["10.1.0.1"]);
    assert_eq!(ask("10-1-0-3.db.shop.svc.cluster.local.", RecordType::A), ["10.1.0.3"]);
    assert_eq!(ask("db-1.db.shop.svc.cluster.local.", RecordType::A), ["no such name"], "not ready");
    assert_eq!(ask("10-1-0-3.shop.pod.cluster.local.", RecordType::A), ["10.1.0.3"]);
}

#[test]
fn named_ports_are_found_by_srv() {
    assert_eq!(
        ask("_http._tcp.web.shop.svc.cluster.local.", RecordType::SRV),
        ["0 100 80 web.shop.svc.cluster.local."]
    );
    assert_eq!(
        ask("_sql._tcp.db.shop.svc.cluster.local.", RecordType::SRV),
        ["0 100 5432 db-0.db.shop.svc.cluster.local.", "0 100 5432 10-1-0-3.db.shop.svc.cluster.local."]
    );
    assert_eq!(ask("_http._udp.web.shop.svc.cluster.local.", RecordType::SRV), ["no such name"]);
}

#[test]
fn names_the_cluster_does_not_have_are_denied_and_others_left_alone() {
    for name in ["nobody.shop.svc", "web.nowhere.svc", "nowhere.svc", "x.y.web.shop.svc", "what"] {
        assert_eq!(ask(&format!("{name}.cluster.local."), RecordType::A), ["no such name"], "{name}");
    }
    assert!(ask("shop.svc.cluster.local.", RecordType::A).is_empty());
    assert!(ask("cluster.local.", RecordType::A).is_empty());
    assert_eq!(ask("example.com.", RecordType::A), ["not ours"]);
    assert_eq!(ask("xcluster.local.", RecordType::A), ["not ours"]);
}

#[test]
fn external_names_are_aliases_and_never_loop() {
    assert_eq!(
        ask("old.shop.svc.cluster.local.", RecordType::A),
        ["web.shop.svc.cluster.local.", "10.96.0.5"]
    );
    assert_eq!(ask("away.shop.svc.cluster.local.", RecordType::A), ["example.com."]);
    assert_eq!(ask("loop.shop.svc.cluster.local.", RecordType::A).len(), MOST_ALIASES);
}

#[test]
fn addresses_of_the_cluster_have_names() {
    assert_eq!(ask("5.0.96.10.in-addr.arpa.", RecordType::PTR), ["web.shop.svc.cluster.local."]);
    assert_eq!(ask("1.0.1.10.in-addr.arpa.", RecordType::PTR), ["db-0.db.shop.svc.cluster.local."]);
    assert_eq!(ask("8.8.8.8.in-addr.arpa.", RecordType::PTR), ["not ours"]);
}
