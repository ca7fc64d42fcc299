//! The listeners of a pod's DNS, and what becomes of each question.
//!
//! What the mesh answers is answered by the task that read it and waits for nothing. What has to wait has a slot, of
//! which a pod has only so many. TCP clients may send many questions at once; each is answered when its answer is
//! there, in any order (RFC 7766 §7).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hickory_proto::rr::RecordType;
use mesh::Workload;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::answer::{Reply, answer};
use super::message::{Query, SERVFAIL, Unreadable};
use super::relay::{Relay, RelayError, Transport, framed, receive};
use super::stats::Labels;
use super::{Dns, PORT};
use crate::context::Context;
use crate::pods::{Pod, PodInfo};
use crate::sockets::{Sockets, canonical, original_destination};

/// Questions of a pod that wait for an answer.
const WAITING: usize = 256;
/// Of those, for one connection.
const WAITING_PER_CONNECTION: usize = 32;
/// Connections of a pod; more wait to be accepted.
const CONNECTIONS: usize = 128;
/// A connection on which nothing is asked.
const IDLE: Duration = Duration::from_secs(10);
/// A client that takes or sends half a message.
const STALLED: Duration = Duration::from_secs(5);
/// How long the questions of a pod wait for it to be announced by the control plane: less than resolver libraries do.
const WORKLOAD_WAIT: Duration = Duration::from_secs(2);

/// The sockets of a pod's DNS.
pub(crate) struct Listeners {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

/// Opens the sockets; none when DNS is switched off. IPv6 is served where it is there.
pub(crate) fn open(context: &Context, sockets: &Sockets) -> io::Result<Option<Listeners>> {
    if !context.config.dns.capture {
        return Ok(None);
    }
    let both = |address: SocketAddr| -> io::Result<(UdpSocket, TcpListener)> {
        Ok((sockets.listen_datagrams(address)?, sockets.listen_at(address)?))
    };
    let (udp, tcp) = both((Ipv4Addr::LOCALHOST, PORT).into())?;
    let mut listeners = Listeners { udp: vec![udp], tcp: vec![tcp] };
    if context.config.ipv6 {
        match both((Ipv6Addr::LOCALHOST, PORT).into()) {
            Ok((udp, tcp)) => {
                listeners.udp.push(udp);
                listeners.tcp.push(tcp);
            }
            Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => {
                tracing::debug!("no IPv6 here, DNS is served on IPv4 alone");
            }
            Err(error) => tracing::warn!(%error, "DNS is served on IPv4 alone"),
        }
    }
    Ok(Some(listeners))
}

/// Serves the sockets until the pod is stopped or drained.
pub(crate) fn serve(context: &Arc<Context>, pod: &Arc<Pod>, listeners: Listeners) {
    let outside = Sockets::own(&context.config);
    let relay = Relay::new(pod.sockets.clone(), outside, context.dns.resolvers.clone());
    let server = Arc::new(Server {
        context: context.clone(),
        pod: pod.clone(),
        relay,
        waiting: Arc::new(Semaphore::new(WAITING)),
        connections: Arc::new(Semaphore::new(CONNECTIONS)),
        unannounced: AtomicBool::new(false),
    });
    for socket in listeners.udp {
        server.spawn(server.clone().datagrams(Arc::new(socket)));
    }
    for listener in listeners.tcp {
        server.spawn(server.clone().accept(listener));
    }
}

struct Server {
    context: Arc<Context>,
    pod: Arc<Pod>,
    relay: Relay,
    waiting: Arc<Semaphore>,
    connections: Arc<Semaphore>,
    /// The pod was waited for in vain.
    unannounced: AtomicBool,
}

/// What becomes of a question.
enum Next {
    Answer(Vec<u8>),
    Wait(Box<Asked>),
    Nothing,
}

/// A question that has to wait.
struct Asked {
    query: Query,
    labels: Labels,
    /// The client is not known yet, and its answer depends on who it is.
    stranger: bool,
}

impl Server {
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let stop = self.pod.stop.clone();
        self.pod.tasks.spawn(async move {
            let _ = stop.run_until_cancelled(work).await;
        });
    }

    fn dns(&self) -> &Dns {
        &self.context.dns
    }

    fn client(&self) -> Option<Arc<Workload>> {
        self.pod.find(&self.context.views.load(), self.context.config.node.as_deref())
    }

    fn labels(&self, kind: RecordType, transport: Transport, client: Option<&Workload>) -> Labels {
        let text = |text: Option<&Arc<str>>| text.cloned().unwrap_or_default();
        Labels {
            kind,
            transport,
            service: text(client.map(|client| &client.canonical_name)),
            revision: text(client.map(|client| &client.canonical_revision)),
        }
    }

