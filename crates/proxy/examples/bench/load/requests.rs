//! Small requests: over connections that are kept, each over a new one, or at a fixed rate.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use serde_json::json;
use socket2::{Domain, Socket, Type};

use super::timer::Ticks;
use crate::serve::{ANSWER, REQUEST};

const WARM: Duration = Duration::from_millis(150);
/// No answer takes longer on this machine, unless it is lost.
const PATIENCE: Duration = Duration::from_secs(10);
const TICK: u64 = u64::MAX;

#[derive(Clone, Copy, PartialEq)]
pub enum Manner {
    Kept,
    New,
}

struct Call {
    socket: Socket,
    since: Instant,
    got: usize,
    connected: bool,
}

struct Caller<'a> {
    epoll: Epoll,
    targets: &'a [SocketAddr],
    next: usize,
    calls: Vec<Call>,
    manner: Manner,
    took: Vec<u32>,
    failed: u64,
    all: u64,
}

/// What has become of a connection.
enum State {
    Waiting,
    Answered,
    Ended,
}

impl<'a> Caller<'a> {
    fn new(targets: &'a [SocketAddr], manner: Manner) -> anyhow::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let took = Vec::with_capacity(1 << 20);
        Ok(Self { epoll, targets, next: 0, calls: Vec::new(), manner, took, failed: 0, all: 0 })
    }

    fn dial(&mut self, index: usize) -> anyhow::Result<()> {
        let since = Instant::now();
        let target = self.targets[self.next % self.targets.len()];
        self.next += 1;
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        let _ = socket.set_tcp_nodelay(true);
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error.into()),
            _ => {}
        }
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        self.epoll.add(&socket, EpollEvent::new(flags, index as u64))?;
        let call = Call { socket, since, got: 0, connected: false };
        match self.calls.get_mut(index) {
            Some(old) => *old = call,
            None => self.calls.push(call),
        }
        Ok(())
    }

    fn ask(&mut self, index: usize) -> io::Result<()> {
        (&self.calls[index].socket).write_all(&[b'r'; REQUEST])
    }

    fn read(&mut self, index: usize) -> State {
        let call = &mut self.calls[index];
        let mut bytes = [0; 4096];
        loop {
            match (&call.socket).read(&mut bytes) {
                Ok(0) => return State::Ended,
                Ok(count) => {
                    call.got += count;
                    // After the answer of a new connection its end comes right behind.
                    if self.manner == Manner::Kept && call.got >= ANSWER {
                        call.got -= ANSWER;
                        return State::Answered;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return State::Waiting,
                Err(_) => {
                    call.got = 0;
                    return State::Ended;
                }
            }
        }
    }

    fn answered(&mut self, index: usize, count: bool) {
        self.all += 1;
        if count {
            let took = self.calls[index].since.elapsed().as_micros();
            self.took.push(took.min(u32::MAX.into()) as u32);
        }
    }

    fn report(mut self, seconds: f64) -> serde_json::Value {
        self.took.sort_unstable();
        let last = self.took.len().saturating_sub(1);
        let at = |part: f64| self.took.get(((self.took.len() as f64 * part) as usize).min(last)).copied();
        json!({
            "rate": self.took.len() as f64 / seconds, "work": self.all, "failed": self.failed,
            "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p999": at(0.999),
        })
    }
}

/// Requests over `count` connections; at a `rate` if there is one, when the clock runs from when a request was due.
pub fn run(
    targets: &[SocketAddr],
    count: usize,
    time: Duration,
    rate: f64,
    manner: Manner,
) -> anyhow::Result<serde_json::Value> {
    let mut caller = Caller::new(targets, manner)?;
    for index in 0..count {
        caller.dial(index)?;
    }
    let mut ticks = None;
    let pause = if rate > 0.0 { Duration::from_secs_f64(1.0 / rate) } else { Duration::ZERO };
    if rate > 0.0 {
        let timer = Ticks::every(pause)?;
        caller.epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, TICK))?;
        ticks = Some(timer);
    }
    let (mut due, mut idle) = (Instant::now(), Vec::new());
    let warm = Instant::now() + WARM;
    let end = warm + time;
    let mut events = [EpollEvent::empty(); 256];
    while Instant::now() < end {
        let ready = caller.epoll.wait(&mut events, EpollTimeout::from(200_u16)).unwrap_or(0);
        for event in &events[..ready] {
            if event.data() == TICK {
                ticks.iter_mut().for_each(Ticks::take);
                continue;
            }
            let index = event.data() as usize;
            if !caller.calls[index].connected && event.events().contains(EpollFlags::EPOLLOUT) {
                caller.calls[index].connected = true;
                if rate > 0.0 {
                    idle.push(index);
                } else if caller.ask(index).is_err() {
                    caller.failed += 1;
                    caller.dial(index)?;
                    continue;
                }
            }
            match caller.read(index) {
                State::Waiting => {}
                State::Answered => {
                    caller.answered(index, Instant::now() >= warm);
                    if rate > 0.0 {
                        idle.push(index);
                    } else {
                        caller.calls[index].since = Instant::now();
                        caller.ask(index)?;
                    }
                }
                State::Ended => {
                    match manner == Manner::New && caller.calls[index].got >= ANSWER {
                        true => caller.answered(index, Instant::now() >= warm),
                        false => caller.failed += 1,
                    }
                    caller.dial(index)?;
                }
            }
        }
        while rate > 0.0 && due <= Instant::now() {
            let Some(index) = idle.pop() else { break };
            caller.calls[index].since = due;
            due += pause;
            caller.ask(index)?;
        }
    }
    Ok(caller.report(time.as_secs_f64()))
}

/// One new connection to each target, so many at a time: connections a second.
pub fn once(targets: &[SocketAddr], at_once: usize) -> anyhow::Result<serde_json::Value> {
    let mut caller = Caller::new(targets, Manner::New)?;
    let start = Instant::now();
    for index in 0..at_once.min(targets.len()) {
        caller.dial(index)?;
    }
    let mut events = [EpollEvent::empty(); 256];
    while (caller.all as usize) < targets.len() {
        anyhow::ensure!(start.elapsed() < PATIENCE, "{} of {} targets answered", caller.all, targets.len());
        let ready = caller.epoll.wait(&mut events, EpollTimeout::from(200_u16)).unwrap_or(0);
        for event in &events[..ready] {
            let index = event.data() as usize;
            if !caller.calls[index].connected && event.events().contains(EpollFlags::EPOLLOUT) {
                caller.calls[index].connected = true;
                // A connection that failed says so when it is read.
                let _ = caller.ask(index);
            }
            if let State::Ended = caller.read(index) {
                anyhow::ensure!(caller.calls[index].got >= ANSWER, "a target did not answer");
                caller.answered(index, true);
                if caller.next < targets.len() {
                    caller.dial(index)?;
                } else {
                    // Its end is not told twice.
                    caller.epoll.delete(&caller.calls[index].socket)?;
                }
            }
        }
    }
    Ok(caller.report(start.elapsed().as_secs_f64()))
}
