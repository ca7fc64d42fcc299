//! Given this view, when a calls there, then this happens. Sections are those of reference/data-plane.md.

mod networks;
mod partial;

use proptest::prelude::*;

use super::*;
use crate::{
    Gateway, GatewayTarget, Health, HealthPolicy, LoadBalancing, NetworkMode, PortMapping, RoutingScope,
    ServiceKey, ServicePort, Visibility, WeightedWaypoint,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn pod(name: &str, address: &str, tunnel: Tunnel) -> Workload {
    let identity = Identity::new("cluster.local", "default", name).unwrap();
    let mut workload = Workload::new(format!("Kubernetes//Pod/default/{name}"), name, identity);
    workload.addresses = vec![ip(address)];
    workload.tunnel = tunnel;
    workload
}

fn key(name: &str) -> ServiceKey {
    ServiceKey::new("default", format!("{name}.default.svc.cluster.local"))
}

fn service(name: &str, vip: &str) -> Service {
    let mut service = Service::new(name, key(name));
    service.vips = vec![NetworkAddress::new("", ip(vip))];
    service.ports =
        vec![ServicePort { service_port: 80, target_port: Some(8080), app_protocol: Default::default() }];
    service.canonical = true;
    service
}

fn serving(mut workload: Workload, service: &str, target_port: u16) -> Workload {
    workload.services.insert(key(service), vec![PortMapping { service_port: 80, target_port }]);
    workload
}

fn view(workloads: impl IntoIterator<Item = Workload>, services: impl IntoIterator<Item = Service>) -> View {
    let mut view = View::default();
    workloads.into_iter().for_each(|workload| view.insert_workload(workload));
    services.into_iter().for_each(|service| view.insert_service(service));
    view
}

fn call(view: &View, source: &Workload, to: &str) -> Decision {
    decide(view, &Call { source, destination: to.parse().unwrap(), random: 0, resolved: &NOTHING_RESOLVED })
}

fn tunnel(decision: Decision) -> Route {
    match decision {
        Decision::Tunnel(route) => route,
        other => panic!("expected a tunnel, got {other:?}"),
    }
}

fn refusal(decision: Decision) -> Refusal {
    match decision {
        Decision::Refuse(refusal) => refusal,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[test]
fn a_direct_call_to_an_enrolled_pod_is_tunnelled_to_that_pod() {
    let (a, b) = (pod("a", "10.0.0.1", Tunnel::Hbone), pod("b", "10.0.0.2", Tunnel::Hbone));
    let route = tunnel(call(&view([a.clone(), b.clone()], []), &a, "10.0.0.2:9090"));
    assert_eq!(route.hop, "10.0.0.2:15008".parse().unwrap());
    assert_eq!(route.authority, Authority::Address("10.0.0.2:9090".parse().unwrap()));
    assert_eq!(route.expect, [b.identity]);
    assert_eq!((route.service, route.via), (None, Via::Direct));
}

#[test]
fn an_address_in_its_v4_mapped_form_is_the_same_address() {
    let (a, b) = (pod("a", "10.0.0.1", Tunnel::Hbone), pod("b", "10.0.0.2", Tunnel::Hbone));
    let route = tunnel(call(&view([a.clone(), b], []), &a, "[::ffff:10.0.0.2]:9090"));
    assert_eq!(route.hop, "10.0.0.2:15008".parse().unwrap());
}

#[test]
fn a_direct_call_to_a_pod_that_is_not_enrolled_passes_through_and_says_why() {
    let (a, b) = (pod("a", "10.0.0.1", Tunnel::Hbone), pod("b", "10.0.0.2", Tunnel::None));
    let decision = call(&view([a.clone(), b], []), &a, "10.0.0.2:9090");
    let Decision::Passthrough { to, workload, why, .. } = decision else { panic!("{decision:?}") };
    assert_eq!((to, why), ("10.0.0.2:9090".parse().unwrap(), Plaintext::NotEnrolled));
    assert_eq!(&*workload.unwrap().name, "b");
}

#[test]
fn an_unknown_destination_passes_through() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let decision = call(&view([a.clone()], []), &a, "1.2.3.4:443");
    assert!(matches!(
        decision,
        Decision::Passthrough { why: Plaintext::UnknownDestination, workload: None, .. }
    ));
}

#[test]
fn a_service_call_reaches_an_endpoint_at_its_own_port() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let b = serving(pod("b", "10.0.0.2", Tunnel::Hbone), "web", 9999);
    let route = tunnel(call(&view([a.clone(), b], [service("web", "10.96.0.1")]), &a, "10.96.0.1:80"));
    assert_eq!(route.authority, Authority::Address("10.0.0.2:9999".parse().unwrap()));
    assert_eq!(&*route.service.unwrap().name, "web");
}

#[test]
fn endpoints_may_arrive_before_their_service_and_survive_its_updates() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let mut view = view([a.clone(), serving(pod("b", "10.0.0.2", Tunnel::Hbone), "web", 8080)], []);
    view.insert_service(service("web", "10.96.0.1"));
    view.insert_service(service("web", "10.96.0.9"));
    tunnel(call(&view, &a, "10.96.0.9:80"));
    assert!(
        matches!(call(&view, &a, "10.96.0.1:80"), Decision::Passthrough { .. }),
        "the old VIP is forgotten"
    );
}

