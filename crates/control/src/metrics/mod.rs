//! Counters of the control plane, under the names that dashboards for istiod ask for
//! (reference/control-plane.md §3.10).
//!
//! Written out by hand: the names predate OpenMetrics and would be changed by a library that knows it.

mod histogram;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::ca::AuthorityError;
use crate::ca::rotation::Stage;
use crate::process::Process;
use crate::state::{Snapshot, Tally};

use histogram::{Bytes, Histogram, Seconds};

/// All counters.
#[derive(Debug, Default)]
pub struct Metrics {
    clients: AtomicI64,
    pushes_wds: AtomicU64,
    pushes_wads: AtomicU64,
    pushed_bytes: AtomicU64,
    /// From hearing of a change to when a connection has taken it.
    convergence: Histogram<Seconds>,
    /// Working out what a client is to be told.
    push_time: Histogram<Seconds>,
    /// Until a connection has taken a push.
    send_time: Histogram<Seconds>,
    sizes_wds: Histogram<Bytes>,
    sizes_wads: Histogram<Bytes>,
    broken: AtomicU64,
    rejects: AtomicU64,
    expired_nonces: AtomicU64,
    requests: AtomicU64,
    issued: AtomicU64,
    signing_nanos: AtomicU64,
    limited: AtomicU64,
    unauthenticated: AtomicU64,
    unauthorized: AtomicU64,
    request_errors: AtomicU64,
    ttl_errors: AtomicU64,
    sign_errors: AtomicU64,
}

/// What is told besides the counters.
pub(crate) struct Seen<'a> {
    pub snapshot: &'a Snapshot,
    pub tally: &'a Tally,
    pub process: Process,
    /// When the first root that is trusted ends, and when the certificate that signs does.
    pub root_expiry: Option<SystemTime>,
    pub chain_expiry: Option<SystemTime>,
    pub stage: Option<Stage>,
    pub now: SystemTime,
}

/// A connected client; counted as long as it lives.
pub struct Connected(Arc<Metrics>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.clients.fetch_sub(1, Relaxed);
    }
}

impl Metrics {
    /// A client has connected.
    pub fn connect(self: &Arc<Self>) -> Connected {
        self.clients.fetch_add(1, Relaxed);
        Connected(self.clone())
    }

    /// A push went out.
    pub fn pushed(&self, type_url: &str, bytes: usize) {
        let policies = type_url == wire::type_url::AUTHORIZATION;
        if policies { &self.pushes_wads } else { &self.pushes_wds }.fetch_add(1, Relaxed);
        self.pushed_bytes.fetch_add(bytes as u64, Relaxed);
        if policies { &self.sizes_wads } else { &self.sizes_wds }.observe(bytes as f64);
    }

    /// What a client is to be told was worked out.
    pub fn worked_out(&self, took: Duration) {
        self.push_time.observe(took.as_secs_f64());
    }

    /// A push was taken by its connection.
    pub fn taken(&self, took: Duration) {
        self.send_time.observe(took.as_secs_f64());
    }

    /// All that a client was told of a change has been taken by its connection.
    pub fn converged(&self, took: Duration) {
        self.convergence.observe(took.as_secs_f64());
    }

    /// A stream ended because of us.
    pub fn broke(&self) {
        self.broken.fetch_add(1, Relaxed);
    }

    /// A client refused a push.
    pub fn rejected(&self) {
        self.rejects.fetch_add(1, Relaxed);
    }

    /// A client answered an older push.
    pub fn stale(&self) {
        self.expired_nonces.fetch_add(1, Relaxed);
    }

    /// A certificate was asked for.
    pub fn requested(&self) {
        self.requests.fetch_add(1, Relaxed);
    }

    /// A certificate was issued.
    pub fn issued(&self, took: Duration) {
        self.issued.fetch_add(1, Relaxed);
        self.signing_nanos.fetch_add(took.as_nanos() as u64, Relaxed);
    }

