//! Bytes, ends of connections, many connections.

use std::time::Duration;

use mesh::{NetworkAddress, PortMapping, Service, ServiceKey, ServicePort};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{World, call, echo, eventually, identity, log, workload};
use crate::namespaces::in_a_node;

const BYTES: &str = "istio_tcp_received_bytes_total";

#[test]
fn a_direct_call_is_mutual_tls_and_both_reporters_and_the_log_agree_to_the_byte() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let peers = echo(world.b.listen(8080));
        let data: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        assert!(call(&world.a, world.b.at(8080), &data).await.unwrap() == data, "echoed bytes differ");
        assert_eq!(
            peers.lock().unwrap()[0].ip().to_canonical(),
            world.a.ip,
            "the application sees the client's address"
        );
        let secured = [("connection_security_policy", "mutual_tls"), ("response_flags", "-")];
        eventually("both ends closed", || async {
            let closed = "istio_tcp_connections_closed_total";
            world.pa.metrics().await.sum(closed, &secured) == 1
                && world.pb.metrics().await.sum(closed, &secured) == 1
        })
        .await;
        let (at_a, at_b) = (world.pa.metrics().await, world.pb.metrics().await);
        for name in [
            "istio_tcp_connections_opened_total",
            "istio_tcp_connections_closed_total",
            "istio_tcp_received_bytes_total",
            "istio_tcp_sent_bytes_total",
        ] {
            let (source, destination) = (at_a.find(name, &secured), at_b.find(name, &secured));
            assert_eq!((source.len(), destination.len()), (1, 1), "{name}");
            let ((mut source, value), (mut destination, other)) =
                ((source[0].0.clone(), source[0].1), (destination[0].0.clone(), destination[0].1));
            assert_eq!(value, other, "{name}");
            assert_eq!(value, if name.contains("bytes") { 3_000_000 } else { 1 }, "{name}");
            assert_eq!(source.remove("reporter").unwrap(), "source");
            assert_eq!(destination.remove("reporter").unwrap(), "destination");
            assert_eq!(source, destination, "labels of both reporters");
            assert_eq!(source["source_principal"], "spiffe://cluster.local/ns/ns/sa/a");
            assert_eq!(source["destination_principal"], "spiffe://cluster.local/ns/ns/sa/b");
            assert_eq!(source["source_workload"], "a");
            assert_eq!(source["destination_workload"], "b");
            assert_eq!(source["destination_service"], "unknown");
            assert_eq!(source["destination_service_name"], "unknown");
            assert_eq!(source["destination_service_namespace"], "ns");
            assert_eq!(source.len() + 1, 27, "every label of the reference is there");
        }
        for direction in ["outbound", "inbound"] {
            let lines = log::lines(direction, "connection complete");
            assert_eq!(lines.len(), 1, "{direction}");
            assert_eq!(lines[0]["bytes_sent"], "3000000");
            assert_eq!(lines[0]["bytes_recv"], "3000000");
            assert_eq!(lines[0]["dst.addr"], format!("{}:15008", world.b.ip));
            assert_eq!(lines[0]["dst.hbone_addr"], format!("{}:8080", world.b.ip));
            assert_eq!(lines[0]["src.identity"], "spiffe://cluster.local/ns/ns/sa/a");
        }
    });
}

#[test]
fn counters_grow_while_a_connection_is_open_and_the_dump_lists_it() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let mut stream = world.a.connect(world.b.at(8080)).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await.unwrap();
        eventually("four bytes counted", || async {
            let both = [world.pa.metrics().await, world.pb.metrics().await];
            both.iter().all(|metrics| metrics.sum(BYTES, &[]) == 4)
        })
        .await;
        let connections = &world.pb.dump().await["workloadState"]["uid-b"]["connections"];
        assert_eq!(connections["inbound"][0]["protocol"], "HBONE");
        assert_eq!(connections["inbound"][0]["actualDst"], world.b.at(8080).to_string());
        let dump = world.pa.dump().await;
        let outbound = &dump["workloadState"]["uid-a"]["connections"]["outbound"][0];
        assert_eq!(outbound["originalDst"], world.b.at(8080).to_string());
        assert_eq!(outbound["actualDst"], world.b.at(15008).to_string());
        // Whom the other end has proven to be.
        let proven = |account| identity(account).to_string();
        assert_eq!(
            (&outbound["identity"], &connections["inbound"][0]["identity"]),
            (&proven("b").into(), &proven("a").into())
        );
        assert_eq!(dump["certificates"][0]["state"], "Available");
        assert!(!dump.to_string().contains("PRIVATE KEY"));
    });
}

