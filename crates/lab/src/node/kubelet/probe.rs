//! Probes: when to ask, what the answers mean, and asking from the node's network namespace.
//!
//! A socket belongs to the namespace it was made in, so only its creation happens inside the node's; thresholds
//! are counted by [`Tracker`], which knows neither time nor network.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use netns::NetNs;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{mpsc, watch};

use crate::node::runtime;

/// The first wait of a readiness probe that has not succeeded yet.
const EAGER: Duration = Duration::from_millis(100);

/// Which probe it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The others wait for it.
    Startup,
    /// Decides whether the pod gets traffic.
    Readiness,
    /// Decides whether the container goes on.
    Liveness,
}

/// Counts answers against thresholds.
#[derive(Clone, Debug)]
pub struct Tracker {
    good: u32,
    bad: u32,
    run: u32,
    last: Option<bool>,
    settled: Option<bool>,
}

impl Tracker {
    /// A tracker that has seen nothing.
    pub fn new(probe: &Probe) -> Self {
        let threshold = |n: Option<i32>, default| u32::try_from(n.unwrap_or(default)).unwrap_or(1).max(1);
        Self {
            good: threshold(probe.success_threshold, 1),
            bad: threshold(probe.failure_threshold, 3),
            run: 0,
            last: None,
            settled: None,
        }
    }

    /// Takes an answer; says what is now true if that has changed.
    pub fn observe(&mut self, ok: bool) -> Option<bool> {
        self.run = if self.last == Some(ok) { self.run + 1 } else { 1 };
        self.last = Some(ok);
        let enough = self.run >= if ok { self.good } else { self.bad };
        if !enough || self.settled == Some(ok) {
            return None;
        }
        self.settled = Some(ok);
        Some(ok)
    }
}

/// What a probe found out.
#[derive(Clone, Debug)]
pub struct Finding {
    /// The container.
    pub container: String,
    /// The run it was asked in.
    pub id: String,
    /// Which probe.
    pub kind: Kind,
    /// What is now true; `None` for a failure that does not count yet.
    pub settled: Option<bool>,
    /// What the last answer was.
    pub message: Option<String>,
}

/// Where and what to ask.
#[derive(Clone)]
pub struct Target {
    /// The node's network namespace.
    pub netns: NetNs,
    /// The address of the pod.
    pub ip: IpAddr,
    /// The container, for port names.
    pub container: Container,
    /// Its run.
    pub id: String,
}

/// Asks again and again until the task is aborted. `begin` turns true when the startup probe has succeeded.
pub async fn run(
    kind: Kind,
    probe: Probe,
    target: Target,
    mut begin: watch::Receiver<bool>,
    findings: mpsc::UnboundedSender<Finding>,
) {
    if kind != Kind::Startup && begin.wait_for(|b| *b).await.is_err() {
        return;
    }
    let seconds = |n: Option<i32>, default: u64| {
        Duration::from_secs(n.and_then(|n| u64::try_from(n).ok()).unwrap_or(default))
    };
    let timeout = seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1));
    let period = seconds(probe.period_seconds, 10).max(Duration::from_secs(1));
    tokio::time::sleep(seconds(probe.initial_delay_seconds, 0)).await;
    if kind == Kind::Liveness {
        // A program that only just runs has a period's time before anybody doubts it.
        tokio::time::sleep(period).await;
    }
    let mut tracker = Tracker::new(&probe);
    let mut pace = Pace::new(kind, period);
    let mut mentioned = Instant::now();
    loop {
        let answer = match tokio::time::timeout(timeout, ask(&probe, &target, timeout)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", timeout.as_secs())),
        };
        let settled = tracker.observe(answer.is_ok());
        let mention = answer.is_err() && (!pace.eager() || mentioned.elapsed() >= period);
        if settled.is_some() || mention {
            let message = answer.as_ref().err().filter(|_| mention).cloned();
            mentioned = if mention { Instant::now() } else { mentioned };
            let finding = Finding {
                container: target.container.name.clone(),
                id: target.id.clone(),
                kind,
                settled,
                message,
            };
            if findings.send(finding).is_err() {
                return;
            }
        }
        match (kind, settled) {
            (Kind::Startup, Some(_)) | (Kind::Liveness, Some(false)) => return,
            _ => tokio::time::sleep(pace.next(answer.is_ok())).await,
        }
    }
}

