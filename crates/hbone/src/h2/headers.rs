//! Header blocks: requests, answers and trailers (RFC 9113 §8).

use http::StatusCode;

use super::fields::Fields;
use super::frame::{self, END_HEADERS, END_STREAM, Header, PADDED, WITH_PRIORITY};
use super::receive::{Block, fatal};
use super::streams::Key;
use super::{BUDGET, Connection, Event, Fatal, Leaving, NO_USER, Reason, Side};

impl Connection {
    pub(super) fn headers(
        &mut self,
        header: Header,
        payload: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), Fatal> {
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

    pub(super) fn block_done(&mut self, events: &mut Vec<Event>) -> Result<(), Fatal> {
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
            if reset {
                return self.idle();
            }
            return self.trailers(key, end, &fields, events);
        }
        if self.leaving == Leaving::Gone {
            // It has been told that nobody looks at this any more.
            return self.idle();
        }
        self.last_peer_id = id;
        if self.streams.len() > self.config.max_streams as usize + BUDGET.abandoned_streams {
            return fatal(Reason::ENHANCE_YOUR_CALM, "too many streams that were given up at once");
        }
        if self.streams.open >= self.config.max_streams as usize {
            frame::put_reset(&mut self.output, id, Reason::REFUSED_STREAM);
            return self.wasted();
        }
        let stream = self.begin_stream(id, NO_USER);
        if fields.is_too_long() {
            self.refuse(stream, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
            self.streams.remove(stream);
            return self.wasted();
        }
        if !fields.is_request() {
            frame::put_reset(&mut self.output, id, Reason::PROTOCOL_ERROR);
            self.streams.remove(stream);
            return self.wasted();
        }
        self.idle_frames = 0;
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
            return self.trailers(key, end, &fields, events);
        }
        match fields.status().filter(|status| !(status.is_informational() && end)) {
            Some(status) if status.is_informational() => return self.idle(),
            Some(status) => {
                stream.answered = true;
                self.idle_frames = 0;
                events.push(Event::Response { stream: key, user, status, baggage: fields.baggage() });
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

    /// Headers after the first ones end a stream (RFC 9113 §8.1), and say nothing that a tunnel wants to know.
    fn trailers(
        &mut self,
        key: Key,
        end: bool,
        fields: &Fields,
        events: &mut Vec<Event>,
    ) -> Result<(), Fatal> {
        match end && fields.are_trailers() {
            true => self.remote_end(Some(key), events),
            false => self.reset_for(key, Reason::PROTOCOL_ERROR, events),
        }
        Ok(())
    }
}
