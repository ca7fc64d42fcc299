use std::net::SocketAddr;

use super::*;
use crate::{Action, Clause, Identity, NetworkMode, Policy, Scope, StringMatch, authorize};

fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "shop", account).unwrap()
}

fn pod(name: &str, ip: &str) -> Workload {
    let mut workload = Workload::new(format!("Kubernetes//Pod/shop/{name}"), name, identity(name));
    workload.addresses = vec![ip.parse().unwrap()];
    workload.node = "n1".into();
    workload
}

fn only(m: Match, action: Action) -> Policy {
    Policy {
        name: "only-gw".into(),
        namespace: "shop".into(),
        scope: Scope::Namespace,
        action,
        // A rule that has nothing to do with the call comes first.
        rules: vec![
            Rule {
                clauses: vec![Clause {
                    matches: vec![Match { destination_ports: vec![1], ..Match::default() }],
                }],
            },
            Rule { clauses: vec![Clause { matches: vec![m] }] },
        ],
        dry_run: false,
    }
}

/// What is said of a plaintext call from `from` to port 8080 of a pod that this policy guards.
fn said(m: Match, action: Action, from: &str) -> Option<Unproven> {
    let mut view = View::default();
    let server = pod("server", "10.0.0.9");
    view.insert_workload(server.clone());
    let mut gateway = pod("gw", "192.168.0.1");
    gateway.network_mode = NetworkMode::HostNetwork;
    view.insert_workload(gateway);
    view.insert_workload(pod("plain", "10.0.0.2"));
    let mut inside = pod("inside", "10.0.0.3");
    inside.tunnel = Tunnel::Hbone;
    view.insert_workload(inside);
    view.insert_policy(only(m, action));
    let connection = Connection {
        identity: None,
        source_ip: from.parse().unwrap(),
        destination: SocketAddr::new(server.addresses[0], 8080),
    };
    unproven(&view, &server, &connection, &authorize(&view, &server, &connection))
}

fn principal() -> Match {
    Match { principals: vec![StringMatch::Exact("cluster.local/ns/shop/sa/gw".into())], ..Match::default() }
}

#[test]
fn a_caller_on_the_host_network_is_told_which_rule_wanted_an_identity_and_no_account_is_claimed() {
    let said = said(principal(), Action::Allow, "192.168.0.1").unwrap();
    assert_eq!(
        said.to_string(),
        "no proven identity (host network of node n1); rule shop/only-gw#1 needs a principal"
    );
    assert!(said.cure().contains("enrol"));
    assert!(!format!("{said} {}", said.cure()).contains("sa/gw"));
}

#[test]
fn pods_and_strangers_are_told_apart() {
    let caller = |from| said(principal(), Action::Allow, from).unwrap().caller;
    assert_eq!(caller("10.0.0.2"), Caller::NotEnrolled { pod: "shop/plain".into() });
    assert_eq!(caller("10.0.0.3"), Caller::NotCaptured { pod: "shop/inside".into() });
    assert_eq!(caller("203.0.113.1"), Caller::Unknown);
}

#[test]
fn a_strict_rule_is_explained_alike() {
    let strict = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    assert!(said(strict, Action::Deny, "192.168.0.1").is_some());
}

#[test]
fn nothing_is_said_where_an_identity_would_have_changed_nothing() {
    let port = Match { destination_ports: vec![9090], ..Match::default() };
    assert_eq!(said(port.clone(), Action::Allow, "192.168.0.1"), None, "it allows a port to anybody");
    let both = Match { destination_ports: vec![9090], ..principal() };
    assert_eq!(said(both, Action::Allow, "192.168.0.1"), None, "not on this port");
    let here = Match { destination_ports: vec![8080], ..Match::default() };
    assert_eq!(said(here, Action::Deny, "192.168.0.1"), None, "it denies a port to anybody");
}
