//! The access log: one line when a flow opens (debug) and one when it ends (reference/data-plane.md §10).
//!
//! The fields are those of the reference, in its order. Texts are recorded as strings and addresses as displayed
//! values: the log writer quotes the former and not the latter.

use std::net::SocketAddr;
use std::time::Duration;

use tracing::Level;

use super::series::Series;
use super::{Opening, Reporter, Security};
use crate::failure::Failure;

fn some(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// The events differ in level, message and last fields; tracing wants each written out.
macro_rules! event {
    ($level:expr, $opening:expr, $series:expr, { $($last:tt)* }, $message:literal) => {{
        let (opening, series): (&Opening, &Series) = ($opening, $series);
        let secured = opening.security != Security::Plaintext;
        tracing::event!(
            target: "access",
            $level,
            src.addr = %opening.src,
            src.workload = opening.source_pod.as_deref().or(some(&opening.source.canonical)),
            src.namespace = some(&opening.source.namespace),
            src.identity = series.source_principal.as_deref().filter(|_| secured),
            src.cluster = some(&opening.source.cluster),
            dst.addr = %opening.dst,
            dst.hbone_addr = opening.hbone.as_ref().map(tracing::field::display),
            dst.service = some(&opening.service.host),
            dst.workload = opening.destination_pod.as_deref().or(some(&opening.destination.canonical)),
            dst.namespace = some(&opening.destination.namespace),
            dst.identity = series.destination_principal.as_deref().filter(|_| secured),
            dst.cluster = some(&opening.destination.cluster),
            direction = opening.reporter.direction(),
            $($last)*
            $message
        )
    }};
}

pub(super) fn opened(opening: &Opening, series: &Series) {
    event!(Level::DEBUG, opening, series, {}, "connection opened");
}

/// `bytes`: client to server, server to client.
pub(super) fn complete(
    opening: &Opening,
    series: &Series,
    bytes: (u64, u64),
    lasted: Duration,
    error: Option<&str>,
) {
    // The log counts from the view of the side that writes it, the metrics from the server's.
    let (sent, received) = match opening.reporter {
        Reporter::Source => bytes,
        Reporter::Destination => (bytes.1, bytes.0),
    };
    let duration = format!("{}ms", lasted.as_millis());
    let duration = duration.as_str();
    match error {
        None => event!(
            Level::INFO,
            opening,
            series,
            { bytes_sent = sent, bytes_recv = received, duration = duration, },
            "connection complete"
        ),
        Some(error) => event!(
            Level::ERROR,
            opening,
            series,
            { bytes_sent = sent, bytes_recv = received, duration = duration, error = error, },
            "connection complete"
        ),
    }
}

pub(super) fn refused(reporter: Reporter, src: SocketAddr, dst: Option<SocketAddr>, failure: &Failure) {
    let error = failure.to_string();
    tracing::event!(
        target: "access",
        Level::WARN,
        src.addr = %src,
        dst.addr = dst.map(tracing::field::display),
        direction = reporter.direction(),
        error = error.as_str(),
        "connection failed"
    );
}
