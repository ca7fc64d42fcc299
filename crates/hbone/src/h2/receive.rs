//! What a peer says: frames in any cut, and what they mean.

use http::{HeaderName, HeaderValue, Method, Request, StatusCode};

use super::frame::{
    self, ACK, CONTINUATION, DATA, ENABLE_PUSH, END_HEADERS, END_STREAM, GOAWAY, HEADER, HEADER_TABLE_SIZE,
    HEADERS, Header, INITIAL_WINDOW_SIZE, LEAST_FRAME, MAX_CONCURRENT_STREAMS, MAX_FRAME_SIZE, MAX_WINDOW,
    PADDED, PING, PREFACE, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE, WITH_PRIORITY,
};
use super::streams::{Key, Stream};
use super::{BUDGET, Connection, Event, FAREWELL, Fatal, Leaving, Reason, Side};
use crate::{Head, HeadError, connect};

/// Where in the peer's bytes we are.
#[derive(Debug)]
pub(super) struct Reader {
    /// Of the preface, which only clients send.
    preface: usize,
    state: State,
    /// The start of something that has not arrived whole.
    partial: Vec<u8>,
    /// A header block that goes on in the next frame.
    block: Option<Block>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    Header,
    /// The payload is gathered and then looked at.
    Gather(Header),
    /// The payload is passed on as it comes; `padding` of it are not meant.
    Pass {
        stream: Option<Key>,
        left: usize,
        padding: usize,
        end: bool,
        pad_unknown: bool,
    },
    /// The payload means nothing.
    Skip(usize),
}

#[derive(Debug)]
struct Block {
    stream: u32,
    end_stream: bool,
    bytes: Vec<u8>,
}

impl Reader {
    pub(super) fn new(server: bool) -> Self {
        let preface = if server { 0 } else { PREFACE.len() };
        Self { preface, state: State::Header, partial: Vec::new(), block: None }
    }
}

fn fatal<T>(reason: Reason, words: &'static str) -> Result<T, Fatal> {
    Err(Fatal { reason, words })
}

/// A header's fields, as far as anybody wants to know.
#[derive(Default)]
struct Fields {
    request: Request<()>,
    status: Option<StatusCode>,
    authority: Option<String>,
    method: Option<Method>,
    size: usize,
    malformed: bool,
}

impl Connection {
    /// Takes what the peer has sent, in any cut.
    pub fn receive(&mut self, input: &[u8], events: &mut Vec<Event>) -> Result<(), Fatal> {
        let done = self.read(input, events);
        if let Err(fatal) = &done {
            frame::put_go_away(&mut self.output, self.last_peer_id, fatal.reason, fatal.words);
        }
        done
    }

    fn read(&mut self, input: &[u8], events: &mut Vec<Event>) -> Result<(), Fatal> {
        let mut at = 0;
        if self.reader.preface < PREFACE.len() {
            let wanted = &PREFACE[self.reader.preface..];
            at = wanted.len().min(input.len());
            if input[..at] != wanted[..at] {
                return fatal(Reason::PROTOCOL_ERROR, "this is no HTTP/2");
            }
            self.reader.preface += at;
        }
        loop {
            match self.reader.state {
                State::Header => {
                    let missing = HEADER - self.reader.partial.len();
                    let Some(bytes) = input.get(at..at + missing) else {
                        self.reader.partial.extend_from_slice(&input[at..]);
                        return Ok(());
                    };
                    at += missing;
                    let mut header = [0; HEADER];
                    header[..HEADER - missing].copy_from_slice(&self.reader.partial);
                    header[HEADER - missing..].copy_from_slice(bytes);
                    self.reader.partial.clear();
                    let header = Header::parse(&header);
                    self.reader.state = self.begin(header)?;
                }
                State::Gather(header) => {
                    let missing = header.length - self.reader.partial.len();
                    let Some(bytes) = input.get(at..at + missing) else {
                        self.reader.partial.extend_from_slice(&input[at..]);
                        return Ok(());
                    };
                    at += missing;
                    self.reader.state = State::Header;
                    if self.reader.partial.is_empty() {
                        self.frame(header, bytes, events)?;
                    } else {
                        let mut payload = std::mem::take(&mut self.reader.partial);
                        payload.extend_from_slice(bytes);
                        self.frame(header, &payload, events)?;
                    }
                }
                State::Skip(left) => {
                    let now = left.min(input.len() - at);
                    at += now;
                    if now < left {
                        self.reader.state = State::Skip(left - now);
                        return Ok(());
                    }
                    self.reader.state = State::Header;
                }
                State::Pass { stream, mut left, mut padding, end, pad_unknown } => {
                    if pad_unknown {
                        let Some(length) = input.get(at) else { return Ok(()) };
                        at += 1;
                        left -= 1;
                        padding = usize::from(*length);
                        if padding > left {
                            return fatal(Reason::PROTOCOL_ERROR, "more padding than frame");
                        }
                        // Padding is paid for like payload (§6.9.1).
                        self.give_back(1 + padding as u32);
                        self.give_back_stream(stream, 1 + padding as u32);
                    }
                    let payload = (left - padding).min(input.len() - at);
                    if payload > 0 {
                        self.pass(stream, at, payload, events);
                        at += payload;
                        left -= payload;
                    }
                    if left > padding {
                        self.reader.state = State::Pass { stream, left, padding, end, pad_unknown: false };
                        return Ok(());
                    }
                    if end {
                        self.remote_end(stream, events);
                    }
                    self.reader.state = if left > 0 { State::Skip(left) } else { State::Header };
                }
            }
        }
    }