    /// A caller asked for too many certificates.
    pub fn limited(&self) {
        self.limited.fetch_add(1, Relaxed);
    }

    /// A caller could not be authenticated.
    pub fn unauthenticated(&self) {
        self.unauthenticated.fetch_add(1, Relaxed);
    }

    /// A caller asked for a certificate it may not have.
    pub fn unauthorized(&self) {
        self.unauthorized.fetch_add(1, Relaxed);
    }

    /// A certificate was not signed.
    pub fn sign_error(&self, error: &AuthorityError) {
        let counter = match error {
            AuthorityError::Request(_) => &self.request_errors,
            AuthorityError::TooLong { .. } => &self.ttl_errors,
            _ => &self.sign_errors,
        };
        counter.fetch_add(1, Relaxed);
    }

    /// Everything in Prometheus' text format. `root_expiry` is when the signing certificate ends.
    pub(crate) fn render(&self, seen: &Seen<'_>) -> String {
        let Seen { snapshot, root_expiry, stage, .. } = *seen;
        let mut out = String::new();
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(&str, String)]| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        };
        let one = |counter: &AtomicU64| [("", counter.load(Relaxed).to_string())];
        let version = env!("CARGO_PKG_VERSION");
        let build = format!("{{component=\"pilot\",tag=\"{version}\"}}");
        family("istio_build", "gauge", "Build of this component.", &[(&build, "1".into())]);
        let labelled = format!("{{version=\"{version}\"}}");
        family("pilot_info", "gauge", "Version of the control plane.", &[(&labelled, "1".into())]);
        let clients = self.clients.load(Relaxed).to_string();
        family("pilot_xds", "gauge", "Clients connected to this replica.", &[(&labelled, clients)]);
        let pushes = [
            ("{type=\"wds\"}", self.pushes_wds.load(Relaxed).to_string()),
            ("{type=\"wads\"}", self.pushes_wads.load(Relaxed).to_string()),
        ];
        family("pilot_xds_pushes", "counter", "Responses sent, by type.", &pushes);
        family("pilot_xds_pushed_bytes", "counter", "Bytes of responses sent.", &one(&self.pushed_bytes));
        family("pilot_total_xds_rejects", "counter", "Responses refused by clients.", &one(&self.rejects));
        family(
            "pilot_xds_expired_nonce",
            "counter",
            "Answers to a response that was not the last.",
            &one(&self.expired_nonces),
        );
        let resources = [
            ("{type=\"address\"}", snapshot.addresses.len().to_string()),
            ("{type=\"authorization\"}", snapshot.policies.len().to_string()),
        ];
        family("ambit_control_resources", "gauge", "Resources published, by type.", &resources);
        let waiting = snapshot.statuses.len().to_string();
        family(
            "ambit_control_status_pending",
            "gauge",
            "Objects whose status is to be written.",
            &[("", waiting)],
        );
        family("ambit_control_pods", "gauge", "Pods known.", &[("", snapshot.pods.len().to_string())]);
        family("citadel_server_csr_count", "counter", "Certificates asked for.", &one(&self.requests));
        family(
            "citadel_server_success_cert_issuance_count",
            "counter",
            "Certificates issued.",
            &one(&self.issued),
        );
        family(
            "ambit_control_sign_seconds_total",
            "counter",
            "Time spent signing certificates.",
            &[("", format!("{:.6}", self.signing_nanos.load(Relaxed) as f64 / 1e9))],
        );
        family(
            "ambit_control_certificates_limited_total",
            "counter",
            "Certificates refused because one caller asked for too many.",
            &one(&self.limited),
        );
        family(
            "citadel_server_authentication_failure_count",
            "counter",
            "Callers that could not be authenticated.",
            &one(&self.unauthenticated),
        );
        family(
            "citadel_server_id_extraction_err_count",
            "counter",
            "Certificates refused because the caller may not have them.",
            &one(&self.unauthorized),
        );
        family(
            "citadel_server_csr_parsing_err_count",
            "counter",
            "Requests that are no signing request.",
            &one(&self.request_errors),
        );
        let errors = [
            ("{error=\"ttl_err\"}", self.ttl_errors.load(Relaxed).to_string()),
            ("{error=\"cert_sign_err\"}", self.sign_errors.load(Relaxed).to_string()),
        ];
        family(
            "citadel_server_csr_sign_err_count",
            "counter",
            "Certificates that could not be signed.",
            &errors,
        );
        let since_epoch =
            |at: SystemTime| at.duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        for (name, expiry) in [("root_cert", root_expiry), ("cert_chain", seen.chain_expiry)] {
            let Some(expiry) = expiry.map(since_epoch) else { continue };
            let help = "When the certificate ends, Unix time.";
            let at = [("", format!("{expiry:.0}"))];
            family(&format!("citadel_server_{name}_expiry_timestamp"), "gauge", help, &at);
            let help = "Seconds until the certificate ends; negative when it has ended.";
            let left = [("", format!("{:.0}", expiry - since_epoch(seen.now)))];
            family(&format!("citadel_server_{name}_expiry_seconds"), "gauge", help, &left);
        }
        let services = snapshot.addresses.services().to_string();
        family("pilot_services", "gauge", "Services published.", &[("", services)]);
        let labelled = |of: &[(String, u64)]| -> Vec<(String, String)> {
            of.iter().map(|(labels, count)| (labels.clone(), count.to_string())).collect()
        };
        let triggers: Vec<_> = seen
            .tally
            .triggers()
            .iter()
            .map(|(kind, count)| (format!("{{type=\"{kind}\"}}"), *count))
            .collect();
        let mut updates: Vec<(String, u64)> = Vec::new();
        let mut events: Vec<(String, u64)> = Vec::new();
        for (kind, happened, count) in seen.tally.inputs() {
            let labels = format!("{{type=\"{kind}\"}}");
            match updates.last_mut() {
                Some((last, sum)) if *last == labels => *sum += count,
                _ => updates.push((labels, count)),
            }
            events.push((format!("{{type=\"{kind}\",event=\"{happened}\"}}"), count));
        }
        for (name, help, samples) in [
            (
                "pilot_push_triggers",
                "Times that what is published changed, by what changed.",
                labelled(&triggers),
            ),
            ("pilot_inbound_updates", "Messages of the Kubernetes API, by kind.", labelled(&updates)),
            ("pilot_k8s_reg_events", "Messages of the Kubernetes API, by kind and event.", labelled(&events)),
        ] {
            let samples: Vec<(&str, String)> =
                samples.iter().map(|(labels, count)| (labels.as_str(), count.clone())).collect();
            family(name, "counter", help, &samples);
        }
        family(
            "pilot_total_xds_internal_errors",
            "counter",
            "Streams that ended because of this control plane.",
            &one(&self.broken),
        );
        let process = seen.process;
        let figures = [
            (
                "process_cpu_seconds_total",
                "counter",
                "Processor time.",
                process.cpu.map(|cpu| cpu.to_string()),
            ),
            (
                "process_resident_memory_bytes",
                "gauge",
                "Memory resident.",
                process.resident.map(|one| one.to_string()),
            ),
            (
                "process_virtual_memory_bytes",
                "gauge",
                "Address space.",
                process.reserved.map(|one| one.to_string()),
            ),
            (
                "process_open_fds",
                "gauge",
                "Descriptors open.",
                process.descriptors.map(|one| one.to_string()),
            ),
            (
                "process_max_fds",
                "gauge",
                "Descriptors allowed.",
                process.most_descriptors.map(|one| one.to_string()),
            ),
        ];
        for (name, kind, help, figure) in figures {
            if let Some(figure) = figure {
                family(name, kind, help, &[("", figure)]);
            }
        }
        if let Some(stage) = stage {
            let labels = format!("{{stage=\"{}\"}}", stage.word());
            let one = [(labels.as_str(), "1".to_string())];
            family("ambit_control_ca_stage", "gauge", "Stage of the rotation of the root certificate.", &one);
        }
        let times = [
            (
                "pilot_proxy_convergence_time",
                "Seconds from hearing of a change until a client's connection has taken it.",
                &self.convergence,
            ),
            ("pilot_xds_push_time", "Seconds to work out what one client is to be told.", &self.push_time),
            ("pilot_xds_send_time", "Seconds until a client's connection has taken a push.", &self.send_time),
        ];
        for (name, help, histogram) in times {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
            histogram.render(&mut out, name, "");
        }
        let name = "pilot_xds_config_size_bytes";
        let _ = writeln!(out, "# HELP {name} Bytes of a push.\n# TYPE {name} histogram");
        self.sizes_wds.render(&mut out, name, "type=\"wds\",");
        self.sizes_wads.render(&mut out, name, "type=\"wads\",");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of reference/control-plane.md §3.10 that dashboards for istiod ask for. Absent on purpose:
    /// `pilot_debounce_time` and `pilot_proxy_queue_time` (nothing is put off, nothing is queued) and
    /// `pilot_xds_write_timeout` (a slow client is not cut off).
    #[test]
    fn the_metrics_that_dashboards_for_istiod_ask_for_are_there() {
        let metrics: Arc<Metrics> = Arc::default();
        let _one = metrics.connect();
        metrics.pushed(wire::type_url::ADDRESS, 700);
        let (snapshot, tally) = (Snapshot::default(), Tally::default());
        let at = UNIX_EPOCH + Duration::from_secs(1000);
        let text = metrics.render(&Seen {
            snapshot: &snapshot,
            tally: &tally,
            process: Process::now(),
            root_expiry: Some(at + Duration::from_secs(5)),
            chain_expiry: Some(at),
            stage: Some(Stage::Settled),
            now: at,
        });
        for name in [
            "pilot_xds{version=",
            "pilot_xds_pushes{type=\"wds\"} 1",
            "pilot_xds_pushes{type=\"wads\"} 0",
            "pilot_xds_push_time_bucket",
            "pilot_proxy_convergence_time_bucket",
            "pilot_push_triggers{type=\"address\"} 0",
            "pilot_inbound_updates{type=\"Pod\"} 0",
            "pilot_services 0",
            "pilot_xds_config_size_bytes_bucket{type=\"wds\",le=\"1024\"} 1",
            "pilot_xds_send_time_bucket",
            "pilot_total_xds_rejects 0",
            "pilot_total_xds_internal_errors 0",
            "pilot_xds_expired_nonce 0",
            "pilot_info{",
            "pilot_k8s_reg_events{type=\"Pod\",event=\"update\"} 0",
            "citadel_server_csr_count 0",
            "citadel_server_authentication_failure_count 0",
            "citadel_server_csr_parsing_err_count 0",
            "citadel_server_id_extraction_err_count 0",
            "citadel_server_csr_sign_err_count{error=",
            "citadel_server_success_cert_issuance_count 0",
            "citadel_server_root_cert_expiry_timestamp 1005",
            "citadel_server_root_cert_expiry_seconds 5",
            "citadel_server_cert_chain_expiry_timestamp 1000",
            "citadel_server_cert_chain_expiry_seconds 0",
            "istio_build{component=\"pilot\",tag=",
            "process_resident_memory_bytes ",
        ] {
            assert!(text.lines().any(|line| line.starts_with(name)), "{name} in\n{text}");
        }
        // Each family is announced once, or Prometheus takes none of it.
        let mut families: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
        let all = families.len();
        families.sort();
        families.dedup();
        assert_eq!(families.len(), all);
    }
}
