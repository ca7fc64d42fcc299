//! What a peer says of the connection and its windows: SETTINGS, PING, GOAWAY, WINDOW_UPDATE, RST_STREAM (RFC 9113 §6).

use super::frame::{
    self, ACK, CONTINUATION, ENABLE_PUSH, END_HEADERS, GOAWAY, HEADER_TABLE_SIZE, HEADERS, Header,
    INITIAL_WINDOW_SIZE, LEAST_FRAME, MAX_CONCURRENT_STREAMS, MAX_FRAME_SIZE, MAX_WINDOW, PING, RST_STREAM,
    SETTINGS, WINDOW_UPDATE,
};
use super::receive::fatal;
use super::streams::Key;
use super::{BUDGET, Connection, Event, FAREWELL, Fatal, Leaving, Reason, Side};

impl Connection {
    /// Acts on a frame that has arrived whole.
    pub(super) fn frame(
        &mut self,
        header: Header,
        payload: &[u8],
        events: &mut Vec<Event>,
    ) -> Result<(), Fatal> {
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
                self.for_all_streams()?;
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
        let found = self.streams.find(id);
        let Some((key, stream)) = found.and_then(|key| self.streams.get(key).map(|stream| (key, stream)))
        else {
            return self.idle();
        };
        let (again, unanswered) = (stream.reset, !stream.answered);
        self.mark_reset(key, reason, events);
        match self.side {
            _ if again => self.idle(),
            // Asked and given up before we could answer: CVE-2023-44487.
            Side::Server if unanswered => self.wasted(),
            _ => Ok(()),
        }
    }

    fn window(&mut self, id: u32, more: u32, events: &mut Vec<Event>) -> Result<(), Fatal> {
        if id == 0 {
            if more == 0 {
                return fatal(Reason::PROTOCOL_ERROR, "a window that grows by nothing");
            }
            self.send_window += i64::from(more);
            if self.send_window > MAX_WINDOW {
                return fatal(Reason::FLOW_CONTROL_ERROR, "a window that cannot be");
            }
            events.push(Event::ConnectionWindow);
            return Ok(());
        }
        if self.is_idle(id) {
            return fatal(Reason::PROTOCOL_ERROR, "a window of no stream");
        }
        let Some(key) = self.streams.find(id) else { return self.idle() };
        let Some(stream) = self.streams.get_mut(key).filter(|stream| !stream.reset) else {
            return self.idle();
        };
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
    pub(super) fn reset_for(&mut self, key: Key, reason: Reason, events: &mut Vec<Event>) {
        frame::put_reset(&mut self.output, key.id, reason);
        self.mark_reset(key, reason, events);
    }

    fn settings(&mut self, payload: &[u8], events: &mut Vec<Event>) -> Result<(), Fatal> {
        let first = !std::mem::replace(&mut self.settled, true);
        let (mut max_streams, mut first_window) = (None, None);
        for setting in payload.chunks_exact(6) {
            let name = u16::from_be_bytes([setting[0], setting[1]]);
            let value = frame::number(&setting[2..]);
            match name {
                HEADER_TABLE_SIZE => self.encoder.set_limit(value as usize),
                ENABLE_PUSH if value > 1 || (value == 1 && self.side == Side::Client) => {
                    return fatal(Reason::PROTOCOL_ERROR, "a setting that cannot be");
                }
                MAX_CONCURRENT_STREAMS => max_streams = Some(value as usize),
                INITIAL_WINDOW_SIZE if i64::from(value) > MAX_WINDOW => {
                    return fatal(Reason::FLOW_CONTROL_ERROR, "a window that cannot be");
                }
                // The last one counts: streams are looked at once a frame, however often it says so.
                INITIAL_WINDOW_SIZE => first_window = Some(i64::from(value)),
                MAX_FRAME_SIZE if !(LEAST_FRAME as u32..1 << 24).contains(&value) => {
                    return fatal(Reason::PROTOCOL_ERROR, "a setting that cannot be");
                }
                _ => {}
            }
        }
        if let Some(window) = first_window {
            self.resize_windows(window, events)?;
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

    /// The peer has changed the window that streams begin with; those that are open change with it (§6.9.2).
    fn resize_windows(&mut self, window: i64, events: &mut Vec<Event>) -> Result<(), Fatal> {
        let change = window - self.peer_first_window;
        self.peer_first_window = window;
        if change == 0 {
            return Ok(());
        }
        self.for_all_streams()?;
        for stream in self.streams.iter_mut() {
            stream.send_window += change;
            if stream.send_window > MAX_WINDOW {
                return fatal(Reason::FLOW_CONTROL_ERROR, "a window that cannot be");
            }
        }
        if change > 0 {
            let streams = self.streams.iter().filter(|stream| !stream.is_closed());
            events.extend(streams.filter_map(|stream| {
                let key = self.streams.find(stream.id)?;
                Some(Event::StreamWindow { stream: key, user: stream.user })
            }));
        }
        Ok(())
    }
}
