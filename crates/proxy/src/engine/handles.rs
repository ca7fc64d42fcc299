//! What tasks hold: the loop itself, tunnels, streams, sockets that are waited for.
//!
//! Handles never leave their worker's thread. Dropping one lets go of what it stands for: a stream that has not ended is
//! reset, so that what was cut never looks complete.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::SystemTime;

use hbone::secured::Secured;
use hbone::{Baggage, HandshakeError, Head, HeadError, OpenError, Settings, h2};
use http::StatusCode;
use mesh::Identity;
use socket2::Socket;

use super::core::{Core, Slot, Watch};
use super::pair::{Movement, Pair, Side};
use super::slots::Token;
use super::stream::{Answer, End, Role};
use super::tasks::{Tasks, Work};
use super::tunnel::Shared;
use crate::copy::Meter;

/// A worker's loop, for tasks that run on it.
#[derive(Clone)]
pub(crate) struct Loop(Rc<Inner>);

struct Inner {
    core: RefCell<Core>,
    spawned: RefCell<Vec<Work>>,
}

impl Loop {
    pub(super) fn new(core: Core) -> Self {
        Self(Rc::new(Inner { core: RefCell::new(core), spawned: RefCell::default() }))
    }

    /// Works on the state. Never from within itself: nothing in there calls a task or drops a handle.
    pub(super) fn core<T>(&self, work: impl FnOnce(&mut Core) -> T) -> T {
        work(&mut self.0.core.borrow_mut())
    }

    /// Starts a task on this thread.
    pub(crate) fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        self.0.spawned.borrow_mut().push(Box::pin(work));
    }

    pub(super) fn take_spawned(&self, tasks: &mut Tasks) -> bool {
        let spawned = std::mem::take(&mut *self.0.spawned.borrow_mut());
        let any = !spawned.is_empty();
        for work in spawned {
            tasks.add(work);
        }
        any
    }

    pub(super) fn has_spawned(&self) -> bool {
        !self.0.spawned.borrow().is_empty()
    }

    /// Watches a descriptor that does not block.
    pub(crate) fn watch<T: AsFd>(&self, it: T) -> io::Result<Watched<T>> {
        let token = self.core(|core| {
            let token = core.slots.insert_with(|_| Slot::Watch(Watch::default()));
            match core.register(&it, token) {
                Ok(()) => Ok(token),
                Err(error) => {
                    core.slots.remove(token);
                    Err(error)
                }
            }
        })?;
        Ok(Watched { it: Some(it), token, home: self.clone() })
    }

    /// Takes a connection over whose handshake is done; the tunnel is usable once [`Tunnel::answered`] says so.
    pub(crate) fn adopt(
        &self,
        socket: Socket,
        secured: Secured,
        peer: SocketAddr,
        role: Role,
        settings: &Settings,
    ) -> io::Result<Tunnel> {
        let (token, shared) = self.core(|core| core.adopt(socket, secured, peer, role, settings))?;
        Ok(Tunnel(Rc::new(TunnelHandle { home: self.clone(), token, shared })))
    }

    /// Joins two sockets until both have ended or one fails. The first is the client's.
    pub(crate) fn join(&self, client: Socket, server: Socket, meter: Rc<dyn Meter>) -> io::Result<Joined> {
        let movement = self.core(|core| Rc::new(Movement::new(core.now)));
        let pair = Pair {
            sides: [Side::new(client), Side::new(server)],
            meter,
            movement: movement.clone(),
            half: None,
            queued: false,
            result: None,
            waker: None,
        };
        let token = self.core(|core| {
            let token = core.slots.insert_with(|_| Slot::Pair(Box::new(pair)));
            let half = core.slots.insert_with(|_| Slot::Half(token));
            if let Some(Slot::Pair(pair)) = core.slots.get_mut(token) {
                pair.half = Some(half);
            }
            let Some(Slot::Pair(pair)) = core.slots.get(token) else { return Ok(token) };
            let registered = core
                .register(&pair.sides[0].socket, token)
                .and_then(|()| core.register(&pair.sides[1].socket, half));
            if let Err(error) = registered {
                core.slots.remove(half);
                core.slots.remove(token);
                return Err(io::Error::from(error));
            }
            Ok(token)
        })?;
        Ok(Joined { home: self.clone(), token, movement })
    }
}

/// A descriptor that is waited for.
pub(crate) struct Watched<T: AsFd> {
    it: Option<T>,
    token: Token,
    home: Loop,
}

impl<T: AsFd> Watched<T> {
    pub(crate) fn get(&self) -> &T {
        match &self.it {
            Some(it) => it,
            None => unreachable!("taken only by value"),
        }
    }

