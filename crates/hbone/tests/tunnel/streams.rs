//! What happens inside a tunnel.

use std::sync::Arc;
use std::time::Duration;

use hbone::{Baggage, Head, OpenError, Request, Responder, Server, Settings, Tunnel};
use http::StatusCode;
use mesh::Authority;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;

use crate::pki::{self, identity};

/// A tunnel, and the requests that its server gets.
async fn tunnel(settings: Settings) -> (Tunnel, mpsc::Receiver<Request>, Arc<tokio::sync::Notify>) {
    let ca = pki::Authority::new();
    let (near, far) = tokio::io::duplex(1 << 20);
    let peer = "10.0.0.9:15008".parse().unwrap();
    let (requests, received) = mpsc::channel(512);
    let (a, b) = (ca.credential(&identity("a")), ca.credential(&identity("b")));
    let goaway = Arc::new(tokio::sync::Notify::new());
    let told = goaway.clone();
    let serving = settings.clone();
    tokio::spawn(async move {
        let mut server: Server<DuplexStream> = Server::handshake(far, peer, &b, &serving).await.unwrap();
        loop {
            tokio::select! {
                request = server.next() => match request {
                    Some(request) => requests.send(request).await.unwrap(),
                    None => return,
                },
                () = told.notified() => server.graceful_shutdown(),
            }
        }
    });
    let tunnel = Tunnel::handshake(near, peer, &a, &[identity("b")], &settings).await.unwrap();
    (tunnel, received, goaway)
}

fn head() -> Head {
    Head::to(Authority::Address("10.0.0.9:80".parse().unwrap()))
}

async fn responder(requests: &mut mpsc::Receiver<Request>) -> Responder {
    let request = requests.recv().await.unwrap();
    assert_eq!(request.head.unwrap(), head());
    request.responder
}

/// Both ends of one stream.
async fn stream(tunnel: &Tunnel, requests: &mut mpsc::Receiver<Request>) -> (hbone::Stream, hbone::Stream) {
    let head = head();
    let (opened, accepted) =
        tokio::join!(tunnel.open(&head), async { responder(requests).await.accept(None).unwrap() });
    (opened.unwrap().stream, accepted)
}

#[tokio::test]
async fn an_accepted_stream_comes_with_a_description_of_who_serves_it() {
    let (tunnel, mut requests, _) = tunnel(Settings::default()).await;
    let baggage = Baggage { service: Some("web".into()), ..Baggage::default() };
    let described = baggage.clone();
    let head = head();
    let (opened, _accepted) = tokio::join!(tunnel.open(&head), async {
        responder(&mut requests).await.accept(Some(&described)).unwrap()
    });
    assert_eq!(opened.unwrap().baggage, Some(baggage));
}

#[tokio::test]
async fn a_refusal_arrives_with_its_status() {
    let (tunnel, mut requests, _) = tunnel(Settings::default()).await;
    let head = head();
    let (opened, ()) = tokio::join!(tunnel.open(&head), async {
        responder(&mut requests).await.refuse(StatusCode::UNAUTHORIZED);
    });
    let error = opened.unwrap_err();
    assert_eq!(error.to_string(), "http status: 401 Unauthorized");
    assert!(!tunnel.is_closed());
}

#[tokio::test]
async fn each_direction_ends_on_its_own() {
    let (tunnel, mut requests, _) = tunnel(Settings::default()).await;
    let (mut near, mut far) = stream(&tunnel, &mut requests).await;
    near.write_all(b"question").await.unwrap();
    near.shutdown().await.unwrap();
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"question");
    far.write_all(b"answer").await.unwrap();
    far.shutdown().await.unwrap();
    let mut heard = Vec::new();
    near.read_to_end(&mut heard).await.unwrap();
    assert_eq!(heard, b"answer");
}

#[tokio::test]
async fn a_stream_that_is_dropped_or_reset_reads_as_a_reset_at_the_other_end() {
    let (tunnel, mut requests, _) = tunnel(Settings::default()).await;
    for dropped in [true, false] {
        let (mut near, mut far) = stream(&tunnel, &mut requests).await;
        near.write_all(b"half a").await.unwrap();
        far.read_exact(&mut [0; 6]).await.unwrap();
        if dropped {
            drop(near);
        } else {
            near.reset();
        }
        let error = far.read(&mut [0; 8]).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "dropped: {dropped}");
    }
    assert!(!tunnel.is_closed(), "other streams are not concerned");
}

#[tokio::test]
async fn much_more_than_a_window_passes_through_a_slow_reader() {
    let settings = Settings { stream_window: 65_535, connection_window: 65_535, ..Settings::default() };
    let (tunnel, mut requests, _) = tunnel(settings).await;
    let (mut near, mut far) = stream(&tunnel, &mut requests).await;
    let data: Vec<u8> = (0..2_000_000u32).map(|n| (n % 251) as u8).collect();
    let expected = data.clone();
    let writing = tokio::spawn(async move {
        near.write_all(&data).await.unwrap();
        near.shutdown().await.unwrap();
        near
    });
    let mut got = Vec::new();
    let mut part = [0; 777];
    loop {
        match far.read(&mut part).await.unwrap() {
            0 => break,
            n => got.extend_from_slice(&part[..n]),
        }
    }
    assert!(got == expected);
    drop(writing.await.unwrap());
}

