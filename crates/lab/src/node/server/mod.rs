//! The kubelet's own HTTPS port: `kubectl logs`, `exec`, `attach` and `port-forward` end here.
//!
//! It listens on the host's 127.0.0.1 and answers only those who present a client certificate of the cluster's CA
//! that names the API server or an administrator: `exec` into a privileged container is root on the machine. It
//! knows pods only through [`Pods`] and changes nothing about them.

mod attach;
mod exec;
mod logs;
mod port_forward;
mod request;
mod spdy;
mod tls;
mod upgrade;

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, combinators::UnsyncBoxBody};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

use crate::node::border::{PodError, Pods};
use request::{Action, Call};

/// Bytes of an answer, known or still coming.
type Body = UnsyncBoxBody<Bytes, std::io::Error>;

const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
const HEADERS_WITHIN: Duration = Duration::from_secs(30);
/// Connections at once; a lab's API server needs a few.
const AT_MOST: usize = 512;

/// Serves for the life of the process and answers the port.
///
/// `client_ca_pem` is the CA whose client certificates are believed: that of the kubeconfig. Call it within a
/// Tokio runtime.
pub fn start(pods: Arc<dyn Pods>, client_ca_pem: String) -> anyhow::Result<u16> {
    let acceptor = TlsAcceptor::from(Arc::new(tls::server(&client_ca_pem)?));
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .context("the kubelet server cannot listen on 127.0.0.1")?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    tokio::spawn(accept(TcpListener::from_std(listener)?, acceptor, pods));
    Ok(port)
}

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, pods: Arc<dyn Pods>) {
    let places = Arc::new(Semaphore::new(AT_MOST));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, peer)) => {
                let (acceptor, pods) = (acceptor.clone(), pods.clone());
                tokio::spawn(async move {
                    if let Err(error) = serve(stream, acceptor, pods).await {
                        tracing::debug!(%peer, "connection to the kubelet server ended: {error:#}");
                    }
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("kubelet server: cannot accept a connection: {error}");
                // Out of descriptors or memory; the listener stays readable and would spin.
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, pods: Arc<dyn Pods>) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream))
        .await
        .context("no TLS handshake in time")??;
    let allowed = tls::allowed(stream.get_ref().1);
    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
        let (pods, allowed) = (pods.clone(), allowed.clone());
        async move {
            Ok::<_, Infallible>(match allowed {
                Ok(()) => answer(request, &pods).await,
                Err(why) => refuse(StatusCode::UNAUTHORIZED, why),
            })
        }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS_WITHIN)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await?;
    Ok(())
}

async fn answer(request: Request<Incoming>, pods: &Arc<dyn Pods>) -> Response<Body> {
    let call = match Call::parse(request.method(), request.uri()) {
        Ok(call) => call,
        Err(error) => return refuse(error.status, error.message),
    };
    let Call { namespace, pod, action } = call;
    let result = match action {
        Action::Health => return whole(StatusCode::OK, "ok"),
        Action::Logs { container, options } => {
            logs::answer(pods.clone(), namespace, pod, container, options).await
        }
        Action::Exec { container, options } => {
            exec::answer(request, pods, &namespace, &pod, container, options)
        }
        Action::Attach { container, options } => {
            attach::answer(request, pods.clone(), namespace, pod, container, options)
        }
        Action::PortForward { ports } => port_forward::answer(request, pods, &namespace, &pod, &ports),
    };
    result.unwrap_or_else(|refusal| refuse(refusal.status, refusal.message))
}

/// Why a call is not served.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Refusal {
    status: StatusCode,
    message: String,
}

impl Refusal {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// What the kubelet said of a pod, with the pod's name.
    fn of_pod(namespace: &str, pod: &str, error: &PodError) -> Self {
        let status = match error {
            PodError::NoSuchPod | PodError::NoSuchContainer(_) => StatusCode::NOT_FOUND,
            PodError::NotRunning(_) => StatusCode::BAD_REQUEST,
        };
        Self::new(status, format!("pod {namespace}/{pod}: {error}"))
    }
}

fn whole(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    let plain = header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

fn refuse(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    whole(status, message.into() + "\n")
}