#[test]
fn a_call_to_a_service_is_named_alike_by_both_reporters() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let mut service = Service::new("web", ServiceKey::new("ns", "web.ns.svc.cluster.local"));
        service.vips = vec![NetworkAddress::new("", "10.96.0.10".parse().unwrap())];
        service.ports =
            vec![ServicePort { service_port: 80, target_port: Some(8080), app_protocol: Default::default() }];
        let mut b = workload("b", "node-b", &world.b);
        b.services.insert(service.key.clone(), vec![PortMapping { service_port: 80, target_port: 8080 }]);
        world.control.service(&service);
        world.control.workload(&b);
        eventually("the service is known", || async {
            let services =
                |dump: serde_json::Value| dump["services"][0]["endpoints"].as_object().map_or(0, |e| e.len());
            services(world.pa.dump().await) == 1 && services(world.pb.dump().await) == 1
        })
        .await;
        echo(world.b.listen(8080));
        let answer = call(&world.a, "10.96.0.10:80".parse().unwrap(), b"hello").await.unwrap();
        assert_eq!(answer, b"hello");
        let named = [
            ("destination_service", "web.ns.svc.cluster.local"),
            ("destination_service_name", "web"),
            ("destination_service_namespace", "ns"),
        ];
        eventually("both name the service", || async {
            world.pa.metrics().await.sum(BYTES, &named) == 5
                && world.pb.metrics().await.sum(BYTES, &named) == 5
        })
        .await;
    });
}

#[test]
fn each_direction_ends_on_its_own() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let listener = world.b.listen(8080);
        let mut client = world.a.connect(world.b.at(8080)).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        // The server ends first and still hears the client.
        server.write_all(b"bye").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"bye");
        client.write_all(b"still here").await.unwrap();
        client.shutdown().await.unwrap();
        let mut heard = Vec::new();
        server.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"still here");
    });
}

#[test]
fn a_reset_is_passed_on_as_a_reset_in_both_directions() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let listener = world.b.listen(8080);
        for server_resets in [true, false] {
            let mut client = world.a.connect(world.b.at(8080)).await.unwrap();
            client.write_all(b"x").await.unwrap();
            let (mut server, _) = listener.accept().await.unwrap();
            server.read_exact(&mut [0]).await.unwrap();
            let (resetting, mut other) = if server_resets { (server, client) } else { (client, server) };
            resetting.set_zero_linger().unwrap();
            drop(resetting);
            let error = other.read(&mut [0; 8]).await.unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "server resets: {server_resets}");
        }
        eventually("nothing is left", || async {
            let open = |metrics: &crate::harness::Metrics| metrics.sum("istio_tcp_sockets_open", &[]);
            open(&world.pa.metrics().await) == 0 && open(&world.pb.metrics().await) == 0
        })
        .await;
    });
}

#[test]
fn a_client_that_resets_after_its_half_close_is_noticed_without_traffic() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let listener = world.b.listen(8080);
        let mut client = world.a.connect(world.b.at(8080)).await.unwrap();
        client.shutdown().await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
        client.set_zero_linger().unwrap();
        drop(client);
        eventually("both proxies let go", || async {
            let open = "istio_tcp_sockets_open";
            world.pa.metrics().await.sum(open, &[]) == 0 && world.pb.metrics().await.sum(open, &[]) == 0
        })
        .await;
        drop(server);
    });
}

