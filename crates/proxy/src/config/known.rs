//! Which variables are known, so that a misspelt one is noticed instead of being silently without effect.

/// Variables that are read, here or by the process around the proxy.
const KNOWN: &[&str] = &[
    "ALT_CA_HOSTNAME",
    "ALT_XDS_HOSTNAME",
    "AUTHZ_POLICY_INFO_LOGGING",
    "AUTH_TOKEN",
    "BUSY_SPIN",
    "CA_ADDRESS",
    "CA_ROOT_CA",
    "CLUSTER_DOMAIN",
    "CLUSTER_ID",
    "COMPLIANCE_POLICY",
    "CONNECTION_TERMINATION_DEADLINE",
    "CRL_PATH",
    "EARLY_DATA",
    "ENABLE_ORIG_SRC",
    "ENABLE_PROXY",
    "ENABLE_RESPONSE_BAGGAGE",
    "FAKE_CA",
    "FLOW_ACCOUNT",
    "FLOW_ADDRESS",
    "HTTP2_CONNECTION_WINDOW_SIZE",
    "HTTP2_FRAME_SIZE",
    "HTTP2_STREAM_WINDOW_SIZE",
    "INPOD_ENABLED",
    "INPOD_PORT_REUSE",
    "INPOD_UDS",
    "IPV6_ENABLED",
    "ISTIO_META_CLUSTER_ID",
    "ISTIO_META_DNS_CAPTURE",
    "ISTIO_META_DNS_PROXY_ADDR",
    "KEEPALIVE_ENABLED",
    "KEEPALIVE_INTERVAL",
    "KEEPALIVE_RETRIES",
    "KEEPALIVE_TIME",
    "LOCALHOST_APP_TUNNEL",
    "LOCAL_XDS",
    "LOCAL_XDS_PATH",
    "POOL_MAX_STREAMS_PER_CONNECTION",
    "POOL_UNUSED_RELEASE_TIMEOUT",
    "PROXY_CONFIG",
    "PROXY_MODE",
    "PROXY_WORKLOAD_INFO",
    "SAME_NODE",
    "TLS12_ENABLED",
    "UNSTABLE_ENABLE_SOCKS5",
    "XDS_ADDRESS",
    "XDS_ON_DEMAND",
    "XDS_ROOT_CA",
    "ZTUNNEL_CPU_LIMIT",
    "ZTUNNEL_RESOURCE_CPU_LIMIT",
    "ZTUNNEL_RESOURCE_CPU_REQUEST",
    "ZTUNNEL_WORKER_THREADS",
];

/// Beginnings of names that belong to a node proxy.
const PREFIXES: &[&str] = &[
    "ALT_",
    "AUTHZ_",
    "BUSY_",
    "CA_",
    "CRL_",
    "FLOW_",
    "HTTP2_",
    "INPOD_",
    "KEEPALIVE_",
    "LOCALHOST_",
    "LOCAL_XDS",
    "PROXY_",
    "POOL_",
    "TLS12_",
    "UNSTABLE_",
    "XDS_",
    "ZTUNNEL_",
];

/// Beginnings whose rest is free.
const FREE: &[&str] = &["CA_HEADER_", "XDS_HEADER_"];

/// Of `names`, those that nobody reads although they look like ours. What Kubernetes sets for services is not meant.
pub(super) fn unknown<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let ours = |name: &str| PREFIXES.iter().any(|prefix| name.starts_with(prefix));
    let service = |name: &str| name.contains("_SERVICE_") || name.contains("_PORT");
    let read = |name: &str| KNOWN.contains(&name) || FREE.iter().any(|prefix| name.starts_with(prefix));
    names.filter(|name| ours(name) && !service(name) && !read(name)).cloned().collect()
}
