//! Two sockets that are joined: plaintext in, plaintext out. What is small is copied; what comes in bulk is spliced,
//! which costs more system calls and no copying.

use std::cell::Cell;
use std::io::{self, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::rc::Rc;
use std::task::Waker;
use std::time::Instant;

use nix::sys::epoll::EpollFlags;
use socket2::Socket;

use super::core::{Core, Slot};
use super::pipe::{Pipe, Pipes};
use super::slots::Token;
use super::stream::Pending;
use crate::copy::Meter;
use crate::sockets::reset_on_close;

/// Reads of one direction in one turn.
const READS: usize = 4;
/// A read of so many bytes shows that more of them are to come.
const BULK: usize = 64 << 10;

/// One of the two sockets.
pub(super) struct Side {
    pub(super) socket: Socket,
    readable: bool,
    writable: bool,
    hup: bool,
    /// It has ended its direction, and that has been seen.
    ended: bool,
    /// It has been told that the other one has ended.
    told: bool,
    pending: Pending,
    /// What was spliced from the other one and not taken yet.
    piped: Option<Pipe>,
    /// It sends more than is worth copying.
    bulk: bool,
}

impl Side {
    pub(super) fn new(socket: Socket) -> Self {
        Self {
            socket,
            readable: false,
            writable: false,
            hup: false,
            ended: false,
            told: false,
            pending: Pending::default(),
            piped: None,
            bulk: false,
        }
    }

    /// Gives it what it has not taken yet; how much it took.
    fn push(&mut self, pipes: &mut Pipes) -> io::Result<usize> {
        let mut moved = 0;
        while !self.pending.is_empty() && self.writable {
            match put(&self.socket, self.pending.rest())? {
                Some(bytes) => {
                    self.pending.consume(bytes);
                    moved += bytes;
                }
                None => self.writable = false,
            }
        }
        while self.writable
            && let Some(pipe) = &mut self.piped
        {
            match pipe.drain(&self.socket)? {
                Some(bytes) => moved += bytes,
                None => self.writable = false,
            }
            if pipe.is_empty()
                && let Some(pipe) = self.piped.take()
            {
                pipes.give_back(pipe);
            }
        }
        Ok(moved)
    }

    /// Whether it has taken all that there was for it.
    fn is_served(&self) -> bool {
        self.pending.is_empty() && self.piped.is_none()
    }

    /// Reads in bulk into a pipe for `sink`. False: no pipe is to be had.
    fn splice_to(&mut self, sink: &mut Self, pipes: &mut Pipes) -> io::Result<bool> {
        let Ok(mut pipe) = pipes.take() else { return Ok(false) };
        match pipe.fill(&self.socket)? {
            Some(0) => self.ended = true,
            Some(bytes) => self.bulk = bytes >= BULK,
            // The pipe was empty: it is the socket that has nothing.
            None => (self.readable, self.bulk) = (false, false),
        }
        match pipe.is_empty() {
            true => pipes.give_back(pipe),
            false => sink.piped = Some(pipe),
        }
        Ok(true)
    }

    /// Whether bytes have arrived that nobody has read yet.
    pub(super) fn has_bytes(&self) -> bool {
        self.socket.peek(&mut [MaybeUninit::uninit(); 1]).is_ok_and(|bytes| bytes > 0)
    }
}

/// When something moved last, and which way.
#[derive(Debug)]
pub(crate) struct Movement {
    last: Cell<Instant>,
    answered: Cell<bool>,
}

impl Movement {
    pub(super) fn new(now: Instant) -> Self {
        // Before the first request there is nothing to be lost.
        Self { last: Cell::new(now), answered: Cell::new(true) }
    }

    /// When something moved last, and whether that was an answer.
    pub(crate) fn last(&self) -> (Instant, bool) {
        (self.last.get(), self.answered.get())
    }
}

/// Two sockets; the first is the client's.
pub(super) struct Pair {
    pub(super) sides: [Side; 2],
    pub(super) meter: Rc<dyn Meter>,
    pub(super) movement: Rc<Movement>,
    pub(super) half: Option<Token>,
    pub(super) queued: bool,
    pub(super) result: Option<io::Result<()>>,
    pub(super) waker: Option<Waker>,
}

impl Pair {
    pub(super) fn finish(&mut self, result: io::Result<()>) {
        if self.result.is_some() {
            return;
        }
        if result.is_err() {
            self.reset();
        }
        self.result = Some(result);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn reset(&self) {
        for side in &self.sides {
            reset_on_close(&side.socket);
        }
    }

    /// Carries bytes from side `from` to the other. True: there is more to do than one turn allows.
    fn carry(
        &mut self,
        from: usize,
        scratch: &mut [u8],
        pipes: &mut Pipes,
        now: Instant,
    ) -> io::Result<bool> {
        let [first, second] = &mut self.sides;
        let (source, sink) = if from == 0 { (first, second) } else { (second, first) };
        let mut moved = 0;
        let mut more = false;
        for turn in 0.. {
            moved += sink.push(pipes)?;
            if !sink.is_served() || !source.readable || source.ended {
                break;
            }
            if turn == READS {
                more = true;
                break;
            }
            if source.bulk && source.splice_to(sink, pipes)? {
                continue;
            }
            match (&source.socket).read(scratch) {
                Ok(0) => source.ended = true,
                Ok(bytes) => {
                    source.readable = source.hup || bytes == scratch.len();
                    source.bulk = bytes >= BULK;
                    let written = if sink.writable { put(&sink.socket, &scratch[..bytes])? } else { None };
                    let written = written.unwrap_or(0);
                    moved += written;
                    if written < bytes {
                        sink.writable = false;
                        sink.pending.push(&scratch[written..bytes]);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => source.readable = false,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        if source.ended && sink.is_served() && !sink.told {
            sink.told = true;
            // When both have ended, closing says the same.
            if !sink.ended {
                match sink.socket.shutdown(Shutdown::Write) {
                    Err(error) if error.kind() != io::ErrorKind::NotConnected => return Err(error),
                    _ => {}
                }
            }
        }
        if moved > 0 {
            self.movement.last.set(now);
            self.movement.answered.set(from == 1);
            match from {
                0 => self.meter.client_to_server(moved as u64),
                _ => self.meter.server_to_client(moved as u64),
            }
        }
        Ok(more)
    }
}

/// Writes what the socket takes; nothing: it takes nothing now.
fn put(mut socket: &Socket, bytes: &[u8]) -> io::Result<Option<usize>> {
    loop {
        match socket.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => return Ok(Some(written)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

impl Core {
    pub(super) fn pair_event(
        &mut self,
        token: Token,
        which: usize,
        readable: bool,
        writable: bool,
        flags: EpollFlags,
    ) {
        let Some(Slot::Pair(pair)) = self.slots.get_mut(token) else { return };
        let side = &mut pair.sides[which];
        side.readable |= readable;
        side.writable |= writable;
        side.hup |= flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        if flags.contains(EpollFlags::EPOLLERR)
            && let Ok(Some(error)) = side.socket.take_error()
        {
            return pair.finish(Err(error));
        }
        self.pair_work(token);
    }

    pub(super) fn pair_go_on(&mut self, token: Token) {
        if let Some(Slot::Pair(pair)) = self.slots.get_mut(token) {
            pair.queued = false;
            self.pair_work(token);
        }
    }

    fn pair_work(&mut self, token: Token) {
        let Self { slots, scratch, pipes, now, ready, .. } = self;
        let Some(Slot::Pair(pair)) = slots.get_mut(token) else { return };
        if pair.queued || pair.result.is_some() {
            return;
        }
        let first = pair.carry(0, scratch, pipes, *now);
        let carried = first.and_then(|more| Ok(more | pair.carry(1, scratch, pipes, *now)?));
        match carried {
            Ok(true) => {
                pair.queued = true;
                ready.push_back(token);
            }
            Ok(false) => {
                if pair.sides.iter().all(|side| side.ended && side.told) {
                    pair.finish(Ok(()));
                }
            }
            Err(error) => pair.finish(Err(error)),
        }
    }
}
