//! A tunnel on its worker: records and frames between its socket and its streams.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::{self, Read};
use std::net::{Shutdown, SocketAddr};
use std::rc::Rc;
use std::task::Waker;
use std::time::Instant;

use hbone::h2::{self, Event};
use hbone::secured::{Content, KEY_UPDATE_MESSAGE, Keys, Opener, PeerCertificate, Sealer, Secured};
use hbone::{Head, HeadError, Settings};
use mesh::Identity;
use socket2::Socket;
use tokio::sync::watch;

use super::core::{Core, Slot};
use super::outbox::{Outbox, Stock};
use super::slots::Token;
use super::stream::{Answer, End, Role};

/// Reads of one tunnel in one turn, so that the others get theirs.
const READS: usize = 4;
/// Why a tunnel ended that its peer has closed in good order.
const CLOSED: &str = "closed by the peer";
/// `close_notify` (RFC 8446 §6.1).
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// What others may know of a tunnel without asking its worker's state.
pub(super) struct Shared {
    pub(super) identity: Identity,
    pub(super) peer: SocketAddr,
    pub(super) certificate: PeerCertificate,
    pub(super) settings: Settings,
    /// Streams that the peer allows; none once it takes no more.
    pub(super) max_streams: Cell<usize>,
    pub(super) closed: watch::Sender<bool>,
    pub(super) reason: RefCell<String>,
    /// It has been refused by a TLS alert before it was answered.
    pub(super) refused: Cell<bool>,
    /// The peer has answered inside the tunnel.
    pub(super) answered: Cell<bool>,
    pub(super) waiting: RefCell<Vec<Waker>>,
}

impl Shared {
    pub(super) fn wake(&self) {
        for waker in self.waiting.borrow_mut().drain(..) {
            waker.wake();
        }
    }
}

/// A stream that the client at the other end asks for.
pub(super) struct Asked {
    pub(super) token: Token,
    pub(super) head: Result<Head, HeadError>,
}

pub(super) struct Tunnel {
    pub(super) token: Token,
    pub(super) shared: Rc<Shared>,
    socket: Socket,
    pub(super) sealer: Sealer,
    opener: Opener,
    keys: Keys,
    pub(super) h2: h2::Connection,
    pub(super) outbox: Outbox,
    /// The start of a record whose end has not arrived.
    carry: Vec<u8>,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) queued: bool,
    pub(super) dirty: bool,
    /// Streams that wait for window or for room.
    pub(super) blocked: Vec<Token>,
    pub(super) requests: VecDeque<Asked>,
    /// No more streams; it ends with the last one.
    pub(super) leaving: bool,
    role: Role,
    over: Option<String>,
    /// When something arrived last.
    pub(super) heard: Instant,
    asked: Option<Instant>,
}

/// What arrived in one read, kept only for its memory.
#[derive(Default)]
pub(super) struct Arrived {
    events: Vec<Event>,
    pieces: Vec<Piece>,
    later: Vec<Later>,
    run: Vec<(u32, u32)>,
}

struct Piece {
    end: Token,
    start: u32,
    length: u32,
}

/// What is done once the bytes before it have been passed on.
enum Later {
    Ended(Token),
    Reset(Token, h2::Reason),
}

impl Tunnel {
    /// Marks it for the flush at the end of the turn.
    pub(super) fn mark(&mut self, dirty: &mut Vec<Token>) {
        if !self.dirty {
            self.dirty = true;
            dirty.push(self.token);
        }
    }

    /// The tunnel ends, for this reason.
    pub(super) fn broken(&mut self, reason: impl Into<String>) {
        self.over.get_or_insert_with(|| reason.into());
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.is_some()
    }

    /// Puts what the protocol has to say into records. False: there is no room for it yet.
    pub(super) fn queue_control(&mut self, stock: &mut Stock) -> bool {
        let output = self.h2.output();
        if output.is_empty() {
            return true;
        }
        if self.outbox.room() < output.len() {
            return false;
        }
        let put = self.outbox.put(output, &mut self.sealer, stock);
        output.clear();
        if let Err(error) = put {
            self.broken(error.to_string());
        }
        true
    }

