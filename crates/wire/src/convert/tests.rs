//! What goes out comes back the same; what a real client refuses is refused.

use std::net::IpAddr;

use mesh::{
    Action, Cidr, Clause, Gateway, GatewayTarget, HealthPolicy, Identity, LoadBalancing, LoadBalancingMode,
    Match, NetworkAddress, Policy, PortMapping, RoutingScope, Rule, Scope, Service, ServiceAccountMatch,
    ServiceKey, ServicePort, StringMatch, Tunnel, WeightedWaypoint, Workload,
};
use prost::Message;

use super::*;
use crate::{security, workload as pb};

fn workload() -> Workload {
    let identity = Identity::new("td.example", "default", "web").unwrap();
    let mut workload = Workload::new("Kubernetes//Pod/default/web-0", "web-0", identity);
    workload.addresses = vec!["10.0.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
    workload.tunnel = Tunnel::Hbone;
    workload.node = "node-1".into();
    workload.policies = vec!["default/p".into()];
    workload.locality.zone = "z1".into();
    workload.capacity = 7;
    workload.services.insert(
        ServiceKey::new("default", "web.default.svc.cluster.local"),
        vec![PortMapping { service_port: 80, target_port: 8080 }],
    );
    workload.waypoint = Some(Gateway {
        target: GatewayTarget::Address(NetworkAddress::new("net", "10.9.9.9".parse::<IpAddr>().unwrap())),
        hbone_port: 15008,
    });
    workload
}

fn service() -> Service {
    let mut service = Service::new("web", ServiceKey::new("default", "web.default.svc.cluster.local"));
    let gateway = Gateway {
        target: GatewayTarget::Hostname(ServiceKey::new("default", "wp.example")),
        hbone_port: 15008,
    };
    service.vips = vec![NetworkAddress::new("", "10.96.0.9".parse::<IpAddr>().unwrap())];
    service.cidr_vips = vec![("net".into(), "10.1.0.0/16".parse().unwrap())];
    service.ports =
        vec![ServicePort { service_port: 80, target_port: None, app_protocol: mesh::AppProtocol::Http11 }];
    service.subject_alt_names = vec!["spiffe://td/ns/a/sa/b".parse().unwrap()];
    service.waypoint = Some(gateway.clone());
    service.weighted_waypoints = vec![WeightedWaypoint { gateway, weight: 3 }];
    service.load_balancing = Some(LoadBalancing {
        routing_preference: vec![RoutingScope::Network, RoutingScope::Zone],
        mode: LoadBalancingMode::Failover,
        health_policy: HealthPolicy::AllowAll,
    });
    service.canonical = true;
    service
}

fn policy() -> Policy {
    let block: Cidr = "10.0.0.0/8".parse().unwrap();
    let everything = Match {
        namespaces: vec![StringMatch::Prefix("a".into())],
        not_namespaces: vec![StringMatch::Suffix("b".into())],
        principals: vec![StringMatch::Presence],
        not_principals: vec![StringMatch::Exact("c".into())],
        service_accounts: vec![ServiceAccountMatch { namespace: "n".into(), service_account: "s".into() }],
        not_service_accounts: vec![ServiceAccountMatch {
            namespace: "n".into(),
            service_account: "t".into(),
        }],
        source_ips: vec![block],
        not_source_ips: vec![block],
        destination_ips: vec![block],
        not_destination_ips: vec![block],
        destination_ports: vec![80],
        not_destination_ports: vec![81],
    };
    Policy {
        name: "p".into(),
        namespace: "default".into(),
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![everything] }] }, Rule::default()],
        dry_run: true,
    }
}

#[test]
fn a_workload_survives_the_journey() {
    let sent = pb::Address::from(&workload()).encode_to_vec();
    let received = pb::Address::decode(&sent[..]).unwrap();
    assert_eq!(Address::try_from(received), Ok(Address::Workload(workload())));
}

#[test]
fn a_service_survives_the_journey() {
    let sent = pb::Address::from(&service()).encode_to_vec();
    let received = pb::Address::decode(&sent[..]).unwrap();
    assert_eq!(Address::try_from(received), Ok(Address::Service(service())));
}

#[test]
fn a_policy_survives_the_journey() {
    let sent = security::Authorization::from(&policy()).encode_to_vec();
    let received = security::Authorization::decode(&sent[..]).unwrap();
    assert_eq!(Policy::try_from(received), Ok(policy()));
}

#[test]
fn the_same_object_always_has_the_same_bytes() {
    let mut other = workload();
    other.services.insert(ServiceKey::new("default", "a.example"), Vec::new());
    let first = pb::Address::from(&other).encode_to_vec();
    assert_eq!(first, pb::Address::from(&other.clone()).encode_to_vec());
}

#[test]
fn what_a_real_client_refuses_is_refused_with_the_field_named() {
    let good = || pb::Workload::from(&workload());
    let refused = |wire: pb::Workload| Workload::try_from(wire).unwrap_err().field;
    assert_eq!(refused(pb::Workload { tunnel_protocol: 2, ..good() }), "workload.tunnel_protocol");
    assert_eq!(refused(pb::Workload { tunnel_protocol: 9, ..good() }), "workload.tunnel_protocol");
    assert_eq!(refused(pb::Workload { network_mode: 9, ..good() }), "workload.network_mode");
    assert_eq!(refused(pb::Workload { status: 9, ..good() }), "workload.status");
    assert_eq!(refused(pb::Workload { addresses: vec![vec![1, 2, 3]], ..good() }), "workload.addresses");
    assert_eq!(
        refused(pb::Workload { waypoint: Some(pb::GatewayAddress::default()), ..good() }),
        "workload.waypoint"
    );
    let no_slash = [("web".to_owned(), pb::PortList::default())].into();
    assert_eq!(refused(pb::Workload { services: no_slash, ..good() }), "workload.services");
    assert!(Address::try_from(pb::Address::default()).is_err());
    let long = pb::NetworkAddress { network: String::new(), address: vec![1, 2, 3, 4], length: Some(33) };
    let service = pb::Service { addresses: vec![long], ..pb::Service::from(&service()) };
    assert_eq!(Service::try_from(service).unwrap_err().field, "service.addresses");
    let action = security::Authorization { action: 7, ..security::Authorization::from(&policy()) };
    assert_eq!(Policy::try_from(action).unwrap_err().field, "authorization.action");
}

#[test]
fn an_unknown_workload_type_or_visibility_is_not_refused() {
    let wire = pb::Workload { workload_type: 42, ..pb::Workload::from(&workload()) };
    assert!(Workload::try_from(wire).is_ok());
    let wire = pb::Service { visibility: 42, ..pb::Service::from(&service()) };
    assert!(Service::try_from(wire).is_ok());
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_conversion_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
        if let Ok(address) = pb::Address::decode(&bytes[..]) {
            let _ = Address::try_from(address);
        }
        if let Ok(policy) = security::Authorization::decode(&bytes[..]) {
            let _ = Policy::try_from(policy);
        }
    }
}
