//! Connections that are older than a pod's enrolment.
//!
//! Redirection acts on new connections only. A client that keeps its connections alive, as Prometheus does for as
//! long as it scrapes, would stay in plaintext for ever. So right after a pod's rules are in place its TCP sockets
//! are listed; those that do not go through the proxy are the older ones, and each is ended as soon as it is idle,
//! so that the client dials anew and no request in flight is lost.
//!
//! - **Which**: [`older`]. A connection goes through the proxy when its other end is a socket of the same
//!   namespace; nothing is guessed from time. Loopback, probes, the proxy's own sockets, peers of the node itself
//!   and peers the configuration names are exempt: they are not in the list, so nothing here can end them.
//! - **When**: [`due`]. Nothing unread, unsent or unacknowledged, nothing moved for a while, and the last thing
//!   that moved was the answer. The while gets shorter for a client that asks so often that it never pauses that
//!   long, but not for one that receives a stream. What never becomes idle is ended when the grace is over, and what its server's
//!   policy forbids at once ([`illegal`]).
//! - **From which end**: the client's, by the agent of the client's node, whatever the peer is: what the pod dials
//!   then goes through the proxy. From the server's end only later ([`Policy::server_turn`]), which catches the
//!   clients that were enrolled before the server: their connection was dialled by *their proxy* in plaintext.
//!   A client that is known not to be in the mesh keeps its connection; plaintext from it is legal.
//!
//! A socket is destroyed with `SOCK_DESTROY`, what `ss -K` does: the client sees `ECONNABORTED`, the other end a
//! reset. It is named by addresses *and* cookie, so it cannot be a younger one with the same ports.

pub mod diag;
pub mod sweep;

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use diag::{Socket, State};

use crate::redirect::{HBONE_PORT, INBOUND_PORT, MARK_MASK, OUTBOUND_PORT, PROXY_MARK};
use crate::strict::Strictness;

/// Which end of its connection a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// It dialled.
    Client,
    /// It was accepted.
    Server,
}

/// A socket of the pod's own programs with what became of its connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The socket.
    pub socket: Socket,
    /// Which end it is.
    pub side: Side,
}

/// Peers whose connections are nobody's business here.
#[derive(Clone, Debug, Default)]
pub struct Exempt {
    /// Addresses of the node and of probes.
    pub addresses: HashSet<IpAddr>,
    /// Exact peers, such as the API server.
    pub peers: HashSet<SocketAddr>,
}

/// Local pods that are known not to be in the mesh: they keep their connections to a pod that is.
pub type Outside = HashSet<IpAddr>;

/// The connections of a namespace's programs that go past the proxy, out of all its sockets.
pub fn older(sockets: &[Socket], exempt: &Exempt) -> Vec<Connection> {
    classify(sockets, exempt, false)
}

/// The connections of a namespace's programs that go through the proxy.
pub fn carried(sockets: &[Socket], exempt: &Exempt) -> Vec<Connection> {
    classify(sockets, exempt, true)
}

fn classify(sockets: &[Socket], exempt: &Exempt, through_proxy: bool) -> Vec<Connection> {
    let listening: HashSet<u16> = sockets
        .iter()
        .filter(|socket| socket.state == State::Listen)
        .map(|socket| socket.local.port())
        .collect();
    let ends: HashSet<(SocketAddr, SocketAddr)> = sockets
        .iter()
        .filter(|socket| socket.state.connected())
        .map(|socket| (socket.local, socket.remote))
        .collect();
    // What a pod dials is redirected to loopback: the proxy's end has the program's address as its peer.
    let redirected: HashSet<SocketAddr> = sockets
        .iter()
        .filter(|socket| socket.state.connected() && socket.local.port() == OUTBOUND_PORT)
        .map(|socket| socket.remote)
        .collect();
    sockets
        .iter()
        .filter(|socket| socket.state.connected() && !is_exempt(socket, exempt))
        .filter(|socket| {
            let held = ends.contains(&(socket.remote, socket.local)) || redirected.contains(&socket.local);
            held == through_proxy
        })
        .map(|socket| {
            let side = if listening.contains(&socket.local.port()) { Side::Server } else { Side::Client };
            Connection { socket: socket.clone(), side }
        })
        .collect()
}

