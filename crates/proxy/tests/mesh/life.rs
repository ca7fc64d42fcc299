//! Pods that come and go, a control plane that is away, the end of the proxy.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Status;

use crate::control::Control;
use crate::harness::{OWN_ADDRESS, Proxy, World, call, echo, eventually, http_get, workload};
use crate::namespaces::in_a_node;

#[test]
fn a_pod_that_is_removed_is_cut_at_once_and_its_namespace_let_go() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let mut stream = world.a.connect(world.b.at(8080)).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        assert_eq!(world.pb.agent.delete("b").await, "");
        assert!(stream.read(&mut [0; 4]).await.is_err(), "a cut must not look like an end");
        assert_eq!(world.pb.agent.delete("never-was").await, "", "an unknown uid is no error");
        eventually("nothing listens", || async {
            world
                .c
                .connect(world.b.at(15008))
                .await
                .is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionRefused)
        })
        .await;
    });
}

#[test]
fn one_bad_pod_is_reported_by_name_and_hurts_nobody() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let bad = node.pod(20);
        let taken = bad.listen(15008);
        let error = world.pb.agent.add("bad", "bad", &bad).await;
        assert!(error.contains("15008"), "{error}");
        assert_eq!(http_get(world.pb.readiness, "/healthz/ready").await.0, 200, "the node stays ready");
        assert_eq!(call(&world.a, world.b.at(8080), b"hi").await.unwrap(), b"hi");
        let dump = world.pb.dump().await;
        assert_eq!(dump["workloadState"]["uid-bad"]["state"], "Pending");
        // Once the port is free the pod is served when it is named again.
        drop(taken);
        assert_eq!(world.pb.agent.add("bad", "bad", &bad).await, "");
        assert_eq!(world.pb.dump().await["workloadState"]["uid-bad"]["state"], "Up");
        assert_eq!(world.pb.agent.delete("bad").await, "");
        assert!(world.pb.dump().await["workloadState"].get("uid-bad").is_none());
    });
}

#[test]
fn a_namespace_without_ipv6_is_served_on_ipv4() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let pod = node.pod(21);
        pod.sh("echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 > /proc/sys/net/ipv6/conf/lo/disable_ipv6");
        assert_eq!(world.pb.agent.add("e", "e", &pod).await, "");
        pod.redirect();
        world.control.workload(&workload("e", "node-b", &pod));
        echo(pod.listen(8080));
        eventually("it is known to a", || async {
            world.pa.dump().await["workloads"].as_array().unwrap().iter().any(|w| w["name"] == "e")
        })
        .await;
        assert_eq!(call(&world.a, pod.at(8080), b"hi").await.unwrap(), b"hi");
    });
}

#[test]
fn the_same_pod_twice_changes_nothing() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let mut stream = world.a.connect(world.b.at(8080)).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        assert_eq!(world.pb.agent.add("b", "b", &world.b).await, "");
        stream.write_all(b"pong").await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
    });
}

#[test]
fn a_workload_that_is_announced_late_is_waited_for() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let pod = node.pod(22);
        assert_eq!(world.pa.agent.add("late", "late", &pod).await, "");
        pod.redirect();
        echo(world.b.listen(8080));
        let (from, to) = (pod.clone(), world.b.at(8080));
        let waiting = tokio::spawn(async move { call(&from, to, b"hi").await });
        let stream = pod.connect(world.b.at(8080)).await.unwrap();
        drop(stream);
        world.control.workload(&workload("late", "node-a", &pod));
        assert_eq!(waiting.await.unwrap().unwrap(), b"hi");
    });
}

#[test]
fn a_valid_certificate_is_kept_while_the_authority_is_away() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        assert_eq!(call(&world.a, world.b.at(8080), b"hi").await.unwrap(), b"hi");
        world.control.ca_fails(Some(Status::permission_denied("not today")));
        // An identity that never had a certificate fails at once, with the reason.
        let pod = node.pod(23);
        world.control.workload(&workload("new", "node-a", &pod));
        assert_eq!(world.pa.agent.add("new", "new", &pod).await, "");
        pod.redirect();
        assert!(call(&pod, world.b.at(8080), b"x").await.is_err());
        let failed = [("response_flags", "IDENTITY_ERROR"), ("source_workload", "new")];
        eventually("it is counted", || async {
            world.pa.metrics().await.sum("istio_tcp_connections_failed_total", &failed) == 1
        })
        .await;
        // Everybody else goes on.
        assert_eq!(call(&world.a, world.b.at(8080), b"hi").await.unwrap(), b"hi");
        world.control.ca_fails(None);
        eventually("it recovers by itself", || async { call(&pod, world.b.at(8080), b"x").await.is_ok() })
            .await;
    });
}

