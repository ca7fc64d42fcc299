//! The path of a connection, from top to bottom: accept → identify → decide → authorize → dial → copy → account.
//!
//! Three ways in: [`outbound`] (what the pod's applications call), [`inbound_tunnel`] (what other proxies bring), and
//! [`inbound_plaintext`] (what callers without the mesh bring). Everything else in this crate exists for these three.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hbone::{Baggage, Forwarded, Head, OpenError, Request, Server, TraceParent};
use mesh::{
    Authority, Call, Connection, Decision, Identity, MESH_PORTS, NetworkAddress, Refusal, Route, Service,
    Verdict, View, Workload, authorize, decide,
};
use tokio::net::TcpStream;

use crate::context::Context;
use crate::copy::{self, Tcp};
use crate::failure::Failure;
use crate::flows::{Flow, Opening, Reporter};
use crate::outdated::{self, Watched};
use crate::pods::Pod;
use crate::pods::connections::{Registration, Row};
use crate::pool::{Key, Lease};
use crate::sockets::{canonical, original_destination, reset_on_close};

/// How long a connection waits for policies that its workload names and nobody knows yet.
const POLICY_WAIT: Duration = Duration::from_secs(2);
/// Tunnels that turn out to be closing are replaced so many times.
const ATTEMPTS: usize = 3;

/// A connection taken from one of a pod's listeners.
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    /// Whether the application may be called from the peer's address.
    pub(crate) transparent: bool,
}

// ---------------------------------------------------------------------------------------------------- outbound

/// An application of the pod calls somebody.
pub(crate) async fn outbound(context: &Context, pod: &Pod, accepted: Accepted) {
    let Accepted { stream, peer, .. } = accepted;
    let refuse = |dst, failure: &Failure| {
        context.flows.refused(Reporter::Source, peer, dst, failure);
        reset_on_close(&stream);
    };
    // identify
    let destination = match original_destination(&stream) {
        Ok(destination) => destination,
        Err(error) => return refuse(None, &Failure::OriginalDestination(error)),
    };
    let source = match pod.workload(context).await {
        Ok(workload) => workload,
        Err(failure) => return refuse(Some(destination), &failure),
    };
    // decide
    let decision =
        decide(&context.views.load(), &Call { source: &source, destination, random: rand::random() });
    let Some(opening) = Opening::outbound(&source, peer, &decision) else {
        return refuse(Some(destination), &why_not(decision));
    };
    let flow = context.flows.open(opening);
    // dial, copy
    let row = |actual, protocol| {
        let original = Some(destination.to_string());
        pod.connections.outbound(Row { src: peer, original, actual, protocol })
    };
    let result = match &decision {
        Decision::Tunnel(route) => {
            let _listed = row(route.hop, "HBONE");
            through_tunnel(pod, &source, route, peer, &stream, &flow).await
        }
        Decision::Passthrough { to, .. } => {
            let _listed = row(*to, "TCP");
            let outdated = outdated::tunnelled(&context.views, &source, destination);
            in_plaintext(pod, *to, &stream, &flow, outdated).await
        }
        Decision::Refuse(_) | Decision::Resolve { .. } => return,
    };
    // account
    finish(flow, &stream, result);
}

fn why_not(decision: Decision) -> Failure {
    match decision {
        Decision::Resolve { hostname, .. } => Failure::Hostname(hostname.to_string()),
        Decision::Refuse(refusal) => refusal.into(),
        Decision::Tunnel(_) | Decision::Passthrough { .. } => Failure::Abandoned,
    }
}

