//! log, exec, attach and portforward: passed on to the kubelet of the pod's node, as the real server does. The
//! protocol spoken inside an upgraded connection is between the client and the kubelet.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::Call;
use crate::api::failure::Failure;
use crate::api::http::{self as wire, Answer};
use crate::api::object::{array_at, str_at};
use crate::api::pki;

const CONNECT_WITHIN: Duration = Duration::from_secs(10);
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Passes a request on to the kubelet.
pub async fn proxy(call: Call, subresource: &str, request: Request<Incoming>) -> Result<Answer, Failure> {
    let allowed = if subresource == "log" {
        call.method == "GET"
    } else {
        matches!(call.method.as_str(), "GET" | "POST")
    };
    if !allowed {
        return Err(Failure::method_not_allowed());
    }
    let upgrading = request.headers().contains_key(header::UPGRADE);
    if subresource != "log" && !upgrading {
        return Err(Failure::bad_request("Upgrade request required"));
    }
    let pod = call.api.store.get("pods", call.namespace(), call.name()).ok_or_else(|| call.not_found())?;
    let path = path(&call, subresource, &pod)?;
    let (host, port) = kubelet_of(&call, &pod)?;
    let outgoing = outgoing(&call, &path, &host, port, upgrading, request.headers())?;
    let connector = call.api.kubelet.clone();
    let mut sender = connect(&connector, &host, port).await?;
    let answer = match timeout(ANSWER_WITHIN, sender.send_request(outgoing)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(e)) => return Err(bad_gateway(&host, port, &e)),
        Err(_) => return Err(too_slow(&host, port, ANSWER_WITHIN)),
    };
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(splice(request, answer, call.api.closing.clone()));
    }
    if !answer.status().is_success() {
        return Err(refused(answer).await);
    }
    let (parts, body) = answer.into_parts();
    // The sender must live as long as the body, or its connection would end early.
    let closing = call.api.closing.clone();
    let body = http_body_util::StreamBody::new(futures::stream::unfold(
        (body, sender, closing),
        |(mut body, sender, closing)| async move {
            let frame = tokio::select! {
                frame = body.frame() => frame?.ok()?,
                () = closing.cancelled() => return None,
            };
            Some((Ok::<_, Infallible>(frame), (body, sender, closing)))
        },
    ));
    let mut response = Response::new(body.boxed_unsync());
    *response.status_mut() = parts.status;
    copy_headers(&parts.headers, response.headers_mut(), &[header::CONTENT_TYPE]);
    Ok(response)
}

/// Why the kubelet refused, which it says in plain text.
async fn refused(answer: Response<Incoming>) -> Failure {
    let code = answer.status().as_u16();
    let body = http_body_util::Limited::new(answer.into_body(), 64 * 1024).collect();
    let text = match timeout(ANSWER_WITHIN, body).await {
        Ok(Ok(body)) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
        _ => "the kubelet refused the request and did not say why".to_owned(),
    };
    let reason = match code {
        400 => "BadRequest",
        403 => "Forbidden",
        404 => "NotFound",
        _ => "InternalError",
    };
    Failure::new(code, reason, text)
}

/// The kubelet's own path and query for this request.
fn path(call: &Call, subresource: &str, pod: &Value) -> Result<String, Failure> {
    let (namespace, name) = (call.namespace(), call.name());
    if subresource == "portforward" {
        let ports: Vec<(String, String)> =
            call.params.all("ports").map(|p| ("port".to_owned(), p.to_owned())).collect();
        return Ok(format!("/portForward/{namespace}/{name}{}", query(&ports)));
    }
    let container = container(call, pod)?;
    if subresource == "log" {
        let passed: Vec<(String, String)> = call
            .params
            .iter()
            .filter(|(k, _)| *k != "container")
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .collect();
        return Ok(format!("/containerLogs/{namespace}/{name}/{container}{}", query(&passed)));
    }
    // The kubelet has names of its own for the streams.
    let mut passed = Vec::new();
    for (ours, theirs) in [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")] {
        if call.params.flag(ours) {
            passed.push((theirs.to_owned(), "1".to_owned()));
        }
    }
    passed.extend(call.params.all("command").map(|word| ("command".to_owned(), word.to_owned())));
    Ok(format!("/{subresource}/{namespace}/{name}/{container}{}", query(&passed)))
}

