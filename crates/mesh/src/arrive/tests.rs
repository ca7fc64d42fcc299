//! Given this workload, when a stream arrives that asks for that, then it leads there.

use proptest::prelude::*;

use super::*;
use crate::{ApplicationTunnel, Gateway, GatewayTarget, Identity, PortMapping, ServiceKey, ServicePort};

fn pod(name: &str, address: &str) -> Workload {
    let identity = Identity::new("cluster.local", "default", name).unwrap();
    let mut workload = Workload::new(format!("Kubernetes//Pod/default/{name}"), name, identity);
    workload.addresses = vec![address.parse().unwrap()];
    workload
}

fn service(name: &str, vip: &str) -> Service {
    let mut service =
        Service::new(name, ServiceKey::new("default", format!("{name}.default.svc.cluster.local")));
    service.vips = vec![NetworkAddress::new("", vip.parse().unwrap())];
    service.ports =
        vec![ServicePort { service_port: 80, target_port: Some(8080), app_protocol: Default::default() }];
    service
}

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn at(view: &View, workload: &Workload, asked: &str) -> Result<Arrival, NotHere> {
    let authority = match asked.parse() {
        Ok(address) => Authority::Address(address),
        Err(_) => {
            let (host, port) = asked.split_once(':').unwrap();
            Authority::Hostname(host.into(), port.parse().unwrap())
        }
    };
    arrive(view, workload, address("10.0.0.2:15008"), &authority, true)
}

#[test]
fn its_own_address_leads_to_the_port_that_was_asked_for() {
    let b = pod("b", "10.0.0.2");
    let arrival = at(&View::default(), &b, "10.0.0.2:9090").unwrap();
    assert_eq!(arrival.target, address("10.0.0.2:9090"));
    assert_eq!((arrival.dial, arrival.proxy_header), (arrival.target, None));
}

#[test]
fn another_address_is_another_pod() {
    let b = pod("b", "10.0.0.2");
    assert!(matches!(at(&View::default(), &b, "10.0.0.3:9090"), Err(NotHere::IpMismatch { .. })));
}

#[test]
fn ports_of_the_mesh_are_no_destinations() {
    for port in MESH_PORTS {
        let arrival = at(&View::default(), &pod("b", "10.0.0.2"), &format!("10.0.0.2:{port}"));
        assert!(matches!(arrival, Err(NotHere::Refused(Refusal::SelfCall(_)))));
    }
}

#[test]
fn a_hostname_leads_to_the_port_that_the_endpoint_maps_else_to_the_services() {
    let mut b = pod("b", "10.0.0.2");
    let web = service("web", "10.96.0.1");
    let mut view = View::default();
    view.insert_service(web.clone());
    let name = "web.default.svc.cluster.local:80";
    assert_eq!(at(&view, &b, name).unwrap().target.port(), 8080);
    b.services.insert(web.key, vec![PortMapping { service_port: 80, target_port: 8181 }]);
    assert_eq!(at(&view, &b, name).unwrap().target.port(), 8181);
    let unknown = at(&view, &b, "other.default.svc.cluster.local:80");
    assert!(matches!(unknown, Err(NotHere::Unresolvable(_))));
}

#[test]
fn a_waypoint_takes_what_is_meant_for_those_that_named_it_one_by_weight_too() {
    let waypoint = pod("waypoint", "10.0.0.2");
    let gateway = Gateway {
        target: GatewayTarget::Address(NetworkAddress::new("", "10.0.0.2".parse().unwrap())),
        hbone_port: 15008,
    };
    let mut one = service("one", "10.96.0.1");
    one.waypoint = Some(gateway.clone());
    let mut two = service("two", "10.96.0.2");
    two.weighted_waypoints = vec![crate::WeightedWaypoint { gateway: gateway.clone(), weight: 1 }];
    let mut pod = pod("p", "10.0.0.9");
    pod.waypoint = Some(gateway);
    let mut view = View::default();
    view.insert_workload(waypoint.clone());
    view.insert_workload(pod);
    for service in [one, two, service("three", "10.96.0.3")] {
        view.insert_service(service);
    }
    for asked in ["10.96.0.1:80", "10.96.0.2:80", "10.0.0.9:80"] {
        assert_eq!(at(&view, &waypoint, asked).unwrap().target, address("10.0.0.2:80"), "{asked}");
    }
    assert!(matches!(at(&view, &waypoint, "10.96.0.3:80"), Err(NotHere::IpMismatch { .. })));
}

#[test]
fn an_application_tunnel_gets_everything_on_loopback_with_the_destination_in_a_proxy_header() {
    let mut waypoint = pod("waypoint", "10.0.0.2");
    waypoint.application_tunnel = Some(ApplicationTunnel { proxy_protocol: true, port: Some(15088) });
    let mut view = View::default();
    view.insert_service(service("web", "10.96.0.1"));
    let arrival = at(&view, &waypoint, "10.96.0.7:443").unwrap();
    assert_eq!(arrival.target, address("10.0.0.2:15088"), "this is what policies see");
    assert_eq!(arrival.dial, address("127.0.0.1:15088"));
    assert_eq!(arrival.proxy_header, Some(address("10.96.0.7:443")));
    let arrival = at(&view, &waypoint, "web.default.svc.cluster.local:80").unwrap();
    assert_eq!(arrival.proxy_header, Some(address("10.96.0.1:80")), "the service's address and port");
}

proptest! {
    #[test]
    fn a_stream_leads_to_the_workload_itself_or_nowhere_and_never_to_the_mesh(
        octets in any::<[u8; 4]>(), port in any::<u16>(), host in "[a-z.-]{1,40}",
        by_name in any::<bool>(), tunnel in proptest::option::of(proptest::option::of(any::<u16>())),
        on_loopback in any::<bool>(),
    ) {
        let mut workload = pod("b", "10.0.0.2");
        workload.application_tunnel = tunnel.map(|port| ApplicationTunnel { proxy_protocol: true, port });
        let mut view = View::default();
        view.insert_service(service("web", "10.96.0.1"));
        let local = address("10.0.0.2:15008");
        let authority = match by_name {
            true => Authority::Hostname(host.as_str().into(), port),
            false => Authority::Address(SocketAddr::new(IpAddr::from(octets), port)),
        };
        if let Ok(arrival) = arrive(&view, &workload, local, &authority, on_loopback) {
            prop_assert_eq!(arrival.target.ip(), local.ip());
            prop_assert!(!MESH_PORTS.contains(&arrival.target.port()));
            prop_assert!(arrival.dial == arrival.target || arrival.dial.ip().is_loopback());
        }
    }
}
