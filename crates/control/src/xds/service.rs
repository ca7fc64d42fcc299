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
            // Asked for more: what went out has been taken, and with it the mesh as it was.
            if self.session.follows() {
                self.turn = Turn::Over;
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
                    let start = std::time::Instant::now();
                    self.session.update(&snapshot).inspect_err(|_| self.inner.metrics.broke())?;
                    if self.session.has_news() {
                        self.inner.metrics.worked_out(start.elapsed());
                        self.heard = snapshot.heard;
                    }
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
            Self::behind(Gate::default())
        }

        fn behind(gate: Gate) -> Self {
            let (snapshots, latest) = watch::channel(Snapshot::default());
            let metrics: Arc<Metrics> = Arc::default();
            let authenticator =
                Authenticator::new(Arc::new(Nobody), "c".into(), "td".into(), vec![], metrics.clone());
            let inner = Inner { snapshots: latest, authenticator, metrics, clients: Arc::default(), gate };
            let inner = Arc::new(inner);
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

    /// When all come back at once, few requests are in memory at a time, and everybody gets a turn.
    #[tokio::test]
    async fn clients_that_come_back_together_go_through_one_after_the_other() {
        let gate = Gate::default();
        let mut storm = Vec::new();
        for _ in 0..40 {
            let mut served = Served::behind(gate.clone());
            served.pod("web-0");
            served.ask(ADDRESS, "").await;
            served.ask(AUTHORIZATION, "").await;
            storm.push(served);
        }
        let mut first = Vec::new();
        for (index, served) in storm.iter_mut().enumerate() {
            if let Poll::Ready(push) = futures::poll!(served.pushes.next()) {
                assert_eq!(push.expect("the stream goes on").expect("no error").type_url, AUTHORIZATION);
                first.push(index);
            }
        }
        assert_eq!(first.len(), 16);
        // Requests of the others have not even been read.
        assert_eq!(storm.iter().filter(|served| served.requests.capacity() < 16).count(), 40 - 16);
        for index in first {
            let served = &mut storm[index];
            assert_eq!(served.next().await.resources.len(), 1);
            // Takes it and asks for more: there is nothing more, and the next one's turn has come.
            assert!(futures::poll!(served.pushes.next()).is_pending());
        }
        let mut answered = 0;
        for served in &mut storm[16..32] {
            assert_eq!(served.next().await.type_url, AUTHORIZATION);
            answered += 1;
        }
        assert_eq!(answered, 16);
    }

    /// A client that is sent more than it reads holds one piece of it, and what happens meanwhile is merged.
    #[tokio::test]
    async fn a_slow_reader_of_a_large_mesh_holds_one_piece_and_then_gets_one_merged_push() {
        use http_body::Body as _;
        let mut served = Served::new();
        let services = (0..3000)
            .map(|index| {
                fixtures::service(
                    &format!("s{index}"),
                    "10.1.0.1",
                    json!({ "spec": { "selector": { "app": "nobody" } } }),
                )
            })
            .collect();
        served.state.apply(Event::Services(Delta::All(services)));
        served.snapshots.send_replace(served.state.flush().unwrap());
        served.ask(ADDRESS, "").await;
        served.ask(AUTHORIZATION, "").await;
        let pushes = std::mem::replace(&mut served.pushes, futures::stream::empty().boxed());
        let mut body = Pushes::new(pushes);
        let mut frame = async || {
            std::future::poll_fn(|context| std::pin::Pin::new(&mut body).poll_frame(context))
                .await
                .expect("the body goes on")
                .expect("no error")
                .into_data()
                .expect("data")
        };
        let policies = frame().await;
        assert!(policies.len() < 200);
        let mut read = frame().await;
        assert!(read.len() < 80_000, "{}", read.len());
        for turn in 0..50 {
            served.pod(&format!("web-{turn}"));
        }
        // The rest of the message stands as it was begun, whatever has happened since.
        let length = 5 + u32::from_be_bytes([read[1], read[2], read[3], read[4]]) as usize;
        let mut whole = read.len();
        while whole < length {
            read = frame().await;
            assert!(read.len() < 80_000);
            whole += read.len();
        }
        assert_eq!(whole, length);
        let merged = frame().await;
        let message = <wire::xds::DeltaDiscoveryResponse as prost::Message>::decode(&merged[5..]).unwrap();
        assert_eq!(message.resources.len(), 50);
    }
}
