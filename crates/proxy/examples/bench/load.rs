//! The application that calls: `load KIND TARGETS COUNT SECONDS [RATE]`; what it saw is printed as JSON.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::serve::{ANSWER, PAGE, REQUEST};

pub fn run(args: &[String]) -> anyhow::Result<()> {
    let [kind, targets, count, seconds, rest @ ..] = args else {
        anyhow::bail!("load KIND TARGETS COUNT SECONDS")
    };
    let targets: Vec<SocketAddr> = targets.split(',').map(str::parse).collect::<Result<_, _>>()?;
    let (count, time) = (count.parse()?, Duration::from_secs_f64(seconds.parse()?));
    let rate: f64 = rest.first().map_or(Ok(0.0), |rate| rate.parse())?;
    let report = match kind.as_str() {
        "bulk" => bulk(targets[0], count, time, false)?,
        "reverse" => bulk(targets[0], count, time, true)?,
        "keepalive" => requests(&targets, count, time, rate, Manner::Kept)?,
        "connect" => requests(&targets, count, time, 0.0, Manner::New)?,
        "scrape" => scrape(&targets, count)?,
        "idle" => return idle(targets[0], count),
        other => anyhow::bail!("unknown load {other}"),
    };
    println!("{report}");
    Ok(())
}

/// Bytes a second over `count` connections.
fn bulk(
    target: SocketAddr,
    count: usize,
    time: Duration,
    reverse: bool,
) -> anyhow::Result<serde_json::Value> {
    let (moved, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut threads = Vec::new();
    for _ in 0..count {
        let mut stream = TcpStream::connect(target).context("bulk")?;
        let (moved, stop) = (moved.clone(), stop.clone());
        threads.push(std::thread::spawn(move || {
            let mut bytes = vec![0_u8; 256 << 10];
            while !stop.load(Ordering::Relaxed) {
                let done = if reverse { stream.read(&mut bytes) } else { stream.write(&bytes) };
                match done {
                    Ok(count) if count > 0 => moved.fetch_add(count as u64, Ordering::Relaxed),
                    _ => return,
                };
            }
        }));
    }
    std::thread::sleep(Duration::from_millis(200));
    let (before, start) = (moved.load(Ordering::Relaxed), Instant::now());
    std::thread::sleep(time);
    let (bytes, took) = (moved.load(Ordering::Relaxed) - before, start.elapsed().as_secs_f64());
    let total = moved.load(Ordering::Relaxed);
    stop.store(true, Ordering::Relaxed);
    Ok(json!({ "rate": bytes as f64 * 8.0 / took / 1e9, "work": total as f64 / 1e9 }))
}

#[derive(Clone, Copy, PartialEq)]
enum Manner {
    Kept,
    New,
}

struct Call {
    socket: Socket,
    since: Instant,
    got: usize,
    waiting: bool,
    sent: bool,
}

/// Requests a second over `count` connections, each kept or each new.
fn requests(
    targets: &[SocketAddr],
    count: usize,
    time: Duration,
    rate: f64,
    manner: Manner,
) -> anyhow::Result<serde_json::Value> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let mut next_target = 0;
    let mut dial = |index: usize| -> anyhow::Result<Call> {
        let target = targets[next_target % targets.len()];
        next_target += 1;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let _ = socket.set_tcp_nodelay(true);
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error.into()),
            _ => {}
        }
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(&socket, EpollEvent::new(flags, index as u64))?;
        Ok(Call { socket, since: Instant::now(), got: 0, waiting: false, sent: false })
    };
    let mut calls: Vec<Call> = (0..count).map(&mut dial).collect::<anyhow::Result<_>>()?;
    let request = [b'r'; REQUEST];
    let mut bytes = [0; 4096];
    let mut events = [EpollEvent::empty(); 256];
    let mut took: Vec<u32> = Vec::with_capacity(1 << 20);
    let warm = Instant::now() + Duration::from_millis(150);
    let end = warm + time;
    let (mut done, mut failed, mut all) = (0_u64, 0_u64, 0_u64);
    let mut next_due = Instant::now();
    let pause = if rate > 0.0 { Duration::from_secs_f64(1.0 / rate) } else { Duration::ZERO };
    let mut idle: Vec<usize> = Vec::new();
    loop {
        let now = Instant::now();
        if now >= end {
            break;
        }
        // At a fixed rate the clock counts from when a request was due.
        while rate > 0.0 && next_due <= now {
            let Some(index) = idle.pop() else { break };
            let call = &mut calls[index];
            call.since = next_due;
            call.waiting = true;
            next_due += pause;
            (&call.socket).write_all(&request)?;
        }
        let wait = match rate > 0.0 && !idle.is_empty() {
            true => EpollTimeout::ZERO,
            false => EpollTimeout::from(200_u16),
        };
        let count = epoll.wait(&mut events, wait).unwrap_or(0);
        for event in &events[..count] {
            let index = event.data() as usize;
            let call = &mut calls[index];
            if !call.sent && event.events().contains(EpollFlags::EPOLLOUT) {
                call.sent = true;
                if rate > 0.0 {
                    idle.push(index);
                } else {
                    call.waiting = true;
                    if (&call.socket).write_all(&request).is_err() {
                        failed += 1;
                        calls[index] = dial(index)?;
                        continue;
                    }
                }
            }
            let mut ended = false;
            loop {
                match (&call.socket).read(&mut bytes) {
                    Ok(0) => ended = true,
                    Ok(count) => {
                        call.got += count;
                        if count == bytes.len() {
                            continue;
                        }
                        if manner == Manner::New && call.got >= ANSWER {
                            // The end comes right behind it.
                            continue;
                        }
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                    Err(_) => {
                        ended = true;
                        call.got = 0;
                    }
                }
                break;
            }
            let answered = call.got >= ANSWER;
            let over = match manner {
                Manner::Kept => answered,
                Manner::New => ended,
            };
            if !over {
                if ended {
                    failed += 1;
                    calls[index] = dial(index)?;
                }
                continue;
            }
            if answered {
                let now = Instant::now();
                all += 1;
                if now >= warm {
                    done += 1;
                    took.push(now.duration_since(call.since).as_micros().min(u32::MAX.into()) as u32);
                }
            } else {
                failed += 1;
            }
            match manner {
                Manner::New => calls[index] = dial(index)?,
                Manner::Kept => {
                    call.got -= ANSWER;
                    if rate > 0.0 {
                        idle.push(index);
                    } else {
                        call.since = Instant::now();
                        (&call.socket).write_all(&request)?;
                    }
                }
            }
        }
    }
    took.sort_unstable();
    let at = |part: f64| {
        took.get(((took.len() as f64 * part) as usize).min(took.len().saturating_sub(1))).copied()
    };
    Ok(json!({
        "rate": done as f64 / time.as_secs_f64(), "work": all, "failed": failed,
        "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999),
    }))
}

