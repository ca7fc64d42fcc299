//! Data that goes along with the question for a stream. The other end is the crate `h2` over rustls, so that it decides
//! what it answers, and when.

use std::time::Duration;

use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use http::{Method, Request, Response, StatusCode};
use mesh::{Action, Clause, Match, Policy, Rule, Scope, StringMatch};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::control::Control;
use crate::harness::{World, echo, eventually, identity};
use crate::namespaces::{Node, in_a_node};
use crate::stack::{acceptor, read_all, send_all, takes_tunnels, tls};

pub type Asked = (Request<h2::RecvStream>, SendResponse<Bytes>);
pub type Server = Connection<tokio_rustls::server::TlsStream<TcpStream>, Bytes>;

/// A world in which pod c takes tunnels, but nobody accepts them yet.
pub async fn world(node: &Node, more: &[(&str, &str)]) -> (World, TcpListener) {
    let (control, address) = Control::start().await;
    let world = World::with(node, control, address, more).await;
    let listener = world.c.listen(15008);
    takes_tunnels(&world).await;
    (world, listener)
}

/// The next tunnel.
pub async fn tunnel(world: &World, listener: &TcpListener) -> Server {
    let (socket, _) = listener.accept().await.unwrap();
    let tls = acceptor(&world.control.pem(&identity("c"))).accept(socket).await.unwrap();
    h2::server::handshake(tls).await.unwrap()
}

/// The first question of the next tunnel, which goes on by itself.
pub async fn asked(world: &World, listener: &TcpListener) -> Asked {
    soon(async {
        let mut tunnel = tunnel(world, listener).await;
        let asked = tunnel.accept().await.unwrap().unwrap();
        tokio::spawn(async move { while tunnel.accept().await.is_some() {} });
        asked
    })
    .await
}

/// A caller in pod a that has said this to pod c, where no tunnel need be yet.
pub async fn saying(world: &World, words: &[u8]) -> TcpStream {
    let mut client = world.a.connect(world.c.at(9000)).await.unwrap();
    client.write_all(words).await.unwrap();
    client
}

/// HTTP/2 to b, by the certificate of a.
async fn into_b(world: &World) -> h2::client::SendRequest<Bytes> {
    let stream = tls(&world.c, world.b.at(15008), &world.control.pem(&identity("a"))).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client
}

/// What is read of a question's data until there are `length` bytes.
async fn read(body: &mut h2::RecvStream, length: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < length {
        let part = body.data().await.expect("more is said").unwrap();
        body.flow_control().release_capacity(part.len()).unwrap();
        all.extend(part);
    }
    all
}

/// Whatever is waited for comes, or the test has failed.
pub async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("it happens")
}

