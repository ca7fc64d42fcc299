//! `/metrics`: gauges for alerts, most of all the scrapes that are not proven.

use std::fmt::Write;
use std::sync::atomic::Ordering;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::{Api, Problem, blocking};
use crate::graph::Sums;
use crate::model::{Proof, State as PairState};
use crate::observer::Observer;

pub(super) async fn metrics(State(api): State<Api>) -> Result<Response, Problem> {
    let text = blocking(move || render(&api.observer)).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// Prometheus' text format.
pub fn render(observer: &Observer) -> String {
    let mut out = String::new();
    let head = |out: &mut String, name: &str, kind: &str, help: &str| {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
    };
    let proofs = observer.proofs();
    head(&mut out, "ambit_scrape_targets", "gauge", "Scrape targets by proof.");
    for one in &proofs.prometheis {
        for proof in Proof::ALL {
            let (id, count) = (escape(&one.id), one.summary.of(proof));
            let _ = writeln!(
                out,
                "ambit_scrape_targets{{prometheus=\"{id}\",proof=\"{}\"}} {count}",
                proof.word()
            );
        }
    }
    head(
        &mut out,
        "ambit_prometheus_reachable",
        "gauge",
        "Whether a Prometheus can be asked for its targets.",
    );
    for one in &proofs.prometheis {
        let reachable = u8::from(one.reachable);
        let _ = writeln!(out, "ambit_prometheus_reachable{{prometheus=\"{}\"}} {reachable}", escape(&one.id));
    }
    let table = observer.table(300, None);
    let mut sums = Sums::default();
    table.rows.iter().for_each(|row| sums.add(row));
    let coverage = sums.coverage();
    head(
        &mut out,
        "ambit_mesh_coverage_ratio",
        "gauge",
        "Share that is proven mutual TLS over five minutes.",
    );
    for (by, measure) in
        [("bytes", coverage.by_bytes), ("connections", coverage.by_connections), ("pairs", coverage.by_pairs)]
    {
        if let Some(percent) = measure.percent {
            let _ = writeln!(out, "ambit_mesh_coverage_ratio{{by=\"{by}\"}} {}", percent / 100.0);
        }
    }
    head(&mut out, "ambit_mesh_pairs", "gauge", "Pairs of pods by state over five minutes.");
    for state in PairState::ALL {
        let count = table.rows.iter().filter(|row| row.state == state).count();
        let _ = writeln!(out, "ambit_mesh_pairs{{state=\"{}\"}} {count}", state.word());
    }
    let silent = table.proxies.iter().filter(|proxy| proxy.stale_ms.is_some()).count();
    head(&mut out, "ambit_flow_proxies", "gauge", "Node proxies that report, and that have fallen silent.");
    let _ = writeln!(out, "ambit_flow_proxies{{state=\"reporting\"}} {}", table.proxies.len() - silent);
    let _ = writeln!(out, "ambit_flow_proxies{{state=\"silent\"}} {silent}");
    for (name, help, of) in [
        ("ambit_flow_rows_refused_total", "Rows that were not taken.", 0),
        ("ambit_flow_pairs_refused_total", "Pairs beyond the bound.", 1),
    ] {
        head(&mut out, name, "counter", help);
        for proxy in &table.proxies {
            let count = if of == 0 { proxy.rows_refused } else { proxy.pairs_refused };
            let _ = writeln!(out, "{name}{{node=\"{}\"}} {count}", escape(&proxy.node));
        }
    }
    head(&mut out, "ambit_flow_rows_lost_total", "counter", "Rows that proxies dropped, by their own count.");
    let lost = table.limits.rows_lost_by_proxies;
    let _ = writeln!(out, "ambit_flow_rows_lost_total {lost}");
    head(
        &mut out,
        "ambit_flow_streams_refused_total",
        "counter",
        "Streams that were not let in or were ended.",
    );
    for (reason, count) in observer.counters.streams_refused.lock().iter() {
        let _ = writeln!(out, "ambit_flow_streams_refused_total{{reason=\"{reason}\"}} {count}");
    }
    let (bytes, pairs, taken) = observer.with_store(|store| (store.heap_bytes(), store.len(), store.taken));
    let counters = &observer.counters;
    for (name, kind, help, value) in [
        ("ambit_flow_batches_total", "counter", "Batches taken from proxies.", taken.0),
        ("ambit_flow_rows_total", "counter", "Rows taken from proxies.", taken.1),
        ("ambit_flow_store_bytes", "gauge", "Memory of the flow store.", bytes as u64),
        ("ambit_flow_store_pairs", "gauge", "Pairs in the flow store.", pairs as u64),
        ("ambit_observe_streams", "gauge", "Live browsers.", counters.streams_live.load(Ordering::Relaxed)),
        (
            "ambit_observe_turns_dropped_total",
            "counter",
            "Turns that slow browsers missed.",
            counters.turns_dropped.load(Ordering::Relaxed),
        ),
    ] {
        head(&mut out, name, kind, help);
        let _ = writeln!(out, "{name} {value}");
    }
    out
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}
