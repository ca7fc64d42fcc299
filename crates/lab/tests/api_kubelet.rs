//! What the API server passes on to kubelets, against a kubelet of the test's own.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use futures::{SinkExt, StreamExt};
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::Client;
use kube::api::{Api, AttachParams, LogParams, PostParams};
use lab::api::{Config, Server};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};

const PATIENCE: Duration = Duration::from_secs(30);

/// A server with a pod `p` on a node whose kubelet is at this port of the loopback.
async fn server_with_kubelet_at(port: u16) -> (Server, Client) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let service_cidr = "10.96.0.0/16".parse().expect("a range");
    let config = Config { listeners: vec![listener], sans: Vec::new(), service_cidr };
    let server = Server::start(config).await.expect("starts");
    let client = server.client().await.expect("a client");
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": "one"},
        "status": {"addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                   "daemonEndpoints": {"kubeletEndpoint": {"Port": port}}},
    }))
    .expect("a node");
    Api::all(client.clone()).create(&PostParams::default(), &node).await.expect("creates");
    let account: ServiceAccount =
        serde_json::from_value(json!({"metadata": {"name": "default"}})).expect("an account");
    Api::default_namespaced(client.clone()).create(&PostParams::default(), &account).await.expect("creates");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "p"}, "spec": {"nodeName": "one", "containers": [{"name": "c", "image": "i"}]},
    }))
    .expect("a pod");
    Api::default_namespaced(client.clone()).create(&PostParams::default(), &pod).await.expect("creates");
    (server, client)
}

/// Takes one connection as a kubelet does: its own certificate is self-signed, the caller's must be of the cluster.
async fn accept(listener: tokio::net::TcpListener, ca_pem: String) -> TlsStream<TcpStream> {
    let own = rcgen::generate_simple_self_signed(vec!["a-kubelet".into()]).expect("a certificate");
    let key = PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca_pem.as_bytes()).expect("PEM")).expect("a root");
    let clients = WebPkiClientVerifier::builder(Arc::new(roots)).build().expect("a verifier");
    let config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![own.cert.der().clone()], key)
        .expect("a configuration");
    let (stream, _) = listener.accept().await.expect("a connection");
    let stream =
        TlsAcceptor::from(Arc::new(config)).accept(stream).await.expect("the API server's certificate");
    let peer = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|c| c.first())
        .expect("a client certificate")
        .to_vec();
    let (_, peer) = x509_parser::parse_x509_certificate(&peer).expect("X.509");
    let subject = peer.subject().to_string();
    assert!(
        subject.contains("CN=kube-apiserver-kubelet-client") && subject.contains("O=system:masters"),
        "{subject}"
    );
    stream
}

#[tokio::test]
async fn logs_come_from_the_kubelet_of_the_pods_node() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
    let port = listener.local_addr().expect("an address").port();
    let (server, client) = server_with_kubelet_at(port).await;
    let ca = server.ca_pem();
    let kubelet = tokio::spawn(async move {
        let mut stream = accept(listener, ca).await;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.expect("a request"));
        }
        let body = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 6\r\n\r\nhello\n";
        stream.write_all(body.as_bytes()).await.expect("written");
        stream.flush().await.expect("flushed");
        String::from_utf8(head).expect("text").lines().next().expect("a line").to_owned()
    });
    let pods: Api<Pod> = Api::default_namespaced(client);
    let params = LogParams { tail_lines: Some(5), ..LogParams::default() };
    let logs = tokio::time::timeout(PATIENCE, pods.logs("p", &params)).await.expect("in time").expect("logs");
    assert_eq!(logs, "hello\n");
    let asked = kubelet.await.expect("the kubelet's part");
    assert_eq!(asked, "GET /containerLogs/default/p/c?tailLines=5 HTTP/1.1");
}

#[tokio::test]
#[allow(clippy::result_large_err, reason = "the handshake callback's type is not ours")]
async fn exec_is_between_the_client_and_the_kubelet() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
    let port = listener.local_addr().expect("an address").port();
    let (server, client) = server_with_kubelet_at(port).await;
    let ca = server.ca_pem();
    let kubelet = tokio::spawn(async move {
        let stream = accept(listener, ca).await;
        let mut asked = String::new();
        let mut socket =
            tokio_tungstenite::accept_hdr_async(stream, |request: &Request, mut response: Response| {
                asked = request.uri().to_string();
                let protocols = request.headers()["sec-websocket-protocol"].to_str().expect("text");
                let first = protocols.split(',').next().expect("one").trim();
                response.headers_mut().insert("sec-websocket-protocol", first.parse().expect("a value"));
                Ok(response)
            })
            .await
            .expect("a WebSocket");
        // Channel 1 is standard output, channel 3 the status.
        socket.send(Message::binary(b"\x01hello".to_vec())).await.expect("sent");
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"});
        socket.send(Message::binary([b"\x03", status.to_string().as_bytes()].concat())).await.expect("sent");
        socket.close(None).await.expect("closed");
        while let Some(Ok(_)) = socket.next().await {}
        asked
    });
    let pods: Api<Pod> = Api::default_namespaced(client);
    let params = AttachParams::default().stdin(false).stdout(true).stderr(false);
    let exec = async {
        let mut process = pods.exec("p", ["echo", "a b"], &params).await.expect("an upgraded connection");
        let mut output = String::new();
        process.stdout().expect("attached").read_to_string(&mut output).await.expect("text");
        output
    };
    let output = tokio::time::timeout(PATIENCE, exec).await.expect("in time");
    assert_eq!(output, "hello");
    let asked = tokio::time::timeout(PATIENCE, kubelet).await.expect("in time").expect("the kubelet's part");
    assert_eq!(asked, "/exec/default/p/c?output=1&command=echo&command=a%20b");
}

#[tokio::test]
async fn an_unreachable_kubelet_is_a_bad_gateway() {
    // Bound and dropped: nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a loopback port").port();
    let (_server, client) = server_with_kubelet_at(port).await;
    let pods: Api<Pod> = Api::default_namespaced(client);
    match tokio::time::timeout(PATIENCE, pods.logs("p", &LogParams::default())).await.expect("in time") {
        Err(kube::Error::Api(status)) => {
            assert_eq!(status.code, 502);
            assert!(status.message.contains(&format!("127.0.0.1:{port}")), "{}", status.message);
        }
        other => panic!("expected a Status, got {other:?}"),
    }
}
