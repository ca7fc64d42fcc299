//! Waypoints and gateways that the tests play themselves.

use std::sync::Arc;

use hbone::{Server, Settings};
use mesh::{
    Action, ApplicationTunnel, Authority, Gateway, GatewayTarget, Identity, NetworkAddress, Policy,
    PortMapping, Rule, Scope, Service, ServiceKey, ServicePort,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{World, call, echo, eventually, identity, workload};
use crate::namespaces::in_a_node;

#[test]
fn a_service_on_another_network_is_called_in_a_tunnel_inside_a_tunnel() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        // Pod c is the gateway to the network `west`; there, `web` proves to be somebody of another trust domain.
        let mut gateway = workload("c", "node-b", &world.c);
        gateway.name = "gateway".into();
        world.control.workload(&gateway);
        let web: Identity = "spiffe://cluster.local/ns/west/sa/web".parse().unwrap();
        let key = ServiceKey::new("ns", "web.ns.svc.cluster.local");
        let mut service = Service::new("web", key.clone());
        service.vips = vec![NetworkAddress::new("", "10.96.0.1".parse().unwrap())];
        service.ports =
            vec![ServicePort { service_port: 80, target_port: Some(8080), app_protocol: Default::default() }];
        service.subject_alt_names = vec![web.clone()];
        world.control.service(&service);
        let mut far = workload("far", "node-x", &world.c);
        far.addresses.clear();
        far.network = "west".into();
        far.services.insert(key, vec![PortMapping { service_port: 80, target_port: 8080 }]);
        far.network_gateway = Some(Gateway {
            target: GatewayTarget::Address(NetworkAddress::new("", world.c.ip)),
            hbone_port: 15008,
        });
        world.control.workload(&far);

        let listener = world.c.listen(15008);
        let (outer, inner) =
            (Arc::new(world.control.credential(&identity("c"))), Arc::new(world.control.credential(&web)));
        tokio::spawn(async move {
            while let Ok((socket, peer)) = listener.accept().await {
                let (outer, inner) = (outer.clone(), inner.clone());
                tokio::spawn(async move {
                    let settings = Settings::default();
                    let mut tunnel = Server::handshake(socket, peer, &outer, &settings).await.unwrap();
                    while let Some(request) = tunnel.next().await {
                        let expected = Authority::Hostname("web.ns.svc.cluster.local".into(), 80);
                        assert_eq!(request.head.unwrap().authority, expected);
                        let stream = request.responder.accept(None).unwrap();
                        let (inner, settings) = (inner.clone(), settings.clone());
                        tokio::spawn(async move {
                            let mut tunnel =
                                Server::handshake(stream, peer, &inner, &settings).await.unwrap();
                            assert_eq!(tunnel.identity(), &identity("a"));
                            while let Some(request) = tunnel.next().await {
                                let head = request.head.unwrap();
                                assert_eq!(head.authority, expected);
                                assert_eq!(head.network.as_deref(), Some("").filter(|n| !n.is_empty()));
                                let mut stream = request.responder.accept(None).unwrap();
                                tokio::spawn(async move {
                                    let mut data = Vec::new();
                                    stream.read_to_end(&mut data).await.unwrap();
                                    stream.write_all(&data).await.unwrap();
                                    stream.shutdown().await.unwrap();
                                });
                            }
                        });
                    }
                });
            }
        });
        let vip = "10.96.0.1:80".parse().unwrap();
        eventually("the far service answers", async || {
            tokio::time::timeout(std::time::Duration::from_secs(2), call(&world.a, vip, b"far away"))
                .await
                .is_ok_and(|got| got.is_ok_and(|got| got == b"far away"))
        })
        .await;
        let metrics = world.pa.metrics().await;
        let labels = [
            ("destination_service", "web.ns.svc.cluster.local"),
            ("connection_security_policy", "mutual_tls"),
            ("destination_workload", "unknown"),
        ];
        assert!(metrics.sum("istio_tcp_sent_bytes_total", &labels) >= 8);
    });
}

#[test]
fn an_application_tunnel_gets_a_proxy_header_with_the_proven_identity_before_the_first_byte() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let mut waypoint = workload("b", "node-b", &world.b);
        waypoint.application_tunnel = Some(ApplicationTunnel { proxy_protocol: true, port: Some(15088) });
        world.control.workload(&waypoint);
        echo(world.b.listen(15088));
        let mut answer = Vec::new();
        eventually("the header comes first", async || {
            answer = call(&world.a, world.b.at(80), b"payload").await.unwrap_or_default();
            !answer.is_empty()
        })
        .await;
        assert_eq!(&answer[..12], b"\r\n\r\n\x00\r\nQUIT\n");
        assert_eq!(answer[16..24], [10, 77, 0, 2, 10, 77, 0, 3]);
        assert_eq!(answer[26..28], 80_u16.to_be_bytes(), "the port that was asked for");
        let text = String::from_utf8_lossy(&answer);
        assert!(text.contains("spiffe://cluster.local/ns/ns/sa/apayload"), "{text}");
        let metrics = world.pb.metrics().await;
        let labels = [("reporter", "destination")];
        assert_eq!(
            metrics.sum("istio_tcp_received_bytes_total", &labels),
            7,
            "the header is not the client's"
        );
    });
}

#[test]
fn a_dry_run_policy_is_counted_and_not_enforced() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        world.control.policy(&Policy {
            name: "tried".into(),
            namespace: "ns".into(),
            scope: Scope::Namespace,
            action: Action::Deny,
            rules: vec![Rule::default()],
            dry_run: true,
        });
        eventually("it is counted", async || {
            assert_eq!(call(&world.a, world.b.at(8080), b"x").await.unwrap(), b"x", "and not enforced");
            let metrics = world.pb.metrics().await;
            metrics.sum("ambit_policy_dry_run_total", &[("policy", "ns/tried"), ("outcome", "denied")]) > 0
        })
        .await;
    });
}

#[test]
fn a_caller_without_a_proven_identity_is_refused_and_no_account_is_named_for_it() {
    // D22: a gateway on the host network has no identity, whatever account its pod has.
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let allow = mesh::Match {
            principals: vec![mesh::StringMatch::Exact("cluster.local/ns/ns/sa/c".into())],
            ..mesh::Match::default()
        };
        let clause = mesh::Clause { matches: vec![allow] };
        world.control.policy(&Policy {
            name: "only-c".into(),
            namespace: "ns".into(),
            scope: Scope::Namespace,
            action: Action::Allow,
            rules: vec![Rule { clauses: vec![clause] }],
            dry_run: false,
        });
        // Pod c has that account, and is not enrolled.
        eventually("refused", async || call(&world.c, world.b.at(8080), b"x").await.is_err()).await;
        let metrics = world.pb.metrics().await;
        let denied = [("response_flags", "DENY"), ("source_principal", "unknown")];
        assert!(metrics.sum("istio_tcp_connections_failed_total", &denied) > 0);
        assert_eq!(
            metrics.sum(
                "istio_tcp_connections_failed_total",
                &[("source_principal", "spiffe://cluster.local/ns/ns/sa/c")]
            ),
            0
        );
    });
}
