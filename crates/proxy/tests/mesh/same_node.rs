//! Two pods of one node: encrypted by default, and joined directly where the operator has chosen that.

use mesh::{Action, Clause, Match, Policy, Rule, Scope, StringMatch, Tunnel};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::control::Control;
use crate::harness::{Proxy, call, echo, eventually, identity, log, workload};
use crate::namespaces::{Node, Pod, in_a_node};

const BYTES: &str = "istio_tcp_received_bytes_total";

/// Pods a and b of one proxy.
struct Neighbours {
    control: Control,
    a: Pod,
    b: Pod,
    proxy: Proxy,
}

impl Neighbours {
    async fn with(node: &Node, more: &[(&str, &str)]) -> Self {
        log::collect();
        let (control, address) = Control::start().await;
        let (a, b) = (node.pod(2), node.pod(3));
        let proxy = Proxy::start_with("node-a", address, more).await;
        for (name, pod) in [("a", &a), ("b", &b)] {
            control.workload(&workload(name, "node-a", pod));
            assert_eq!(proxy.agent.add(name, name, pod).await, "");
            pod.redirect();
        }
        Self { control, a, b, proxy }
    }

    async fn spliced(node: &Node) -> Self {
        Self::with(node, &[("SAME_NODE", "splice")]).await
    }

    async fn bytes(&self, security: &str, reporter: &str) -> u64 {
        let labels = [("connection_security_policy", security), ("reporter", reporter)];
        self.proxy.metrics().await.sum(BYTES, &labels)
    }

    fn deny_a(&self) {
        let principals = vec![StringMatch::Exact(identity("a").principal().into())];
        let clause = Clause { matches: vec![Match { principals, ..Match::default() }] };
        self.control.policy(&Policy {
            name: "deny-a".into(),
            namespace: "ns".into(),
            scope: Scope::Namespace,
            action: Action::Deny,
            rules: vec![Rule { clauses: vec![clause] }],
            dry_run: false,
        });
    }
}

#[test]
fn pods_of_one_node_are_encrypted_unless_the_operator_chose_otherwise() {
    in_a_node(|node| async move {
        let world = Neighbours::with(&node, &[]).await;
        echo(world.b.listen(8080));
        assert_eq!(call(&world.a, world.b.at(8080), b"sealed").await.unwrap(), b"sealed");
        eventually("mutual TLS at both ends", || async {
            world.bytes("mutual_tls", "source").await == 6
                && world.bytes("mutual_tls", "destination").await == 6
        })
        .await;
    });
}

#[test]
fn what_is_spliced_within_a_node_arrives_whole_and_is_never_called_mutual_tls() {
    in_a_node(|node| async move {
        let world = Neighbours::spliced(&node).await;
        let peers = echo(world.b.listen(8080));
        // In bulk, both ways at once, and then little by little.
        let data: Vec<u8> = (0..20_000_000_u32).map(|n| (n / 251) as u8).collect();
        assert!(call(&world.a, world.b.at(8080), &data).await.unwrap() == data, "echoed bytes differ");
        let mut stream = world.a.connect(world.b.at(8080)).await.unwrap();
        for byte in 0..100 {
            stream.write_all(&[byte]).await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), byte);
        }
        let seen: Vec<_> = peers.lock().unwrap().iter().map(|peer| peer.ip().to_canonical()).collect();
        assert_eq!(seen, [world.a.ip; 2], "the application sees the client's address");
        // Counted while it is open, alike at both ends.
        let sum = 20_000_000 + 100;
        eventually("all counted at both ends", || async {
            world.bytes("node_local", "source").await == sum
                && world.bytes("node_local", "destination").await == sum
        })
        .await;
        let metrics = world.proxy.metrics().await;
        let ends = ["source", "destination"].map(|reporter| {
            let found = metrics.find(BYTES, &[("reporter", reporter)]);
            assert_eq!(found.len(), 1, "{found:?}");
            let mut labels = found[0].0.clone();
            labels.remove("reporter");
            labels
        });
        assert_eq!(ends[0], ends[1], "labels of both reporters");
        assert_eq!(ends[0]["source_principal"], "spiffe://cluster.local/ns/ns/sa/a");
        assert_eq!(ends[0]["destination_principal"], "spiffe://cluster.local/ns/ns/sa/b");
        drop(stream);
        eventually("both lines", || async {
            ["outbound", "inbound"]
                .iter()
                .all(|direction| log::lines(direction, "connection complete").len() == 2)
        })
        .await;
        for direction in ["outbound", "inbound"] {
            let line = &log::lines(direction, "connection complete")[0];
            assert_eq!(line["dst.addr"], world.b.at(8080).to_string());
            assert!(!line.contains_key("dst.hbone_addr"), "{line:?}");
            assert_eq!(line["src.identity"], "spiffe://cluster.local/ns/ns/sa/a");
        }
    });
}

#[test]
fn policies_are_asked_within_a_node_and_cut_what_runs() {
    in_a_node(|node| async move {
        let world = Neighbours::spliced(&node).await;
        let peers = echo(world.b.listen(8080));
        let mut running = world.a.connect(world.b.at(8080)).await.unwrap();
        running.write_all(b"x").await.unwrap();
        assert_eq!(running.read_u8().await.unwrap(), b'x');

        world.deny_a();
        // No proper end.
        assert!(running.read_u8().await.is_err());
        assert!(call(&world.a, world.b.at(8080), b"no").await.is_err());
        assert_eq!(peers.lock().unwrap().len(), 1, "the application never saw the second");
        let denied = [("response_flags", "DENY"), ("connection_security_policy", "node_local")];
        eventually("the refusal at both ends", || async {
            world.proxy.metrics().await.sum("istio_tcp_connections_failed_total", &denied) >= 2
        })
        .await;
    });
}

#[test]
fn a_pod_that_goes_takes_its_connections_from_neighbours_with_it() {
    in_a_node(|node| async move {
        let world =
            Neighbours::with(&node, &[("SAME_NODE", "splice"), ("CONNECTION_TERMINATION_DEADLINE", "1ms")])
                .await;
        echo(world.b.listen(8080));
        let mut running = world.a.connect(world.b.at(8080)).await.unwrap();
        running.write_all(b"x").await.unwrap();
        assert_eq!(running.read_u8().await.unwrap(), b'x');
        assert_eq!(world.proxy.agent.delete("b").await, "");
        assert!(running.read_u8().await.is_err());
    });
}

#[test]
fn a_neighbour_that_is_not_enrolled_is_called_in_plaintext() {
    in_a_node(|node| async move {
        let world = Neighbours::spliced(&node).await;
        let c = node.pod(4);
        let mut plain = workload("c", "node-a", &c);
        plain.tunnel = Tunnel::None;
        world.control.workload(&plain);
        echo(c.listen(8080));
        eventually("c is known", || async {
            world.proxy.dump().await["workloads"].as_array().unwrap().len() == 3
        })
        .await;
        assert_eq!(call(&world.a, c.at(8080), b"plain").await.unwrap(), b"plain");
        eventually("it is counted as what it was", || async {
            world.bytes("unknown", "source").await == 5 && world.bytes("node_local", "source").await == 0
        })
        .await;
    });
}
