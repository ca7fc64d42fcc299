//! Flows come in: a gRPC server for node proxies, over mutual TLS.
//!
//! The certificate says who speaks, and must be the account of a node proxy. Where the cluster is known, the address
//! of the stream must be that of the pod or node it claims to speak for. Everything is bounded: the greeting in time,
//! messages in size, batches a second, pairs a proxy, streams altogether. A proxy that breaks a bound is named, and
//! only its own stream ends.

pub mod parse;
mod tls;

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use mesh::Identity;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wire::flow::flow_stream_server::{FlowStream, FlowStreamServer};
use wire::flow::{Ack, FromObserver, FromProxy, Welcome, from_observer, from_proxy};

use crate::observer::Observer;
use crate::store::{Refused, Session, Welcome as Admitted};
use parse::Workloads;
pub use tls::{Peer, accept, server_config};

/// Largest message of a proxy.
const MESSAGE: usize = 1 << 20;
/// How long a proxy may take to greet.
const GREETING: Duration = Duration::from_secs(10);
/// A stream without a batch for this long is ended.
const IDLE: Duration = Duration::from_secs(60);
/// How often a batch is wanted.
const INTERVAL: Duration = Duration::from_secs(1);
/// Batches of one stream that are taken in a second; the rest waits in the proxy.
const BATCHES_A_SECOND: u32 = 10;

/// An account of a node proxy: namespace and name.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Account {
    pub namespace: String,
    pub name: String,
}

impl std::str::FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(format!("{text:?} is no account; write namespace/name")),
        }
    }
}

/// Who may push flows.
#[derive(Clone, Debug)]
pub struct Trust {
    /// Trust domain of their identities.
    pub trust_domain: String,
    /// Their accounts.
    pub accounts: Vec<Account>,
    /// Whether a stream must come from the node it speaks of.
    pub check_addresses: bool,
}

impl Trust {
    /// The identity among these that may push flows.
    pub fn accepts<'a>(&self, identities: &'a [Identity]) -> Option<&'a Identity> {
        identities.iter().find(|identity| {
            identity.trust_domain() == self.trust_domain
                && self.accounts.iter().any(|account| {
                    account.namespace == identity.namespace() && account.name == identity.service_account()
                })
        })
    }
}

/// The gRPC service.
pub struct Ingest {
    observer: Arc<Observer>,
    trust: Trust,
}

impl Ingest {
    /// The service, ready to be added to a server.
    pub fn service(observer: Arc<Observer>, trust: Trust) -> FlowStreamServer<Self> {
        FlowStreamServer::new(Self { observer, trust }).max_decoding_message_size(MESSAGE)
    }

    /// Whether a proxy that calls from `address` may speak for `node`.
    fn comes_from(&self, address: IpAddr, node: &str, identity: &Identity) -> Result<(), Status> {
        let directory = self.observer.directory();
        if !self.trust.check_addresses || !directory.synced {
            return Ok(());
        }
        let address = address.to_canonical();
        // A translated address is that of the node.
        if directory.node_at(address).is_some_and(|known| **known == *node) {
            return Ok(());
        }
        match directory.pod_at(address) {
            Some(pod) if *pod.node == *node && *pod.service_account == *identity.service_account() => Ok(()),
            Some(pod) => Err(Status::permission_denied(format!(
                "this stream speaks for node {node} and comes from {address}, which is pod {}/{} on node {}",
                pod.namespace, pod.name, pod.node
            ))),
            // Perhaps it is only not known yet; the proxy tries again.
            None => Err(Status::unavailable(format!(
                "this stream speaks for node {node} and comes from {address}, where no pod is known to run (yet)"
            ))),
        }
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<FromObserver, Status>> + Send>>;

#[tonic::async_trait]
impl FlowStream for Ingest {
    type PushStream = Answers;

    async fn push(&self, request: Request<Streaming<FromProxy>>) -> Result<Response<Answers>, Status> {
        let refuse = |reason: &'static str, status: Status| {
            self.observer.counters.refuse_stream(reason);
            tracing::warn!(reason, status = status.message(), "a stream of flows was refused");
            status
        };
        let peer = request.extensions().get::<Peer>().cloned();
        let peer =
            peer.ok_or_else(|| refuse("identity", Status::unauthenticated("no client certificate")))?;
        let Some(identity) = self.trust.accepts(&peer.identities).cloned() else {
            let status = Status::permission_denied(format!(
                "{:?} is not the account of a node proxy; add it to the observer's --trusted-node-accounts",
                peer.identities
            ));
            return Err(refuse("identity", status));
        };
        let mut messages = request.into_inner();
        let first = timeout(GREETING, messages.message()).await;
        let first = first.map_err(|_| {
            refuse("greeting", Status::deadline_exceeded(format!("no greeting within {GREETING:?}")))
        })?;
        let Some(FromProxy { message: Some(from_proxy::Message::Hello(hello)) }) = first? else {
            return Err(refuse("greeting", Status::invalid_argument("the first message must be hello")));
        };
        self.comes_from(peer.address.ip(), &hello.node, &identity)
            .map_err(|status| refuse("address", status))?;
        let now = self.observer.now();
        let greeted = self.observer.with_store(|store| {
            let greeting = parse::greeting(&hello, &identity.to_string(), &mut store.texts)
                .map_err(|error| ("greeting", Status::invalid_argument(error.to_string())))?;
            store.greet(&greeting, now).map_err(|error| (reason(&error), status(&error)))
        });
        let (session, admitted) = greeted.map_err(|(reason, status)| refuse(reason, status))?;
        tracing::info!(
            node = hello.node,
            pod = hello.pod_name,
            known = admitted.known,
            "a node proxy reports"
        );
        let (answers, receiver) = mpsc::channel(16);
        // There is room for the first.
        let _ = answers.try_send(Ok(welcome(&admitted)));
        let reading = Reading {
            observer: self.observer.clone(),
            session: Some(session),
            workloads: Workloads::default(),
            node: hello.node,
        };
        tokio::spawn(reading.run(messages, answers));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

fn welcome(admitted: &Admitted) -> FromObserver {
    let welcome = Welcome {
        known: admitted.known,
        applied: admitted.applied,
        max_pairs: admitted.max_pairs,
        interval_ms: INTERVAL.as_millis() as u32,
        idle_seconds: IDLE.as_secs() as u32,
    };
    FromObserver { message: Some(from_observer::Message::Welcome(welcome)) }
}

/// The word of a refusal in `/metrics`.
fn reason(refused: &Refused) -> &'static str {
    match refused {
        Refused::ClockAhead { .. } => "clock",
        Refused::TooManyProxies { .. } => "proxies",
        Refused::TooManyStreams { .. } => "streams",
        Refused::Replaced { .. } => "replaced",
        Refused::Gap { .. } => "gap",
    }
}

fn status(refused: &Refused) -> Status {
    let text = refused.to_string();
    match refused {
        Refused::ClockAhead { .. } | Refused::Gap { .. } => Status::failed_precondition(text),
        Refused::TooManyProxies { .. } | Refused::TooManyStreams { .. } => Status::resource_exhausted(text),
        Refused::Replaced { .. } => Status::aborted(text),
    }
}

/// One stream after its greeting. Whatever ends it, the store hears of it.
struct Reading {
    observer: Arc<Observer>,
    session: Option<Session>,
    workloads: Workloads,
    node: String,
}

impl Drop for Reading {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            self.observer.with_store(|store| store.leave(session));
        }
    }
}

