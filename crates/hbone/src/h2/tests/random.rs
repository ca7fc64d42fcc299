//! Two ends back to back, doing whatever comes to mind: all bytes arrive, in order, and nothing is lost of the windows.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Op {
    Open,
    Accept(usize),
    Refuse(usize),
    Send { up: bool, which: usize, length: usize, end: bool },
    Consume { up: bool, which: usize, length: usize },
    Release { up: bool, which: usize },
    Carry { up: bool, bytes: usize },
    Ping(bool),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => Just(Op::Open),
        2 => any::<usize>().prop_map(Op::Accept),
        1 => any::<usize>().prop_map(Op::Refuse),
        6 => (any::<bool>(), any::<usize>(), 0..40_000_usize, prop::bool::weighted(0.1))
            .prop_map(|(up, which, length, end)| Op::Send { up, which, length, end }),
        6 => (any::<bool>(), any::<usize>(), 0..40_000_usize)
            .prop_map(|(up, which, length)| Op::Consume { up, which, length }),
        1 => (any::<bool>(), any::<usize>()).prop_map(|(up, which)| Op::Release { up, which }),
        8 => (any::<bool>(), 1..60_000_usize).prop_map(|(up, bytes)| Op::Carry { up, bytes }),
        1 => any::<bool>().prop_map(Op::Ping),
    ]
}

/// What one end knows of a stream.
#[derive(Default)]
struct Known {
    sent: usize,
    received: usize,
    held: usize,
    ended: bool,
    peer_ended: bool,
    reset: bool,
    answered: bool,
}

struct End {
    connection: Connection,
    /// On its way to the other end.
    way: Vec<u8>,
    streams: Vec<Key>,
    known: HashMap<u32, Known>,
}

impl End {
    fn new(connection: Connection) -> Self {
        Self { connection, way: Vec::new(), streams: Vec::new(), known: HashMap::new() }
    }

    fn flush(&mut self) {
        self.way.append(self.connection.output());
    }

    fn pick(&self, which: usize) -> Option<Key> {
        (!self.streams.is_empty()).then(|| self.streams[which % self.streams.len()])
    }

    fn send(&mut self, stream: Key, length: usize, end: bool) {
        let known = self.known.entry(stream.id).or_default();
        if known.ended || known.reset || !known.answered {
            return;
        }
        let length = length.min(self.connection.sendable(stream)).min(16_384);
        let from = known.sent;
        known.sent += length;
        known.ended |= end;
        self.flush();
        let header = self.connection.data(stream, length, end);
        self.way.extend(header);
        self.way.extend((from..from + length).map(|at| byte(stream.id, at)));
    }

    fn consume(&mut self, stream: Key, length: usize) {
        let known = self.known.entry(stream.id).or_default();
        let length = length.min(known.held);
        known.held -= length;
        self.connection.consumed(stream, length);
    }

    fn take(&mut self, input: &[u8]) {
        let mut events = Vec::new();
        self.connection.receive(input, &mut events).unwrap();
        assert!(self.connection.recv_window >= 0);
        for event in events {
            match event {
                Event::Data { stream, range, .. } => {
                    let known = self.known.entry(stream.id).or_default();
                    assert!(!known.peer_ended, "nothing comes after the end");
                    for got in &input[range.start as usize..range.end as usize] {
                        assert_eq!(*got, byte(stream.id, known.received), "in order");
                        known.received += 1;
                        known.held += 1;
                    }
                }
                Event::Ended { stream, .. } => self.known.entry(stream.id).or_default().peer_ended = true,
                Event::Reset { stream, .. } => self.known.entry(stream.id).or_default().reset = true,
                Event::Request { stream, .. } => self.streams.push(stream),
                Event::Response { stream, status, .. } => {
                    self.known.entry(stream.id).or_default().answered = status == StatusCode::OK;
                }
                _ => {}
            }
        }
    }

    fn release(&mut self, at: usize) {
        let stream = self.streams.remove(at);
        self.known.entry(stream.id).or_default().reset = true;
        self.connection.release(stream);
    }

    fn count_is_right(&self) {
        let open = self.connection.streams.iter().filter(|stream| !stream.is_closed()).count();
        assert_eq!(self.connection.streams.open, open);
    }
}

fn byte(stream: u32, at: usize) -> u8 {
    (stream as usize * 31 + at * 7 + at / 251) as u8
}

fn carry(from: &mut End, to: &mut End, bytes: usize) {
    from.flush();
    let bytes = bytes.min(from.way.len());
    let said: Vec<u8> = from.way.drain(..bytes).collect();
    to.take(&said);
}