    pub(super) fn put(&mut self, bytes: &[u8], stock: &mut Stock) {
        if let Err(error) = self.outbox.put(bytes, &mut self.sealer, stock) {
            self.broken(error.to_string());
        }
    }

    /// Seals and writes as much as the socket takes.
    pub(super) fn send(&mut self, stock: &mut Stock) {
        if self.outbox.len() == 0 || self.over.is_some() {
            return;
        }
        if let Err(error) = self.outbox.close(&mut self.sealer) {
            return self.broken(error.to_string());
        }
        if !self.writable {
            return;
        }
        match self.outbox.send(&self.socket, stock) {
            Ok(true) => {}
            Ok(false) => self.writable = false,
            Err(error) => self.broken(error.to_string()),
        }
    }

    fn new_key(&mut self, stock: &mut Stock) {
        let Self { outbox, sealer, .. } = self;
        let told = outbox.put_apart(Content::Handshake, &KEY_UPDATE_MESSAGE, sealer, stock);
        match (told, self.keys.next_sealer()) {
            (Ok(()), Ok(sealer)) => self.sealer = sealer,
            (Err(error), _) => self.broken(error.to_string()),
            (_, Err(error)) => self.broken(error.to_string()),
        }
    }

    fn alert(&mut self, alert: &[u8]) {
        match alert {
            [_, 0] => self.broken(CLOSED),
            // In TLS 1.3 a server judges our certificate only after our handshake is complete.
            [_, code] if self.role == Role::Client && !self.shared.answered.get() => {
                let alert = rustls::AlertDescription::from(*code);
                self.shared.refused.set(true);
                self.broken(format!("it refused our certificate ({alert:?})"));
            }
            [_, code] => self.broken(format!("TLS alert {:?}", rustls::AlertDescription::from(*code))),
            _ => self.broken("a TLS alert that cannot be read"),
        }
    }
}

impl Core {
    /// Takes a tunnel over whose handshake is done.
    pub(super) fn adopt(
        &mut self,
        socket: Socket,
        secured: Secured,
        peer: SocketAddr,
        role: Role,
        settings: &Settings,
    ) -> io::Result<(Token, Rc<Shared>)> {
        let certificate = secured.certificate();
        let Secured { identity, sealer, opener, keys, early, received, .. } = secured;
        let shared = Rc::new(Shared {
            identity,
            peer,
            certificate,
            settings: settings.clone(),
            max_streams: Cell::new(0),
            closed: watch::Sender::new(false),
            reason: RefCell::default(),
            refused: Cell::new(false),
            answered: Cell::new(false),
            waiting: RefCell::default(),
        });
        let config = h2::Config::from(settings);
        let h2 = match role {
            Role::Client => h2::Connection::client(config),
            Role::Server => h2::Connection::server(config),
        };
        let mut tunnel = Tunnel {
            token: Token::from_u64(0),
            shared: shared.clone(),
            socket,
            outbox: Outbox::new(&sealer),
            sealer,
            opener,
            keys,
            h2,
            carry: received,
            readable: true,
            writable: true,
            queued: false,
            dirty: false,
            blocked: Vec::new(),
            requests: VecDeque::new(),
            leaving: false,
            role,
            over: None,
            heard: self.now,
            asked: None,
        };
        if role == Role::Client {
            tunnel.h2.ping([0; 8]);
            tunnel.asked = Some(self.now);
        }
        let token = self.slots.insert_with(|token| {
            tunnel.token = token;
            Slot::Tunnel(Some(Box::new(tunnel)))
        });
        self.tunnels.push(token);
        self.with_tunnel(token, |core, tunnel| {
            if let Err(error) = core.register(&tunnel.socket, token) {
                return tunnel.broken(error.to_string());
            }
            if !early.is_empty() {
                let mut arrived = std::mem::take(&mut core.arrived);
                core.frames(tunnel, &mut arrived, &early, 0);
                core.deliver(tunnel, &mut arrived, &early);
                core.arrived = arrived;
            }
            tunnel.mark(&mut core.dirty);
        });
        self.tunnel_readable(token);
        Ok((token, shared))
    }

