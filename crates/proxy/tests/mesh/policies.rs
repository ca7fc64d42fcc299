//! Who may call whom.

use mesh::{Action, Clause, Match, Policy, Rule, Scope, StringMatch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{World, call, echo, eventually, identity, log, workload};
use crate::namespaces::in_a_node;

const FAILED: &str = "istio_tcp_connections_failed_total";

fn policy(name: &str, scope: Scope, action: Action, one: Match) -> Policy {
    let rules = vec![Rule { clauses: vec![Clause { matches: vec![one] }] }];
    Policy { name: name.into(), namespace: "ns".into(), scope, action, rules, dry_run: false }
}

/// What a STRICT PeerAuthentication becomes: whoever has no identity is denied.
fn strict() -> Policy {
    let one = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    policy("strict", Scope::Namespace, Action::Deny, one)
}

fn deny_a(scope: Scope) -> Policy {
    let one =
        Match { principals: vec![StringMatch::Exact(identity("a").principal().into())], ..Match::default() };
    policy("deny-a", scope, Action::Deny, one)
}

async fn known(world: &World, policies: usize) {
    eventually("the policies are known", || async {
        world.pb.dump().await["policies"].as_array().unwrap().len() == policies
    })
    .await;
}

#[test]
fn a_permissive_pod_answers_plaintext_and_says_that_it_was() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let peers = echo(world.b.listen(8080));
        assert_eq!(call(&world.c, world.b.at(8080), b"plain").await.unwrap(), b"plain");
        assert_eq!(
            peers.lock().unwrap()[0].ip().to_canonical(),
            world.c.ip,
            "the application sees the client's address"
        );
        let plain = [
            ("connection_security_policy", "unknown"),
            ("reporter", "destination"),
            ("source_workload", "c"),
            ("source_principal", "unknown"),
            ("destination_service_namespace", "ns"),
        ];
        eventually("it is counted", || async {
            world.pb.metrics().await.sum("istio_tcp_sent_bytes_total", &plain) == 5
        })
        .await;
    });
}

#[test]
fn a_strict_pod_refuses_plaintext_and_takes_tunnels() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        world.control.policy(&strict());
        known(&world, 1).await;
        let peers = echo(world.b.listen(8080));
        assert!(call(&world.c, world.b.at(8080), b"plain").await.is_err());
        assert!(peers.lock().unwrap().is_empty(), "the application never saw it");
        assert_eq!(call(&world.a, world.b.at(8080), b"sealed").await.unwrap(), b"sealed");
        let denied = [("response_flags", "DENY"), ("source_workload", "c")];
        eventually("the denial is counted", || async { world.pb.metrics().await.sum(FAILED, &denied) == 1 })
            .await;
        let lines = log::lines("inbound", "connection complete");
        assert!(lines.iter().any(|line| {
            line.get("error").is_some_and(|error| error.contains("explicitly denied by: ns/strict rule 0"))
        }));
    });
}

#[test]
fn a_denied_call_is_denied_in_the_words_of_both_reporters() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        world.control.policy(&deny_a(Scope::Namespace));
        known(&world, 1).await;
        echo(world.b.listen(8080));
        assert!(call(&world.a, world.b.at(8080), b"x").await.is_err());
        let denied = [("response_flags", "DENY"), ("source_workload", "a"), ("destination_workload", "b")];
        eventually("both count it", || async {
            world.pa.metrics().await.sum(FAILED, &denied) == 1
                && world.pb.metrics().await.sum(FAILED, &denied) == 1
        })
        .await;
        let lines = log::lines("outbound", "connection complete");
        assert_eq!(lines[0]["error"], "http status: 401 Unauthorized");
    });
}

#[test]
fn a_live_connection_is_closed_when_a_policy_denies_it() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let mut stream = world.a.connect(world.b.at(8080)).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        world.control.policy(&deny_a(Scope::Namespace));
        let error = stream.read(&mut [0; 4]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        let denied = [("response_flags", "DENY"), ("reporter", "destination")];
        eventually("it is counted", || async { world.pb.metrics().await.sum(FAILED, &denied) == 1 }).await;
    });
}

#[test]
fn a_live_connection_is_closed_when_its_workload_names_a_denying_policy() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        world.control.policy(&deny_a(Scope::WorkloadSelector));
        known(&world, 1).await;
        let mut stream = world.a.connect(world.b.at(8080)).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        let mut b = workload("b", "node-b", &world.b);
        b.policies = vec!["ns/deny-a".into()];
        world.control.workload(&b);
        assert!(stream.read(&mut [0; 4]).await.is_err());
    });
}

#[test]
fn a_policy_that_is_named_and_not_known_is_waited_for_and_then_refuses() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let mut b = workload("b", "node-b", &world.b);
        b.policies = vec!["ns/deny-a".into()];
        world.control.workload(&b);
        eventually("the workload names it", || async {
            let dump = world.pb.dump().await;
            dump["workloads"].as_array().unwrap().iter().any(|w| w["authorizationPolicies"][0] == "ns/deny-a")
        })
        .await;
        assert!(call(&world.a, world.b.at(8080), b"x").await.is_err(), "nobody can say, so nobody may pass");
        let (a, to) = (world.a.clone(), world.b.at(8080));
        let waiting = tokio::spawn(async move { call(&a, to, b"x").await });
        // Somebody else's ALLOW would not do; one that names a does.
        let one = Match {
            principals: vec![StringMatch::Exact(identity("a").principal().into())],
            ..Match::default()
        };
        world.control.policy(&policy("deny-a", Scope::WorkloadSelector, Action::Allow, one));
        assert_eq!(waiting.await.unwrap().unwrap(), b"x", "it arrived in time");
    });
}

#[test]
fn a_server_of_another_identity_gets_no_byte() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let peers = echo(world.b.listen(8080));
        // Pod b answers at an address that the mesh knows as pod d's.
        world.control.workload(&{
            let mut b = workload("b", "node-b", &world.b);
            b.addresses = vec!["10.77.0.250".parse().unwrap()];
            b
        });
        let mut d = workload("d", "node-elsewhere", &world.b);
        d.addresses = vec![world.b.ip];
        world.control.workload(&d);
        eventually("the address is d's", || async {
            let dump = world.pa.dump().await;
            let all = dump["workloads"].as_array().unwrap();
            let b_moved = all.iter().any(|w| w["name"] == "b" && w["workloadIps"][0] == "10.77.0.250");
            b_moved && all.iter().any(|w| w["name"] == "d")
        })
        .await;
        assert!(call(&world.a, world.b.at(8080), b"secret").await.is_err());
        assert!(peers.lock().unwrap().is_empty());
        let failed = [("response_flags", "CONNECT"), ("destination_workload", "d")];
        eventually("it is counted", || async { world.pa.metrics().await.sum(FAILED, &failed) == 1 }).await;
        let lines = log::lines("outbound", "connection complete");
        let error = &lines[0]["error"];
        assert!(error.contains("presented spiffe://cluster.local/ns/ns/sa/b"), "{error}");
        assert!(error.contains("expected one of spiffe://cluster.local/ns/ns/sa/d"), "{error}");
    });
}
