//! The path of a connection, from top to bottom: accept → identify → decide → authorize → dial → copy → account.
//!
//! Three ways in: [`outbound`] (what the pod's applications call), [`inbound_tunnel`] (what other proxies bring), and
//! [`inbound_plaintext`] (what callers without the mesh bring). Everything else in this crate exists for these three.

mod dial;
mod judge;
mod neighbour;

use std::io::Write;
use std::net::SocketAddr;
use std::rc::Rc;

use hbone::{Baggage, secured};
use mesh::{
    Call, Connection, Decision, Identity, Lookup, MESH_PORTS, NetworkAddress, Refusal, Resolved, Workload,
    arrive, decide,
};
use socket2::{SockRef, Socket};
use tokio_util::sync::CancellationToken;

use crate::context::Context;
use crate::engine::{Request, Role, Stream, Tunnel};
use crate::failure::Failure;
use crate::flows::{Flow, Opening, Reporter};
use crate::pods::Home;
use crate::pods::connections::{Registration, Row};
use crate::sockets::{Held, local_address, original_destination};
use crate::{outdated, proxy_protocol};
use dial::{Carriage, in_plaintext, join, through_tunnel};
use judge::{called_service, finish, permit, until_revoked};
use neighbour::Neighbour;

/// A connection taken from one of a pod's listeners.
pub(crate) struct Accepted {
    pub(crate) socket: Held,
    pub(crate) peer: SocketAddr,
    /// Whether the application may be called from the peer's address.
    pub(crate) transparent: bool,
}

// ---------------------------------------------------------------------------------------------------- outbound

/// An application of the pod calls somebody.
pub(crate) async fn outbound(home: &Home, accepted: Accepted) {
    // Boxed: what is only needed until bytes flow is not kept for as long as they do.
    let Some((flow, listed, carriage)) = Box::pin(called(home, accepted)).await else { return };
    // copy
    let result = carriage.carry(&flow).await;
    drop(listed);
    // account
    finish(&flow, &result);
}