    /// What can be said without waiting.
    fn first(&self, bytes: Bytes, transport: Transport, asked: impl FnOnce() -> Option<SocketAddr>) -> Next {
        let client = self.client();
        let query = match Query::parse(bytes) {
            Ok(query) => query,
            Err(Unreadable::Ignore) => return Next::Nothing,
            Err(Unreadable::Malformed(answer)) => {
                self.dns().stats.asked(&self.labels(RecordType::ZERO, transport, client.as_deref()));
                return Next::Answer(answer);
            }
        };
        let labels = self.labels(query.kind(), transport, client.as_deref());
        self.dns().stats.asked(&labels);
        let stranger = client.is_none() && query.question().is_some();
        match client.and_then(|client| self.known(&query, &client)) {
            Some(answer) => Next::Answer(fit(&query, answer, transport)),
            None => Next::Wait(Box::new(Asked { query: query.sent_to(asked()), labels, stranger })),
        }
    }

    /// The mesh's answer, if it has one.
    fn known(&self, query: &Query, client: &Workload) -> Option<Vec<u8>> {
        let question = query.question()?;
        let view = self.context.views.load();
        match answer(&view, client, question, &self.dns().rules, rand::random()) {
            Reply::Answer(answer) => Some(query.answered(question, &answer)),
            Reply::Forward => None,
        }
    }

    /// Answers what had to wait.
    async fn later(&self, asked: Asked, transport: Transport) -> Vec<u8> {
        let answer = self.wait(&asked, transport).await.unwrap_or_else(|| asked.query.failed(SERVFAIL));
        fit(&asked.query, answer, transport)
    }

    async fn wait(&self, asked: &Asked, transport: Transport) -> Option<Vec<u8>> {
        let Asked { query, labels, stranger } = asked;
        let mut labels = labels.clone();
        let client = if *stranger { self.announced().await } else { None };
        if let Some(client) = client {
            if let Some(answer) = self.known(query, &client) {
                return Some(answer);
            }
            labels = self.labels(labels.kind, transport, Some(&client));
        }
        let answer = self.forward(&labels, self.relay.ask(query, transport)).await?;
        Some(answer)
    }

    /// The client, once the control plane has named it. Of a pod that it does not name only the first questions wait;
    /// it has its name servers all the same.
    async fn announced(&self) -> Option<Arc<Workload>> {
        let in_vain = self.unannounced.load(Ordering::Relaxed);
        let node = self.context.config.node.as_deref();
        let patience = if in_vain { Duration::ZERO } else { WORKLOAD_WAIT };
        let found = self.context.views.wait(patience, |view| self.pod.find(view, node)).await;
        self.unannounced.store(found.is_none(), Ordering::Relaxed);
        if found.is_none() && !in_vain {
            let PodInfo { namespace, name, .. } = &self.pod.info;
            tracing::warn!(
                namespace,
                name,
                "the control plane does not name this pod: its name servers are asked for everything"
            );
        }
        found
    }

    /// Counts what is passed on.
    async fn forward<T>(
        &self,
        labels: &Labels,
        work: impl Future<Output = Result<T, RelayError>>,
    ) -> Option<T> {
        self.dns().stats.forwarded(labels);
        let start = Instant::now();
        let result = work.await;
        self.dns().stats.ended(labels, start.elapsed(), result.is_err());
        result
            .inspect_err(|error| {
                let PodInfo { namespace, name, .. } = &self.pod.info;
                tracing::debug!(namespace, name, %error, "a question cannot be passed on");
            })
            .ok()
    }

