//! Every row of the reference's tables.

use std::net::IpAddr;
use std::sync::Arc;

use mesh::{
    Action, AppProtocol, Health, HealthPolicy, IpFamilies, LoadBalancingMode, Match, NetworkMode,
    PortMapping, RoutingScope, Scope, StringMatch, Tunnel, Workload, WorkloadType,
};
use serde_json::{Value, json};

use super::*;
use crate::fixtures::{self, settings};
use crate::input::{Service, TrafficDistribution};

fn built(over: Value) -> Workload {
    built_with(over, WorkloadContext::default())
}

fn built_with(over: Value, context: WorkloadContext<'_>) -> Workload {
    pod(&settings(), context, &fixtures::pod("web-0", "10.0.0.1", over)).expect("a workload")
}

fn skipped(over: Value) -> Skip {
    let input = fixtures::pod("web-0", "10.0.0.1", over);
    pod(&settings(), WorkloadContext::default(), &input).expect_err("no workload")
}

#[test]
fn a_pod_is_a_workload_of_its_account_on_its_node() {
    let workload = built(json!({}));
    assert_eq!(&*workload.uid, "Kubernetes//Pod/shop/web-0");
    assert_eq!((&*workload.name, &*workload.namespace), ("web-0", "shop"));
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(workload.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!((&*workload.node, &*workload.cluster), ("n1", "Kubernetes"));
    assert_eq!(workload.health, Health::Healthy);
    assert_eq!(workload.tunnel, Tunnel::Hbone);
    assert!(!workload.native_tunnel);
    assert_eq!(workload.workload_type, WorkloadType::Pod);
    assert_eq!(workload.network_mode, NetworkMode::Standard);
    assert_eq!((workload.hostname.as_ref(), workload.capacity), (None, 1));
}

#[test]
fn finished_pods_and_pods_without_usable_addresses_are_no_workloads() {
    assert_eq!(skipped(json!({ "status": { "phase": "Failed" } })), Skip::Finished);
    assert_eq!(skipped(json!({ "status": { "phase": "Succeeded" } })), Skip::Finished);
    assert_eq!(skipped(json!({ "status": { "podIP": "", "podIPs": [] } })), Skip::NoAddress);
    assert_eq!(
        skipped(json!({ "status": { "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "x" }] } })),
        Skip::NoAddress
    );
}

#[test]
fn a_pending_pod_with_an_address_is_an_unhealthy_workload() {
    let pending = json!({ "status": { "phase": "Pending", "conditions": [] } });
    assert_eq!(built(pending).health, Health::Unhealthy);
}

#[test]
fn addresses_come_from_pod_ips_in_order_or_from_pod_ip() {
    let both = built(json!({ "status": { "podIPs": [{ "ip": "fd00::1" }, { "ip": "10.0.0.1" }] } }));
    assert_eq!(both.addresses, ["fd00::1".parse::<IpAddr>().unwrap(), "10.0.0.1".parse().unwrap()]);
    let one = built(json!({ "status": { "podIP": "10.0.0.9", "podIPs": [] } }));
    assert_eq!(one.addresses, ["10.0.0.9".parse::<IpAddr>().unwrap()]);
}

#[test]
fn only_a_ready_pod_that_is_not_going_away_is_healthy() {
    let not_ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "False" }] } });
    assert_eq!(built(not_ready).health, Health::Unhealthy);
    let going = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } });
    assert_eq!(built(going).health, Health::Unhealthy);
}

#[test]
fn a_workload_accepts_tunnels_when_captured_or_when_it_speaks_hbone_itself() {
    let pending = json!({ "metadata": { "annotations": { "ambient.istio.io/redirection": "pending" } } });
    assert_eq!(built(pending.clone()).tunnel, Tunnel::None);
    let mut native = pending;
    fixtures::merge(
        &mut native,
        json!({ "metadata": { "labels": { "networking.istio.io/tunnel": "x, http" } } }),
    );
    let native = built(native);
    assert_eq!((native.tunnel, native.native_tunnel), (Tunnel::Hbone, true));
}