#[test]
fn certificates_are_renewed_before_they_end() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        world.control.certificate_lifetime(4);
        let pod = node.pod(24);
        world.control.workload(&workload("short", "node-a", &pod));
        let before = world.control.issued();
        eventually("it is issued and renewed", || async { world.control.issued() >= before + 2 }).await;
    });
}

#[test]
fn a_resource_that_cannot_be_understood_is_refused_and_the_rest_is_kept() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        world.control.garbage("Kubernetes//Pod/ns/garbage");
        eventually("it is refused by name", || async {
            world.control.nacks().iter().any(|nack| nack.contains("Kubernetes//Pod/ns/garbage"))
        })
        .await;
        assert_eq!(call(&world.a, world.b.at(8080), b"hi").await.unwrap(), b"hi");
    });
}

#[test]
fn at_the_end_running_connections_may_finish_and_new_ones_are_not_taken() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let mut stream = world.a.connect(world.b.at(8080)).await.unwrap();
        stream.write_all(b"ping").await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        let b = world.b.clone();
        let stopping = tokio::spawn(world.pb.stop());
        eventually("nothing new is taken", || async { world.c.connect(b.at(15008)).await.is_err() }).await;
        stream.write_all(b"last").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest, b"last");
        tokio::time::timeout(Duration::from_secs(4), stopping).await.expect("it ends early").unwrap();
    });
}

#[test]
fn a_proxy_is_ready_only_once_it_knows_the_mesh_and_its_agent() {
    in_a_node(|node| async move {
        let (control, address) = Control::start().await;
        let pod = node.pod(2);
        control.workload(&workload("a", "node-a", &pod));
        control.down();
        let (tell, port) = tokio::sync::oneshot::channel();
        let starting = tokio::spawn(async move {
            Proxy::start_changed("node-a", address, &[], |config| tell.send(config.ports.readiness).unwrap())
                .await
        });
        let at = SocketAddr::from(([127, 0, 0, 1], port.await.unwrap()));
        eventually("it says what it waits for", async || {
            tokio::net::TcpStream::connect(at).await.is_ok() && {
                let (status, text) = http_get(at, "/healthz/ready").await;
                status == 500 && text.contains("state manager") && text.contains("workload proxy manager")
            }
        })
        .await;
        control.up(true);
        let proxy = starting.await.unwrap();
        assert_eq!(http_get(at, "/healthz/ready").await, (200, "ready\n".into()));
        proxy.stop().await;
    });
}

#[test]
fn the_servers_answer_as_tools_expect() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        assert_eq!(http_get(world.pa.readiness, "/healthz/ready").await, (200, "ready\n".into()));
        assert_eq!(http_get(world.pa.readiness, "/other").await.0, 404);
        assert_eq!(http_get(world.pa.stats, "/stats/prometheus").await.0, 200);
        assert_eq!(http_get(world.pa.admin, "/logging").await.0, 405);
        assert_eq!(http_get(world.pa.admin, "/quitquitquit").await.0, 405);
        let off = (200, "heap profiling active: false\n".into());
        assert_eq!(http_get(world.pa.admin, "/debug/pprof/heap/profiling").await, off);
        let (status, why) = http_get(world.pa.admin, "/debug/pprof/heap").await;
        assert!(status == 500 && why.contains("activate=true"), "{why}");
        // This program has another allocator.
        assert_eq!(http_get(world.pa.admin, "/debug/pprof/heap/profiling?activate=true").await.0, 500);
        assert_eq!(http_get(world.pa.admin, "/debug/pprof/heap/profiling").await, off);
        for server in [world.pa.admin, world.pa.stats, world.pa.readiness] {
            // Whoever is not on this machine reaches metrics and readiness alone.
            let outside = world.c.connect(SocketAddr::new(OWN_ADDRESS.parse().unwrap(), server.port())).await;
            assert_eq!(outside.is_ok(), server != world.pa.admin, "{server}");
        }
        let dump = world.pa.dump().await;
        assert_eq!(dump["workloads"].as_array().unwrap().len(), 3);
        assert_eq!(dump["workloads"][0]["protocol"], "HBONE");
        assert_eq!(dump["workloadState"]["uid-a"]["state"], "Up");
    });
}

