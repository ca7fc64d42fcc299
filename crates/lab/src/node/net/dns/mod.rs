//! The cluster's resolver on one node: UDP and TCP on the address every pod's `/etc/resolv.conf` names.
//!
//! Names of the cluster are answered from the snapshot ([`zone`]); everything else goes to the resolvers of the
//! host, seen from the host's network namespace (`forward`), or fails. Before the first snapshot names of the
//! cluster fail too: "no such name" would be remembered by clients.

mod forward;
pub mod zone;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, Record};
use netns::NetNs;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};

use super::{Shared, accept_failed, listen};
use zone::{Answer, Zone};

/// The largest answer sent over UDP, whatever the client offers: it passes any link without fragments.
const LARGEST_DATAGRAM: u16 = 1232;
/// Questions for others that may wait at once, and TCP clients at once.
const AT_MOST: usize = 256;
/// How long a TCP client may be quiet.
const QUIET: Duration = Duration::from_secs(10);

/// Listens on `address` inside `ns` and answers for the life of the process.
pub(super) fn start(ns: &NetNs, address: SocketAddr, changes: watch::Receiver<Shared>) -> anyhow::Result<()> {
    let busy = || format!("the resolver cannot listen on {address}");
    let udp = ns
        .try_run(|| {
            let socket = std::net::UdpSocket::bind(address)?;
            socket.set_nonblocking(true)?;
            UdpSocket::from_std(socket)
        })
        .with_context(busy)?;
    let tcp = ns.try_run(|| listen(address)).with_context(busy)?;
    let forward = forward::Forward::from_host(address.ip());
    let resolver = Arc::new(Resolver { zone: Zone::cluster_local(), changes, forward });
    tokio::spawn(serve_udp(udp, resolver.clone()));
    tokio::spawn(serve_tcp(tcp, resolver));
    Ok(())
}

struct Resolver {
    zone: Zone,
    changes: watch::Receiver<Shared>,
    forward: forward::Forward,
}

/// What to do with a question.
enum Reply {
    /// Send this.
    Now(Message),
    /// Ask the host's resolvers; this is the answer if they fail.
    Elsewhere(Message),
}

impl Resolver {
    /// `None`: not a question, deserves no answer.
    fn answer(&self, question: &[u8]) -> Option<Reply> {
        let query = match Message::from_vec(question) {
            Ok(query) if query.metadata.message_type == MessageType::Query => query,
            Ok(_) => return None,
            Err(_) => {
                // Without an id nobody could relate the complaint to the question.
                let id = u16::from_be_bytes([*question.first()?, *question.get(1)?]);
                let is_response = question.get(2)? & 0x80 != 0;
                return (!is_response)
                    .then(|| Reply::Now(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)));
            }
        };
        let snapshot = self.changes.borrow().clone();
        Some(answer(&self.zone, snapshot.as_deref(), &query))
    }

    async fn resolve(&self, question: &[u8], reply: Reply, over: Over) -> Option<Vec<u8>> {
        match reply {
            Reply::Now(message) => encode(message, over),
            Reply::Elsewhere(failed) => match self.forward.ask(question, over).await {
                Some(answer) => Some(answer),
                None => encode(failed, over),
            },
        }
    }
}

/// How a question came, and so how large its answer may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Over {
    Udp,
    Tcp,
}

fn answer(zone: &Zone, snapshot: Option<&super::Snapshot>, query: &Message) -> Reply {
    let mut reply = reply_to(query);
    if query.metadata.op_code != OpCode::Query {
        reply.metadata.response_code = ResponseCode::NotImp;
        return Reply::Now(reply);
    }
    let [question] = query.queries.as_slice() else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return Reply::Now(reply);
    };
    if question.query_class() != DNSClass::IN {
        reply.metadata.response_code = ResponseCode::Refused;
        return Reply::Now(reply);
    }
    let Some(snapshot) = snapshot else {
        reply.metadata.response_code = ResponseCode::ServFail;
        return if zone.holds(question.name()) { Reply::Now(reply) } else { Reply::Elsewhere(reply) };
    };
    match zone.answer(snapshot, question.name(), question.query_type()) {
        Answer::Found { answers, additionals } => {
            if answers.is_empty() {
                reply.add_authority(zone.soa());
            }
            reply.add_answers(shuffled(answers));
            reply.add_additionals(additionals);
        }
        Answer::NoSuchName => {
            reply.metadata.response_code = ResponseCode::NXDomain;
            reply.add_authority(zone.soa());
        }
        Answer::NotOurs => {
            reply.metadata.response_code = ResponseCode::ServFail;
            reply.metadata.authoritative = false;
            return Reply::Elsewhere(reply);
        }
    }
    Reply::Now(reply)
}

