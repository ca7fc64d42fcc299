//! One stream from its opening to its end.

use std::collections::BTreeMap;

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

/// What a client sends on a stream, and what it gets.
type Opened = (mpsc::Sender<Result<DeltaDiscoveryRequest, Status>>, BoxStream<'static, Result<Push, Status>>);

fn opened(inner: &Arc<Inner>) -> Opened {
    let account = Account { namespace: "ambit-system".into(), name: "ztunnel".into() };
    let (requests, sent) = mpsc::channel(16);
    let caller = Caller { account, pod: None };
    (requests, serve(inner.clone(), caller, ReceiverStream::new(sent).boxed()))
}

/// A served stream: what the client sends, what it gets, and the state behind it.
struct Served {
    inner: Arc<Inner>,
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
        let (requests, pushes) = opened(&inner);
        Self { inner, requests, pushes, state: State::new(fixtures::settings()), snapshots }
    }

    /// The client opens another stream.
    fn open(&mut self) {
        (self.requests, self.pushes) = opened(&self.inner);
    }

    async fn ask(&self, type_url: &str, nonce: &str) {
        self.come_back(type_url, nonce, BTreeMap::new()).await;
    }

    async fn come_back(&self, type_url: &str, nonce: &str, known: BTreeMap<String, String>) {
        let node = Node {
            id: "ztunnel~10.0.0.2~x.ambit-system~ambit-system.svc.cluster.local".into(),
            ..Node::default()
        };
        let request = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: type_url.into(),
            response_nonce: nonce.into(),
            initial_resource_versions: known,
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
    let mut taken = Vec::new();
    for index in first {
        let served = &mut storm[index];
        let mesh = served.next().await;
        assert_eq!(mesh.resources.len(), 1);
        // The connection has taken it and could take more: that is not yet the client's answer.
        assert!(futures::poll!(served.pushes.next()).is_pending());
        taken.push((index, mesh.nonce));
    }
    assert!(futures::poll!(storm[16].pushes.next()).is_pending(), "nobody's turn has come");
    for (index, nonce) in taken {
        let served = &mut storm[index];
        served.ask(ADDRESS, &nonce).await;
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

/// Clients that came together do not come back together, and whoever comes back is not sent what it has.
#[tokio::test(start_paused = true)]
async fn streams_end_each_at_its_own_age_and_go_on_where_they_were() {
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let mut ages = std::collections::BTreeSet::new();
    for _ in 0..40 {
        let mut served = Served::new();
        let opened = Instant::now();
        served.pod("old");
        served.ask(ADDRESS, "").await;
        served.ask(AUTHORIZATION, "").await;
        assert_eq!(served.next().await.type_url, AUTHORIZATION);
        let mesh = served.next().await;
        served.ask(ADDRESS, &mesh.nonce).await;
        // Not an error: a client that is told of one waits before it comes back.
        assert!(served.pushes.next().await.is_none());
        ages.insert(opened.elapsed());

        let known = mesh.resources.iter().map(|one| (one.name.to_string(), one.version.to_string()));
        let known: BTreeMap<_, _> = known.collect();
        assert_eq!(known.len(), 1);
        served.pod("new");
        served.open();
        served.come_back(ADDRESS, "", known).await;
        let more = served.next().await;
        let names: Vec<&str> = more.resources.iter().map(|one| &*one.name).collect();
        assert_eq!((names, more.removed.len()), (vec!["Kubernetes//Pod/shop/new"], 0));
    }
    assert!(ages.iter().all(|age| (minutes(27)..=minutes(33)).contains(age)), "{ages:?}");
    let spread = *ages.last().unwrap() - *ages.first().unwrap();
    assert!(spread > minutes(1), "{ages:?}");
}

/// A client that goes on asking is told to come back all the same.
#[tokio::test(start_paused = true)]
async fn a_mesh_that_never_stands_still_keeps_no_stream_beyond_its_age() {
    let mut served = Served::new();
    let opened = Instant::now();
    served.pod("web-0");
    served.ask(ADDRESS, "").await;
    while let Some(push) = served.pushes.next().await {
        let push = push.expect("no error");
        assert!(opened.elapsed() <= Duration::from_secs(34 * 60));
        tokio::time::sleep(Duration::from_secs(1)).await;
        served.ask(ADDRESS, &push.nonce).await;
        served.pod(&format!("web-{}", opened.elapsed().as_secs()));
    }
    assert!(opened.elapsed() <= Duration::from_secs(34 * 60));
}

/// Case D17, at its size: 50 clients and 600 beats, with one real change in their midst.
#[tokio::test]
async fn heartbeats_of_objects_reach_no_client_and_the_change_in_their_midst_reaches_all() {
    let mut served = Served::new();
    served.pod("web-0");
    let mut clients = Vec::new();
    for _ in 0..50 {
        served.open();
        served.ask(ADDRESS, "").await;
        served.ask(AUTHORIZATION, "").await;
        assert_eq!(served.next().await.type_url, AUTHORIZATION);
        let mesh = served.next().await;
        assert_eq!(mesh.resources.len(), 1);
        // Its answer makes room for the next one at the gate.
        served.ask(ADDRESS, &mesh.nonce).await;
        assert!(futures::poll!(served.pushes.next()).is_pending());
        let (_, unused) = opened(&served.inner);
        clients.push((served.requests.clone(), std::mem::replace(&mut served.pushes, unused)));
    }
    for turn in 0..600 {
        let beat = json!({ "metadata": { "annotations": { "lease": turn.to_string() } } });
        let beat = Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", beat)));
        served.state.apply(beat);
        assert!(served.state.flush().is_none(), "turn {turn}");
        if turn == 300 {
            served.pod("web-1");
            for (_, pushes) in &mut clients {
                let push = tokio::time::timeout(Duration::from_secs(10), pushes.next()).await;
                let push = push.expect("in time").expect("the stream goes on").expect("no error");
                let names: Vec<&str> = push.resources.iter().map(|one| &*one.name).collect();
                assert_eq!(names, ["Kubernetes//Pod/shop/web-1"]);
            }
        }
    }
    for (_, pushes) in &mut clients {
        assert!(futures::poll!(pushes.next()).is_pending());
    }
}
