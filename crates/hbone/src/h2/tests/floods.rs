//! What a peer may not do for ever, and what one who behaves never notices.

use frame::{GOAWAY, RST_STREAM, SETTINGS, WINDOW_UPDATE};

use super::conformance::{block, frames, wire};
use super::*;

fn until_it_ends(end: &mut Connection, said: &[u8], times: usize, drained: bool) -> Option<Fatal> {
    for _ in 0..times {
        if let Err(fatal) = end.receive(said, &mut Vec::new()) {
            return Some(fatal);
        }
        if drained {
            end.output().clear();
        }
    }
    None
}

const CALM: Option<Reason> = Some(Reason::ENHANCE_YOUR_CALM);

#[test]
fn frames_without_use_end_the_connection_even_if_the_answers_are_read() {
    let padding = wire(DATA, frame::PADDED, 1, &[1, 0]);
    for (what, said) in [
        ("pings", wire(PING, 0, 0, &[0; 8])),
        ("settings", wire(SETTINGS, 0, 0, &[])),
        ("empty data", wire(DATA, 0, 1, &[])),
        ("data of padding", padding),
        ("farewells", wire(GOAWAY, 0, 0, &[0; 8])),
        ("resets of what is reset", wire(RST_STREAM, 0, 1, &[0; 4])),
    ] {
        let (mut client, mut server) = pair();
        connected(&mut client, &mut server);
        let fault = until_it_ends(&mut server, &said, 20_000, true);
        assert_eq!(fault.map(|fault| fault.reason), CALM, "{what}");
    }
}

#[test]
fn requests_that_are_given_up_at_once_end_the_connection_however_fast_they_are_let_go() {
    let request = block(&[(":method", "CONNECT"), (":authority", "10.0.0.2:80")]);
    for give_up in [true, false] {
        let (_, mut server) = pair();
        let mut fault = None;
        let mut asked = 0;
        for id in (1..20_000).step_by(2) {
            let mut said = wire(HEADERS, END_HEADERS, id, &request);
            if give_up {
                said.extend(wire(RST_STREAM, 0, id, &[0, 0, 0, 8]));
            }
            let mut events = Vec::new();
            fault = server.receive(&said, &mut events).err();
            if fault.is_some() {
                break;
            }
            asked += 1;
            for event in events {
                if let Event::Request { stream, .. } = event {
                    server.accept(stream, None);
                    server.release(stream);
                }
            }
            server.output().clear();
        }
        assert_eq!(fault.map(|fault| fault.reason), if give_up { CALM } else { None }, "after {asked}");
    }
}

#[test]
fn refusals_that_nobody_reads_do_not_pile_up() {
    let (_, mut server) = pair();
    let request = block(&[(":method", "CONNECT"), (":authority", "nowhere")]);
    let mut most = 0;
    let fault = (1..200_000).step_by(2).find_map(|id| {
        let mut events = Vec::new();
        let fault = server.receive(&wire(HEADERS, END_HEADERS, id, &request), &mut events).err();
        for event in events {
            if let Event::Request { stream, .. } = event {
                server.refuse(stream, StatusCode::BAD_REQUEST);
                server.release(stream);
            }
        }
        most = most.max(server.output().len());
        fault
    });
    assert_eq!(fault.map(|fault| fault.reason), CALM);
    assert!(most < 2 * BUDGET.output, "{most}");
}

#[test]
fn one_frame_of_settings_makes_each_stream_be_looked_at_once() {
    let (mut client, mut server) = pair();
    connected(&mut client, &mut server);
    let settings: Vec<(u16, u32)> = (0..64).map(|n| (INITIAL_WINDOW_SIZE, 200_000 + n)).collect();
    let mut said = Vec::new();
    frame::put_settings(&mut said, &settings);
    let mut events = Vec::new();
    server.receive(&said, &mut events).unwrap();
    assert!(matches!(&events[..], [Event::StreamWindow { .. }, Event::Settings]), "{events:?}");
    assert_eq!(server.peer_first_window, 200_063);
}

