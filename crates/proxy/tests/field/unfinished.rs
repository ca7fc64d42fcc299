//! What was missed while a line was down, pods that could not be served, a proxy that is scraped through itself, and a
//! connection that is watched while it is open.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh::{Action, Policy, Rule, Scope, Tunnel, Workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{OWN_ADDRESS, Proxy, World, call, echo, eventually, http_get, log, workload};
use crate::namespaces::in_a_node;
use crate::sized;

fn names(dump: &serde_json::Value, what: &str) -> Vec<String> {
    let all = dump[what].as_array().unwrap();
    all.iter().map(|one| one["name"].as_str().unwrap_or_default().to_owned()).collect()
}

#[test]
fn what_was_deleted_while_the_line_was_down_is_gone_after_the_reconnect() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let deny = Policy {
            name: "p".into(),
            namespace: "ns".into(),
            scope: Scope::Namespace,
            action: Action::Deny,
            rules: vec![Rule { clauses: Vec::new() }],
            dry_run: false,
        };
        let elsewhere = Policy { namespace: "elsewhere".into(), ..deny };
        for (round, fresh) in [false, true].into_iter().enumerate() {
            let old = node.pod(30 + round as u8);
            let (mut moving, mut going) =
                (workload("moving", "node-x", &old), workload("going", "node-x", &old));
            moving.addresses = vec![format!("10.77.1.{round}").parse().unwrap()];
            going.addresses = vec![old.ip];
            world.control.workload(&moving);
            world.control.workload(&going);
            world.control.policy(&elsewhere);
            eventually("all is known", async || {
                let dump = world.pa.dump().await;
                names(&dump, "workloads").contains(&"going".into())
                    && names(&dump, "workloads").contains(&"moving".into())
                    && dump["policies"].as_array().is_some_and(|all| all.len() == 1)
            })
            .await;
            world.control.down();
            world.control.remove(&going.uid);
            world.control.remove(&elsewhere.key());
            moving.addresses = vec![format!("10.77.2.{round}").parse().unwrap()];
            world.control.workload(&moving);
            world.control.up(fresh);
            eventually("what is gone is gone, what moved has moved", async || {
                let dump = world.pa.dump().await;
                let there =
                    dump["workloads"].as_array().unwrap().iter().find(|one| one["name"] == "moving").cloned();
                !names(&dump, "workloads").contains(&"going".into())
                    && dump["policies"].as_array().is_some_and(Vec::is_empty)
                    && there.is_some_and(|one| {
                        one["workloadIps"] == serde_json::json!([format!("10.77.2.{round}")])
                    })
            })
            .await;
            // Its old address is nobody's that the mesh knows: it is not tunnelled to.
            echo(old.listen(8080));
            assert_eq!(call(&world.a, old.at(8080), b"who").await.unwrap(), b"who");
            let plain = [("connection_security_policy", "unknown"), ("destination_workload", "unknown")];
            eventually("it is counted as unknown", async || {
                world.pa.metrics().await.sum("istio_tcp_connections_closed_total", &plain) == round as u64 + 1
            })
            .await;
        }
    });
}

#[test]
fn a_reconnect_costs_nothing_where_nothing_has_changed() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let many = sized(2_000, 10_000);
        for number in 0..many {
            let mut one = Workload::new(
                format!("Kubernetes//Pod/ns/w{number}"),
                format!("w{number}"),
                crate::harness::identity("w"),
            );
            one.addresses = vec![std::net::Ipv4Addr::from(0x0a4e_0000 + number).into()];
            one.tunnel = Tunnel::Hbone;
            world.control.workload(&one);
        }
        let known = async || {
            let (a, b) = (world.pa.dump().await, world.pb.dump().await);
            a["workloads"].as_array().unwrap().len() == many as usize + 3
                && b["workloads"].as_array().unwrap().len() == many as usize + 3
        };
        eventually("all are known", known).await;
        let before = world.control.sent();
        world.control.down();
        world.control.up(false);
        let late = node.pod(40);
        world.control.workload(&workload("late", "node-x", &late));
        eventually("the line is there again", async || {
            names(&world.pa.dump().await, "workloads").contains(&"late".into())
                && names(&world.pb.dump().await, "workloads").contains(&"late".into())
        })
        .await;
        let sent = world.control.sent() - before;
        println!("{sent} bytes of resources to two proxies after the reconnect");
        assert!(sent < 1024, "{sent} bytes were sent again");
    });
}

