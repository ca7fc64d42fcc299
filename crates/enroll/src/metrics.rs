//! What the node agent counts, and its two small HTTP servers: metrics on one port, readiness on the other.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Router;
use axum::http::{StatusCode, header};
use axum::routing::get;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

type Labels<const N: usize> = [(&'static str, String); N];

/// The node agent's metrics. Names are those of `enrolment.md` §1.9 where they exist there.
pub struct Metrics {
    registry: Registry,
    reconciles: Family<Labels<1>, Counter>,
    plugin_requests: Family<Labels<1>, Counter>,
    installs: Family<Labels<1>, Counter>,
    install_ready: Gauge,
    proxies: Gauge,
    enrolled: Gauge,
    older: Family<Labels<2>, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let reconciles = Family::default();
        let plugin_requests = Family::default();
        let installs = Family::default();
        let install_ready = Gauge::default();
        let proxies = Gauge::default();
        let enrolled = Gauge::default();
        let older = Family::default();
        registry.register("nodeagent_reconcile_events", "Pod events handled", reconciles.clone());
        registry.register(
            "istio_cni_plugin_requests",
            "Requests of the CNI plugin answered",
            plugin_requests.clone(),
        );
        registry.register("istio_cni_installs", "Installations of the CNI plugin", installs.clone());
        registry.register(
            "istio_cni_install_ready",
            "Whether the CNI plugin is installed",
            install_ready.clone(),
        );
        registry.register("ztunnel_connected", "Connected node proxies", proxies.clone());
        registry.register("ambit_agent_enrolled_pods", "Pods of this node in the mesh", enrolled.clone());
        registry.register(
            "ambit_agent_older_connections",
            "Connections older than the enrolment of their pod that could not be ended yet",
            older.clone(),
        );
        Self { registry, reconciles, plugin_requests, installs, install_ready, proxies, enrolled, older }
    }
}

impl Metrics {
    /// A pod event of kind `add`, `update` or `delete` was handled.
    pub fn reconciled(&self, kind: &str) {
        self.reconciles.get_or_create(&[("type", kind.to_owned())]).inc();
    }

    /// The plugin was answered with this HTTP status.
    pub fn plugin_request(&self, status: u16) {
        self.plugin_requests.get_or_create(&[("response_code", status.to_string())]).inc();
    }

    /// The plugin was installed, or could not be.
    pub fn installed(&self, result: &str) {
        self.installs.get_or_create(&[("result", result.to_owned())]).inc();
    }

    /// Whether the plugin is in place.
    pub fn install_ready(&self, ready: bool) {
        self.install_ready.set(ready.into());
    }

    /// How many proxies are connected.
    pub fn proxies(&self, count: usize) {
        self.proxies.set(count as i64);
    }

    /// How many pods are enrolled.
    pub fn enrolled(&self, count: usize) {
        self.enrolled.set(count as i64);
    }

    /// How many of a pod's older connections are left; the series goes when none is.
    pub fn older_connections(&self, namespace: &str, pod: &str, count: usize) {
        let labels = [("namespace", namespace.to_owned()), ("pod", pod.to_owned())];
        if count == 0 {
            self.older.remove(&labels);
        } else {
            self.older.get_or_create(&labels).set(count as i64);
        }
    }

    /// All of it as OpenMetrics text.
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing into a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Whether the agent can serve: it watches the node's pods, and the plugin is installed.
#[derive(Debug, Default)]
pub struct Readiness {
    /// The pods are known and the queue runs.
    pub watching: AtomicBool,
    /// The plugin is in place, or none is to be installed.
    pub installed: AtomicBool,
}

impl Readiness {
    /// Both of it.
    pub fn ready(&self) -> bool {
        self.watching.load(Ordering::Relaxed) && self.installed.load(Ordering::Relaxed)
    }
}

/// Serves both ports until `stop`. A port that is 0 is not served; one that is taken is an error.
pub async fn serve(
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    monitoring_port: u16,
    health_port: u16,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let text = move || async move { ([(header::CONTENT_TYPE, kind)], metrics.text()) };
    let metrics = Router::new().route("/metrics", get(text));
    let ready = move || async move {
        if readiness.ready() {
            (StatusCode::OK, "OK")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable")
        }
    };
    let health = Router::new().route("/readyz", get(ready)).route("/healthz", get(|| async { "OK" }));
    for (what, port, router) in [("metrics", monitoring_port, metrics), ("health", health_port, health)] {
        if port == 0 {
            continue;
        }
        let listener = listen(port).await.map_err(|error| {
            anyhow::anyhow!("cannot serve {what} on port {port}: {error}; is the port taken?")
        })?;
        let stop = stop.clone();
        tokio::spawn(async move {
            let _ = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        });
    }
    Ok(())
}

async fn listen(port: u16) -> std::io::Result<tokio::net::TcpListener> {
    let at = |ip: IpAddr| tokio::net::TcpListener::bind(SocketAddr::new(ip, port));
    match at(Ipv6Addr::UNSPECIFIED.into()).await {
        // A node without IPv6.
        Err(error) if error.kind() != std::io::ErrorKind::AddrInUse => at(Ipv4Addr::UNSPECIFIED.into()).await,
        result => result,
    }
}
