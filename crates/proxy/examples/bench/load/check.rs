//! Whether what goes in comes out: transfers of odd sizes both ways, with digests, half-closes and slow readers.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use aws_lc_rs::digest::{self, SHA256};
use serde_json::json;

/// Transfers at once.
const AT_ONCE: usize = 8;
const SIZES: [u32; 8] = [0, 1, 100, 16_383, 16_384, 300_001, 2_000_003, 9_000_011];
/// Nothing that works is quiet for so long.
const PATIENCE: Duration = Duration::from_secs(20);

/// `count` transfers; fails at the first that is not right.
pub fn run(target: SocketAddr, count: usize) -> anyhow::Result<serde_json::Value> {
    let next = AtomicUsize::new(0);
    let worker = || -> anyhow::Result<()> {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return Ok(());
            }
            transfer(target, number).with_context(|| format!("transfer {number}"))?;
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
        let outcome =
            workers.into_iter().map(|one| one.join().unwrap_or_else(|_| anyhow::bail!("a worker died")));
        outcome.collect::<anyhow::Result<()>>()
    })?;
    Ok(json!({ "rate": count, "work": count }))
}

/// Sends a head and bytes and ends its half; reads the digest of them and other bytes until the server's end.
fn transfer(target: SocketAddr, number: usize) -> anyhow::Result<()> {
    let (up, down) = (SIZES[number % 8], SIZES[(number / 8 + 3 * number) % 8]);
    let slow = number % 5 == 3;
    let stream = TcpStream::connect(target)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let sent = pattern(number as u32, up);
    let mut head = down.to_be_bytes().to_vec();
    head.push(u8::from(slow));
    std::thread::scope(|scope| {
        let sender = scope.spawn(|| -> std::io::Result<()> {
            (&stream).write_all(&head)?;
            (&stream).write_all(&sent)?;
            stream.shutdown(Shutdown::Write)
        });
        let mut got = Vec::with_capacity(down as usize + 64);
        let mut piece = vec![0; 64 << 10];
        loop {
            let count = (&stream).read(&mut piece).context("reading")?;
            if count == 0 {
                break;
            }
            got.extend_from_slice(&piece[..count]);
            if slow {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        sender.join().map_err(|_| anyhow::anyhow!("the sender died"))?.context("writing")?;
        anyhow::ensure!(got.len() == 32 + down as usize, "{} bytes came instead of {}", got.len(), 32 + down);
        let (told, bytes) = got.split_at(32);
        anyhow::ensure!(told == digest(&sent), "the server got other bytes than were sent");
        anyhow::ensure!(bytes == pattern(down, down), "other bytes came than were sent");
        Ok(())
    })
}

pub fn digest(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&SHA256, bytes).as_ref().to_vec()
}

/// Bytes without a period that a mistake could hide behind (xorshift).
pub fn pattern(seed: u32, length: u32) -> Vec<u8> {
    let mut state = u64::from(seed) << 1 | 1;
    let mut bytes = Vec::with_capacity(length as usize + 8);
    while bytes.len() < length as usize {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length as usize);
    bytes
}
