//! What RFC 9113 and RFC 7541 ask, section by section: what is said to one end, and what becomes of it.

use frame::{
    ACK, GOAWAY, HEADER_TABLE_SIZE, PADDED, PRIORITY, PUSH_PROMISE, RST_STREAM, SETTINGS, WINDOW_UPDATE,
    WITH_PRIORITY,
};

use super::*;

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// The connection goes on, and nobody is reset.
    Fine,
    /// A stream is reset by us.
    Stream(u32, Reason),
    /// The connection ends.
    Connection(Reason),
}
use Fate::{Connection as Ends, Fine, Stream as Resets};

pub(super) fn wire(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put(&mut out, kind, flags, stream, payload);
    out
}

/// A header block of literals.
pub(super) fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.extend([0, name.len() as u8]);
        block.extend(name.as_bytes());
        block.push(value.len() as u8);
        block.extend(value.as_bytes());
    }
    block
}

fn asks(stream: u32, fields: &[(&str, &str)]) -> Vec<u8> {
    wire(HEADERS, END_HEADERS, stream, &block(fields))
}

fn setting(name: u16, value: u32) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put_settings(&mut out, &[(name, value)]);
    out
}

const CONNECT: [(&str, &str); 2] = [(":method", "CONNECT"), (":authority", "10.0.0.2:80")];

/// The frames that an end has queued.
pub(super) fn frames(mut bytes: &[u8]) -> Vec<(frame::Header, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((header, rest)) = bytes.split_first_chunk() {
        let header = frame::Header::parse(header);
        let (payload, rest) = rest.split_at(header.length);
        frames.push((header, payload.to_vec()));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "half a frame");
    frames
}

/// Says it to an end on which stream 1 is connected, whole and byte by byte.
fn fate(side: Side, said: &[u8]) -> Fate {
    let fates = [said.len().max(1), 1].map(|cut| {
        let (mut client, mut server) = pair();
        connected(&mut client, &mut server);
        let end = match side {
            Side::Client => &mut client,
            Side::Server => &mut server,
        };
        let mut events = Vec::new();
        let done = said.chunks(cut).try_for_each(|piece| end.receive(piece, &mut events));
        let queued = frames(end.output());
        let last = queued.last().map(|(header, payload)| (header.kind, payload.clone()));
        match done {
            Err(fatal) => {
                let Some((GOAWAY, payload)) = last else { panic!("no GOAWAY") };
                assert_eq!(frame::number(&payload[4..]), fatal.reason.0, "the peer is told the same");
                Ends(fatal.reason)
            }
            Ok(()) => {
                let mut resets = queued.iter().filter(|(header, _)| header.kind == RST_STREAM);
                let reset = resets
                    .next()
                    .map(|(header, payload)| Resets(header.stream, Reason(frame::number(payload))));
                assert!(resets.next().is_none(), "once");
                reset.unwrap_or(Fine)
            }
        }
    });
    assert_eq!(fates[0], fates[1], "in one piece or in many");
    fates[0]
}

fn judge(side: Side, table: Vec<(&str, Vec<u8>, Fate)>) {
    for (what, said, expected) in table {
        assert_eq!(fate(side, &said), expected, "{side:?}: {what}");
    }
}

fn with(fields: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    [&CONNECT[..], fields].concat()
}