/// One round over all targets, so many at a time; seconds.
fn scrape(targets: &[SocketAddr], at_once: usize) -> anyhow::Result<serde_json::Value> {
    let start = Instant::now();
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..at_once)
            .map(|_| {
                scope.spawn(|| -> anyhow::Result<()> {
                    let mut page = Vec::with_capacity(PAGE);
                    while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                        let mut stream = TcpStream::connect(target)?;
                        stream.write_all(&[b'r'; REQUEST])?;
                        page.clear();
                        stream.read_to_end(&mut page)?;
                        anyhow::ensure!(page.len() == PAGE, "{} bytes of {target}", page.len());
                    }
                    Ok(())
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| anyhow::bail!("a scraper died")))
    })?;
    Ok(json!({ "rate": start.elapsed().as_secs_f64(), "work": targets.len() }))
}

/// Opens connections, says so, keeps them until its input ends, and closes them.
fn idle(target: SocketAddr, count: usize) -> anyhow::Result<()> {
    let mut open = Vec::with_capacity(count);
    let mut bytes = [0; ANSWER];
    for _ in 0..count {
        let mut stream = TcpStream::connect(target)?;
        stream.write_all(&[b'r'; REQUEST])?;
        stream.read_exact(&mut bytes)?;
        open.push(stream);
    }
    println!("{}", json!({ "open": open.len(), "first": open.first().map(AsRawFd::as_raw_fd) }));
    let mut end = String::new();
    std::io::stdin().read_line(&mut end)?;
    Ok(())
}