    /// Carries what has arrived in a tunnel to its streams.
    pub(super) fn tunnel_readable(&mut self, token: Token) {
        self.with_tunnel(token, |core, tunnel| {
            if tunnel.queued {
                return;
            }
            let mut scratch = std::mem::take(&mut core.scratch);
            let mut arrived = std::mem::take(&mut core.arrived);
            for turn in 0.. {
                if !tunnel.readable || tunnel.is_over() {
                    break;
                }
                if turn == READS {
                    tunnel.queued = true;
                    core.ready.push_back(token);
                    break;
                }
                core.read(tunnel, &mut scratch, &mut arrived);
            }
            core.scratch = scratch;
            core.arrived = arrived;
        });
    }

    fn read(&mut self, tunnel: &mut Tunnel, scratch: &mut [u8], arrived: &mut Arrived) {
        let carried = tunnel.carry.len();
        scratch[..carried].copy_from_slice(&tunnel.carry);
        let room = scratch.len() - carried;
        let read = match (&tunnel.socket).read(&mut scratch[carried..]) {
            Ok(read) => read,
            Err(error) => match error.kind() {
                // What was carried over may be whole records, of the handshake's last flight.
                io::ErrorKind::WouldBlock => {
                    tunnel.readable = false;
                    if carried == 0 || tunnel.shared.answered.get() {
                        return;
                    }
                    0
                }
                io::ErrorKind::Interrupted => return,
                _ => return tunnel.broken(error.to_string()),
            },
        };
        let ended = read == 0 && tunnel.readable;
        tunnel.readable = !ended && read == room;
        tunnel.heard = self.now;
        let filled = carried + read;
        let mut at = 0;
        let mut fault = None;
        while fault.is_none() {
            match tunnel.opener.length(&scratch[at..filled]) {
                Ok(Some(length)) if at + length <= filled => {
                    match tunnel.opener.open(&mut scratch[at..at + length]) {
                        Ok((Content::Data, range)) => {
                            let payload = &scratch[at + range.start..at + range.end];
                            self.frames(tunnel, arrived, payload, at + range.start);
                        }
                        Ok((Content::Alert, range)) => {
                            let alert = [scratch[at + range.start], scratch[at + range.end - 1]];
                            let whole = range.len() == 2;
                            // The bytes before it come first.
                            self.deliver(tunnel, arrived, scratch);
                            tunnel.alert(if whole { &alert } else { &[] });
                        }
                        Ok((Content::Handshake, range)) => {
                            let message = &scratch[at + range.start..at + range.end];
                            match tunnel.keys.handshake_message(message, &mut tunnel.opener) {
                                Ok(asked) if asked.new_key => tunnel.new_key(&mut self.stock),
                                Ok(_) => {}
                                Err(error) => fault = Some(error.to_string()),
                            }
                        }
                        Err(error) => fault = Some(error.to_string()),
                    }
                    at += length;
                }
                Ok(_) => break,
                Err(error) => fault = Some(error.to_string()),
            }
            if tunnel.is_over() {
                break;
            }
        }
        tunnel.carry.clear();
        tunnel.carry.extend_from_slice(&scratch[at.min(filled)..filled]);
        if tunnel.carry.is_empty() {
            tunnel.carry = Vec::new();
        }
        self.deliver(tunnel, arrived, scratch);
        if let Some(fault) = fault {
            tunnel.broken(fault);
        } else if ended {
            tunnel.broken(CLOSED);
        }
        tunnel.mark(&mut self.dirty);
    }

