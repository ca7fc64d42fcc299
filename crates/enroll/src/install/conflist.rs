//! Editing a network configuration: our entry exactly once and last, everything else untouched. Pure.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::PLUGIN;

/// The entry that calls the plugin and tells it how to find the agent.
pub fn entry(
    run_dir: &Path,
    namespace: &str,
    agent_pod_prefix: &str,
    exclude_namespaces: &[String],
) -> Value {
    json!({
        "name": PLUGIN,
        "type": PLUGIN,
        "cni_agent_run_dir": run_dir,
        "pod_namespace": namespace,
        "agent_pod_prefix": agent_pod_prefix,
        "exclude_namespaces": exclude_namespaces,
    })
}

/// Whether a runtime would use this configuration.
pub fn is_valid(config: &Value, list: bool) -> bool {
    let is_plugin =
        |plugin: &Value| plugin.get("type").is_some_and(|kind| kind.as_str().is_some_and(|k| !k.is_empty()));
    if list {
        plugins(config).is_some_and(|plugins| !plugins.is_empty() && plugins.iter().all(is_plugin))
    } else {
        is_plugin(config)
    }
}

/// Whether a list has an entry of type `kind`.
pub fn has_entry(config: &Value, kind: &str) -> bool {
    plugins(config).is_some_and(|plugins| plugins.iter().any(|plugin| is(plugin, kind)))
}

/// The list with `entry` last and nowhere else; a single configuration becomes a list first.
pub fn with_entry(config: &Value, entry: &Value, list: bool) -> Result<Value, String> {
    let config = if list { config.clone() } else { as_list(config)? };
    if !is_valid(&config, true) {
        return Err("it holds no plugins".to_owned());
    }
    let mut config = without_entry(&config, PLUGIN);
    if let Some(plugins) = config.get_mut("plugins").and_then(Value::as_array_mut) {
        if plugins.is_empty() {
            return Err("it holds no plugin but ours".to_owned());
        }
        plugins.push(entry.clone());
    }
    Ok(config)
}

/// The list without entries of type `kind`.
pub fn without_entry(config: &Value, kind: &str) -> Value {
    let mut config = config.clone();
    if let Some(plugins) = config.get_mut("plugins").and_then(Value::as_array_mut) {
        plugins.retain(|plugin| !is(plugin, kind));
    }
    config
}

/// A single configuration as a list of one: version and name belong to the list.
pub fn as_list(config: &Value) -> Result<Value, String> {
    let Value::Object(plugin) = config else { return Err("it is not an object".to_owned()) };
    let mut plugin = plugin.clone();
    let mut list = Map::new();
    if let Some(version) = plugin.shift_remove("cniVersion") {
        list.insert("cniVersion".to_owned(), version);
    }
    let name = plugin.get("name").cloned().unwrap_or_else(|| "k8s-pod-network".into());
    list.insert("name".to_owned(), name);
    list.insert("plugins".to_owned(), Value::Array(vec![Value::Object(plugin)]));
    Ok(Value::Object(list))
}

/// As it is written to disk.
pub fn text(config: &Value) -> String {
    format!("{config:#}\n")
}

fn plugins(config: &Value) -> Option<&Vec<Value>> {
    config.get("plugins").and_then(Value::as_array)
}

fn is(plugin: &Value, kind: &str) -> bool {
    plugin.get("type").and_then(Value::as_str) == Some(kind)
}
