//! `PROXY_CONFIG`: YAML that some manifests use instead of single variables. What it says holds where no variable of
//! the environment says otherwise.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::ConfigError;

const VARIABLE: &str = "PROXY_CONFIG";

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Shape {
    concurrency: Option<u16>,
    discovery_address: Option<String>,
    proxy_admin_port: Option<u16>,
    #[serde(alias = "statusPort")]
    stats_port: Option<u16>,
    proxy_metadata: BTreeMap<String, serde_json::Value>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

/// What it says, beyond what it stands for.
#[derive(Default)]
pub(super) struct ProxyConfig {
    pub(super) admin: Option<u16>,
    pub(super) stats: Option<u16>,
    /// What nobody here understands.
    pub(super) unknown: Vec<String>,
}

/// Reads the variable if there is one, and adds what it stands for to `vars`.
pub(super) fn take_in(vars: &mut BTreeMap<String, String>) -> Result<ProxyConfig, ConfigError> {
    let Some(text) = vars.get(VARIABLE).filter(|text| !text.trim().is_empty()).cloned() else {
        return Ok(ProxyConfig::default());
    };
    let error = |expected: String| ConfigError { variable: VARIABLE.into(), value: text.clone(), expected };
    let shape: Shape = serde_saphyr::from_str(&text).map_err(|problem| error(problem.to_string()))?;
    for port in [shape.proxy_admin_port, shape.stats_port].into_iter().flatten() {
        if port == 0 {
            return Err(error("a port is a number from 1 to 65535".into()));
        }
    }
    let mut says = |variable: String, value: String| {
        vars.entry(variable).or_insert(value);
    };
    if let Some(threads) = shape.concurrency {
        says("ZTUNNEL_WORKER_THREADS".into(), threads.to_string());
    }
    if let Some(address) = shape.discovery_address {
        says("XDS_ADDRESS".into(), address);
    }
    for (key, value) in shape.proxy_metadata {
        let value = match value {
            serde_json::Value::String(text) => text,
            other => other.to_string(),
        };
        let variable = if key.starts_with("ISTIO_META_") { key } else { format!("ISTIO_META_{key}") };
        says(variable, value);
    }
    let unknown = shape.rest.into_keys().map(|key| format!("{VARIABLE}: {key}")).collect();
    Ok(ProxyConfig { admin: shape.proxy_admin_port, stats: shape.stats_port, unknown })
}