    /// Takes frames out of a record's payload, which lies at `base` of what was read.
    fn frames(&mut self, tunnel: &mut Tunnel, arrived: &mut Arrived, payload: &[u8], base: usize) {
        let received = tunnel.h2.receive(payload, &mut arrived.events);
        for event in arrived.events.drain(..) {
            match event {
                Event::Data { stream, user, range } => {
                    if let Some(end) = end_of(&tunnel.h2, stream, user) {
                        let (start, length) = (base as u32 + range.start, range.end - range.start);
                        arrived.pieces.push(Piece { end, start, length });
                    }
                }
                Event::Ended { stream, user } => {
                    arrived.later.extend(end_of(&tunnel.h2, stream, user).map(Later::Ended));
                }
                Event::Reset { stream, user, reason } => {
                    let end = end_of(&tunnel.h2, stream, user);
                    arrived.later.extend(end.map(|end| Later::Reset(end, reason)));
                }
                Event::Request { stream, head } => {
                    let owner = tunnel.token;
                    let token = self
                        .slots
                        .insert_with(|_| Slot::End(Box::new(End::new(owner, stream, Role::Server))));
                    tunnel.h2.set_user(stream, token.to_u64());
                    tunnel.requests.push_back(Asked { token, head });
                    tunnel.shared.wake();
                }
                Event::Response { user, status, .. } => {
                    if let Some(Slot::End(end)) = user_token(user).and_then(|end| self.slots.get_mut(end)) {
                        end.answer = Some(match status {
                            http::StatusCode::OK => Answer::Accepted,
                            status => Answer::Refused(status),
                        });
                        end.wake();
                    }
                }
                Event::StreamWindow { user, .. } => {
                    if let Some(end) = user_token(user) {
                        self.unblock(end);
                    }
                }
                Event::ConnectionWindow => {
                    for end in std::mem::take(&mut tunnel.blocked) {
                        self.unblock(end);
                    }
                }
                Event::Settings => {
                    if !tunnel.leaving {
                        tunnel.shared.max_streams.set(tunnel.h2.max_streams());
                    }
                }
                Event::GoAway { .. } => {
                    tunnel.leaving = true;
                    tunnel.shared.max_streams.set(0);
                }
                Event::Pong { .. } => {
                    tunnel.asked = None;
                    if !tunnel.shared.answered.replace(true) {
                        tunnel.shared.wake();
                    }
                }
            }
        }
        if let Err(fatal) = received {
            tunnel.leaving = true;
            // What it is told for its fault goes out before the end.
            tunnel.queue_control(&mut self.stock);
            tunnel.send(&mut self.stock);
            tunnel.broken(fatal.to_string());
        }
    }

    /// Passes on what has arrived: first bytes, each stream's in one go, then ends.
    fn deliver(&mut self, tunnel: &mut Tunnel, arrived: &mut Arrived, from: &[u8]) {
        let Arrived { pieces, later, run, .. } = arrived;
        if pieces.len() > 1 {
            // Stable: each stream's bytes stay in order.
            pieces.sort_by_key(|piece| piece.end.index);
        }
        let mut rest = &pieces[..];
        while let Some(first) = rest.first() {
            let end = first.end;
            let count = rest.iter().take_while(|piece| piece.end == end).count();
            run.clear();
            run.extend(rest[..count].iter().map(|piece| (piece.start, piece.length)));
            rest = &rest[count..];
            self.push(end, Some(tunnel), from, run);
        }
        pieces.clear();
        for what in later.drain(..) {
            match what {
                Later::Ended(end) => self.peer_ended(end),
                Later::Reset(end, reason) => self.peer_reset(end, reason),
            }
        }
    }