#[test]
fn a_pod_that_cannot_be_served_is_forgotten_with_it_and_never_makes_the_node_unready() {
    in_a_node(|node| async move {
        let World { a, b, mut pb, control: _control, pa: _pa, .. } = World::new(&node).await;
        echo(b.listen(8080));
        let healthy: Vec<_> = (50..55).map(|last| node.pod(last)).collect();
        for (number, pod) in healthy.iter().enumerate() {
            assert_eq!(pb.agent.add(&format!("h{number}"), "h", pod).await, "");
        }
        let ready = async |pb: &Proxy| http_get(pb.readiness, "/healthz/ready").await.0;
        let state = async |pb: &Proxy, uid: &str| pb.dump().await["workloadState"][uid]["state"].clone();
        // Once inside the snapshot phase, once after it.
        for inside in [true, false] {
            let bad = node.pod(if inside { 60 } else { 61 });
            let taken = bad.listen(15008);
            if inside {
                // Whatever no agent says ends the connection; the next one begins with a snapshot.
                pb.agent.raw(&[0xff], None).await;
                pb.agent = pb.agent.again().await;
                assert_eq!(pb.agent.keep("b").await, "");
                for number in 0..healthy.len() {
                    assert_eq!(pb.agent.keep(&format!("h{number}")).await, "");
                }
            }
            let error = pb.agent.add("bad", "bad", &bad).await;
            assert!(error.contains("15008"), "{error}");
            assert_eq!(state(&pb, "uid-bad").await, "Pending");
            assert_eq!(pb.agent.delete("bad").await, "");
            if inside {
                assert_eq!(pb.agent.snapshot_sent().await, "");
            }
            assert_eq!(ready(&pb).await, 200, "deleted inside the snapshot: {inside}");
            assert!(state(&pb, "uid-bad").await.is_null(), "it is forgotten");
            drop(taken);
        }
        // Its processes and its namespace just disappear, and nobody says so: nothing stands in its way any more.
        let bad = node.pod(62);
        let taken = bad.listen(15008);
        assert!(pb.agent.add("lost", "lost", &bad).await.contains("15008"));
        assert_eq!(ready(&pb).await, 200);
        drop((taken, bad));
        let start = Instant::now();
        eventually("it is no longer retried", async || state(&pb, "uid-lost").await != "Pending").await;
        assert!(
            start.elapsed() < Duration::from_secs(8),
            "one retry period is enough: {:?}",
            start.elapsed()
        );
        assert_eq!(ready(&pb).await, 200);
        for number in 0..healthy.len() {
            assert_eq!(state(&pb, &format!("uid-h{number}")).await, "Up");
        }
        assert_eq!(call(&a, b.at(8080), b"all the while").await.unwrap(), b"all the while");
    });
}

#[test]
fn a_proxy_carries_the_scrape_of_itself_sealed_and_without_a_loop() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let proxy = world.proxy_with_a_pod_of_its_own().await;
        let prometheus = node.pod(70);
        world.control.workload(&workload("prometheus", "node-c", &prometheus));
        assert_eq!(proxy.agent.add("prometheus", "prometheus", &prometheus).await, "");
        prometheus.redirect();
        eventually("both are known", async || {
            let dump = proxy.dump().await;
            names(&dump, "workloads").contains(&"own".into())
                && names(&dump, "workloads").contains(&"prometheus".into())
        })
        .await;
        let scrape = async {
            let mut stream = prometheus
                .connect(SocketAddr::new(OWN_ADDRESS.parse().unwrap(), proxy.stats.port()))
                .await
                .unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer =
            tokio::time::timeout(Duration::from_secs(10), scrape).await.expect("no loop and no hang");
        assert!(
            answer.starts_with("HTTP/1.1 200") && answer.contains("istio_tcp_connections_opened_total"),
            "{answer}"
        );
        for reporter in ["source", "destination"] {
            let sealed = [
                ("reporter", reporter),
                ("connection_security_policy", "mutual_tls"),
                ("source_workload", "prometheus"),
                ("destination_workload", "own"),
            ];
            eventually("it was sealed", async || {
                proxy.metrics().await.sum("istio_tcp_connections_closed_total", &sealed) == 1
            })
            .await;
        }
        assert_eq!(
            proxy.metrics().await.sum("istio_tcp_connections_opened_total", &[]),
            2,
            "once, from both ends"
        );
        proxy.stop().await;
    });
}

#[test]
fn an_open_connection_is_seen_to_grow_and_all_accounts_agree_at_its_end() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let listener = world.b.listen(8080);
        let mut client = world.a.connect(world.b.at(8080)).await.unwrap();
        client.write_all(b"subscribe").await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.read_exact(&mut [0; 9]).await.unwrap();
        let mut wanted = 0;
        // Every answer is compared, whether one comes at once or, as in the case, two minutes long each second.
        for _ in 0..sized(5, 120) {
            tokio::time::sleep(sized(Duration::ZERO, Duration::from_secs(1))).await;
            server.write_all(&[b'e'; 1024]).await.unwrap();
            client.read_exact(&mut [0; 1024]).await.unwrap();
            wanted += 1024;
            eventually("both count it while it is open", async || {
                let both = [world.pa.metrics().await, world.pb.metrics().await];
                both.iter().all(|metrics| {
                    metrics.sum("istio_tcp_sent_bytes_total", &[]) == wanted
                        && metrics.sum("istio_tcp_connections_closed_total", &[]) == 0
                })
            })
            .await;
        }
        drop(server);
        client.shutdown().await.unwrap();
        assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
        eventually("both have logged it", async || {
            !log::lines("outbound", "connection complete").is_empty()
                && !log::lines("inbound", "connection complete").is_empty()
        })
        .await;
        // Each line counts from the view of its own side.
        let sent = wanted.to_string();
        for (direction, proxy, bytes) in
            [("outbound", &world.pa, ("9", &*sent)), ("inbound", &world.pb, (&*sent, "9"))]
        {
            let line = &log::lines(direction, "connection complete")[0];
            assert_eq!((&*line["bytes_sent"], &*line["bytes_recv"]), bytes, "{direction}");
            let metrics = proxy.metrics().await;
            assert_eq!(metrics.sum("istio_tcp_sent_bytes_total", &[]), wanted, "{direction}");
            assert_eq!(metrics.sum("istio_tcp_received_bytes_total", &[]), 9, "{direction}");
        }
    });
}
