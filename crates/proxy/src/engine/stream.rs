//! A stream of a tunnel and the socket it is joined with: bytes from the socket into frames, and out of frames into
//! the socket.

use std::io::{self, IoSlice, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::task::Waker;
use std::time::Instant;

use hbone::h2;
use nix::sys::socket::{MsgFlags, recv};
use socket2::Socket;

use super::core::{Core, Slot};
use super::outbox::{BURST, Pulled};
use super::slots::Token;
use super::tunnel::Tunnel;
use crate::copy::Meter;
use crate::sockets::reset_on_close;

/// Reads of one socket in one turn, so that the others get theirs.
const READS: usize = 4;
/// Payload of a frame that fills a record.
const FRAME: usize = hbone::secured::MAX_PAYLOAD - 9;
/// Slices of one write.
const SLICES: usize = 48;

/// Which end of the connection the socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// The application called.
    Client,
    /// The application was called.
    Server,
}

/// How the other end of the tunnel answered.
#[derive(Debug)]
pub(super) enum Answer {
    Accepted,
    Refused(http::StatusCode),
    /// The request was not looked at.
    NotTaken,
    Broken(String),
    /// There was none in time.
    Late,
}

/// A stream and its socket.
pub(super) struct End {
    pub(super) tunnel: Token,
    pub(super) stream: h2::Key,
    pub(super) socket: Option<Socket>,
    pub(super) meter: Option<Rc<dyn Meter>>,
    pub(super) role: Role,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The application has ended its direction, or more: what is left must be read to its end.
    pub(super) hup: bool,
    pub(super) queued: bool,
    /// Waits for window or for the tunnel's backlog.
    pub(super) blocked: bool,
    /// The application's end has been passed on.
    pub(super) read_done: bool,
    /// The tunnel's end has arrived.
    pub(super) peer_ended: bool,
    /// The tunnel's end has been passed on.
    pub(super) write_done: bool,
    /// Frames that the next read fills.
    burst: u8,
    pub(super) pending: Pending,
    /// Bytes of the application that went into the tunnel before there was an answer, and are still to be read.
    foretold: usize,
    pub(super) answer: Option<Answer>,
    pub(super) answer_by: Option<Instant>,
    pub(super) result: Option<io::Result<()>>,
    pub(super) waker: Option<Waker>,
    /// The codec knows the stream no more.
    pub(super) released: bool,
}

/// Bytes that the socket has not taken yet.
#[derive(Default)]
pub(super) struct Pending {
    bytes: Vec<u8>,
    start: usize,
}

impl Pending {
    pub(super) fn is_empty(&self) -> bool {
        self.start == self.bytes.len()
    }

    pub(super) fn rest(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(super) fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start >= self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    /// Memory goes back as soon as nothing is left.
    pub(super) fn consume(&mut self, amount: usize) {
        self.start += amount;
        if self.is_empty() {
            *self = Self::default();
        }
    }
}

impl End {
    pub(super) fn new(tunnel: Token, stream: h2::Key, role: Role) -> Self {
        Self {
            tunnel,
            stream,
            socket: None,
            meter: None,
            role,
            readable: false,
            writable: false,
            hup: false,
            queued: false,
            blocked: false,
            read_done: false,
            peer_ended: false,
            write_done: false,
            burst: 1,
            pending: Pending::default(),
            foretold: 0,
            answer: None,
            answer_by: None,
            result: None,
            waker: None,
            released: false,
        }
    }

    pub(super) fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn count(&self, from_socket: bool, bytes: usize) {
        let Some(meter) = &self.meter else { return };
        match from_socket == (self.role == Role::Client) {
            true => meter.client_to_server(bytes as u64),
            false => meter.server_to_client(bytes as u64),
        }
    }