#[test]
fn what_a_client_says_first_arrives_with_the_question_and_once() {
    in_a_node(|node| async move {
        let (world, listener) = world(&node, &[]).await;
        // The first words are said before there is a tunnel to say them in.
        let mut client = saying(&world, b"first words").await;
        let (request, mut respond) = asked(&world, &listener).await;
        let mut body = request.into_body();
        assert_eq!(soon(read(&mut body, 11)).await, b"first words", "before there is an answer");
        client.write_all(b", and others").await.unwrap();
        client.shutdown().await.unwrap();
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        assert_eq!(soon(read_all(&mut body)).await, b", and others", "neither twice nor out of order");
        send_all(&mut send, Bytes::from_static(b"heard")).await;
        let mut answer = Vec::new();
        soon(client.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(answer, b"heard");
        let labels = [("destination_workload", "c"), ("reporter", "source")];
        eventually("each byte is counted, and once", async || {
            world.pa.metrics().await.sum("istio_tcp_received_bytes_total", &labels) == 23
        })
        .await;
    });
}

#[test]
fn nothing_is_said_before_the_answer_where_that_is_not_wanted() {
    in_a_node(|node| async move {
        let (world, listener) = world(&node, &[("EARLY_DATA", "false")]).await;
        let _client = saying(&world, b"first words").await;
        let mut tunnel = soon(tunnel(&world, &listener)).await;
        let mut pings = tunnel.ping_pong().unwrap();
        let (request, mut respond) = soon(tunnel.accept()).await.unwrap().unwrap();
        tokio::spawn(async move { while tunnel.accept().await.is_some() {} });
        // Whatever came with the question came before the answer to this.
        soon(pings.ping(h2::Ping::opaque())).await.unwrap();
        let mut body = request.into_body();
        assert!(futures::FutureExt::now_or_never(body.data()).is_none(), "it has been told something");
        let _send = respond.send_response(Response::new(()), false).unwrap();
        assert_eq!(soon(read(&mut body, 11)).await, b"first words");
    });
}

#[test]
fn a_question_that_was_not_taken_is_asked_again_with_the_same_words() {
    in_a_node(|node| async move {
        let (world, listener) = world(&node, &[]).await;
        let mut client = saying(&world, b"first words").await;
        let (request, mut respond) = asked(&world, &listener).await;
        assert_eq!(soon(read(&mut request.into_body(), 11)).await, b"first words");
        respond.send_reset(h2::Reason::REFUSED_STREAM);
        let (request, mut respond) = asked(&world, &listener).await;
        let mut body = request.into_body();
        assert_eq!(soon(read(&mut body, 11)).await, b"first words");
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        send_all(&mut send, Bytes::from_static(b"heard")).await;
        let mut answer = [0; 5];
        soon(client.read_exact(&mut answer)).await.unwrap();
        assert_eq!(&answer, b"heard");
    });
}

#[test]
fn what_an_application_may_have_heard_is_not_said_to_it_again() {
    in_a_node(|node| async move {
        let (world, listener) = world(&node, &[]).await;
        let mut client = saying(&world, b"pay once").await;
        let mut first = soon(tunnel(&world, &listener)).await;
        let (request, respond) = soon(first.accept()).await.unwrap().unwrap();
        let heard = tokio::spawn(async move { read(&mut request.into_body(), 8).await });
        // The tunnel is driven until the words are there, and then breaks without an answer.
        tokio::select! {
            heard = heard => assert_eq!(heard.unwrap(), b"pay once"),
            _ = first.accept() => panic!("it asks once"),
        }
        drop((first, respond));
        let mut nothing = Vec::new();
        let ended = soon(client.read_to_end(&mut nothing)).await;
        assert!(ended.is_err() && nothing.is_empty(), "the client is told: {ended:?}");
        // Another call makes another tunnel, in which nothing but that call is heard.
        let _other = saying(&world, b"other").await;
        let (request, _respond) = asked(&world, &listener).await;
        assert_eq!(soon(read(&mut request.into_body(), 5)).await, b"other");
    });
}

#[test]
fn a_peer_may_speak_before_it_is_answered() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let mut client = into_b(&world).await;
        let (response, mut send) = ask(&mut client, &world.b.at(8080).to_string()).await;
        let data: Bytes = (0..300_000u32).map(|n| (n >> 3) as u8).collect::<Vec<_>>().into();
        let (sent, response) = (data.clone(), soon(response));
        let (response, ()) = tokio::join!(response, send_all(&mut send, sent));
        let response = response.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(soon(read_all(&mut response.into_body())).await == data, "what comes back differs");
    });
}

async fn ask(
    client: &mut h2::client::SendRequest<Bytes>,
    authority: &str,
) -> (h2::client::ResponseFuture, h2::SendStream<Bytes>) {
    std::future::poll_fn(|cx| client.poll_ready(cx)).await.unwrap();
    let request = Request::builder().method(Method::CONNECT).uri(authority).body(()).unwrap();
    client.send_request(request, false).unwrap()
}

#[test]
fn whoever_is_denied_is_not_heard_however_early_he_speaks() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let peers = echo(world.b.listen(8080));
        let deny = Match {
            principals: vec![StringMatch::Exact(identity("a").principal().into())],
            ..Match::default()
        };
        world.control.policy(&Policy {
            name: "deny-a".into(),
            namespace: "ns".into(),
            scope: Scope::Namespace,
            action: Action::Deny,
            rules: vec![Rule { clauses: vec![Clause { matches: vec![deny] }] }],
            dry_run: false,
        });
        eventually("the policy is known", async || {
            world.pb.dump().await["policies"].as_array().unwrap().len() == 1
        })
        .await;
        let mut client = into_b(&world).await;
        let (response, mut send) = ask(&mut client, &world.b.at(8080).to_string()).await;
        send.send_data(Bytes::from_static(b"let me in"), true).unwrap();
        assert_eq!(soon(response).await.unwrap().status(), StatusCode::UNAUTHORIZED);
        assert!(peers.lock().unwrap().is_empty(), "nothing has reached the application");
    });
}
