//! HTTP/2 (RFC 9113) as tunnels need it: CONNECT and nothing else, without sockets, clocks or tasks.
//!
//! A [`Connection`] takes plaintext as it comes, in any cut, and says what it means; the payload of DATA is never
//! copied, only pointed at. What has to be said to the peer gathers in [`Connection::output`], and the headers of our
//! own DATA are made by [`Connection::data`]. The caller owns the order of bytes: output before the DATA that follows.
//!
//! What a peer can make us do without doing anything useful itself is bounded by [`Budget`]; a peer that exceeds it is
//! told to calm down, and the connection ends.

mod control;
mod exercise;
mod fields;
mod frame;
mod headers;
mod hpack;
mod reason;
mod receive;
mod streams;

#[cfg(test)]
mod tests;

use http::StatusCode;

use crate::connect::{BAGGAGE, FORWARDED, FORWARDED_NETWORK, TRACEPARENT};
use crate::{Baggage, Head, HeadError, Settings};
use frame::{
    CONTINUATION, DATA, ENABLE_PUSH, END_HEADERS, END_STREAM, FIRST_WINDOW, HEADER, HEADERS,
    INITIAL_WINDOW_SIZE, LEAST_FRAME, MAX_CONCURRENT_STREAMS, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE,
    MAX_WINDOW, PING, PREFACE,
};
use hpack::{Decoder, Encoder};
use receive::Reader;
use streams::{Stream, Streams};

#[doc(hidden)]
pub use exercise::{examples as exercise_examples, exercise};
pub use reason::Reason;
pub use streams::Key;

/// What a stream is known by that the caller has not named yet ([`Connection::set_user`]).
pub const NO_USER: u64 = u32::MAX as u64;

/// Numbers of fields in the static table (RFC 7541 Appendix A).
const AUTHORITY: usize = 1;
const METHOD: usize = 2;
const STATUS: usize = 8;

/// Sizes and limits of one end.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// Bytes a peer may send on one stream before they are consumed.
    pub stream_window: u32,
    /// … on all streams.
    pub connection_window: u32,
    /// The longest frame we accept.
    pub max_frame_size: u32,
    /// Streams that a client may have open with us.
    pub max_streams: u32,
}

impl From<&Settings> for Config {
    fn from(settings: &Settings) -> Self {
        Self {
            stream_window: settings.stream_window,
            connection_window: settings.connection_window,
            max_frame_size: settings.frame_size,
            max_streams: settings.max_streams,
        }
    }
}

/// What a peer has said. `user` is what the caller knows the stream by.
#[derive(Debug)]
pub enum Event {
    /// Bytes on a stream; where they lie in what was received.
    Data {
        /// The stream.
        stream: Key,
        /// What the caller knows it by.
        user: u64,
        /// Within the input of this call.
        range: std::ops::Range<u32>,
    },
    /// No more bytes will come on a stream.
    Ended {
        /// The stream.
        stream: Key,
        /// What the caller knows it by.
        user: u64,
    },
    /// A stream is no more.
    Reset {
        /// The stream.
        stream: Key,
        /// What the caller knows it by.
        user: u64,
        /// The peer's reason, or ours.
        reason: Reason,
    },
    /// A client asks for a stream; it is to be accepted, refused or released.
    Request {
        /// The stream.
        stream: Key,
        /// Where to, or why that cannot be understood.
        head: Result<Head, HeadError>,
    },
    /// The answer to a request of ours.
    Response {
        /// The stream.
        stream: Key,
        /// What the caller knows it by.
        user: u64,
        /// 200: it is connected.
        status: StatusCode,
        /// What the peer says of the workload it serves.
        baggage: Option<Baggage>,
    },
    /// More may be sent on a stream.
    StreamWindow {
        /// The stream.
        stream: Key,
        /// What the caller knows it by.
        user: u64,
    },
    /// More may be sent on all streams.
    ConnectionWindow,
    /// The peer has told its settings.
    Settings,
    /// The peer takes no more streams.
    GoAway {
        /// The last one that it has looked at.
        last: u32,
        /// Why.
        reason: Reason,
    },
    /// A ping of ours has been answered.
    Pong {
        /// As it was sent.
        payload: [u8; 8],
    },
}

/// The connection is over; what the peer is told of it is in the output.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {words}")]
pub struct Fatal {
    /// The code.
    pub reason: Reason,
    /// What was wrong.
    pub words: &'static str,
}

/// Why a stream cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The destination cannot be written into a request.
    Head(HeadError),
    /// The connection takes no more streams, or its numbers are used up.
    Closing,
    /// As many streams are open as the peer allows.
    Full,
}