#[test]
fn a_certificate_for_somebody_else_is_refused_and_the_valid_one_is_kept() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        world.control.certificate_lifetime(20);
        let pod = node.pod(25);
        world.control.workload(&workload("short", "node-a", &pod));
        assert_eq!(world.pa.agent.add("short", "short", &pod).await, "");
        pod.redirect();
        assert_eq!(call(&pod, world.b.at(8080), b"x").await.unwrap(), b"x");
        world.control.ca_lies(Some("spiffe://cluster.local/ns/ns/sa/other"));
        let state = |dump: &serde_json::Value| {
            let all = dump["certificates"].as_array().unwrap();
            all.iter().find(|c| c["identity"] == "spiffe://cluster.local/ns/ns/sa/short").unwrap().clone()
        };
        eventually("the renewal is refused", || async {
            let state = state(&world.pa.dump().await);
            state["renewalFailing"].as_str().is_some_and(|why| why.contains("sa/other"))
                && state["state"] == "Available"
        })
        .await;
        assert_eq!(call(&pod, world.b.at(8080), b"x").await.unwrap(), b"x");
        world.control.ca_lies(None);
        eventually("it is renewed", || async {
            state(&world.pa.dump().await).get("renewalFailing").is_none()
        })
        .await;
    });
}

#[test]
fn the_proxys_own_metrics_are_reached_through_a_tunnel() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let proxy = world.proxy_with_a_pod_of_its_own().await;
        eventually("it is known to a", || async {
            world.pa.dump().await["workloads"].as_array().unwrap().iter().any(|w| w["name"] == "own")
        })
        .await;
        let mut stream =
            world.a.connect(SocketAddr::new(OWN_ADDRESS.parse().unwrap(), proxy.stats.port())).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        drop(stream);
        let sealed = [("connection_security_policy", "mutual_tls"), ("destination_workload", "own")];
        eventually("it was sealed", || async {
            proxy.metrics().await.sum("istio_tcp_connections_closed_total", &sealed) == 1
        })
        .await;
        proxy.stop().await;
    });
}

#[test]
fn whatever_the_agent_sends_the_proxy_goes_on() {
    in_a_node(|node| async move {
        let World { a, b, c, mut pb, pa: _pa, control: _control, .. } = World::new(&node).await;
        echo(b.listen(8080));
        // Each breaks the protocol: it is answered, and the connection is made anew.
        for (what, bytes, fd) in [
            ("not protobuf", &[0xff, 0xff, 0xff][..], None),
            ("nothing that is known", &[0x52, 0x00], None),
            ("add without a descriptor", &[0x0a, 0x00], None),
            ("a descriptor with something else", &[0x1a, 0x00], Some(&c)),
            ("add without saying who", &[0x0a, 0x00], Some(&c)),
        ] {
            let error = pb.agent.raw(bytes, fd).await;
            assert!(error.starts_with("failure to "), "{what}: {error}");
            pb.agent = pb.agent.again().await;
            assert_eq!(pb.agent.keep("b").await, "");
            assert_eq!(pb.agent.snapshot_sent().await, "");
            assert_eq!(call(&a, b.at(8080), b"hi").await.unwrap(), b"hi", "after {what}");
        }
        assert!(pb.agent.keep("b").await.contains("after the snapshot"));
        pb.agent = pb.agent.again().await;
        assert_eq!(
            http_get(pb.readiness, "/healthz/ready").await.0,
            500,
            "without an agent nothing is certain"
        );
        // A pod that the new snapshot does not name is no longer served.
        assert_eq!(pb.agent.snapshot_sent().await, "");
        assert!(pb.dump().await["workloadState"].get("uid-b").is_none());
        assert_eq!(http_get(pb.readiness, "/healthz/ready").await.0, 200);
    });
}

#[test]
fn prometheus_own_tool_finds_no_fault_with_the_metrics() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        call(&world.a, world.b.at(8080), b"hi").await.unwrap();
        let text = http_get(world.pa.stats, "/metrics").await.1;
        let tool = tokio::process::Command::new("promtool")
            .args(["check", "metrics"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn();
        let mut tool = tool.expect("promtool comes with Debian's prometheus");
        let mut stdin = tool.stdin.take().unwrap();
        stdin.write_all(text.as_bytes()).await.unwrap();
        drop(stdin);
        let output = tool.wait_with_output().await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Two gauges have names that were given to them elsewhere.
        let faults: Vec<&str> = said.lines().filter(|line| !line.starts_with("workload_manager_")).collect();
        assert!(faults.is_empty(), "{said}");
    });
}