#[test]
fn frames_of_rfc_9113_section_4_to_5() {
    let long = vec![0; (1 << 20) + 1];
    let table = |stream: u32| {
        vec![
            ("4.1 unknown kinds are ignored", wire(0xfa, 0xff, stream, b"whatever"), Fine),
            ("4.1 unknown flags are ignored", wire(PING, 0xf0, 0, &[0; 8]), Fine),
            ("4.2 a frame beyond our size", wire(DATA, 0, 1, &long), Ends(Reason::FRAME_SIZE_ERROR)),
            ("4.3 a block that is not HPACK", wire(HEADERS, END_HEADERS, 3, &[0x80]), {
                Ends(Reason::COMPRESSION_ERROR)
            }),
            ("5.1 DATA on an idle stream", wire(DATA, 0, 9, b"x"), Ends(Reason::PROTOCOL_ERROR)),
            (
                "5.1 RST_STREAM on an idle stream",
                wire(RST_STREAM, 0, 9, &[0; 4]),
                Ends(Reason::PROTOCOL_ERROR),
            ),
            ("5.1 WINDOW_UPDATE on an idle stream", wire(WINDOW_UPDATE, 0, 9, &[0, 0, 0, 1]), {
                Ends(Reason::PROTOCOL_ERROR)
            }),
            ("5.1 PRIORITY on an idle stream", wire(PRIORITY, 0, 9, &[0; 5]), Fine),
            (
                "5.1 DATA after END_STREAM",
                [wire(DATA, END_STREAM, 1, b""), wire(DATA, 0, 1, b"x")].concat(),
                { Ends(Reason::STREAM_CLOSED) },
            ),
            (
                "5.1 HEADERS after END_STREAM",
                { [wire(DATA, END_STREAM, 1, b""), asks(1, &[])].concat() },
                Ends(Reason::STREAM_CLOSED),
            ),
            (
                "5.1 DATA after RST_STREAM",
                [wire(RST_STREAM, 0, 1, &[0; 4]), wire(DATA, 0, 1, b"x")].concat(),
                Fine,
            ),
            ("5.1.1 a server's number", asks(2, &CONNECT), Ends(Reason::PROTOCOL_ERROR)),
        ]
    };
    judge(Side::Server, table(1));
    judge(Side::Client, table(1));
}