#[test]
fn a_bomb_of_fields_is_not_read_to_its_end() {
    let (_, mut server) = pair();
    // An entry of 4,000 bytes, named 30,000 times: 120 MB.
    let mut bomb = vec![0x40, 1, b'a'];
    bomb.extend([0x7f, 0x80 | ((3_900 - 127) & 0x7f) as u8, ((3_900 - 127) >> 7) as u8]);
    bomb.extend(vec![b'b'; 3_900]);
    bomb.extend(vec![0xbe; 30_000]);
    let fault = server.receive(&wire(HEADERS, END_HEADERS, 1, &bomb), &mut Vec::new()).unwrap_err();
    assert_eq!(fault.reason, Reason::COMPRESSION_ERROR);
}

#[test]
fn a_request_that_says_too_much_is_told_so() {
    let (_, mut server) = pair();
    let mut request = block(&[(":method", "CONNECT"), (":authority", "10.0.0.2:80")]);
    for _ in 0..430 {
        request.extend(block(&[("baggage", &"x".repeat(120))]));
    }
    let mut events = Vec::new();
    server.receive(&wire(HEADERS, END_HEADERS, 1, &request[..]), &mut events).unwrap();
    assert!(events.is_empty());
    let queued = frames(server.output());
    assert_eq!(queued.iter().map(|(header, _)| header.kind).collect::<Vec<_>>(), [HEADERS, RST_STREAM]);
}

#[test]
fn a_tunnel_that_only_measures_and_pings_for_days_is_no_flood() {
    let ping = wire(PING, 0, 0, &[0; 8]);
    let window = wire(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
    // Silent for days but for pings, and looked after meanwhile.
    let (_, mut server) = pair();
    for _ in 0..50_000 {
        server.forgive();
        assert_eq!(until_it_ends(&mut server, &ping, 1, true), None);
    }
    // A download: the client sends nothing but pings and windows.
    let (mut client, mut server) = pair();
    let (_, far) = connected(&mut client, &mut server);
    for _ in 0..50_000 {
        server.data(far, 1, false);
        assert_eq!(until_it_ends(&mut server, &[&ping[..], &window].concat(), 1, true), None);
    }
}

#[test]
fn a_reader_who_leaves_early_takes_no_window_from_others() {
    let (mut client, mut server) = pair();
    for _ in 0..50 {
        let (near, far) = connected(&mut client, &mut server);
        let said = send(&mut client, near, &[0; 16_384], false);
        server.receive(&said, &mut Vec::new()).unwrap();
        // Nobody has taken anything of it; telling so afterwards changes nothing.
        server.release(far);
        server.consumed(far, 16_384);
        tell(&mut server, &mut client);
        client.release(near);
        tell(&mut client, &mut server);
    }
    assert_eq!(server.recv_window + i64::from(server.owed), 1_000_000);
    assert!(client.send_window >= 500_000, "{}", client.send_window);
}

#[test]
fn the_first_bytes_may_come_before_our_window_is_known() {
    let small = Config { stream_window: 1_000, ..config() };
    let (mut client, mut server) = (Connection::client(config()), Connection::server(small));
    let near = client.open(&head(), 7).unwrap();
    let said = send(&mut client, near, &[0; 16_384], false);
    let mut events = Vec::new();
    server.receive(&said, &mut events).unwrap();
    assert!(matches!(events.last(), Some(Event::Data { .. })), "{events:?}");
}

#[test]
fn whoever_asks_and_sends_at_once_is_known_by_the_stream() {
    let (mut client, mut server) = pair();
    let near = client.open(&head(), 7).unwrap();
    let said = send(&mut client, near, b"early", true);
    let mut events = Vec::new();
    server.receive(&said, &mut events).unwrap();
    let [Event::Request { stream, .. }, Event::Data { stream: with, .. }, Event::Ended { stream: of, .. }] =
        events[..]
    else {
        panic!("{events:?}")
    };
    assert_eq!((with, of), (stream, stream));
    server.set_user(stream, 9);
    assert_eq!(server.user(with), Some(9));
}
