use serde_json::json;

use super::*;
use crate::node::net::model::tests::{service, slice, snapshot};

fn node() -> Node {
    Node {
        name: "node-1".into(),
        ip: "10.10.0.1".parse().unwrap(),
        bridge_mac: "0a:58:0a:f4:00:01".into(),
        own: "10.96.0.10".parse().unwrap(),
        overrides: BTreeMap::from([(
            ServiceKey::new("default", "kubernetes"),
            "10.10.0.1:40000".parse().unwrap(),
        )]),
    }
}

fn lines_with<'a>(text: &'a str, what: &str) -> Vec<&'a str> {
    text.lines().map(str::trim).filter(|line| line.contains(what)).collect()
}

#[test]
fn a_connection_to_a_service_goes_to_one_of_its_endpoints() {
    let text = render(
        &node(),
        &snapshot(&[
            service("default", "web", json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]})),
            slice(
                "default",
                "web",
                json!([{"port": 8080}]),
                json!([{"addresses": ["10.1.0.1"]}, {"addresses": ["10.1.0.2"]}]),
            ),
        ]),
    );
    assert_eq!(
        lines_with(&text, "web"),
        ["elements = { 10.96.0.5 . tcp . 80 : goto ip/default/web/tcp/80 }", "chain ip/default/web/tcp/80 {"]
    );
    assert_eq!(
        lines_with(&text, "numgen"),
        ["meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 10.1.0.1 . 8080, 1 : 10.1.0.2 . 8080 }"]
    );
    assert_eq!(
        lines_with(&text, "10.1.0.1 . 10.1.0.1").len(),
        1,
        "a pod may call itself through its Service"
    );
}

#[test]
fn a_service_with_nobody_behind_it_is_refused() {
    let text = render(
        &node(),
        &snapshot(&[service("default", "web", json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]}))]),
    );
    assert_eq!(lines_with(&text, "10.96.0.5"), ["elements = { 10.96.0.5 . tcp . 80 }"]);
    assert!(lines_with(&text, "goto ip/").is_empty());
}

#[test]
fn the_api_server_is_reached_through_the_relay_whatever_its_endpoints_say() {
    let text = render(
        &node(),
        &snapshot(&[
            service("default", "kubernetes", json!({"clusterIP": "10.96.0.1", "ports": [{"port": 443}]})),
            slice("default", "kubernetes", json!([{"port": 6443}]), json!([{"addresses": ["127.0.0.1"]}])),
        ]),
    );
    assert!(!text.contains("127.0.0.1"));
    assert_eq!(
        lines_with(&text, "dnat ip to"),
        ["meta l4proto tcp dnat ip to numgen random mod 1 map { 0 : 10.10.0.1 . 40000 }"]
    );
}

#[test]
fn local_traffic_policy_keeps_connections_on_the_node() {
    let text = render(
        &node(),
        &snapshot(&[
            service(
                "default",
                "web",
                json!({"clusterIP": "10.96.0.5", "internalTrafficPolicy": "Local", "ports": [{"port": 80}]}),
            ),
            slice(
                "default",
                "web",
                json!([{"port": 8080}]),
                json!([
                    {"addresses": ["10.1.0.1"], "nodeName": "node-1"},
                    {"addresses": ["10.2.0.1"], "nodeName": "node-2"},
                ]),
            ),
        ]),
    );
    assert!(text.contains("10.1.0.1 . 8080"));
    assert!(!text.contains("10.2.0.1"));
}

#[test]
fn client_affinity_chooses_by_the_callers_address() {
    let text = render(
        &node(),
        &snapshot(&[
            service(
                "default",
                "web",
                json!({"clusterIP": "10.96.0.5", "sessionAffinity": "ClientIP", "ports": [{"port": 80}]}),
            ),
            slice("default", "web", json!([{"port": 8080}]), json!([{"addresses": ["10.1.0.1"]}])),
        ]),
    );
    assert_eq!(lines_with(&text, "jhash ip saddr mod 1").len(), 1);
}

#[test]
fn the_resolvers_address_is_never_translated() {
    let text = render(
        &node(),
        &snapshot(&[service(
            "kube-system",
            "kube-dns",
            json!({"clusterIP": "10.96.0.10", "ports": [{"port": 53, "protocol": "UDP"}]}),
        )]),
    );
    assert!(!text.contains("10.96.0.10"));
}

#[test]
fn the_same_services_give_the_same_text() {
    let objects = [
        service("default", "web", json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]})),
        slice("default", "web", json!([{"port": 8080}]), json!([{"addresses": ["10.1.0.1"]}])),
        service(
            "default",
            "udp",
            json!({"clusterIP": "10.96.0.6", "ports": [{"port": 53, "protocol": "UDP"}]}),
        ),
        slice(
            "default",
            "udp",
            json!([{"port": 53, "protocol": "UDP"}]),
            json!([{"addresses": ["10.1.0.1"]}, {"addresses": ["10.1.0.3"]}]),
        ),
    ];
    let mut turned = objects.to_vec();
    turned.reverse();
    assert_eq!(render(&node(), &snapshot(&objects)), render(&node(), &snapshot(&turned)));
}

#[test]
fn headless_services_need_no_rules() {
    let text = render(
        &node(),
        &snapshot(&[
            service("default", "db", json!({"clusterIP": "None", "ports": [{"port": 5432}]})),
            slice("default", "db", json!([{"port": 5432}]), json!([{"addresses": ["10.1.0.1"]}])),
        ]),
    );
    assert!(!text.contains("chain ip/default/db"));
}

#[test]
fn node_ports_answer_on_the_nodes_address() {
    let text = render(
        &node(),
        &snapshot(&[
            service(
                "default",
                "web",
                json!({"type": "NodePort", "clusterIP": "10.96.0.5", "ports": [{"port": 80, "nodePort": 30080}]}),
            ),
            slice("default", "web", json!([{"port": 8080}]), json!([{"addresses": ["10.1.0.1"]}])),
        ]),
    );
    assert!(text.contains("tcp . 30080 : goto ip/default/web/tcp/80"));
}

#[test]
fn a_small_cluster_as_nft_sees_it() {
    let text = render(
        &node(),
        &snapshot(&[
            service("default", "web", json!({"clusterIP": "10.96.0.5", "ports": [{"port": 80}]})),
            slice("default", "web", json!([{"port": 8080}]), json!([{"addresses": ["10.1.0.1"]}])),
            service("default", "idle", json!({"clusterIP": "10.96.0.6", "ports": [{"port": 80}]})),
        ]),
    );
    insta::assert_snapshot!(text);
}