#[test]
fn a_pod_in_the_hosts_network_says_so() {
    assert_eq!(built(json!({ "spec": { "hostNetwork": true } })).network_mode, NetworkMode::HostNetwork);
}

#[test]
fn names_for_telemetry_come_from_labels_first() {
    let table = [
        (json!({ "app": "a" }), "a", "latest"),
        (json!({ "app": "a", "app.kubernetes.io/name": "b", "version": "v1" }), "b", "v1"),
        (
            json!({
                "app": "a", "app.kubernetes.io/name": "b", "service.istio.io/canonical-name": "c",
                "version": "v1", "app.kubernetes.io/version": "v2", "service.istio.io/canonical-revision": "v3",
            }),
            "c",
            "v3",
        ),
    ];
    for (labels, name, revision) in table {
        let workload = built(json!({ "metadata": { "labels": labels } }));
        assert_eq!((&*workload.canonical_name, &*workload.canonical_revision), (name, revision));
    }
    let bare = built(json!({ "metadata": { "labels": null } }));
    assert_eq!((&*bare.canonical_name, &*bare.canonical_revision), ("web-0", "latest"));
}

#[test]
fn a_pod_goes_by_the_name_of_what_made_it() {
    let owned = |kind: &str, owner: &str, labels: Value| {
        let over = json!({
            "metadata": {
                "generateName": "x-", "labels": labels,
                "ownerReferences": [{ "apiVersion": "v1", "kind": kind, "name": owner, "uid": "u", "controller": true }],
            },
        });
        workload_name(&fixtures::pod("web-0", "10.0.0.1", over))
    };
    let table = [
        (owned("ReplicaSet", "web-5d4f", json!({ "pod-template-hash": "5d4f" })), "web"),
        (owned("ReplicaSet", "web-5d4f", json!({ "rollouts-pod-template-hash": "5d4f" })), "web"),
        (owned("ReplicaSet", "web-5d4f", json!({ "pod-template-hash": "other" })), "web-5d4f"),
        (owned("ReplicaSet", "web", json!({})), "web"),
        (owned("ReplicationController", "web-1", json!({ "deploymentconfig": "web" })), "web"),
        (owned("Job", "clean-29123456", json!({})), "clean"),
        (owned("Job", "clean-1234567", json!({})), "clean-1234567"),
        (owned("Job", "clean-12345678901", json!({})), "clean-12345678901"),
        (owned("StatefulSet", "db", json!({})), "db"),
        (owned("DaemonSet", "agent", json!({})), "agent"),
        (owned("DaemonSet", "agent", json!({ "service.istio.io/workload-name": "said" })), "said"),
    ];
    for (got, wanted) in table {
        assert_eq!(got, wanted);
    }
    assert_eq!(workload_name(&fixtures::pod("alone", "10.0.0.1", json!({}))), "alone");
}

#[test]
fn a_pod_serves_the_ports_of_its_services() {
    let numeric = fixtures::service("numeric", "10.1.0.1", json!({}));
    let named = fixtures::service(
        "named",
        "10.1.0.2",
        json!({ "spec": { "ports": [
            { "name": "http", "port": 80, "targetPort": "http" },
            { "name": "admin", "port": 90, "targetPort": "admin" },
            { "name": "sidecar", "port": 91, "targetPort": "sidecar" },
            { "name": "udp", "port": 92, "targetPort": "udp" },
        ] } }),
    );
    let over = json!({ "spec": {
        "containers": [{ "name": "c", "ports": [
            { "name": "http", "containerPort": 8080 }, { "name": "udp", "containerPort": 53, "protocol": "UDP" },
        ] }],
        "initContainers": [
            { "name": "native", "restartPolicy": "Always", "ports": [{ "name": "sidecar", "containerPort": 9 }] },
            { "name": "once", "ports": [{ "name": "admin", "containerPort": 8 }] },
        ],
    } });
    let context = WorkloadContext { services: vec![&numeric, &named], ..Default::default() };
    let workload = built_with(over, context);
    let ports = |name: &str| {
        let key = settings().service_key(&crate::input::Key::new("shop", name));
        workload.services[&key].clone()
    };
    let mapping = |service_port, target_port| PortMapping { service_port, target_port };
    assert_eq!(ports("numeric"), [mapping(80, 8080)]);
    assert_eq!(ports("named"), [mapping(80, 8080), mapping(91, 9)]);
}

