//! The certificate authority is away, in all ways it can be, while certificates still have time left (D12).

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tonic::Status;

use crate::control::Control;
use crate::harness::{Proxy, World, call, echo, eventually, log};
use crate::namespaces::{Node, in_a_node};

/// What becomes of connections to the authority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Open,
    /// Refuses connections, and ends those that there are.
    Shut,
    /// Takes connections, and never answers.
    Silent,
}

/// A way to the authority that can be shut.
async fn door(to: SocketAddr) -> (SocketAddr, watch::Sender<Door>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, mut door) = watch::channel(Door::Open);
    tokio::spawn(async move {
        let mut listener = Some(listener);
        loop {
            if *door.borrow_and_update() == Door::Shut {
                drop(listener.take());
            } else if listener.is_none() {
                listener = Some(TcpListener::bind(address).await.unwrap());
            }
            tokio::select! {
                changed = door.changed() => if changed.is_err() { return },
                accepted = async { listener.as_ref().unwrap().accept().await }, if listener.is_some() => {
                    let (client, _) = accepted.unwrap();
                    tokio::spawn(carry(client, to, door.clone()));
                }
            }
        }
    });
    (address, sender)
}

async fn carry(mut client: TcpStream, to: SocketAddr, mut door: watch::Receiver<Door>) {
    if door.wait_for(|door| *door != Door::Silent).await.is_err() {
        return;
    }
    let mut server = TcpStream::connect(to).await.unwrap();
    loop {
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut server) => return,
            state = door.wait_for(|door| *door != Door::Open) => {
                let Ok(state) = state.map(|state| *state) else { return };
                if state == Door::Shut {
                    return;
                }
            }
        }
        if door.wait_for(|door| *door == Door::Open).await.is_err() {
            return;
        }
    }
}

async fn world(node: &Node, lifetime: i64) -> (World, watch::Sender<Door>) {
    let (control, address) = Control::start().await;
    control.certificate_lifetime(lifetime);
    let (authority, door) = door(address).await;
    let authority = format!("http://{authority}");
    (World::with(node, control, address, &[("CA_ADDRESS", &authority)]).await, door)
}

async fn failing(world: &World) -> Option<String> {
    let dump = world.pa.dump().await;
    let all = dump["certificates"].as_array().unwrap();
    let mine = all.iter().find(|c| c["identity"] == "spiffe://cluster.local/ns/ns/sa/a").unwrap();
    assert_eq!(mine.get("renewalFailing").is_some(), mine.get("renewalFailingSince").is_some());
    mine.get("renewalFailing").map(|why| why.as_str().unwrap().to_owned())
}

/// Certificates of 16 s, renewed after some 8; from 3 s to 12 s the authority is away. 20 new connections a second
/// throughout, and beyond the end of the first certificates.
fn no_call_fails_while(away: fn(&World, &watch::Sender<Door>, bool), reason: &'static str) {
    in_a_node(move |node| async move {
        let (world, door) = world(&node, 16).await;
        echo(world.b.listen(8080));
        let (start, mut said) = (Instant::now(), None);
        let mut gone = false;
        while start.elapsed() < Duration::from_secs(18) {
            assert_eq!(
                call(&world.a, world.b.at(8080), b"hi").await.unwrap(),
                b"hi",
                "after {:?}",
                start.elapsed()
            );
            let now = (3..12).contains(&start.elapsed().as_secs());
            if now != gone {
                away(&world, &door, now);
                gone = now;
            }
            if gone && said.is_none() {
                said = failing(&world).await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        if !reason.is_empty() {
            let said = said.expect("the dump says that renewal is failing");
            assert!(said.contains(reason), "{said}");
        }
        assert_eq!(failing(&world).await, None, "renewed by itself");
    });
}

#[test]
fn an_authority_that_refuses_connections_costs_no_call() {
    no_call_fails_while(
        |_, door, away| {
            door.send_replace(if away { Door::Shut } else { Door::Open });
        },
        "refused",
    );
}

#[test]
fn an_authority_that_never_answers_costs_no_call() {
    no_call_fails_while(
        |_, door, away| {
            door.send_replace(if away { Door::Silent } else { Door::Open });
        },
        "",
    );
}

#[test]
fn an_authority_that_denies_costs_no_call() {
    let away = |world: &World, _: &watch::Sender<Door>, away: bool| {
        world.control.ca_fails(away.then(|| Status::permission_denied("not today")));
    };
    no_call_fails_while(away, "not today");
}

#[test]
fn an_authority_that_names_somebody_else_costs_no_call_and_is_not_believed() {
    let away = |world: &World, _: &watch::Sender<Door>, away: bool| {
        world.control.ca_lies(away.then_some("spiffe://cluster.local/ns/ns/sa/other"));
    };
    no_call_fails_while(away, "sa/other");
}

#[test]
fn when_the_authority_is_away_for_longer_than_certificates_live_calls_fail_closed_and_recover() {
    in_a_node(|node| async move {
        let (world, _door) = world(&node, 6).await;
        echo(world.b.listen(8080));
        assert_eq!(call(&world.a, world.b.at(8080), b"hi").await.unwrap(), b"hi");
        world.control.ca_fails(Some(Status::unavailable("gone")));
        // Also through the tunnel that there is.
        eventually("calls fail", || async { call(&world.a, world.b.at(8080), b"hi").await.is_err() }).await;
        // The client may see its end a moment before it is written down.
        let failed = || {
            let lines = log::lines("outbound", "connection complete");
            lines.into_iter().rfind(|line| line.contains_key("error"))
        };
        eventually("it is logged", async || failed().is_some()).await;
        let line = failed().unwrap();
        assert!(
            line["error"].contains("certificate expired for spiffe://cluster.local/ns/ns/sa/"),
            "{line:?}"
        );
        assert!(line["error"].contains("gone"), "{line:?}");
        world.control.ca_fails(None);
        eventually("they recover", || async {
            call(&world.a, world.b.at(8080), b"hi").await.is_ok_and(|answer| answer == b"hi")
        })
        .await;
    });
}

#[test]
fn a_root_that_is_replaced_at_once_divides_the_mesh_only_until_the_nodes_hear_of_it() {
    in_a_node(|node| async move {
        let (control, address) = Control::start().await;
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("root-cert.pem");
        std::fs::write(&file, control.root()).unwrap();
        let world = World::with(&node, control, address, &[("CA_ROOT_CA", file.to_str().unwrap())]).await;
        echo(world.b.listen(8080));
        assert_eq!(call(&world.a, world.b.at(8080), b"hi").await.unwrap(), b"hi");
        let roots = async |proxy: &Proxy| {
            let dump = proxy.dump().await;
            let all = dump["certificates"].as_array().unwrap();
            all.iter().map(|one| one["rootCerts"].to_string()).collect::<BTreeSet<_>>()
        };
        let before = roots(&world.pa).await;
        assert_eq!((before.len(), &before), (1, &roots(&world.pb).await));

        world.control.replace_root();
        let new = world.proxy_with_a_pod_of_its_own().await;
        eventually("a node that comes now has the other root", async || {
            let now = roots(&new).await;
            now.len() == 1 && now.is_disjoint(&before)
        })
        .await;
        assert_eq!(roots(&world.pa).await, before, "nobody told it yet");
        std::fs::write(&file, world.control.root()).unwrap();
        eventually("every node has the other root alone", async || {
            let [a, b, new] = [roots(&world.pa).await, roots(&world.pb).await, roots(&new).await];
            a == new && b == new
        })
        .await;
        assert_eq!(call(&world.a, world.b.at(8080), b"hi").await.unwrap(), b"hi");
        new.stop().await;
    });
}
