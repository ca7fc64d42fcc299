//! Carries what the mesh does not know to the pod's name servers, and their answers back, both unchanged.
//!
//! The name server is the one that the pod asked; where that cannot be found out, those of the proxy's `resolv.conf`.
//! Each attempt has its own socket in the pod's namespace, its own port and its own id, and takes only answers that
//! repeat the question. A server that is slow or silent costs one question a moment, not all of them: the next one is
//! asked beside it, and [`Health`] remembers. Every wait is bounded.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::health::Health;
use super::message::{self, Belongs, Query};
use super::resolvers::Resolvers;
use crate::sockets::{ConnectError, Sockets};

/// After this long another server is asked, too.
const HEDGE: Duration = Duration::from_millis(500);
/// Resolver libraries give up after five seconds; before that they are told.
const PATIENCE: Duration = Duration::from_millis(4500);
const PROBE: Duration = Duration::from_secs(2);
/// Between two messages of a transfer.
const TRANSFER_PAUSE: Duration = Duration::from_secs(10);
const LARGEST: usize = 65_535;

/// How a question came, and how it is passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RelayError {
    #[error("{path} names no name server: give the proxy one")]
    NoServer { path: String },
    #[error("no name server answered within {PATIENCE:?}: {}", list(.0))]
    Silence(Vec<SocketAddr>),
    #[error("no name server can be reached; the last was {server}: {error}")]
    Unreachable { server: SocketAddr, error: AttemptError },
}

/// Why one server gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AttemptError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("it closed the connection without an answer")]
    Closed,
}

