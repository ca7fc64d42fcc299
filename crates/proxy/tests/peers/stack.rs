//! Peers made of rustls and the crate `h2` alone, with nothing of ours in them: as a client and as a server of CONNECT.
//! And peers whose certificates must not be believed: each is refused with its own reason, whichever end it is.

use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use rcgen::CertificateParams;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::server::WebPkiClientVerifier;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::control::Control;
use crate::harness::{World, call, echo, eventually, identity, log, workload};
use crate::namespaces::{Pod, in_a_node};

/// Certificate, key and root.
type Pem = (String, String, String);

/// Names of SPIFFE are no names of hosts: this looks at the certificate's URI and nothing else of it.
#[derive(Debug)]
struct NamedBy(String);

impl ServerCertVerifier for NamedBy {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let named = leaf.windows(self.0.len()).any(|part| part == self.0.as_bytes());
        if named {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(rustls::Error::General("somebody else".into()))
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, &algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn certificate((certificate, key, _): &Pem) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let leaf = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    (vec![leaf], PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap())
}

type Tls = tokio_rustls::client::TlsStream<TcpStream>;

/// TLS to `to`, whose certificate must name `b`.
pub async fn tls(from: &Pod, to: std::net::SocketAddr, pem: &Pem) -> std::io::Result<Tls> {
    let (chain, key) = certificate(pem);
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(NamedBy(identity("b").to_string())))
        .with_client_auth_cert(chain, key);
    let mut config = config.unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let socket = from.connect(to).await?;
    let name = ServerName::IpAddress(to.ip().into());
    tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, socket).await
}

/// CONNECT to `authority`.
async fn connect(
    client: &mut h2::client::SendRequest<Bytes>,
    authority: &str,
) -> (StatusCode, h2::SendStream<Bytes>, h2::RecvStream) {
    std::future::poll_fn(|cx| client.poll_ready(cx)).await.unwrap();
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(authority)
        .header("baggage", "k8s.namespace.name=ns,service.name=foreign")
        .header("x-of-no-interest", "1")
        .body(())
        .unwrap();
    let (response, send) = client.send_request(request, false).unwrap();
    let response = response.await.unwrap();
    (response.status(), send, response.into_body())
}

pub async fn send_all(send: &mut h2::SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let capacity = std::future::poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
        send.send_data(data.split_to(capacity.min(data.len())), false).unwrap();
    }
    send.send_data(Bytes::new(), true).unwrap();
}

pub async fn read_all(body: &mut h2::RecvStream) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(part) = body.data().await {
        let part = part.unwrap();
        body.flow_control().release_capacity(part.len()).unwrap();
        all.extend(part);
    }
    all
}

#[test]
fn h2_over_rustls_speaks_connect_to_a_proxy() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        echo(world.b.listen(8080));
        let stream = tls(&world.c, world.b.at(15008), &world.control.pem(&identity("a"))).await.unwrap();
        let (_, session) = stream.get_ref();
        assert_eq!(session.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(session.alpn_protocol(), Some(&b"h2"[..]));
        let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
        let driving = tokio::spawn(connection);
        let data: Bytes = (0..3_000_000u32).map(|n| (n >> 3) as u8).collect::<Vec<_>>().into();
        let mut streams = Vec::new();
        for _ in 0..5 {
            let (status, mut send, mut body) = connect(&mut client, &world.b.at(8080).to_string()).await;
            assert_eq!(status, StatusCode::OK);
            let data = data.clone();
            streams.push(tokio::spawn(async move {
                let sent = data.clone();
                let sending = async { send_all(&mut send, sent).await };
                let (got, ()) = tokio::join!(read_all(&mut body), sending);
                assert!(got == data, "what comes back differs");
            }));
        }
        for stream in streams {
            stream.await.unwrap();
        }
        // Refused ones leave the tunnel as it is.
        assert_eq!(connect(&mut client, "10.99.0.1:80").await.0, StatusCode::BAD_REQUEST);
        assert_eq!(
            connect(&mut client, &world.b.at(81).to_string()).await.0,
            StatusCode::SERVICE_UNAVAILABLE
        );
        let (status, mut send, mut body) = connect(&mut client, &world.b.at(8080).to_string()).await;
        assert_eq!(status, StatusCode::OK);
        send_all(&mut send, Bytes::from_static(b"after refusals")).await;
        assert_eq!(read_all(&mut body).await, b"after refusals");
        drop((client, send, body));
        tokio::time::timeout(std::time::Duration::from_secs(10), driving)
            .await
            .expect("it ends")
            .unwrap()
            .unwrap();
        let labels = [
            ("source_principal", "spiffe://cluster.local/ns/ns/sa/a"),
            ("connection_security_policy", "mutual_tls"),
        ];
        let wanted = 5 * 3_000_000 + 14;
        eventually("all bytes are counted", async || {
            world.pb.metrics().await.sum("istio_tcp_received_bytes_total", &labels) == wanted
        })
        .await;
    });
}

