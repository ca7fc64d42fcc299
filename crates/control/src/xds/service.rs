//! The gRPC service around sessions.

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::codec::BufferSettings;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstDecoder;
use wire::xds::DeltaDiscoveryRequest;

use super::body::Pushes;
use super::clients::{Clients, Listed};
use super::gate::{Gate, Inside};
use super::{Heard, Push, Session};
use crate::auth::{Authenticator, Caller};
use crate::metrics::Metrics;
use crate::state::Snapshot;

/// Largest request: `initial_resource_versions` of some 500,000 names.
pub(super) const REQUEST_LIMIT: usize = 64 << 20;

/// How long the first answer about workloads waits for the client to ask for policies too.
const POLICIES_FIRST: Duration = Duration::from_millis(50);

/// The aggregated discovery service.
#[derive(Clone)]
pub struct AdsServer {
    inner: Arc<Inner>,
}

struct Inner {
    snapshots: watch::Receiver<Snapshot>,
    authenticator: Authenticator,
    metrics: Arc<Metrics>,
    clients: Arc<Clients>,
    gate: Gate,
}

impl AdsServer {
    /// Serves from the latest snapshot.
    pub fn new(
        snapshots: watch::Receiver<Snapshot>,
        authenticator: Authenticator,
        metrics: Arc<Metrics>,
        clients: Arc<Clients>,
    ) -> Self {
        let gate = Gate::default();
        Self { inner: Arc::new(Inner { snapshots, authenticator, metrics, clients, gate }) }
    }
}

impl NamedService for AdsServer {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

impl Service<http::Request<Body>> for AdsServer {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let inner = self.inner.clone();
        Box::pin(async move {
            if !request.uri().path().ends_with("/DeltaAggregatedResources") {
                let status = Status::unimplemented("only DeltaAggregatedResources is served here");
                return Ok(status.into_http());
            }
            let request = request.map(|body| {
                let decoder = ProstDecoder::<DeltaDiscoveryRequest>::new(BufferSettings::default());
                Streaming::new_request(decoder, body, None, Some(REQUEST_LIMIT))
            });
            let stream = match open(inner, Request::from_http(request)).await {
                Ok(stream) => stream,
                Err(status) => return Ok(status.into_http()),
            };
            let mut response = http::Response::new(Body::new(Pushes::new(stream)));
            let grpc = http::HeaderValue::from_static("application/grpc");
            response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
            Ok(response)
        })
    }
}

/// Opens a stream, if the caller may have one.
async fn open(
    inner: Arc<Inner>,
    request: Request<Streaming<DeltaDiscoveryRequest>>,
) -> Result<BoxStream<'static, Result<Push, Status>>, Status> {
    let caller = inner.authenticator.node_proxy(&request).await?;
    if !inner.snapshots.borrow().synced() {
        return Err(Status::unavailable("not all inputs have been listed yet; try again"));
    }
    Ok(serve(inner, caller, request.into_inner().boxed()))
}

/// What a client says.
type Requests = BoxStream<'static, Result<DeltaDiscoveryRequest, Status>>;

/// Everything one stream needs.
struct Stream {
    session: Session,
    requests: Requests,
    snapshots: watch::Receiver<Snapshot>,
    /// A request for workloads that waits for the one for policies, and until when.
    held: Option<(DeltaDiscoveryRequest, Instant)>,
    inner: Arc<Inner>,
    ended: bool,
    /// When the client is asked to come back, so that replicas share the clients evenly in the long run.
    until: Instant,
    turn: Turn,
    /// When the push that went out last was handed to the connection.
    sending: Option<std::time::Instant>,
    /// When the change was heard of that the client is being told.
    heard: Option<std::time::Instant>,
    listed: Listed,
    _connected: crate::metrics::Connected,
}

/// How far a stream has come with its beginning.
enum Turn {
    Waiting,
    Inside { _held: Option<Inside> },
    Over,
}

