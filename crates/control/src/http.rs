//! Plain HTTP for the cluster: readiness, metrics, version. What is told of the mesh itself, under `/debug`, is told to
//! callers on the loopback only: whoever may forward a port into this pod.

mod connection;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::sync::watch;

pub(crate) use connection::serve;

use crate::ca::rotation::Progress;
use crate::ca::{self, Authority, Source};
use crate::metrics::{Metrics, Seen};
use crate::process::{self, Process};
use crate::state::{Shelf, Snapshot, Tally};
use crate::xds::Clients;

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
    pub tally: Arc<Tally>,
    pub clients: Arc<Clients>,
    pub cluster: Arc<str>,
}

/// Pages for the kubelet.
pub(crate) fn readiness(pages: Pages) -> Router {
    Router::new().route("/ready", get(ready)).with_state(pages)
}

/// Pages for Prometheus and people.
pub(crate) fn monitoring(pages: Pages) -> Router {
    let debug = Router::new()
        .route("/debug/ca", get(authority))
        .route("/debug/syncz", get(clients))
        .route("/debug/resources", get(resources))
        .route("/debug/status", get(statuses))
        .route("/debug/ambientz", get(published))
        .route("/debug/config_dump", get(config_dump))
        .route("/debug/connections", get(connections))
        .route("/debug/runtime", get(runtime))
        .route("/debug/profile", get(profile))
        .route("/debug/list", get(list))
        .route("/debug", get(list))
        .layer(axum::middleware::from_fn(nearby));
    Router::new()
        .merge(debug)
        .route("/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
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
    let authority = pages.authority.borrow().clone();
    let stage = pages.progress.borrow().as_ref().map(|progress| progress.stage);
    let text = pages.metrics.render(&Seen {
        snapshot: &snapshot,
        tally: &pages.tally,
        process: Process::now(),
        root_expiry: authority.as_ref().map(|authority| authority.roots_end()),
        chain_expiry: authority.as_ref().map(|authority| authority.not_after()),
        stage,
        now: SystemTime::now(),
    });
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

/// Lets only callers of the loopback through.
async fn nearby(
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> axum::response::Response {
    if peer.ip().to_canonical().is_loopback() {
        return next.run(request).await;
    }
    let reason = "only from within the pod; use kubectl port-forward\n";
    (StatusCode::FORBIDDEN, reason).into_response()
}

async fn clients(State(pages): State<Pages>) -> axum::Json<serde_json::Value> {
    axum::Json(pages.clients.page(&pages.cluster))
}

/// The pages there are.
const PAGES: [(&str, &str); 10] = [
    ("/debug/ambientz", "workloads, services and policies as they are published"),
    ("/debug/ca", "what signs, what is trusted, where a rotation stands"),
    ("/debug/config_dump?proxyID=<pod>.<namespace>", "what one connected client is told"),
    ("/debug/connections", "connected clients"),
    ("/debug/list", "this list"),
    ("/debug/profile?seconds=<1 to 30>", "where processor time goes: stacks for a flame graph"),
    ("/debug/resources", "names and versions of everything published"),
    ("/debug/runtime?seconds=<1 to 30>", "processor time by thread, tasks, memory"),
    ("/debug/status", "conditions that are still to be written on objects"),
    ("/debug/syncz", "connected clients and how far each has come"),
];

async fn list() -> axum::Json<serde_json::Value> {
    let pages = PAGES.iter().map(|(path, help)| (path.to_string(), (*help).into()));
    axum::Json(serde_json::Value::Object(pages.collect()))
}

async fn published(State(pages): State<Pages>) -> axum::Json<serde_json::Value> {
    let snapshot = pages.snapshots.borrow().clone();
    axum::Json(crate::dump::page(&snapshot))
}

#[derive(serde::Deserialize)]
struct Which {
    #[serde(rename = "proxyID", default)]
    proxy: String,
}

/// What one client is told: its state of synchronization, and everything, since node proxies follow everything.
async fn config_dump(State(pages): State<Pages>, Query(which): Query<Which>) -> axum::response::Response {
    let clients = pages.clients.page(&pages.cluster);
    let client = clients.as_array().into_iter().flatten().find(|client| client["proxy"] == *which.proxy);
    let Some(client) = client.filter(|_| !which.proxy.is_empty()) else {
        let message = format!(
            "no client {:?} is connected to this replica; /debug/connections lists those that are (proxyID=<pod>.<namespace>)\n",
            which.proxy
        );
        return (StatusCode::NOT_FOUND, message).into_response();
    };
    let snapshot = pages.snapshots.borrow().clone();
    axum::Json(serde_json::json!({ "client": client, "published": crate::dump::page(&snapshot) }))
        .into_response()
}

async fn connections(State(pages): State<Pages>) -> axum::Json<serde_json::Value> {
    let clients = pages.clients.page(&pages.cluster);
    let names: Vec<_> =
        clients.as_array().into_iter().flatten().map(|client| client["proxy"].clone()).collect();
    axum::Json(serde_json::json!({ "totalClients": names.len(), "clients": names }))
}

#[derive(serde::Deserialize)]
struct Window {
    seconds: Option<u64>,
}

impl Window {
    fn or(&self, seconds: u64) -> Duration {
        Duration::from_secs(self.seconds.unwrap_or(seconds).clamp(1, 30))
    }
}

async fn runtime(Query(window): Query<Window>) -> axum::Json<serde_json::Value> {
    axum::Json(process::page(window.or(1)).await)
}

async fn profile(Query(window): Query<Window>) -> (StatusCode, String) {
    crate::profile::page(window.or(10)).await
}

/// Names and versions of everything published.
async fn resources(State(pages): State<Pages>) -> axum::Json<serde_json::Value> {
    let snapshot = pages.snapshots.borrow().clone();
    let list = |shelf: &Shelf| -> std::collections::BTreeMap<String, String> {
        shelf.iter().map(|one| (one.name.to_string(), one.version.to_string())).collect()
    };
    axum::Json(serde_json::json!({
        "change": snapshot.change,
        "addresses": list(&snapshot.addresses), "policies": list(&snapshot.policies),
    }))
}

/// What is still to be written on objects.
async fn statuses(State(pages): State<Pages>) -> axum::Json<serde_json::Value> {
    let snapshot = pages.snapshots.borrow().clone();
    let one = |(of, wanted): (&crate::state::StatusOf, &Arc<crate::state::Wanted>)| {
        let conditions: Vec<_> = wanted
            .conditions
            .iter()
            .map(|one| serde_json::json!({ "type": one.kind, "status": one.status, "reason": one.reason, "message": one.message }))
            .collect();
        serde_json::json!({ "kind": format!("{:?}", of.kind), "object": of.key.to_string(), "conditions": conditions })
    };
    axum::Json(snapshot.statuses.iter().map(one).collect())
}

#[cfg(test)]
mod tests {
    use tower::Service;

    use super::*;

    #[tokio::test]
    async fn what_is_told_of_the_mesh_is_told_to_callers_of_the_loopback_only() {
        let told = Router::new().route("/", get(async || "the mesh"));
        let mut told = told.layer(axum::middleware::from_fn(nearby));
        let table = [
            ("127.0.0.1:1", 200),
            ("127.9.9.9:1", 200),
            ("[::1]:1", 200),
            ("[::ffff:127.0.0.1]:1", 200),
            ("10.0.0.7:1", 403),
            ("[fd00::7]:1", 403),
            ("0.0.0.0:1", 403),
        ];
        for (peer, wanted) in table {
            let mut request = axum::extract::Request::new(axum::body::Body::empty());
            let address: SocketAddr = peer.parse().unwrap();
            request.extensions_mut().insert(ConnectInfo(address));
            assert_eq!(told.call(request).await.unwrap().status(), wanted, "{peer}");
        }
    }
}