    async fn datagrams(self: Arc<Self>, socket: Arc<UdpSocket>) {
        let mut buffer = vec![0; 65_535];
        let origin = self.pod.sockets.conntrack().and_then(|conntrack| Ok((conntrack, socket.local_addr()?)));
        let origin = origin
            .inspect_err(|error| {
                let PodInfo { namespace, name, .. } = &self.pod.info;
                tracing::warn!(namespace, name, %error, "whom the pod asks is not known, the proxy's own name servers are asked");
            })
            .ok();
        let drain = self.pod.drain.clone();
        loop {
            let received = tokio::select! {
                biased;
                received = socket.recv_from(&mut buffer) => received,
                // What has arrived by now is still answered: nobody else will get it.
                () = drain.cancelled() => return,
            };
            match received {
                Ok((length, peer)) => {
                    let asked = || {
                        let (conntrack, local) = origin.as_ref()?;
                        conntrack.original_destination(peer, *local)
                    };
                    self.clone().datagram(&socket, &buffer[..length], peer, asked).await;
                }
                Err(error) => {
                    let PodInfo { namespace, name, .. } = &self.pod.info;
                    tracing::warn!(namespace, name, %error, "cannot receive a question");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    async fn datagram(
        self: Arc<Self>,
        socket: &Arc<UdpSocket>,
        bytes: &[u8],
        peer: SocketAddr,
        asked: impl FnOnce() -> Option<SocketAddr>,
    ) {
        let answer = match self.first(Bytes::copy_from_slice(bytes), Transport::Udp, asked) {
            Next::Nothing => return,
            Next::Answer(answer) => answer,
            Next::Wait(asked) => match self.waiting.clone().try_acquire_owned() {
                Ok(slot) => {
                    let (server, socket) = (self.clone(), socket.clone());
                    self.spawn(async move {
                        let answer = server.later(*asked, Transport::Udp).await;
                        drop(slot);
                        send(&socket, &answer, peer).await;
                    });
                    return;
                }
                Err(_) => self.too_many(&asked),
            },
        };
        send(socket, &answer, peer).await;
    }

    fn too_many(&self, asked: &Asked) -> Vec<u8> {
        let PodInfo { namespace, name, .. } = &self.pod.info;
        tracing::debug!(namespace, name, "too many questions of this pod wait for an answer");
        asked.query.failed(SERVFAIL)
    }

    async fn accept(self: Arc<Self>, listener: TcpListener) {
        let drain = self.pod.drain.clone();
        loop {
            let accepted = async {
                // Those that come when all are taken wait in the backlog; idle ones make room.
                let slot = self.connections.clone().acquire_owned().await.ok()?;
                Some((slot, listener.accept().await))
            };
            let accepted = tokio::select! {
                accepted = accepted => accepted,
                () = drain.cancelled() => return,
            };
            match accepted {
                Some((slot, Ok((stream, _)))) => {
                    let server = self.clone();
                    self.spawn(async move {
                        server.connection(stream).await;
                        drop(slot);
                    });
                }
                Some((_, Err(error))) => {
                    let PodInfo { namespace, name, .. } = &self.pod.info;
                    tracing::warn!(namespace, name, %error, "cannot accept a connection for DNS");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                None => return,
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let local = stream.local_addr().ok().map(canonical);
        let asked = original_destination(&stream).ok().filter(|asked| Some(*asked) != local);
        let (read, mut write) = stream.into_split();
        let (answers, mut sent) = mpsc::channel::<Vec<u8>>(WAITING_PER_CONNECTION);
        let writing = async {
            while let Some(answer) = sent.recv().await {
                match timeout(STALLED, write.write_all(&framed(&answer))).await {
                    Ok(Ok(())) => {}
                    _ => return,
                }
            }
        };
        let reading = self.read(read, asked, answers);
        tokio::pin!(writing);
        tokio::select! {
            // The client is gone; answers that are still on their way find no reader and end.
            () = &mut writing => return,
            () = reading => {}
        }
        // No more questions; those that were asked are still answered.
        writing.await;
    }

    /// Answers a question that came over a connection and has to wait.
    async fn answer(&self, asked: Asked, answers: mpsc::Sender<Vec<u8>>) {
        if asked.query.transfer() {
            let transfer = self.relay.transfer(&asked.query, &answers);
            if self.forward(&asked.labels, transfer).await.is_some() {
                return;
            }
            let _ = answers.send(asked.query.failed(SERVFAIL)).await;
            return;
        }
        let answer = self.later(asked, Transport::Tcp).await;
        let _ = answers.send(answer).await;
    }

    /// Reads questions until there are no more; each has an answer coming.
    async fn read(
        self: Arc<Self>,
        mut read: OwnedReadHalf,
        asked: Option<SocketAddr>,
        answers: mpsc::Sender<Vec<u8>>,
    ) {
        let slots = Arc::new(Semaphore::new(WAITING_PER_CONNECTION));
        loop {
            let Ok(slot) = slots.clone().acquire_owned().await else { return };
            let next = tokio::select! {
                next = timeout(IDLE, receive(&mut read)) => next,
                () = self.pod.drain.cancelled() => return,
            };
            let Ok(Ok(Some(bytes))) = next else { return };
            let answer = match self.first(bytes.into(), Transport::Tcp, || asked) {
                // Whoever sends no questions over a connection of questions is not worth reading.
                Next::Nothing => return,
                Next::Answer(answer) => answer,
                Next::Wait(asked) => match self.waiting.clone().try_acquire_owned() {
                    Ok(waiting) => {
                        let (server, answers) = (self.clone(), answers.clone());
                        self.spawn(async move {
                            server.answer(*asked, answers).await;
                            drop((slot, waiting));
                        });
                        continue;
                    }
                    Err(_) => self.too_many(&asked),
                },
            };
            if answers.send(answer).await.is_err() {
                return;
            }
        }
    }
}

fn fit(query: &Query, answer: Vec<u8>, transport: Transport) -> Vec<u8> {
    match transport {
        Transport::Udp => query.fit(answer),
        Transport::Tcp => answer,
    }
}

async fn send(socket: &UdpSocket, answer: &[u8], peer: SocketAddr) {
    if let Err(error) = socket.send_to(answer, peer).await {
        tracing::debug!(%peer, %error, "an answer cannot be sent");
    }
}