#[test]
fn a_workload_is_where_its_node_is() {
    let node = fixtures::node(
        "n1",
        json!({
            "topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": "z", "topology.istio.io/subzone": "s",
        }),
    );
    let workload =
        built_with(json!({}), WorkloadContext { locality: Some(&node.locality), ..Default::default() });
    assert_eq!(
        (&*workload.locality.region, &*workload.locality.zone, &*workload.locality.subzone),
        ("r", "z", "s")
    );
    assert_eq!(built(json!({})).locality, mesh::Locality::default());
}

#[test]
fn an_endpoint_that_is_no_pod_is_a_workload_without_identity_of_its_own() {
    let service = fixtures::service("db", "10.1.0.9", json!({ "spec": { "selector": null } }));
    let slice = fixtures::slice(
        "db-1",
        "db",
        json!({ "endpoints": [
            { "addresses": ["192.0.2.1"] },
            { "addresses": ["192.0.2.2"], "conditions": { "ready": false } },
            { "addresses": ["192.0.2.3"], "targetRef": { "kind": "Pod", "name": "p", "uid": "u" } },
            { "addresses": ["no address"] },
        ] }),
    );
    let network: Arc<str> = "".into();
    let built: Vec<Option<Workload>> =
        slice.endpoints.iter().map(|one| endpoint(&settings(), &network, &slice, one, &service)).collect();
    let first = built[0].as_ref().unwrap();
    assert_eq!(&*first.uid, "Kubernetes/discovery.k8s.io/EndpointSlice/shop/db-1/192.0.2.1");
    assert_eq!((first.health, first.network_mode), (Health::Healthy, NetworkMode::HostNetwork));
    assert_eq!(first.tunnel, Tunnel::None);
    assert_eq!(
        first.services.values().next().unwrap(),
        &[PortMapping { service_port: 80, target_port: 8080 }]
    );
    assert_eq!(built[1].as_ref().unwrap().health, Health::Unhealthy);
    assert!(built[2].is_none() && built[3].is_none());
    let fqdn = fixtures::slice(
        "db-2",
        "db",
        json!({ "addressType": "FQDN", "endpoints": [{ "addresses": ["a.b"] }] }),
    );
    assert!(endpoint(&settings(), &network, &fqdn, &fqdn.endpoints[0], &service).is_none());
}

fn served(over: Value) -> Option<mesh::Service> {
    service(&settings(), &"net".into(), None, None, &fixtures::service("web", "10.1.0.1", over))
}

#[test]
fn a_service_has_its_hostname_addresses_and_ports() {
    let service = served(json!({ "spec": {
        "ipFamilies": ["IPv4"],
        "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }, { "name": "x", "port": 81, "targetPort": "named" }],
    } }))
    .unwrap();
    assert_eq!(service.key.to_string(), "shop/web.shop.svc.cluster.local");
    assert_eq!(service.vips, [mesh::NetworkAddress::new("net", "10.1.0.1".parse().unwrap())]);
    assert_eq!(service.ports.iter().map(|port| port.target_port).collect::<Vec<_>>(), [Some(8080), None]);
    assert_eq!(service.ports[0].app_protocol, AppProtocol::Http11);
    assert_eq!(service.ip_families, IpFamilies::Ipv4Only);
    assert!(service.canonical);
    assert_eq!(service.load_balancing, None);
}

