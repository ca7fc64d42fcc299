//! Proxies that ask the control plane by name instead of following the whole mesh.

use std::net::SocketAddr;

use mesh::{NetworkAddress, PortMapping, Service, ServiceKey, ServicePort};

use crate::control::Control;
use crate::harness::{World, call, echo, eventually, workload};
use crate::namespaces::{Node, in_a_node};

const BY_NAME: [(&str, &str); 2] = [("XDS_ON_DEMAND", "true"), ("ISTIO_META_DNS_CAPTURE", "false")];

async fn world(node: &Node) -> World {
    let (control, address) = Control::start().await;
    World::with(node, control, address, &BY_NAME).await
}

async fn names(world: &World) -> Vec<String> {
    let dump = world.pa.dump().await;
    let names = dump["workloads"].as_array().unwrap().iter().map(|w| w["name"].as_str().unwrap().to_owned());
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

#[test]
fn a_destination_is_asked_for_when_it_is_called_and_the_call_is_tunnelled() {
    in_a_node(|node| async move {
        let world = world(&node).await;
        echo(world.b.listen(8080));
        assert_eq!(names(&world).await, ["a"], "of the mesh only this node is known");
        assert_eq!(call(&world.a, world.b.at(8080), b"hi").await.unwrap(), b"hi");
        assert_eq!(names(&world).await, ["a", "b"]);
        let sealed = [("connection_security_policy", "mutual_tls"), ("destination_workload", "b")];
        assert_eq!(world.pa.metrics().await.sum("istio_tcp_connections_opened_total", &sealed), 1);
        // The destination's proxy asked who calls.
        assert_eq!(
            world.pb.metrics().await.sum("istio_tcp_connections_opened_total", &[("source_workload", "a")]),
            1
        );
    });
}

#[test]
fn what_nobody_knows_passes_through_and_is_asked_for_once() {
    in_a_node(|node| async move {
        let world = world(&node).await;
        let stranger = node.pod(30);
        echo(stranger.listen(8080));
        for _ in 0..3 {
            assert_eq!(call(&world.a, stranger.at(8080), b"hi").await.unwrap(), b"hi");
        }
        let name = format!("/{}", stranger.ip);
        assert_eq!(world.control.asked().iter().filter(|asked| **asked == name).count(), 1);
        // It joins: the next call goes through a tunnel, which nobody serves yet, and never past it.
        world.control.workload(&workload("late", "node-b", &stranger));
        eventually("it is known", || async { names(&world).await.contains(&"late".into()) }).await;
        assert!(call(&world.a, stranger.at(8080), b"secret").await.is_err());
        assert_eq!(world.pb.agent.add("late", "late", &stranger).await, "");
        stranger.redirect();
        eventually("it is served", || async {
            call(&world.a, stranger.at(8080), b"hi").await.is_ok_and(|answer| answer == b"hi")
        })
        .await;
    });
}

#[test]
fn a_service_is_found_by_its_address_with_its_endpoints() {
    in_a_node(|node| async move {
        let world = world(&node).await;
        let key = ServiceKey::new("ns", "web.ns.svc.cluster.local");
        let mut service = Service::new("web", key.clone());
        service.vips = vec![NetworkAddress::new("", "10.96.0.7".parse().unwrap())];
        service.ports =
            vec![ServicePort { service_port: 80, target_port: Some(8080), app_protocol: Default::default() }];
        world.control.service(&service);
        let mut b = workload("b", "node-b", &world.b);
        b.services.insert(key, vec![PortMapping { service_port: 80, target_port: 8080 }]);
        world.control.workload(&b);
        echo(world.b.listen(8080));
        let vip: SocketAddr = "10.96.0.7:80".parse().unwrap();
        assert_eq!(call(&world.a, vip, b"hi").await.unwrap(), b"hi");
        for proxy in [&world.pa, &world.pb] {
            let labels = [("destination_service", "web.ns.svc.cluster.local"), ("destination_workload", "b")];
            eventually("both ends name the service", || async {
                proxy.metrics().await.sum("istio_tcp_connections_opened_total", &labels) == 1
            })
            .await;
        }
    });
}

#[test]
fn while_the_control_plane_is_away_what_is_known_goes_on_and_the_rest_is_refused_with_the_reason() {
    in_a_node(|node| async move {
        let world = world(&node).await;
        echo(world.b.listen(8080));
        echo(world.c.listen(8080));
        assert_eq!(call(&world.a, world.b.at(8080), b"hi").await.unwrap(), b"hi");
        world.control.down();
        assert_eq!(call(&world.a, world.b.at(8080), b"hi").await.unwrap(), b"hi");
        assert!(call(&world.a, world.c.at(8080), b"hi").await.is_err(), "it might be in the mesh");
        let refused = [("reason", "undiscovered"), ("reporter", "source")];
        eventually("it is counted", || async {
            world.pa.metrics().await.sum("ambit_connections_refused_total", &refused) == 1
        })
        .await;
        world.control.up(true);
        eventually("it goes on by itself", || async {
            call(&world.a, world.c.at(8080), b"hi").await.is_ok_and(|answer| answer == b"hi")
        })
        .await;
        assert_eq!(call(&world.a, world.b.at(8080), b"hi").await.unwrap(), b"hi");
    });
}