#[test]
fn two_thousand_calls_at_once_are_all_answered() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let calls = (0..2000u32).map(|n| {
            let (a, to) = (world.a.clone(), world.b.at(8080));
            tokio::spawn(async move { call(&a, to, &n.to_be_bytes()).await.unwrap() == n.to_be_bytes() })
        });
        for answered in futures::future::join_all(calls).await {
            assert!(answered.unwrap());
        }
        let opened = [("response_flags", "-")];
        assert_eq!(world.pa.metrics().await.sum("istio_tcp_connections_opened_total", &opened), 2000);
        assert_eq!(world.pa.metrics().await.sum("istio_tcp_connections_failed_total", &[]), 0);
        eventually("all closed", || async {
            world.pb.metrics().await.sum("istio_tcp_sockets_open", &[]) == 0
        })
        .await;
        eventually("all bytes counted", || async { world.pb.metrics().await.sum(BYTES, &[]) == 8000 }).await;
    });
}

#[test]
fn a_dead_address_slows_nobody_but_its_own_caller() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let hole = world.hole(&node).await;
        let (a, to) = (world.a.clone(), hole.at(80));
        let stuck = tokio::spawn(async move { call(&a, to, b"x").await });
        for _ in 0..20 {
            let quick =
                tokio::time::timeout(Duration::from_secs(2), call(&world.a, world.b.at(8080), b"hi")).await;
            assert_eq!(quick.unwrap().unwrap(), b"hi");
        }
        assert!(!stuck.is_finished(), "the dead address did not answer");
        assert!(stuck.await.unwrap().is_err(), "and is given up in the end");
        let flag = [("response_flags", "NETWORK_POLICY")];
        eventually("it is counted", || async {
            world.pa.metrics().await.sum("istio_tcp_connections_failed_total", &flag) == 1
        })
        .await;
    });
}

#[test]
fn sockets_are_given_back_after_many_connections() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let round = || async {
            for _ in 0..10 {
                let calls = (0..50).map(|_| call(&world.c, world.b.at(8080), b"plain"));
                assert!(futures::future::join_all(calls).await.into_iter().all(|answer| answer.is_ok()));
            }
        };
        round().await;
        eventually("all closed", || async {
            world.pb.metrics().await.sum("istio_tcp_sockets_open", &[]) == 0
        })
        .await;
        let before = fds();
        for _ in 0..3 {
            round().await;
        }
        eventually("descriptors are back", || async { fds() <= before + 20 }).await;
        // The last of them may be among those twenty.
        eventually("none is listed", || async {
            let dump = world.pb.dump().await;
            dump["workloadState"]["uid-b"]["connections"]["inbound"] == serde_json::json!([])
        })
        .await;
    });
}

#[test]
fn what_is_not_enrolled_is_passed_through() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let peers = echo(world.c.listen(8080));
        assert_eq!(call(&world.a, world.c.at(8080), b"plain").await.unwrap(), b"plain");
        assert_eq!(peers.lock().unwrap()[0].ip().to_canonical(), world.a.ip);
        let plain = [("connection_security_policy", "unknown"), ("destination_workload", "c")];
        eventually("it is counted", || async { world.pa.metrics().await.sum(BYTES, &plain) == 5 }).await;
        // Nobody listens there: the caller is refused, not hung.
        assert!(call(&world.a, world.c.at(81), b"x").await.is_err());
    });
}

#[test]
fn ipv6_is_carried_like_ipv4() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let mut b = workload("b", "node-b", &world.b);
        b.addresses.push(world.b.ip6);
        let mut a = workload("a", "node-a", &world.a);
        a.addresses.push(world.a.ip6);
        world.control.workload(&a);
        world.control.workload(&b);
        eventually("both addresses are known", || async {
            world.pa.dump().await["workloads"][1]["workloadIps"].as_array().map_or(0, Vec::len) == 2
        })
        .await;
        let peers = echo(world.b.listen(8080));
        let to = std::net::SocketAddr::new(world.b.ip6, 8080);
        assert_eq!(call(&world.a, to, b"sealed").await.unwrap(), b"sealed");
        assert_eq!(call(&world.c, to, b"plain").await.unwrap(), b"plain");
        let seen: Vec<_> = peers.lock().unwrap().iter().map(|peer| peer.ip()).collect();
        assert_eq!(seen, [world.a.ip6, world.c.ip6], "the application sees the clients' addresses");
        let secured = [("connection_security_policy", "mutual_tls")];
        eventually("the first was sealed", || async { world.pb.metrics().await.sum(BYTES, &secured) == 6 })
            .await;
    });
}
