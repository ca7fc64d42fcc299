//! Metrics in OpenMetrics text.

use std::collections::HashSet;
use std::fmt::Write;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use axum::routing::get;

use super::Shown;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

pub(super) fn router(shown: Shown) -> Router {
    Router::new().route("/metrics", get(metrics)).route("/stats/prometheus", get(metrics)).with_state(shown)
}

async fn metrics(State(shown): State<Shown>, headers: HeaderMap) -> impl IntoResponse {
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let open = accept.contains("application/openmetrics-text");
    let kind = if open { OPENMETRICS } else { PLAIN };
    let body = encode(&shown, open);
    let zipped = accepts_gzip(&headers).then(|| gzip(body.as_bytes())).flatten();
    match zipped {
        Some(body) => {
            ([(header::CONTENT_TYPE, kind), (header::CONTENT_ENCODING, "gzip")], body).into_response()
        }
        None => ([(header::CONTENT_TYPE, kind)], body).into_response(),
    }
}

fn accepts_gzip(headers: &HeaderMap) -> bool {
    let accepted = headers.get(header::ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    let mut codings = accepted.unwrap_or_default().split(',').map(|coding| coding.split(';').map(str::trim));
    codings.any(|mut coding| {
        coding.next() == Some("gzip")
            && !coding.any(|weight| matches!(weight, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

pub(super) fn gzip(body: &[u8]) -> Option<Vec<u8>> {
    use std::io::Write as _;
    let mut encoder =
        flate2::write::GzEncoder::new(Vec::with_capacity(body.len() / 8), flate2::Compression::fast());
    encoder.write_all(body).ok()?;
    encoder.finish().ok()
}

pub(super) fn encode(shown: &Shown, open: bool) -> String {
    let mut out = String::with_capacity(64 << 10);
    shown.context.flows.encode(&mut out);
    shown.context.dns.encode(&mut out);
    shown.context.hostnames.encode(&mut out);
    shown.xds.encode(&mut out);
    if let Some(reports) = &shown.context.reports {
        reports.encode(&mut out);
    }
    own(shown, &mut out);
    if open {
        out.push_str("# EOF\n");
        return out;
    }
    classic(&out)
}

/// The classic text format names counters with their suffix in HELP and TYPE, too, and has no end mark.
fn classic(open: &str) -> String {
    let counters: HashSet<&str> =
        open.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut out = String::with_capacity(open.len() + 1024);
    for line in open.lines() {
        let comment = line.strip_prefix("# ").and_then(|rest| {
            let (keyword, rest) = rest.split_once(' ')?;
            let (name, text) = rest.split_once(' ')?;
            counters.contains(name).then_some((keyword, name, text))
        });
        let _ = match comment {
            Some((keyword, name, text)) => writeln!(out, "# {keyword} {name}_total {text}"),
            None => writeln!(out, "{line}"),
        };
    }
    out
}

fn own(shown: &Shown, out: &mut String) {
    let context = &shown.context;
    let mut gauge = |name: &str, help: &str, labels: &str, value: u64| {
        let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} gauge\n{name}{labels} {value}");
    };
    let tag = format!("{{component=\"ztunnel\",tag=\"ambit-{}\"}}", env!("CARGO_PKG_VERSION"));
    gauge("istio_build", "Build of the proxy", &tag, 1);
    let (active, pending) = {
        let pods = context.pods.lock();
        let active = pods.values().filter(|state| state.pod.is_ok()).count();
        (active as u64, (pods.len() - active) as u64)
    };
    gauge("workload_manager_active_proxy_count", "Pods that are served", "", active);
    gauge("workload_manager_pending_proxy_count", "Pods that could not be served yet", "", pending);
    gauge("ambit_series", "Label sets of the flow metrics", "", context.flows.series() as u64);
    for (name, help, value) in super::process::gauges() {
        gauge(name, help, "", value);
    }
    if let Some(seconds) = super::process::cpu_seconds() {
        let name = "process_cpu_seconds";
        let _ = writeln!(
            out,
            "# HELP {name} Processor time used, user and system.\n# TYPE {name} counter\n{name}_total {seconds}"
        );
    }
    let (started, stopped) = context.stats.pods();
    for (name, help, value) in [
        ("workload_manager_proxies_started", "Pods served so far", started),
        ("workload_manager_proxies_stopped", "Pods no longer served", stopped),
    ] {
        let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} counter\n{name}_total {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_compressed_only_for_who_asks_for_it() {
        let asks = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, value.parse().unwrap());
            accepts_gzip(&headers)
        };
        assert!(asks("gzip") && asks("deflate, gzip;q=0.5"));
        assert!(!asks("identity") && !asks("gzip;q=0") && !accepts_gzip(&HeaderMap::new()));
        let mut text = String::new();
        let zipped = gzip(b"some metrics").unwrap();
        std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&*zipped), &mut text).unwrap();
        assert_eq!(text, "some metrics");
    }

    #[test]
    fn the_classic_format_names_counters_with_their_suffix_and_nothing_else() {
        let open = "# HELP a Things.\n# TYPE a counter\na_total{x=\"# TYPE b counter\"} 1\n\
                    # HELP g A gauge.\n# TYPE g gauge\ng 2\n";
        let expected = "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"# TYPE b counter\"} 1\n\
                        # HELP g A gauge.\n# TYPE g gauge\ng 2\n";
        assert_eq!(classic(open), expected);
    }
}