#[test]
fn an_external_name_or_an_address_that_is_none_makes_no_service() {
    assert!(served(json!({ "spec": { "type": "ExternalName", "externalName": "x.example" } })).is_none());
    assert!(served(json!({ "spec": { "clusterIPs": ["x"] } })).is_none());
}

#[test]
fn a_headless_service_has_no_address() {
    assert!(
        served(json!({ "spec": { "clusterIP": "None", "clusterIPs": ["None"] } })).unwrap().vips.is_empty()
    );
}

#[test]
fn traffic_is_spread_as_service_or_namespace_say() {
    use RoutingScope::{Network, Node, Region, Subzone, Zone};
    let of = |over: Value, namespace: Option<TrafficDistribution>| {
        let input: Service = fixtures::service("web", "10.1.0.1", over);
        service(&settings(), &"".into(), namespace, None, &input).unwrap().load_balancing
    };
    let zone = (LoadBalancingMode::Failover, vec![Network, Region, Zone]);
    let node = (LoadBalancingMode::Failover, vec![Network, Region, Zone, Subzone, Node]);
    let annotated = |value: &str| json!({ "metadata": { "annotations": { "networking.istio.io/traffic-distribution": value } } });
    let table = [
        (
            json!({ "spec": { "internalTrafficPolicy": "Local" } }),
            None,
            Some((LoadBalancingMode::Strict, vec![Node])),
        ),
        (json!({ "spec": { "trafficDistribution": "PreferClose" } }), None, Some(zone.clone())),
        (json!({ "spec": { "trafficDistribution": "PreferSameNode" } }), None, Some(node.clone())),
        (annotated("prefersamezone"), None, Some(zone.clone())),
        (annotated("whatever"), Some(TrafficDistribution::SameNode), None),
        (json!({}), Some(TrafficDistribution::SameNode), Some(node)),
        (json!({}), None, None),
    ];
    for (over, namespace, wanted) in table {
        let got = of(over.clone(), namespace).map(|lb| (lb.mode, lb.routing_preference));
        assert_eq!(got, wanted, "{over}");
    }
    let all = of(json!({ "spec": { "publishNotReadyAddresses": true } }), None).unwrap();
    assert_eq!((all.health_policy, all.mode), (HealthPolicy::AllowAll, LoadBalancingMode::Unspecified));
}

#[test]
fn what_is_spoken_on_a_port_is_declared_or_named() {
    let of = |port: Value| {
        let input = fixtures::service("web", "10.1.0.1", json!({ "spec": { "ports": [port] } }));
        app_protocol(&input.ports[0])
    };
    let table = [
        (json!({ "name": "http-web", "port": 1 }), AppProtocol::Http11),
        (json!({ "name": "HTTP2", "port": 1 }), AppProtocol::Http2),
        (json!({ "name": "grpc", "port": 1 }), AppProtocol::Grpc),
        (json!({ "name": "grpc-web", "port": 1 }), AppProtocol::Unknown),
        (json!({ "name": "https", "port": 1 }), AppProtocol::Tls),
        (json!({ "name": "tcp-x", "port": 1 }), AppProtocol::Tcp),
        (json!({ "name": "redis", "port": 1 }), AppProtocol::Unknown),
        (json!({ "name": "db", "port": 3306 }), AppProtocol::Tcp),
        (json!({ "name": "http", "appProtocol": "kubernetes.io/h2c", "port": 1 }), AppProtocol::Http2),
        (json!({ "name": "http", "appProtocol": "tcp", "port": 1 }), AppProtocol::Tcp),
        (json!({ "name": "http", "protocol": "UDP", "port": 1 }), AppProtocol::Unknown),
    ];
    for (port, wanted) in table {
        assert_eq!(of(port.clone()), wanted, "{port}");
    }
}

fn converted_rules(spec: Value) -> Vec<mesh::Rule> {
    authorization(&settings(), &fixtures::authorization("shop", "p", spec)).unwrap().rules
}

