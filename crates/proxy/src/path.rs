//! The path of a connection, from top to bottom: accept → identify → decide → authorize → dial → copy → account.
//!
//! Three ways in: [`outbound`] (what the pod's applications call), [`inbound_tunnel`] (what other proxies bring), and
//! [`inbound_plaintext`] (what callers without the mesh bring). Everything else in this crate exists for these three.

mod dial;
mod judge;

use std::net::SocketAddr;
use std::sync::Arc;

use hbone::{Baggage, Request, Server};
use mesh::{
    Call, Connection, Decision, Identity, MESH_PORTS, NetworkAddress, Refusal, Resolved, Workload, arrive,
    decide,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::copy::{self, Tcp};
use crate::failure::Failure;
use crate::flows::{Opening, Reporter};
use crate::pods::Pod;
use crate::pods::connections::Row;
use crate::sockets::{canonical, original_destination, reset_on_close};
use crate::{outdated, proxy_protocol};
use dial::{in_plaintext, through_tunnel};
use judge::{called_service, finish, permit, until_revoked};

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
    let decision = match decided(context, &source, destination).await {
        Ok(decision) => decision,
        Err(failure) => return refuse(Some(destination), &failure),
    };
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
            through_tunnel(context, pod, &source, route, peer, &stream, &flow).await
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

/// Decides, and looks up what is missing for a decision.
async fn decided(context: &Context, source: &Workload, destination: SocketAddr) -> Result<Decision, Failure> {
    let (random, mut resolved) = (rand::random(), Resolved::new());
    loop {
        let call = Call { source, destination, random, resolved: &resolved };
        let decision = decide(&context.views.load(), &call);
        match decision {
            // The view may change meanwhile, and then another name be asked for; but not for ever.
            Decision::Resolve { hostname, .. } if resolved.len() < 4 => {
                let found = context.hostnames.resolve(&hostname).await?;
                resolved.insert(hostname, found);
            }
            decision => return Ok(decision),
        }
    }
}

fn why_not(decision: Decision) -> Failure {
    match decision {
        Decision::Resolve { hostname, .. } => {
            Failure::Hostname { hostname: hostname.to_string(), reason: "it changes all the time".into() }
        }
        Decision::Refuse(refusal) => refusal.into(),
        Decision::Tunnel(_) | Decision::Passthrough { .. } => Failure::Abandoned,
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
    let identity = tunnel.identity().clone();
    let client = Arc::new(Client { identity, peer, local, transparent, revoked: CancellationToken::new() });
    let mut draining = false;
    let mut revocations = context.settings.rules.revocations.changes();
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
            Ok(()) = revocations.changed() => {
                if tunnel.is_revoked() {
                    tracing::warn!(%peer, identity = %client.identity, "certificate revoked, tunnel cut");
                    client.revoked.cancel();
                    return;
                }
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
    revoked: CancellationToken,
}

async fn inbound_stream(context: &Context, pod: &Pod, client: &Client, request: Request) {
    let Request { head, mut responder } = request;
    // identify
    let known = async {
        let head = head?;
        let workload = pod.workload(context).await?;
        let on_loopback = context.config.localhost_app_tunnel;
        let view = context.views.load();
        let arrival = arrive(&view, &workload, client.local, &head.authority, on_loopback)?;
        Ok::<_, Failure>((head, workload, arrival))
    };
    let (head, workload, arrival) = match known.await {
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
        destination: arrival.target,
    };
    let original = head.forwarded.as_ref().and_then(|forwarded| forwarded.host.as_deref()).map(str::to_owned);
    let row = Row { src: client.peer, original, actual: arrival.dial, protocol: "HBONE" };
    let mut listed = pod.connections.inbound(row, connection.clone());
    // dial
    let dial = async {
        permit(context, pod, &connection).await?;
        // What is reached on loopback is reached from loopback.
        let from = (client.transparent && arrival.dial == arrival.target).then(|| client.peer.ip());
        let mut application = pod.sockets.connect(arrival.dial, from).await.map_err(Failure::Connect)?;
        if let Some(asked) = arrival.proxy_header {
            let header = proxy_protocol::header(client.peer, asked, Some(&client.identity));
            application.write_all(&header).await.map_err(Failure::Copy)?;
        }
        Ok::<_, Failure>(application)
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
            until_revoked(&mut listed, &client.revoked, client.peer, copy).await
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