type Sender = mpsc::Sender<Result<FromObserver, Status>>;

impl Reading {
    async fn run(mut self, mut messages: Streaming<FromProxy>, answers: Sender) {
        let (mut second, mut in_second) = (Instant::now(), 0);
        loop {
            let next = tokio::select! {
                next = timeout(IDLE, messages.message()) => next,
                () = answers.closed() => return,
            };
            let message = match next {
                Ok(Ok(Some(message))) => message,
                Ok(Ok(None)) => return,
                Ok(Err(error)) => {
                    tracing::info!(node = self.node, error = error.message(), "a stream of flows broke");
                    return;
                }
                Err(_) => {
                    let text = format!("no batch within {IDLE:?}; an empty one would have done");
                    return self.end(&answers, "idle", Status::deadline_exceeded(text)).await;
                }
            };
            let Some(from_proxy::Message::Batch(batch)) = message.message else {
                let text = "after hello only batches are expected";
                return self.end(&answers, "garbage", Status::invalid_argument(text)).await;
            };
            let (back, result) = match tokio::task::spawn_blocking(move || self.apply(batch)).await {
                Ok(applied) => applied,
                Err(error) => {
                    tracing::error!(%error, "a batch could not be applied");
                    return;
                }
            };
            self = back;
            match result {
                Ok(ack) => {
                    let answer = FromObserver { message: Some(from_observer::Message::Ack(ack)) };
                    // A proxy that does not read its acks is not read either.
                    if !matches!(timeout(IDLE, answers.send(Ok(answer))).await, Ok(Ok(()))) {
                        return;
                    }
                }
                Err((reason, status)) => return self.end(&answers, reason, status).await,
            }
            in_second += 1;
            if second.elapsed() >= Duration::from_secs(1) {
                (second, in_second) = (Instant::now(), 0);
            } else if in_second >= BATCHES_A_SECOND {
                // Flow control does the rest: what is not read here is not sent there.
                tokio::time::sleep_until(second + Duration::from_secs(1)).await;
                (second, in_second) = (Instant::now(), 0);
            }
        }
    }

    /// Off the threads that serve sockets: the store may be busy for some milliseconds.
    fn apply(mut self, batch: wire::flow::Batch) -> (Self, Result<Ack, (&'static str, Status)>) {
        let (now, directory) = (self.observer.now(), self.observer.directory());
        let (workloads, session) = (&mut self.workloads, &mut self.session);
        let result = self.observer.with_store(|store| {
            let Some(session) = session.as_mut() else {
                return Err(("garbage", Status::internal("no session")));
            };
            let batch = match parse::batch(batch, workloads, &mut store.texts, &directory) {
                Ok(batch) => batch,
                Err(error) => {
                    store.blame(session, error.to_string());
                    return Err(("garbage", Status::invalid_argument(error.to_string())));
                }
            };
            let applied = store.apply(session, &batch, now, &directory);
            applied.map_err(|error| {
                store.blame(session, error.to_string());
                (reason(&error), status(&error))
            })
        });
        let ack = result.map(|applied| Ack {
            sequence: applied.sequence,
            rows_refused: applied.refused,
            reason: applied.reason.unwrap_or_default(),
        });
        (self, ack)
    }

    async fn end(self, answers: &Sender, reason: &'static str, status: Status) {
        self.observer.counters.refuse_stream(reason);
        tracing::warn!(node = self.node, reason, status = status.message(), "a stream of flows was ended");
        // Bounded: who does not read hears nothing.
        let _ = timeout(Duration::from_secs(5), answers.send(Err(status))).await;
    }
}

#[cfg(test)]
mod tests;
