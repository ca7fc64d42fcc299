//! How connections end, and that all their bytes have come by then.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::support::eventually;
use crate::traffic::{PATIENCE, answering, ask, check, pair, send};
use crate::world::{PORT, Side, World};

/// Bytes of a large transfer in each direction of each connection.
const MUCH: usize = 24 << 20;
/// Connections at once: more than one tunnel may carry at either proxy.
const CROWD: usize = 250;
/// Clients of a server that ends, and how many of them have their last answer still to read.
const CLIENTS: usize = 50;
const SLOW: usize = 10;
const LAST: usize = 64 << 10;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a foreign proxy in AMBIT_FOREIGN_PROXY"]
async fn large_transfers_and_crowds_arrive_as_they_were_sent() {
    let world = World::new("z1l").await;
    for side in Side::BOTH {
        let (client, server) = (world.place(side, 0), world.place(side.other(), 0));
        let listener = server.listen(9000);
        let mut transfers = JoinSet::new();
        for number in 0..4 {
            let (near, far) = pair(client, server.at(9000), &listener).await;
            let ((mut near_in, mut near_out), (mut far_in, mut far_out)) =
                (near.into_split(), far.into_split());
            transfers
                .spawn(async move { send(&mut near_out, number, MUCH).await.map_err(|e| e.to_string()) });
            transfers.spawn(async move { check(&mut near_in, number + 100, MUCH).await });
            // This way ends first, so that the other goes on half-closed.
            transfers.spawn(async move {
                send(&mut far_out, number + 100, MUCH).await.map_err(|e| e.to_string())
            });
            transfers.spawn(async move { check(&mut far_in, number, MUCH).await });
        }
        let all = async {
            while let Some(done) = transfers.join_next().await {
                done.unwrap().unwrap_or_else(|fault| panic!("from {side:?}: {fault}"));
            }
        };
        tokio::time::timeout(2 * PATIENCE, all).await.expect("transfers end");

        // Many at once, all of them open before the first one is used.
        let mut open = Vec::new();
        for _ in 0..CROWD {
            open.push(pair(client, server.at(9000), &listener).await);
        }
        for (number, (near, far)) in open.iter_mut().enumerate() {
            near.write_u32(u32::try_from(number).unwrap()).await.unwrap();
            let heard = tokio::time::timeout(PATIENCE, far.read_u32()).await.expect("each is carried");
            assert_eq!(heard.unwrap() as usize, number, "from {side:?}");
        }
        drop(open);
        // And many that come at the same moment, over and over.
        let _answering = answering(server.listen(PORT));
        let to = server.at(PORT);
        for _ in 0..3 {
            let asking = (0..CROWD).map(|number| async move {
                let words = format!("number {number}");
                (ask(client, to, &words).await, words.to_ascii_uppercase())
            });
            for (answer, wanted) in futures::future::join_all(asking).await {
                assert_eq!(answer, Ok(wanted), "from {side:?}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a foreign proxy in AMBIT_FOREIGN_PROXY"]
async fn clients_of_a_drained_server_see_every_byte_and_then_its_end() {
    let mut world = World::new("z1e").await;
    for side in Side::BOTH {
        let name = format!("drained-{}", side.name());
        world.start(side, &name).await;
        let (client, server) = (world.place(side.other(), 0), world.named(&name));
        let listener = server.listen(PORT);
        let mut clients = Vec::new();
        let mut servers = Vec::new();
        for _ in 0..CLIENTS {
            let (near, far) = pair(client, server.at(PORT), &listener).await;
            clients.push(near);
            servers.push(far);
        }
        // SIGTERM: what is owed is answered, each connection ends with FIN; 200 ms later the pod is gone.
        for (number, far) in servers.iter_mut().enumerate() {
            if number < SLOW {
                far.write_all(&vec![7; LAST]).await.unwrap();
            }
            far.shutdown().await.unwrap();
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        drop((servers, listener));
        world.delete(&name).await;
        for (number, mut near) in clients.into_iter().enumerate() {
            let mut rest = Vec::new();
            let read = tokio::time::timeout(Duration::from_secs(20), near.read_to_end(&mut rest)).await;
            let read = read.unwrap_or_else(|_| panic!("{side:?}: client {number} is left hanging"));
            read.unwrap_or_else(|error| {
                panic!("{side:?}: client {number}: {error} after {} bytes", rest.len())
            });
            assert_eq!(rest.len(), if number < SLOW { LAST } else { 0 }, "{side:?}: client {number}");
        }
        // A ztunnel calls it a broken pipe when its client, having read all of it, ends later than the pod.
        if side == Side::Ours {
            continue;
        }
        eventually("the client's proxy to call all of it a normal end", || async {
            let log = world.access_log(side.other()).await;
            let of = |line: &&crate::seen::Access| {
                line.get("dst.workload") == name && line.get("direction") == "outbound"
            };
            let lines: Vec<_> =
                log.iter().filter(of).filter(|line| line.message == "connection complete").collect();
            let faults: Vec<_> = lines.iter().filter(|line| !line.get("error").is_empty()).collect();
            assert!(faults.is_empty(), "{side:?}: {faults:#?}");
            if lines.len() == CLIENTS { Ok(()) } else { Err(format!("{} lines", lines.len())) }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a foreign proxy in AMBIT_FOREIGN_PROXY"]
async fn a_reset_ends_the_other_side_too() {
    let world = World::new("z1x").await;
    for side in Side::BOTH {
        for client_resets in [true, false] {
            let (client, server) = (world.place(side, 0), world.place(side.other(), 0));
            let listener = server.listen(9100);
            let (near, far) = pair(client, server.at(9100), &listener).await;
            let (resets, mut remains) = if client_resets { (near, far) } else { (far, near) };
            resets.set_zero_linger().unwrap();
            drop(resets);
            let ended = tokio::time::timeout(PATIENCE, remains.read(&mut [0; 8])).await;
            let ended =
                ended.unwrap_or_else(|_| panic!("from {side:?}, client resets {client_resets}: hangs"));
            println!("from {side:?}, client resets {client_resets}: the other side reads {ended:?}");
            assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
        }
    }
}