    /// Looks at the header of a frame.
    fn begin(&mut self, header: Header) -> Result<State, Fatal> {
        if header.length > self.config.max_frame_size.max(LEAST_FRAME as u32) as usize {
            return fatal(Reason::FRAME_SIZE_ERROR, "a frame longer than allowed");
        }
        if !self.settled && header.kind != SETTINGS {
            return fatal(Reason::PROTOCOL_ERROR, "settings do not come first");
        }
        if let Some(block) = &self.reader.block
            && (header.kind != CONTINUATION || header.stream != block.stream)
        {
            return fatal(Reason::PROTOCOL_ERROR, "a header block is interrupted");
        }
        let wrong_size = |right: bool| match right {
            true => Ok(()),
            false => fatal(Reason::FRAME_SIZE_ERROR, "a frame of a length that it cannot have"),
        };
        match header.kind {
            DATA => return self.begin_data(header),
            HEADERS | CONTINUATION => {
                if header.length > BUDGET.header_block {
                    return fatal(Reason::ENHANCE_YOUR_CALM, "a header block that is too long");
                }
            }
            SETTINGS => {
                wrong_size(header.length.is_multiple_of(6) && !(header.has(ACK) && header.length > 0))?;
                self.idle()?;
                if header.length > 6 * 64 {
                    return fatal(Reason::ENHANCE_YOUR_CALM, "too many settings");
                }
            }
            PING => {
                wrong_size(header.length == 8)?;
                self.idle()?;
            }
            RST_STREAM | WINDOW_UPDATE => wrong_size(header.length == 4)?,
            GOAWAY => {
                wrong_size(header.length >= 8)?;
                if header.length > LEAST_FRAME {
                    return fatal(Reason::ENHANCE_YOUR_CALM, "too many last words");
                }
            }
            PUSH_PROMISE => return fatal(Reason::PROTOCOL_ERROR, "a push that nobody wants"),
            // §5.5: whatever else there is, is ignored.
            PRIORITY => {
                self.idle()?;
                if header.stream == 0 {
                    return fatal(Reason::PROTOCOL_ERROR, "a frame on the wrong stream");
                }
                wrong_size(header.length == 5)?;
                return Ok(skip(header.length));
            }
            _ => {
                self.idle()?;
                return Ok(skip(header.length));
            }
        }
        let on_connection = matches!(header.kind, SETTINGS | PING | GOAWAY);
        if header.kind != WINDOW_UPDATE && on_connection != (header.stream == 0) {
            return fatal(Reason::PROTOCOL_ERROR, "a frame on the wrong stream");
        }
        Ok(State::Gather(header))
    }

