//! Callers without a proven identity: refused, and told what would help.

use mesh::{Action, Clause, Match, NetworkMode, Policy, Rule, Scope, StringMatch};

use crate::harness::{World, call, echo, eventually, log, workload};
use crate::namespaces::in_a_node;

#[test]
fn a_gateway_on_the_host_network_is_told_why_its_account_counts_for_nothing() {
    // D22.
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let allow = Match {
            principals: vec![StringMatch::Exact("cluster.local/ns/ns/sa/c".into())],
            ..Match::default()
        };
        world.control.policy(&Policy {
            name: "only-c".into(),
            namespace: "ns".into(),
            scope: Scope::Namespace,
            action: Action::Allow,
            rules: vec![Rule { clauses: vec![Clause { matches: vec![allow] }] }],
            dry_run: false,
        });
        let mut gateway = workload("c", "node-x", &world.c);
        gateway.tunnel = mesh::Tunnel::None;
        gateway.network_mode = NetworkMode::HostNetwork;
        world.control.workload(&gateway);
        eventually("it is known, and where it runs", || async {
            let dump = world.pb.dump().await;
            let known =
                dump["workloads"].as_array().unwrap().iter().any(|w| w["networkMode"] == "HostNetwork");
            known && !dump["policies"].as_array().unwrap().is_empty()
        })
        .await;
        assert!(call(&world.c, world.b.at(8080), b"x").await.is_err());
        let said = "no proven identity (host network of node node-x); rule ns/only-c#0 needs a principal: ";
        let from = world.c.ip.to_string();
        let ours = || {
            let lines = log::lines("inbound", "connection complete");
            lines.into_iter().find(|line| line["src.addr"].starts_with(&from))
        };
        eventually("the log says so", || async { ours().is_some() }).await;
        let line = ours().unwrap();
        assert!(line["error"].contains(said) && line["error"].contains("enrol"), "{line:?}");
        assert!(!line.contains_key("src.identity"), "{line:?}");
        // An enrolled pod with another account is refused as well, and nobody speaks of identities.
        assert!(call(&world.a, world.b.at(8080), b"x").await.is_err());
        let lines = log::lines("inbound", "connection complete");
        let other = lines.iter().find(|line| line["src.addr"].starts_with(&world.a.ip.to_string())).unwrap();
        assert!(!other["error"].contains("no proven identity"), "{other:?}");
    });
}