fn query(pairs: &[(String, String)]) -> String {
    let encode = |text: &str| -> String {
        text.bytes()
            .map(|b| match b {
                b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                    char::from(b).to_string()
                }
                b => format!("%{b:02X}"),
            })
            .collect()
    };
    if pairs.is_empty() {
        return String::new();
    }
    let parts: Vec<String> = pairs.iter().map(|(k, v)| format!("{}={}", encode(k), encode(v))).collect();
    format!("?{}", parts.join("&"))
}

fn container(call: &Call, pod: &Value) -> Result<String, Failure> {
    let names = |list: &str| -> Vec<String> {
        array_at(pod, &format!("/spec/{list}")).iter().map(|c| str_at(c, "/name").to_owned()).collect()
    };
    let (containers, inits) = (names("containers"), names("initContainers"));
    let wanted = call.params.get("container");
    if !wanted.is_empty() {
        let all = containers.iter().chain(&inits).chain(&names("ephemeralContainers")).any(|c| c == wanted);
        return if all {
            Ok(wanted.to_owned())
        } else {
            Err(Failure::bad_request(format!("container {wanted} is not valid for pod {}", call.name())))
        };
    }
    match containers.as_slice() {
        [only] => Ok(only.clone()),
        many => Err(Failure::bad_request(format!(
            "a container name must be specified for pod {}, choose one of: [{}]",
            call.name(),
            many.join(" ")
        ))),
    }
}

fn kubelet_of(call: &Call, pod: &Value) -> Result<(String, u16), Failure> {
    let node_name = str_at(pod, "/spec/nodeName");
    if node_name.is_empty() {
        return Err(Failure::bad_request(format!("pod {} does not have a host assigned", call.name())));
    }
    let node =
        call.api.store.get("nodes", "", node_name).ok_or_else(|| Failure::not_found("nodes", node_name))?;
    let addresses = array_at(&node, "/status/addresses");
    let address = ["Hostname", "InternalIP", "ExternalIP"]
        .iter()
        .find_map(|kind| addresses.iter().find(|a| str_at(a, "/type") == *kind))
        .map(|a| str_at(a, "/address").to_owned())
        .filter(|a| !a.is_empty())
        .ok_or_else(|| {
            Failure::internal(format!("node {node_name} has no address that its kubelet could be at"))
        })?;
    let port = node.pointer("/status/daemonEndpoints/kubeletEndpoint/Port").and_then(Value::as_u64);
    Ok((address, port.and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0).unwrap_or(10_250)))
}

fn outgoing(
    call: &Call,
    path: &str,
    host: &str,
    port: u16,
    upgrading: bool,
    headers: &HeaderMap,
) -> Result<Request<Empty<Bytes>>, Failure> {
    let authority = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    let mut request = Request::builder()
        .method(call.method.clone())
        .uri(path)
        .header(header::HOST, authority)
        .body(Empty::new())
        .map_err(Failure::internal)?;
    if upgrading {
        let passed = [
            header::CONNECTION,
            header::UPGRADE,
            header::SEC_WEBSOCKET_KEY,
            header::SEC_WEBSOCKET_VERSION,
            header::SEC_WEBSOCKET_PROTOCOL,
            header::SEC_WEBSOCKET_EXTENSIONS,
            HeaderName::from_static("x-stream-protocol-version"),
        ];
        copy_headers(headers, request.headers_mut(), &passed);
    }
    Ok(request)
}

fn copy_headers(from: &HeaderMap, to: &mut HeaderMap, names: &[HeaderName]) {
    for name in names {
        for value in from.get_all(name) {
            to.append(name.clone(), value.clone());
        }
    }
}

