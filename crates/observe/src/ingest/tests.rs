//! Over real sockets and real certificates, on loopback.

use std::net::SocketAddr;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::Code;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity as ClientIdentity, Server};
use wire::flow::flow_stream_client::FlowStreamClient;
use wire::flow::{self, Batch, Hello};

use super::*;
use crate::directory::Directory;
use crate::store::Limits;
use crate::testing::T0;

type Issuer = CertifiedIssuer<'static, KeyPair>;

fn root() -> Issuer {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// Certificate and key in PEM, and in DER.
fn issue(root: &Issuer, names: Vec<SanType>) -> (String, KeyPair, CertificateDer<'static>) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.subject_alt_names = names;
    let certificate = params.signed_by(&key, root).unwrap();
    (certificate.pem(), key, certificate.der().clone())
}

fn spiffe(namespace: &str, account: &str) -> SanType {
    SanType::URI(format!("spiffe://cluster.local/ns/{namespace}/sa/{account}").try_into().unwrap())
}

struct Served {
    observer: Arc<Observer>,
    address: SocketAddr,
    root: Issuer,
}

impl Served {
    async fn new(limits: Limits) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let root = root();
        let (_, key, der) = issue(
            &root,
            vec![spiffe("ambit-system", "ambit-observe"), SanType::DnsName("observe".try_into().unwrap())],
        );
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let config = server_config(vec![der], key, &[root.der().clone()]).unwrap();
        let (_keep, configs) = watch::channel(Some(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let observer = Arc::new(Observer::new(limits, Box::new(|| T0)));
        let trust = Trust {
            trust_domain: "cluster.local".into(),
            accounts: vec!["ambit-system/ambit-proxy".parse().unwrap()],
            check_addresses: true,
        };
        let (connections, accepted) = mpsc::channel(8);
        tokio::spawn(accept(listener, configs, connections));
        let service = Ingest::service(observer.clone(), trust);
        tokio::spawn(
            Server::builder().add_service(service).serve_with_incoming(ReceiverStream::new(accepted)),
        );
        Self { observer, address, root }
    }

    async fn channel(&self, client: Option<(String, KeyPair)>) -> Result<Channel, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.root.pem()))
            .domain_name("observe");
        if let Some((certificate, key)) = client {
            tls = tls.identity(ClientIdentity::from_pem(certificate, key.serialize_pem()));
        }
        Endpoint::from_shared(format!("https://{}", self.address))
            .unwrap()
            .tls_config(tls)
            .unwrap()
            .connect()
            .await
    }

    async fn as_proxy(&self) -> FlowStreamClient<Channel> {
        let (certificate, key, _) = issue(&self.root, vec![spiffe("ambit-system", "ambit-proxy")]);
        FlowStreamClient::new(self.channel(Some((certificate, key))).await.unwrap())
    }
}

fn hello() -> FromProxy {
    let hello = Hello { node: "n1".into(), epoch: 9, clock_ms: T0 as i64, ..Hello::default() };
    FromProxy { message: Some(from_proxy::Message::Hello(hello)) }
}

fn batch(sequence: u64, sent: u64) -> FromProxy {
    let workload = |id: u32, pod: &str| flow::WorkloadDefinition {
        id,
        namespace: "shop".into(),
        pod: pod.into(),
        ..Default::default()
    };
    let pair = flow::PairDefinition {
        id: 1,
        reporter: flow::Reporter::Source.into(),
        source: 1,
        destination: 2,
        destination_port: 80,
        verdict: flow::Verdict::Allowed.into(),
        security: flow::Security::MutualTls.into(),
        ..Default::default()
    };
    let batch = Batch {
        sequence,
        from_ms: T0 as i64 - 1_000,
        to_ms: T0 as i64,
        workloads: vec![workload(1, "a"), workload(2, "b")],
        pairs: vec![pair],
        rows: vec![flow::Row { pair: 1, bytes_sent: sent, ..Default::default() }],
        ..Batch::default()
    };
    FromProxy { message: Some(from_proxy::Message::Batch(batch)) }
}

