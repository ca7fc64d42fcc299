//! The plugin proper: environment and standard input to standard output and exit status, as the CNI
//! specification (versions 0.1.0 to 1.1.0) says. Everything but the question to the agent is pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::client;
use super::event::{Answer, Event, IpConfig, IpMask};
use super::{Known, Offline, access, exempt, offline};
use crate::config::{event_socket, known_file};
use crate::eligibility::Verdict;

/// The versions of the specification that the plugin speaks.
pub const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// Input larger than this is no network configuration.
pub const MAX_INPUT: u64 = 1 << 20;

/// The part of the configuration that is ours; the installer writes it.
#[derive(Clone, Debug, Deserialize)]
pub struct Config {
    #[serde(rename = "cniVersion", default)]
    cni_version: String,
    /// Where the agent is found.
    #[serde(default = "default_run_dir")]
    pub cni_agent_run_dir: PathBuf,
    /// The namespace of the agent's own pods.
    #[serde(default)]
    pub pod_namespace: String,
    /// How their names begin.
    #[serde(default)]
    pub agent_pod_prefix: String,
    /// Namespaces that are never enrolled.
    #[serde(default)]
    pub exclude_namespaces: Vec<String>,
    /// Which pods are enrolled, where that is not the usual: a list of
    /// [`SelectorPair`](crate::eligibility::SelectorPair).
    #[serde(default)]
    pub enablement_selectors: Option<Value>,
    /// A pod that nobody can tell of waits, whatever its namespace.
    #[serde(default)]
    pub hold_all: bool,
    #[serde(rename = "prevResult", default)]
    prev_result: Option<Value>,
}

fn default_run_dir() -> PathBuf {
    "/var/run/istio-cni".into()
}

/// The environment of a call.
#[derive(Clone, Debug, Default)]
pub struct Env(BTreeMap<String, String>);

impl Env {
    /// The `CNI_*` variables of this process.
    pub fn of_process() -> Self {
        std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .collect()
    }

    fn get(&self, key: &str) -> &str {
        self.0.get(key).map(String::as_str).unwrap_or_default()
    }

    /// One key of `CNI_ARGS`.
    fn arg(&self, key: &str) -> &str {
        let pairs = self.get("CNI_ARGS").split(';').filter_map(|pair| pair.split_once('='));
        pairs.into_iter().find(|(name, _)| *name == key).map(|(_, value)| value).unwrap_or_default()
    }
}

impl FromIterator<(String, String)> for Env {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(pairs: I) -> Self {
        Self(pairs.into_iter().filter(|(key, _)| key.starts_with("CNI_")).collect())
    }
}

/// What the plugin prints and how it ends.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// For standard output; nothing for most commands.
    pub stdout: Option<Value>,
    /// Exit status.
    pub status: u8,
}

impl Outcome {
    fn nothing() -> Self {
        Self { stdout: None, status: 0 }
    }

    fn result(value: Value) -> Self {
        Self { stdout: Some(value), status: 0 }
    }

    fn error(version: &str, code: u32, msg: impl Into<String>, details: impl Into<String>) -> Self {
        let version = if version.is_empty() { "1.0.0" } else { version };
        let error =
            json!({"cniVersion": version, "code": code, "msg": msg.into(), "details": details.into()});
        Self { stdout: Some(error), status: 1 }
    }
}

/// Error codes of the specification, and ours from 100 on.
mod code {
    pub const INCOMPATIBLE_VERSION: u32 = 1;
    pub const BAD_ENVIRONMENT: u32 = 4;
    pub const UNDECODABLE: u32 = 6;
    pub const BAD_CONFIG: u32 = 7;
    pub const TRY_AGAIN: u32 = 11;
    pub const NOT_ENROLLED: u32 = 100;
}

/// Runs one call of the plugin.
pub async fn run(env: &Env, input: &[u8]) -> Outcome {
    match env.get("CNI_COMMAND") {
        "ADD" => add(env, input).await,
        // Nothing of ours is to be undone or checked, and none of these may stand in anybody's way.
        "DEL" | "CHECK" | "GC" | "STATUS" => Outcome::nothing(),
        "VERSION" => version(input),
        "" => Outcome::error(
            "",
            code::BAD_ENVIRONMENT,
            "CNI_COMMAND is not set",
            "this is a CNI plugin: it is called by the container runtime",
        ),
        other => Outcome::error("", code::BAD_ENVIRONMENT, "unknown CNI_COMMAND", other),
    }
}

fn version(input: &[u8]) -> Outcome {
    let asked: Value = serde_json::from_slice(input).unwrap_or_default();
    let version = asked.get("cniVersion").and_then(Value::as_str).unwrap_or("1.1.0");
    Outcome::result(json!({"cniVersion": version, "supportedVersions": VERSIONS}))
}

