//! Metrics of DNS (reference/data-plane.md §8), one set for each client application, type and transport.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::rr::RecordType;
use parking_lot::Mutex;

use super::relay::Transport;
use crate::flows::escape;

const BUCKETS: [(f64, &str); 6] =
    [(0.0005, "0.0005"), (0.001, "0.001"), (0.01, "0.01"), (0.1, "0.1"), (1.0, "1.0"), (5.0, "5.0")];
/// Series that nobody used for this long are dropped.
const IDLE: Duration = Duration::from_secs(1800);
/// No client can make more series than this.
const MOST: usize = 10_000;

/// Who asks what, as labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Labels {
    pub(crate) kind: RecordType,
    pub(crate) transport: Transport,
    /// Empty when the client is not known.
    pub(crate) service: Arc<str>,
    pub(crate) revision: Arc<str>,
}

impl Labels {
    fn render(&self) -> String {
        let mut text = String::with_capacity(160);
        // Types without a name are one: a client must not be able to make a series for each number.
        let kind = match self.kind {
            RecordType::Unknown(_) | RecordType::ZERO => "unknown".to_owned(),
            kind => kind.to_string().to_ascii_lowercase(),
        };
        let protocol = match self.transport {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        };
        let mut put = |name: &str, value: &str| {
            let comma = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{comma}{name}=\"");
            escape(&mut text, if value.is_empty() { "unknown" } else { value });
            text.push('"');
        };
        put("request_query_type", &kind);
        put("request_protocol", protocol);
        put("source_canonical_service", &self.service);
        put("source_canonical_revision", &self.revision);
        text
    }

    fn key(&self) -> Self {
        let kind = match self.kind {
            RecordType::Unknown(_) => RecordType::ZERO,
            kind => kind,
        };
        Self { kind, ..self.clone() }
    }
}

#[derive(Debug)]
struct Series {
    touched: Instant,
    requests: u64,
    forwarded: u64,
    failures: u64,
    buckets: [u64; BUCKETS.len()],
    seconds: f64,
    durations: u64,
}

/// All counters. Questions are few beside bytes, so one lock, never held across a wait, is enough.
#[derive(Debug, Default)]
pub(crate) struct Stats(Mutex<HashMap<Labels, Series>>);

impl Stats {
    fn with(&self, labels: &Labels, change: impl FnOnce(&mut Series)) {
        let mut all = self.0.lock();
        let labels = labels.key();
        if all.len() >= MOST && !all.contains_key(&labels) {
            return;
        }
        let series = all.entry(labels).or_insert_with(|| Series {
            touched: Instant::now(),
            requests: 0,
            forwarded: 0,
            failures: 0,
            buckets: Default::default(),
            seconds: 0.0,
            durations: 0,
        });
        series.touched = Instant::now();
        change(series);
    }

    /// A client asked.
    pub(crate) fn asked(&self, labels: &Labels) {
        self.with(labels, |series| series.requests += 1);
    }

    /// A question was passed on.
    pub(crate) fn forwarded(&self, labels: &Labels) {
        self.with(labels, |series| series.forwarded += 1);
    }

    /// What was passed on came to an end.
    pub(crate) fn ended(&self, labels: &Labels, took: Duration, failed: bool) {
        self.with(labels, |series| {
            let seconds = took.as_secs_f64();
            series.failures += u64::from(failed);
            for (bucket, (bound, _)) in series.buckets.iter_mut().zip(BUCKETS) {
                *bucket += u64::from(seconds <= bound);
            }
            series.seconds += seconds;
            series.durations += 1;
        });
    }

    /// The counters in OpenMetrics text.
    pub(crate) fn encode(&self, out: &mut String) {
        let mut all = self.0.lock();
        all.retain(|_, series| series.touched.elapsed() < IDLE);
        let mut sorted: Vec<(String, &Series)> =
            all.iter().map(|(labels, series)| (labels.render(), series)).collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        type Read = fn(&Series) -> u64;
        let counters: [(&str, &str, Read); 3] = [
            ("istio_dns_requests", "DNS requests", |series| series.requests),
            ("istio_dns_upstream_requests", "DNS requests forwarded to upstream", |series| series.forwarded),
            ("istio_dns_upstream_failures", "DNS requests that failed upstream", |series| series.failures),
        ];
        for (name, help, read) in counters {
            let _ = writeln!(out, "# HELP {name} Total number of {help}.\n# TYPE {name} counter");
            for (labels, series) in &sorted {
                // What was never passed on has no counters of passing on.
                if name == "istio_dns_requests" || series.forwarded > 0 {
                    let _ = writeln!(out, "{name}_total{{{labels}}} {}", read(series));
                }
            }
        }
        let name = "istio_dns_upstream_request_duration_seconds";
        let _ = writeln!(out, "# HELP {name} Time until upstream answered.\n# TYPE {name} histogram");
        for (labels, series) in sorted.iter().filter(|(_, series)| series.forwarded > 0) {
            for (bucket, (_, bound)) in series.buckets.iter().zip(BUCKETS) {
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {bucket}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", series.durations);
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", series.seconds);
            let _ = writeln!(out, "{name}_count{{{labels}}} {}", series.durations);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(kind: RecordType) -> Labels {
        Labels { kind, transport: Transport::Udp, service: "web \"1\"".into(), revision: "".into() }
    }

    fn text(stats: &Stats) -> String {
        let mut out = String::new();
        stats.encode(&mut out);
        out
    }

    #[test]
    fn names_and_labels_are_those_of_the_reference() {
        let stats = Stats::default();
        let (a, srv) = (labels(RecordType::A), labels(RecordType::SRV));
        stats.asked(&a);
        stats.asked(&srv);
        stats.forwarded(&srv);
        stats.ended(&srv, Duration::from_micros(700), false);
        stats.forwarded(&srv);
        stats.ended(&srv, Duration::from_secs(9), true);
        let text = text(&stats);
        let tail = r#"request_protocol="udp",source_canonical_service="web \"1\"",source_canonical_revision="unknown""#;
        let srv = format!("request_query_type=\"srv\",{tail}");
        for line in [
            format!("istio_dns_requests_total{{request_query_type=\"a\",{tail}}} 1"),
            format!("istio_dns_requests_total{{{srv}}} 1"),
            format!("istio_dns_upstream_requests_total{{{srv}}} 2"),
            format!("istio_dns_upstream_failures_total{{{srv}}} 1"),
            format!("istio_dns_upstream_request_duration_seconds_bucket{{{srv},le=\"0.0005\"}} 0"),
            format!("istio_dns_upstream_request_duration_seconds_bucket{{{srv},le=\"0.001\"}} 1"),
            format!("istio_dns_upstream_request_duration_seconds_bucket{{{srv},le=\"5.0\"}} 1"),
            format!("istio_dns_upstream_request_duration_seconds_bucket{{{srv},le=\"+Inf\"}} 2"),
            format!("istio_dns_upstream_request_duration_seconds_count{{{srv}}} 2"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nin\n{text}");
        }
        assert!(!text.contains("istio_dns_upstream_requests_total{request_query_type=\"a\""));
    }

    #[test]
    fn a_client_cannot_make_a_series_for_each_number() {
        let stats = Stats::default();
        for kind in 0..=u16::MAX {
            stats.asked(&labels(kind.into()));
        }
        assert!(text(&stats).lines().count() < 80, "{}", text(&stats));
    }
}