    /// Something that is of no use by itself.
    fn idle(&mut self) -> Result<(), Fatal> {
        self.idle_frames += 1;
        if self.idle_frames > BUDGET.idle_frames || self.output.len() > BUDGET.output {
            return fatal(Reason::ENHANCE_YOUR_CALM, "frames without use");
        }
        Ok(())
    }

    fn begin_data(&mut self, header: Header) -> Result<State, Fatal> {
        if header.stream == 0 || self.is_idle(header.stream) {
            return fatal(Reason::PROTOCOL_ERROR, "data on no stream");
        }
        self.recv_window -= header.length as i64;
        if self.recv_window < 0 {
            return fatal(Reason::FLOW_CONTROL_ERROR, "more data than the connection's window");
        }
        let padded = header.has(PADDED);
        if padded && header.length == 0 {
            return fatal(Reason::FRAME_SIZE_ERROR, "a frame of a length that it cannot have");
        }
        if header.length == 0 && !header.has(END_STREAM) {
            self.idle()?;
        }
        let mut stream = self.streams.find(header.stream);
        if let Some(key) = stream {
            let known = self.streams.get_mut(key);
            let (ended, reset) =
                known.as_ref().map_or((true, true), |known| (known.remote_ended, known.reset));
            if let Some(known) = known {
                known.recv_window -= header.length as i64;
                if known.recv_window < 0 && !reset {
                    return fatal(Reason::FLOW_CONTROL_ERROR, "more data than the stream's window");
                }
            }
            if ended && !reset {
                return fatal(Reason::STREAM_CLOSED, "data after the end of a stream");
            }
            if reset {
                stream = None;
            }
        }
        Ok(State::Pass {
            stream,
            left: header.length,
            padding: 0,
            end: header.has(END_STREAM),
            pad_unknown: padded,
        })
    }

    /// Whether a stream of this number has never been.
    fn is_idle(&self, id: u32) -> bool {
        match (self.side, id % 2) {
            (Side::Client, 1) => id >= self.next_id,
            (Side::Server, 1) => id > self.last_peer_id,
            // Servers open none.
            _ => true,
        }
    }

    fn pass(&mut self, stream: Option<Key>, at: usize, length: usize, events: &mut Vec<Event>) {
        match stream.and_then(|key| self.streams.get(key).map(|stream| (key, stream.user, stream.reset))) {
            Some((stream, user, false)) => {
                self.idle_frames = 0;
                events.push(Event::Data { stream, user, range: at as u32..(at + length) as u32 });
            }
            // Nobody takes it, so it is given back at once.
            _ => self.give_back(length as u32),
        }
    }

    fn give_back_stream(&mut self, stream: Option<Key>, length: u32) {
        let Some(key) = stream else { return };
        let Some(open) = self.streams.get_mut(key) else { return };
        open.recv_window += i64::from(length);
        frame::put_window(&mut self.output, key.id, length);
    }

    fn remote_end(&mut self, stream: Option<Key>, events: &mut Vec<Event>) {
        let Some(key) = stream else { return };
        let ended = self.streams.change(key, |stream| {
            let news = !stream.remote_ended && !stream.reset;
            stream.remote_ended = true;
            news.then_some(stream.user)
        });
        if let Some(Some(user)) = ended {
            events.push(Event::Ended { stream: key, user });
        }
    }

