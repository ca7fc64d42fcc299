//! Every row of the reference's tables.

mod network;
mod policies;

pub(crate) use network::remote;

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
