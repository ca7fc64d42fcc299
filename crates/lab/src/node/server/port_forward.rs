//! `kubectl port-forward`: TCP connections to a pod's own loopback, made inside its network namespace.
//!
//! Two wires: SPDY, where each connection is a pair of streams (plain, or tunnelled in a WebSocket), and WebSocket
//! channels, where each port is one connection and two channels, the second for an error.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use netns::NetNs;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::spdy::{Connection, Stream, Writer};
use super::upgrade::{Upgrade, goodbye, web_socket};
use super::{Body, Refusal};
use crate::node::border::Pods;

const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";
const WEB_SOCKET: [&str; 4] = [TUNNELLED, "portforward.v4.channel.k8s.io", "v4.channel.k8s.io", ""];
const SPDY: [&str; 1] = ["portforward.k8s.io"];

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const GOODBYE: Duration = Duration::from_secs(5);
const BLOCK: usize = 32 * 1024;
/// A channel is one byte and each port takes two; no client asks for as many.
const MOST_PORTS: usize = 100;
/// Streams that wait for their other half.
const MOST_HALVES: usize = 64;

pub(super) fn answer(
    request: Request<Incoming>,
    pods: &Arc<dyn Pods>,
    namespace: &str,
    pod: &str,
    ports: &[u16],
) -> Result<Response<Body>, Refusal> {
    let netns = pods.netns(namespace, pod).map_err(|error| Refusal::of_pod(namespace, pod, &error))?;
    let upgrade = Upgrade::choose(request.headers(), &WEB_SOCKET, &SPDY)?;
    let by_channels = matches!(upgrade, Upgrade::WebSocket(protocol) if protocol != TUNNELLED);
    if by_channels && (ports.is_empty() || ports.len() > MOST_PORTS) {
        let message = format!("port-forward needs one to {MOST_PORTS} ports in the query, as port=8080");
        return Err(Refusal::new(StatusCode::BAD_REQUEST, message));
    }
    let target = Target { netns, pod: format!("{namespace}/{pod}") };
    let ports = ports.to_vec();
    Ok(upgrade.accept(request, move |io| async move {
        match upgrade {
            Upgrade::Spdy(_) => by_streams(Connection::new(io), target).await,
            Upgrade::WebSocket(TUNNELLED) => {
                by_streams(Connection::tunnelled(web_socket(io).await), target).await;
            }
            Upgrade::WebSocket(_) => channels(web_socket(io).await, target, &ports).await,
        }
    }))
}

/// Where connections go.
#[derive(Clone)]
struct Target {
    netns: NetNs,
    pod: String,
}

impl Target {
    /// A connection to a port on the pod's loopback; the error is a sentence for the client.
    async fn connect(&self, port: u16) -> Result<TcpStream, String> {
        let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
        for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)] {
            match self.connect_to(SocketAddr::new(ip, port)).await {
                Ok(stream) => return Ok(stream),
                // What the usual address says counts; the other is often not there at all.
                Err(error) if ip.is_ipv4() => last = error,
                Err(_) => {}
            }
        }
        Err(format!("pod {}: cannot connect to port {port} on its loopback: {last}", self.pod))
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4 } else { TcpSocket::new_v6 };
        let socket = self.netns.try_run(socket).map_err(io::Error::other)?;
        let stream = tokio::time::timeout(CONNECT_WITHIN, socket.connect(address)).await??;
        stream.set_nodelay(true)?;
        Ok(stream)
    }
}

/// Pairs up streams by their request and carries each pair, until the client is gone.
async fn by_streams(mut connection: Connection, target: Target) {
    let mut halves: HashMap<String, Stream> = HashMap::new();
    let mut forwards = JoinSet::new();
    while let Some(stream) = connection.streams.recv().await {
        while forwards.try_join_next().is_some() {}
        let request = stream.header("requestid").unwrap_or_default().to_owned();
        let Some(other) = halves.remove(&request) else {
            if halves.len() < MOST_HALVES {
                halves.insert(request, stream);
            }
            continue;
        };
        let is_error = |stream: &Stream| stream.header("streamtype") == Some("error");
        let (data, error) = if is_error(&stream) { (other, stream) } else { (stream, other) };
        let target = target.clone();
        forwards.spawn(async move {
            // The client being gone is the only error left, and then there is nobody to tell.
            let _ = pair(data, error, &target).await;
        });
    }
    forwards.shutdown().await;
}

