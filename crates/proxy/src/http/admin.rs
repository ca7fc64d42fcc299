//! The admin server, on loopback only.

use std::collections::HashMap;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{any, get, post};

use super::{Shown, dump, profile, text};

const INDEX: &str = "<!DOCTYPE html><title>ambit proxy</title><h1>ambit proxy</h1><ul>\
    <li><a href=\"config_dump\">config_dump</a>: what the proxy knows and does</li>\
    <li><a href=\"debug/pprof/profile?seconds=10\">debug/pprof/profile?seconds=10&amp;frequency=100</a>: where \
    processor time goes, for pprof</li>\
    <li><a href=\"debug/pprof/heap\">debug/pprof/heap</a>: what holds memory, for pprof, once POST \
    debug/pprof/heap/profiling?activate=true has switched that on</li>\
    <li>POST logging?level=info: change or show the log level</li>\
    <li>POST quitquitquit: end gracefully</li></ul>\n";

const LOG_HELP: &str = "usage: POST /logging?level=<level> or ?level=<scope>=<level>,…; levels: off, error, warn, \
                        info, debug, trace; ?reset goes back to the level of the start\n";

pub(super) fn router(shown: Shown) -> Router {
    Router::new()
        .route("/", get(|| async { Html(INDEX) }))
        .route("/config_dump", any(config_dump))
        .route("/debug/pprof/profile", any(profile::cpu))
        .route("/debug/pprof/heap", any(profile::heap::dump))
        .route("/debug/pprof/heap/profiling", any(profile::heap::profiling))
        .route("/logging", post(logging).get(post_only))
        .route("/quitquitquit", post(quit))
        .with_state(shown)
}

async fn config_dump(State(shown): State<Shown>) -> Response {
    match serde_json::to_string_pretty(&dump::dump(&shown.context)) {
        Ok(body) => ([(header::CONTENT_TYPE, "application/json")], body).into_response(),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}

async fn post_only() -> Response {
    text(StatusCode::METHOD_NOT_ALLOWED, format!("Invalid HTTP method\n{LOG_HELP}"))
}

async fn logging(State(shown): State<Shown>, Query(query): Query<HashMap<String, String>>) -> Response {
    let Some(log) = &shown.log else {
        return text(StatusCode::NOT_FOUND, "the log level cannot be changed in this process\n");
    };
    let level = query.get("level").map(String::as_str).unwrap_or_default();
    match log.change(level, query.contains_key("reset")) {
        Ok(current) => text(StatusCode::OK, format!("current log level is {current}\n")),
        Err(reason) => text(StatusCode::BAD_REQUEST, format!("Invalid level provided: {reason}\n{LOG_HELP}")),
    }
}

async fn quit(State(shown): State<Shown>) -> Response {
    shown.quit.cancel();
    text(StatusCode::OK, "shutdown now\n")
}
