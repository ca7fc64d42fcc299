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

use super::budget::{Budget, Taken};
use super::clients::{Clients, Listed};
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
    clients: Arc<Clients>,
    budget: Budget,
}

impl AdsServer {
    /// Serves from the latest snapshot.
    pub fn new(
        snapshots: watch::Receiver<Snapshot>,
        authenticator: Authenticator,
        metrics: Arc<Metrics>,
        clients: Arc<Clients>,
    ) -> Self {
        let budget = Budget::default();
        Self { inner: Arc::new(Inner { snapshots, authenticator, metrics, clients, budget }) }
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
            Ok(Response::new(serve(inner, caller, request.into_inner().boxed())))
        })
    }
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
    /// Room that the push takes which went out last.
    taken: Option<Taken>,
    listed: Listed,
    _connected: crate::metrics::Connected,
}

fn serve(inner: Arc<Inner>, caller: Caller, requests: Requests) -> BoxStream<'static, Result<Push, Status>> {
    tracing::info!(account = %caller.account, pod = caller.pod_name(), "client connected");
    let stream = Stream {
        session: Session::new(caller, rand::random()),
        requests,
        snapshots: inner.snapshots.clone(),
        held: None,
        until: Instant::now() + age(rand::random()),
        taken: None,
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
        loop {
            // Asked for more: what went out last has been taken.
            self.taken = None;
            if let Some(push) = self.session.take() {
                self.taken = self.inner.budget.take(push.len()).await;
                self.inner.metrics.pushed(push.type_url, push.len());
                let now = k8s_openapi::jiff::Timestamp::now().as_second();
                self.listed.sent(push.type_url, &push.nonce, now);
                return Ok(Some(push));
            }
            let held_until = self.held.as_ref().map(|(_, until)| *until);
            tokio::select! {
                biased;
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
                    self.session.update(&snapshot)?;
                }
                () = tokio::time::sleep_until(self.until) => {
                    tracing::info!(node = self.session.node(), "stream ends at its age; the client comes back");
                    return Ok(None);
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
mod tests {
    use serde_json::json;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;
    use wire::type_url::{ADDRESS, AUTHORIZATION};
    use wire::xds::Node;

    use super::*;
    use crate::auth::{Reviewer, Verdict};
    use crate::config::Account;
    use crate::fixtures;
    use crate::state::{Delta, Event, State};

    struct Nobody;

    impl Reviewer for Nobody {
        fn review<'a>(
            &'a self,
            _: &'a str,
        ) -> BoxFuture<'a, Result<Verdict, Box<dyn std::error::Error + Send + Sync>>> {
            Box::pin(std::future::ready(Ok(Verdict::Unknown("nobody".into()))))
        }
    }

    /// A served stream: what the client sends, what it gets, and the state behind it.
    struct Served {
        requests: mpsc::Sender<Result<DeltaDiscoveryRequest, Status>>,
        pushes: BoxStream<'static, Result<Push, Status>>,
        state: State,
        snapshots: watch::Sender<Snapshot>,
    }

    impl Served {
        fn new() -> Self {
            let (snapshots, latest) = watch::channel(Snapshot::default());
            let metrics: Arc<Metrics> = Arc::default();
            let authenticator =
                Authenticator::new(Arc::new(Nobody), "c".into(), "td".into(), vec![], metrics.clone());
            let (clients, budget) = (Arc::default(), Budget::default());
            let inner = Arc::new(Inner { snapshots: latest, authenticator, metrics, clients, budget });
            let account = Account { namespace: "ambit-system".into(), name: "ztunnel".into() };
            let (requests, sent) = mpsc::channel(16);
            let caller = Caller { account, pod: None };
            let pushes = serve(inner, caller, ReceiverStream::new(sent).boxed());
            Self { requests, pushes, state: State::new(fixtures::settings()), snapshots }
        }

        async fn ask(&self, type_url: &str, nonce: &str) {
            let node = Node {
                id: "ztunnel~10.0.0.2~x.ambit-system~ambit-system.svc.cluster.local".into(),
                ..Node::default()
            };
            let request = DeltaDiscoveryRequest {
                node: Some(node),
                type_url: type_url.into(),
                response_nonce: nonce.into(),
                ..DeltaDiscoveryRequest::default()
            };
            self.requests.send(Ok(request)).await.unwrap();
        }

        fn pod(&mut self, name: &str) {
            self.state.apply(Event::Pods(Delta::Put(fixtures::pod(name, "10.0.0.1", json!({})))));
            self.snapshots.send_replace(self.state.flush().unwrap());
        }

        async fn next(&mut self) -> Push {
            let push = tokio::time::timeout(Duration::from_secs(10), self.pushes.next()).await;
            push.expect("a push in time").expect("the stream goes on").expect("no error")
        }
    }

    #[tokio::test]
    async fn a_change_that_coincides_with_an_acknowledgement_is_not_lost() {
        let mut served = Served::new();
        served.ask(ADDRESS, "").await;
        let first = served.next().await;
        served.ask(ADDRESS, &first.nonce).await;
        served.pod("web-0");
        assert_eq!(served.next().await.resources.len(), 1);
    }

    #[tokio::test]
    async fn policies_are_answered_first_whichever_is_asked_for_first() {
        let mut served = Served::new();
        served.ask(ADDRESS, "").await;
        served.ask(AUTHORIZATION, "").await;
        assert_eq!(served.next().await.type_url, AUTHORIZATION);
        assert_eq!(served.next().await.type_url, ADDRESS);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_makes_no_queue() {
        let mut served = Served::new();
        served.ask(ADDRESS, "").await;
        served.next().await;
        for turn in 0..100 {
            served.pod(&format!("web-{turn}"));
        }
        assert_eq!(served.next().await.resources.len(), 100);
    }
}
