//! Two connections back to back, and the words of foreign peers.

mod conformance;
mod floods;
mod foreign;
mod random;

use mesh::Authority;

use super::*;

fn config() -> Config {
    Config { stream_window: 100_000, connection_window: 1_000_000, max_frame_size: 1 << 20, max_streams: 100 }
}

fn head() -> Head {
    Head::to(Authority::Address("10.0.0.2:8080".parse().unwrap()))
}

/// Hands everything that `from` has to say to `to`.
fn tell(from: &mut Connection, to: &mut Connection) -> Vec<Event> {
    let said = std::mem::take(from.output());
    let mut events = Vec::new();
    to.receive(&said, &mut events).unwrap();
    events
}

fn settle(client: &mut Connection, server: &mut Connection) {
    for _ in 0..3 {
        tell(client, server);
        tell(server, client);
    }
}

fn pair() -> (Connection, Connection) {
    let (mut client, mut server) = (Connection::client(config()), Connection::server(config()));
    settle(&mut client, &mut server);
    assert!(client.output().is_empty() && server.output().is_empty());
    (client, server)
}

/// A stream that both know: by user 7 and by user 9.
fn connected(client: &mut Connection, server: &mut Connection) -> (Key, Key) {
    let near = client.open(&head(), 7).unwrap();
    let events = tell(client, server);
    let [Event::Request { stream: far, head: Ok(got) }] = &events[..] else { panic!("{events:?}") };
    assert_eq!(got, &head());
    server.set_user(*far, 9);
    server.accept(*far, None);
    let events = tell(server, client);
    assert!(matches!(&events[..], [Event::Response { user: 7, status: StatusCode::OK, .. }]), "{events:?}");
    (near, *far)
}

fn send(from: &mut Connection, stream: Key, bytes: &[u8], end: bool) -> Vec<u8> {
    let mut said = std::mem::take(from.output());
    said.extend_from_slice(&from.data(stream, bytes.len(), end));
    said.extend_from_slice(bytes);
    said
}

#[test]
fn the_peers_settings_are_known_after_the_first_words() {
    let (client, server) = pair();
    assert_eq!(client.max_streams(), 100);
    assert_eq!(client.peer_first_window, 100_000);
    assert_eq!((client.send_window, server.send_window), (1_000_000, 1_000_000));
}

#[test]
fn bytes_pass_both_ways_in_any_cut() {
    let (mut client, mut server) = pair();
    let (near, far) = connected(&mut client, &mut server);
    let bytes: Vec<u8> = (0..500_u32).map(|n| n as u8).collect();
    for cut in 1..bytes.len() + 9 {
        for up in [true, false] {
            let (from, to, stream, user) = match up {
                true => (&mut client, &mut server, near, 9),
                false => (&mut server, &mut client, far, 7),
            };
            let said = send(from, stream, &bytes, false);
            let mut got = Vec::new();
            for piece in said.chunks(cut) {
                let mut events = Vec::new();
                to.receive(piece, &mut events).unwrap();
                for event in events {
                    let Event::Data { stream, user: of, range } = event else { continue };
                    assert_eq!(of, user);
                    got.extend_from_slice(&piece[range.start as usize..range.end as usize]);
                    to.consumed(stream, range.len());
                }
            }
            assert_eq!(got, bytes);
        }
        tell(&mut client, &mut server);
        tell(&mut server, &mut client);
    }
}

#[test]
fn each_direction_ends_on_its_own_and_then_the_stream_is_closed() {
    let (mut client, mut server) = pair();
    let (near, far) = connected(&mut client, &mut server);
    let mut events = Vec::new();
    server.receive(&send(&mut client, near, b"", true), &mut events).unwrap();
    assert!(matches!(&events[..], [Event::Ended { user: 9, .. }]), "{events:?}");
    assert!(server.sendable(far) > 0, "the other direction goes on");
    assert_eq!((client.streams.open, server.streams.open), (1, 1));
    events.clear();
    client.receive(&send(&mut server, far, b"bye", true), &mut events).unwrap();
    assert!(matches!(&events[..], [Event::Data { .. }, Event::Ended { user: 7, .. }]), "{events:?}");
    client.release(near);
    server.release(far);
    assert!(client.output().is_empty() && server.output().is_empty(), "nothing is reset that has ended");
    assert_eq!((client.streams.len(), server.streams.len()), (0, 0));
}

#[test]
fn a_stream_that_is_let_go_too_early_is_reset() {
    let (mut client, mut server) = pair();
    let (near, _) = connected(&mut client, &mut server);
    client.release(near);
    let events = tell(&mut client, &mut server);
    assert!(matches!(&events[..], [Event::Reset { user: 9, reason: Reason::CANCEL, .. }]), "{events:?}");
}

#[test]
fn windows_are_kept_and_given_back() {
    let (mut client, mut server) = pair();
    let (near, far) = connected(&mut client, &mut server);
    let mut sent = 0;
    while client.sendable(near) > 0 {
        let length = client.sendable(near).min(16_384);
        server.receive(&send(&mut client, near, &vec![0; length], false), &mut Vec::new()).unwrap();
        sent += length;
    }
    assert_eq!(sent, 100_000, "the stream's window");
    server.consumed(far, 49_999);
    assert!(server.output().is_empty(), "not in small steps");
    server.consumed(far, 1);
    let events = tell(&mut server, &mut client);
    assert!(matches!(&events[..], [Event::StreamWindow { user: 7, .. }]), "{events:?}");
    assert_eq!(client.sendable(near), 50_000);
}