fn list(servers: &[SocketAddr]) -> String {
    servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// The way from one pod to its name servers. Clones share what is known of them.
#[derive(Clone)]
pub(crate) struct Relay {
    inside: Sockets,
    /// A name server on loopback can only be meant where the proxy is.
    outside: Sockets,
    resolvers: Arc<Resolvers>,
    health: Arc<Mutex<Health>>,
}

struct Attempt {
    server: SocketAddr,
    since: Instant,
    result: Result<Vec<u8>, AttemptError>,
}

impl Relay {
    pub(crate) fn new(inside: Sockets, outside: Sockets, resolvers: Arc<Resolvers>) -> Self {
        Self { inside, outside, resolvers, health: Arc::default() }
    }

    /// Asks the name servers; the answer carries the client's id.
    pub(crate) async fn ask(&self, query: &Query, transport: Transport) -> Result<Vec<u8>, RelayError> {
        let asked = match transport {
            Transport::Udp => self.race(query, transport).await,
            Transport::Tcp => match self.race(query, transport).await {
                // Some resolvers have no TCP at all; what is complete without it is good enough.
                Err(error @ RelayError::Unreachable { .. }) if query.repeatable() => {
                    let answer = self.race(query, Transport::Udp).await?;
                    if message::truncated(&answer) { Err(error) } else { Ok(answer) }
                }
                asked => asked,
            },
        };
        asked.map(|mut answer| {
            query.restore_id(&mut answer);
            answer
        })
    }

    /// Whom to ask: whom the pod asked, and others only when they are as good, being our own name servers, too.
    fn servers(&self, asked: Option<SocketAddr>, now: Instant) -> Vec<SocketAddr> {
        let ours = self.resolvers.current(now);
        match asked {
            None => ours.to_vec(),
            Some(asked) if ours.contains(&asked) => {
                let others = ours.iter().copied().filter(|server| *server != asked);
                std::iter::once(asked).chain(others).collect()
            }
            Some(asked) => vec![asked],
        }
    }

    fn plan(&self, query: &Query) -> Result<Vec<SocketAddr>, RelayError> {
        let now = Instant::now();
        let servers = self.servers(query.asked(), now);
        if servers.is_empty() {
            return Err(RelayError::NoServer { path: self.resolvers.path().display().to_string() });
        }
        let plan = self.health.lock().plan(&servers, now);
        if let Some(server) = plan.probe.filter(|_| query.repeatable()) {
            let (relay, query) = (self.clone(), query.clone());
            tokio::spawn(async move {
                match timeout(PROBE, relay.over_udp(server, &query)).await {
                    Ok(Ok(_)) => relay.answered(server),
                    Ok(Err(error)) => relay.failed(server, &error.to_string()),
                    Err(_) => relay.failed(server, "silence"),
                }
            });
        }
        Ok(plan.order)
    }

    /// The first good answer of any server.
    async fn race(&self, query: &Query, transport: Transport) -> Result<Vec<u8>, RelayError> {
        let order = self.plan(query)?;
        // What changes something is sent once, to one server at a time.
        let rounds = if query.repeatable() && transport == Transport::Udp { 2 } else { 1 };
        let mut next = order.iter().cycle().take(order.len() * rounds).copied();
        let mut running = FuturesUnordered::new();
        let mut pending: Vec<(SocketAddr, Instant)> = Vec::new();
        let mut helpless: HashSet<SocketAddr> = HashSet::new();
        let mut poor: Option<Vec<u8>> = None;
        let mut broken: Option<(SocketAddr, AttemptError)> = None;
        let start = tokio::time::Instant::now();
        let deadline = start + PATIENCE;
        let mut hedge = start;
        loop {
            let now = tokio::time::Instant::now();
            if running.is_empty() || (query.repeatable() && now >= hedge) {
                match next.find(|server| !helpless.contains(server)) {
                    Some(server) => {
                        let since = Instant::now();
                        pending.push((server, since));
                        running.push(async move {
                            let result = self.attempt(server, query, transport).await;
                            Attempt { server, since, result }
                        });
                        hedge = now + HEDGE;
                    }
                    None if running.is_empty() => break,
                    None => hedge = deadline,
                }
            }
            tokio::select! {
                biased;
                Some(Attempt { server, since, result }) = running.next() => {
                    pending.retain(|attempt| *attempt != (server, since));
                    match result {
                        Ok(answer) if message::poor(&answer) => {
                            self.answered(server);
                            helpless.insert(server);
                            poor.get_or_insert(answer);
                            hedge = tokio::time::Instant::now();
                        }
                        Ok(answer) => {
                            self.answered(server);
                            for (slow, since) in pending {
                                if slow != server && since.elapsed() >= HEDGE {
                                    self.failed(slow, "slower than another");
                                }
                            }
                            return Ok(answer);
                        }
                        Err(error) => {
                            self.failed(server, &error.to_string());
                            broken = Some((server, error));
                            hedge = tokio::time::Instant::now();
                        }
                    }
                }
                () = tokio::time::sleep_until(hedge), if query.repeatable() && hedge < deadline => {}
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        let silent: HashSet<SocketAddr> = pending.into_iter().map(|(server, _)| server).collect();
        for server in &silent {
            self.failed(*server, "silence");
        }
        match (poor, broken) {
            (Some(answer), _) => Ok(answer),
            (None, Some((server, error))) if silent.is_empty() => {
                Err(RelayError::Unreachable { server, error })
            }
            _ => Err(RelayError::Silence(order)),
        }
    }

    async fn attempt(
        &self,
        server: SocketAddr,
        query: &Query,
        transport: Transport,
    ) -> Result<Vec<u8>, AttemptError> {
        match transport {
            Transport::Udp => self.over_udp(server, query).await,
            Transport::Tcp => self.over_tcp(server, query).await,
        }
    }

    async fn over_udp(&self, server: SocketAddr, query: &Query) -> Result<Vec<u8>, AttemptError> {
        let socket = self.sockets(server, query).datagrams_to(server)?;
        let id = rand::random();
        socket.send(&query.with_id(id)).await?;
        let mut answer = Vec::with_capacity(LARGEST);
        loop {
            answer.clear();
            socket.recv_buf(&mut answer).await?;
            match query.belongs(id, &answer) {
                Belongs::Yes => return Ok(answer),
                // A guess, or a server that does not keep the case: only a connection can tell.
                Belongs::ButForCase => return self.over_tcp(server, query).await,
                Belongs::No => tracing::debug!(%server, "an answer to another question is dropped"),
            }
        }
    }

    async fn over_tcp(&self, server: SocketAddr, query: &Query) -> Result<Vec<u8>, AttemptError> {
        let (mut stream, id) = self.send_over_tcp(server, query).await?;
        loop {
            let answer = receive(&mut stream).await?.ok_or(AttemptError::Closed)?;
            if query.belongs(id, &answer) != Belongs::No {
                return Ok(answer);
            }
        }
    }

    async fn send_over_tcp(
        &self,
        server: SocketAddr,
        query: &Query,
    ) -> Result<(TcpStream, u16), AttemptError> {
        let mut stream = self.sockets(server, query).connect(server).await?;
        let id = rand::random();
        stream.write_all(&framed(&query.with_id(id))).await?;
        Ok((stream, id))
    }

    /// Passes on all messages of a transfer; the first server that answers is the one.
    pub(crate) async fn transfer(&self, query: &Query, to: &mpsc::Sender<Vec<u8>>) -> Result<(), RelayError> {
        let mut broken = None;
        for server in self.plan(query)? {
            let sent = timeout(PATIENCE, self.send_over_tcp(server, query)).await;
            let (mut stream, id) = match sent {
                Ok(Ok(sent)) => sent,
                Ok(Err(error)) => {
                    self.failed(server, &error.to_string());
                    broken = Some(RelayError::Unreachable { server, error });
                    continue;
                }
                Err(_) => {
                    self.failed(server, "silence");
                    broken.get_or_insert(RelayError::Silence(vec![server]));
                    continue;
                }
            };
            let mut any = false;
            while let Ok(Ok(Some(mut answer))) = timeout(TRANSFER_PAUSE, receive(&mut stream)).await {
                // Only the first message has to repeat the question (RFC 5936 §2.2.1).
                if !any && query.belongs(id, &answer) == Belongs::No {
                    continue;
                }
                any = true;
                query.restore_id(&mut answer);
                if to.send(answer).await.is_err() {
                    return Ok(());
                }
            }
            if any {
                return Ok(());
            }
            broken = Some(RelayError::Unreachable { server, error: AttemptError::Closed });
        }
        Err(broken.unwrap_or(RelayError::Silence(Vec::new())))
    }

    fn sockets(&self, server: SocketAddr, query: &Query) -> &Sockets {
        // What the pod calls loopback is its own.
        let ours = query.asked() != Some(server);
        if ours && server.ip().is_loopback() { &self.outside } else { &self.inside }
    }

    fn answered(&self, server: SocketAddr) {
        if self.health.lock().answered(server) {
            tracing::info!(%server, "a name server answers again");
        }
    }

    fn failed(&self, server: SocketAddr, reason: &str) {
        let now = Instant::now();
        if !self.health.lock().failed(server, now) {
            return;
        }
        // A pod may ask whomever it likes; that is its own affair.
        if self.resolvers.current(now).contains(&server) {
            tracing::warn!(%server, reason, "a name server does not answer and is asked last");
        } else {
            tracing::debug!(%server, reason, "a name server of a pod's own does not answer");
        }
    }
}

/// A message as it travels over TCP. Messages come from TCP or fit into a datagram: none is longer than its length.
pub(crate) fn framed(message: &[u8]) -> Vec<u8> {
    let message = &message[..message.len().min(LARGEST)];
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend((message.len() as u16).to_be_bytes());
    framed.extend(message);
    framed
}

/// The next message; nothing when the peer has ended. The caller bounds the wait.
pub(crate) async fn receive(stream: &mut (impl AsyncReadExt + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = [0; 2];
    let first = stream.read(&mut length).await?;
    if first == 0 {
        return Ok(None);
    }
    if first == 1 {
        stream.read_exact(&mut length[1..]).await?;
    }
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message).await?;
    Ok(Some(message))
}