async fn through_tunnel(
    pod: &Pod,
    source: &Workload,
    route: &Route,
    client: SocketAddr,
    stream: &TcpStream,
    flow: &Flow,
) -> Result<(), Failure> {
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
    let (lease, mut upstream) = open(pod, &key, &head).await?;
    flow.established(Some(lease.tunnel.identity()));
    copy::both_ways(&mut Tcp::new(stream), &mut upstream, flow).await.map_err(Failure::Copy)
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
async fn in_plaintext(
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

// ---------------------------------------------------------------------------------------------------- inbound

/// Another proxy brings connections for the pod.
pub(crate) async fn inbound_tunnel(context: &Arc<Context>, pod: &Arc<Pod>, accepted: Accepted) {
    let Accepted { stream, peer, transparent } = accepted;
    let local = stream.local_addr().map(canonical).ok();
    let made = async {
        let workload = pod.workload(context).await?;
        let credential = context.certs.get(&workload.identity).await?;
        Ok::<_, Failure>(Server::handshake(stream, peer, &credential, &context.settings).await?)
    };
    let (mut tunnel, local) = match (made.await, local) {
        (Ok(tunnel), Some(local)) => (tunnel, local),
        (Err(failure), local) => return context.flows.refused(Reporter::Destination, peer, local, &failure),
        (Ok(_), None) => return,
    };
    let client = Arc::new(Client { identity: tunnel.identity().clone(), peer, local, transparent });
    let mut draining = false;
    loop {
        tokio::select! {
            request = tunnel.next() => {
                let Some(request) = request else { return };
                let (context, pod, client) = (context.clone(), pod.clone(), client.clone());
                let task = pod.clone();
                task.tasks.spawn(async move {
                    let stop = pod.stop.clone();
                    let _ = stop.run_until_cancelled(inbound_stream(&context, &pod, &client, request)).await;
                });
            }
            () = pod.drain.cancelled(), if !draining => {
                draining = true;
                tunnel.graceful_shutdown();
            }
        }
    }
}

/// The client's end of a tunnel.
struct Client {
    identity: Identity,
    peer: SocketAddr,
    /// The pod's address, as dialled.
    local: SocketAddr,
    transparent: bool,
}

async fn inbound_stream(context: &Context, pod: &Pod, client: &Client, request: Request) {
    let Request { head, mut responder } = request;
    // identify
    let known = async {
        let head = head?;
        let workload = pod.workload(context).await?;
        let target = own_target(&context.views.load(), &workload, client.local, &head.authority)?;
        Ok::<_, Failure>((head, workload, target))
    };
    let (head, workload, target) = match known.await {
        Ok(known) => known,
        Err(failure) => {
            responder.refuse(failure.status());
            return context.flows.refused(Reporter::Destination, client.peer, Some(client.local), &failure);
        }
    };
    let view = context.views.load();
    let service = called_service(&view, &workload, head.forwarded.as_ref());
    let network = head.network.as_deref().unwrap_or(&context.config.network);
    let source = view.workload_by_address(&NetworkAddress::new(network, client.peer.ip()));
    let flow = context.flows.open(Opening::inbound(
        &workload,
        service.map(|service| &**service),
        source.map(|source| &**source),
        head.baggage.as_ref().filter(|_| context.config.response_baggage),
        Some(client.identity.clone()),
        client.peer,
        client.local,
        Some(head.authority.clone()),
    ));
    // authorize; listed first, so that no change of policy slips through in between
    let connection = Connection {
        identity: Some(client.identity.clone()),
        source_ip: client.peer.ip(),
        destination: target,
    };
    let original = head.forwarded.as_ref().and_then(|forwarded| forwarded.host.as_deref()).map(str::to_owned);
    let row = Row { src: client.peer, original, actual: target, protocol: "HBONE" };
    let mut listed = pod.connections.inbound(row, connection.clone());
    // dial
    let dial = async {
        permit(context, pod, &connection).await?;
        let from = client.transparent.then(|| client.peer.ip());
        pod.sockets.connect(target, from).await.map_err(Failure::Connect)
    };
    let dialled = tokio::select! {
        dialled = dial => dialled,
        () = responder.abandoned() => return flow.close(Err(&Failure::Abandoned)),
    };
    let application = match dialled {
        Ok(application) => application,
        Err(failure) => {
            responder.refuse(failure.status());
            return flow.close(Err(&failure));
        }
    };
    // copy
    let baggage = context.config.response_baggage.then(|| Baggage::of(&workload));
    let result = match responder.accept(baggage.as_ref()) {
        Ok(mut stream) => {
            flow.established(None);
            let mut end = Tcp::new(&application);
            let copy = copy::both_ways(&mut stream, &mut end, &flow);
            until_revoked(&mut listed, copy).await
        }
        Err(_) => Err(Failure::Abandoned),
    };
    // account
    finish(flow, &application, result);
}

/// Somebody without the mesh calls an application of the pod.
pub(crate) async fn inbound_plaintext(context: &Context, pod: &Pod, accepted: Accepted) {
    let Accepted { stream, peer, transparent } = accepted;
    let refuse = |dst, failure: &Failure| {
        context.flows.refused(Reporter::Destination, peer, dst, failure);
        reset_on_close(&stream);
    };
    // identify
    let target = match original_destination(&stream) {
        Ok(target) => target,
        Err(error) => return refuse(None, &Failure::OriginalDestination(error)),
    };
    if MESH_PORTS.contains(&target.port()) {
        return refuse(Some(target), &Refusal::SelfCall(target).into());
    }
    let workload = match pod.workload(context).await {
        Ok(workload) => workload,
        Err(failure) => return refuse(Some(target), &failure),
    };
    let view = context.views.load();
    let source = view.workload_by_address(&NetworkAddress::new(workload.network.clone(), peer.ip()));
    let source = source.map(|source| &**source);
    let flow = context.flows.open(Opening::inbound(&workload, None, source, None, None, peer, target, None));
    // authorize
    let connection = Connection { identity: None, source_ip: peer.ip(), destination: target };
    let row = Row { src: peer, original: None, actual: target, protocol: "TCP" };
    let mut listed = pod.connections.inbound(row, connection.clone());
    // dial, copy
    let result = match permit(context, pod, &connection).await {
        Ok(()) => {
            let from = transparent.then(|| peer.ip());
            let carry = async {
                let application = pod.sockets.connect(target, from).await.map_err(Failure::Connect)?;
                flow.established(None);
                let copy = copy::both_ways(&mut Tcp::new(&stream), &mut Tcp::new(&application), &flow).await;
                copy.map_err(Failure::Copy)
            };
            tokio::select! {
                result = carry => result,
                verdict = listed.revoked() => Err(Failure::PolicyChange(verdict)),
            }
        }
        Err(failure) => Err(failure),
    };
    // account
    finish(flow, &stream, result);
}

// ---------------------------------------------------------------------------------------------------- helpers

/// Where a CONNECT request leads: always to the pod itself (reference/data-plane.md §5).
fn own_target(
    view: &View,
    workload: &Workload,
    local: SocketAddr,
    authority: &Authority,
) -> Result<SocketAddr, Failure> {
    let port = match authority {
        Authority::Address(asked) if asked.ip() == local.ip() => asked.port(),
        Authority::Address(_) => {
            return Err(Failure::IpMismatch { asked: authority.clone(), at: local });
        }
        Authority::Hostname(hostname, port) => {
            let service = view.service_by_hostname(hostname, &workload.namespace);
            let target = service.and_then(|service| {
                let mappings = workload.services.get(&service.key)?;
                let own = mappings.iter().find(|mapping| mapping.service_port == *port);
                own.map(|mapping| mapping.target_port).or(service.port(*port)?.target_port)
            });
            target.ok_or_else(|| Failure::Unresolvable(authority.clone()))?
        }
    };
    let target = SocketAddr::new(local.ip(), port);
    if MESH_PORTS.contains(&port) {
        return Err(Refusal::SelfCall(target).into());
    }
    Ok(target)
}

/// The service that the client says it called. Without a word of one the call was to the workload itself: no
/// service is guessed, so that both ends report alike.
fn called_service<'a>(
    view: &'a View,
    workload: &Workload,
    forwarded: Option<&Forwarded>,
) -> Option<&'a Arc<Service>> {
    let host = forwarded?.host.as_deref()?;
    let service = view.service_by_hostname(host, &workload.namespace)?;
    workload.services.contains_key(&service.key).then_some(service)
}