/// Sends all of it and gathers the answers, until the stream ends.
async fn push(
    client: &mut FlowStreamClient<Channel>,
    messages: Vec<FromProxy>,
) -> Result<Vec<from_observer::Message>, Status> {
    let mut answers = client.push(tokio_stream::iter(messages)).await?.into_inner();
    let mut got = Vec::new();
    while let Some(answer) = answers.message().await? {
        got.extend(answer.message);
    }
    Ok(got)
}

fn total(observer: &Observer) -> u64 {
    observer.with_store(|store| store.pairs().flat_map(|pair| &pair.lanes).map(|lane| lane.total.sent).sum())
}

#[tokio::test]
async fn a_node_proxy_pushes_and_resumes_without_counting_twice() {
    let served = Served::new(Limits::default()).await;
    let mut client = served.as_proxy().await;
    let answers = push(&mut client, vec![hello(), batch(1, 5), batch(2, 6)]).await.unwrap();
    let from_observer::Message::Welcome(welcome) = &answers[0] else { panic!("{answers:?}") };
    assert_eq!((welcome.known, welcome.applied), (false, 0));
    assert!(
        matches!(&answers[2], from_observer::Message::Ack(ack) if ack.sequence == 2 && ack.rows_refused == 0)
    );
    // The acks were lost on the way, say: it sends the second again, and the third.
    let answers = push(&mut served.as_proxy().await, vec![hello(), batch(2, 6), batch(3, 7)]).await.unwrap();
    let from_observer::Message::Welcome(welcome) = &answers[0] else { panic!("{answers:?}") };
    assert_eq!((welcome.known, welcome.applied), (true, 2));
    assert_eq!(total(&served.observer), 18);
    let connected = served.observer.with_store(|store| store.proxies()[0].connected);
    assert_eq!(connected, 0);
}

#[tokio::test]
async fn whoever_is_no_node_proxy_is_refused() {
    let served = Served::new(Limits::default()).await;
    for (namespace, account) in
        [("shop", "default"), ("ambit-system", "ambit-observe"), ("shop", "ambit-proxy")]
    {
        let (certificate, key, _) = issue(&served.root, vec![spiffe(namespace, account)]);
        let mut client = FlowStreamClient::new(served.channel(Some((certificate, key))).await.unwrap());
        let refused = push(&mut client, vec![hello(), batch(1, 5)]).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
        assert!(refused.message().contains("--trusted-node-accounts"));
    }
    let foreign_domain =
        SanType::URI("spiffe://elsewhere/ns/ambit-system/sa/ambit-proxy".try_into().unwrap());
    let (certificate, key, _) = issue(&served.root, vec![foreign_domain]);
    let mut client = FlowStreamClient::new(served.channel(Some((certificate, key))).await.unwrap());
    assert_eq!(push(&mut client, vec![hello()]).await.unwrap_err().code(), Code::PermissionDenied);
    assert_eq!(total(&served.observer), 0);
    assert_eq!(served.observer.counters.streams_refused.lock()["identity"], 4);
}

#[tokio::test]
async fn without_a_certificate_of_the_mesh_there_is_no_connection() {
    let served = Served::new(Limits::default()).await;
    let own = root();
    let (certificate, key, _) = issue(&own, vec![spiffe("ambit-system", "ambit-proxy")]);
    for client in [None, Some((certificate, key))] {
        // TLS 1.3 tells a client of its refusal only after its own handshake, so the call may be what fails.
        let refused = match served.channel(client).await {
            Err(_) => true,
            Ok(channel) => {
                push(&mut FlowStreamClient::new(channel), vec![hello(), batch(1, 5)]).await.is_err()
            }
        };
        assert!(refused);
    }
    assert!(served.observer.with_store(|store| store.proxies().is_empty()));
}

