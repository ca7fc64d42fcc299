//! The demo's application: one small HTTP server that stands in for each of its microservices.
//!
//! It answers, shows metrics that are easy to recognise on the wire, and calls the others from time to time so that
//! there is traffic to see. It knows nothing of the mesh, which is its whole point.

mod metrics;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use metrics::Metrics;

/// How long a call to another service may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// How long open requests may take once the end was asked for.
const DRAIN: Duration = Duration::from_secs(5);
/// How much of an answer is read.
const MOST_BYTES: usize = 1 << 20;

/// What the application is.
#[derive(Clone, Debug)]
pub struct Config {
    /// The service it stands in for.
    pub name: String,
    /// The port it listens on, on all addresses.
    pub port: u16,
    /// Services that it calls, `http://…` only.
    pub calls: Vec<http::Uri>,
    /// How often it calls each of them.
    pub every: Duration,
}

/// Serves until `stop` is cancelled, then lets open requests finish.
///
/// # Errors
/// If the port cannot be used.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let listener = listen(config.port).await?;
    tracing::info!(service = config.name, port = config.port, "serving");
    serve(config, listener, stop).await
}

/// All addresses of both families, or of IPv4 where there is no other.
async fn listen(port: u16) -> anyhow::Result<TcpListener> {
    let both = TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, port)).await;
    match both {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind((std::net::Ipv4Addr::UNSPECIFIED, port))
            .await
            .with_context(|| format!("port {port} cannot be used: choose another one with --port")),
    }
}

async fn serve(config: Config, listener: TcpListener, stop: CancellationToken) -> anyhow::Result<()> {
    let metrics = Arc::new(Metrics::new(&config.name));
    let app = Router::new()
        .route("/metrics", get(show_metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .fallback(answer)
        .with_state(metrics.clone());
    let mut callers = JoinSet::new();
    for target in config.calls {
        callers.spawn(call_regularly(target, config.every, metrics.clone()));
    }
    let asked = stop.clone();
    let server = axum::serve(listener, app).with_graceful_shutdown(async move { asked.cancelled().await });
    let server = std::future::IntoFuture::into_future(server);
    tokio::pin!(server);
    tokio::select! {
        ended = &mut server => ended?,
        () = stop.cancelled() => {
            callers.shutdown().await;
            // Scrapers keep their connections open for as long as they are allowed to.
            let _ = tokio::time::timeout(DRAIN, server).await;
        }
    }
    Ok(())
}

async fn answer(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    metrics.served();
    format!("{} answered request {}\n", metrics.service(), metrics.requests())
}

async fn show_metrics(State(metrics): State<Arc<Metrics>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.to_string())
}

async fn call_regularly(target: http::Uri, every: Duration, metrics: Arc<Metrics>) {
    let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let mut ticks = tokio::time::interval(every.max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let call = async {
            let answer = client.get(target.clone()).await?;
            let good = answer.status().is_success();
            Limited::new(answer.into_body(), MOST_BYTES)
                .collect()
                .await
                .map_err(|error| anyhow::anyhow!(error))?;
            anyhow::Ok(good)
        };
        let good = matches!(tokio::time::timeout(CALL_TIMEOUT, call).await, Ok(Ok(true)));
        metrics.called(&target, good);
    }
}

#[cfg(test)]
mod tests;
