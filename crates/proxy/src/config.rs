//! What the proxy is told by its environment, parsed once.
//!
//! Names and defaults are those of the reference (data-plane.md §12), so that existing manifests work; the
//! addresses of the control plane alone are our own. A value that cannot be understood is an error at the start
//! that names the variable, never a silent default.

mod env;
mod known;
mod proxy_config;
mod refused;
mod workers;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

pub use env::ConfigError;

/// Everything that can be configured.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Node this proxy serves (`NODE_NAME`); workloads of others are never ours.
    pub node: Option<String>,
    /// Network of this node's pods (`NETWORK`).
    pub network: String,
    /// Cluster (`CLUSTER_ID`, `ISTIO_META_CLUSTER_ID`).
    pub cluster_id: String,
    /// DNS domain of the cluster (`CLUSTER_DOMAIN`).
    pub cluster_domain: String,
    /// The proxy's own pod.
    pub own: Own,
    /// Control plane; none: no workload API.
    pub xds: Option<Remote>,
    /// Whether the control plane is asked for what is needed by name, instead of followed (`XDS_ON_DEMAND`).
    pub on_demand: bool,
    /// Workloads, services and policies that need no control plane (`LOCAL_XDS_PATH`, `LOCAL_XDS`).
    #[serde(skip)]
    pub local: Option<Local>,
    /// Certificate authority.
    pub ca: Remote,
    /// Lifetime asked for certificates (`SECRET_TTL`).
    pub secret_ttl: Duration,
    /// Socket of the node agent (`INPOD_UDS`).
    pub zds: PathBuf,
    /// Mark on everything opened inside a pod (`PACKET_MARK`).
    pub mark: u32,
    /// Whether an old and a new proxy may listen at once (`INPOD_PORT_REUSE`).
    pub port_reuse: bool,
    /// Whether applications see the client's address (`ENABLE_ORIG_SRC`); none: where it works.
    pub original_source: Option<bool>,
    /// Whether IPv6 is used (`IPV6_ENABLED`).
    pub ipv6: bool,
    /// TCP keepalive.
    pub keepalive: Keepalive,
    /// Streams a tunnel carries at most (`POOL_MAX_STREAMS_PER_CONNECTION`).
    pub pool_max_streams: usize,
    /// How long an unused tunnel is kept (`POOL_UNUSED_RELEASE_TIMEOUT`).
    pub pool_idle: Duration,
    /// Sizes of HTTP/2 (`HTTP2_STREAM_WINDOW_SIZE` …).
    pub stream_window: u32,
    #[allow(missing_docs)]
    pub connection_window: u32,
    #[allow(missing_docs)]
    pub frame_size: u32,
    /// Certificate revocation lists (`CRL_PATH`), read anew when the file changes.
    pub crl: Option<PathBuf>,
    /// Whether TLS 1.2 is spoken, too (`TLS12_ENABLED`).
    pub tls12: bool,
    /// Whether only hybrid post-quantum key exchange will do (`COMPLIANCE_POLICY=pqc`).
    pub post_quantum_only: bool,
    /// Whether application tunnels of waypoints are reached on loopback (`LOCALHOST_APP_TUNNEL`).
    pub localhost_app_tunnel: bool,
    /// Whether each verdict of a policy is logged at level info (`AUTHZ_POLICY_INFO_LOGGING`), rather than debug.
    pub log_verdicts: bool,
    /// Whether our workload is described to clients (`ENABLE_RESPONSE_BAGGAGE`).
    pub response_baggage: bool,
    /// How long running connections may go on after SIGTERM.
    pub termination_deadline: Duration,
    /// Worker threads (`ZTUNNEL_WORKER_THREADS`, or what the pod may use).
    pub workers: usize,
    /// How long a worker that has little to do looks for more before it sleeps (`BUSY_SPIN`); zero: not at all.
    pub busy_spin: Duration,
    /// Whether what a client has said goes along with the question for its stream (`EARLY_DATA`).
    pub early_data: bool,
    /// How two pods of this node are joined (`SAME_NODE`).
    pub same_node: SameNode,
    /// Names.
    pub dns: Dns,
    /// Trust domain of this proxy's own identity (`TRUST_DOMAIN`).
    pub trust_domain: String,
    /// The observer that is told of flows; none: nobody is.
    pub flows: Option<FlowTarget>,
    /// The log.
    pub log: Log,
    /// Ports of the proxy's own servers (`PROXY_CONFIG`).
    pub ports: Ports,
    /// Variables that look as if they were meant for a node proxy, and that this one does not know.
    pub unknown: Vec<String>,
}