/// Whom it calls, if it may, and the stream to him; nothing when that is over already.
async fn called(home: &Home, accepted: Accepted) -> Option<(Rc<Flow>, Registration, Carriage)> {
    let Home { context, pod, .. } = home;
    let peer = accepted.peer;
    let refuse = |dst, failure: &Failure| {
        context.refused(pod, Reporter::Source, peer, dst, failure);
        None
    };
    // identify
    let destination = match original_destination(&accepted.socket) {
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
    if let Decision::Tunnel(route) = &decision
        && let Some(neighbour) = Neighbour::of(context, route)
    {
        neighbour.join(home, &source, route, opening, accepted, destination).await;
        return None;
    }
    let socket = accepted.socket;
    let flow = Rc::new(context.flows.open(opening));
    // dial, copy
    let row = |actual, protocol| {
        let original = Some(destination.to_string());
        pod.connections.outbound(Row { src: peer, original, actual, protocol })
    };
    let result = match &decision {
        Decision::Tunnel(route) => {
            let listed = row(route.hop, if route.inner.is_some() { "DOUBLEHBONE" } else { "HBONE" });
            match through_tunnel(home, &source, route, peer, socket, &flow, &listed).await {
                Ok(Some(carriage)) => return Some((flow, listed, carriage)),
                Ok(None) => Ok(()),
                Err(failure) => Err(failure),
            }
        }
        Decision::Passthrough { to, .. } => {
            let _listed = row(*to, "TCP");
            let outdated = outdated::tunnelled(&context.views, &source, destination);
            in_plaintext(home, *to, socket, &flow, outdated).await
        }
        Decision::Refuse(_) | Decision::Need(_) | Decision::Resolve { .. } => return None,
    };
    // account
    finish(&flow, &result);
    None
}

/// Decides, and looks up what is missing for a decision.
async fn decided(context: &Context, source: &Workload, destination: SocketAddr) -> Result<Decision, Failure> {
    let (random, mut resolved, mut asked) = (rand::random(), Resolved::new(), 0);
    loop {
        let call = Call { source, destination, random, resolved: &resolved };
        let decision = decide(&context.views.load(), &call);
        match decision {
            // The view may change meanwhile, and then another name be asked for; but not for ever.
            Decision::Need(lookup) if asked < 4 => {
                asked += 1;
                context.demand.ask(&lookup).await?;
            }
            Decision::Resolve { hostname, .. } if resolved.len() < 4 => {
                let found = context.hostnames.resolve(&hostname, source).await?;
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
        Decision::Need(lookup) => Failure::Undiscovered { what: lookup.to_string() },
        Decision::Refuse(refusal) => refusal.into(),
        Decision::Tunnel(_) | Decision::Passthrough { .. } => Failure::Abandoned,
    }
}

// ---------------------------------------------------------------------------------------------------- inbound

/// Another proxy brings connections for the pod.
pub(crate) async fn inbound_tunnel(home: &Rc<Home>, accepted: Accepted) {
    let Home { context, pod, .. } = &**home;
    let Accepted { socket, peer, transparent } = accepted;
    let local = local_address(&SockRef::from(&socket)).ok();
    let tunnel = match welcome(home, socket, peer).await {
        Ok(tunnel) => tunnel,
        Err(failure) => return context.refused(pod, Reporter::Destination, peer, local, &failure),
    };
    let Some(local) = local else { return };
    let identity = tunnel.identity().clone();
    let client = Rc::new(Client { identity, peer, local, transparent, revoked: CancellationToken::new() });
    let mut draining = false;
    let mut revocations = context.settings.rules.revocations.changes();
    loop {
        tokio::select! {
            biased;
            request = tunnel.next() => {
                let Some(request) = request else { return };
                home.spawn(inbound_stream(home.clone(), client.clone(), request));
            }
            Ok(()) = revocations.changed() => {
                if tunnel.is_revoked() {
                    tracing::warn!(%peer, identity = %client.identity, "certificate revoked, tunnel cut");
                    client.revoked.cancel();
                    return tunnel.cut();
                }
            }
            () = pod.drain.cancelled(), if !draining => {
                draining = true;
                tunnel.graceful_shutdown();
            }
        }
    }
}

/// Makes a tunnel of a connection of another proxy. The handshake's arithmetic is done beside the data path.
async fn welcome(home: &Home, socket: Held, peer: SocketAddr) -> Result<Tunnel, Failure> {
    let Home { context, pod, worker, .. } = home;
    let workload = pod.workload(context).await?;
    let credential = context.certs.get(&workload.identity).await?;
    let (settings, until) = (context.settings.clone(), credential.validity().not_after);
    let handshake = tokio::runtime::Handle::current().spawn(async move {
        let mut stream = tokio::net::TcpStream::from_std(socket.take()?.into())?;
        let secured = secured::server(&mut stream, peer, &credential, &settings).await;
        std::io::Result::Ok((stream.into_std()?, secured))
    });
    let (stream, secured) = handshake.await.map_err(|_| Failure::Abandoned)?.map_err(Failure::Copy)?;
    let tunnel = worker.adopt(stream.into(), secured?, peer, Role::Server, &context.settings);
    tunnel.inspect(|tunnel| tunnel.retire_at(until)).map_err(Failure::Copy)
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

fn inbound_stream(home: Rc<Home>, client: Rc<Client>, request: Request) -> impl Future<Output = ()> {
    // Boxed, before anything: what is only needed until bytes flow is not kept for as long as they do.
    let admitted = Box::pin(admitted(home, client.clone(), request));
    async move {
        let Some((flow, mut listed, stream, application)) = admitted.await else { return };
        // copy
        let copy = stream.carry(application, flow.clone());
        let result = until_revoked(&mut listed, &client.revoked, client.peer, copy).await;
        // account
        finish(&flow, &result);
    }
}

/// A stream that may reach the application, and the connection to it; nothing when it has been refused.
async fn admitted(
    home: Rc<Home>,
    client: Rc<Client>,
    request: Request,
) -> Option<(Rc<Flow>, Registration, Stream, Socket)> {
    let Home { context, pod, worker, .. } = &*home;
    let Request { head, responder } = request;
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
            context.refused(pod, Reporter::Destination, client.peer, Some(client.local), &failure);
            return None;
        }
    };
    let network = network_of(head.network.as_deref(), &context.config.network);
    let caller = NetworkAddress::new(network, client.peer.ip());
    context.demand.hint(Lookup::Address(caller.clone())).await;
    let view = context.views.load();
    let service = called_service(&view, &workload, head.forwarded.as_ref());
    let source = view.workload_by_address(&caller);
    let flow = Rc::new(context.flows.open(Opening::inbound(
        &workload,
        service.map(|service| &**service),
        source.map(|source| &**source),
        head.baggage.as_ref().filter(|_| context.config.response_baggage),
        Some(client.identity.clone()),
        client.peer,
        client.local,
        Some(head.authority.clone()),
    )));
    // authorize; listed first, so that no change of policy slips through in between
    let connection = Connection {
        identity: Some(client.identity.clone()),
        source_ip: client.peer.ip(),
        destination: arrival.target,
    };
    let original = head.forwarded.as_ref().and_then(|forwarded| forwarded.host.as_deref()).map(str::to_owned);
    let row = Row { src: client.peer, original, actual: arrival.dial, protocol: "HBONE" };
    let listed = pod.connections.inbound(row, connection.clone());
    // dial
    let dial = async {
        permit(context, pod, &connection).await?;
        // What is reached on loopback is reached from loopback.
        let from = (client.transparent && arrival.dial == arrival.target).then(|| client.peer.ip());
        let application = pod.sockets.connect_on(worker, arrival.dial, from).await;
        let application = application.map_err(Failure::Connect)?;
        if let Some(asked) = arrival.proxy_header {
            let header = proxy_protocol::header(client.peer, asked, Some(&client.identity));
            (&*SockRef::from(&application)).write_all(&header).map_err(Failure::Copy)?;
        }
        Ok::<_, Failure>(application)
    };
    let dialled = tokio::select! {
        biased;
        dialled = dial => dialled,
        () = responder.abandoned() => {
            flow.close(Err(&Failure::Abandoned));
            return None;
        }
    };
    let application = match dialled.and_then(|application| application.take().map_err(Failure::Copy)) {
        Ok(application) => application,
        Err(failure) => {
            responder.refuse(failure.status());
            flow.close(Err(&failure));
            return None;
        }
    };
    let baggage = context.config.response_baggage.then(|| Baggage::of(&workload));
    let stream = responder.accept(baggage.as_ref());
    flow.established(None);
    Some((flow, listed, stream, application))
}

/// The network that a client is on, by what its tunnel says; names of networks are compared without case.
fn network_of<'a>(named: Option<&'a str>, own: &'a str) -> &'a str {
    named.filter(|named| !named.eq_ignore_ascii_case(own)).unwrap_or(own)
}

/// Somebody without the mesh calls an application of the pod.
pub(crate) async fn inbound_plaintext(home: &Home, accepted: Accepted) {
    let Home { context, pod, worker, .. } = home;
    let Accepted { socket, peer, transparent } = accepted;
    let refuse = |dst, failure: &Failure| context.refused(pod, Reporter::Destination, peer, dst, failure);
    // identify
    let target = match original_destination(&socket) {
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
    let caller = NetworkAddress::new(workload.network.clone(), peer.ip());
    context.demand.hint(Lookup::Address(caller.clone())).await;
    let view = context.views.load();
    let source = view.workload_by_address(&caller);
    let source = source.map(|source| &**source);
    let opening = Opening::inbound(&workload, None, source, None, None, peer, target, None);
    let flow = Rc::new(context.flows.open(opening));
    // authorize
    let connection = Connection { identity: None, source_ip: peer.ip(), destination: target };
    let row = Row { src: peer, original: None, actual: target, protocol: "TCP" };
    let mut listed = pod.connections.inbound(row, connection.clone());
    // dial, copy
    let result = match permit(context, pod, &connection).await {
        Ok(()) => {
            let from = transparent.then(|| peer.ip());
            let carry = async {
                let application = pod.sockets.connect_on(worker, target, from).await;
                let application = application.map_err(Failure::Connect)?;
                flow.established(None);
                join(home, socket, application, flow.clone())?.ended().await.map_err(Failure::Copy)
            };
            tokio::select! {
                biased;
                result = carry => result,
                verdict = listed.revoked() => Err(Failure::PolicyChange(verdict)),
            }
        }
        Err(failure) => Err(failure),
    };
    // account
    finish(&flow, &result);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_network_is_meant_however_it_is_written_and_when_none_is_named() {
        for (named, meant) in
            [(None, "West"), (Some("west"), "West"), (Some("WEST"), "West"), (Some("east"), "east")]
        {
            assert_eq!(network_of(named, "West"), meant, "{named:?}");
        }
    }

    fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    /// Bytes that a connection keeps for as long as it lasts: some of what its set-up needed would come to stay by
    /// accident.
    #[test]
    fn a_connection_keeps_little() {
        let call = size(|(home, accepted): (&'static Home, Accepted)| outbound(home, accepted));
        let stream = size(|(home, client, request)| inbound_stream(home, client, request));
        let flow = size_of::<crate::flows::Flow>();
        assert!(call <= 384 && stream <= 512 && flow <= 768, "{call}, {stream}, {flow}");
    }
}