    /// Acts on a frame that has arrived whole.
    fn frame(&mut self, header: Header, payload: &[u8], events: &mut Vec<Event>) -> Result<(), Fatal> {
        match header.kind {
            HEADERS => self.headers(header, payload, events),
            CONTINUATION => {
                let Some(block) = &mut self.reader.block else {
                    return fatal(Reason::PROTOCOL_ERROR, "a header block goes on that has not begun");
                };
                // An empty piece costs us more than the peer.
                if block.bytes.len() + payload.len() > BUDGET.header_block || payload.is_empty() {
                    return fatal(Reason::ENHANCE_YOUR_CALM, "a header block that is too long");
                }
                block.bytes.extend_from_slice(payload);
                match header.has(END_HEADERS) {
                    true => self.block_done(events),
                    false => Ok(()),
                }
            }
            SETTINGS if header.has(ACK) => Ok(()),
            SETTINGS => self.settings(payload, events),
            PING if header.has(ACK) => {
                let payload = payload.try_into().unwrap_or_default();
                if payload == FAREWELL && self.leaving == Leaving::Announced {
                    self.leaving = Leaving::Gone;
                    frame::put_go_away(&mut self.output, self.last_peer_id, Reason::NO_ERROR, "");
                    return Ok(());
                }
                events.push(Event::Pong { payload });
                Ok(())
            }
            PING => {
                frame::put(&mut self.output, PING, ACK, 0, payload);
                Ok(())
            }
            RST_STREAM => self.peer_reset(header.stream, Reason(frame::number(payload)), events),
            WINDOW_UPDATE => self.window(header.stream, frame::number(payload) & 0x7fff_ffff, events),
            GOAWAY => {
                let last = frame::number(payload) & 0x7fff_ffff;
                let reason = Reason(frame::number(&payload[4..]));
                self.peer_leaving = true;
                events.push(Event::GoAway { last, reason });
                if self.side == Side::Client {
                    // What came after the last one has not been looked at.
                    let unseen: Vec<Key> = self
                        .streams
                        .iter()
                        .filter(|s| s.id > last)
                        .filter_map(|s| self.streams.find(s.id))
                        .collect();
                    for key in unseen {
                        self.mark_reset(key, Reason::REFUSED_STREAM, events);
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn mark_reset(&mut self, key: Key, reason: Reason, events: &mut Vec<Event>) {
        let user = self.streams.change(key, |stream| {
            let news = !stream.reset;
            stream.reset = true;
            news.then_some(stream.user)
        });
        if let Some(Some(user)) = user {
            events.push(Event::Reset { stream: key, user, reason });
        }
    }

    fn peer_reset(&mut self, id: u32, reason: Reason, events: &mut Vec<Event>) -> Result<(), Fatal> {
        if self.is_idle(id) {
            return fatal(Reason::PROTOCOL_ERROR, "a reset of no stream");
        }
        match self.streams.find(id) {
            Some(key) => self.mark_reset(key, reason, events),
            None => self.idle()?,
        }
        Ok(())
    }

    fn window(&mut self, id: u32, more: u32, events: &mut Vec<Event>) -> Result<(), Fatal> {
        if id == 0 {
            self.send_window += i64::from(more);
            if more == 0 || self.send_window > MAX_WINDOW {
                return fatal(Reason::FLOW_CONTROL_ERROR, "a window that cannot be");
            }
            events.push(Event::ConnectionWindow);
            return Ok(());
        }
        if self.is_idle(id) {
            return fatal(Reason::PROTOCOL_ERROR, "a window of no stream");
        }
        let Some(key) = self.streams.find(id) else { return self.idle() };
        let Some(stream) = self.streams.get_mut(key) else { return Ok(()) };
        stream.send_window += i64::from(more);
        let user = stream.user;
        if more == 0 || stream.send_window > MAX_WINDOW {
            let reason = if more == 0 { Reason::PROTOCOL_ERROR } else { Reason::FLOW_CONTROL_ERROR };
            self.reset_for(key, reason, events);
            return Ok(());
        }
        events.push(Event::StreamWindow { stream: key, user });
        Ok(())
    }

    /// Ends a stream for a fault of the peer.
    fn reset_for(&mut self, key: Key, reason: Reason, events: &mut Vec<Event>) {
        frame::put_reset(&mut self.output, key.id, reason);
        self.mark_reset(key, reason, events);
    }

    fn settings(&mut self, payload: &[u8], events: &mut Vec<Event>) -> Result<(), Fatal> {
        let first = !std::mem::replace(&mut self.settled, true);
        let mut max_streams = None;
        for setting in payload.chunks_exact(6) {
            let name = u16::from_be_bytes([setting[0], setting[1]]);
            let value = frame::number(&setting[2..]);
            match name {
                HEADER_TABLE_SIZE => self.encoder.set_limit(value as usize),
                ENABLE_PUSH if value > 1 || (value == 1 && self.side == Side::Client) => {
                    return fatal(Reason::PROTOCOL_ERROR, "a setting that cannot be");
                }
                MAX_CONCURRENT_STREAMS => max_streams = Some(value as usize),
                INITIAL_WINDOW_SIZE => {
                    let window = i64::from(value);
                    if window > MAX_WINDOW {
                        return fatal(Reason::FLOW_CONTROL_ERROR, "a window that cannot be");
                    }
                    let change = window - self.peer_first_window;
                    self.peer_first_window = window;
                    for stream in self.streams.iter_mut() {
                        stream.send_window += change;
                        if stream.send_window > MAX_WINDOW {
                            return fatal(Reason::FLOW_CONTROL_ERROR, "a window that cannot be");
                        }
                    }
                    if change > 0 {
                        for stream in self.streams.iter() {
                            if let Some(key) = self.streams.find(stream.id) {
                                events.push(Event::StreamWindow { stream: key, user: stream.user });
                            }
                        }
                    }
                }
                MAX_FRAME_SIZE if !(LEAST_FRAME as u32..1 << 24).contains(&value) => {
                    return fatal(Reason::PROTOCOL_ERROR, "a setting that cannot be");
                }
                _ => {}
            }
        }
        match max_streams {
            Some(max) => self.peer_max_streams = max,
            // Not said: as many as you like (§6.5.2).
            None if first => self.peer_max_streams = usize::MAX,
            None => {}
        }
        frame::put(&mut self.output, SETTINGS, ACK, 0, &[]);
        events.push(Event::Settings);
        Ok(())
    }

    fn headers(&mut self, header: Header, payload: &[u8], events: &mut Vec<Event>) -> Result<(), Fatal> {
        let mut rest = payload;
        let mut padding = 0;
        if header.has(PADDED) {
            let Some((length, after)) = rest.split_first() else {
                return fatal(Reason::FRAME_SIZE_ERROR, "a frame of a length that it cannot have");
            };
            (padding, rest) = (usize::from(*length), after);
        }
        if header.has(WITH_PRIORITY) {
            let Some((_, after)) = rest.split_at_checked(5) else {
                return fatal(Reason::FRAME_SIZE_ERROR, "a frame of a length that it cannot have");
            };
            rest = after;
        }
        let Some(block) = rest.len().checked_sub(padding).map(|length| &rest[..length]) else {
            return fatal(Reason::PROTOCOL_ERROR, "more padding than frame");
        };
        let end_stream = header.has(END_STREAM);
        self.reader.block = Some(Block { stream: header.stream, end_stream, bytes: block.to_vec() });
        match header.has(END_HEADERS) {
            true => self.block_done(events),
            false => Ok(()),
        }
    }

    fn block_done(&mut self, events: &mut Vec<Event>) -> Result<(), Fatal> {
        let Some(Block { stream: id, end_stream, bytes }) = self.reader.block.take() else { return Ok(()) };
        // Read in any case: the table depends on it.
        let mut fields = Fields::default();
        if self.decoder.decode(&bytes, |name, value| fields.take(name, value)).is_err() {
            return fatal(Reason::COMPRESSION_ERROR, "a header block that cannot be read");
        }
        match self.side {
            Side::Server => self.request(id, end_stream, fields, events),
            Side::Client => self.response(id, end_stream, fields, events),
        }
    }

    fn request(&mut self, id: u32, end: bool, fields: Fields, events: &mut Vec<Event>) -> Result<(), Fatal> {
        if id.is_multiple_of(2) {
            return fatal(Reason::PROTOCOL_ERROR, "a client's stream with a server's number");
        }
        if id <= self.last_peer_id {
            // Trailers, or words on a stream that we have let go.
            let Some(key) = self.streams.find(id) else { return self.idle() };
            let (ended, reset) =
                self.streams.get(key).map_or((false, true), |stream| (stream.remote_ended, stream.reset));
            if ended && !reset {
                return fatal(Reason::STREAM_CLOSED, "headers after the end of a stream");
            }
            if !end && !reset {
                self.reset_for(key, Reason::PROTOCOL_ERROR, events);
            }
            self.remote_end(Some(key), events);
            return Ok(());
        }
        self.last_peer_id = id;
        self.idle_frames = 0;
        if self.leaving == Leaving::Gone {
            return Ok(());
        }
        if self.streams.len() > self.config.max_streams as usize + BUDGET.abandoned_streams {
            return fatal(Reason::ENHANCE_YOUR_CALM, "too many streams that were given up at once");
        }
        if self.streams.open >= self.config.max_streams as usize {
            frame::put_reset(&mut self.output, id, Reason::REFUSED_STREAM);
            return Ok(());
        }
        let stream = self.streams.insert(Stream {
            id,
            user: u64::from(u32::MAX),
            send_window: self.peer_first_window,
            recv_window: i64::from(self.config.stream_window),
            owed: 0,
            local_ended: false,
            remote_ended: false,
            reset: false,
            answered: false,
        });
        if fields.size > BUDGET.header_list {
            self.refuse(stream, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
            self.streams.remove(stream);
            return Ok(());
        }
        if fields.malformed || fields.method.is_none() {
            frame::put_reset(&mut self.output, id, Reason::PROTOCOL_ERROR);
            self.streams.remove(stream);
            return Ok(());
        }
        events.push(Event::Request { stream, head: fields.head() });
        if end {
            self.remote_end(Some(stream), events);
        }
        Ok(())
    }

    fn response(&mut self, id: u32, end: bool, fields: Fields, events: &mut Vec<Event>) -> Result<(), Fatal> {
        if self.is_idle(id) {
            return fatal(Reason::PROTOCOL_ERROR, "an answer to nothing");
        }
        let Some(key) = self.streams.find(id) else { return self.idle() };
        let Some(stream) = self.streams.get_mut(key).filter(|stream| !stream.reset) else { return Ok(()) };
        if stream.remote_ended {
            return fatal(Reason::STREAM_CLOSED, "headers after the end of a stream");
        }
        let user = stream.user;
        if stream.answered {
            // Trailers end a stream.
            match end {
                true => self.remote_end(Some(key), events),
                false => self.reset_for(key, Reason::PROTOCOL_ERROR, events),
            }
            return Ok(());
        }
        match fields.status.filter(|_| !fields.malformed) {
            Some(status) if status.is_informational() && !end => return self.idle(),
            Some(status) => {
                stream.answered = true;
                self.idle_frames = 0;
                let baggage = connect::baggage_of(fields.request.headers());
                events.push(Event::Response { stream: key, user, status, baggage });
            }
            None => {
                self.reset_for(key, Reason::PROTOCOL_ERROR, events);
                return Ok(());
            }
        }
        if end {
            self.remote_end(Some(key), events);
        }
        Ok(())
    }
}

fn skip(length: usize) -> State {
    if length == 0 { State::Header } else { State::Skip(length) }
}

impl Fields {
    fn take(&mut self, name: &[u8], value: &[u8]) {
        // RFC 9113 §6.5.2
        self.size += name.len() + value.len() + 32;
        if self.size > BUDGET.header_list {
            return;
        }
        let once = |taken: bool, malformed: &mut bool| *malformed |= taken;
        match name {
            b":method" => {
                once(self.method.is_some(), &mut self.malformed);
                self.method = Method::from_bytes(value).ok();
            }
            b":authority" => {
                once(self.authority.is_some(), &mut self.malformed);
                self.authority = String::from_utf8(value.to_vec()).ok();
            }
            b":status" => {
                once(self.status.is_some(), &mut self.malformed);
                self.status = StatusCode::from_bytes(value).ok();
            }
            [b':', ..] => {}
            name => {
                let wanted =
                    [connect::BAGGAGE, connect::FORWARDED, connect::FORWARDED_NETWORK, connect::TRACEPARENT];
                if name.iter().any(u8::is_ascii_uppercase) {
                    self.malformed = true;
                } else if wanted.iter().any(|wanted| wanted.as_bytes() == name) {
                    match (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
                        (Ok(name), Ok(value)) => {
                            self.request.headers_mut().append(name, value);
                        }
                        _ => self.malformed = true,
                    }
                }
            }
        }
    }

    fn head(self) -> Result<Head, HeadError> {
        let method = self.method.unwrap_or_default();
        Head::of(&method, self.authority.as_deref().unwrap_or_default(), self.request.headers())
    }
}
