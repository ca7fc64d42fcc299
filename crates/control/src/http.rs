//! Plain HTTP for the cluster: readiness, metrics, version. Nothing of the mesh itself is told here.

use std::sync::Arc;
use std::time::SystemTime;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::watch;

use crate::ca::rotation::Progress;
use crate::ca::{self, Authority, Source};
use crate::metrics::Metrics;
use crate::state::Snapshot;

/// How far the start has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// No root certificate yet.
    Authority,
    /// Not every input has been listed.
    Listing,
    /// It answers on the gRPC port.
    Serving,
    /// It is about to end.
    Stopping,
}

/// What the pages tell of.
#[derive(Clone)]
pub(crate) struct Pages {
    pub phase: watch::Receiver<Phase>,
    pub snapshots: watch::Receiver<Snapshot>,
    pub authority: watch::Receiver<Option<Arc<Authority>>>,
    pub progress: watch::Receiver<Option<Progress>>,
    pub source: watch::Receiver<Option<(Source, String)>>,
    pub metrics: Arc<Metrics>,
}

/// Pages for the kubelet.
pub(crate) fn readiness(pages: Pages) -> Router {
    Router::new().route("/ready", get(ready)).with_state(pages)
}

/// Pages for Prometheus and people.
pub(crate) fn monitoring(pages: Pages) -> Router {
    Router::new()
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .route("/debug/ca", get(authority))
        .with_state(pages)
}

async fn ready(State(pages): State<Pages>) -> (StatusCode, String) {
    match *pages.phase.borrow() {
        Phase::Authority => (StatusCode::SERVICE_UNAVAILABLE, "waiting for the root certificate\n".into()),
        Phase::Listing => {
            let waiting = pages.snapshots.borrow().waiting_for.clone().unwrap_or_default().join(", ");
            (StatusCode::SERVICE_UNAVAILABLE, format!("waiting for the first complete list of: {waiting}\n"))
        }
        Phase::Serving => (StatusCode::OK, "ready\n".into()),
        Phase::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping\n".into()),
    }
}

async fn metrics(State(pages): State<Pages>) -> impl IntoResponse {
    let snapshot = pages.snapshots.borrow().clone();
    let expiry: Option<SystemTime> = pages.authority.borrow().as_ref().map(|authority| authority.not_after());
    let stage = pages.progress.borrow().as_ref().map(|progress| progress.stage);
    let text = pages.metrics.render(&snapshot, expiry, stage);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
}

async fn version() -> impl IntoResponse {
    axum::Json(serde_json::json!({ "component": "ambit-control", "version": env!("CARGO_PKG_VERSION") }))
}

async fn authority(State(pages): State<Pages>) -> axum::response::Response {
    let authority = pages.authority.borrow().clone();
    let source = pages.source.borrow().clone();
    match (authority, source) {
        (Some(authority), Some((source, namespace))) => {
            let progress = pages.progress.borrow().clone();
            axum::Json(ca::page(&authority, &source, &namespace, progress.as_ref())).into_response()
        }
        _ => (StatusCode::SERVICE_UNAVAILABLE, "there is no root certificate yet\n").into_response(),
    }
}