    fn poll(&self, cx: &Context<'_>, ready: impl Fn(&mut Watch) -> &mut bool) -> Poll<()> {
        self.home.core(|core| match core.slots.get_mut(self.token) {
            Some(Slot::Watch(watch)) => {
                if std::mem::take(ready(watch)) {
                    return Poll::Ready(());
                }
                watch.waker = Some(cx.waker().clone());
                Poll::Pending
            }
            _ => Poll::Ready(()),
        })
    }

    /// Resolves when it may have become readable since this was asked last.
    pub(crate) async fn readable(&self) {
        poll_fn(|cx| self.poll(cx, |watch| &mut watch.readable)).await;
    }

    /// Resolves when it may have become writable since this was asked last.
    pub(crate) async fn writable(&self) {
        poll_fn(|cx| self.poll(cx, |watch| &mut watch.writable)).await;
    }

    /// It is no longer waited for.
    pub(crate) fn into_inner(mut self) -> Option<T> {
        let it = self.it.take()?;
        self.home.core(|core| core.forget(&it));
        Some(it)
    }
}

impl<T: AsFd> Drop for Watched<T> {
    fn drop(&mut self) {
        self.home.core(|core| {
            if let Some(it) = &self.it {
                core.forget(it);
            }
            core.slots.remove(self.token)
        });
    }
}

/// A tunnel. Clones share it; when the last one and the last stream are gone it ends.
#[derive(Clone)]
pub(crate) struct Tunnel(Rc<TunnelHandle>);

struct TunnelHandle {
    home: Loop,
    token: Token,
    shared: Rc<Shared>,
}