fn serve(inner: Arc<Inner>, caller: Caller, requests: Requests) -> BoxStream<'static, Result<Push, Status>> {
    tracing::info!(account = %caller.account, pod = caller.pod_name(), "client connected");
    let stream = Stream {
        session: Session::new(caller, rand::random()),
        requests,
        snapshots: inner.snapshots.clone(),
        held: None,
        until: Instant::now() + age(rand::random()),
        turn: Turn::Waiting,
        sending: None,
        heard: None,
        listed: inner.clients.list(),
        _connected: inner.metrics.connect(),
        inner,
        ended: false,
    };
    futures::stream::unfold(stream, |mut stream| async move {
        if stream.ended {
            return None;
        }
        match stream.next().await {
            Ok(Some(push)) => Some((Ok(push), stream)),
            Ok(None) => {
                tracing::info!(node = stream.session.node(), "client went away");
                None
            }
            Err(status) => {
                tracing::info!(node = stream.session.node(), reason = status.message(), "stream ended");
                stream.ended = true;
                Some((Err(status), stream))
            }
        }
    })
    .boxed()
}

/// Half an hour, give or take a tenth: clients that came together do not come back together.
fn age(chance: u16) -> Duration {
    let tenth = 3 * 60 * 1000;
    Duration::from_millis(9 * tenth + 2 * tenth * u64::from(chance) / u64::from(u16::MAX))
}

/// Until a moment, or never.
async fn expire(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Stream {
    /// The next push; nothing when the client is gone. Polled only when the connection can take a push.
    async fn next(&mut self) -> Result<Option<Push>, Status> {
        if matches!(self.turn, Turn::Waiting) {
            self.turn = Turn::Inside { _held: self.inner.gate.enter().await };
        }
        if let Some(at) = self.sending.take() {
            self.inner.metrics.taken(at.elapsed());
        }
        loop {
            if let Some(push) = self.session.take() {
                self.inner.metrics.pushed(push.type_url, push.len());
                let now = k8s_openapi::jiff::Timestamp::now().as_second();
                self.listed.sent(push.type_url, &push.nonce, now);
                self.sending = Some(std::time::Instant::now());
                return Ok(Some(push));
            }
            if let Some(heard) = self.heard.take() {
                self.inner.metrics.converged(heard.elapsed());
            }
            let held_until = self.held.as_ref().map(|(_, until)| *until);
            tokio::select! {
                biased;
                // First, since in a mesh that never stands still there is always something to tell.
                () = tokio::time::sleep_until(self.until) => {
                    tracing::info!(node = self.session.node(), "stream ends at its age; the client comes back");
                    return Ok(None);
                }
                request = self.requests.next() => match request.transpose()? {
                    Some(request) if self.held.is_none() && self.session.wants_policies_first(&request) => {
                        self.held = Some((request, Instant::now() + POLICIES_FIRST));
                    }
                    Some(request) => {
                        self.heard(request)?;
                        if let Some((held, _)) = self.held.take() {
                            self.heard(held)?;
                        }
                    }
                    None => return Ok(None),
                },
                changed = self.snapshots.changed() => {
                    if changed.is_err() {
                        return Err(Status::unavailable("the control plane is shutting down"));
                    }
                    let snapshot = self.snapshots.borrow_and_update().clone();
                    let start = std::time::Instant::now();
                    self.session.update(&snapshot).inspect_err(|_| self.inner.metrics.broke())?;
                    if self.session.has_news() {
                        self.inner.metrics.worked_out(start.elapsed());
                        self.heard = snapshot.heard;
                    }
                }
                () = expire(held_until), if held_until.is_some() => {
                    if let Some((held, _)) = self.held.take() {
                        self.heard(held)?;
                    }
                }
            }
        }
    }

    fn heard(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        // Not marked as seen: whatever this request does not bring up to date is still to be told.
        let snapshot = self.snapshots.borrow().clone();
        let type_url = match request.type_url.as_str() {
            wire::type_url::AUTHORIZATION => wire::type_url::AUTHORIZATION,
            _ => wire::type_url::ADDRESS,
        };
        let heard = self.session.request(request, &snapshot)?;
        if let Some(node) = self.session.node() {
            self.listed.named(node);
        }
        // It has the mesh as it was. That the connection took it does not say so: that much fits into its buffers.
        if type_url == wire::type_url::ADDRESS && !matches!(heard, Heard::Subscribed) {
            self.turn = Turn::Over;
        }
        match heard {
            Heard::Rejected(reason) => {
                self.listed.answered(type_url, Some(&reason));
                self.inner.metrics.rejected();
                tracing::warn!(node = self.session.node(), reason, "client refused a push");
            }
            Heard::Stale => self.inner.metrics.stale(),
            Heard::Acknowledged => self.listed.answered(type_url, None),
            Heard::Subscribed => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