#[test]
fn frames_of_rfc_9113_section_6() {
    let padded = |payload: &[u8]| wire(DATA, PADDED, 1, payload);
    let both = || {
        vec![
            ("6.1 DATA on stream 0", wire(DATA, 0, 0, b"x"), Ends(Reason::PROTOCOL_ERROR)),
            ("6.1 padding", padded(&[3, b'x', 0, 0, 0]), Fine),
            ("6.1 nothing but padding", padded(&[3, 0, 0, 0]), Fine),
            ("6.1 more padding than frame", padded(&[4, 0, 0, 0]), Ends(Reason::PROTOCOL_ERROR)),
            ("6.1 padded, and not even a length", padded(&[]), Ends(Reason::FRAME_SIZE_ERROR)),
            ("6.2 HEADERS on stream 0", asks(0, &CONNECT), Ends(Reason::PROTOCOL_ERROR)),
            ("6.2 more padding than frame", wire(HEADERS, END_HEADERS | PADDED, 1, &[9, 0]), {
                Ends(Reason::PROTOCOL_ERROR)
            }),
            ("6.2 a priority that is cut off", wire(HEADERS, END_HEADERS | WITH_PRIORITY, 1, &[0; 4]), {
                Ends(Reason::FRAME_SIZE_ERROR)
            }),
            ("6.3 PRIORITY on stream 0", wire(PRIORITY, 0, 0, &[0; 5]), Ends(Reason::PROTOCOL_ERROR)),
            ("6.3 PRIORITY of a wrong length", wire(PRIORITY, 0, 1, &[0; 4]), Ends(Reason::FRAME_SIZE_ERROR)),
            ("6.4 RST_STREAM on stream 0", wire(RST_STREAM, 0, 0, &[0; 4]), Ends(Reason::PROTOCOL_ERROR)),
            (
                "6.4 RST_STREAM of a wrong length",
                wire(RST_STREAM, 0, 1, &[0; 3]),
                Ends(Reason::FRAME_SIZE_ERROR),
            ),
            ("6.5 SETTINGS on a stream", wire(SETTINGS, 0, 1, &[]), Ends(Reason::PROTOCOL_ERROR)),
            ("6.5 SETTINGS of a wrong length", wire(SETTINGS, 0, 0, &[0; 5]), Ends(Reason::FRAME_SIZE_ERROR)),
            (
                "6.5 an ACK that says something",
                wire(SETTINGS, ACK, 0, &[0; 6]),
                Ends(Reason::FRAME_SIZE_ERROR),
            ),
            ("6.5.2 ENABLE_PUSH neither 0 nor 1", setting(ENABLE_PUSH, 2), Ends(Reason::PROTOCOL_ERROR)),
            ("6.5.2 a window beyond the largest", setting(INITIAL_WINDOW_SIZE, 1 << 31), {
                Ends(Reason::FLOW_CONTROL_ERROR)
            }),
            (
                "6.5.2 a frame size below the least",
                setting(MAX_FRAME_SIZE, 16_383),
                Ends(Reason::PROTOCOL_ERROR),
            ),
            (
                "6.5.2 a frame size above the most",
                setting(MAX_FRAME_SIZE, 1 << 24),
                Ends(Reason::PROTOCOL_ERROR),
            ),
            ("6.5.2 an unknown setting", setting(0xfafa, 7), Fine),
            ("6.5.2 no table", setting(HEADER_TABLE_SIZE, 0), Fine),
            (
                "6.6 PUSH_PROMISE",
                wire(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]),
                Ends(Reason::PROTOCOL_ERROR),
            ),
            ("6.7 PING on a stream", wire(PING, 0, 1, &[0; 8]), Ends(Reason::PROTOCOL_ERROR)),
            ("6.7 PING of a wrong length", wire(PING, 0, 0, &[0; 7]), Ends(Reason::FRAME_SIZE_ERROR)),
            ("6.7 an answer that nobody asked for", wire(PING, ACK, 0, &[0; 8]), Fine),
            ("6.8 GOAWAY on a stream", wire(GOAWAY, 0, 1, &[0; 8]), Ends(Reason::PROTOCOL_ERROR)),
            ("6.8 GOAWAY that is cut off", wire(GOAWAY, 0, 0, &[0; 7]), Ends(Reason::FRAME_SIZE_ERROR)),
            ("6.9 WINDOW_UPDATE of a wrong length", wire(WINDOW_UPDATE, 0, 0, &[0; 5]), {
                Ends(Reason::FRAME_SIZE_ERROR)
            }),
            ("6.9 the connection's window grows by nothing", wire(WINDOW_UPDATE, 0, 0, &[0; 4]), {
                Ends(Reason::PROTOCOL_ERROR)
            }),
            (
                "6.9 a stream's window grows by nothing, twice",
                wire(WINDOW_UPDATE, 0, 1, &[0; 4]).repeat(2),
                { Resets(1, Reason::PROTOCOL_ERROR) },
            ),
            ("6.9.1 the connection's window too large", wire(WINDOW_UPDATE, 0, 0, &[0x7f, 255, 255, 255]), {
                Ends(Reason::FLOW_CONTROL_ERROR)
            }),
            ("6.9.1 a stream's window too large", wire(WINDOW_UPDATE, 0, 1, &[0x7f, 255, 255, 255]), {
                Resets(1, Reason::FLOW_CONTROL_ERROR)
            }),
            (
                "6.9.2 a stream's window too large by a setting",
                {
                    [
                        wire(WINDOW_UPDATE, 0, 1, &[0x7f, 0, 0, 0]),
                        setting(INITIAL_WINDOW_SIZE, i32::MAX as u32),
                    ]
                    .concat()
                },
                Ends(Reason::FLOW_CONTROL_ERROR),
            ),
            (
                "6.10 CONTINUATION of nothing",
                wire(CONTINUATION, END_HEADERS, 1, &[]),
                Ends(Reason::PROTOCOL_ERROR),
            ),
            (
                "6.10 a block that another frame interrupts",
                { [wire(HEADERS, 0, 1, &[]), wire(PING, 0, 0, &[0; 8])].concat() },
                Ends(Reason::PROTOCOL_ERROR),
            ),
            (
                "6.10 a block that goes on elsewhere",
                { [wire(HEADERS, 0, 1, &[]), wire(CONTINUATION, END_HEADERS, 3, b"x")].concat() },
                Ends(Reason::PROTOCOL_ERROR),
            ),
        ]
    };
    judge(Side::Server, both());
    judge(Side::Client, both());
    judge(
        Side::Client,
        vec![("6.5.2 a server that pushes", setting(ENABLE_PUSH, 1), Ends(Reason::PROTOCOL_ERROR))],
    );
}

