//! What both proxies tell an observer of the same flows.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use mesh::Identity;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use wire::flow::flow_stream_server::{FlowStream, FlowStreamServer};
use wire::flow::*;

use crate::control::Control;
use crate::harness::{World, call, echo, eventually};
use crate::namespaces::in_a_node;

/// Counts of a pair, summed over all batches: opened, closed, failed, sent, received.
type Sums = (u32, u32, u32, u64, u64);

#[derive(Default)]
struct Seen {
    who: Vec<Identity>,
    hellos: Vec<Hello>,
    /// By node, number and epoch of the stream.
    pairs: HashMap<(String, u32), (PairDefinition, Sums)>,
    workloads: HashMap<(String, u32), WorkloadDefinition>,
}

#[derive(Clone, Default)]
struct Observer(Arc<Mutex<Seen>>);

struct Tls(tokio_rustls::server::TlsStream<TcpStream>);

impl tonic::transport::server::Connected for Tls {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Tls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Tls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Observer {
    async fn start(&self, control: &Control) -> SocketAddr {
        let identity = Identity::new("cluster.local", "mesh", "ambit-observe").unwrap();
        let config =
            hbone::tls::server_config(&control.credential(&identity), &hbone::tls::Rules::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, incoming) = tokio::sync::mpsc::channel(4);
        let seen = self.0.clone();
        tokio::spawn(async move {
            loop {
                let (tcp, _) = listener.accept().await.unwrap();
                let Ok(tls) = tokio_rustls::TlsAcceptor::from(config.clone()).accept(tcp).await else {
                    continue;
                };
                let who = hbone::tls::identities(tls.get_ref().1.peer_certificates());
                seen.lock().unwrap().who.extend(who);
                let _ = connections.send(Ok::<_, std::io::Error>(Tls(tls))).await;
            }
        });
        let service = FlowStreamServer::new(self.clone());
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(ReceiverStream::new(incoming)),
        );
        address
    }

    /// Sums of the pairs of `reporter` between pods `a` and `b`, with their definitions.
    fn between(&self, reporter: Reporter) -> Vec<(PairDefinition, Sums)> {
        let seen = self.0.lock().unwrap();
        let pod = |node: &str, id: u32| seen.workloads[&(node.to_owned(), id)].pod.clone();
        let pairs = seen.pairs.iter().filter(|((node, _), (pair, _))| {
            pair.reporter() == reporter && pod(node, pair.source) == "a" && pod(node, pair.destination) == "b"
        });
        pairs.map(|(_, pair)| pair.clone()).collect()
    }
}

#[tonic::async_trait]
impl FlowStream for Observer {
    type PushStream = Pin<Box<dyn Stream<Item = Result<FromObserver, Status>> + Send>>;

