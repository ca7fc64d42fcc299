//! The HTTP API and the web UI: a thin edge over [`Observer`]. It reads parameters once, asks for a judged snapshot on
//! a blocking thread, and writes JSON. It never touches the store while an answer is being sent.

pub mod auth;
mod gzip;
mod metrics;
mod params;
mod sse;
mod ui;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};

use crate::graph::{self, Visible};
use crate::model;
use crate::observer::Observer;
use crate::store::place::PlaceKey;
use crate::table::{Row, records};
use crate::why::explain;
use crate::{overview, proof};
use auth::Gate;
use params::{GraphParams, ListParams, WindowParams};

/// What handlers share.
#[derive(Clone)]
pub struct Api {
    observer: Arc<Observer>,
    streams: Arc<sse::Streams>,
    ready: Ready,
}

/// Says what is still missing, if anything.
pub type Ready = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// An answer that is no answer: what is wrong and what to do.
#[derive(Debug)]
pub struct Problem(pub StatusCode, pub String);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let wait = self.0 == StatusCode::SERVICE_UNAVAILABLE;
        let mut response = (self.0, Json(serde_json::json!({ "error": self.1 }))).into_response();
        if wait {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        if self.0 == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

fn bad(text: String) -> Problem {
    Problem(StatusCode::BAD_REQUEST, text)
}

/// Everything that is served.
pub fn router(observer: Arc<Observer>, gate: Gate, ready: Ready) -> Router {
    let gate = Arc::new(gate);
    let api = Api { observer, streams: Arc::default(), ready };
    let guarded = Router::new()
        .route("/graph", get(graph_handler))
        .route("/stream", get(sse::stream))
        .route("/pairs", get(pairs))
        .route("/targets", get(targets))
        .route("/targets.csv", get(targets_csv))
        .route("/overview", get(overview_handler))
        .layer(middleware::from_fn_with_state(gate.clone(), auth::guard));
    Router::new()
        .nest("/api/v1", guarded)
        .route("/api/v1/openapi.json", get(openapi))
        .route("/api/{*rest}", get(no_such))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics::metrics))
        .fallback(get(ui::file))
        .layer(middleware::from_fn(gzip::gzip))
        .layer(middleware::from_fn_with_state(gate, auth::known_host))
        .layer(middleware::from_fn(secure))
        .with_state(api)
}

/// `/metrics`, `/healthz` and `/readyz` alone: for a port that Prometheus and the kubelet reach without a token.
pub fn monitoring(observer: Arc<Observer>, ready: Ready) -> Router {
    let api = Api { observer, streams: Arc::default(), ready };
    Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics::metrics))
        .layer(middleware::from_fn(secure))
        .with_state(api)
}