/// How long to wait between two questions: the period, but less while a program has not been ready yet, so
/// that it is used as soon as it is.
struct Pace {
    period: Duration,
    eager: Option<Duration>,
}

impl Pace {
    fn new(kind: Kind, period: Duration) -> Self {
        Self { period, eager: (kind == Kind::Readiness).then_some(EAGER) }
    }

    /// Whether nothing has succeeded so far.
    fn eager(&self) -> bool {
        self.eager.is_some()
    }

    fn next(&mut self, ok: bool) -> Duration {
        if ok {
            self.eager = None;
        }
        match &mut self.eager {
            Some(wait) => {
                let now = *wait;
                *wait = (now * 3 / 2).min(Duration::from_secs(2));
                now.min(self.period)
            }
            None => self.period,
        }
    }
}

/// Asks once.
pub async fn ask(probe: &Probe, target: &Target, timeout: Duration) -> Result<(), String> {
    if let Some(exec) = &probe.exec {
        let command = exec.command.clone().unwrap_or_default();
        return match runtime::exec(&target.id, &command, timeout).await? {
            (0, _) => Ok(()),
            (code, said) => Err(format!("command {command:?} ended with {code}: {said}")),
        };
    }
    if let Some(http) = &probe.http_get {
        return http_get(http, target).await;
    }
    if let Some(tcp) = &probe.tcp_socket {
        let ip = host(tcp.host.as_deref(), target)?;
        let port = port(&tcp.port, &target.container)?;
        return connect(&target.netns, SocketAddr::new(ip, port)).await.map(drop);
    }
    if let Some(grpc) = &probe.grpc {
        let port = u16::try_from(grpc.port).map_err(|_| format!("{} is no port", grpc.port))?;
        let service = grpc.service.as_deref().unwrap_or("");
        return grpc_check(&target.netns, SocketAddr::new(target.ip, port), service).await;
    }
    Err("the probe says neither exec, httpGet, tcpSocket nor grpc".to_owned())
}

fn host(host: Option<&str>, target: &Target) -> Result<IpAddr, String> {
    match host {
        None | Some("") => Ok(target.ip),
        Some("localhost") => Ok(IpAddr::from([127, 0, 0, 1])),
        Some(host) => host.parse().map_err(|_| format!("probe host {host:?} is not an address")),
    }
}

/// A port by number, or by the name a container gives it.
pub fn port(wanted: &IntOrString, container: &Container) -> Result<u16, String> {
    let number = match wanted {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|p| p.name.as_deref() == Some(name))
            .map(|p| p.container_port)
            .or_else(|| name.parse().ok()),
    };
    number
        .and_then(|n| u16::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| format!("container {:?} has no port {wanted:?}", container.name))
}

/// Connects from a network namespace. The caller bounds the time.
pub async fn connect(netns: &NetNs, to: SocketAddr) -> Result<TcpStream, String> {
    let socket = netns
        .try_run(|| if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() })
        .map_err(|e| e.to_string())?;
    socket.connect(to).await.map_err(|e| format!("dial tcp {to}: {e}"))
}

