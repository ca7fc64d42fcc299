//! Frames out of bytes in any cut: their order, their sizes, and what they cost the one who sends them. What they mean
//! stands in [`super::control`] and [`super::headers`].

use super::frame::{
    self, ACK, CONTINUATION, DATA, END_STREAM, GOAWAY, HEADER, HEADERS, Header, LEAST_FRAME, PADDED, PING,
    PREFACE, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
};
use super::streams::Key;
use super::{BUDGET, Connection, Event, Fatal, Reason, Side};

/// Where in the peer's bytes we are.
#[derive(Debug)]
pub(super) struct Reader {
    /// Of the preface, which only clients send.
    preface: usize,
    state: State,
    /// The start of something that has not arrived whole.
    partial: Vec<u8>,
    /// A header block that goes on in the next frame.
    pub(super) block: Option<Block>,
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
pub(super) struct Block {
    pub(super) stream: u32,
    pub(super) end_stream: bool,
    pub(super) bytes: Vec<u8>,
}

impl Reader {
    pub(super) fn new(server: bool) -> Self {
        let preface = if server { 0 } else { PREFACE.len() };
        Self { preface, state: State::Header, partial: Vec::new(), block: None }
    }
}

pub(super) fn fatal<T>(reason: Reason, words: &'static str) -> Result<T, Fatal> {
    Err(Fatal { reason, words })
}

impl Connection {
    /// Takes what the peer has sent, in any cut. After a fault it takes nothing more and says the same again.
    pub fn receive(&mut self, input: &[u8], events: &mut Vec<Event>) -> Result<(), Fatal> {
        if let Some(fatal) = &self.failed {
            return Err(fatal.clone());
        }
        if self.output.is_empty() {
            self.provoked = 0;
        }
        let before = self.output.len();
        let mut done = self.read(input, events);
        self.provoked += self.output.len() - before;
        if done.is_ok() && self.provoked > BUDGET.output {
            done = fatal(Reason::ENHANCE_YOUR_CALM, "questions whose answers nobody reads");
        }
        if let Err(fatal) = &done {
            frame::put_go_away(&mut self.output, self.last_peer_id, fatal.reason, fatal.words);
            self.failed = Some(fatal.clone());
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
                    self.reader.state = self.begin(header, events)?;
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
                        if padding == left && !end {
                            self.idle()?;
                        }
                        // Padding is paid for like payload (§6.9.1).
                        self.give_back(1 + padding as u32);
                        self.owe(stream, 1 + padding as u32);
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
    fn begin(&mut self, header: Header, events: &mut Vec<Event>) -> Result<State, Fatal> {
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
            DATA => return self.begin_data(header, events),
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
    pub(super) fn idle(&mut self) -> Result<(), Fatal> {
        self.charge(1)
    }

    /// Something that every stream has to be looked at for.
    pub(super) fn for_all_streams(&mut self) -> Result<(), Fatal> {
        self.charge(1 + self.streams.len() as u32 / 16)
    }

    fn charge(&mut self, frames: u32) -> Result<(), Fatal> {
        self.idle_frames = self.idle_frames.saturating_add(frames);
        if self.idle_frames > BUDGET.idle_frames {
            return fatal(Reason::ENHANCE_YOUR_CALM, "frames without use");
        }
        Ok(())
    }

    /// A request that came to nothing through the client's own doing.
    pub(super) fn wasted(&mut self) -> Result<(), Fatal> {
        self.wasted += 1;
        if self.wasted > BUDGET.wasted_requests {
            return fatal(Reason::ENHANCE_YOUR_CALM, "requests that were given up at once");
        }
        Ok(())
    }

    fn begin_data(&mut self, header: Header, events: &mut Vec<Event>) -> Result<State, Fatal> {
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
        Ok(State::Pass {
            stream: self.taker(header, events)?,
            left: header.length,
            padding: 0,
            end: header.has(END_STREAM),
            pad_unknown: padded,
        })
    }

    /// The stream that takes a frame of DATA; none, if it is one that we have let go.
    fn taker(&mut self, header: Header, events: &mut Vec<Event>) -> Result<Option<Key>, Fatal> {
        let found = self.streams.find(header.stream);
        let Some((key, stream)) = found.and_then(|key| self.streams.get_mut(key).map(|stream| (key, stream)))
        else {
            self.idle()?;
            return Ok(None);
        };
        if stream.reset {
            self.idle()?;
            return Ok(None);
        }
        stream.recv_window -= header.length as i64;
        if stream.recv_window < 0 {
            return fatal(Reason::FLOW_CONTROL_ERROR, "more data than the stream's window");
        }
        if stream.remote_ended {
            return fatal(Reason::STREAM_CLOSED, "data after the end of a stream");
        }
        if self.side == Side::Client && !stream.answered {
            // Bytes before the answer are nobody's (RFC 9113 §8.1).
            self.reset_for(key, Reason::PROTOCOL_ERROR, events);
            return Ok(None);
        }
        Ok(Some(key))
    }

    /// Whether a stream of this number has never been.
    pub(super) fn is_idle(&self, id: u32) -> bool {
        match (self.side, id % 2) {
            (Side::Client, 1) => id >= self.next_id,
            (Side::Server, 1) => id > self.last_peer_id,
            // Servers open none.
            _ => true,
        }
    }

    fn pass(&mut self, stream: Option<Key>, at: usize, length: usize, events: &mut Vec<Event>) {
        let taker = stream.and_then(|key| self.streams.get_mut(key).map(|stream| (key, stream)));
        match taker.filter(|(_, stream)| !stream.reset) {
            Some((key, stream)) => {
                stream.held += length as u32;
                let user = stream.user;
                self.idle_frames = 0;
                events.push(Event::Data { stream: key, user, range: at as u32..(at + length) as u32 });
            }
            // Nobody takes it, so it is given back at once.
            None => self.give_back(length as u32),
        }
    }

    pub(super) fn remote_end(&mut self, stream: Option<Key>, events: &mut Vec<Event>) {
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
}

fn skip(length: usize) -> State {
    if length == 0 { State::Header } else { State::Skip(length) }
}