#[test]
fn subject_alt_names_of_the_service_are_accepted_too() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let b = serving(pod("b", "10.0.0.2", Tunnel::Hbone), "web", 8080);
    let san: Identity = "spiffe://other/ns/x/sa/y".parse().unwrap();
    let mut web = service("web", "10.96.0.1");
    web.subject_alt_names = vec![san.clone()];
    let route = tunnel(call(&view([a.clone(), b.clone()], [web]), &a, "10.96.0.1:80"));
    assert_eq!(route.expect, [b.identity.clone(), san]);
}

#[test]
fn a_service_without_a_usable_endpoint_is_refused() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let mut sick = serving(pod("b", "10.0.0.2", Tunnel::Hbone), "web", 8080);
    sick.health = Health::Unhealthy;
    let mut view = view([a.clone(), sick], [service("web", "10.96.0.1")]);
    assert!(matches!(refusal(call(&view, &a, "10.96.0.1:80")), Refusal::NoHealthyUpstream { port: 80, .. }));
    assert!(matches!(refusal(call(&view, &a, "10.96.0.1:81")), Refusal::NoHealthyUpstream { port: 81, .. }));
    // ALLOW_ALL lets the unhealthy one count, also when the service changes after the workload came.
    let mut web = service("web", "10.96.0.1");
    web.load_balancing = Some(LoadBalancing {
        routing_preference: vec![],
        mode: LoadBalancingMode::Unspecified,
        health_policy: HealthPolicy::AllowAll,
    });
    view.insert_service(web);
    tunnel(call(&view, &a, "10.96.0.1:80"));
}

#[test]
fn a_named_port_without_the_endpoints_own_mapping_disqualifies_it() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let mut b = pod("b", "10.0.0.2", Tunnel::Hbone);
    b.services.insert(key("web"), vec![]);
    let mut web = service("web", "10.96.0.1");
    web.ports[0].target_port = None;
    let view = view([a.clone(), b], [web]);
    assert!(matches!(refusal(call(&view, &a, "10.96.0.1:80")), Refusal::NoHealthyUpstream { .. }));
}

#[test]
fn a_pod_calling_its_own_service_may_reach_itself() {
    let a = serving(pod("a", "10.0.0.1", Tunnel::Hbone), "web", 8080);
    let route = tunnel(call(&view([a.clone()], [service("web", "10.96.0.1")]), &a, "10.96.0.1:80"));
    assert_eq!(route.hop, "10.0.0.1:15008".parse().unwrap());
}

