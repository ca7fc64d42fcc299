//! As many bytes as go through, over a number of connections, in one loop.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde_json::json;

use crate::serve::CHUNK;

/// Until connections have found their pace.
const WARM: Duration = Duration::from_millis(200);
/// Chunks of one connection before the next one's turn.
const TURN: usize = 4;

/// Gigabits a second from the client, or to it.
pub fn run(
    target: SocketAddr,
    count: usize,
    time: Duration,
    reverse: bool,
) -> anyhow::Result<serde_json::Value> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let flags = if reverse { EpollFlags::EPOLLIN } else { EpollFlags::EPOLLOUT };
    let mut streams = Vec::with_capacity(count);
    for index in 0..count {
        let stream = TcpStream::connect(target).context("bulk")?;
        stream.set_nonblocking(true)?;
        epoll.add(&stream, EpollEvent::new(flags, index as u64))?;
        streams.push(stream);
    }
    let mut bytes = vec![0_u8; CHUNK];
    let mut events = [EpollEvent::empty(); 64];
    let start = Instant::now();
    let (mut total, mut counted_from) = (0_u64, None);
    loop {
        let now = Instant::now();
        if counted_from.is_none() && now >= start + WARM {
            counted_from = Some((now, total));
        }
        if now >= start + WARM + time {
            break;
        }
        let ready = epoll.wait(&mut events, EpollTimeout::from(100_u16)).unwrap_or(0);
        for event in &events[..ready] {
            let mut stream = &streams[event.data() as usize];
            for _ in 0..TURN {
                let done = if reverse { stream.read(&mut bytes) } else { stream.write(&bytes) };
                match done {
                    Ok(0) => anyhow::bail!("a bulk connection has ended"),
                    Ok(count) => total += count as u64,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error).context("bulk"),
                }
            }
        }
    }
    let (from, before) = counted_from.unwrap_or((start, 0));
    let rate = (total - before) as f64 * 8.0 / from.elapsed().as_secs_f64() / 1e9;
    Ok(json!({ "rate": rate, "work": total as f64 / 1e9 }))
}