/// How two enrolled pods of one node are joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SameNode {
    /// By mutual TLS, as pods of different nodes are.
    Encrypt,
    /// Directly, after the same checks of identities and policies; nothing is encrypted, since nothing leaves the node.
    Splice,
}

/// The observer that is told of flows.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FlowTarget {
    /// `host:port` (`FLOW_ADDRESS`).
    pub address: String,
    /// Namespace and service account that it must prove to be (`FLOW_ACCOUNT`).
    pub account: (String, String),
}

/// The proxy's own pod, when known; its metrics are then served over the mesh, too.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Own {
    pub name: Option<String>,
    pub namespace: Option<String>,
    pub service_account: Option<String>,
    pub ip: Option<IpAddr>,
}

/// A gRPC server and how we prove ourselves to it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Remote {
    /// `https://host:port`, or `http://…` without TLS.
    pub address: String,
    /// What its certificate is checked against.
    pub root: Root,
    /// Name its certificate must have, when not that of the address.
    pub alt_hostname: Option<String>,
    /// Token that is sent; read anew for each call.
    #[serde(skip)]
    pub token: Token,
    /// Further headers of each call. Their values may be secret.
    #[serde(serialize_with = "names_only")]
    pub headers: Headers,
}

/// Headers that are sent along; only their names are ever printed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers(pub Vec<(String, String)>);

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|(name, _)| name)).finish()
    }
}

fn names_only<S: serde::Serializer>(headers: &Headers, to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(headers.0.iter().map(|(name, _)| name))
}

/// Objects of the mesh that need no control plane.
#[derive(Clone, PartialEq, Eq)]
pub enum Local {
    /// A file, read at the start.
    File(PathBuf),
    /// What such a file would hold.
    Text(String),
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Text(text) => write!(f, "Text({} bytes)", text.len()),
        }
    }
}

/// How the proxy logs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Log {
    /// Levels at the start (`RUST_LOG`).
    pub level: String,
    /// JSON rather than text (`LOG_FORMAT`).
    pub json: bool,
}

/// Where root certificates come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub enum Root {
    File(PathBuf),
    Pem(String),
    System,
}

/// Where a token comes from.
#[derive(Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Token {
    File(PathBuf),
    Literal(String),
    None,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "File({})", path.display()),
            Self::Literal(_) => f.write_str("Literal(…)"),
            Self::None => f.write_str("None"),
        }
    }
}

/// TCP keepalive of the connections that we carry.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
#[allow(missing_docs)]
pub struct Keepalive {
    pub enabled: bool,
    pub time: Duration,
    pub interval: Duration,
    pub retries: u32,
    /// Unacknowledged data ends a connection after the same budget.
    pub user_timeout: bool,
}

/// How pods' names are answered.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Dns {
    /// Whether pods' DNS is served (`ISTIO_META_DNS_CAPTURE`).
    pub capture: bool,
    /// Where the name servers are written that are asked what the mesh does not know.
    pub resolv_conf: PathBuf,
    /// Namespace whose services win when several have a name (`PREFERED_SERVICE_NAMESPACE`).
    pub preferred_namespace: Option<String>,
}

/// Ports of the proxy's own servers; 0 lets the kernel choose, for tests.
#[derive(Clone, Copy, Debug, Serialize)]
#[allow(missing_docs)]
pub struct Ports {
    pub admin: u16,
    pub stats: u16,
    pub readiness: u16,
}

impl Config {
    /// Reads the process's environment.
    pub fn from_env() -> Result<Self, ConfigError> {
        Self::from_vars(std::env::vars())
    }

    /// Reads variables.
    pub fn from_vars(vars: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        env::Vars::new(vars).config()
    }

    pub(crate) fn tunnel_settings(&self) -> hbone::Settings {
        hbone::Settings {
            stream_window: self.stream_window,
            connection_window: self.connection_window,
            frame_size: self.frame_size,
            rules: hbone::tls::Rules {
                tls12: self.tls12,
                post_quantum_only: self.post_quantum_only,
                revocations: hbone::tls::Revocations::default(),
            },
            ..hbone::Settings::default()
        }
    }
}

#[cfg(test)]
mod tests;