impl Tunnel {
    /// Waits until the peer has answered inside the tunnel: by then it has accepted our certificate, and its limit of
    /// streams is known. Otherwise, why it ended.
    pub(crate) async fn answered(&self) -> Result<(), HandshakeError> {
        let shared = &self.0.shared;
        poll_fn(|cx| {
            if *shared.closed.borrow() {
                let (peer, reason) = (shared.peer, shared.reason.borrow().clone());
                return Poll::Ready(Err(match shared.refused.get() {
                    true => HandshakeError::Tls { peer, reason },
                    false => HandshakeError::Http2 { peer, reason },
                }));
            }
            if shared.answered.get() {
                return Poll::Ready(Ok(()));
            }
            shared.waiting.borrow_mut().push(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Asks the peer to connect to what `head` names, and waits, bounded, for its answer. What the client has
    /// said by now goes with the question if there is `early`.
    pub(crate) async fn open(&self, head: &Head, early: Option<&Early<'_>>) -> Result<Stream, OpenError> {
        let TunnelHandle { home, token, shared } = &*self.0;
        let within = shared.settings.answer_timeout;
        let end = home.core(|core| {
            let by = core.now + within;
            let opened = core.with_tunnel(*token, |core, tunnel| {
                if tunnel.leaving {
                    return Err(OpenError::Closing(shared.peer));
                }
                let end = core.slots.insert_with(|_| Slot::Watch(Watch::default()));
                match tunnel.h2.open(head, end.to_u64()) {
                    Ok(stream) => {
                        let mut new = End::new(*token, stream, Role::Client);
                        new.answer_by = Some(by);
                        if let Some(slot) = core.slots.get_mut(end) {
                            *slot = Slot::End(Box::new(new));
                        }
                        core.opening.push(end);
                        tunnel.mark(&mut core.dirty);
                        if let Some(early) = early {
                            early.sent.set(core.foretell(end, early.client, tunnel));
                        }
                        Ok(end)
                    }
                    Err(error) => {
                        core.slots.remove(end);
                        Err(match error {
                            h2::OpenError::Head(error) => OpenError::Head(error),
                            _ => OpenError::Closing(shared.peer),
                        })
                    }
                }
            });
            opened.unwrap_or(Err(OpenError::Closing(shared.peer)))
        })?;
        let stream = Stream { home: home.clone(), token: end, _tunnel: self.clone() };
        let peer = shared.peer;
        match poll_fn(|cx| stream.poll_answer(cx)).await {
            Answer::Accepted => Ok(stream),
            Answer::Refused(status) => Err(OpenError::Refused { status }),
            Answer::NotTaken => Err(OpenError::Closing(peer)),
            Answer::Broken(reason) => Err(OpenError::Broken { peer, reason }),
            Answer::Late => Err(OpenError::Timeout { peer, within }),
        }
    }

    /// The next stream that the client asks for; nothing once the tunnel has ended.
    pub(crate) async fn next(&self) -> Option<Request> {
        let TunnelHandle { home, token, shared } = &*self.0;
        poll_fn(|cx| {
            let asked = home.core(|core| core.with_tunnel(*token, |_, tunnel| tunnel.requests.pop_front()));
            match asked {
                None => Poll::Ready(None),
                Some(Some(asked)) => {
                    let stream = Stream { home: home.clone(), token: asked.token, _tunnel: self.clone() };
                    Poll::Ready(Some(Request { head: asked.head, responder: Responder(stream) }))
                }
                Some(None) => {
                    let mut waiting = shared.waiting.borrow_mut();
                    if !waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
                        waiting.push(cx.waker().clone());
                    }
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Asks the peer to open no more streams here; running ones go on.
    pub(crate) fn graceful_shutdown(&self) {
        let TunnelHandle { home, token, .. } = &*self.0;
        home.core(|core| {
            core.with_tunnel(*token, |core, tunnel| {
                tunnel.h2.graceful_shutdown();
                tunnel.leaving = true;
                tunnel.mark(&mut core.dirty);
            })
        });
    }

    /// No streams are opened after `when`: the certificate it was made with proves nothing from then on. Does not keep
    /// the tunnel.
    pub(crate) fn retire_at(&self, when: SystemTime) {
        let handle = Rc::downgrade(&self.0);
        let closed = self.closed();
        self.0.home.spawn(async move {
            let left = when.duration_since(SystemTime::now()).unwrap_or_default();
            if tokio::time::timeout(left, closed).await.is_err()
                && let Some(handle) = handle.upgrade()
            {
                Self(handle).graceful_shutdown();
            }
        });
    }

    /// Ends it and all its streams at once.
    pub(crate) fn cut(&self) {
        let TunnelHandle { home, token, .. } = &*self.0;
        home.core(|core| core.with_tunnel(*token, |_, tunnel| tunnel.broken("cut")));
    }

    /// Streams that the peer allows at once, at this moment.
    pub(crate) fn max_streams(&self) -> usize {
        self.0.shared.max_streams.get()
    }

    pub(crate) fn is_closed(&self) -> bool {
        *self.0.shared.closed.borrow()
    }

    /// Whether the peer's certificate has been revoked since.
    pub(crate) fn is_revoked(&self) -> bool {
        self.0.shared.certificate.is_revoked()
    }

    /// Waits until it is gone.
    pub(crate) fn closed(&self) -> impl Future<Output = ()> + 'static {
        let mut closed = self.0.shared.closed.subscribe();
        async move {
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }

    pub(crate) fn identity(&self) -> &Identity {
        &self.0.shared.identity
    }

    pub(crate) fn peer(&self) -> SocketAddr {
        self.0.shared.peer
    }
}

impl Drop for TunnelHandle {
    fn drop(&mut self) {
        self.home.core(|core| {
            core.with_tunnel(self.token, |core, tunnel| {
                if !tunnel.leaving {
                    tunnel.leaving = true;
                    tunnel.h2.graceful_shutdown();
                }
                tunnel.mark(&mut core.dirty);
            })
        });
    }
}

/// Data that goes with the question for a stream, so that an application that speaks first waits for one journey less.
/// It is left in the client's socket until the stream is carried: a question that was not taken can be asked again.
pub(crate) struct Early<'a> {
    client: &'a Socket,
    sent: Cell<bool>,
}

impl<'a> Early<'a> {
    pub(crate) fn of(client: &'a Socket) -> Self {
        Self { client, sent: Cell::new(false) }
    }

    /// Whether data went with the last question: the application called may have it, even if nobody answered.
    pub(crate) fn was_sent(&self) -> bool {
        self.sent.get()
    }
}

/// A stream that a client asks for.
pub(crate) struct Request {
    /// Where to; or why that cannot be understood, to be refused with status 400.
    pub(crate) head: Result<Head, HeadError>,
    pub(crate) responder: Responder,
}

/// Answers one request. Dropped without an answer, the request is reset.
pub(crate) struct Responder(Stream);

impl Responder {
    /// The stream is connected, with a description of the workload that serves it.
    pub(crate) fn accept(self, baggage: Option<&Baggage>) -> Stream {
        let Self(stream) = self;
        stream.with(|core, tunnel, end| {
            tunnel.h2.accept(end, baggage);
            tunnel.mark(&mut core.dirty);
        });
        stream
    }

    /// The stream is refused.
    pub(crate) fn refuse(self, status: StatusCode) {
        self.0.with(|core, tunnel, end| {
            tunnel.h2.refuse(end, status);
            tunnel.mark(&mut core.dirty);
        });
        self.0.home.core(|core| {
            if let Some(Slot::End(end)) = core.slots.get_mut(self.0.token) {
                end.finish(Ok(()));
            }
        });
    }

    /// Resolves when the client gives up before it was answered.
    pub(crate) async fn abandoned(&self) {
        poll_fn(|cx| self.0.poll_finished(cx).map(drop)).await;
    }
}

/// One connection in a tunnel. Dropping it before both directions have ended resets it.
pub(crate) struct Stream {
    home: Loop,
    token: Token,
    /// The tunnel stays as long as it has streams.
    _tunnel: Tunnel,
}

impl Stream {
    fn with(&self, work: impl FnOnce(&mut Core, &mut super::tunnel::Tunnel, h2::Key)) {
        self.home.core(|core| {
            let Some(Slot::End(end)) = core.slots.get(self.token) else { return };
            if end.released {
                return;
            }
            let (tunnel, stream) = (end.tunnel, end.stream);
            core.with_tunnel(tunnel, |core, tunnel| work(core, tunnel, stream));
        });
    }

    fn poll_answer(&self, cx: &Context<'_>) -> Poll<Answer> {
        self.poll_end(cx, |end| end.answer.take()).map(|answer| match answer {
            Some(answer) => answer,
            None => Answer::Broken("it is gone".into()),
        })
    }

    fn poll_finished(&self, cx: &Context<'_>) -> Poll<io::Result<()>> {
        self.poll_end(cx, |end| end.result.take()).map(|result| result.unwrap_or(Ok(())))
    }

    fn poll_end<T>(&self, cx: &Context<'_>, look: impl FnOnce(&mut End) -> Option<T>) -> Poll<Option<T>> {
        self.home.core(|core| match core.slots.get_mut(self.token) {
            Some(Slot::End(end)) => match look(end) {
                Some(found) => Poll::Ready(Some(found)),
                None => {
                    remember(&mut end.waker, cx);
                    Poll::Pending
                }
            },
            _ => Poll::Ready(None),
        })
    }

    /// Joins it with a socket until both directions have ended or one end fails.
    pub(crate) async fn carry(self, socket: Socket, meter: Rc<dyn Meter>) -> io::Result<()> {
        self.home.core(|core| {
            core.register(&socket, self.token)?;
            let Some(Slot::End(end)) = core.slots.get_mut(self.token) else { return Ok(()) };
            if let Some(Err(error)) = &end.result {
                crate::sockets::reset_on_close(&socket);
                return Err(io::Error::new(error.kind(), error.to_string()));
            }
            end.socket = Some(socket);
            end.meter = Some(meter);
            core.end_joined(self.token)
        })?;
        poll_fn(|cx| self.poll_finished(cx)).await
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.home.core(|core| {
            let Some(Slot::End(end)) = core.slots.get(self.token) else { return };
            let over = end.peer_ended && end.read_done && end.pending.is_empty();
            let (tunnel, stream, released) = (end.tunnel, end.stream, end.released);
            if !over && let Some(socket) = &end.socket {
                crate::sockets::reset_on_close(socket);
            }
            core.slots.remove(self.token);
            if !released {
                core.with_tunnel(tunnel, |core, tunnel| {
                    tunnel.h2.release(stream);
                    tunnel.mark(&mut core.dirty);
                });
            }
        });
    }
}

/// Two sockets that are being joined; dropping it before they have ended resets both.
pub(crate) struct Joined {
    home: Loop,
    token: Token,
    movement: Rc<Movement>,
}

impl Joined {
    /// When something moved last.
    pub(crate) fn movement(&self) -> &Movement {
        &self.movement
    }

    /// Whether bytes have arrived at either end that nobody has read yet.
    pub(crate) fn is_waiting(&self) -> bool {
        self.home.core(|core| match core.slots.get(self.token) {
            Some(Slot::Pair(pair)) => pair.sides.iter().any(Side::has_bytes),
            _ => false,
        })
    }

    /// Ends both in good order.
    pub(crate) fn end(&self) {
        self.home.core(|core| {
            if let Some(Slot::Pair(pair)) = core.slots.get_mut(self.token) {
                pair.finish(Ok(()));
            }
        });
    }

    /// Waits until both have ended or one has failed.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        poll_fn(|cx| {
            self.home.core(|core| match core.slots.get_mut(self.token) {
                Some(Slot::Pair(pair)) => match pair.result.take() {
                    Some(result) => {
                        // It stays finished for whoever drops it.
                        pair.result = Some(Ok(()));
                        Poll::Ready(result)
                    }
                    None => {
                        remember(&mut pair.waker, cx);
                        Poll::Pending
                    }
                },
                _ => Poll::Ready(Ok(())),
            })
        })
        .await
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.home.core(|core| {
            if let Some(Slot::Pair(pair)) = core.slots.remove(self.token) {
                if pair.result.is_none() {
                    pair.reset();
                }
                if let Some(half) = pair.half {
                    core.slots.remove(half);
                }
            }
        });
    }
}

fn remember(waker: &mut Option<Waker>, cx: &Context<'_>) {
    match waker {
        Some(known) if known.will_wake(cx.waker()) => {}
        _ => *waker = Some(cx.waker().clone()),
    }
}