fn reply_to(query: &Message) -> Message {
    let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
    reply.metadata = Metadata::response_from_request(&query.metadata);
    reply.metadata.authoritative = true;
    reply.metadata.recursion_available = true;
    reply.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        // The client's own limit, held back for `encode`; what is sent says ours.
        let mut edns = Edns::new();
        edns.set_max_payload(query.max_payload().min(LARGEST_DATAGRAM));
        reply.set_edns(edns);
    }
    reply
}

/// Clients take the first address; each gets another one. An alias stays in front of what it leads to.
fn shuffled(mut answers: Vec<Record>) -> Vec<Record> {
    use rand::seq::SliceRandom as _;
    if answers.iter().all(|record| record.name == answers[0].name) {
        answers.shuffle(&mut rand::rng());
    }
    answers
}

fn encode(message: Message, over: Over) -> Option<Vec<u8>> {
    let room = match over {
        Over::Tcp => usize::from(u16::MAX),
        Over::Udp => usize::from(message.max_payload()),
    };
    let whole = message.to_vec().ok().filter(|bytes| bytes.len() <= room);
    // Too long: the client asks again over TCP.
    whole.or_else(|| message.truncate().to_vec().ok())
}

async fn serve_udp(socket: UdpSocket, resolver: Arc<Resolver>) {
    let socket = Arc::new(socket);
    let places = Arc::new(Semaphore::new(AT_MOST));
    let mut buffer = vec![0; 4096];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                accept_failed("resolver", &error).await;
                continue;
            }
        };
        let question = &buffer[..length];
        let Some(reply) = resolver.answer(question) else { continue };
        match reply {
            Reply::Now(message) => {
                if let Some(answer) = encode(message, Over::Udp) {
                    // A client that is gone asks no more.
                    let _ = socket.send_to(&answer, peer).await;
                }
            }
            elsewhere => {
                // When too many wait the question is dropped, as a busy resolver does: the client asks again.
                let Ok(place) = places.clone().try_acquire_owned() else { continue };
                let (socket, resolver, question) = (socket.clone(), resolver.clone(), question.to_vec());
                tokio::spawn(async move {
                    if let Some(answer) = resolver.resolve(&question, elsewhere, Over::Udp).await {
                        let _ = socket.send_to(&answer, peer).await;
                    }
                    drop(place);
                });
            }
        }
    }
}

async fn serve_tcp(listener: TcpListener, resolver: Arc<Resolver>) {
    let places = Arc::new(Semaphore::new(AT_MOST));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let resolver = resolver.clone();
                tokio::spawn(async move {
                    // The end of a conversation is the client's affair.
                    let _ = converse(stream, &resolver).await;
                    drop(place);
                });
            }
            Err(error) => accept_failed("resolver", &error).await,
        }
    }
}

async fn converse(mut stream: TcpStream, resolver: &Resolver) -> std::io::Result<()> {
    loop {
        let question = async {
            let length = stream.read_u16().await?;
            let mut question = vec![0; usize::from(length)];
            stream.read_exact(&mut question).await?;
            Ok::<_, std::io::Error>(question)
        };
        let question = tokio::time::timeout(QUIET, question).await??;
        let Some(reply) = resolver.answer(&question) else { return Ok(()) };
        let Some(answer) = resolver.resolve(&question, reply, Over::Tcp).await else { return Ok(()) };
        let length = u16::try_from(answer.len()).map_err(std::io::Error::other)?;
        let framed = [&length.to_be_bytes()[..], &answer].concat();
        tokio::time::timeout(QUIET, stream.write_all(&framed)).await??;
    }
}

#[cfg(test)]
mod tests;
