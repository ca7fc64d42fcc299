//! Several networks: who is told of their gateways, and when.

use super::told::{entry, named};
use super::*;
use crate::model::tests::remote;

const WAY: &str = "NetworkGateway/west/192.0.2.9/15443";
const FAR: &str = "Kubernetes/networking.istio.io/WorkloadEntry/shop/far";
const INLINE: &str = "Kubernetes/networking.istio.io/ServiceEntry/shop/api/10.9.0.1";

fn way(over: serde_json::Value) -> Event {
    Event::Gateways(Delta::Put(remote(over)))
}

/// One pod here; one workload and one endpoint over there, and an endpoint of the same ServiceEntry here.
fn two_networks() -> World {
    let far = json!({ "spec": { "address": "10.9.0.2", "network": "west", "serviceAccount": "far" } });
    World::new(vec![
        Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", json!({})))),
        Event::Written(Delta::Put(fixtures::written("far", far))),
        entry(
            "api",
            json!({ "spec": {
                "hosts": ["api.example"], "resolution": "STATIC", "ports": [{ "name": "http", "number": 80 }],
                "endpoints": [{ "address": "10.9.0.1", "network": "west" }, { "address": "10.0.9.9" }],
            } }),
        ),
    ])
}

#[test]
fn what_lives_on_another_network_names_its_gateway_as_long_as_there_is_one() {
    let mut world = two_networks();
    assert!(world.workload(FAR).network_gateway.is_none());
    assert_eq!(world.hear(vec![way(json!({}))]), updated(&[INLINE, FAR, WAY]));
    for name in [FAR, INLINE] {
        let workload = world.workload(name);
        let gateway = workload.network_gateway.unwrap();
        assert_eq!((workload.network.as_str(), gateway.hbone_mtls_port), ("west", 15443));
        let Some(wire::workload::gateway_address::Destination::Address(at)) = gateway.destination else {
            panic!("{name} names no address")
        };
        assert_eq!((at.network.as_str(), &at.address[..]), ("west", &[192, 0, 2, 9][..]));
    }
    let local = "Kubernetes/networking.istio.io/ServiceEntry/shop/api/10.0.9.9";
    for name in [WEB_0, local] {
        assert!(world.workload(name).network_gateway.is_none(), "{name} is reached without");
        assert_eq!(world.workload(name).network, "", "a network is its own endpoint's only");
    }
    assert_eq!(world.workload(WAY).service_account, "west-istio-remote");
    assert_eq!(world.hear(vec![way(json!({}))]), none());

    let (changed, removed, _) = world.hear(vec![Event::Gateways(Delta::Gone(Key::new("shop", "west")))]);
    assert_eq!((changed, removed), (vec![INLINE.to_string(), FAR.to_string()], vec![WAY.to_string()]));
    assert!(world.workload(FAR).network_gateway.is_none());
}

#[test]
fn a_gateway_that_moves_takes_its_network_along() {
    let mut world = two_networks();
    world.hear(vec![way(json!({}))]);
    let moved = json!({ "status": { "addresses": [{ "type": "IPAddress", "value": "192.0.2.10" }] } });
    let (changed, removed, _) = world.hear(vec![way(moved)]);
    assert_eq!(removed, [WAY]);
    assert_eq!(changed, [INLINE, FAR, "NetworkGateway/west/192.0.2.10/15443"]);
    // Into another network: nobody lives there, and what lives in the first one has no way in any more.
    let east = named(json!({ "topology.istio.io/network": "east" }));
    world.hear(vec![way(east)]);
    assert!(world.workload(FAR).network_gateway.is_none());
    assert_eq!(world.workload("NetworkGateway/east/192.0.2.9/15443").network, "east");
}

#[test]
fn two_gateways_at_one_place_are_one_until_both_are_gone() {
    let mut world = two_networks();
    let mut second = remote(json!({}));
    second.key = Key::new("zone", "west");
    world.hear(vec![way(json!({})), Event::Gateways(Delta::Put(second))]);
    assert_eq!(world.workload(WAY).namespace, "shop");
    world.hear(vec![Event::Gateways(Delta::Gone(Key::new("shop", "west")))]);
    assert_eq!(world.workload(WAY).namespace, "zone", "the other one speaks for it now");
    assert!(world.workload(FAR).network_gateway.is_some());
    let (_, removed, _) = world.hear(vec![Event::Gateways(Delta::Gone(Key::new("zone", "west")))]);
    assert_eq!(removed, [WAY]);
}

#[test]
fn who_comes_from_afar_is_told_the_way_into_the_local_network_too() {
    let system = |network: &str| {
        let labels = json!({ "topology.istio.io/network": network });
        Event::Namespaces(Delta::Put(fixtures::namespace("ambit-system", named(labels))))
    };
    let mut world = two_networks();
    world.hear(vec![system("east"), way(json!({}))]);
    assert!(world.workload(WEB_0).network_gateway.is_none());
    world.hear(vec![way(named(json!({ "topology.istio.io/network": "east" })))]);
    assert!(world.workload(WEB_0).network_gateway.is_some());
    // The network of the cluster is another one: its pods move with it.
    world.hear(vec![system("north")]);
    assert!(world.workload(WEB_0).network_gateway.is_none());
    assert_eq!(world.workload(WEB_0).network, "north");
}

#[test]
fn a_gateway_whose_account_is_none_is_left_out_and_named() {
    let mut world = two_networks();
    let account = json!({ "metadata": { "annotations": { "gateway.istio.io/service-account": "a/b" } } });
    let log = super::hostile::logged(|| assert_eq!(world.hear(vec![way(account)]), none()));
    assert!(log.contains("shop/west"), "{log}");
}
