//! The CNI chain: which network list applies, and running its plugins as a container runtime does.
//!
//! The configuration directory is read anew for every pod, as real runtimes do, so that what a node agent chains
//! into it applies to the next pod. Selection and the texts handed to plugins are pure functions.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::node::layout;

/// How long one plugin may take.
const PLUGIN_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a pod got no network.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    /// The directory holds no usable configuration.
    #[error("no valid CNI configuration in {dir}{}", .why.as_ref().map(|w| format!(": {w}")).unwrap_or_default())]
    NoConfiguration {
        /// The directory.
        dir: String,
        /// Why the files in it are not usable.
        why: Option<String>,
    },
    /// A plugin is not installed.
    #[error("CNI plugin {plugin:?} of network {network:?} is not in {dir}")]
    NoPlugin {
        /// Its name.
        plugin: String,
        /// The network that names it.
        network: String,
        /// Where it was looked for.
        dir: String,
    },
    /// A plugin said no.
    #[error("CNI plugin {plugin:?} failed ({command}): {message}")]
    Plugin {
        /// Its name.
        plugin: String,
        /// `ADD` or `DEL`.
        command: &'static str,
        /// What it said.
        message: String,
    },
}

/// One network: a chain of plugins.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkList {
    /// Its name.
    pub name: String,
    /// The version of the results its plugins exchange.
    pub version: String,
    /// The plugins' configurations in order.
    pub plugins: Vec<Map<String, Value>>,
}

impl NetworkList {
    /// Reads one file: a list, or a single plugin which is then a list of one.
    pub fn parse(file: &str, text: &[u8]) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(text).map_err(|e| format!("{file}: {e}"))?;
        let Value::Object(top) = value else { return Err(format!("{file}: not an object")) };
        let text_of = |key: &str| top.get(key).and_then(Value::as_str).map(str::to_owned);
        let version = text_of("cniVersion").unwrap_or_else(|| "0.1.0".to_owned());
        let name = text_of("name").filter(|n| !n.is_empty()).ok_or_else(|| format!("{file}: no name"))?;
        let plugins = if file.ends_with(".conflist") || top.contains_key("plugins") {
            let Some(Value::Array(list)) = top.get("plugins") else {
                return Err(format!("{file}: no plugins"));
            };
            list.iter().filter_map(|p| p.as_object().cloned()).collect()
        } else {
            vec![top.clone()]
        };
        if plugins.is_empty() {
            return Err(format!("{file}: no plugins"));
        }
        for plugin in &plugins {
            let kind = plugin.get("type").and_then(Value::as_str).unwrap_or_default();
            if kind.is_empty() || kind.contains('/') {
                return Err(format!("{file}: a plugin without a usable type"));
            }
        }
        Ok(Self { name, version, plugins })
    }

    /// What plugin `index` is given on its standard input.
    pub fn input(&self, index: usize, previous: Option<&Value>) -> Value {
        let mut config = self.plugins[index].clone();
        config.insert("name".into(), json!(self.name));
        config.insert("cniVersion".into(), json!(self.version));
        config.remove("capabilities");
        if let Some(previous) = previous {
            config.insert("prevResult".into(), previous.clone());
        }
        Value::Object(config)
    }

    fn plugin(&self, index: usize) -> &str {
        self.plugins[index].get("type").and_then(Value::as_str).unwrap_or_default()
    }
}

/// Picks the network out of a directory's files: the first valid one by name.
pub fn select(mut files: Vec<(String, Vec<u8>)>) -> Result<NetworkList, Option<String>> {
    files.sort_by(|a, b| a.0.cmp(&b.0));
    let mut why = None;
    for (name, text) in files {
        if !(name.ends_with(".conf") || name.ends_with(".conflist") || name.ends_with(".json")) {
            continue;
        }
        match NetworkList::parse(&name, &text) {
            Ok(list) => return Ok(list),
            Err(reason) => why = why.or(Some(reason)),
        }
    }
    Err(why)
}

/// Reads the configuration directory.
pub fn load(dir: &Path) -> Result<NetworkList, CniError> {
    let none = |why| CniError::NoConfiguration { dir: dir.display().to_string(), why };
    let entries = std::fs::read_dir(dir).map_err(|e| none(Some(e.to_string())))?;
    let files = entries
        .flatten()
        .filter_map(|e| Some((e.file_name().into_string().ok()?, std::fs::read(e.path()).ok()?)))
        .collect();
    select(files).map_err(none)
}