#[test]
fn the_meshs_own_ports_on_loopback_are_refused() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    for to in ["127.0.0.1:15001", "127.0.0.1:15006", "[::1]:15008"] {
        assert!(matches!(refusal(call(&view([a.clone()], []), &a, to)), Refusal::SelfCall(_)), "{to}");
    }
}

#[test]
fn host_network_workloads_are_not_found_by_address() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let mut host = pod("h", "192.0.2.1", Tunnel::None);
    host.network_mode = NetworkMode::HostNetwork;
    let decision = call(&view([a.clone(), host], []), &a, "192.0.2.1:9100");
    assert!(matches!(decision, Decision::Passthrough { why: Plaintext::UnknownDestination, .. }));
}

#[test]
fn a_service_with_a_waypoint_is_called_through_it_with_the_destination_unchanged() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let b = serving(pod("b", "10.0.0.2", Tunnel::Hbone), "web", 8080);
    let mut waypoint = pod("wp", "10.0.0.3", Tunnel::None);
    waypoint.services.insert(key("wp"), vec![PortMapping { service_port: 15008, target_port: 15008 }]);
    let mut wp = service("wp", "10.96.0.7");
    wp.ports =
        vec![ServicePort { service_port: 15008, target_port: Some(15008), app_protocol: Default::default() }];
    let gateway = Gateway { target: GatewayTarget::Hostname(key("wp")), hbone_port: 15008 };
    let mut web = service("web", "10.96.0.1");
    web.waypoint = Some(gateway.clone());
    let with = view([a.clone(), b.clone(), waypoint.clone()], [web.clone(), wp]);
    let route = tunnel(call(&with, &a, "10.96.0.1:80"));
    assert_eq!(route.hop, "10.0.0.3:15008".parse().unwrap());
    assert_eq!(route.authority, Authority::Address("10.96.0.1:80".parse().unwrap()));
    assert_eq!((route.via, route.expect), (Via::Waypoint, vec![waypoint.identity.clone()]));

    // Without the waypoint the call is refused: never around it.
    assert!(matches!(
        refusal(call(&view([a.clone(), b], [web.clone()]), &a, "10.96.0.1:80")),
        Refusal::UnknownWaypoint { .. }
    ));

    // Weights decide among several.
    let nowhere = Gateway { target: GatewayTarget::Hostname(key("gone")), hbone_port: 15008 };
    web.weighted_waypoints =
        vec![WeightedWaypoint { gateway: nowhere, weight: 0 }, WeightedWaypoint { gateway, weight: 1 }];
    assert_eq!(choose_waypoint(&web, 12345).unwrap().target, GatewayTarget::Hostname(key("wp")));
}

#[test]
fn a_workload_waypoint_is_used_unless_the_call_comes_from_it() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let waypoint = pod("wp", "10.0.0.3", Tunnel::None);
    let mut b = pod("b", "10.0.0.2", Tunnel::Hbone);
    let address = NetworkAddress::new("", ip("10.0.0.3"));
    b.waypoint = Some(Gateway { target: GatewayTarget::Address(address), hbone_port: 15008 });
    let view = view([a.clone(), b, waypoint.clone()], []);
    assert_eq!(tunnel(call(&view, &a, "10.0.0.2:80")).via, Via::Waypoint);
    assert_eq!(tunnel(call(&view, &waypoint, "10.0.0.2:80")).via, Via::Direct);
}

#[test]
fn a_passthrough_service_keeps_the_original_destination() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let mut web = service("web", "10.96.0.1");
    web.load_balancing = Some(LoadBalancing {
        routing_preference: vec![],
        mode: LoadBalancingMode::Passthrough,
        health_policy: HealthPolicy::AllowAll,
    });
    let decision = call(&view([a.clone()], [web]), &a, "10.96.0.1:80");
    let Decision::Passthrough { to, why, .. } = decision else { panic!("{decision:?}") };
    assert_eq!((to, why), ("10.96.0.1:80".parse().unwrap(), Plaintext::PassthroughService));
}