#[test]
fn requests_of_rfc_9113_section_8() {
    let malformed = |fields: &[(&str, &str)]| (asks(3, fields), Resets(3, Reason::PROTOCOL_ERROR));
    let get = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "a:1")];
    let rows = [
        ("8.5 CONNECT", (asks(3, &CONNECT), Fine)),
        ("8.5 with what nobody knows", (asks(3, &with(&[("x-other", "y"), ("te", "trailers")])), Fine)),
        ("8.5 without a destination, which is answered with words", (asks(3, &CONNECT[..1]), Fine)),
        ("8.5 CONNECT with a path", malformed(&with(&[(":path", "/")]))),
        ("8.5 CONNECT with a scheme", malformed(&with(&[(":scheme", "https")]))),
        ("RFC 8441: extended CONNECT is not offered", malformed(&with(&[(":protocol", "websocket")]))),
        ("8.3.1 GET, which is answered with words", (asks(3, &get), Fine)),
        ("8.3.1 GET without a path", malformed(&get[..2])),
        ("8.3 no method", malformed(&CONNECT[1..])),
        ("8.3 a field twice", malformed(&with(&[(":authority", "b:1")]))),
        ("8.3 an unknown pseudo-header field", malformed(&with(&[(":what", "x")]))),
        ("8.3 one of an answer", malformed(&with(&[(":status", "200")]))),
        ("8.3 one after the others", malformed(&[("a", "b"), CONNECT[0], CONNECT[1]])),
        ("8.2.1 an upper-case name", malformed(&with(&[("Baggage", "a")]))),
        ("8.2.1 an empty name", malformed(&with(&[("", "a")]))),
        ("8.2.1 a name with a space", malformed(&with(&[("a b", "a")]))),
        ("8.2.1 a value with a line's end", malformed(&with(&[("a", "b\r\nc")]))),
        ("8.2.2 connection", malformed(&with(&[("connection", "close")]))),
        ("8.2.2 transfer-encoding", malformed(&with(&[("transfer-encoding", "chunked")]))),
        ("8.2.2 te", malformed(&with(&[("te", "gzip")]))),
        (
            "8.1 trailers end a stream",
            (wire(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[("a", "b")])), Fine),
        ),
        ("8.1 trailers that do not", (asks(1, &[("a", "b")]), Resets(1, Reason::PROTOCOL_ERROR))),
        ("8.1 trailers with pseudo-header fields", {
            let block = block(&CONNECT);
            (wire(HEADERS, END_HEADERS | END_STREAM, 1, &block), Resets(1, Reason::PROTOCOL_ERROR))
        }),
        ("6.2 padding and priority", {
            let payload = [&[2, 0, 0, 0, 0, 9][..], &block(&CONNECT), &[0, 0]].concat();
            (wire(HEADERS, END_HEADERS | PADDED | WITH_PRIORITY, 3, &payload), Fine)
        }),
        ("6.10 in pieces", {
            let block = block(&CONNECT);
            let (a, b) = block.split_at(7);
            ([wire(HEADERS, 0, 3, a), wire(CONTINUATION, END_HEADERS, 3, b)].concat(), Fine)
        }),
    ];
    judge(Side::Server, rows.map(|(what, (said, fate))| (what, said, fate)).to_vec());
}

#[test]
fn answers_of_rfc_9113_section_8() {
    let answers = |end: u8, fields: &[(&str, &str)]| wire(HEADERS, END_HEADERS | end, 3, &block(fields));
    let ok = [(":status", "200")];
    for (what, said, expected) in [
        ("8.5 it is connected", answers(0, &ok), Fine),
        (
            "8.1 provisional answers before",
            [answers(0, &[(":status", "103")]), answers(0, &ok)].concat(),
            Fine,
        ),
        ("8.1 nothing but a provisional answer", answers(END_STREAM, &[(":status", "103")]), {
            Resets(3, Reason::PROTOCOL_ERROR)
        }),
        ("8.3.2 no status", answers(0, &[("a", "b")]), Resets(3, Reason::PROTOCOL_ERROR)),
        ("8.3.2 no number", answers(0, &[(":status", "ok")]), Resets(3, Reason::PROTOCOL_ERROR)),
        ("8.3.2 a request", answers(0, &CONNECT), Resets(3, Reason::PROTOCOL_ERROR)),
        ("8.1 bytes before the answer", wire(DATA, 0, 3, b"x"), Resets(3, Reason::PROTOCOL_ERROR)),
    ] {
        let (mut client, mut server) = pair();
        connected(&mut client, &mut server);
        client.open(&head(), 8).unwrap();
        client.output().clear();
        client.receive(&said, &mut Vec::new()).unwrap();
        let queued = frames(client.output());
        let reset = queued.iter().find(|(header, _)| header.kind == RST_STREAM);
        let fate = reset.map(|(header, payload)| Resets(header.stream, Reason(frame::number(payload))));
        assert_eq!(fate.unwrap_or(Fine), expected, "{what}");
    }
}

