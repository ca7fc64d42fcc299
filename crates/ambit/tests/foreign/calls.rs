//! Calls from either node to the other, as both ends see them.

use std::net::SocketAddr;

use crate::seen::{Access, Metrics};
use crate::support::eventually;
use crate::traffic::{answering, ask};
use crate::world::{NAMESPACE, PORT, Place, Side, World};

const CALLS: usize = 3;

/// Series of one direction between two pods at one reporter.
fn between(
    metrics: &Metrics,
    name: &str,
    reporter: &str,
    from: &Place,
    to: &Place,
    direct: Option<bool>,
) -> f64 {
    let (client, server) = (from.identity(), to.identity());
    let service = match direct {
        Some(true) => "unknown".to_owned(),
        _ => format!("{}.{NAMESPACE}.svc.cluster.local", to.name.trim_end_matches("-0")),
    };
    let mut labels = vec![
        ("reporter", reporter),
        ("source_principal", &*client),
        ("destination_principal", &*server),
        ("source_workload", &*from.name),
        ("destination_workload", &*to.name),
        ("source_workload_namespace", NAMESPACE),
        ("destination_workload_namespace", NAMESPACE),
        ("connection_security_policy", "mutual_tls"),
        ("response_flags", "-"),
    ];
    if direct.is_some() {
        labels.push(("destination_service", &*service));
    }
    metrics.sum(name, &labels)
}

/// Everything that one way of calling must leave behind at both ends.
async fn call(world: &World, from: Side, to_side: Side, direct: bool) {
    let (client, server) = (world.place(from, 0), world.place(to_side, 0));
    let to: SocketAddr = if direct { server.at(PORT) } else { world.service(to_side).await };
    let words = format!("from {from:?} to {to_side:?}, direct {direct}");
    let before = [world.metrics(from).await, world.metrics(to_side).await];
    let count = |metrics: &Metrics, name: &str, reporter: &str, direct: Option<bool>| {
        between(metrics, name, reporter, client, server, direct)
    };
    for _ in 0..CALLS {
        assert_eq!(ask(client, to, &words).await, Ok(words.to_ascii_uppercase()), "{words}");
    }
    let bytes = (CALLS * words.len()) as f64;
    for (at, reporter, side) in [(0, "source", from), (1, "destination", to_side)] {
        // Whether an inbound call was a direct one a ztunnel can only guess.
        let sort = (reporter == "source" || side == Side::Ours).then_some(direct);
        eventually(&format!("{words}: all of it at the {reporter}"), || async {
            let now = world.metrics(side).await;
            let grown =
                |name: &str| count(&now, name, reporter, sort) - count(&before[at], name, reporter, sort);
            let all = [
                grown("istio_tcp_connections_opened_total"),
                grown("istio_tcp_connections_closed_total"),
                grown("istio_tcp_received_bytes_total"),
                grown("istio_tcp_sent_bytes_total"),
            ];
            if all == [CALLS as f64, CALLS as f64, bytes, bytes] {
                return Ok(());
            }
            let seen: Vec<_> = now.series("istio_tcp_connections_opened_total", &[]).collect();
            Err(format!("{all:?}: {seen:#?}"))
        })
        .await;
    }
}

/// Complete lines of this direction from one pod to the other.
fn lines<'a>(
    log: &'a [Access],
    direction: &'a str,
    from: &'a Place,
    to: &'a Place,
) -> impl Iterator<Item = &'a Access> {
    log.iter().filter(move |line| {
        line.message == "connection complete"
            && line.get("direction") == direction
            && line.get("src.workload") == from.name
            && line.get("dst.workload") == to.name
    })
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a foreign proxy in AMBIT_FOREIGN_PROXY"]
async fn calls_either_way_are_mutual_tls_at_both_ends_and_name_both() {
    let world = World::new("z1c").await;
    let _answering = Side::BOTH.map(|side| answering(world.place(side, 0).listen(PORT)));
    for (from, to) in [(Side::Foreign, Side::Ours), (Side::Ours, Side::Foreign)] {
        for direct in [true, false] {
            call(&world, from, to, direct).await;
        }
        let (client, server) = (world.place(from, 0), world.place(to, 0));
        for (side, direction) in [(from, "outbound"), (to, "inbound")] {
            eventually("a line of each call in the access log", || async {
                let log = world.access_log(side).await;
                let found: Vec<_> = lines(&log, direction, client, server).cloned().collect();
                if found.len() < 2 * CALLS {
                    return Err(format!("{side:?} {direction}: {} lines in {log:#?}", found.len()));
                }
                for line in found {
                    assert_eq!(line.get("src.identity"), client.identity(), "{side:?} {line:?}");
                    assert_eq!(line.get("dst.identity"), server.identity(), "{side:?} {line:?}");
                    assert_eq!(line.get("dst.hbone_addr"), server.at(PORT).to_string(), "{side:?} {line:?}");
                    assert_eq!(line.get("dst.addr"), server.at(15008).to_string(), "{side:?} {line:?}");
                    assert_eq!((&*line.level, line.get("error")), ("info", ""), "{side:?} {line:?}");
                }
                Ok(())
            })
            .await;
        }
    }
}