fn play(ops: &[Op]) {
    let config =
        Config { stream_window: 70_000, connection_window: 150_000, max_frame_size: 20_000, max_streams: 8 };
    let mut near = End::new(Connection::client(config));
    let mut far = End::new(Connection::server(config));
    for _ in 0..2 {
        carry(&mut near, &mut far, usize::MAX);
        carry(&mut far, &mut near, usize::MAX);
    }
    for op in ops {
        let (up, _) = match op {
            Op::Send { up, .. } | Op::Consume { up, .. } | Op::Release { up, .. } | Op::Carry { up, .. } => {
                (*up, ())
            }
            Op::Ping(up) => (*up, ()),
            _ => (true, ()),
        };
        let (this, that) = if up { (&mut near, &mut far) } else { (&mut far, &mut near) };
        match op {
            Op::Open => {
                if let Ok(stream) = near.connection.open(&head(), 0) {
                    near.streams.push(stream);
                }
            }
            Op::Accept(which) => {
                if let Some(stream) = far.pick(*which) {
                    far.connection.accept(stream, None);
                    far.known.entry(stream.id).or_default().answered = true;
                }
            }
            Op::Refuse(which) => {
                if let Some(stream) =
                    far.pick(*which).filter(|one| !far.known.get(&one.id).is_some_and(|k| k.answered))
                {
                    far.connection.refuse(stream, StatusCode::FORBIDDEN);
                    far.known.entry(stream.id).or_default().ended = true;
                }
            }
            Op::Send { which, length, end, .. } => {
                if let Some(stream) = this.pick(*which) {
                    this.send(stream, *length, *end);
                }
            }
            Op::Consume { which, length, .. } => {
                if let Some(stream) = this.pick(*which) {
                    this.consume(stream, *length);
                }
            }
            Op::Release { which, .. } => {
                if !this.streams.is_empty() {
                    let at = which % this.streams.len();
                    this.release(at);
                }
            }
            Op::Carry { bytes, .. } => carry(this, that, *bytes),
            Op::Ping(_) => this.connection.ping([7; 8]),
        }
        near.count_is_right();
        far.count_is_right();
    }
    for _ in 0..3 {
        carry(&mut near, &mut far, usize::MAX);
        carry(&mut far, &mut near, usize::MAX);
    }
    // Whatever was sent on a stream that nobody reset has arrived.
    for (from, to) in [(&near, &far), (&far, &near)] {
        for (id, sent) in &from.known {
            let got = to.known.get(id);
            let reset = sent.reset || got.is_some_and(|got| got.reset);
            if !reset {
                assert_eq!(sent.sent, got.map_or(0, |got| got.received), "stream {id}");
                assert_eq!(sent.ended, got.is_some_and(|got| got.peer_ended), "stream {id}");
            }
        }
    }
    // And when all is let go, the windows are whole.
    for end in [&mut near, &mut far] {
        while !end.streams.is_empty() {
            end.release(0);
        }
    }
    for _ in 0..3 {
        carry(&mut near, &mut far, usize::MAX);
        carry(&mut far, &mut near, usize::MAX);
        // Requests that were still on their way.
        while !far.streams.is_empty() {
            far.release(0);
        }
    }
    for (this, that) in [(&near, &far), (&far, &near)] {
        assert_eq!(this.connection.streams.len(), 0);
        assert_eq!(this.connection.recv_window + i64::from(this.connection.owed), 150_000, "nothing is lost");
        assert_eq!(that.connection.send_window, this.connection.recv_window, "both count alike");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn whatever_two_ends_do_all_bytes_arrive_and_no_window_is_lost(ops in prop::collection::vec(op(), 1..150)) {
        play(&ops);
    }

    #[test]
    fn any_bytes_mean_the_same_in_any_cut(flags: u8, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        exercise(&[&[flags][..], &bytes].concat());
    }

    #[test]
    fn any_frames_mean_the_same_in_any_cut(
        flags: u8,
        frames in prop::collection::vec((0..11_u8, any::<u8>(), 0..6_u32, prop::collection::vec(any::<u8>(), 0..40)), 0..20),
    ) {
        let mut input = vec![flags | 2];
        for (kind, flags, stream, payload) in frames {
            frame::put(&mut input, kind, flags, stream, &payload);
        }
        exercise(&input);
    }
}

#[test]
fn the_examples_are_understood() {
    for example in exercise_examples() {
        exercise(&example);
    }
}