    /// The end of it all, once.
    pub(super) fn finish(&mut self, result: io::Result<()>) {
        if self.result.is_none() {
            if result.is_err()
                && let Some(socket) = &self.socket
            {
                reset_on_close(socket);
            }
            self.result = Some(result);
            self.wake();
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        self.result.is_some()
    }

    /// The other end wants no more, but what it has sent is still to be passed on.
    pub(super) fn peer_is_gone(&mut self) {
        self.read_done = true;
        self.look_for_end();
    }

    /// Both directions have ended.
    fn look_for_end(&mut self) {
        if !(self.peer_ended && self.pending.is_empty()) || self.is_finished() {
            return;
        }
        if self.read_done {
            // Closing the socket tells it the rest.
            self.write_done = true;
            return self.finish(Ok(()));
        }
        if let Some(socket) = &self.socket
            && !self.write_done
        {
            self.write_done = true;
            match socket.shutdown(Shutdown::Write) {
                // It has closed everything already: nobody is left to be told.
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
                Err(error) => self.finish(Err(error)),
            }
        }
    }
}

impl Core {
    /// Sends what the application has said by now, up to a frame of it, before the peer has answered. Whether it did.
    pub(super) fn foretell(&mut self, token: Token, client: &Socket, tunnel: &mut Tunnel) -> bool {
        let Some(Slot::End(end)) = self.slots.get_mut(token) else { return false };
        let stream = end.stream;
        let most = tunnel.h2.sendable(stream).min(FRAME);
        let alive = self.now.duration_since(tunnel.heard) <= tunnel.shared.settings.ping_interval;
        if most == 0 || !alive || tunnel.outbox.is_full() || !tunnel.queue_control(&mut self.stock) {
            return false;
        }
        let Tunnel { outbox, sealer, h2, .. } = tunnel;
        let read =
            outbox.pull(Peek(client), most, sealer, &mut self.stock, |length| h2.data(stream, length, false));
        match read {
            Ok(Ok(Pulled::Full(bytes) | Pulled::Some(bytes))) => end.foretold = bytes,
            // Nothing yet, or the end, or a failure: found again when it is carried.
            Ok(Ok(Pulled::End)) | Err(_) => {}
            Ok(Err(error)) => tunnel.broken(error.to_string()),
        }
        end.foretold > 0
    }

