//! Answers are sent compressed to whoever can read that: they are mostly names said again and again, and the way
//! through the Kubernetes API (port-forward) is narrow. Events of streams are not.

use std::io::Write;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::Response;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::BodyExt;

use super::blocking;

/// What is smaller fits into a packet anyway.
const WORTH: u64 = 1_400;

pub(super) async fn gzip(request: Request, next: Next) -> Response {
    let wanted = accepts(request.headers());
    let response = next.run(request).await;
    let size = axum::body::HttpBody::size_hint(response.body()).exact();
    if !wanted || !is_text(response.headers()) || size.is_none_or(|size| size < WORTH) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    // It is in memory already, so this neither waits nor fails.
    let Ok(body) = body.collect().await.map(|body| body.to_bytes()) else {
        return Response::from_parts(parts, Body::empty());
    };
    let plain = body.clone();
    let packed = blocking(move || {
        let mut encoder = GzEncoder::new(Vec::with_capacity(plain.len() / 8), Compression::fast());
        encoder.write_all(&plain).and_then(|()| encoder.finish())
    });
    match packed.await {
        Ok(Ok(packed)) => {
            parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            parts.headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
            parts.headers.remove(header::CONTENT_LENGTH);
            Response::from_parts(parts, Body::from(packed))
        }
        _ => Response::from_parts(parts, Body::from(body)),
    }
}

fn accepts(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut codings = accepted.flat_map(|value| value.split(','));
    codings.any(|coding| {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let refused =
            matches!(weight.trim().trim_start_matches("q=").parse::<f32>(), Ok(weight) if weight <= 0.0);
        name.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

fn is_text(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let live = kind.starts_with("text/event-stream");
    !live
        && (kind.starts_with("text/")
            || kind.starts_with("application/json")
            || kind.starts_with("image/svg"))
}