/// The server's end of TLS with `pem`; it demands a client certificate of the mesh.
pub fn acceptor(pem: &Pem) -> tokio_rustls::TlsAcceptor {
    let (chain, key) = certificate(pem);
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.2.as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key);
    let mut config = config.unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(config).into()
}

/// A server of CONNECT in a pod with `pem`, that echoes.
fn serve(pod: &Pod, pem: &Pem) {
    let acceptor = acceptor(pem);
    let listener = pod.listen(15008);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(tls) = acceptor.accept(socket).await else { return };
                let mut connection = h2::server::handshake(tls).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        assert_eq!(request.method(), Method::CONNECT);
                        let authority = request.uri().authority().unwrap().as_str().to_owned();
                        assert!(
                            request.headers()["forwarded"].to_str().unwrap().starts_with("for=\"10.77.0.2:")
                        );
                        let refused = authority.ends_with(":81");
                        let status = if refused { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
                        let response = Response::builder().status(status).body(()).unwrap();
                        let mut send = respond.send_response(response, refused).unwrap();
                        if !refused {
                            let data = read_all(&mut request.into_body()).await;
                            send_all(&mut send, data.into()).await;
                        }
                    });
                }
            });
        }
    });
}

/// Pod c takes tunnels from now on, and the proxy of a knows.
pub async fn takes_tunnels(world: &World) {
    world.control.workload(&workload("c", "node-b", &world.c));
    eventually("it is known to take tunnels", async || {
        let dump = world.pa.dump().await;
        let mut workloads = dump["workloads"].as_array().unwrap().iter();
        workloads.any(|one| one["name"] == "c" && one["protocol"] == "HBONE")
    })
    .await;
}

#[test]
fn a_proxy_speaks_connect_to_h2_over_rustls() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        serve(&world.c, &world.control.pem(&identity("c")));
        takes_tunnels(&world).await;
        let data: Vec<u8> = (0..2_000_000u32).map(|n| (n >> 2) as u8).collect();
        let calls = (0..5).map(|_| call(&world.a, world.c.at(9000), &data));
        for answer in futures::future::join_all(calls).await {
            assert!(answer.unwrap() == data, "what comes back differs");
        }
        assert!(call(&world.a, world.c.at(81), b"x").await.is_err(), "a refusal there is one here");
        assert_eq!(call(&world.a, world.c.at(9000), b"after it").await.unwrap(), b"after it");
        let labels = [("connection_security_policy", "mutual_tls"), ("destination_workload", "c")];
        eventually("all bytes are counted", async || {
            world.pa.metrics().await.sum("istio_tcp_sent_bytes_total", &labels) == 5 * 2_000_000 + 8
        })
        .await;
    });
}

/// Certificates that must not be believed, and why.
fn unbelievable(control: &Control, account: &str) -> Vec<(&'static str, Pem)> {
    let identity = identity(account);
    let with = |change: &dyn Fn(&mut CertificateParams)| control.pem_with(&identity, change);
    let root = control.pem(&identity).2;
    let expired = with(&|params| {
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
    });
    let early = with(&|params| {
        params.not_before = rcgen::date_time_ymd(3000, 1, 1);
        params.not_after = rcgen::date_time_ymd(3001, 1, 1);
    });
    let nameless = with(&|params| params.subject_alt_names.clear());
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(identity.to_string().try_into().unwrap())];
    // Its own key, its own signature.
    let own = (params.self_signed(&key).unwrap().pem(), key.serialize_pem(), root);
    vec![
        ("certificate_expired", expired),
        ("certificate_not_yet_valid", early),
        ("no_identity", nameless),
        ("unknown_issuer", own),
    ]
}

