//! Readers that stop reading in a tunnel that others share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::World;
use crate::namespaces::in_a_node;
use crate::sized;

const STALLED: usize = 10;
/// What each stalled one is sent: the first may be a gigabyte, the others less.
fn much(number: usize) -> usize {
    sized(24 << 20, if number == 0 { 1 << 30 } else { 100 << 20 })
}
/// What the documented window lets the proxies take for one stream, and what the kernel buffers at its four sockets.
const BOUND: u64 = (4 + 4 * 2) << 20;
/// By themselves, sockets take what the machine has been told to let them have: tens of mebibytes each on some.
const SMALL_SOCKETS: &str = "echo 4096 131072 1048576 > /proc/sys/net/ipv4/tcp_rmem; \
                             echo 4096 16384 1048576 > /proc/sys/net/ipv4/tcp_wmem";
const SCRAPE: usize = 200 << 10;

/// Byte `at` of stream `number`.
fn byte(number: usize, at: usize) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 9) ^ number) as u8
}

async fn send(mut to: TcpStream, number: usize, sent: Arc<AtomicU64>) -> TcpStream {
    let mut at = 0;
    while at < much(number) {
        let part: Vec<u8> = (at..(at + 64 * 1024).min(much(number))).map(|at| byte(number, at)).collect();
        for piece in part.chunks(8 << 10) {
            to.write_all(piece).await.unwrap();
            sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
        at += part.len();
    }
    to.shutdown().await.unwrap();
    to
}

async fn check(mut from: TcpStream, number: usize) {
    let (mut at, mut part) = (0, vec![0; 256 << 10]);
    loop {
        let read = from.read(&mut part).await.unwrap();
        if read == 0 {
            break;
        }
        let right = part[..read].iter().enumerate().all(|(more, got)| *got == byte(number, at + more));
        assert!(right, "stream {number} is not what was sent, near byte {at}");
        at += read;
    }
    assert_eq!(at, much(number), "stream {number} arrives whole");
}

/// Scrapes through the same tunnel; how long the longest took.
async fn scrapes(world: &World, count: usize) -> Duration {
    let mut longest = Duration::ZERO;
    for _ in 0..count {
        let start = Instant::now();
        let scrape = async {
            let mut stream = world.a.connect(world.b.at(9090)).await.unwrap();
            stream.write_all(b"GET").await.unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await.unwrap();
            answer.len()
        };
        let answered = tokio::time::timeout(Duration::from_secs(5), scrape).await;
        assert_eq!(answered.expect("a scrape stands still behind a stalled reader"), SCRAPE);
        longest = longest.max(start.elapsed());
    }
    longest
}

async fn stall(upwards: bool, world: World) {
    for pod in [&world.a, &world.b] {
        pod.sh(SMALL_SOCKETS);
    }
    let metrics = world.b.listen(9090);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = metrics.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 8]).await;
                let _ = stream.write_all(&vec![b'm'; SCRAPE]).await;
                let _ = stream.shutdown().await;
            });
        }
    });
    let before = scrapes(&world, 20).await;
    let listener = world.b.listen(8080);
    let (mut senders, mut readers) = (Vec::new(), Vec::new());
    for number in 0..STALLED {
        let mut client = world.a.connect(world.b.at(8080)).await.unwrap();
        client.write_u8(0).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.read_u8().await.unwrap();
        let (sender, reader) = if upwards { (client, server) } else { (server, client) };
        let sent = Arc::new(AtomicU64::new(0));
        senders.push((tokio::spawn(send(sender, number, sent.clone())), sent));
        readers.push(reader);
    }
    // They stand still once nothing has moved for a while.
    let total = || senders.iter().map(|(_, sent)| sent.load(Ordering::Relaxed)).collect::<Vec<_>>();
    let mut last = total();
    for _ in 0..200 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = total();
        if now == last {
            break;
        }
        last = now;
    }
    let most = *last.iter().max().unwrap();
    assert!(most < BOUND, "{most} bytes were taken for a reader that takes none");
    let stood = Instant::now();
    let mut during = scrapes(&world, 20).await;
    while stood.elapsed() < sized(Duration::ZERO, Duration::from_secs(60)) {
        tokio::time::sleep(Duration::from_secs(1)).await;
        during = during.max(scrapes(&world, 1).await);
    }
    println!(
        "{STALLED} stalled, upwards {upwards}: scrapes took at most {before:?} before and {during:?} during; at most {} \
         KiB were taken of a stalled stream",
        most >> 10
    );
    // Twice the baseline, and what a busy machine adds to any twenty measurements.
    assert!(
        during < 2 * before + Duration::from_millis(100),
        "{during:?} beside stalled readers, {before:?} alone"
    );
    let reading = readers.into_iter().enumerate().map(|(number, reader)| tokio::spawn(check(reader, number)));
    for reader in reading.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
    for (sender, _) in senders {
        sender.await.unwrap();
    }
}

#[test]
fn clients_that_stop_reading_hold_up_nobody_else_in_their_tunnel() {
    in_a_node(|node| async move { stall(false, World::new(&node).await).await });
}

#[test]
fn servers_that_stop_reading_hold_up_nobody_else_in_their_tunnel() {
    in_a_node(|node| async move { stall(true, World::new(&node).await).await });
}
