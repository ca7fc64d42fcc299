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
use tonic::codegen::{Service, http};
use tonic::server::{Grpc, NamedService, StreamingService};
use tonic::{Request, Response, Status, Streaming};
use wire::xds::DeltaDiscoveryRequest;

use super::{Heard, Push, PushCodec, Session};
use crate::auth::{Authenticator, Caller};
use crate::metrics::Metrics;
use crate::state::Snapshot;

/// Largest request: `initial_resource_versions` of some 500,000 names.
const REQUEST_LIMIT: usize = 64 << 20;

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
}

impl AdsServer {
    /// Serves from the latest snapshot.
    pub fn new(
        snapshots: watch::Receiver<Snapshot>,
        authenticator: Authenticator,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { inner: Arc::new(Inner { snapshots, authenticator, metrics }) }
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
            let mut grpc = Grpc::new(PushCodec).apply_max_message_size_config(Some(REQUEST_LIMIT), None);
            Ok(grpc.streaming(Delta(inner), request).await)
        })
    }
}

struct Delta(Arc<Inner>);

impl StreamingService<DeltaDiscoveryRequest> for Delta {
    type Response = Push;
    type ResponseStream = BoxStream<'static, Result<Push, Status>>;
    type Future = BoxFuture<'static, Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<DeltaDiscoveryRequest>>) -> Self::Future {
        let inner = self.0.clone();
        Box::pin(async move {
            let caller = inner.authenticator.node_proxy(&request).await?;
            if !inner.snapshots.borrow().synced() {
                return Err(Status::unavailable("not all inputs have been listed yet; try again"));
            }
            Ok(Response::new(serve(inner, caller, request.into_inner())))
        })
    }
}

/// Everything one stream needs.
struct Stream {
    session: Session,
    requests: Streaming<DeltaDiscoveryRequest>,
    snapshots: watch::Receiver<Snapshot>,
    /// A request for workloads that waits for the one for policies, and until when.
    held: Option<(DeltaDiscoveryRequest, Instant)>,
    inner: Arc<Inner>,
    ended: bool,
    _connected: crate::metrics::Connected,
}

fn serve(
    inner: Arc<Inner>,
    caller: Caller,
    requests: Streaming<DeltaDiscoveryRequest>,
) -> BoxStream<'static, Result<Push, Status>> {
    tracing::info!(account = %caller.account, pod = caller.pod_name(), "client connected");
    let stream = Stream {
        session: Session::new(caller, rand::random()),
        requests,
        snapshots: inner.snapshots.clone(),
        held: None,
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
        loop {
            if let Some(push) = self.session.take() {
                self.inner.metrics.pushed(push.type_url, push.len());
                return Ok(Some(push));
            }
            let held_until = self.held.as_ref().map(|(_, until)| *until);
            tokio::select! {
                biased;
                request = self.requests.message() => match request? {
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
                    self.session.update(&snapshot)?;
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
        let snapshot = self.snapshots.borrow_and_update().clone();
        match self.session.request(request, &snapshot)? {
            Heard::Rejected(reason) => {
                self.inner.metrics.rejected();
                tracing::warn!(node = self.session.node(), reason, "client refused a push");
            }
            Heard::Stale => self.inner.metrics.stale(),
            Heard::Acknowledged | Heard::Subscribed => {}
        }
        Ok(())
    }
}