/// Headers that every answer carries: no other origin may be talked to, framed by, or guessed at.
async fn secure(request: Request, next: Next) -> Response {
    const HEADERS: [(HeaderName, &str); 6] = [
        (
            header::CONTENT_SECURITY_POLICY,
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; font-src 'self'; \
             connect-src 'self'; manifest-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; \
             frame-ancestors 'none'",
        ),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response.headers_mut().entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Work on snapshots takes milliseconds, at ten thousand pods tens of them: not for the threads that serve sockets.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Problem> {
    let failed =
        |_| Problem(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be made; see the log".into());
    tokio::task::spawn_blocking(work).await.map_err(failed)
}

async fn graph_handler(
    State(api): State<Api>,
    Extension(visible): Extension<Visible>,
    params::Query(params): params::Query<GraphParams>,
) -> Result<Response, Problem> {
    let (query, seconds) = (params.query().map_err(bad)?, params.window.seconds().map_err(bad)?);
    let at = params.window.at(api.observer.now()).map_err(bad)?;
    blocking(move || {
        let table = api.observer.table(seconds, at);
        json(&graph::build(&table, &query, &visible))
    })
    .await
}

async fn pairs(
    State(api): State<Api>,
    Extension(visible): Extension<Visible>,
    params::Query(params): params::Query<ListParams>,
) -> Result<Response, Problem> {
    let seconds = params.window.seconds().map_err(bad)?;
    let at = params.window.at(api.observer.now()).map_err(bad)?;
    let filter = params.filter().map_err(bad)?;
    let (limit, offset) = (params.limit()?, params.offset()?);
    blocking(move || {
        let table = api.observer.table(seconds, at);
        let end = |wanted: &Option<String>, place: &crate::store::place::Place| {
            wanted.as_deref().is_none_or(|id| {
                id.is_empty() || *place.id == *id || *place.workload_id == *id || *place.namespace_id == *id
            })
        };
        let mut rows: Vec<&Row> = table
            .rows
            .iter()
            .filter(|row| visible.pair(&row.source, &row.target) && filter.takes(row))
            .filter(|row| end(&params.source, &row.source) && end(&params.target, &row.target))
            .collect();
        rows.sort_by(|a, b| {
            let key = |row: &Row| (row.state.rank(), std::cmp::Reverse(row.bytes.sent + row.bytes.received));
            let ids = |row: &Row| (row.source.id.clone(), row.target.id.clone(), row.port);
            key(a).cmp(&key(b)).then_with(|| ids(a).cmp(&ids(b)))
        });
        let total = rows.len();
        let page: Vec<&Row> = rows.into_iter().skip(offset).take(limit).collect();
        let records = api.observer.with_store(|store| {
            let of = |row: &&Row| {
                let keys = (PlaceKey::of(&row.source.end), PlaceKey::of(&row.target.end));
                let pair = store.find(&keys.0, &keys.1, row.port);
                pair.map(|pair| records(store, pair, table.window)).unwrap_or_default()
            };
            page.iter().map(of).collect::<Vec<_>>()
        });
        let pair = |(row, records): (&Row, Vec<model::Record>)| model::Pair {
            source: end_of(&row.source, &table),
            target: end_of(&row.target, &table),
            port: row.port,
            state: row.state,
            lock: row.state.lock(),
            why: row.code.map(|code| {
                explain(code, &row.source, &row.target, &row.reason, &row.policy, &table.directory)
            }),
            bytes: row.bytes,
            connections: row.connections,
            records,
            last_activity: row.last_activity,
            stale_ms: row.stale_ms,
            unseen: row.unseen,
        };
        json(&model::Pairs {
            at: table.window.at,
            window_seconds: seconds,
            total,
            pairs: page.into_iter().zip(records).map(pair).collect(),
        })
    })
    .await
}

fn end_of(place: &crate::store::place::Place, table: &crate::table::Table) -> model::End {
    let end = &place.end;
    let known = table.directory.pod(&end.namespace, &end.pod);
    model::End {
        id: place.id.clone(),
        workload_id: place.workload_id.clone(),
        namespace: end.namespace.clone(),
        pod: end.pod.clone(),
        workload: end.workload.clone(),
        workload_type: end.workload_type.clone(),
        address: end.address.map(|ip| ip.to_string()).unwrap_or_default(),
        node: known.map_or_else(|| end.node.clone(), |pod| pod.node.clone()),
        enrolled: known.map_or(end.enrolled, |pod| pod.enrolled),
    }
}

async fn targets(
    State(api): State<Api>,
    Extension(visible): Extension<Visible>,
    headers: HeaderMap,
    params::Query(params): params::Query<ListParams>,
) -> Result<Response, Problem> {
    let wanted = params.targets().map_err(bad)?;
    let (limit, offset) = (params.limit()?, params.offset()?);
    let known = headers.get(header::IF_NONE_MATCH).cloned();
    blocking(move || {
        let proofs = api.observer.proofs();
        let seen = |namespace: &str| namespace.is_empty() || visible.namespace(namespace);
        let mine = proofs.targets.iter().filter(|target| seen(&target.namespace));
        let mut summary = model::ProofCounts::default();
        mine.clone().for_each(|target| summary.add(target.proof, target.health == "up"));
        let matching: Vec<_> = mine.filter(|target| wanted.takes(target)).collect();
        let prometheis = proofs.prometheis.iter().filter(|one| seen(&one.namespace)).cloned().collect();
        let answer = model::Targets {
            at: proofs.at,
            prometheis,
            summary,
            total: matching.len(),
            targets: matching.into_iter().skip(offset).take(limit).cloned().collect(),
        };
        tagged(&answer, known)
    })
    .await
}

/// An answer with an `ETag` that the moment of asking does not change.
fn tagged(answer: &model::Targets, known: Option<HeaderValue>) -> Response {
    let parts = (&answer.prometheis, &answer.summary, answer.total, &answer.targets);
    let text = serde_json::to_vec(&parts).unwrap_or_default();
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &text);
    let tag: String = digest.as_ref().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    let Ok(tag) = HeaderValue::from_str(&format!("\"{tag}\"")) else { return json(answer) };
    let mut response =
        if known.as_ref() == Some(&tag) { StatusCode::NOT_MODIFIED.into_response() } else { json(answer) };
    response.headers_mut().insert(header::ETAG, tag);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

async fn targets_csv(
    State(api): State<Api>,
    Extension(visible): Extension<Visible>,
) -> Result<Response, Problem> {
    blocking(move || {
        let proofs = api.observer.proofs();
        let mine = proofs.targets.iter().filter(|target| visible.namespace(&target.namespace));
        let headers = [
            (header::CONTENT_TYPE, "text/csv; charset=utf-8; header=present"),
            (header::CONTENT_DISPOSITION, "attachment; filename=\"scrape-targets.csv\""),
        ];
        (headers, proof::csv(mine)).into_response()
    })
    .await
}

async fn overview_handler(
    State(api): State<Api>,
    Extension(visible): Extension<Visible>,
    params::Query(params): params::Query<WindowParams>,
) -> Result<Response, Problem> {
    let (seconds, filter) = (params.seconds().map_err(bad)?, params.filter().map_err(bad)?);
    let at = params.at(api.observer.now()).map_err(bad)?;
    blocking(move || {
        let table = api.observer.table(seconds, at);
        let lines = table
            .sparklines
            .get_or_init(|| api.observer.with_store(|store| overview::sparklines(store, &table)));
        let proofs = api.observer.proofs();
        json(&overview::build(&table, &proofs, lines, &filter, &visible))
    })
    .await
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("../openapi.json")).into_response()
}

async fn readyz(State(api): State<Api>) -> Response {
    match (api.ready)() {
        Ok(()) => "ok\n".into_response(),
        Err(missing) => (StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")).into_response(),
    }
}

async fn no_such() -> Problem {
    Problem(StatusCode::NOT_FOUND, "no such address; /api/v1/openapi.json lists what there is".into())
}

fn json<T: serde::Serialize>(value: &T) -> Response {
    match serde_json::to_vec(value) {
        Ok(bytes) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(error) => {
            tracing::error!(%error, "an answer could not be written as JSON");
            Problem(StatusCode::INTERNAL_SERVER_ERROR, "the answer could not be written".into())
                .into_response()
        }
    }
}

#[cfg(test)]
mod tests;
