//! The files of the web UI, compiled in.

use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};

include!(concat!(env!("OUT_DIR"), "/ui.rs"));

const NOT_BUILT: &str = "<!doctype html><html lang=en><meta charset=utf-8><title>Ambit observer</title>\
    <h1>The web UI is not built into this binary</h1>\
    <p>Build it with <code>npm ci &amp;&amp; npm run build</code> in <code>ui/</code> and build the binary again. \
    The API works without it: <a href=/api/v1/openapi.json>/api/v1/openapi.json</a>, \
    <a href=/api/v1/overview>/api/v1/overview</a>.";

/// A file, or the page for everything that is a route of the UI.
pub(super) async fn file(uri: Uri, headers: HeaderMap) -> Response {
    let path = uri.path().trim_start_matches('/');
    if let Some((name, bytes)) = FILES.iter().find(|(name, _)| *name == path) {
        return answer(name, bytes);
    }
    let wants_page = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_none_or(|accept| accept.contains("text/html") || accept.contains("*/*"));
    let looks_like_file = path.rsplit('/').next().is_some_and(|name| name.contains('.'));
    if !wants_page || (looks_like_file && path != "index.html") {
        return (StatusCode::NOT_FOUND, "no such file\n").into_response();
    }
    match FILES.iter().find(|(name, _)| *name == "index.html") {
        Some((name, bytes)) => answer(name, bytes),
        None => ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], NOT_BUILT).into_response(),
    }
}

fn answer(name: &str, bytes: &'static [u8]) -> Response {
    let kind = match name.rsplit('.').next().unwrap_or_default() {
        "html" => "text/html; charset=utf-8",
        "js" | "mjs" => "text/javascript; charset=utf-8",
        "css" => "text/css; charset=utf-8",
        "svg" => "image/svg+xml",
        "png" => "image/png",
        "ico" => "image/x-icon",
        "json" | "map" | "webmanifest" => "application/json",
        "woff2" => "font/woff2",
        "txt" => "text/plain; charset=utf-8",
        _ => "application/octet-stream",
    };
    // Vite names files in assets/ by their content, so they never change.
    let cache = if name.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    ([(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, cache)], bytes).into_response()
}