#[test]
fn the_scope_of_a_policy_is_its_selector_or_namespace() {
    let scope = |namespace: &str, spec: Value| {
        authorization(&settings(), &fixtures::authorization(namespace, "p", spec)).unwrap().scope
    };
    let selector = json!({ "selector": { "matchLabels": { "app": "web" } } });
    assert_eq!(scope("shop", selector.clone()), Scope::WorkloadSelector);
    assert_eq!(scope("ambit-system", selector), Scope::WorkloadSelector);
    assert_eq!(scope("shop", json!({})), Scope::Namespace);
    assert_eq!(scope("shop", json!({ "selector": {} })), Scope::Namespace);
    assert_eq!(scope("ambit-system", json!({})), Scope::Global);
}

#[test]
fn of_an_allow_policy_only_rules_without_http_remain() {
    let rules = converted_rules(json!({ "rules": [
        { "from": [{ "source": { "principals": ["*"] } }] },
        { "to": [{ "operation": { "paths": ["/x"] } }] },
        { "to": [{ "operation": { "ports": ["80", "x"] } }], "when": [{ "key": "request.headers[a]", "values": ["b"] }] },
        { "to": [{ "operation": { "ports": ["80", "70000"] } }] },
    ] }));
    assert_eq!(rules.len(), 2);
    assert_eq!(rules[0].clauses[0].matches[0].principals, [StringMatch::Presence]);
    assert_eq!(rules[1].clauses[0].matches[0].destination_ports, [80]);
}

#[test]
fn of_a_deny_policy_only_the_http_attributes_are_dropped() {
    let spec = json!({ "action": "DENY", "rules": [
        { "to": [{ "operation": { "paths": ["/x"], "ports": ["80"] } }] },
        { "to": [{ "operation": { "methods": ["GET"] } }], "from": [{ "source": { "namespaces": ["a"] } }] },
    ] });
    let rules = converted_rules(spec.clone());
    assert_eq!(rules[0].clauses[0].matches[0], Match { destination_ports: vec![80], ..Match::default() });
    assert!(rules[1].clauses[0].matches[0].is_empty());
    assert_eq!(effect(&fixtures::authorization("shop", "p", spec)).http, ["methods", "paths"]);
}