#[test]
fn a_peer_that_sends_more_than_its_window_is_stopped() {
    let (mut client, mut server) = pair();
    let (near, _) = connected(&mut client, &mut server);
    let mut fault = None;
    for _ in 0..7 {
        let said = send(&mut client, near, &[0; 16_384], false);
        fault = server.receive(&said, &mut Vec::new()).err();
    }
    assert_eq!(fault.unwrap().reason, Reason::FLOW_CONTROL_ERROR);
}

#[test]
fn a_refusal_carries_its_status() {
    let (mut client, mut server) = pair();
    client.open(&head(), 7).unwrap();
    let Event::Request { stream, .. } = tell(&mut client, &mut server).remove(0) else { panic!() };
    server.refuse(stream, StatusCode::FORBIDDEN);
    let events = tell(&mut server, &mut client);
    let refused = matches!(
        &events[..],
        [
            Event::Response { status: StatusCode::FORBIDDEN, .. },
            Event::Ended { .. },
            Event::Reset { reason: Reason::NO_ERROR, .. }
        ]
    );
    assert!(refused, "{events:?}");
}

#[test]
fn no_more_streams_are_opened_than_the_peer_allows() {
    let (mut client, mut server) = pair();
    for user in 0..100 {
        client.open(&head(), user).unwrap();
    }
    assert!(matches!(client.open(&head(), 100), Err(OpenError::Full)));
    assert_eq!(tell(&mut client, &mut server).len(), 100);
    // One who does not care is refused each one.
    client.peer_max_streams = 1000;
    client.open(&head(), 101).unwrap();
    tell(&mut client, &mut server);
    let events = tell(&mut server, &mut client);
    assert!(
        matches!(&events[..], [Event::Reset { user: 101, reason: Reason::REFUSED_STREAM, .. }]),
        "{events:?}"
    );
}

#[test]
fn a_server_that_leaves_serves_what_was_under_way() {
    let (mut client, mut server) = pair();
    server.graceful_shutdown();
    let late = client.open(&head(), 7).unwrap();
    let said = std::mem::take(client.output());
    assert!(matches!(&tell(&mut server, &mut client)[..], [Event::GoAway { .. }]));
    assert!(matches!(client.open(&head(), 8), Err(OpenError::Closing)));
    let mut events = Vec::new();
    server.receive(&said, &mut events).unwrap();
    let [Event::Request { stream, .. }] = &events[..] else { panic!("{events:?}") };
    tell(&mut client, &mut server);
    assert!(matches!(&tell(&mut server, &mut client)[..], [Event::GoAway { last: 1, .. }]));
    assert!(!server.is_done());
    server.accept(*stream, None);
    assert_eq!(tell(&mut server, &mut client).len(), 1, "its answer arrives");
    client.release(late);
    tell(&mut client, &mut server);
    server.release(*stream);
    assert!(server.is_done() && client.is_done());
}

#[test]
fn floods_end_the_connection_and_say_so() {
    let frame = |kind, flags, stream, payload: &[u8]| {
        let mut out = Vec::new();
        frame::put(&mut out, kind, flags, stream, payload);
        out
    };
    let settings = frame(frame::SETTINGS, 0, 0, &[]);
    let ping = frame(PING, 0, 0, &[0; 8]);
    let priority = frame(frame::PRIORITY, 0, 1, &[0; 5]);
    let unknown = frame(0xfa, 0, 0, &[]);
    for (what, flood) in
        [("settings", settings), ("ping", ping), ("priority", priority), ("unknown", unknown)]
    {
        let (_, mut server) = pair();
        let mut fault = None;
        for _ in 0..20_000 {
            fault = server.receive(&flood, &mut Vec::new()).err();
            if fault.is_some() {
                break;
            }
        }
        assert_eq!(fault.map(|fault| fault.reason), Some(Reason::ENHANCE_YOUR_CALM), "{what}");
    }
    // A header block without end.
    let (_, mut server) = pair();
    server.receive(&frame(HEADERS, 0, 1, &[0; 10]), &mut Vec::new()).unwrap();
    let mut fault = None;
    for _ in 0..100 {
        fault = fault.or(server.receive(&frame(CONTINUATION, 0, 1, &[0; 1000]), &mut Vec::new()).err());
    }
    assert_eq!(fault.unwrap().reason, Reason::ENHANCE_YOUR_CALM);
}

#[test]
fn streams_that_are_given_up_at_once_are_no_attack_until_there_are_too_many() {
    for (count, allowed) in [(400, true), (5000, false)] {
        let (mut client, mut server) = pair();
        for _ in 0..count {
            let stream = client.open(&head(), 7).unwrap();
            client.release(stream);
        }
        let said = std::mem::take(client.output());
        let result = server.receive(&said, &mut Vec::new());
        assert_eq!(result.is_ok(), allowed, "{count}: {result:?}");
    }
}

proptest::proptest! {
    #[test]
    fn no_words_make_it_panic(words: Vec<u8>, cut in 1..64_usize) {
        let (mut client, mut server) = pair();
        connected(&mut client, &mut server);
        for connection in [&mut client, &mut server] {
            let mut events = Vec::new();
            for piece in words.chunks(cut) {
                if connection.receive(piece, &mut events).is_err() {
                    break;
                }
            }
        }
    }

    #[test]
    fn no_frames_make_it_panic(frames: Vec<(u8, u8, u32, Vec<u8>)>) {
        let (mut client, mut server) = pair();
        connected(&mut client, &mut server);
        for connection in [&mut client, &mut server] {
            for (kind, flags, stream, payload) in &frames {
                let mut said = Vec::new();
                frame::put(&mut said, kind % 11, *flags, stream % 5, payload);
                if connection.receive(&said, &mut Vec::new()).is_err() {
                    break;
                }
            }
        }
    }
}
