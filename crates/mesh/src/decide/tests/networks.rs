//! What lives on another network is called through the gateway of that network.

use super::*;

/// A service with an endpoint on the network `west`, behind the gateway 10.0.0.9 of the own network.
fn across(sans: Vec<Identity>) -> (Workload, View) {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let mut gateway = pod("gateway", "10.0.0.9", Tunnel::Hbone);
    gateway.identity = Identity::new("cluster.local", "edge", "gateway").unwrap();
    let mut far = serving(pod("far", "10.9.0.1", Tunnel::Hbone), "web", 8080);
    far.addresses.clear();
    far.network = "west".into();
    far.network_gateway = Some(Gateway {
        target: GatewayTarget::Address(NetworkAddress::new("", ip("10.0.0.9"))),
        hbone_port: 15008,
    });
    let mut web = service("web", "10.96.0.1");
    web.subject_alt_names = sans;
    let view = view([a.clone(), gateway, far], [web]);
    (a, view)
}

#[test]
fn a_service_on_another_network_is_reached_through_its_gateway_in_a_tunnel_inside_a_tunnel() {
    let web = Identity::new("west.local", "default", "web").unwrap();
    let (a, view) = across(vec![web.clone()]);
    let route = tunnel(call(&view, &a, "10.96.0.1:80"));
    assert_eq!((route.via, route.hop), (Via::Gateway, "10.0.0.9:15008".parse().unwrap()));
    assert_eq!(route.authority, Authority::Hostname("web.default.svc.cluster.local".into(), 80));
    assert_eq!(route.expect, [Identity::new("cluster.local", "edge", "gateway").unwrap()]);
    assert_eq!(route.inner, Some(Inner { expect: vec![web] }), "and nobody else");
}

#[test]
fn a_service_abroad_that_names_no_identities_is_refused() {
    let (a, view) = across(Vec::new());
    assert!(matches!(refusal(call(&view, &a, "10.96.0.1:80")), Refusal::NoServiceIdentity { .. }));
}

#[test]
fn a_service_abroad_without_a_known_gateway_is_refused() {
    let (a, mut view) = across(vec![Identity::new("west.local", "default", "web").unwrap()]);
    view.remove_workload("Kubernetes//Pod/default/gateway");
    assert!(matches!(refusal(call(&view, &a, "10.96.0.1:80")), Refusal::UnknownGateway { .. }));
}

#[test]
fn a_gateway_that_only_a_name_is_known_of_is_resolved_and_then_dialled() {
    let web = Identity::new("west.local", "default", "web").unwrap();
    let (a, mut view) = across(vec![web]);
    let name: Arc<str> = "gateway.west.example".into();
    let mut far = (**view.workload("Kubernetes//Pod/default/far").unwrap()).clone();
    far.network_gateway = Some(Gateway {
        target: GatewayTarget::Hostname(ServiceKey::new("edge", name.clone())),
        hbone_port: 15443,
    });
    view.insert_workload(far);
    let unknown = call(&view, &a, "10.96.0.1:80");
    assert!(matches!(refusal(unknown), Refusal::UnknownGateway { .. }), "before it is published");

    let identity = Identity::new("cluster.local", "edge", "gateway").unwrap();
    let mut gateway = Workload::new(Gateway::network_uid("west", &name, 15443), "gateway", identity.clone());
    gateway.network = "west".into();
    gateway.hostname = Some(name.clone());
    view.insert_workload(gateway);
    let Decision::Resolve { hostname, .. } = call(&view, &a, "10.96.0.1:80") else { panic!("no name") };
    assert_eq!(hostname, name);
    let ask = |found: &[&str]| {
        let resolved = Resolved::from([(name.clone(), found.iter().map(|text| ip(text)).collect())]);
        let destination = "10.96.0.1:80".parse().unwrap();
        decide(&view, &Call { source: &a, destination, random: 0, resolved: &resolved })
    };
    let route = tunnel(ask(&["192.0.2.9"]));
    assert_eq!((route.via, route.hop), (Via::Gateway, "192.0.2.9:15443".parse().unwrap()));
    assert_eq!(route.expect, [identity]);
    assert!(matches!(refusal(ask(&[])), Refusal::UnknownGateway { .. }), "a name without an address");
}