/// The network a node starts with: a bridge and addresses out of the node's range.
pub fn default_list(pod_cidr: &IpNet) -> String {
    let any = if pod_cidr.addr().is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    let list = json!({
        "cniVersion": "1.0.0",
        "name": "ambit-lab",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "hairpinMode": true,
            "ipMasq": false,
            "ipam": {
                "type": "host-local",
                "ranges": [[{ "subnet": pod_cidr.trunc().to_string() }]],
                "routes": [{ "dst": any }],
            },
        }],
    });
    format!("{list:#}\n")
}

/// Which pod it is about.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// Identifier of the sandbox.
    pub container_id: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// UID of the pod.
    pub uid: String,
}

impl Attachment {
    fn args(&self) -> String {
        format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={}",
            self.namespace, self.name, self.container_id, self.uid
        )
    }
}

/// Calls ADD of the whole chain; answers the last result. On failure the chain is undone before it returns.
pub async fn add(list: &NetworkList, pod: &Attachment) -> Result<Value, CniError> {
    let mut previous: Option<Value> = None;
    for index in 0..list.plugins.len() {
        match call("ADD", list, index, previous.as_ref(), pod).await {
            Ok(result) => previous = Some(result),
            Err(error) => {
                if let Err(undo) = del(list, pod, previous.as_ref()).await {
                    tracing::warn!(pod = %pod.name, namespace = %pod.namespace, %undo, "cannot undo a failed CNI ADD");
                }
                return Err(error);
            }
        }
    }
    Ok(previous.unwrap_or(Value::Null))
}

/// Calls DEL of the whole chain in reverse; goes on after a failure and answers the first one.
pub async fn del(list: &NetworkList, pod: &Attachment, result: Option<&Value>) -> Result<(), CniError> {
    let mut first = Ok(());
    for index in (0..list.plugins.len()).rev() {
        let done = call("DEL", list, index, result, pod).await.map(drop);
        if first.is_ok() {
            first = done;
        }
    }
    first
}

/// The addresses of a result.
pub fn addresses(result: &Value) -> Vec<IpAddr> {
    let ips = result.get("ips").and_then(Value::as_array);
    ips.into_iter()
        .flatten()
        .filter_map(|ip| ip.get("address")?.as_str()?.parse::<IpNet>().ok())
        .map(|net| net.addr())
        .collect()
}

async fn call(
    command: &'static str,
    list: &NetworkList,
    index: usize,
    previous: Option<&Value>,
    pod: &Attachment,
) -> Result<Value, CniError> {
    let plugin = list.plugin(index).to_owned();
    let path = Path::new(layout::CNI_BIN).join(&plugin);
    if !path.exists() {
        let network = list.name.clone();
        return Err(CniError::NoPlugin { plugin, network, dir: layout::CNI_BIN.to_owned() });
    }
    let failed = |message: String| CniError::Plugin { plugin: plugin.clone(), command, message };
    let mut child = Command::new("nsenter")
        .arg(format!("--net={}", layout::NODE_NETNS))
        .arg("--")
        .arg(&path)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("CNI_COMMAND", command)
        .env("CNI_CONTAINERID", &pod.container_id)
        .env("CNI_NETNS", &pod.netns)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_ARGS", pod.args())
        .env("CNI_PATH", layout::CNI_BIN)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    let input = list.input(index, previous).to_string();
    let mut stdin = child.stdin.take();
    let talk = async move {
        if let Some(stdin) = stdin.as_mut() {
            // A plugin may end without reading what it is told; its exit status says what happened.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        drop(stdin);
        child.wait_with_output().await
    };
    let output = tokio::time::timeout(PLUGIN_TIMEOUT, talk)
        .await
        .map_err(|_| failed(format!("it did not end within {} s", PLUGIN_TIMEOUT.as_secs())))?
        .map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        return Err(failed(complaint(&output.stdout, &output.stderr)));
    }
    if command == "DEL" || output.stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(previous.cloned().unwrap_or(Value::Null));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| failed(format!("its result is not JSON: {e}")))
}

/// What a failed plugin had to say: its error object, or else whatever it printed.
fn complaint(stdout: &[u8], stderr: &[u8]) -> String {
    if let Ok(Value::Object(error)) = serde_json::from_slice::<Value>(stdout) {
        let part = |key: &str| error.get(key).and_then(Value::as_str).unwrap_or_default();
        let (message, details) = (part("msg"), part("details"));
        if !message.is_empty() {
            return if details.is_empty() { message.to_owned() } else { format!("{message}; {details}") };
        }
    }
    let text = [stdout, stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let text = text.trim();
    if text.is_empty() { "it said nothing".to_owned() } else { text.chars().take(1024).collect() }
}

#[cfg(test)]
mod tests;