    async fn push(
        &self,
        request: Request<Streaming<FromProxy>>,
    ) -> Result<Response<Self::PushStream>, Status> {
        let mut messages = request.into_inner();
        let Some(from_proxy::Message::Hello(hello)) = messages.message().await?.and_then(|m| m.message)
        else {
            return Err(Status::invalid_argument("hello"));
        };
        let node = hello.node.clone();
        let seen = self.0.clone();
        seen.lock().unwrap().hellos.push(hello);
        let (answers, receiver) = tokio::sync::mpsc::channel(16);
        let welcome = Welcome { known: false, applied: 0, ..Welcome::default() };
        let answer = |message| Ok(FromObserver { message: Some(message) });
        answers.send(answer(from_observer::Message::Welcome(welcome))).await.unwrap();
        tokio::spawn(async move {
            let mut last = 0;
            while let Ok(Some(FromProxy { message: Some(from_proxy::Message::Batch(batch)) })) =
                messages.message().await
            {
                assert_eq!(batch.sequence, last + 1, "in order, without a gap");
                assert_eq!(batch.baseline, last == 0, "the first one says all that is open");
                last = batch.sequence;
                {
                    let mut seen = seen.lock().unwrap();
                    for workload in batch.workloads {
                        seen.workloads.insert((node.clone(), workload.id), workload);
                    }
                    for pair in batch.pairs {
                        seen.pairs.insert((node.clone(), pair.id), (pair, Sums::default()));
                    }
                    for row in batch.rows {
                        let (_, sums) =
                            seen.pairs.get_mut(&(node.clone(), row.pair)).expect("defined before it is used");
                        sums.0 += row.opened;
                        sums.1 += row.closed;
                        sums.2 += row.failed;
                        sums.3 += row.bytes_sent;
                        sums.4 += row.bytes_received;
                    }
                }
                let ack = Ack { sequence: last, ..Ack::default() };
                if answers.send(answer(from_observer::Message::Ack(ack))).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}

const VARS: [(&str, &str); 3] =
    [("POD_NAME", "ambit-proxy-x"), ("POD_NAMESPACE", "mesh"), ("SERVICE_ACCOUNT", "ambit-proxy")];

#[test]
fn both_ends_report_the_same_bytes_under_the_same_proven_identities_while_the_connection_is_open() {
    in_a_node(async |node| {
        let observer = Observer::default();
        let (control, address) = Control::start().await;
        let flows = observer.start(&control).await.to_string();
        let vars: Vec<_> = VARS.into_iter().chain([("FLOW_ADDRESS", flows.as_str())]).collect();
        let w = World::with(&node, control, address, &vars).await;
        echo(w.b.listen(80));
        let mut stream = w.a.connect((w.b.ip, 80).into()).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.read_exact(&mut [0; 5]).await.unwrap();
        let identity = |account: &str| format!("spiffe://cluster.local/ns/ns/sa/{account}");
        for reporter in [Reporter::Source, Reporter::Destination] {
            eventually("counted while open", async || {
                observer.between(reporter).iter().any(|(_, sums)| *sums == (1, 0, 0, 5, 5))
            })
            .await;
            let pairs = observer.between(reporter);
            assert_eq!(pairs.len(), 1);
            let pair = &pairs[0].0;
            assert_eq!((&pair.source_identity, pair.source_proven), (&identity("a"), true));
            assert_eq!((&pair.destination_identity, pair.destination_proven), (&identity("b"), true));
            assert_eq!((pair.security(), pair.verdict()), (Security::MutualTls, Verdict::Allowed));
            assert_eq!((pair.destination_port, pair.service.as_str(), pair.reason.as_str()), (80, "", ""));
        }
        stream.write_all(b"more").await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        drop(stream);
        for reporter in [Reporter::Source, Reporter::Destination] {
            eventually("and when it has ended", async || observer.between(reporter)[0].1 == (1, 1, 0, 9, 9))
                .await;
        }
        let seen = observer.0.lock().unwrap();
        assert_eq!(seen.who[0].to_string(), "spiffe://cluster.local/ns/mesh/sa/ambit-proxy");
        assert_ne!(seen.hellos[0].epoch, 0);
        assert_eq!(seen.hellos[0].pod_name, "ambit-proxy-x");
    });
}

#[test]
fn a_denied_call_is_reported_with_the_policy_that_denied_it_and_plaintext_with_its_reason() {
    in_a_node(async |node| {
        let observer = Observer::default();
        let (control, address) = Control::start().await;
        let flows = observer.start(&control).await.to_string();
        let vars: Vec<_> = VARS.into_iter().chain([("FLOW_ADDRESS", flows.as_str())]).collect();
        let w = World::with(&node, control, address, &vars).await;
        echo(w.b.listen(80));
        echo(w.c.listen(80));
        w.control.policy(&mesh::Policy {
            name: "none".into(),
            namespace: "ns".into(),
            scope: mesh::Scope::Namespace,
            action: mesh::Action::Deny,
            rules: vec![mesh::Rule::default()],
            dry_run: false,
        });
        eventually("denied", async || call(&w.a, (w.b.ip, 80).into(), b"x").await.is_err()).await;
        let denied = |reporter| {
            let pairs = observer.between(reporter);
            pairs.into_iter().find(|(pair, sums)| pair.verdict() == Verdict::Denied && sums.2 > 0)
        };
        eventually("both report it", async || {
            denied(Reporter::Source).is_some() && denied(Reporter::Destination).is_some()
        })
        .await;
        let (pair, sums) = denied(Reporter::Destination).unwrap();
        assert_eq!((pair.reason.as_str(), pair.policy.as_str()), ("DENY", "ns/none#0"));
        assert_eq!((sums.0, sums.3), (0, 0), "never opened");
        assert_eq!(call(&w.a, (w.c.ip, 80).into(), b"x").await.unwrap(), b"x");
        eventually("plaintext is reported", async || {
            let seen = observer.0.lock().unwrap();
            seen.pairs.values().any(|(pair, sums)| {
                pair.reason == "not_enrolled" && pair.security() == Security::Plaintext && sums.1 == 1
            })
        })
        .await;
    });
}