fn is_exempt(socket: &Socket, exempt: &Exempt) -> bool {
    let own = |port| matches!(port, OUTBOUND_PORT | INBOUND_PORT | HBONE_PORT);
    socket.mark & MARK_MASK == PROXY_MARK
        || own(socket.local.port())
        || socket.local.ip().is_loopback()
        || socket.remote.ip().is_loopback()
        || exempt.addresses.contains(&socket.remote.ip())
        || exempt.peers.contains(&socket.remote)
}

/// An answer that still moves so long after its request is a stream.
const STREAM: Duration = Duration::from_secs(1);

/// A client that asks again and again pauses for less than was waited for at first: the longer it has been seen
/// busy, the shorter a pause between answer and request is taken for idle.
fn patience(waited: Duration) -> u32 {
    match waited.as_secs() {
        0..5 => 1,
        5..10 => 4,
        10..30 => 10,
        _ => 50,
    }
}

/// How patient to be.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// Nothing may have moved for this long.
    pub quiet: Duration,
    /// The same where it cannot be told whether the answer or the next request moved last.
    pub quiet_unsure: Duration,
    /// How long after the enrolment nothing is ended: a client that dials anew before the mesh has heard of the
    /// enrolment would get plaintext again, through its proxy this time.
    pub settle: Duration,
    /// How long after the enrolment the server's end waits for the client's agent to act first.
    pub server_turn: Duration,
    /// When a connection is ended although it never was idle.
    pub grace: Duration,
}

impl Policy {
    /// The measured defaults with the configured grace.
    pub fn with_grace(grace: Duration) -> Self {
        Self {
            quiet: Duration::from_millis(200),
            quiet_unsure: Duration::from_secs(1),
            settle: Duration::from_secs(1),
            server_turn: Duration::from_secs(3),
            grace,
        }
    }
}

/// What is to be done about a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// End it: nothing is in flight.
    EndIdle,
    /// End it although it is busy: the grace is over.
    EndOverdue,
    /// End it at once, busy or not: its server demands mutual TLS ([`illegal`]).
    EndIllegal,
    /// Look again later.
    Wait(Busy),
}

/// Why a connection cannot be ended yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Busy {
    /// Bytes wait to be read, sent or acknowledged.
    Queued,
    /// A request was sent and its answer is still to come.
    AwaitingAnswer,
    /// Something moved a moment ago.
    JustMoved,
    /// Its state changes at this moment.
    InTransition,
    /// The mesh is to hear of the enrolment first, and the client's end has the first turn.
    NotYet,
}

/// Whether a plaintext connection is one that its server's policy forbids. Its end is a matter of the server's
/// agent, at once: a request in it is cut, as the policy cuts each new one.
pub fn illegal(connection: &Connection, strict: &Strictness) -> bool {
    connection.side == Side::Server && strict.refuses(connection.socket.local.port())
}

/// What is to be done about `connection`, `age` after the enrolment of its pod.
pub fn due(connection: &Connection, age: Duration, policy: &Policy) -> Verdict {
    if age >= policy.grace {
        return Verdict::EndOverdue;
    }
    match busy(connection, age, policy) {
        Some(why) => Verdict::Wait(why),
        None => Verdict::EndIdle,
    }
}

fn busy(connection: &Connection, age: Duration, policy: &Policy) -> Option<Busy> {
    let socket = &connection.socket;
    if socket.state != State::Established {
        return Some(Busy::InTransition);
    }
    let turn = match connection.side {
        Side::Client => policy.settle,
        Side::Server => policy.server_turn,
    };
    if age < turn {
        return Some(Busy::NotYet);
    }
    if socket.unread > 0 || socket.unsent > 0 || socket.unacked > 0 {
        return Some(Busy::Queued);
    }
    // The client's last word is the request, the server's the answer.
    let (request, answer) = match connection.side {
        Side::Client => (socket.since_sent, socket.since_received),
        Side::Server => (socket.since_received, socket.since_sent),
    };
    if request < answer {
        return Some(Busy::AwaitingAnswer);
    }
    let unsure = request == answer;
    let base = if unsure { policy.quiet_unsure } else { policy.quiet };
    // An answer that goes on without new requests is a stream: its pauses are no end.
    let stream = request.saturating_sub(answer) >= STREAM;
    let quiet = if stream { base } else { base / patience(age.saturating_sub(turn)) };
    (answer < quiet).then_some(Busy::JustMoved)
}

#[cfg(test)]
mod tests;