    /// Sends what is to be sent, and looks whether the tunnel has come to its end.
    pub(super) fn tunnel_flush(&mut self, tunnel: &mut Tunnel) {
        tunnel.queue_control(&mut self.stock);
        if tunnel.sealer.is_worn() && tunnel.outbox.room() > 0 {
            tunnel.new_key(&mut self.stock);
        }
        tunnel.send(&mut self.stock);
        if tunnel.writable && !tunnel.blocked.is_empty() && tunnel.outbox.len() == 0 {
            for end in std::mem::take(&mut tunnel.blocked) {
                self.unblock(end);
            }
        }
        if tunnel.leaving && tunnel.h2.is_done() && tunnel.requests.is_empty() && tunnel.outbox.len() == 0 {
            let Tunnel { outbox, sealer, .. } = tunnel;
            let _ = outbox.put_apart(Content::Alert, &CLOSE_NOTIFY, sealer, &mut self.stock);
            tunnel.send(&mut self.stock);
            tunnel.broken("closed");
        }
    }

    /// Takes leave of a tunnel: everybody who has to do with it is told.
    pub(super) fn tunnel_over(&mut self, mut tunnel: Tunnel) {
        let reason = tunnel.over.take().unwrap_or_default();
        tracing::debug!(peer = %tunnel.shared.peer, reason, "tunnel ended");
        self.slots.remove(tunnel.token);
        self.tunnels.retain(|token| *token != tunnel.token);
        let users: Vec<u64> = tunnel.h2.users().collect();
        for end in users.into_iter().filter_map(user_token) {
            let Some(Slot::End(end)) = self.slots.get_mut(end) else { continue };
            end.released = true;
            if end.answer.is_none() && end.role == Role::Client {
                end.answer = Some(Answer::Broken(reason.clone()));
            }
            if end.peer_ended && reason == CLOSED {
                // Whoever was called has said all, and is gone: nobody is left for what the caller may still say.
                end.peer_is_gone();
            } else {
                let error =
                    io::Error::new(io::ErrorKind::ConnectionAborted, format!("the tunnel broke: {reason}"));
                end.finish(Err(error));
            }
            end.wake();
        }
        *tunnel.shared.reason.borrow_mut() = reason;
        tunnel.shared.max_streams.set(0);
        tunnel.shared.closed.send_replace(true);
        tunnel.shared.wake();
        let _ = tunnel.socket.shutdown(Shutdown::Write);
    }

    /// Looks, now and then, whether tunnels are alive and answers not overdue.
    pub(super) fn look_after(&mut self) {
        let now = self.now;
        for at in (0..self.tunnels.len()).rev() {
            let Some(token) = self.tunnels.get(at).copied() else { continue };
            self.with_tunnel(token, |core, tunnel| {
                tunnel.h2.forgive();
                let Settings { ping_interval, ping_timeout, .. } = tunnel.shared.settings;
                match tunnel.asked {
                    Some(since) if now.duration_since(since.max(tunnel.heard)) >= ping_timeout => {
                        tunnel.broken("no answer to PING");
                    }
                    None if now.duration_since(tunnel.heard) >= ping_interval => {
                        tunnel.asked = Some(now);
                        tunnel.h2.ping([0; 8]);
                        tunnel.mark(&mut core.dirty);
                    }
                    _ => {}
                }
            });
        }
        let slots = &mut self.slots;
        self.opening.retain(|token| match slots.get_mut(*token) {
            Some(Slot::End(end)) if end.answer.is_none() => {
                let late = end.answer_by.is_some_and(|by| by <= now);
                if late {
                    end.answer = Some(Answer::Late);
                    end.wake();
                }
                !late
            }
            _ => false,
        });
    }
}

/// Who takes what an event brings. What came together with the request was looked at before anybody was named for it.
fn end_of(h2: &h2::Connection, stream: h2::Key, user: u64) -> Option<Token> {
    user_token(user).or_else(|| user_token(h2.user(stream)?))
}

fn user_token(user: u64) -> Option<Token> {
    (user != h2::NO_USER).then(|| Token::from_u64(user))
}
