//! With another implementation of HTTP/2 at the other end.

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;

use super::*;

const STREAMS: usize = 60;
const LENGTH: usize = 400_000;
const BOUND: Duration = Duration::from_secs(60);

fn pattern(stream: usize) -> Vec<u8> {
    (0..LENGTH).map(|at| (stream * 31 + at * 7 + at / 251) as u8).collect()
}

/// One stream of ours: what it has still to send, and what it got.
#[derive(Default)]
struct Carried {
    key: Option<Key>,
    send: Vec<u8>,
    sent: usize,
    /// To be ended when all is sent.
    end: bool,
    ended: bool,
    got: Vec<u8>,
    peer_ended: bool,
    reset: Option<Reason>,
    status: Option<StatusCode>,
}

/// Carries one end until `done`; a server echoes.
async fn run(mut end: Connection, io: DuplexStream, opens: usize, server: bool) -> HashMap<u64, Carried> {
    let (mut read, mut write) = tokio::io::split(io);
    let (out, mut queue) = mpsc::unbounded_channel::<Vec<u8>>();
    let writer = tokio::spawn(async move {
        while let Some(bytes) = queue.recv().await {
            if write.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = write.shutdown().await;
    });
    let mut streams: HashMap<u64, Carried> = HashMap::new();
    // Before the peer has said how many streams it takes, some would be refused.
    let mut settled = false;
    let mut opened = 0;
    let mut next = 0;
    let mut buffer = vec![0; 17_000];
    loop {
        let mut said = std::mem::take(end.output());
        while settled && opened < opens {
            let Ok(key) = end.open(&head(), opened as u64) else { break };
            let carried = Carried { key: Some(key), send: pattern(opened), end: true, ..Carried::default() };
            streams.insert(opened as u64, carried);
            opened += 1;
        }
        said.append(end.output());
        for carried in streams.values_mut() {
            let Some(key) = carried.key else { continue };
            if !server && carried.status != Some(StatusCode::OK) {
                continue;
            }
            loop {
                let length = end.sendable(key).min(16_384).min(carried.send.len() - carried.sent);
                let all = carried.sent + length == carried.send.len();
                let last = all && carried.end && !carried.ended;
                if length == 0 && !last {
                    break;
                }
                said.extend(end.data(key, length, last));
                said.extend_from_slice(&carried.send[carried.sent..carried.sent + length]);
                carried.sent += length;
                carried.ended |= last;
            }
        }
        for carried in streams.values_mut() {
            let over = carried.reset.is_some() || (carried.ended && carried.peer_ended);
            if over && let Some(key) = carried.key.take() {
                end.release(key);
            }
        }
        said.append(end.output());
        let _ = out.send(said);
        let all = !server && opened == opens && streams.values().all(|carried| carried.key.is_none());
        if all {
            break;
        }
        let length = read.read(&mut buffer).await.unwrap_or(0);
        if length == 0 {
            break;
        }
        let mut events = Vec::new();
        end.receive(&buffer[..length], &mut events).unwrap();
        for event in events {
            match event {
                Event::Request { stream, head } => {
                    end.set_user(stream, next);
                    match head {
                        Ok(_) => {
                            end.accept(stream, None);
                            streams.insert(next, Carried { key: Some(stream), ..Carried::default() });
                        }
                        Err(_) => {
                            end.refuse(stream, StatusCode::METHOD_NOT_ALLOWED);
                            end.release(stream);
                        }
                    }
                    next += 1;
                }
                Event::Data { stream, range, .. } => {
                    end.consumed(stream, range.len());
                    let Some(carried) = end.user(stream).and_then(|user| streams.get_mut(&user)) else {
                        continue;
                    };
                    let bytes = &buffer[range.start as usize..range.end as usize];
                    match server {
                        true => carried.send.extend_from_slice(bytes),
                        false => carried.got.extend_from_slice(bytes),
                    }
                }
                Event::Ended { stream, .. } => {
                    if let Some(carried) = end.user(stream).and_then(|user| streams.get_mut(&user)) {
                        carried.peer_ended = true;
                        carried.end = true;
                    }
                }
                Event::Reset { stream, reason, .. } => {
                    if let Some(carried) = end.user(stream).and_then(|user| streams.get_mut(&user)) {
                        carried.reset = Some(reason);
                    }
                }
                Event::Settings => settled = true,
                Event::Response { user, status, .. } => {
                    if let Some(carried) = streams.get_mut(&user) {
                        carried.status = Some(status);
                    }
                }
                _ => {}
            }
        }
    }
    drop(out);
    let _ = writer.await;
    streams
}

async fn echo(mut from: ::h2::RecvStream, mut to: ::h2::SendStream<Bytes>) {
    while let Some(Ok(bytes)) = from.data().await {
        let _ = from.flow_control().release_capacity(bytes.len());
        put(&mut to, bytes).await;
    }
    let _ = to.send_data(Bytes::new(), true);
}

async fn put(to: &mut ::h2::SendStream<Bytes>, mut bytes: Bytes) {
    while !bytes.is_empty() {
        to.reserve_capacity(bytes.len());
        let Some(Ok(room)) = std::future::poll_fn(|cx| to.poll_capacity(cx)).await else { return };
        let piece = bytes.split_to(room.min(bytes.len()));
        if to.send_data(piece, false).is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn a_foreign_server_echoes_many_streams_of_ours() {
    for window in [65_535, 1 << 20] {
        let (near, far) = duplex(200_000);
        let server = tokio::spawn(async move {
            let mut builder = ::h2::server::Builder::new();
            builder.initial_window_size(window).initial_connection_window_size(window * 3);
            builder.max_concurrent_streams(20);
            let mut connection = builder.handshake::<_, Bytes>(far).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                assert_eq!(request.method(), http::Method::CONNECT);
                assert_eq!(request.uri().authority().unwrap().as_str(), "10.0.0.2:8080");
                let to = respond.send_response(http::Response::new(()), false).unwrap();
                tokio::spawn(echo(request.into_body(), to));
            }
        });
        let client = run(Connection::client(config()), near, STREAMS, false);
        let streams = tokio::time::timeout(BOUND, client).await.expect("in time");
        assert_eq!(streams.len(), STREAMS);
        for (user, carried) in streams {
            assert_eq!((carried.status, carried.reset), (Some(StatusCode::OK), None));
            assert!(carried.got == pattern(user as usize), "stream {user}: {} bytes", carried.got.len());
        }
        server.abort();
    }
}

#[tokio::test]
async fn a_foreign_client_gets_back_what_it_sends_on_many_streams() {
    for window in [65_535, 1 << 20] {
        let (near, far) = duplex(200_000);
        let server = tokio::spawn(run(Connection::server(config()), far, 0, true));
        let client = async {
            let mut builder = ::h2::client::Builder::new();
            builder.initial_window_size(window).initial_connection_window_size(window * 3);
            let (send, connection) = builder.handshake::<_, Bytes>(near).await.unwrap();
            let connection = tokio::spawn(connection);
            let tasks: Vec<_> = (0..STREAMS)
                .map(|stream| {
                    let send = send.clone();
                    tokio::spawn(async move {
                        let request = http::Request::connect("10.0.0.2:8080").body(()).unwrap();
                        let (answer, mut to) =
                            send.ready().await.unwrap().send_request(request, false).unwrap();
                        // Before the answer, as some do.
                        let sending = tokio::spawn(async move {
                            put(&mut to, Bytes::from(pattern(stream))).await;
                            to.send_data(Bytes::new(), true).unwrap();
                        });
                        let answer = answer.await.unwrap();
                        assert_eq!(answer.status(), StatusCode::OK);
                        let mut from = answer.into_body();
                        let mut got = Vec::new();
                        while let Some(bytes) = from.data().await {
                            let bytes = bytes.unwrap();
                            let _ = from.flow_control().release_capacity(bytes.len());
                            got.extend_from_slice(&bytes);
                        }
                        sending.await.unwrap();
                        assert!(got == pattern(stream), "stream {stream}: {} bytes", got.len());
                    })
                })
                .collect();
            for task in tasks {
                task.await.unwrap();
            }
            // And what is no CONNECT is answered.
            let request = http::Request::get("https://10.0.0.2/").body(()).unwrap();
            let (answer, _) = send.clone().ready().await.unwrap().send_request(request, true).unwrap();
            assert_eq!(answer.await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
            connection.abort();
        };
        tokio::time::timeout(BOUND, client).await.expect("in time");
        let streams = tokio::time::timeout(BOUND, server).await.expect("ends").unwrap();
        assert_eq!(streams.len(), STREAMS);
    }
}