async fn http_get(http: &HTTPGetAction, target: &Target) -> Result<(), String> {
    let ip = host(http.host.as_deref(), target)?;
    let to = SocketAddr::new(ip, port(&http.port, &target.container)?);
    let stream = connect(&target.netns, to).await?;
    let path = http.path.as_deref().filter(|p| !p.is_empty()).unwrap_or("/");
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    let mut headers: BTreeMap<String, String> =
        http.http_headers.iter().flatten().map(|h| (h.name.to_ascii_lowercase(), h.value.clone())).collect();
    headers.entry("host".into()).or_insert_with(|| to.to_string());
    headers.entry("user-agent".into()).or_insert_with(|| "kube-probe/1.33".into());
    headers.entry("accept".into()).or_insert_with(|| "*/*".into());
    let status = if http.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https")) {
        let name = rustls_pki_types::ServerName::IpAddress(ip.into());
        let tls = tokio_rustls::TlsConnector::from(Arc::new(trusting()?))
            .connect(name, stream)
            .await
            .map_err(|e| format!("TLS to {to}: {e}"))?;
        get(tls, &path, &headers).await?
    } else {
        get(stream, &path, &headers).await?
    };
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {status}"))
    }
}

async fn get(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    path: &str,
    headers: &BTreeMap<String, String>,
) -> Result<u16, String> {
    let text = |e: &dyn std::fmt::Display| format!("HTTP probe failed: {e}");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| text(&e))?;
    // The connection ends with this future, so that a probe leaves nothing open.
    let mut request = http::Request::builder().uri(path).header("connection", "close");
    for (name, value) in headers {
        request = request.header(name.as_str(), value.as_str());
    }
    let request = request.body(Full::<Bytes>::default()).map_err(|e| text(&e))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| text(&e))?;
        let status = response.status().as_u16();
        // Read a little, so that the program is not cut off while it writes a small answer.
        let mut body = http_body_util::Limited::new(response.into_body(), 10 << 10);
        while let Some(Ok(_)) = body.frame().await {}
        Ok(status)
    };
    tokio::pin!(connection);
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended.map_err(|e| text(&e))?;
            answer.await
        }
    }
}

/// `grpc.health.v1.Health/Check`: the request and answer are one field each.
async fn grpc_check(netns: &NetNs, to: SocketAddr, service: &str) -> Result<(), String> {
    let text = |e: &dyn std::fmt::Display| format!("gRPC probe failed: {e}");
    let stream = connect(netns, to).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|e| text(&e))?;
    let mut message = Vec::new();
    if let (false, Ok(length)) = (service.is_empty(), u8::try_from(service.len()).map(|n| n.min(127))) {
        message.extend([0x0a, length]);
        message.extend(&service.as_bytes()[..usize::from(length)]);
    }
    let mut frame = vec![0];
    frame.extend((message.len() as u32).to_be_bytes());
    frame.extend(message);
    let request = http::Request::post(format!("http://{to}/grpc.health.v1.Health/Check"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "kube-probe/1.33")
        .body(Full::new(Bytes::from(frame)))
        .map_err(|e| text(&e))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|e| text(&e))?;
        let body = http_body_util::Limited::new(response.into_body(), 4096);
        let body = body.collect().await.map_err(|e| text(&e))?.to_bytes();
        match body.get(5..) {
            Some([0x08, 0x01, ..]) => Ok(()),
            _ => Err(format!("service {service:?} is not serving")),
        }
    };
    tokio::select! {
        answer = answer => answer,
        ended = connection => Err(ended.map_or_else(|e| text(&e), |()| "the connection was closed".to_owned())),
    }
}

/// Probes trust any certificate, as kubelets do: they ask whether a program answers, not who it is.
fn trusting() -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth())
}

#[derive(Debug)]
struct AnyCertificate(Arc<rustls::crypto::CryptoProvider>);

impl rustls::client::danger::ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &[rustls_pki_types::CertificateDer<'_>],
        _: &rustls_pki_types::ServerName<'_>,
        _: &[u8],
        _: rustls_pki_types::UnixTime,
    ) -> Result<rustls::client::danger::ServerCertVerified, rustls::Error> {
        Ok(rustls::client::danger::ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &rustls_pki_types::CertificateDer<'_>,
        _: &rustls::DigitallySignedStruct,
    ) -> Result<rustls::client::danger::HandshakeSignatureValid, rustls::Error> {
        Ok(rustls::client::danger::HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests;
