//! Counters of the control plane, under the names that dashboards for istiod ask for
//! (reference/control-plane.md §3.10).
//!
//! Written out by hand: the names predate OpenMetrics and would be changed by a library that knows it.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::ca::AuthorityError;
use crate::ca::rotation::Stage;
use crate::state::Snapshot;

/// All counters.
#[derive(Debug, Default)]
pub struct Metrics {
    clients: AtomicI64,
    pushes_wds: AtomicU64,
    pushes_wads: AtomicU64,
    pushed_bytes: AtomicU64,
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
    pub fn render(
        &self,
        snapshot: &Snapshot,
        root_expiry: Option<SystemTime>,
        stage: Option<Stage>,
    ) -> String {
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
        if let Some(expiry) = root_expiry.and_then(|expiry| expiry.duration_since(UNIX_EPOCH).ok()) {
            let expiry = [("", expiry.as_secs().to_string())];
            family(
                "citadel_server_root_cert_expiry_timestamp",
                "gauge",
                "When the signing certificate ends, Unix time.",
                &expiry,
            );
            family(
                "citadel_server_cert_chain_expiry_timestamp",
                "gauge",
                "When the signing certificate ends, Unix time.",
                &expiry,
            );
        }
        if let Some(stage) = stage {
            let labels = format!("{{stage=\"{}\"}}", stage.word());
            let one = [(labels.as_str(), "1".to_string())];
            family("ambit_control_ca_stage", "gauge", "Stage of the rotation of the root certificate.", &one);
        }
        out
    }
}
