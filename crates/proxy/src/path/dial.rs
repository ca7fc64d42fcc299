//! The second half of an outbound call: a stream in a tunnel, or a plain connection, and the bytes on it.

use std::future::Future;
use std::net::SocketAddr;

use hbone::{Baggage, Forwarded, Head, OpenError, TraceParent, Tunnel};
use mesh::{Route, Workload};
use tokio::net::TcpStream;

use crate::context::Context;
use crate::copy::{self, Tcp};
use crate::failure::Failure;
use crate::flows::Flow;
use crate::outdated::Watched;
use crate::pods::Pod;
use crate::pool::{Key, Lease};

/// Tunnels that turn out to be closing are replaced so many times.
const ATTEMPTS: usize = 3;

/// Through a pooled tunnel, and when the destination lives on another network through a second one inside it.
pub(super) async fn through_tunnel(
    context: &Context,
    pod: &Pod,
    source: &Workload,
    route: &Route,
    client: SocketAddr,
    stream: &TcpStream,
    flow: &Flow,
) -> Result<(), Failure> {
    let mut head = Head {
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
    let (lease, outer) = open(pod, &key, &head).await?;
    let (_inner, mut upstream) = match &route.inner {
        None => {
            flow.established(Some(lease.tunnel.identity()));
            (None, outer)
        }
        Some(inner) => {
            head.network = Some(context.config.network.as_str().into());
            let credential = context.certs.get(&source.identity).await?;
            let tunnel =
                Tunnel::handshake(outer, route.hop, &credential, &inner.expect, &context.settings).await?;
            let upstream = tunnel.open(&head).await?.stream;
            flow.established(Some(tunnel.identity()));
            (Some(tunnel), upstream)
        }
    };
    let copied = copy::both_ways(&mut Tcp::new(stream), &mut upstream, flow).await;
    copied.map_err(|error| match lease.tunnel.is_closed() && lease.tunnel.is_revoked() {
        true => Failure::Revoked(lease.tunnel.peer()),
        false => Failure::Copy(error),
    })
}

/// A stream in a pooled tunnel. No byte of the application has been sent before it is open, so a tunnel that broke
/// meanwhile is simply replaced.
async fn open(pod: &Pod, key: &Key, head: &Head) -> Result<(Lease, hbone::Stream), Failure> {
    let mut attempt = 1;
    loop {
        let lease = pod.pool.acquire(key.clone()).await?;
        match lease.tunnel.open(head).await {
            Ok(opened) => return Ok((lease, opened.stream)),
            Err(OpenError::Closing(_) | OpenError::Broken { .. }) if attempt < ATTEMPTS => lease.retire(),
            Err(error) => return Err(error.into()),
        }
        attempt += 1;
    }
}

/// Carries a call in plaintext; once `outdated` resolves the connection is ended as soon as it is idle.
pub(super) async fn in_plaintext(
    pod: &Pod,
    to: SocketAddr,
    stream: &TcpStream,
    flow: &Flow,
    outdated: impl Future<Output = ()>,
) -> Result<(), Failure> {
    let upstream = pod.sockets.connect(to, None).await.map_err(Failure::Connect)?;
    flow.established(None);
    let watched = Watched::new(flow);
    let (mut client, mut server) = (Tcp::new(stream), Tcp::new(&upstream));
    tokio::select! {
        result = copy::both_ways(&mut client, &mut server, &watched) => result.map_err(Failure::Copy),
        () = async { outdated.await; watched.idle(stream, &upstream).await } => Ok(()),
    }
}