#[tokio::test]
async fn garbage_ends_its_own_stream_and_is_named() {
    let served = Served::new(Limits::default()).await;
    let mut client = served.as_proxy().await;
    let no_hello = push(&mut client, vec![batch(1, 5)]).await.unwrap_err();
    assert_eq!(no_hello.code(), Code::InvalidArgument);
    let rows = vec![flow::Row::default(); 9_000];
    let large = Batch { sequence: 1, rows, ..Batch::default() };
    let large = FromProxy { message: Some(from_proxy::Message::Batch(large)) };
    let refused = push(&mut client, vec![hello(), large]).await.unwrap_err();
    assert!(refused.code() == Code::InvalidArgument && refused.message().contains("8192"), "{refused:?}");
    let twice = push(&mut client, vec![hello(), hello()]).await.unwrap_err();
    assert_eq!(twice.code(), Code::InvalidArgument);
    let named = served.observer.with_store(|store| store.proxies()[0].last_refusal.clone());
    assert!(named.unwrap().contains("batch.rows"));
    // The next stream is welcome.
    push(&mut client, vec![hello(), batch(1, 5)]).await.unwrap();
    assert_eq!(total(&served.observer), 5);
}

#[tokio::test]
async fn a_clock_ahead_is_told_what_is_wrong() {
    let served = Served::new(Limits::default()).await;
    let hello = Hello { node: "n1".into(), epoch: 9, clock_ms: T0 as i64 + 3_600_000, ..Hello::default() };
    let hello = FromProxy { message: Some(from_proxy::Message::Hello(hello)) };
    let refused = push(&mut served.as_proxy().await, vec![hello]).await.unwrap_err();
    assert!(refused.code() == Code::FailedPrecondition && refused.message().contains("NTP"), "{refused:?}");
}

#[tokio::test]
async fn a_stream_speaks_for_the_node_it_comes_from() {
    let served = Served::new(Limits::default()).await;
    let pod = |node: &str| crate::directory::Pod {
        addresses: vec![[127, 0, 0, 1].into()],
        service_account: "ambit-proxy".into(),
        ..crate::testing::pod("ambit-system", "ambit-proxy-x", node, 0)
    };
    let mut client = served.as_proxy().await;
    served.observer.set_directory(Arc::new(Directory::new([pod("n2")], [], [])));
    let refused = push(&mut client, vec![hello()]).await.unwrap_err();
    assert!(refused.code() == Code::PermissionDenied && refused.message().contains("node n2"), "{refused:?}");
    served.observer.set_directory(Arc::new(Directory::new([], [], [])));
    assert_eq!(push(&mut client, vec![hello()]).await.unwrap_err().code(), Code::Unavailable);
    served.observer.set_directory(Arc::new(Directory::new([pod("n1")], [], [])));
    push(&mut client, vec![hello(), batch(1, 5)]).await.unwrap();
    assert_eq!(total(&served.observer), 5);
}

#[tokio::test]
async fn a_million_series_are_limited_and_named() {
    let served = Served::new(Limits { lanes_per_proxy: 100, ..Limits::default() }).await;
    let flood = (1..=5u64).map(|sequence| {
        let FromProxy { message: Some(from_proxy::Message::Batch(template)) } = batch(sequence, 1) else {
            unreachable!()
        };
        let ids = (0..1_000u32).map(|i| sequence as u32 * 1_000 + i);
        let pairs = ids.clone().map(|id| flow::PairDefinition {
            id,
            destination_port: id % 65_536,
            ..template.pairs[0].clone()
        });
        let rows = ids.map(|id| flow::Row { pair: id, bytes_sent: 1, ..Default::default() });
        let flood = Batch { pairs: pairs.collect(), rows: rows.collect(), ..template };
        FromProxy { message: Some(from_proxy::Message::Batch(flood)) }
    });
    let messages = std::iter::once(hello()).chain(flood).collect();
    let answers = push(&mut served.as_proxy().await, messages).await.unwrap();
    let refused: u32 = answers
        .iter()
        .map(|answer| match answer {
            from_observer::Message::Ack(ack) => ack.rows_refused,
            from_observer::Message::Welcome(_) => 0,
        })
        .sum();
    assert_eq!(refused, 4_900);
    assert_eq!(served.observer.with_store(|store| store.len()), 100);
    let table = served.observer.table(300, None);
    assert!(
        table.proxies[0].problems.iter().any(|problem| problem.contains("beyond the bound")),
        "{:?}",
        table.proxies[0]
    );
}
