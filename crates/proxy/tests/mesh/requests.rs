//! What a proxy answers to peers that speak to it directly.

use std::net::SocketAddr;

use hbone::{HandshakeError, Head, OpenError, Settings, Tunnel};
use http::StatusCode;
use mesh::{Authority, Identity, PortMapping, Service, ServiceKey, ServicePort};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{World, echo, eventually, identity, workload};
use crate::namespaces::in_a_node;

async fn tunnel(world: &World, identity: &Identity) -> Result<Tunnel, HandshakeError> {
    let credential = world.control.credential(identity);
    let socket = world.c.connect(world.b.at(15008)).await.unwrap();
    let expected = [crate::harness::identity("b")];
    Tunnel::handshake(socket, world.b.at(15008), &credential, &expected, &Settings::default()).await
}

async fn status(tunnel: &Tunnel, authority: Authority) -> StatusCode {
    match tunnel.open(&Head::to(authority)).await {
        Ok(_) => StatusCode::OK,
        Err(OpenError::Refused { status }) => status,
        Err(other) => panic!("{other}"),
    }
}

fn at(address: SocketAddr) -> Authority {
    Authority::Address(address)
}

#[test]
fn only_the_pods_own_address_is_connected_to_and_no_port_of_the_mesh() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let peers = echo(world.b.listen(8080));
        let others = echo(world.c.listen(8080));
        let tunnel = tunnel(&world, &identity("a")).await.unwrap();
        assert_eq!(status(&tunnel, at(world.c.at(8080))).await, StatusCode::BAD_REQUEST, "another pod");
        assert_eq!(status(&tunnel, at("127.0.0.1:8080".parse().unwrap())).await, StatusCode::BAD_REQUEST);
        for port in [15001, 15006, 15008] {
            assert_eq!(
                status(&tunnel, at(world.b.at(port))).await,
                StatusCode::SERVICE_UNAVAILABLE,
                "{port}"
            );
        }
        assert_eq!(
            status(&tunnel, at(world.b.at(81))).await,
            StatusCode::SERVICE_UNAVAILABLE,
            "nobody listens"
        );
        assert!(peers.lock().unwrap().is_empty() && others.lock().unwrap().is_empty());
        assert_eq!(status(&tunnel, at(world.b.at(8080))).await, StatusCode::OK, "the tunnel still works");
        let metrics = world.pb.metrics().await;
        assert_eq!(metrics.sum("ambit_connections_refused_total", &[("reason", "ip_mismatch")]), 2);
        assert_eq!(metrics.sum("ambit_connections_refused_total", &[("reason", "self_call")]), 3);
    });
}

#[test]
fn a_hostname_leads_to_the_pods_own_port_of_that_service() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let mut service = Service::new("web", ServiceKey::new("ns", "web.ns.svc.cluster.local"));
        service.ports =
            vec![ServicePort { service_port: 80, target_port: None, app_protocol: Default::default() }];
        let mut b = workload("b", "node-b", &world.b);
        b.services.insert(service.key.clone(), vec![PortMapping { service_port: 80, target_port: 8080 }]);
        world.control.service(&service);
        world.control.workload(&b);
        eventually("the service is known", || async {
            world.pb.dump().await["services"][0]["endpoints"].as_object().map_or(0, |all| all.len()) == 1
        })
        .await;
        echo(world.b.listen(8080));
        let tunnel = tunnel(&world, &identity("a")).await.unwrap();
        let host = |name: &str, port| Authority::Hostname(name.into(), port);
        let mut opened = tunnel.open(&Head::to(host("web.ns.svc.cluster.local", 80))).await.unwrap();
        assert_eq!(opened.baggage.unwrap().service.as_deref(), Some("b"), "the answer says who serves");
        opened.stream.write_all(b"hi").await.unwrap();
        opened.stream.read_exact(&mut [0; 2]).await.unwrap();
        assert_eq!(
            status(&tunnel, host("web.ns.svc.cluster.local", 81)).await,
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(
            status(&tunnel, host("other.ns.svc.cluster.local", 80)).await,
            StatusCode::SERVICE_UNAVAILABLE
        );
    });
}

#[test]
fn a_peer_of_another_trust_domain_is_refused_and_counted_with_its_reason() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let stranger = Identity::new("elsewhere", "ns", "a").unwrap();
        assert!(tunnel(&world, &stranger).await.is_err());
        let refused = [("reason", "wrong_trust_domain"), ("reporter", "destination")];
        eventually("it is counted", || async {
            world.pb.metrics().await.sum("ambit_connections_refused_total", &refused) == 1
        })
        .await;
    });
}

#[test]
fn what_is_not_tls_harms_nobody() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let mut socket = world.c.connect(world.b.at(15008)).await.unwrap();
        socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        let _ = socket.read_to_end(&mut answer).await;
        assert!(!answer.starts_with(b"HTTP"));
        assert_eq!(crate::harness::call(&world.a, world.b.at(8080), b"hi").await.unwrap(), b"hi");
    });
}