#[test]
fn every_part_of_a_rule_becomes_a_clause_in_order() {
    let rules = converted_rules(json!({ "rules": [{
        "from": [{ "source": {
            "namespaces": ["a*"], "notPrincipals": ["*b"], "serviceAccounts": ["x", "n/y"], "ipBlocks": ["10.0.0.0/8"],
        } }],
        "to": [{ "operation": { "notPorts": ["1"] } }],
        "when": [{ "key": "source.ip", "notValues": ["192.0.2.1"] }, { "key": "destination.port", "values": ["9"] }],
    }] }));
    let [to, from, ip, port] = &rules[0].clauses[..] else { panic!("{rules:?}") };
    assert_eq!(to.matches[0].not_destination_ports, [1]);
    let source = &from.matches[0];
    assert_eq!(source.namespaces, [StringMatch::Prefix("a".into())]);
    assert_eq!(source.not_principals, [StringMatch::Suffix("b".into())]);
    let accounts: Vec<(&str, &str)> =
        source.service_accounts.iter().map(|one| (&*one.namespace, &*one.service_account)).collect();
    assert_eq!(accounts, [("shop", "x"), ("n", "y")]);
    assert_eq!(source.source_ips, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(ip.matches[0].not_source_ips, ["192.0.2.1".parse().unwrap()]);
    assert_eq!(port.matches[0].destination_ports, [9]);
}

#[test]
fn a_policy_without_rules_is_sent_and_an_empty_rule_matches_all() {
    assert!(converted_rules(json!({})).is_empty());
    assert_eq!(converted_rules(json!({ "rules": [{}] })), [mesh::Rule::default()]);
}

#[test]
fn policies_that_are_not_for_node_proxies_are_omitted_with_the_reason() {
    let of =
        |spec: Value| authorization(&settings(), &fixtures::authorization("shop", "p", spec)).unwrap_err();
    assert_eq!(of(json!({ "action": "AUDIT" })), Omitted::Action("AUDIT".into()));
    assert_eq!(of(json!({ "targetRefs": [{ "kind": "Gateway", "name": "w" }] })), Omitted::Targeted);
    let mut policy = fixtures::authorization("shop", "p", json!({}));
    policy.revision = Some("canary".into());
    assert!(matches!(authorization(&settings(), &policy), Err(Omitted::Revision(_))));
    policy.revision = None;
    policy.dry_run = true;
    assert_eq!(authorization(&settings(), &policy), Err(Omitted::DryRun));
}

fn keys(peers: &[crate::input::PeerAuthentication]) -> Vec<String> {
    let labels = [("app".to_string(), "web".to_string())].into();
    peer_keys(&settings(), peers.iter(), "shop", &labels).iter().map(|key| key.to_string()).collect()
}

#[test]
fn the_workload_overrides_the_namespace_and_that_the_mesh() {
    let static_key = "ambit-system/istio_converted_static_strict";
    let mesh = |mode: &str| fixtures::peer("ambit-system", "default", json!({ "mtls": { "mode": mode } }));
    let namespace = |mode: &str| fixtures::peer("shop", "default", json!({ "mtls": { "mode": mode } }));
    let workload = |mode: &str, ports: Value| {
        let selector = json!({ "matchLabels": { "app": "web" } });
        fixtures::peer(
            "shop",
            "web",
            json!({ "selector": selector, "mtls": { "mode": mode }, "portLevelMtls": ports }),
        )
    };
    let strict_port = json!({ "9090": { "mode": "STRICT" } });
    let open_port = json!({ "9090": { "mode": "PERMISSIVE" } });
    let disabled_port = json!({ "9090": { "mode": "DISABLE" } });
    let own = "shop/converted_peer_authentication_web";
    let table: Vec<(Vec<_>, Vec<&str>)> = vec![
        (vec![], vec![]),
        (vec![mesh("STRICT")], vec![static_key]),
        (vec![mesh("STRICT"), namespace("PERMISSIVE")], vec![]),
        (vec![mesh("STRICT"), namespace("UNSET")], vec![static_key]),
        (vec![namespace("STRICT")], vec![static_key]),
        (vec![namespace("STRICT"), workload("DISABLE", json!({}))], vec![]),
        (vec![workload("STRICT", json!({}))], vec![static_key]),
        (vec![workload("STRICT", open_port.clone())], vec![own]),
        (vec![workload("STRICT", strict_port.clone())], vec![static_key]),
        (vec![workload("PERMISSIVE", strict_port.clone())], vec![own]),
        (vec![workload("PERMISSIVE", open_port.clone())], vec![]),
        (vec![mesh("STRICT"), workload("UNSET", open_port)], vec![own]),
        (vec![mesh("STRICT"), workload("UNSET", disabled_port)], vec![own]),
        (vec![mesh("STRICT"), workload("PERMISSIVE", strict_port.clone())], vec![own]),
        (vec![workload("UNSET", strict_port)], vec![own]),
    ];
    for (peers, wanted) in table {
        assert_eq!(keys(&peers), wanted, "{peers:?}");
        // Whatever is listed is also published.
        let published: Vec<String> = peers
            .iter()
            .filter_map(|peer| converted(&settings(), peers.iter(), peer))
            .map(|policy| policy.key().to_string())
            .collect();
        assert!(wanted.iter().all(|key| *key == static_key || published.iter().any(|have| have == key)));
    }
}

#[test]
fn of_two_of_a_level_the_oldest_wins() {
    let mut old = fixtures::peer("shop", "z", json!({ "mtls": { "mode": "PERMISSIVE" } }));
    old.created = 1;
    let mut new = fixtures::peer("shop", "a", json!({ "mtls": { "mode": "STRICT" } }));
    new.created = 2;
    assert!(keys(&[new, old]).is_empty());
}

#[test]
fn ports_of_their_own_become_a_deny_policy() {
    let selector = json!({ "matchLabels": { "app": "web" } });
    let peer = |mode: &str, ports: Value| {
        fixtures::peer(
            "shop",
            "web",
            json!({ "selector": selector, "mtls": { "mode": mode }, "portLevelMtls": ports }),
        )
    };
    let policy_of =
        |peer: &crate::input::PeerAuthentication| converted(&settings(), std::iter::once(peer), peer);
    let one = policy_of(&peer("PERMISSIVE", json!({ "9090": { "mode": "STRICT" } }))).unwrap();
    assert_eq!((one.action, one.scope, one.rules.len()), (Action::Deny, Scope::WorkloadSelector, 1));
    let only = &one.rules[0].clauses[0].matches[0];
    assert_eq!(
        (&only.destination_ports[..], &only.not_principals[..]),
        (&[9090][..], &[StringMatch::Presence][..])
    );
    let two = policy_of(&peer("STRICT", json!({ "9090": { "mode": "PERMISSIVE" } }))).unwrap();
    assert_eq!(two.rules[0].clauses.len(), 2);
    assert_eq!(two.rules[0].clauses[1].matches[0].not_destination_ports, [9090]);
    assert_eq!(policy_of(&peer("STRICT", json!({ "9090": { "mode": "STRICT" } }))), None);
}

#[test]
fn a_value_that_cannot_be_understood_never_widens_a_match() {
    let allow = |source: Value| converted_rules(json!({ "rules": [{ "from": [{ "source": source }] }] }));
    let deny = |source: Value| {
        converted_rules(json!({ "action": "DENY", "rules": [{ "from": [{ "source": source }] }] }))
    };
    let only = |rules: &[mesh::Rule]| rules[0].clauses[0].matches[0].clone();
    // Of several, what is understood still counts.
    let some = json!({ "ipBlocks": ["10.0.0.0/8", "10.0.0.300"] });
    assert_eq!(only(&allow(some.clone())).source_ips.len(), 1);
    assert_eq!(only(&deny(some)).source_ips.len(), 1);
    // None is understood: it matches nothing, also beside something else.
    let none = json!({ "ipBlocks": ["10.0.0.300"], "namespaces": ["a"] });
    assert!(allow(none.clone()).is_empty() && deny(none).is_empty());
    // An exception that is not understood: an ALLOW allows nothing, a DENY makes no exception.
    let except = json!({ "namespaces": ["a"], "notIpBlocks": ["x"] });
    assert!(allow(except.clone()).is_empty());
    assert!(only(&deny(except.clone())).not_source_ips.is_empty());
    let input = fixtures::authorization(
        "shop",
        "p",
        json!({ "action": "DENY", "rules": [{ "from": [{ "source": except }] }, { "to": [{ "operation": { "ports": ["http"] } }] }] }),
    );
    let effect = effect(&input);
    assert_eq!(effect.invalid, ["notIpBlocks \"x\"", "ports \"http\""]);
    assert!(!effect.dead && effect.lost);
}

proptest::proptest! {
    /// Whatever stands in a policy, it is converted or refused, and never matches more than without the bad value.
    #[test]
    fn absurd_policies_are_converted_without_harm(texts in proptest::collection::vec(".{0,20}", 0..20), deny: bool) {
        let action = if deny { "DENY" } else { "ALLOW" };
        let spec = json!({ "action": action, "rules": [
            { "from": [{ "source": { "ipBlocks": texts, "notIpBlocks": texts, "principals": texts } }] },
            { "to": [{ "operation": { "ports": texts } }], "when": [{ "key": "source.ip", "values": texts }] },
        ] });
        let input = fixtures::authorization("shop", "p", spec);
        let _ = (authorization(&settings(), &input), effect(&input));
    }
}