type Sender = hyper::client::conn::http1::SendRequest<Empty<Bytes>>;

async fn connect(connector: &TlsConnector, host: &str, port: u16) -> Result<Sender, Failure> {
    let connecting = async {
        let stream = TcpStream::connect((host, port)).await?;
        let _ = stream.set_nodelay(true);
        let name = rustls::pki_types::ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?;
        let stream = connector.connect(name, stream).await?;
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)
    };
    match timeout(CONNECT_WITHIN, connecting).await {
        Ok(Ok((sender, connection))) => {
            // It ends when the sender is dropped and its last body or upgrade with it.
            tokio::spawn(async move {
                if let Err(error) = connection.with_upgrades().await {
                    tracing::debug!(%error, "a connection to a kubelet ended");
                }
            });
            Ok(sender)
        }
        Ok(Err(e)) => Err(bad_gateway(host, port, &e)),
        Err(_) => Err(too_slow(host, port, CONNECT_WITHIN)),
    }
}

fn bad_gateway(host: &str, port: u16, error: &dyn std::error::Error) -> Failure {
    Failure::new(502, "InternalError", format!("error dialing the kubelet at {host}:{port}: {error}"))
}

fn too_slow(host: &str, port: u16, within: Duration) -> Failure {
    let message = format!("the kubelet at {host}:{port} did not answer within {} s", within.as_secs());
    Failure::new(504, "Timeout", message)
}

/// Answers the client's upgrade with the kubelet's, then carries bytes both ways until either end is done.
fn splice(request: Request<Incoming>, answer: Response<Incoming>, closing: CancellationToken) -> Answer {
    let mut response = Response::new(wire::full(Bytes::new()));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let passed = [
        header::CONNECTION,
        header::UPGRADE,
        header::SEC_WEBSOCKET_ACCEPT,
        header::SEC_WEBSOCKET_PROTOCOL,
        header::SEC_WEBSOCKET_EXTENSIONS,
        HeaderName::from_static("x-stream-protocol-version"),
    ];
    copy_headers(answer.headers(), response.headers_mut(), &passed);
    tokio::spawn(async move {
        let both = async { tokio::try_join!(hyper::upgrade::on(request), hyper::upgrade::on(answer)) };
        let (client, kubelet) = match timeout(ANSWER_WITHIN, both).await {
            Ok(Ok(pair)) => pair,
            Ok(Err(error)) => return tracing::debug!(%error, "an upgrade to a kubelet failed"),
            Err(_) => return tracing::debug!("an upgrade to a kubelet was not taken up"),
        };
        let (mut client, mut kubelet) = (TokioIo::new(client), TokioIo::new(kubelet));
        tokio::select! {
            _ = tokio::io::copy_bidirectional(&mut client, &mut kubelet) => {},
            () = closing.cancelled() => {},
        }
    });
    response
}

/// How this server presents itself to kubelets; it does not check who they are, as the real one by default.
pub fn connector(authority: &pki::Authority) -> anyhow::Result<TlsConnector> {
    let identity = authority.client("kube-apiserver-kubelet-client", &["system:masters"])?;
    let config = rustls::ClientConfig::builder()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyKubelet(
            rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms,
        )))
        .with_client_auth_cert(vec![identity.certificate], identity.key)?;
    Ok(TlsConnector::from(Arc::new(config)))
}

/// Accepts whatever certificate a kubelet serves with, but checks that it holds the key.
#[derive(Debug)]
struct AnyKubelet(rustls::crypto::WebPkiSupportedAlgorithms);

impl rustls::client::danger::ServerCertVerifier for AnyKubelet {
    fn verify_server_cert(
        &self,
        _end_entity: &rustls::pki_types::CertificateDer<'_>,
        _intermediates: &[rustls::pki_types::CertificateDer<'_>],
        _server_name: &rustls::pki_types::ServerName<'_>,
        _ocsp_response: &[u8],
        _now: rustls::pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &rustls::pki_types::CertificateDer<'_>,
        dss: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.supported_schemes()
    }
}