#[test]
fn clients_that_must_not_be_believed_are_refused_each_with_its_own_reason() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let peers = echo(world.b.listen(8080));
        let mut bad = unbelievable(&world.control, "a");
        let stranger = mesh::Identity::new("elsewhere", "ns", "a").unwrap();
        bad.push(("wrong_trust_domain", world.control.pem(&stranger)));
        for (reason, pem) in &bad {
            // TLS 1.3 lets a client finish before the server has looked: the refusal comes with the first read.
            if let Ok(mut stream) = tls(&world.c, world.b.at(15008), pem).await {
                let answer = stream.read(&mut [0; 64]).await;
                assert!(!matches!(answer, Ok(1..)), "{reason}: it is spoken to");
            }
            eventually(reason, async || {
                let metrics = world.pb.metrics().await;
                let own = [("reason", *reason), ("reporter", "destination")];
                metrics.sum("ambit_connections_refused_total", &own) == 1
            })
            .await;
        }
        let all = world.pb.metrics().await.sum("ambit_connections_refused_total", &[]);
        assert_eq!(all, bad.len() as u64, "one reason each, and no other");
        assert!(peers.lock().unwrap().is_empty(), "nobody got through");
        assert_eq!(call(&world.a, world.b.at(8080), b"others").await.unwrap(), b"others");
    });
}

#[test]
fn servers_that_must_not_be_believed_get_no_byte_and_are_refused_each_with_its_own_reason() {
    in_a_node(|node| async move {
        let world = World::new(&node).await;
        let mut bad = unbelievable(&world.control, "c");
        bad.push(("wrong_identity", world.control.pem(&identity("somebody-else"))));
        for (number, (reason, pem)) in bad.iter().enumerate() {
            let account = format!("bad{number}");
            let pod = node.pod(40 + number as u8);
            serve(&pod, pem);
            let mut of = workload(&account, "node-b", &pod);
            of.identity = identity("c");
            world.control.workload(&of);
            eventually("it is known", async || {
                let dump = world.pa.dump().await;
                dump["workloads"].as_array().unwrap().iter().any(|one| one["name"] == *account)
            })
            .await;
            assert!(call(&world.a, pod.at(80), b"secret").await.is_err(), "{reason}");
            let words = match *reason {
                "certificate_expired" => "has expired",
                "certificate_not_yet_valid" => "not valid yet",
                "no_identity" => "without a SPIFFE identity",
                "unknown_issuer" => "no root of the mesh has signed",
                "wrong_identity" => {
                    "ns/ns/sa/somebody-else, expected one of spiffe://cluster.local/ns/ns/sa/c"
                }
                other => panic!("{other} has no words"),
            };
            let failed = [("response_flags", "CONNECT"), ("destination_workload", &*account)];
            eventually("it is counted", async || {
                world.pa.metrics().await.sum("istio_tcp_connections_failed_total", &failed) == 1
            })
            .await;
            let said = log::lines("outbound", "connection complete");
            let line = said.iter().find(|line| line.get("dst.workload").is_some_and(|to| *to == account));
            let error = line.and_then(|line| line.get("error")).cloned().unwrap_or_default();
            assert!(error.contains(words), "{reason}: {error:?}");
            let wrote = metrics_of(&world, &account).await;
            assert_eq!(wrote, 0, "{reason}: not a byte was sent to it");
        }
    });
}

/// Bytes that the client's proxy says it has carried to a workload.
async fn metrics_of(world: &World, workload: &str) -> u64 {
    let labels = [("destination_workload", workload)];
    world.pa.metrics().await.sum("istio_tcp_received_bytes_total", &labels)
}
