//! The second half of an outbound call: a stream in a tunnel, or a plain connection, and the bytes on it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use hbone::{Baggage, Forwarded, Head, OpenError, TraceParent};
use mesh::{Inner, Route, Via, Workload};
use socket2::Socket;

use crate::copy::{self, Meter, Tcp};
use crate::engine::{Early, Joined, Stream, Tunnel};
use crate::failure::Failure;
use crate::flows::Flow;
use crate::outdated;
use crate::pods::Home;
use crate::pods::connections::Registration;
use crate::pool::{Key, Lease};
use crate::sockets::Held;

/// Tunnels that turn out to be closing are replaced so many times.
const ATTEMPTS: usize = 3;

/// A client's connection and the stream that it goes by.
pub(super) struct Carriage {
    lease: Lease<Tunnel>,
    stream: Stream,
    socket: Socket,
}

impl Carriage {
    /// Carries bytes until both directions have ended.
    pub(super) async fn carry(self, flow: &Rc<Flow>) -> Result<(), Failure> {
        let Self { lease, stream, socket } = self;
        stream.carry(socket, flow.clone()).await.map_err(|error| failed(error, &lease))
    }
}

fn failed(error: io::Error, lease: &Lease<Tunnel>) -> Failure {
    match lease.tunnel.is_closed() && lease.tunnel.is_revoked() {
        true => Failure::Revoked(lease.tunnel.peer()),
        false => Failure::Copy(error),
    }
}

/// A stream in a pooled tunnel. When the destination lives on another network bytes are carried right away, in a second
/// tunnel inside it, and nothing is left to do.
pub(super) async fn through_tunnel(
    home: &Home,
    source: &Workload,
    route: &Route,
    client: SocketAddr,
    socket: Held,
    flow: &Rc<Flow>,
    listed: &Registration,
) -> Result<Option<Carriage>, Failure> {
    let head = Head {
        authority: route.authority.clone(),
        baggage: Some(Baggage::of(source)),
        forwarded: Some(Forwarded {
            client: Some(client),
            host: route.service.as_ref().map(|service| service.key.hostname.clone()),
        }),
        trace: Some(TraceParent { trace_id: rand::random(), parent_id: rand::random() }),
        network: None,
    };
    let key = Key {
        source: source.identity.clone(),
        expected: route.expect.clone(),
        source_ip: client.ip(),
        hop: route.hop,
    };
    // Gateways and waypoints may be programs that take nothing before they have answered.
    let early = route.via == Via::Direct && route.inner.is_none() && home.context.config.early_data;
    let early = if early { socket.get().map(Early::of) } else { None };
    let (lease, stream) = open(home, key, &head, early.as_ref()).await?;
    match &route.inner {
        None => {
            listed.proven(lease.tunnel.identity());
            flow.established(Some(lease.tunnel.identity()));
            let socket = socket.take().map_err(Failure::Copy)?;
            Ok(Some(Carriage { lease, stream, socket }))
        }
        Some(inner) => {
            let carried = through_gateway(home, source, route, inner, head, socket, stream, flow, listed);
            carried.await?.map_err(|error| failed(error, &lease))?;
            Ok(None)
        }
    }
}

/// A stream in a pooled tunnel. Nothing has been taken from the client before it is open, so a tunnel that closes or broke
/// meanwhile is simply replaced; but what may have been said to an application is not said to it twice.
async fn open(
    home: &Home,
    key: Key,
    head: &Head,
    early: Option<&Early<'_>>,
) -> Result<(Lease<Tunnel>, Stream), Failure> {
    let mut attempt = 1;
    loop {
        let lease = home.pool.acquire(key.clone()).await?;
        match lease.tunnel.open(head, early).await {
            Ok(stream) => return Ok((lease, stream)),
            Err(OpenError::Closing(_)) if attempt < ATTEMPTS => lease.retire(),
            Err(OpenError::Broken { .. }) if attempt < ATTEMPTS && !early.is_some_and(Early::was_sent) => {
                lease.retire();
            }
            Err(error) => return Err(error.into()),
        }
        attempt += 1;
    }
}

/// A tunnel of its own inside a stream of the gateway's tunnel.
#[allow(clippy::too_many_arguments)]
async fn through_gateway(
    home: &Home,
    source: &Workload,
    route: &Route,
    inner: &Inner,
    mut head: Head,
    socket: Held,
    outer: Stream,
    flow: &Rc<Flow>,
    listed: &Registration,
) -> Result<io::Result<()>, Failure> {
    let context = &home.context;
    head.network = Some(context.config.network.as_str().into());
    let (near, far) = inner_ends().map_err(Failure::Copy)?;
    home.spawn(async move {
        // Its end is seen by the tunnel inside.
        let _ = outer.carry(far, Rc::new(Uncounted)).await;
    });
    let credential = context.certs.get(&source.identity).await?;
    let tunnel =
        hbone::Tunnel::handshake(near, route.hop, &credential, &inner.expect, &context.settings).await?;
    let hbone::Opened { stream: mut upstream, baggage } = tunnel.open(&head).await?;
    listed.proven(tunnel.identity());
    flow.answered(baggage.as_ref(), tunnel.identity());
    let socket = socket.take().and_then(|socket| tokio::net::TcpStream::from_std(socket.into()));
    let socket = socket.map_err(Failure::Copy)?;
    let mut client = Tcp::new(&socket);
    Ok(copy::both_ways(&mut client, &mut upstream, &**flow).await)
}

fn inner_ends() -> io::Result<(tokio::net::UnixStream, socket2::Socket)> {
    let (near, far) = UnixStream::pair()?;
    near.set_nonblocking(true)?;
    far.set_nonblocking(true)?;
    Ok((tokio::net::UnixStream::from_std(near)?, OwnedFd::from(far).into()))
}

/// What the outer tunnel carries is counted inside.
struct Uncounted;

impl Meter for Uncounted {
    fn client_to_server(&self, _bytes: u64) {}
    fn server_to_client(&self, _bytes: u64) {}
}

/// Joins two plain connections; the first is the client's.
pub(super) fn join(home: &Home, client: Held, server: Held, meter: Rc<dyn Meter>) -> Result<Joined, Failure> {
    let both = || home.worker.join(client.take()?, server.take()?, meter);
    both().map_err(Failure::Copy)
}

/// Carries a call in plaintext; once `outdated` resolves the connection is ended as soon as it is idle.
pub(super) async fn in_plaintext(
    home: &Home,
    to: SocketAddr,
    socket: Held,
    flow: &Rc<Flow>,
    outdated: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let upstream = home.pod.sockets.connect_on(&home.worker, to, None).await.map_err(Failure::Connect)?;
    flow.established(None);
    let joined = join(home, socket, upstream, flow.clone())?;
    tokio::select! {
        biased;
        result = joined.ended() => result.map_err(Failure::Copy),
        () = async { outdated.await; outdated::idle(&joined).await } => {
            joined.end();
            Ok(())
        }
    }
}