#[test]
fn locality_failover_and_strict() {
    let lb = |mode| LoadBalancing {
        routing_preference: vec![RoutingScope::Network, RoutingScope::Region, RoutingScope::Zone],
        mode,
        health_policy: HealthPolicy::OnlyHealthy,
    };
    let at = |name: &str, address: &str, zone: &str| {
        let mut workload = serving(pod(name, address, Tunnel::Hbone), "web", 8080);
        workload.locality.zone = zone.into();
        workload
    };
    let mut a = pod("a", "10.0.0.1", Tunnel::Hbone);
    a.locality.zone = "z1".into();
    let mut web = service("web", "10.96.0.1");
    web.load_balancing = Some(lb(LoadBalancingMode::Failover));
    let mut view =
        view([a.clone(), at("far", "10.0.0.2", "z2"), at("near", "10.0.0.3", "z1")], [web.clone()]);
    for random in 0..20 {
        let call = Call {
            source: &a,
            destination: "10.96.0.1:80".parse().unwrap(),
            random,
            resolved: &NOTHING_RESOLVED,
        };
        assert_eq!(&*tunnel(decide(&view, &call)).workload.name, "near");
    }
    view.remove_workload("Kubernetes//Pod/default/near");
    assert_eq!(&*tunnel(call(&view, &a, "10.96.0.1:80")).workload.name, "far", "failover takes what is left");
    web.load_balancing = Some(lb(LoadBalancingMode::Strict));
    view.insert_service(web);
    assert!(matches!(refusal(call(&view, &a, "10.96.0.1:80")), Refusal::NoHealthyUpstream { .. }));
}

#[test]
fn an_endpoint_whose_address_has_gone_to_an_enrolled_pod_gets_nothing_in_plaintext() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let finished = serving(pod("finished", "10.0.0.2", Tunnel::None), "web", 8080);
    let next = pod("next", "10.0.0.2", Tunnel::Hbone);
    let view = view([a.clone(), finished, next], [service("web", "10.96.0.1")]);
    assert!(matches!(refusal(call(&view, &a, "10.96.0.1:80")), Refusal::NoHealthyUpstream { .. }));
}

#[test]
fn load_follows_capacity() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let mut big = serving(pod("big", "10.0.0.2", Tunnel::Hbone), "web", 8080);
    big.capacity = 3;
    let small = serving(pod("small", "10.0.0.3", Tunnel::Hbone), "web", 8080);
    let view = view([a.clone(), big, small], [service("web", "10.96.0.1")]);
    let chosen = (0..400).filter(|random| {
        let call = Call {
            source: &a,
            destination: "10.96.0.1:80".parse().unwrap(),
            random: *random,
            resolved: &NOTHING_RESOLVED,
        };
        &*tunnel(decide(&view, &call)).workload.name == "big"
    });
    assert_eq!(chosen.count(), 300);
}

#[test]
fn the_callers_own_namespace_wins_a_shared_vip_and_private_services_are_not_seen() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let mut other = service("web", "10.96.0.1");
    other.key = ServiceKey::new("other", "web.other.svc.cluster.local");
    let mut own = service("web", "10.96.0.1");
    own.canonical = false;
    let shared =
        view([a.clone(), serving(pod("b", "10.0.0.2", Tunnel::Hbone), "web", 8080)], [other.clone(), own]);
    tunnel(call(&shared, &a, "10.96.0.1:80"));
    other.visibility = Visibility::Namespace;
    let private = view([a.clone()], [other]);
    assert!(matches!(
        call(&private, &a, "10.96.0.1:80"),
        Decision::Passthrough { why: Plaintext::UnknownDestination, .. }
    ));
}