/// What a peer may do without use, before it is told to calm down.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Frames in a row that carry nothing (settings, pings, priorities, empty data, words on streams that are no more)
    /// until [`Connection::forgive`] is called.
    pub(crate) idle_frames: u32,
    /// Streams beyond the limit that were reset and that nobody has let go yet.
    pub(crate) abandoned_streams: usize,
    /// Requests that the client itself gave up before they were answered, or that could not be any: more of these than
    /// were accepted, until [`Connection::forgive`] is called.
    pub(crate) wasted_requests: u32,
    /// Bytes that wait to be sent because of the peer's questions.
    pub(crate) output: usize,
    /// Bytes of one header block, compressed.
    pub(crate) header_block: usize,
    /// Bytes of all fields of one block.
    pub(crate) header_list: usize,
}

pub(crate) const BUDGET: Budget = Budget {
    idle_frames: 10_000,
    abandoned_streams: 500,
    wasted_requests: 1_000,
    output: 128 << 10,
    header_block: 64 << 10,
    header_list: 64 << 10,
};

/// Which end we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Client,
    Server,
}

/// The ping whose answer tells that the peer has seen our first GOAWAY.
const FAREWELL: [u8; 8] = *b"farewell";

/// One HTTP/2 connection.
pub struct Connection {
    side: Side,
    config: Config,
    output: Vec<u8>,
    reader: Reader,
    decoder: Decoder,
    encoder: Encoder,
    streams: Streams,
    /// Bytes that we may send on all streams.
    send_window: i64,
    /// Bytes that the peer may send on all streams.
    recv_window: i64,
    /// Bytes that were passed on and not given back to the peer yet.
    owed: u32,
    /// The peer's settings.
    peer_first_window: i64,
    peer_max_streams: usize,
    settled: bool,
    /// The number of our next stream.
    next_id: u32,
    /// The highest number that the peer has used.
    last_peer_id: u32,
    /// The peer takes no more.
    peer_leaving: bool,
    leaving: Leaving,
    idle_frames: u32,
    wasted: u32,
    /// Bytes that the peer has made us queue since the output was empty.
    provoked: usize,
    /// It is over.
    failed: Option<Fatal>,
}

/// How far our own leave has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    No,
    /// The peer has been told, and its answer is awaited: what it has asked meanwhile is still served.
    Announced,
    Gone,
}

impl Connection {
    /// The client's end; its first words are in the output.
    pub fn client(config: Config) -> Self {
        let mut connection = Self::new(Side::Client, config);
        connection.output.extend_from_slice(PREFACE);
        connection.greet(&[(ENABLE_PUSH, 0)]);
        connection
    }

    /// The server's end; its first words are in the output.
    pub fn server(config: Config) -> Self {
        let mut connection = Self::new(Side::Server, config);
        connection.greet(&[(MAX_CONCURRENT_STREAMS, config.max_streams)]);
        connection
    }

    fn new(side: Side, mut config: Config) -> Self {
        config.stream_window = config.stream_window.min(MAX_WINDOW as u32);
        config.connection_window = config.connection_window.min(MAX_WINDOW as u32);
        Self {
            side,
            config,
            output: Vec::new(),
            reader: Reader::new(side == Side::Server),
            decoder: Decoder::new(),
            encoder: Encoder::new(),
            streams: Streams::default(),
            send_window: FIRST_WINDOW,
            recv_window: i64::from(config.connection_window).max(FIRST_WINDOW),
            owed: 0,
            peer_first_window: FIRST_WINDOW,
            // Until the peer has said how many it allows.
            peer_max_streams: 100,
            settled: false,
            next_id: 1,
            last_peer_id: 0,
            peer_leaving: false,
            leaving: Leaving::No,
            idle_frames: 0,
            wasted: 0,
            provoked: 0,
            failed: None,
        }
    }

    fn greet(&mut self, first: &[(u16, u32)]) {
        let Config { stream_window, connection_window, max_frame_size, .. } = self.config;
        let mut settings = first.to_vec();
        settings.push((INITIAL_WINDOW_SIZE, stream_window));
        settings.push((MAX_FRAME_SIZE, max_frame_size.clamp(LEAST_FRAME as u32, (1 << 24) - 1)));
        settings.push((MAX_HEADER_LIST_SIZE, BUDGET.header_list as u32));
        frame::put_settings(&mut self.output, &settings);
        if let Some(more) = connection_window.checked_sub(FIRST_WINDOW as u32).filter(|more| *more > 0) {
            frame::put_window(&mut self.output, 0, more);
        }
    }

    /// What has to be said to the peer, in this order, before any DATA that is made from now on.
    pub fn output(&mut self) -> &mut Vec<u8> {
        &mut self.output
    }