/// Whether the policies allow the connection; waits, bounded, for policies that are not known yet.
async fn permit(context: &Context, pod: &Pod, connection: &Connection) -> Result<(), Failure> {
    let node = context.config.node.as_deref();
    let judge = |view: &View| pod.find(view, node).map(|workload| authorize(view, &workload, connection));
    let settled = |view: &View| judge(view).filter(|verdict| !matches!(verdict, Verdict::Unknown(_)));
    let verdict = match settled(&context.views.load()) {
        Some(verdict) => Some(verdict),
        None => context.views.wait(POLICY_WAIT, settled).await,
    };
    match verdict {
        Some(verdict) if verdict.is_allowed() => Ok(()),
        Some(verdict) => Err(Failure::Denied(verdict)),
        None => {
            let verdict = judge(&context.views.load());
            Err(Failure::Denied(verdict.unwrap_or_else(|| Verdict::Unknown(Vec::new()))))
        }
    }
}

async fn until_revoked(
    listed: &mut Registration,
    copy: impl Future<Output = std::io::Result<()>>,
) -> Result<(), Failure> {
    tokio::select! {
        result = copy => result.map_err(Failure::Copy),
        verdict = listed.revoked() => Err(Failure::PolicyChange(verdict)),
    }
}

/// Closes the flow. What failed must not look like a proper end to the socket; that an end reset the connection is
/// its right, and no failure of ours.
fn finish(flow: Flow, stream: &TcpStream, result: Result<(), Failure>) {
    match result {
        Ok(()) => flow.close(Ok(())),
        Err(Failure::Copy(error)) if ended_by_peer(&error) => {
            reset_on_close(stream);
            flow.close(Ok(()));
        }
        Err(failure) => {
            reset_on_close(stream);
            flow.close(Err(&failure));
        }
    }
}

fn ended_by_peer(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::ConnectionReset | std::io::ErrorKind::BrokenPipe)
}