fn any_workload() -> impl Strategy<Value = Workload> {
    (0u8..6, 0u8..6, any::<bool>(), any::<bool>(), 0u8..4, any::<bool>(), any::<u16>()).prop_map(
        |(name, address, hbone, healthy, service, host, port)| {
            let tunnel = if hbone { Tunnel::Hbone } else { Tunnel::None };
            let mut w = pod(&format!("w{name}"), &format!("10.0.0.{address}"), tunnel);
            w.health = if healthy { Health::Healthy } else { Health::Unhealthy };
            w.network_mode = if host { NetworkMode::HostNetwork } else { NetworkMode::Standard };
            if address == 5 {
                w.addresses.clear();
            }
            if service == 3 {
                let target = GatewayTarget::Address(NetworkAddress::new("", ip("10.0.0.1")));
                w.waypoint = Some(Gateway { target, hbone_port: port });
            }
            serving(w, &format!("s{service}"), port)
        },
    )
}

proptest! {
    /// No view and no call makes it panic, and nothing that accepts tunnels is ever called in plaintext.
    #[test]
    fn never_plaintext_to_a_workload_that_accepts_tunnels(
        workloads in proptest::collection::vec(any_workload(), 1..8),
        to in (0u8..8, any::<u16>()),
        vip in any::<bool>(),
        random in any::<u64>(),
    ) {
        let source = workloads[0].clone();
        let services = (0..4).map(|n| service(&format!("s{n}"), &format!("10.96.0.{n}")));
        let view = view(workloads, services);
        let destination = if vip { format!("10.96.0.{}:80", to.0) } else { format!("10.0.0.{}:{}", to.0, to.1) };
        let decision = decide(&view, &Call { source: &source, destination: destination.parse().unwrap(), random, resolved: &NOTHING_RESOLVED });
        if let Decision::Passthrough { to, workload, .. } = decision {
            prop_assert!(workload.is_none_or(|workload| workload.tunnel == Tunnel::None));
            let owner = view.workload_by_address(&NetworkAddress::new("", to.ip()));
            prop_assert!(owner.is_none_or(|workload| workload.tunnel == Tunnel::None));
        }
    }
}

#[test]
fn a_workload_that_has_only_a_hostname_is_called_once_that_is_resolved() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let mut external = serving(pod("external", "10.9.0.1", Tunnel::None), "web", 443);
    external.addresses.clear();
    external.hostname = Some("db.example.com".into());
    let view = view([a.clone(), external], [service("web", "10.96.0.1")]);
    let Decision::Resolve { hostname, .. } = call(&view, &a, "10.96.0.1:80") else { panic!("no name") };
    let ask = |found: &[&str]| {
        let found = found.iter().map(|text| ip(text)).collect();
        let resolved = Resolved::from([(hostname.clone(), found)]);
        let destination = "10.96.0.1:80".parse().unwrap();
        decide(&view, &Call { source: &a, destination, random: 0, resolved: &resolved })
    };
    let Decision::Passthrough { to, .. } = ask(&["2001:db8::7", "192.0.2.7"]) else { panic!("no call") };
    assert_eq!(to, "192.0.2.7:443".parse().unwrap(), "of the family that was called");
    assert!(matches!(refusal(ask(&[])), Refusal::NoAddress { .. }), "and never asked for again");
}

#[test]
fn a_waypoint_may_be_found_at_a_port_that_its_service_does_not_list_if_it_has_an_application_tunnel() {
    let a = pod("a", "10.0.0.1", Tunnel::Hbone);
    let mut waypoint = pod("waypoint", "10.0.0.8", Tunnel::Hbone);
    waypoint.services.insert(key("waypoint"), Vec::new());
    waypoint.application_tunnel = Some(crate::ApplicationTunnel { proxy_protocol: true, port: Some(15088) });
    let mut web = service("web", "10.96.0.1");
    web.waypoint = Some(Gateway { target: GatewayTarget::Hostname(key("waypoint")), hbone_port: 15008 });
    let view = view([a.clone(), waypoint], [web, service("waypoint", "10.96.0.8")]);
    let route = tunnel(call(&view, &a, "10.96.0.1:80"));
    assert_eq!((route.via, route.hop), (Via::Waypoint, "10.0.0.8:15008".parse().unwrap()));
}