    /// Asks for a stream. `user` is what the caller knows it by.
    pub fn open(&mut self, head: &Head, user: u64) -> Result<Key, OpenError> {
        if self.peer_leaving || self.leaving != Leaving::No || self.next_id > i32::MAX as u32 {
            return Err(OpenError::Closing);
        }
        if self.streams.open >= self.peer_max_streams {
            return Err(OpenError::Full);
        }
        let request = head.request().map_err(OpenError::Head)?;
        let mut block = Vec::with_capacity(256);
        self.encoder.begin(&mut block);
        self.encoder.field(&mut block, Some(METHOD), b":method", b"CONNECT", true);
        let authority = request.uri().authority().map_or("", |authority| authority.as_str());
        self.encoder.field(&mut block, Some(AUTHORITY), b":authority", authority.as_bytes(), true);
        for (name, again) in
            [(BAGGAGE, true), (FORWARDED_NETWORK, true), (FORWARDED, false), (TRACEPARENT, false)]
        {
            if let Some(value) = request.headers().get(name) {
                self.encoder.field(&mut block, None, name.as_bytes(), value.as_bytes(), again);
            }
        }
        let id = self.next_id;
        self.next_id += 2;
        self.put_headers(id, &block, false);
        Ok(self.begin_stream(id, user))
    }

    fn begin_stream(&mut self, id: u32, user: u64) -> Key {
        self.streams.insert(Stream {
            id,
            user,
            send_window: self.peer_first_window,
            // The peer need not know our window yet, and may start with the usual one.
            recv_window: i64::from(self.config.stream_window).max(FIRST_WINDOW),
            owed: 0,
            held: 0,
            local_ended: false,
            remote_ended: false,
            reset: false,
            answered: false,
        })
    }

    fn put_headers(&mut self, id: u32, block: &[u8], end: bool) {
        let end = if end { END_STREAM } else { 0 };
        let mut pieces = block.chunks(LEAST_FRAME).peekable();
        let mut kind = HEADERS;
        let mut flags = end;
        while let Some(piece) = pieces.next() {
            if pieces.peek().is_none() {
                flags |= END_HEADERS;
            }
            frame::put(&mut self.output, kind, flags, id, piece);
            (kind, flags) = (CONTINUATION, 0);
        }
    }

    /// Answers a request: it is connected.
    pub fn accept(&mut self, stream: Key, baggage: Option<&Baggage>) {
        let mut block = Vec::with_capacity(16);
        let Some(open) = self.streams.get_mut(stream).filter(|open| !open.is_closed() && !open.answered)
        else {
            return;
        };
        open.answered = true;
        self.wasted = self.wasted.saturating_sub(1);
        self.encoder.begin(&mut block);
        self.encoder.known(&mut block, STATUS);
        if let Some(text) = baggage.map(Baggage::to_string).filter(|text| !text.is_empty()) {
            self.encoder.field(&mut block, None, BAGGAGE.as_bytes(), text.as_bytes(), true);
        }
        self.put_headers(stream.id, &block, false);
    }

    /// Answers a request: no, and why.
    pub fn refuse(&mut self, stream: Key, status: StatusCode) {
        let mut block = Vec::new();
        let Some(open) = self.streams.get_mut(stream).filter(|open| !open.is_closed() && !open.answered)
        else {
            return;
        };
        open.answered = true;
        self.encoder.begin(&mut block);
        self.encoder.field(&mut block, Some(STATUS), b":status", status.as_str().as_bytes(), true);
        self.put_headers(stream.id, &block, true);
        self.provoke(HEADER + block.len());
        let ended = self.streams.change(stream, |stream| {
            stream.local_ended = true;
            stream.remote_ended
        });
        if ended == Some(false) {
            // The rest of the request is not wanted (RFC 9113 §8.1).
            self.reset(stream, Reason::NO_ERROR);
        }
    }

    /// Bytes that may be sent on a stream now.
    pub fn sendable(&self, stream: Key) -> usize {
        let Some(open) = self.streams.get(stream).filter(|open| !open.is_closed() && !open.local_ended)
        else {
            return 0;
        };
        open.send_window.min(self.send_window).max(0) as usize
    }

    /// Whether nothing may be sent on any stream now.
    pub fn is_full(&self) -> bool {
        self.send_window <= 0
    }