    /// A stream has got its socket: what each has said so far is passed on.
    pub(super) fn end_joined(&mut self, token: Token) -> io::Result<()> {
        let Some(Slot::End(end)) = self.slots.get_mut(token) else { return Ok(()) };
        let (foretold, waiting) = (std::mem::take(&mut end.foretold), !end.pending.is_empty());
        if let Some(socket) = &end.socket
            && foretold > 0
        {
            // Taken without being copied once more.
            let room = &mut self.scratch[..foretold];
            let taken = recv(socket.as_raw_fd(), room, MsgFlags::MSG_TRUNC | MsgFlags::MSG_DONTWAIT)?;
            if taken != foretold {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            end.count(true, foretold);
        }
        // Otherwise the poller says so, in its time.
        if waiting {
            end.writable = true;
            self.end_writable(token);
        }
        Ok(())
    }

    /// Carries what the application has sent into the tunnel.
    pub(super) fn end_readable(&mut self, token: Token) {
        let Some(Slot::End(end)) = self.slots.get(token) else { return };
        if end.socket.is_none() || end.blocked || end.queued {
            return;
        }
        let tunnel = end.tunnel;
        self.with_tunnel(tunnel, |core, tunnel| core.pull(token, tunnel));
    }

    fn pull(&mut self, token: Token, tunnel: &mut Tunnel) {
        let Some(Slot::End(end)) = self.slots.get_mut(token) else { return };
        for turn in 0.. {
            if !end.readable || end.read_done || end.is_finished() {
                break;
            }
            if turn == READS {
                end.queued = true;
                self.ready.push_back(token);
                break;
            }
            if tunnel.outbox.is_full() {
                tunnel.send(&mut self.stock);
            }
            if tunnel.outbox.is_full() {
                end.blocked = true;
                tunnel.blocked.push(token);
                break;
            }
            let window = tunnel.h2.sendable(end.stream);
            if window == 0 {
                end.blocked = true;
                // A window of the stream's own is announced to the stream.
                if tunnel.h2.is_full() {
                    tunnel.blocked.push(token);
                }
                break;
            }
            // What was said before must be sent before.
            if !tunnel.queue_control(&mut self.stock) {
                end.blocked = true;
                tunnel.blocked.push(token);
                break;
            }
            tunnel.mark(&mut self.dirty);
            let Some(socket) = &end.socket else { break };
            let most = window.min(usize::from(end.burst) * FRAME);
            let Tunnel { outbox, sealer, h2, .. } = tunnel;
            let stream = end.stream;
            let read =
                outbox.pull(socket, most, sealer, &mut self.stock, |length| h2.data(stream, length, false));
            match read {
                Ok(Ok(Pulled::Full(bytes))) => {
                    end.count(true, bytes);
                    end.burst = (end.burst * 4).min(BURST as u8);
                }
                Ok(Ok(Pulled::Some(bytes))) => {
                    end.count(true, bytes);
                    if bytes < FRAME {
                        end.burst = 1;
                    }
                    // A short read has taken all there was.
                    end.readable = end.hup;
                }
                Ok(Ok(Pulled::End)) => {
                    let header = h2.data(stream, 0, true);
                    tunnel.put(&header, &mut self.stock);
                    end.read_done = true;
                    end.readable = false;
                    end.look_for_end();
                }
                Ok(Err(error)) => return tunnel.broken(error.to_string()),
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => end.readable = false,
                    io::ErrorKind::Interrupted => {}
                    _ => {
                        tunnel.h2.reset(stream, h2::Reason::CANCEL);
                        end.finish(Err(error));
                    }
                },
            }
        }
    }

    /// The socket has an error to tell, even if nobody reads or writes.
    pub(super) fn end_failed(&mut self, token: Token) {
        let Some(Slot::End(end)) = self.slots.get_mut(token) else { return };
        let Some(Ok(Some(error))) = end.socket.as_ref().map(Socket::take_error) else { return };
        let (tunnel, stream) = (end.tunnel, end.stream);
        end.finish(Err(error));
        self.with_tunnel(tunnel, |core, tunnel| {
            tunnel.h2.reset(stream, h2::Reason::CANCEL);
            tunnel.mark(&mut core.dirty);
        });
    }

    /// The socket takes bytes again.
    pub(super) fn end_writable(&mut self, token: Token) {
        let Some(Slot::End(end)) = self.slots.get(token) else { return };
        if end.pending.is_empty() {
            return;
        }
        let tunnel = end.tunnel;
        let done = self.with_tunnel(tunnel, |core, tunnel| core.push(token, Some(tunnel), &[], &[]));
        // What a tunnel has brought to its end is passed on even if the tunnel is gone.
        if done.is_none() {
            self.push(token, None, &[], &[]);
        }
    }

