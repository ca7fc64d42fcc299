//! What must hold for anything that a peer says: for fuzzing and for tests.

use mesh::Authority;

use super::frame::{self, HEADER, Header, PREFACE, SETTINGS};
use super::{Config, Connection, Event, Side};
use crate::Head;

/// Input beyond this says nothing new, and would reach budgets that are counted a call.
const MOST: usize = 16 << 10;

fn config() -> Config {
    Config { stream_window: 70_000, connection_window: 100_000, max_frame_size: 20_000, max_streams: 3 }
}

fn head() -> Head {
    Head::to(Authority::Address(([10, 0, 0, 2], 80).into()))
}

/// An end to which the peer's first words have been said already, if `greeted`.
fn end(side: Side, greeted: bool) -> Connection {
    let mut end = match side {
        Side::Client => Connection::client(config()),
        Side::Server => Connection::server(config()),
    };
    if greeted {
        let mut words = if side == Side::Server { PREFACE.to_vec() } else { Vec::new() };
        frame::put(&mut words, SETTINGS, 0, 0, &[]);
        let understood = end.receive(&words, &mut Vec::new());
        assert_eq!(understood, Ok(()), "first words");
    }
    if side == Side::Client {
        for user in 0..3 {
            let _ = end.open(&head(), user);
        }
    }
    end.output().clear();
    end
}

/// What was understood, whatever the cut: events, and bytes that belong together in one.
fn told(end: &mut Connection, input: &[u8], cut: usize) -> (Vec<String>, Option<String>) {
    let mut told = Vec::new();
    let mut run: Option<(String, Vec<u8>)> = None;
    let mut fault = None;
    for piece in input.chunks(cut.max(1)) {
        let mut events = Vec::new();
        let done = end.receive(piece, &mut events);
        for event in events {
            if let Event::Data { stream, range, .. } = &event {
                let bytes = &piece[range.start as usize..range.end as usize];
                let name = format!("{stream:?}");
                match &mut run {
                    Some((of, run)) if *of == name => run.extend_from_slice(bytes),
                    run => {
                        let before = run.replace((name, bytes.to_vec()));
                        told.extend(before.map(|before| format!("{before:?}")));
                    }
                }
                continue;
            }
            told.extend(run.take().map(|run| format!("{run:?}")));
            told.push(format!("{event:?}"));
        }
        if let Err(fatal) = done {
            fault = Some(fatal.to_string());
            break;
        }
    }
    told.extend(run.map(|run| format!("{run:?}")));
    (told, fault)
}

/// Takes part: answers, takes bytes, lets go.
fn take_part(end: &mut Connection, input: &[u8], cut: usize) {
    let first = i64::from(config().connection_window);
    for (turn, piece) in input.chunks(cut.max(1)).enumerate() {
        let mut events = Vec::new();
        let done = end.receive(piece, &mut events);
        for event in events {
            match event {
                Event::Request { stream, head: Ok(_) } if turn % 2 == 0 => end.accept(stream, None),
                Event::Request { stream, .. } => end.refuse(stream, http::StatusCode::FORBIDDEN),
                Event::Data { stream, range, .. } if turn % 3 > 0 => end.consumed(stream, range.len()),
                Event::Ended { stream, .. } if end.sendable(stream) > 0 => {
                    let header = end.data(stream, 1, true);
                    assert_eq!(Header::parse(&header).length, 1);
                }
                Event::Ended { stream, .. } | Event::Reset { stream, .. } => end.release(stream),
                _ => {}
            }
        }
        let open = end.streams.iter().filter(|stream| !stream.is_closed()).count();
        assert_eq!(end.streams.open, open, "streams are counted right");
        let held: i64 = end.streams.iter().map(|stream| i64::from(stream.held)).sum();
        if done.is_err() {
            break;
        }
        // What has been sent is held by a stream, or owed, or yet to come within a frame that has been announced.
        assert!(end.recv_window >= 0 && end.recv_window + i64::from(end.owed) + held <= first, "windows");
    }
    let mut queued = &end.output[..];
    while !queued.is_empty() {
        let header = queued.first_chunk::<HEADER>().map(Header::parse);
        let length = header.map_or(usize::MAX, |header| HEADER + header.length);
        assert!(length <= queued.len(), "what is said is whole frames");
        queued = &queued[length..];
    }
}

/// Says `input` to an end. Its first byte chooses which (1), whether the peer has said its first words (2), and the cut.
/// Panics where a promise is broken.
pub fn exercise(input: &[u8]) {
    let Some((flags, rest)) = input.split_first() else { return };
    let rest = &rest[..rest.len().min(MOST)];
    let side = if flags & 1 == 0 { Side::Server } else { Side::Client };
    let greeted = flags & 2 != 0;
    let cut = usize::from(flags >> 2) + 1;
    let (mut one, mut many) = (end(side, greeted), end(side, greeted));
    let (whole, pieces) = (told(&mut one, rest, rest.len()), told(&mut many, rest, cut));
    assert_eq!(whole, pieces, "in one piece and in many");
    assert_eq!(one.output, many.output, "what is answered");
    take_part(&mut end(side, greeted), rest, cut);
}

/// Words that are understood.
pub fn examples() -> Vec<Vec<u8>> {
    let (mut client, mut server) = (Connection::client(config()), Connection::server(config()));
    let (mut up, mut down) = (vec![16 << 2], vec![16 << 2 | 1]);
    let mut keys = Vec::new();
    for turn in 0..4_u8 {
        if let Ok(stream) = client.open(&head(), u64::from(turn)) {
            keys.push(stream);
        }
        if let Some(stream) = keys.get(usize::from(turn).saturating_sub(2)).filter(|_| turn > 1) {
            let header = client.data(*stream, 5, turn == 3);
            client.output().extend_from_slice(&header);
            client.output().extend_from_slice(b"hello");
        }
        client.ping([turn; 8]);
        let said = std::mem::take(client.output());
        up.extend_from_slice(&said);
        let mut events = Vec::new();
        let _ = server.receive(&said, &mut events);
        for event in events {
            match event {
                Event::Request { stream, .. } if turn == 2 => {
                    server.refuse(stream, http::StatusCode::FORBIDDEN)
                }
                Event::Request { stream, .. } => server.accept(stream, None),
                Event::Data { stream, .. } => {
                    let header = server.data(stream, 3, true);
                    server.output().extend_from_slice(&header);
                    server.output().extend_from_slice(b"bye");
                }
                _ => {}
            }
        }
        if turn == 3 {
            server.graceful_shutdown();
        }
        let said = std::mem::take(server.output());
        down.extend_from_slice(&said);
        let _ = client.receive(&said, &mut Vec::new());
    }
    vec![up, down]
}
