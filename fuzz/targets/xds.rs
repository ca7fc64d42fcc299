//! Whatever a control plane sends: single resources to the types of the mesh and back, and whole responses to a view
//! that decisions are asked of.

use mesh::{Policy, Service, Workload};
use prost::Message;
use wire::Address;
use wire::security::Authorization;
use wire::workload as pb;
use wire::xds::{DeltaDiscoveryResponse, Resource};

use super::{joined, pieces};

/// The first byte says what the rest is.
pub fn resources(input: &[u8]) {
    let Some((kind, bytes)) = input.split_first() else { return };
    match kind % 4 {
        0 => {
            let Some(workload) = pb::Workload::decode(bytes).ok().and_then(|w| Workload::try_from(w).ok())
            else {
                return;
            };
            let again = Address::try_from(pb::Address::from(&workload));
            assert_eq!(again, Ok(Address::Workload(workload)), "read as it is written");
        }
        1 => {
            let Some(service) = pb::Service::decode(bytes).ok().and_then(|s| Service::try_from(s).ok())
            else {
                return;
            };
            let again = Address::try_from(pb::Address::from(&service));
            assert_eq!(again, Ok(Address::Service(service)), "read as it is written");
        }
        2 => {
            let _ = pb::Address::decode(bytes).map(Address::try_from);
        }
        _ => {
            let Some(policy) = Authorization::decode(bytes).ok().and_then(|p| Policy::try_from(p).ok())
            else {
                return;
            };
            assert_eq!(Policy::try_from(Authorization::from(&policy)), Ok(policy), "read as it is written");
        }
    }
}

/// Responses, one a piece; the flag says that it is one of policies.
pub fn responses(input: &[u8]) {
    proxy::exercise_xds(pieces(input));
}

fn workload(uid: &str, ip: u8) -> pb::Workload {
    let gateway = pb::GatewayAddress {
        destination: Some(pb::gateway_address::Destination::Address(pb::NetworkAddress {
            network: String::new(),
            address: vec![10, 0, 0, 2],
            length: None,
        })),
        hbone_mtls_port: 15008,
    };
    let ports =
        pb::PortList { ports: vec![pb::Port { service_port: 80, target_port: 8080, ..pb::Port::default() }] };
    pb::Workload {
        uid: uid.into(),
        name: uid.into(),
        namespace: "shop".into(),
        addresses: vec![vec![10, 0, 0, ip]],
        tunnel_protocol: i32::from(ip % 2 == 1),
        trust_domain: "td".into(),
        service_account: "web".into(),
        node: "n1".into(),
        waypoint: (ip == 3).then_some(gateway),
        authorization_policies: if ip == 1 { vec!["shop/p".into()] } else { Vec::new() },
        services: [("shop/web.shop.svc.cluster.local".to_owned(), ports)].into_iter().collect(),
        ..pb::Workload::default()
    }
}

fn service() -> pb::Service {
    pb::Service {
        name: "web".into(),
        namespace: "shop".into(),
        hostname: "web.shop.svc.cluster.local".into(),
        addresses: vec![pb::NetworkAddress {
            network: String::new(),
            address: vec![10, 96, 0, 1],
            length: None,
        }],
        ports: vec![pb::Port { service_port: 80, target_port: 8080, ..pb::Port::default() }],
        subject_alt_names: vec!["spiffe://td/ns/shop/sa/web".into()],
        load_balancing: Some(pb::LoadBalancing {
            routing_preference: vec![1, 2],
            mode: 2,
            ..pb::LoadBalancing::default()
        }),
        ..pb::Service::default()
    }
}

fn policy() -> Authorization {
    use wire::security::{Clause, Match, Rule};
    let clause = Match {
        destination_ports: vec![80],
        source_ips: vec![wire::security::Address { address: vec![10, 0, 0, 0], length: 8 }],
        ..Match::default()
    };
    Authorization {
        name: "p".into(),
        namespace: "shop".into(),
        scope: 2,
        action: 1,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![clause] }] }],
        ..Authorization::default()
    }
}

fn address(of: pb::address::Type) -> pb::Address {
    pb::Address { r#type: Some(of) }
}

pub fn resource_examples() -> Vec<Vec<u8>> {
    let kinds = [
        workload("a", 1).encode_to_vec(),
        service().encode_to_vec(),
        address(pb::address::Type::Service(service())).encode_to_vec(),
        policy().encode_to_vec(),
    ];
    (0u8..).zip(kinds).map(|(kind, bytes)| [vec![kind], bytes].concat()).collect()
}

pub fn response_examples() -> Vec<Vec<u8>> {
    let response = |type_url: &str, resources: Vec<(&str, Vec<u8>)>, removed: &[&str]| {
        let resources = resources.into_iter().map(|(name, value)| Resource {
            name: name.into(),
            version: "1".into(),
            resource: Some(prost_types::Any { type_url: type_url.into(), value }),
            ..Resource::default()
        });
        DeltaDiscoveryResponse {
            type_url: type_url.into(),
            nonce: "1".into(),
            resources: resources.collect(),
            removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
            ..DeltaDiscoveryResponse::default()
        }
        .encode_to_vec()
    };
    let of_workload =
        |uid, ip| (uid, address(pb::address::Type::Workload(workload(uid, ip))).encode_to_vec());
    let of_service =
        ("shop/web.shop.svc.cluster.local", address(pb::address::Type::Service(service())).encode_to_vec());
    let first = response(
        wire::type_url::ADDRESS,
        vec![of_workload("a", 1), of_workload("b", 2), of_workload("c", 3), of_service],
        &[],
    );
    let policies = response(wire::type_url::AUTHORIZATION, vec![("shop/p", policy().encode_to_vec())], &[]);
    let later = response(wire::type_url::ADDRESS, vec![of_workload("a", 5)], &["b"]);
    vec![
        joined([(false, &first[..]), (true, &policies[..]), (false, &later[..])]),
        joined([(false, &first[..])]),
    ]
}