    /// Passes bytes of the tunnel on to the socket: what is pending, then `pieces` of `from`.
    pub(super) fn push(
        &mut self,
        token: Token,
        tunnel: Option<&mut Tunnel>,
        from: &[u8],
        pieces: &[(u32, u32)],
    ) {
        let Some(Slot::End(end)) = self.slots.get_mut(token) else { return };
        if end.is_finished() {
            return;
        }
        let mut written = 0;
        let mut fault = None;
        if let Some(socket) = &end.socket {
            while !end.pending.is_empty() && end.writable {
                match (&*socket).write(end.pending.rest()) {
                    Ok(0) => fault = Some(io::ErrorKind::WriteZero.into()),
                    Ok(bytes) => {
                        end.pending.consume(bytes);
                        written += bytes;
                        continue;
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => end.writable = false,
                    Err(error) => fault = Some(error),
                }
                break;
            }
        }
        let mut left = pieces;
        let mut skip = 0;
        while !left.is_empty() && fault.is_none() && end.writable && end.pending.is_empty() {
            let Some(socket) = &end.socket else { break };
            let now = &left[..left.len().min(SLICES)];
            let total: usize = now.iter().map(|(_, length)| *length as usize).sum::<usize>() - skip;
            let wrote = match now {
                [one] => (&*socket).write(&piece(from, one)[skip..]),
                _ => {
                    let mut slices: [IoSlice<'_>; SLICES] = [IoSlice::new(&[]); SLICES];
                    for (slice, one) in slices.iter_mut().zip(now) {
                        *slice = IoSlice::new(piece(from, one));
                    }
                    slices[0] = IoSlice::new(&piece(from, &now[0])[skip..]);
                    (&*socket).write_vectored(&slices[..now.len()])
                }
            };
            match wrote {
                Ok(0) => fault = Some(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    written += bytes;
                    // A short write: the socket is full.
                    end.writable = bytes == total;
                    let mut past = bytes + skip;
                    while let Some((_, length)) = left.first()
                        && past >= *length as usize
                    {
                        past -= *length as usize;
                        left = &left[1..];
                    }
                    skip = past;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => end.writable = false,
                Err(error) => fault = Some(error),
            }
        }
        if fault.is_none() {
            for one in left {
                end.pending.push(&piece(from, one)[skip..]);
                skip = 0;
            }
        }
        if written > 0 {
            end.count(false, written);
        }
        if let Some(tunnel) = tunnel {
            if written > 0 {
                tunnel.h2.consumed(end.stream, written);
            }
            if fault.is_some() {
                tunnel.h2.reset(end.stream, h2::Reason::CANCEL);
            }
            tunnel.mark(&mut self.dirty);
        }
        match fault {
            Some(error) => end.finish(Err(error)),
            None => end.look_for_end(),
        }
    }

    /// The tunnel brings nothing more.
    pub(super) fn peer_ended(&mut self, token: Token) {
        let Some(Slot::End(end)) = self.slots.get_mut(token) else { return };
        end.peer_ended = true;
        end.look_for_end();
    }

    /// The other end of the tunnel has reset the stream.
    pub(super) fn peer_reset(&mut self, token: Token, reason: h2::Reason) {
        let Some(Slot::End(end)) = self.slots.get_mut(token) else { return };
        end.released = true;
        if end.socket.is_none() && end.answer.is_none() && end.role == Role::Client {
            end.answer = Some(match reason {
                h2::Reason::REFUSED_STREAM => Answer::NotTaken,
                reason => Answer::Broken(format!("the peer reset the stream: {reason}")),
            });
            end.wake();
        }
        if reason == h2::Reason::NO_ERROR && end.peer_ended {
            return end.peer_is_gone();
        }
        let kind = match reason {
            h2::Reason::NO_ERROR | h2::Reason::STREAM_CLOSED => io::ErrorKind::BrokenPipe,
            _ => io::ErrorKind::ConnectionReset,
        };
        end.finish(Err(io::Error::new(kind, format!("the peer reset the stream: {reason}"))));
    }

    /// There is window, or room in the tunnel, again.
    pub(super) fn unblock(&mut self, token: Token) {
        if let Some(Slot::End(end)) = self.slots.get_mut(token)
            && end.blocked
        {
            end.blocked = false;
            if end.readable && !end.queued {
                end.queued = true;
                self.ready.push_back(token);
            }
        }
    }
}

/// Reads without taking.
struct Peek<'a>(&'a Socket);

impl Read for Peek<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        Ok(recv(self.0.as_raw_fd(), into, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT)?)
    }
}

fn piece<'a>(from: &'a [u8], (start, length): &(u32, u32)) -> &'a [u8] {
    &from[*start as usize..(*start + *length) as usize]
}
