//! The state of one worker, and what an event does to it.
//!
//! Everything in here happens on one thread, without waiting. An event is carried to its end: from a socket's bytes to
//! records, or from records to a socket's bytes; tunnels that have something to send are flushed once a turn.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::task::Waker;
use std::time::Instant;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

use super::outbox::Stock;
use super::pair::Pair;
use super::pipe::Pipes;
use super::slots::{Slots, Token};
use super::stream::End;
use super::tunnel::{Arrived, Tunnel};

/// What one read of a tunnel takes at most: some records more than a burst of the other side.
const SCRATCH: usize = 320 << 10;

pub(super) enum Slot {
    /// Somebody waits for a descriptor.
    Watch(Watch),
    /// A tunnel; nothing while it is being worked on.
    Tunnel(Option<Box<Tunnel>>),
    /// A stream of a tunnel, and the socket that it is joined with.
    End(Box<End>),
    /// Two sockets that are joined.
    Pair(Box<Pair>),
    /// The second socket of a pair.
    Half(Token),
}

#[derive(Default)]
pub(super) struct Watch {
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) waker: Option<Waker>,
}

pub(super) struct Core {
    epoll: Epoll,
    pub(super) slots: Slots<Slot>,
    /// What goes on without a new event.
    pub(super) ready: VecDeque<Token>,
    /// Tunnels with something to send.
    pub(super) dirty: Vec<Token>,
    pub(super) tunnels: Vec<Token>,
    /// Streams that wait for an answer, and some that have got it.
    pub(super) opening: Vec<Token>,
    pub(super) stock: Stock,
    pub(super) scratch: Box<[u8]>,
    pub(super) pipes: Pipes,
    pub(super) arrived: Arrived,
    /// The time of this turn.
    pub(super) now: Instant,
}

impl Core {
    pub(super) fn new() -> nix::Result<Self> {
        Ok(Self {
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            slots: Slots::new(),
            ready: VecDeque::new(),
            dirty: Vec::new(),
            tunnels: Vec::new(),
            opening: Vec::new(),
            stock: Stock::default(),
            scratch: vec![0; SCRATCH].into_boxed_slice(),
            pipes: Pipes::default(),
            arrived: Arrived::default(),
            now: Instant::now(),
        })
    }

    pub(super) fn poller(&self) -> &Epoll {
        &self.epoll
    }

    /// Tells the poller to name `token` from now on when something happens to `fd`: once for each change.
    pub(super) fn register(&self, fd: impl AsFd, token: Token) -> nix::Result<()> {
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        let mut event = EpollEvent::new(flags, token.to_u64());
        match self.epoll.add(fd.as_fd(), event) {
            Err(nix::Error::EEXIST) => self.epoll.modify(fd.as_fd(), &mut event),
            done => done,
        }
    }

    /// `fd` is somebody else's business from now on.
    pub(super) fn forget(&self, fd: impl AsFd) {
        let _ = self.epoll.delete(fd);
    }

    pub(super) fn event(&mut self, event: &EpollEvent) {
        let token = Token::from_u64(event.data());
        let flags = event.events();
        let readable = flags.intersects(
            EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR,
        );
        let writable = flags.intersects(EpollFlags::EPOLLOUT | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        let hup = flags.intersects(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR);
        match self.slots.get_mut(token) {
            Some(Slot::Watch(watch)) => {
                watch.readable |= readable;
                watch.writable |= writable;
                if let Some(waker) = watch.waker.take() {
                    waker.wake();
                }
            }
            Some(Slot::End(end)) => {
                end.readable |= readable;
                end.hup |= hup;
                let failed = flags.contains(EpollFlags::EPOLLERR);
                if writable && !end.writable {
                    end.writable = true;
                    self.end_writable(token);
                }
                if failed {
                    self.end_failed(token);
                } else if readable {
                    self.end_readable(token);
                }
            }
            Some(Slot::Tunnel(Some(tunnel))) => {
                tunnel.readable |= readable;
                if writable && !tunnel.writable {
                    tunnel.writable = true;
                    self.make_dirty(token);
                }
                if readable {
                    self.tunnel_readable(token);
                }
            }
            Some(Slot::Pair(_)) => self.pair_event(token, 0, readable, writable, flags),
            Some(Slot::Half(pair)) => {
                let pair = *pair;
                self.pair_event(pair, 1, readable, writable, flags);
            }
            Some(Slot::Tunnel(None)) | None => {}
        }
    }

    /// What had more to do than one turn allows goes on, each once.
    pub(super) fn go_on(&mut self) {
        for _ in 0..self.ready.len() {
            let Some(token) = self.ready.pop_front() else { return };
            match self.slots.get_mut(token) {
                Some(Slot::End(end)) => {
                    end.queued = false;
                    self.end_readable(token);
                }
                Some(Slot::Tunnel(Some(tunnel))) => {
                    tunnel.queued = false;
                    self.tunnel_readable(token);
                }
                Some(Slot::Pair(_)) => self.pair_go_on(token),
                _ => {}
            }
        }
    }

    /// The tunnel is flushed at the end of this turn.
    pub(super) fn make_dirty(&mut self, token: Token) {
        if let Some(Slot::Tunnel(Some(tunnel))) = self.slots.get_mut(token) {
            tunnel.mark(&mut self.dirty);
        }
    }

    /// Flushes what has something to send.
    pub(super) fn flush(&mut self) {
        for at in 0.. {
            let Some(token) = self.dirty.get(at).copied() else { break };
            self.with_tunnel(token, |core, tunnel| {
                tunnel.dirty = false;
                core.tunnel_flush(tunnel);
            });
        }
        self.dirty.clear();
    }

    /// Works on a tunnel while the rest stays at hand. A tunnel that has ended is taken leave of.
    pub(super) fn with_tunnel<T>(
        &mut self,
        token: Token,
        work: impl FnOnce(&mut Self, &mut Tunnel) -> T,
    ) -> Option<T> {
        let Some(Slot::Tunnel(slot)) = self.slots.get_mut(token) else { return None };
        let mut tunnel = slot.take()?;
        let done = work(self, &mut tunnel);
        if tunnel.is_over() {
            self.tunnel_over(*tunnel);
        } else if let Some(Slot::Tunnel(slot)) = self.slots.get_mut(token) {
            *slot = Some(tunnel);
        }
        Some(done)
    }
}
