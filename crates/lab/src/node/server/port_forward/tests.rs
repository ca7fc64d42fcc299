use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::super::spdy::client::Client;
use super::*;

fn target() -> Target {
    Target { netns: NetNs::current().unwrap(), pod: "shop/web".into() }
}

/// A server that answers what it is told, in upper case, once the client has ended.
async fn upper() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut said = vec![0; 5];
            stream.read_exact(&mut said).await.unwrap();
            stream.write_all(&said.to_ascii_uppercase()).await.unwrap();
        }
    });
    port
}

/// A port on which nobody listens: it was free a moment ago and is kept from others by being bound.
fn nobody() -> (TcpSocket, u16) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

#[tokio::test]
async fn each_pair_of_streams_is_a_connection() {
    let (ours, theirs) = tokio::io::duplex(4096);
    let session = tokio::spawn(by_streams(Connection::new(ours), target()));
    let port = upper().await.to_string();
    let mut client = Client::new(theirs);
    for request in ["0", "1"] {
        let of = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", request)];
        let error = client.open(true, &of("error")).await;
        let data = client.open(false, &of("data")).await;
        client.send(data, true, b"hello").await;
        let got = client.collect(&[data, error]).await;
        assert_eq!(got[&data], b"HELLO");
        assert!(got[&error].is_empty());
    }
    drop(client);
    session.await.unwrap();
}

#[tokio::test]
async fn a_port_nobody_listens_on_is_an_error_with_a_reason() {
    let (ours, theirs) = tokio::io::duplex(4096);
    let _session = tokio::spawn(by_streams(Connection::new(ours), target()));
    let (_held, port) = nobody();
    let port = port.to_string();
    let mut client = Client::new(theirs);
    let of = |kind| [("streamtype", kind), ("port", port.as_str()), ("requestid", "0")];
    let data = client.open(false, &of("data")).await;
    let error = client.open(true, &of("error")).await;
    let got = client.collect(&[data, error]).await;
    let reason = String::from_utf8(got[&error].clone()).unwrap();
    assert!(reason.contains("shop/web") && reason.contains(&port), "{reason}");
}

#[tokio::test]
async fn each_port_is_a_pair_of_channels() {
    let (ours, theirs) = tokio::io::duplex(4096);
    let (_held, closed) = nobody();
    let ports = [upper().await, closed];
    let session = tokio::spawn(async move {
        let socket = WebSocketStream::from_raw_socket(ours, Role::Server, None).await;
        channels(socket, target(), &ports).await;
    });
    let mut client = WebSocketStream::from_raw_socket(theirs, Role::Client, None).await;
    client.send(message(0, b"hello")).await.unwrap();
    let mut got = HashMap::<u8, Vec<u8>>::new();
    while let Some(Ok(Message::Binary(bytes))) = client.next().await {
        got.entry(bytes[0]).or_default().extend_from_slice(&bytes[1..]);
    }
    drop(client);
    session.await.unwrap();
    let begins = |channel: u8, port: u16| got[&channel].starts_with(&port.to_le_bytes());
    assert!(begins(0, ports[0]) && begins(1, ports[0]) && begins(2, ports[1]) && begins(3, ports[1]));
    assert_eq!(&got[&0][2..], b"HELLO");
    assert_eq!((got[&1].len(), got[&2].len()), (2, 2), "no error there, no data here");
    assert!(got[&3].len() > 2, "the reason");
}
