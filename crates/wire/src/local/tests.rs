use std::fmt::Write;

use mesh::{Action, GatewayTarget, LoadBalancingMode, NetworkAddress, Scope, StringMatch, Tunnel};

use super::*;

const FILE: &str = r#"
workloads:
- uid: cluster1//v1/Pod/default/local
  name: local
  namespace: default
  serviceAccount: default
  workloadIps: ["127.0.0.1", "::ffff:127.0.0.2"]
  protocol: HBONE
  node: local
  network: ""
  authorizationPolicies: ["default/deny-9999"]
  waypoint:
    destination: /127.0.0.10
    hboneMtlsPort: 15008
  services:
    "default/example.com":
      80: 8080
      555: 5555
- name: far
  hostname: far.example.com
  networkGateway: { destination: default/gateway.example.com }
policies:
- action: Deny
  name: deny-9999
  namespace: default
  scope: Namespace
  rules:
  - - - destinationPorts: [9999]
        principals: [{ Exact: "td/ns/a/sa/b" }, { Presence: [] }]
      - sourceIps: ["10.0.0.0/8"]
services:
- name: local
  namespace: default
  hostname: example.com
  vips: ["/127.10.0.1"]
  ports:
    80: 8080
    90: 0
  loadBalancer: { routingPreferences: [Region], mode: Failover, healthPolicy: AllowAll }
  subjectAltNames: ["spiffe://cluster.local/ns/default/sa/default"]
"#;

#[test]
fn a_file_as_ztunnel_takes_it_is_understood() {
    let local = Local::parse(FILE).unwrap();
    let [here, far] = &local.workloads[..] else { panic!("{local:?}") };
    assert_eq!(here.tunnel, Tunnel::Hbone);
    assert_eq!(here.addresses, ["127.0.0.1", "127.0.0.2"].map(|ip| ip.parse::<std::net::IpAddr>().unwrap()));
    let waypoint = here.waypoint.as_ref().unwrap();
    assert_eq!(
        waypoint.target,
        GatewayTarget::Address(NetworkAddress::new("", "127.0.0.10".parse().unwrap()))
    );
    let ports = &here.services[&"default/example.com".parse().unwrap()];
    assert_eq!(
        ports.iter().map(|p| (p.service_port, p.target_port)).collect::<Vec<_>>(),
        [(80, 8080), (555, 5555)]
    );
    assert_eq!(here.identity.to_string(), "spiffe://cluster.local/ns/default/sa/default");
    assert_eq!(&*far.uid, "Kubernetes//Pod//far");
    assert_eq!(far.network_gateway.as_ref().unwrap().hbone_port, 15008);
    let service = &local.services[0];
    assert_eq!(
        (service.port(80).unwrap().target_port, service.port(90).unwrap().target_port),
        (Some(8080), None)
    );
    assert_eq!(service.mode(), LoadBalancingMode::Failover);
    assert_eq!(service.subject_alt_names.len(), 1);
    let policy = &local.policies[0];
    assert_eq!(
        (policy.action, policy.scope, &*policy.key()),
        (Action::Deny, Scope::Namespace, "default/deny-9999")
    );
    let matches = &policy.rules[0].clauses[0].matches;
    assert_eq!(matches[0].principals[1], StringMatch::Presence);
    assert!(matches[1].source_ips[0].contains("10.1.2.3".parse().unwrap()));
}

#[test]
fn json_says_the_same() {
    let yaml = Local::parse(FILE).unwrap();
    let value: serde_json::Value = serde_saphyr::from_str(FILE).unwrap();
    assert_eq!(Local::parse(&value.to_string()).unwrap(), yaml);
}

#[test]
fn what_is_misspelt_or_makes_no_sense_is_named() {
    for (text, wanted) in [
        ("workloads: [{ name: a, protokol: HBONE }]", "protokol"),
        ("workloads: [{ name: a, protocol: QUIC }]", "QUIC"),
        ("workloads: [{ name: a, namespace: n, services: { web: { 80: 80 } } }]", "workload n/a: services"),
        ("workloads: [{ name: a, waypoint: { destination: nowhere } }]", "waypoint"),
        ("services: [{ name: a, namespace: n, hostname: h, vips: [10.0.0.1] }]", "service n/h: vips"),
        (
            "policies: [{ name: a, namespace: n, scope: Global, action: Allow, rules: [[[{ sourceIps: [x] }]]] }]",
            "policy n/a: sourceIps",
        ),
        (
            "policies: [{ name: a, namespace: n, scope: Global, action: Allow, rules: [[[{ principal: [] }]]] }]",
            "principal",
        ),
        ("workload: []", "workload"),
        ("{ \"workloads\": [", "EOF"),
    ] {
        let error = Local::parse(text).unwrap_err().to_string();
        assert!(error.contains(wanted), "{text}: {error}");
    }
}

#[test]
fn an_empty_file_is_an_empty_mesh() {
    assert_eq!(Local::parse("").unwrap(), Local::default());
    assert_eq!(Local::parse("workloads: []").unwrap(), Local::default());
}

#[test]
fn a_large_mesh_is_not_too_much() {
    let mut text = String::from("workloads:\n");
    for number in 0..20_000 {
        let (a, b) = (number / 250, number % 250);
        let _ = write!(
            text,
            "- uid: Kubernetes//Pod/ns{a}/p{b}\n  name: p{b}\n  namespace: ns{a}\n  protocol: HBONE\n  \
             workloadIps: [\"10.{}.{}.{b}\"]\n  node: n{a}\n  services: {{ \"ns{a}/web\": {{ 80: 8080 }} }}\n",
            a / 250,
            a % 250
        );
    }
    assert_eq!(Local::parse(&text).unwrap().workloads.len(), 20_000);
}
