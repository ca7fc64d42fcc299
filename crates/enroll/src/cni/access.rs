//! The plugin's own way to the API server, for while the agent is away.
//!
//! The agent leaves a kubeconfig in its run directory, readable for root only, and keeps it current: the token is
//! that of its own service account, which lies on the node anyway in the agent's volume, and is worth nothing once
//! the agent's pod is gone for good. The plugin reads two objects with it and believes nothing else: a refusal, a
//! slow server, another pod of the same name are all "cannot tell".

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::event::Event;
use super::plugin::Config;
use crate::config::access_file;
use crate::eligibility::{Rules, SelectorPair, Verdict, default_selectors, judge};
use crate::netns_of::remembered::replace;

/// How long the API server may take for both questions of the plugin together.
const API_PATIENCE: Duration = Duration::from_secs(4);
/// How often the agent looks whether its token was replaced; the kubelet does so long before it expires.
const REFRESH: Duration = Duration::from_secs(5);
/// On the API's copy of a static pod: the UID by which the node knows it.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

/// How the agent itself reaches the API server.
#[derive(Clone, Debug)]
pub struct Access {
    /// `https://host:port`.
    pub server: String,
    /// Certificates that the server's is signed by, PEM.
    pub ca_file: PathBuf,
    /// The service account's token.
    pub token_file: PathBuf,
}

impl Access {
    /// The kubeconfig for the plugin. Everything is in it: the plugin sees no file of the agent's.
    fn kubeconfig(&self) -> std::io::Result<Value> {
        let ca = std::fs::read(&self.ca_file)?;
        let token = std::fs::read_to_string(&self.token_file)?;
        let ca = k8s_openapi::ByteString(ca);
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": {"server": self.server, "certificate-authority-data": ca}}],
            "users": [{"name": "ambit-cni", "user": {"token": token.trim()}}],
            "contexts": [{"name": "ambit-cni", "context": {"cluster": "local", "user": "ambit-cni"}}],
            "current-context": "ambit-cni",
        }))
    }

    /// Leaves the kubeconfig in `file`, if it is not there already.
    pub fn leave(&self, file: &Path) -> std::io::Result<()> {
        let content = serde_json::to_vec(&self.kubeconfig()?)?;
        if std::fs::read(file).is_ok_and(|there| there == content) {
            return Ok(());
        }
        replace(file, &content, 0o600)
    }

    /// Keeps `file` current until `stop`. Without it the plugin goes by what else it knows.
    pub async fn keep(self, file: PathBuf, stop: CancellationToken) {
        let mut last = String::new();
        let mut tick = tokio::time::interval(REFRESH);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let (access, to) = (self.clone(), file.clone());
            let Ok(result) = tokio::task::spawn_blocking(move || access.leave(&to)).await else { return };
            let text = result.err().map(|error| error.to_string()).unwrap_or_default();
            if text != last && !text.is_empty() {
                tracing::warn!(file = %file.display(), error = text, "cannot leave the CNI plugin a way to the API server");
            }
            last = text;
        }
    }
}

/// Whether `pod` is the one that the runtime means by `uid`, if it means any.
pub fn is_meant(pod: &Pod, uid: &str) -> bool {
    uid.is_empty()
        || pod.metadata.uid.as_deref() == Some(uid)
        || pod.annotations().get(MIRROR_ANNOTATION).is_some_and(|mirrored| mirrored == uid)
}

/// What is wanted of the pod, by the API server's word; or why it cannot be told.
pub async fn judged(config: &Config, event: &Event) -> Result<Verdict, String> {
    let file = access_file(&config.cni_agent_run_dir);
    match tokio::time::timeout(API_PATIENCE, ask(&file, config, event)).await {
        Ok(answer) => answer.map_err(|error| format!("the API server cannot tell either: {error}")),
        Err(_) => Err(format!("the API server did not answer within {} s", API_PATIENCE.as_secs())),
    }
}

async fn ask(file: &Path, config: &Config, event: &Event) -> anyhow::Result<Verdict> {
    let selectors = match &config.enablement_selectors {
        None => default_selectors(),
        Some(value) => serde_json::from_value::<Vec<SelectorPair>>(value.clone())?,
    };
    let rules = Rules::new(&selectors, &config.exclude_namespaces, &config.pod_namespace)?;
    let kubeconfig = Kubeconfig::read_from(file)?;
    let way = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(way)?;
    let pods = Api::<Pod>::namespaced(client.clone(), &event.pod_namespace);
    let namespaces = Api::<Namespace>::all(client);
    let (pod, namespace) = tokio::try_join!(pods.get(&event.pod_name), namespaces.get(&event.pod_namespace))?;
    anyhow::ensure!(is_meant(&pod, &event.pod_uid), "it shows another pod of that name");
    Ok(judge(&rules, &pod, namespace.labels()))
}

#[cfg(test)]
mod tests;
