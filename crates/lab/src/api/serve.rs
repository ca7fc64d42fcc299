//! Connections: TLS with optional client certificates, HTTP/1.1 and HTTP/2, and one bounded task each.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::auth::User;
use super::http::Answer;
use super::pki::{Authority, Issued};
use super::{Api, http as wire, verbs};

/// The TLS side: whoever presents a client certificate must have one of the authority.
pub fn tls(authority: &Authority, identity: Issued) -> anyhow::Result<TlsAcceptor> {
    let mut roots = RootCertStore::empty();
    roots.add(authority.certificate().clone()).context("trust the lab's own certificate authority")?;
    let clients = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build()?;
    let mut config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![identity.certificate], identity.key)
        .context("use the API server's certificate")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Takes connections until the server closes, then waits for them to end.
pub async fn accept(api: Arc<Api>, listener: TcpListener, tls: TlsAcceptor) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = api.closing.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {},
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(api.clone(), stream, tls.clone()));
                },
                Err(error) => {
                    // Out of descriptors, most likely: without a pause this would spin until some are free.
                    tracing::warn!(%error, "the API server could not accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                },
            },
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn connection(api: Arc<Api>, stream: TcpStream, tls: TlsAcceptor) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(Duration::from_secs(10), tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake with the API server failed"),
        Err(_) => return tracing::debug!("a TLS handshake with the API server took too long"),
    };
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or(&[]);
    let user = certificates.first().and_then(User::of_certificate).map(Arc::new);
    let closing = api.closing.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        let (api, user) = (api.clone(), user.clone());
        async move { Ok::<Answer, Infallible>(handle(api, user, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(Duration::from_secs(120));
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(60));
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(served);
    tokio::select! {
        result = served.as_mut() => log_end(result),
        () = closing.cancelled() => {
            served.as_mut().graceful_shutdown();
            if let Ok(result) = tokio::time::timeout(Duration::from_secs(3), served).await {
                log_end(result);
            }
        },
    }
}

fn log_end(result: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = result {
        tracing::debug!(%error, "a connection to the API server ended");
    }
}

async fn handle(api: Arc<Api>, certificate: Option<Arc<User>>, request: Request<Incoming>) -> Answer {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let answer = verbs::answer(api, certificate.as_deref(), request).await;
    let answer = answer.unwrap_or_else(|failure| wire::failure(&failure));
    tracing::debug!(%method, path, code = answer.status().as_u16(), "api request");
    answer
}