#[tokio::test]
async fn the_servers_limit_of_streams_is_known_as_soon_as_there_is_a_tunnel() {
    let (tunnel, _requests, _) = tunnel(Settings { max_streams: 7, ..Settings::default() }).await;
    assert_eq!(tunnel.max_streams(), 7);
}

#[tokio::test]
async fn a_tunnel_told_to_go_away_keeps_its_streams_and_takes_no_more() {
    let (tunnel, mut requests, goaway) = tunnel(Settings::default()).await;
    let (mut near, mut far) = stream(&tunnel, &mut requests).await;
    goaway.notify_one();
    let refused = async {
        loop {
            match tunnel.open(&head()).await {
                Err(OpenError::Closing(_)) => return,
                // One that was under way may still be taken.
                Ok(_) => {}
                Err(other) => panic!("{other}"),
            }
        }
    };
    let accepting = async {
        while let Some(request) = requests.recv().await {
            drop(request.responder.accept(None));
        }
    };
    tokio::select! {
        () = refused => {}
        () = accepting => panic!("the server ended"),
    }
    far.write_all(b"still here").await.unwrap();
    near.read_exact(&mut [0; 10]).await.unwrap();
}

#[tokio::test]
async fn a_peer_that_leaves_pings_unanswered_is_given_up() {
    let settings = Settings {
        ping_interval: Duration::from_millis(20),
        ping_timeout: Duration::from_millis(50),
        ..Settings::default()
    };
    let ca = pki::Authority::new();
    let (near, far) = tokio::io::duplex(1 << 20);
    let peer = "10.0.0.9:15008".parse().unwrap();
    let (a, b) = (ca.credential(&identity("a")), ca.credential(&identity("b")));
    let quiet = settings.clone();
    let server = tokio::spawn(async move {
        let mut server: Server<DuplexStream> = Server::handshake(far, peer, &b, &quiet).await.unwrap();
        // Answers until the tunnel is made, and then nothing any more.
        let _ = tokio::time::timeout(Duration::from_millis(100), server.next()).await;
        server
    });
    let tunnel = Tunnel::handshake(near, peer, &a, &[identity("b")], &settings).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), tunnel.closed()).await.expect("it is given up");
    assert!(tunnel.is_closed());
    drop(server.await);
}

#[tokio::test]
async fn a_request_that_nobody_answers_is_given_up() {
    let (tunnel, mut requests, _) =
        tunnel(Settings { answer_timeout: Duration::from_millis(50), ..Settings::default() }).await;
    let head = head();
    let (opened, mut responder) = tokio::join!(tunnel.open(&head), responder(&mut requests));
    assert!(matches!(opened, Err(OpenError::Timeout { .. })));
    tokio::time::timeout(Duration::from_secs(10), responder.abandoned())
        .await
        .expect("the server learns of it");
}

#[tokio::test]
async fn a_stalled_reader_of_tiny_writes_does_not_hold_up_the_others() {
    let (tunnel, mut requests, _) = tunnel(Settings::default()).await;
    let (mut stalled, _unread) = stream(&tunnel, &mut requests).await;
    for _ in 0..100_000 {
        stalled.write_all(b"x").await.unwrap();
        tokio::task::yield_now().await;
    }
    let (mut near, mut far) = stream(&tunnel, &mut requests).await;
    near.write_all(b"through").await.unwrap();
    far.read_exact(&mut [0; 7]).await.unwrap();
    assert!(!tunnel.is_closed());
}

#[tokio::test]
async fn ten_readers_that_have_stopped_hold_up_nobody_else_in_the_tunnel() {
    let (tunnel, mut requests, _) = tunnel(Settings::default()).await;
    let mut stalled = Vec::new();
    for _ in 0..10 {
        let (mut near, far) = stream(&tunnel, &mut requests).await;
        // Writes until its own window is used up.
        let chunk = vec![7; 256 << 10];
        let mut written = 0;
        while let Ok(result) = tokio::time::timeout(Duration::from_millis(100), near.write(&chunk)).await {
            written += result.unwrap();
        }
        assert!(written <= (4 << 20) + (1 << 20), "memory is bounded by the window: {written}");
        stalled.push((near, far, written));
    }
    let (mut near, mut far) = stream(&tunnel, &mut requests).await;
    let data = vec![1; 200 << 10];
    let mut got = vec![0; data.len()];
    let (sent, received) = tokio::join!(near.write_all(&data), far.read_exact(&mut got));
    sent.unwrap();
    received.unwrap();
    assert_eq!(got, data);
    // The other direction likewise, and a reader that wakes gets everything.
    let (mut near, mut far, written) = stalled.pop().unwrap();
    near.shutdown().await.unwrap();
    let mut all = Vec::new();
    far.read_to_end(&mut all).await.unwrap();
    assert_eq!(all.len(), written);
    assert!(all.iter().all(|byte| *byte == 7));
}