#[test]
fn the_first_words_are_those_of_rfc_9113_section_3_4() {
    for (what, said) in [
        ("HTTP/1.1", &b"GET / HTTP/1.1\r\n\r\n"[..]),
        ("no SETTINGS", &[PREFACE, &wire(PING, 0, 0, &[0; 8])[..]].concat()),
    ] {
        let mut server = Connection::server(config());
        let fault = server.receive(said, &mut Vec::new()).unwrap_err();
        assert_eq!(fault.reason, Reason::PROTOCOL_ERROR, "{what}");
        let queued = server.output().len();
        assert_eq!(server.receive(said, &mut Vec::new()), Err(fault), "and it stays so");
        assert_eq!(server.output().len(), queued, "which is said once");
    }
}

#[test]
fn an_answer_to_ping_and_settings_comes_once_each() {
    let (_, mut server) = pair();
    server.receive(&[wire(PING, 0, 0, b"12345678"), setting(0xfafa, 1)].concat(), &mut Vec::new()).unwrap();
    let queued = frames(server.output());
    let [(ping, payload), (settings, none)] = &queued[..] else { panic!("{queued:?}") };
    assert_eq!((ping.kind, ping.flags, &payload[..]), (PING, ACK, &b"12345678"[..]));
    assert_eq!((settings.kind, settings.flags, none.len()), (SETTINGS, ACK, 0));
}

#[test]
fn a_window_changed_by_settings_moves_open_streams_even_below_nothing() {
    // RFC 9113 §6.9.2
    let (mut client, mut server) = pair();
    let (near, _) = connected(&mut client, &mut server);
    client.data(near, 16_384, false);
    assert_eq!(client.sendable(near), 100_000 - 16_384);
    let mut events = Vec::new();
    client.receive(&setting(INITIAL_WINDOW_SIZE, 10_000), &mut events).unwrap();
    assert!(matches!(events[..], [Event::Settings]), "less is no news for a stream: {events:?}");
    assert_eq!(client.sendable(near), 0);
    let mut grown = Vec::new();
    frame::put_window(&mut grown, 1, 7_000);
    client.receive(&grown, &mut events).unwrap();
    assert_eq!(client.sendable(near), 10_000 + 7_000 - 16_384);
    events.clear();
    client.receive(&setting(INITIAL_WINDOW_SIZE, 11_000), &mut events).unwrap();
    assert!(matches!(events[..], [Event::StreamWindow { user: 7, .. }, Event::Settings]), "{events:?}");
    assert_eq!(client.sendable(near), 11_000 + 7_000 - 16_384);
}

#[test]
fn padding_is_paid_for_and_given_back() {
    // RFC 9113 §6.9.1: three times the stream's window, nearly all of it padding.
    let (mut client, mut server) = pair();
    let (_, far) = connected(&mut client, &mut server);
    let padded = wire(DATA, PADDED, 1, &[&[250, b'x'][..], &[0; 250]].concat());
    let mut given = 0;
    for _ in 0..1_200 {
        server.receive(&padded, &mut Vec::new()).unwrap();
        server.consumed(far, 1);
        let windows = frames(&std::mem::take(server.output()));
        let of_stream = windows.iter().filter(|(header, _)| header.stream == 1);
        given += of_stream.map(|(_, payload)| frame::number(payload)).sum::<u32>();
    }
    assert!((250_000..=302_400).contains(&given), "{given}");
}
