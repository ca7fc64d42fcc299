//! Sockets that nobody closes go when they must, and not before.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::control::Control;
use crate::harness::{World, eventually, log};
use crate::namespaces::{Pod, in_a_node};
use crate::{descriptors, resident, sized};

/// What a server does once it has answered and its client has ended.
const CLOSES: u8 = b'c';
const STAYS: u8 = b's';

/// Connections of each kind in a round.
fn each() -> usize {
    sized(60, 1500)
}

fn rounds() -> usize {
    sized(2, 10)
}

async fn open(from: &Pod, to: SocketAddr, kind: u8) -> TcpStream {
    let mut stream = from.connect(to).await.unwrap();
    stream.write_all(&[kind]).await.unwrap();
    assert_eq!(stream.read_u8().await.unwrap(), kind);
    stream.shutdown().await.unwrap();
    stream
}

#[test]
fn half_closed_connections_stay_while_both_ends_live_and_go_when_one_dies() {
    in_a_node(|node| async move {
        let (control, address) = Control::start().await;
        let quick = [("KEEPALIVE_TIME", "1s"), ("KEEPALIVE_INTERVAL", "1s"), ("KEEPALIVE_RETRIES", "3")];
        let world = World::with(&node, control, address, &quick).await;
        let lost = node.pod(9);
        let listener = world.b.listen(8080);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let Ok(kind) = stream.read_u8().await else { return };
                    let _ = stream.write_u8(kind).await;
                    // The client's end.
                    let _ = stream.read(&mut [0; 1]).await;
                    if kind == STAYS {
                        // Nothing is sent; this waits until the connection itself is gone.
                        let _ = stream.ready(tokio::io::Interest::ERROR).await;
                    }
                });
            }
        });
        let open_now = async || world.pb.metrics().await.sum("istio_tcp_sockets_open", &[]);
        let to = world.b.at(8080);
        let (mut before, mut after) = ((0, 0), (0, 0));
        let each = each();
        for round in 0..=rounds() {
            let mut closed = Vec::new();
            let mut staying = Vec::new();
            let mut cut = Vec::new();
            for _ in 0..each {
                closed.push(open(&world.c, to, CLOSES).await);
                staying.push(open(&world.c, to, STAYS).await);
                cut.push(open(&lost, to, STAYS).await);
            }
            for stream in &mut closed {
                assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "the server has ended too");
            }
            drop(closed);
            eventually("what both have ended is gone", async || open_now().await == 2 * each as u64).await;
            lost.sh("nft 'table inet cut { chain i { type filter hook input priority 0; policy drop; }; chain o { type filter hook output priority 0; policy drop; }; }'");
            eventually("whoever does not answer is gone after the keep-alive's budget", async || {
                open_now().await == each as u64
            })
            .await;
            // More than that budget has passed for these too, and both their ends answer.
            for stream in &staying {
                let mut one = [0; 1];
                let read = stream.try_read(&mut one);
                assert!(read.is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock), "it lives");
            }
            log::forget();
            for stream in staying {
                stream.set_zero_linger().unwrap();
            }
            eventually("they go when one end dies", async || open_now().await == 0).await;
            drop(cut);
            lost.sh("nft delete table inet cut");
            let listed = world.pb.dump().await["workloadState"]["uid-b"]["connections"]["inbound"].clone();
            assert_eq!(listed, serde_json::json!([]), "none is listed");
            if round == 0 {
                // Once through everything before anything is compared.
                tokio::time::sleep(Duration::from_millis(500)).await;
                before = (descriptors(), resident());
            } else {
                eventually("descriptors are back", async || descriptors() <= before.0 + 20).await;
                // A quarter and what an allocator keeps for later.
                let most = before.1 * 5 / 4 + (24 << 10);
                let what = format!("{} KiB became {} KiB, which go back to {most}", before.1, resident());
                eventually(&what, async || resident() <= most).await;
            }
            after = (descriptors(), resident());
        }
        println!(
            "{} rounds of {}: {} descriptors and {} KiB before, {} and {} KiB after",
            rounds(),
            3 * each,
            before.0,
            before.1,
            after.0,
            after.1
        );
    });
}
