//! Readers that stop reading in a tunnel that others share, with either proxy at either end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::traffic::{PATIENCE, byte, check, pair};
use crate::world::{Place, Side, World};

/// Readers that stop at once where our proxy receives: its connection windows hold all streams' windows.
const MANY: usize = 10;
/// … where a ztunnel receives: its connection window of 16 MiB is used up by four streams of 4 MiB each, whoever sends
/// (docs/decisions/0005-connection-windows.md).
const FEW: usize = 3;
/// What each stalled one is sent: more than all windows on the way take.
const MUCH: usize = 40 << 20;
const SCRAPE: usize = 200 << 10;

/// Answers whatever connects with one scrape.
fn exporter(listener: TcpListener) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 8]).await;
                let _ = stream.write_all(&vec![b'm'; SCRAPE]).await;
                let _ = stream.shutdown().await;
            });
        }
    });
}

/// Scrapes through the same tunnel: how many were answered whole, and how long the longest of them took.
async fn scrapes(client: &Place, server: &Place, count: usize) -> (usize, Duration) {
    let (mut whole, mut longest) = (0, Duration::ZERO);
    for _ in 0..count {
        let start = Instant::now();
        let scrape = async {
            let mut stream = client.connect(server.at(9090)).await?;
            stream.write_all(b"GET").await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            Ok::<_, std::io::Error>(answer.len())
        };
        if let Ok(Ok(SCRAPE)) = tokio::time::timeout(Duration::from_secs(5), scrape).await {
            whole += 1;
            longest = longest.max(start.elapsed());
        }
    }
    (whole, longest)
}

async fn stall(world: &World, from: Side, upwards: bool, stalled: usize) {
    let (client, server) = (world.place(from, 0), world.place(from.other(), 0));
    let what = format!("client at {from:?}, upwards {upwards}, {stalled} stalled");
    let (before, alone) = scrapes(client, server, 20).await;
    assert_eq!(before, 20, "{what}: scrapes without anybody else");
    let listener = server.listen(if upwards { 9101 } else { 9102 });
    let (mut senders, mut readers) = (Vec::new(), Vec::new());
    for number in 0..stalled {
        let (near, far) =
            pair(client, listener.local_addr().map(|at| server.at(at.port())).unwrap(), &listener).await;
        let (mut sender, reader) = if upwards { (near, far) } else { (far, near) };
        let sent = Arc::new(AtomicU64::new(0));
        let counted = sent.clone();
        let sending = tokio::spawn(async move {
            let mut at = 0;
            while at < MUCH {
                let part: Vec<u8> = (at..(at + (8 << 10)).min(MUCH)).map(|at| byte(number, at)).collect();
                sender.write_all(&part).await.unwrap();
                at += part.len();
                counted.store(at as u64, Ordering::Relaxed);
            }
            sender.shutdown().await.unwrap();
            sender
        });
        senders.push((sending, sent));
        readers.push(reader);
    }
    // They stand still once nothing has moved for a while.
    let total = || senders.iter().map(|(_, sent)| sent.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let mut last = total();
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let now = total();
        if now == last {
            break;
        }
        last = now;
    }
    let (during, beside) = scrapes(client, server, 20).await;
    let (most, all) = (last.iter().max().unwrap() >> 10, last.iter().sum::<u64>() >> 10);
    println!(
        "{what}: at most {most} KiB of a stalled stream taken, {all} KiB of all; scrapes at most {alone:?} alone, \
         {during} of 20 whole beside them, at most {beside:?}"
    );
    // Whoever woke up gets all of it.
    let reading = readers
        .into_iter()
        .enumerate()
        .map(|(number, mut reader)| tokio::spawn(async move { check(&mut reader, number, MUCH).await }));
    for reader in reading.collect::<Vec<_>>() {
        let read = tokio::time::timeout(2 * PATIENCE, reader).await;
        read.unwrap_or_else(|_| panic!("{what}: a stalled stream goes on")).unwrap().unwrap();
    }
    for (sender, _) in senders {
        sender.await.unwrap();
    }
    assert_eq!(during, 20, "{what}: scrapes stood still behind stalled readers");
    // Twice the baseline, and what a busy machine adds to any twenty measurements.
    assert!(
        beside < 2 * alone + Duration::from_millis(300),
        "{what}: {beside:?} beside them, {alone:?} alone"
    );
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a foreign proxy in AMBIT_FOREIGN_PROXY"]
async fn readers_that_stop_hold_up_nobody_else_in_their_tunnel() {
    let world = World::new("z1s").await;
    for side in Side::BOTH {
        exporter(world.place(side, 0).listen(9090));
    }
    for from in Side::BOTH {
        for upwards in [false, true] {
            let receiver = if upwards { from.other() } else { from };
            let stalled = if receiver == Side::Ours { MANY } else { FEW };
            stall(&world, from, upwards, stalled).await;
        }
    }
}