async fn pair(mut data: Stream, error: Stream, target: &Target) -> io::Result<()> {
    let port = data.header("port").and_then(|port| port.parse().ok()).filter(|port| *port != 0);
    let connected = match port {
        Some(port) => target.connect(port).await,
        None => Err("the stream names no port to forward to".to_owned()),
    };
    match connected {
        Err(message) => error.writer.send(message.as_bytes()).await?,
        Ok(stream) => {
            let (read, write) = stream.into_split();
            let back = Back::Stream(data.writer.clone());
            let outwards = async {
                let sent = copy_out(read, &back).await;
                data.writer.finish().await?;
                sent
            };
            let (_, sent) = futures::join!(copy_in(&mut data.data, write), outwards);
            if let Err(broken) = sent {
                error.writer.send(format!("pod {}: {broken}", target.pod).as_bytes()).await?;
            }
        }
    }
    data.writer.finish().await?;
    error.writer.finish().await
}

/// Client to pod; the end of one is the end of the other.
async fn copy_in(from: &mut mpsc::Receiver<Bytes>, mut to: impl AsyncWrite + Unpin) -> io::Result<()> {
    while let Some(bytes) = from.recv().await {
        to.write_all(&bytes).await?;
    }
    to.shutdown().await
}

/// The way back to the client, on either wire.
enum Back {
    Stream(Writer),
    Channel(u8, mpsc::Sender<(u8, Bytes)>),
}

impl Back {
    async fn send(&self, block: Bytes) -> io::Result<()> {
        match self {
            Self::Stream(writer) => writer.send(&block).await,
            Self::Channel(channel, to) => {
                to.send((*channel, block)).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
            }
        }
    }
}

/// Pod to client.
async fn copy_out(mut from: impl AsyncRead + Unpin, to: &Back) -> io::Result<()> {
    let mut block = BytesMut::with_capacity(BLOCK);
    while from.read_buf(&mut block).await? > 0 {
        to.send(block.split().freeze()).await?;
        block.reserve(BLOCK);
    }
    Ok(())
}

/// One connection a port, all connected at once, until all have ended or the client is gone.
async fn channels<S>(socket: WebSocketStream<S>, target: Target, ports: &[u16])
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sink, mut stream) = socket.split();
    let (to_client, mut from_pod) = mpsc::channel::<(u8, Bytes)>(16);
    let mut inputs = Vec::new();
    let mut forwards = JoinSet::new();
    for (port, data) in ports.iter().copied().zip((0u8..).step_by(2)) {
        // Both channels of a port begin with its number, so that the client knows which is which.
        for channel in [data, data + 1] {
            if sink.send(message(channel, &port.to_le_bytes())).await.is_err() {
                return;
            }
        }
        let (input, from_client) = mpsc::channel(16);
        inputs.push(input);
        forwards.spawn(channel(target.clone(), port, data, from_client, to_client.clone()));
    }
    drop(to_client);
    let reading = async {
        while let Some(Ok(received)) = stream.next().await {
            let mut bytes = match received {
                Message::Binary(bytes) if bytes.len() > 1 => bytes,
                Message::Close(_) => return,
                _ => continue,
            };
            let data = bytes.split_off(1);
            if let (true, Some(input)) = (bytes[0] % 2 == 0, inputs.get(usize::from(bytes[0] / 2))) {
                // A pod that takes no more has ended or will.
                let _ = input.send(data).await;
            }
        }
    };
    let writing = async {
        while let Some((channel, bytes)) = from_pod.recv().await {
            if sink.send(message(channel, &bytes)).await.is_err() {
                return;
            }
        }
        let _ = sink.send(goodbye()).await;
    };
    let client_left = tokio::select! { () = reading => true, () = writing => false };
    forwards.shutdown().await;
    if !client_left {
        let rest = async { while let Some(Ok(_)) = stream.next().await {} };
        let _ = tokio::time::timeout(GOODBYE, rest).await;
    }
}

/// Carries one port; `data` is its channel, the next one is for errors.
async fn channel(
    target: Target,
    port: u16,
    data: u8,
    mut from_client: mpsc::Receiver<Bytes>,
    to_client: mpsc::Sender<(u8, Bytes)>,
) {
    let trouble = match target.connect(port).await {
        Err(message) => Some(message),
        Ok(stream) => {
            let (read, write) = stream.into_split();
            let back = Back::Channel(data, to_client.clone());
            let outwards = copy_out(read, &back);
            // The protocol has no way to say that the client ends first, so the pod's end is the end.
            let sent = {
                let mut outwards = std::pin::pin!(outwards);
                tokio::select! {
                    sent = &mut outwards => sent,
                    _ = copy_in(&mut from_client, write) => outwards.await,
                }
            };
            sent.err().map(|error| format!("pod {}: port {port}: {error}", target.pod))
        }
    };
    if let Some(message) = trouble {
        let _ = to_client.send((data + 1, message.into())).await;
    }
}

fn message(channel: u8, data: &[u8]) -> Message {
    let mut bytes = BytesMut::with_capacity(data.len() + 1);
    bytes.put_u8(channel);
    bytes.put_slice(data);
    Message::Binary(bytes.freeze())
}

#[cfg(test)]
mod tests;