async fn add(env: &Env, input: &[u8]) -> Outcome {
    let config: Config = match serde_json::from_slice(input) {
        Ok(config) => config,
        Err(error) => {
            let text = "the network configuration on standard input cannot be read";
            return Outcome::error("", code::UNDECODABLE, text, error.to_string());
        }
    };
    let version = config.cni_version.as_str();
    if !version.is_empty() && !VERSIONS.contains(&version) {
        let text = format!("CNI version {version} is not supported");
        return Outcome::error(
            "",
            code::INCOMPATIBLE_VERSION,
            text,
            format!("supported: {}", VERSIONS.join(", ")),
        );
    }
    let event = match event(env, &config) {
        Ok(Some(event)) => event,
        // Not a pod of Kubernetes: none of ours.
        Ok(None) => return Outcome::result(result(&config)),
        Err(outcome) => return outcome,
    };
    match client::ask(&event_socket(&config.cni_agent_run_dir), &event, client::Patience::default()).await {
        Ok(Answer { .. }) => Outcome::result(result(&config)),
        Err(error) => refused(&config, &event, &error).await,
    }
}

/// The agent could not be asked, or could not do it.
async fn refused(config: &Config, event: &Event, error: &client::Error) -> Outcome {
    let pod = format!("{}/{}", event.pod_namespace, event.pod_name);
    if let client::Error::Failed { .. } = error {
        let text =
            format!("pod {pod} is to be in the mesh and could not be enrolled by the Ambit node agent");
        return Outcome::error(&config.cni_version, code::NOT_ENROLLED, text, error.to_string());
    }
    if exempt(config, &event.pod_namespace, &event.pod_name) {
        return Outcome::result(result(config));
    }
    let judged = match error {
        client::Error::Left { .. } => Ok(Verdict::Enrol),
        _ => access::judged(config, event).await,
    };
    let (is, details) = match judged {
        Ok(Verdict::Not(_)) => return Outcome::result(result(config)),
        Ok(Verdict::Enrol) => ("is to be", error.to_string()),
        Err(access::Unknown::Silent(silence)) => ("may be", format!("{error}; {silence}")),
        Err(access::Unknown::Refused(refusal)) => {
            let known = Known::read(&known_file(&config.cni_agent_run_dir));
            if offline(config, known.as_ref(), &event.pod_namespace) == Offline::Start {
                return Outcome::result(result(config));
            }
            ("may be", format!("{error}; {refusal}"))
        }
    };
    let agent = format!("{}*", config.agent_pod_prefix);
    let text = format!(
        "pod {pod} {is} in the mesh and must wait for the Ambit node agent (pod {agent} in namespace {})",
        config.pod_namespace
    );
    Outcome::error(&config.cni_version, code::TRY_AGAIN, text, details)
}

/// What to tell the agent; nothing when this is no pod.
fn event(env: &Env, config: &Config) -> Result<Option<Event>, Outcome> {
    let (name, namespace) = (env.arg("K8S_POD_NAME"), env.arg("K8S_POD_NAMESPACE"));
    if name.is_empty() || namespace.is_empty() {
        return Ok(None);
    }
    let bad = |text: &str, details: String| {
        Err(Outcome::error(&config.cni_version, code::BAD_ENVIRONMENT, text, details))
    };
    let event = Event {
        netns: env.get("CNI_NETNS").to_owned(),
        pod_name: name.to_owned(),
        pod_namespace: namespace.to_owned(),
        pod_uid: env.arg("K8S_POD_UID").to_owned(),
        ips: Some(addresses(config.prev_result.as_ref()).map_err(|details| {
            Outcome::error(&config.cni_version, code::BAD_CONFIG, "prevResult cannot be understood", details)
        })?),
    };
    match event.fault() {
        None => Ok(Some(event)),
        Some(_) if !Path::new(&event.netns).is_absolute() => {
            bad("CNI_NETNS must be an absolute path", event.netns.clone())
        }
        Some(fault) => bad(fault, format!("{namespace}/{name} in {}", event.netns)),
    }
}

/// The pod's addresses out of the result of the plugins before this one, in any version of the specification.
fn addresses(result: Option<&Value>) -> Result<Vec<IpConfig>, String> {
    let Some(result) = result else { return Ok(vec![]) };
    let mut ips = Vec::new();
    for ip in result.get("ips").and_then(Value::as_array).into_iter().flatten() {
        let gateway = ip.get("gateway").and_then(Value::as_str);
        ips.push(address(ip.get("address"), ip.get("interface").and_then(Value::as_i64), gateway)?);
    }
    for family in ["ip4", "ip6"] {
        if let Some(ip) = result.get(family).filter(|ip| !ip.is_null()) {
            ips.push(address(ip.get("ip"), None, ip.get("gateway").and_then(Value::as_str))?);
        }
    }
    Ok(ips)
}

fn address(text: Option<&Value>, interface: Option<i64>, gateway: Option<&str>) -> Result<IpConfig, String> {
    let text = text.and_then(Value::as_str).ok_or("an address is missing")?;
    let ip = text.split_once('/').map_or(text, |(ip, _)| ip);
    let ip: IpAddr = ip.parse().map_err(|_| format!("{text:?} is not an address"))?;
    Ok(IpConfig {
        interface,
        address: IpMask { ip: ip.to_string(), mask: None },
        gateway: Some(gateway.unwrap_or_default().to_owned()),
    })
}

/// The result of the plugins before this one, untouched; an empty one when this is the only plugin.
fn result(config: &Config) -> Value {
    config.prev_result.clone().unwrap_or_else(|| {
        let version = if config.cni_version.is_empty() { "0.1.0" } else { &config.cni_version };
        json!({"cniVersion": version, "dns": {}})
    })
}
