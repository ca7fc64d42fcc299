//! Gateways of other networks (reference/control-plane.md §1.8).

use mesh::{GatewayTarget, NetworkAddress, ServiceKey};

use super::*;

/// A Gateway that stands for one of the network `west`, with `over` laid over it.
pub(crate) fn remote(over: Value) -> crate::input::Gateway {
    let mut base = json!({
        "metadata": { "labels": { "topology.istio.io/network": "west" } },
        "spec": { "gatewayClassName": "istio-remote", "listeners": [
            { "name": "status", "port": 15021, "protocol": "TCP" },
            { "name": "cross-network", "port": 15443, "protocol": "HBONE", "tls": { "mode": "Passthrough" } },
            { "name": "another", "port": 15008, "protocol": "HBONE" },
        ] },
        "status": { "addresses": [{ "type": "IPAddress", "value": "192.0.2.9" }] },
    });
    fixtures::merge(&mut base, over);
    fixtures::gateway("west", base)
}

fn uids(over: Value) -> Vec<String> {
    network_gateways(&remote(over)).iter().map(|way| way.uid().to_string()).collect()
}

#[test]
fn a_gateway_of_another_network_is_each_of_its_addresses_at_its_first_port_for_tunnels() {
    assert_eq!(uids(json!({})), ["NetworkGateway/west/192.0.2.9/15443"]);
    let two = json!({ "status": { "addresses": [
        { "type": "Hostname", "value": "west.example" }, { "type": "Unknown", "value": "x" }, { "value": "2001:db8::9" },
    ] } });
    let wanted = ["NetworkGateway/west/west.example/15443", "NetworkGateway/west/2001:db8::9/15443"];
    assert_eq!(uids(two), wanted);
    let none: [(&str, Value); 7] = [
        ("no network", json!({ "metadata": { "labels": { "topology.istio.io/network": null } } })),
        ("an empty one", json!({ "metadata": { "labels": { "topology.istio.io/network": "" } } })),
        ("the way into this network", json!({ "spec": { "gatewayClassName": "istio-east-west" } })),
        ("a waypoint", json!({ "spec": { "gatewayClassName": "istio-waypoint" } })),
        ("no tunnels", json!({ "spec": { "listeners": [{ "port": 15443, "protocol": "TLS" }] } })),
        ("no port", json!({ "spec": { "listeners": [{ "port": 0, "protocol": "HBONE" }] } })),
        ("no address", json!({ "status": { "addresses": [] } })),
    ];
    for (why, over) in none {
        assert_eq!(uids(over), [""; 0], "{why}");
    }
}

#[test]
fn where_nobody_has_written_its_status_the_addresses_it_asks_for_count() {
    let stated = json!([{ "type": "IPAddress", "value": "198.51.100.1" }]);
    let both = json!({ "spec": { "addresses": stated } });
    assert_eq!(uids(both), ["NetworkGateway/west/192.0.2.9/15443"], "what stands there comes first");
    let alone = json!({ "spec": { "addresses": stated }, "status": { "addresses": [] } });
    assert_eq!(uids(alone.clone()), ["NetworkGateway/west/198.51.100.1/15443"]);
    let waypoint = fixtures::gateway("w", alone);
    assert!(
        waypoint.addresses.is_empty(),
        "one that somebody is to run is where it runs, not where it is to run"
    );
}

#[test]
fn whoever_calls_it_expects_its_account() {
    let only = |over: Value| network_gateways(&remote(over)).remove(0);
    let annotated = |account: &str| json!({ "metadata": { "annotations": { "gateway.istio.io/service-account": account } } });
    let workload = only(json!({})).workload(&settings()).unwrap();
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/west-istio-remote");
    let workload = only(annotated("istio-eastwest")).workload(&settings()).unwrap();
    assert_eq!(workload.identity.to_string(), "spiffe://cluster.local/ns/shop/sa/istio-eastwest");
    assert_eq!((&*workload.uid, &*workload.name), (&*workload.name, "NetworkGateway/west/192.0.2.9/15443"));
    assert_eq!((&*workload.network, &*workload.namespace), ("west", "shop"));
    assert_eq!(workload.addresses, ["192.0.2.9".parse::<IpAddr>().unwrap()]);
    assert!(only(annotated("a/b")).workload(&settings()).is_err());
}

#[test]
fn workloads_of_its_network_name_it_by_address_or_by_host() {
    let target = |over: Value| network_gateways(&remote(over)).remove(0).target();
    let found = target(json!({}));
    let address = NetworkAddress::new("west", "192.0.2.9".parse().unwrap());
    assert_eq!((found.target, found.hbone_port), (GatewayTarget::Address(address), 15443));
    let named = json!({ "status": { "addresses": [{ "type": "Hostname", "value": "west.example" }] } });
    assert_eq!(target(named).target, GatewayTarget::Hostname(ServiceKey::new("shop", "west.example")));
}