    /// The header of a DATA frame of `length` bytes, no more than [`Connection::sendable`], which the caller sends
    /// right behind it. At most 16,384 bytes, which every peer takes.
    pub fn data(&mut self, stream: Key, length: usize, end: bool) -> [u8; 9] {
        self.send_window -= length as i64;
        if length > 0 {
            // Whoever takes bytes may ask and measure meanwhile.
            self.idle_frames = 0;
        }
        self.streams.change(stream, |stream| {
            stream.send_window -= length as i64;
            stream.local_ended |= end;
        });
        let flags = if end { END_STREAM } else { 0 };
        frame::Header { length, kind: DATA, flags, stream: stream.id }.bytes()
    }

    /// `length` bytes of a stream have been passed on: the peer may send as many again. It is told in large steps.
    /// What was never passed on is given back when the stream is released.
    pub fn consumed(&mut self, stream: Key, length: usize) {
        let Some(open) = self.streams.get_mut(stream) else { return };
        let length = u32::try_from(length).unwrap_or(u32::MAX).min(open.held);
        open.held -= length;
        self.give_back(length);
        self.owe(Some(stream), length);
    }

    /// The peer gets so much of a stream's window back, sooner or later.
    fn owe(&mut self, stream: Option<Key>, length: u32) {
        let step = (self.config.stream_window / 2).max(1);
        let Some(key) = stream else { return };
        let Some(open) = self.streams.get_mut(key).filter(|open| !open.remote_ended && !open.reset) else {
            return;
        };
        open.owed += length;
        if open.owed >= step {
            open.recv_window += i64::from(open.owed);
            frame::put_window(&mut self.output, key.id, open.owed);
            open.owed = 0;
        }
    }

    fn give_back(&mut self, length: u32) {
        self.owed += length;
        if self.owed >= self.config.connection_window.max(FIRST_WINDOW as u32) / 2 {
            self.recv_window += i64::from(self.owed);
            frame::put_window(&mut self.output, 0, self.owed);
            self.owed = 0;
        }
    }

    /// Ends a stream at once, if it has not ended.
    pub fn reset(&mut self, stream: Key, reason: Reason) {
        let reset = self.streams.change(stream, |stream| {
            !stream.is_closed() && {
                stream.reset = true;
                true
            }
        });
        if reset == Some(true) {
            frame::put_reset(&mut self.output, stream.id, reason);
            self.provoke(HEADER + 4);
        }
    }

    /// A client's requests make us write; a server's never do more than answer ours.
    fn provoke(&mut self, length: usize) {
        if self.side == Side::Server {
            self.provoked += length;
        }
    }

    /// The caller has nothing more to do with a stream; one that has not ended is reset.
    pub fn release(&mut self, stream: Key) {
        self.reset(stream, Reason::CANCEL);
        if let Some(gone) = self.streams.remove(stream) {
            // Or else one who reads only half would take the window away from all others, bit by bit.
            self.give_back(gone.held);
        }
    }

    /// Time has passed: what a peer may do without use is counted anew. To be called every second or less often, so
    /// that connections which live long and say little are never taken for a flood.
    pub fn forgive(&mut self) {
        self.idle_frames = 0;
        self.wasted = 0;
    }

    /// Asks whether the peer is alive.
    pub fn ping(&mut self, payload: [u8; 8]) {
        frame::put(&mut self.output, PING, 0, 0, &payload);
    }

    /// Takes no more streams. A server announces it first, so that nothing which the client has asked meanwhile is
    /// lost (RFC 9113 §6.8).
    pub fn graceful_shutdown(&mut self) {
        if self.leaving != Leaving::No {
            return;
        }
        match self.side {
            Side::Server => {
                self.leaving = Leaving::Announced;
                frame::put_go_away(&mut self.output, i32::MAX as u32, Reason::NO_ERROR, "");
                self.ping(FAREWELL);
            }
            Side::Client => {
                self.leaving = Leaving::Gone;
                frame::put_go_away(&mut self.output, 0, Reason::NO_ERROR, "");
            }
        }
    }

    /// Whether all is said and done: no stream is known, and none can come.
    pub fn is_done(&self) -> bool {
        self.streams.len() == 0 && (self.leaving == Leaving::Gone || self.peer_leaving)
    }

    /// What the caller knows a stream by now: an event may have been made before it was told.
    pub fn user(&self, stream: Key) -> Option<u64> {
        self.streams.get(stream).map(|stream| stream.user)
    }

    /// What the caller knows a stream by.
    pub fn set_user(&mut self, stream: Key, user: u64) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.user = user;
        }
    }

    /// Streams that the peer allows at once.
    pub fn max_streams(&self) -> usize {
        if self.peer_leaving { 0 } else { self.peer_max_streams }
    }

    /// What the caller knows all streams by that are not released.
    pub fn users(&self) -> impl Iterator<Item = u64> {
        self.streams.iter().map(|stream| stream.user)
    }
}
