//! The plugin's own way to the API server, for while the agent is away.
//!
//! The agent leaves a kubeconfig in its run directory, readable for root only, and keeps it current. The token in it is
//! not the agent's: that one ends with the agent's pod, and then nobody could tell, between an agent and its successor,
//! what a namespace is since a moment. It is one of an account that may look at pods and namespaces and at nothing else
//! ([`ACCOUNT`]); the agent may make tokens for that account alone. So what lies on the node can do less than what lies
//! there anyway, in the agent's volume.
//!
//! The plugin reads two objects with it and believes nothing else: a refusal, a slow server, another pod of the same name
//! are all "cannot tell" ([`Unknown`]).

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::event::Event;
use super::plugin::Config;
use crate::config::access_file;
use crate::eligibility::{Rules, SelectorPair, Verdict, default_selectors, judge};
use crate::netns_of::remembered::replace;

/// The service account that the plugin asks as, in the mesh's namespace.
pub const ACCOUNT: &str = "ambit-cni";
/// How long its tokens are good: as long as an agent may be away and the plugin still be told of new labels. API servers
/// may shorten it.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// How old a token may become while the agent is there to make another.
const RENEWAL: Duration = Duration::from_secs(3600);
/// How long the API server may take for both questions of the plugin together, and for a token.
const API_PATIENCE: Duration = Duration::from_secs(4);
/// How often the agent looks whether what it left is still right.
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
    /// The agent's own token, for where it may make none for the plugin.
    pub token_file: PathBuf,
}

impl Access {
    /// The kubeconfig for the plugin. Everything is in it: the plugin sees no file of the agent's.
    fn kubeconfig(&self, token: &str) -> std::io::Result<Value> {
        let ca = k8s_openapi::ByteString(std::fs::read(&self.ca_file)?);
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "local", "cluster": {"server": self.server, "certificate-authority-data": ca}}],
            "users": [{"name": "ambit-cni", "user": {"token": token.trim()}}],
            "contexts": [{"name": "ambit-cni", "context": {"cluster": "local", "user": "ambit-cni"}}],
            "current-context": "ambit-cni",
        }))
    }

    /// Leaves the kubeconfig with `token`, or with the agent's own one, in `file`, if it is not there already.
    fn leave(&self, token: Option<&str>, file: &Path) -> std::io::Result<()> {
        let content = match token {
            Some(token) => self.kubeconfig(token)?,
            None => self.kubeconfig(&std::fs::read_to_string(&self.token_file)?)?,
        };
        let content = serde_json::to_vec(&content)?;
        if std::fs::read(file).is_ok_and(|there| there == content) {
            return Ok(());
        }
        replace(file, &content, 0o600)
    }
}

/// A token for the plugin.
struct Minted {
    token: String,
    renewal: SystemTime,
}

/// Keeps what the agent leaves for the plugin current.
pub struct Keeper {
    access: Access,
    accounts: Api<ServiceAccount>,
    file: PathBuf,
    minted: Option<Minted>,
    /// What went wrong, as was said.
    said: String,
}

impl Keeper {
    /// Nothing is left yet. The account is one of `namespace`.
    pub fn new(access: Access, client: Client, namespace: &str, file: PathBuf) -> Self {
        let accounts = Api::namespaced(client, namespace);
        Self { access, accounts, file, minted: None, said: String::new() }
    }

    /// Keeps the file current until `stop`. Without it the plugin goes by what else it knows.
    pub async fn keep(mut self, stop: CancellationToken) {
        let mut tick = tokio::time::interval(REFRESH);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = tick.tick() => {}
            }
            let _ = stop.run_until_cancelled(self.tend()).await;
        }
    }

    /// Makes the file right, with a new token where it is time for one. What goes wrong is logged once.
    pub async fn tend(&mut self) {
        let problem = self.tended().await.err().map(|error| format!("{error:#}")).unwrap_or_default();
        if problem != self.said && !problem.is_empty() {
            tracing::warn!(file = %self.file.display(), error = problem, "the CNI plugin's way to the API server is not as it should be");
        }
        self.said = problem;
    }

    async fn tended(&mut self) -> anyhow::Result<()> {
        let due = self.minted.as_ref().is_none_or(|minted| minted.renewal <= SystemTime::now());
        let made = if due { self.mint().await } else { Ok(()) };
        let token = self.minted.as_ref().map(|minted| minted.token.clone());
        // A token that an agent before us left may be good for long; our own one is not.
        let keep = token.is_none() && !made.as_ref().is_err_and(may_not) && self.file.exists();
        if !keep {
            let (access, file) = (self.access.clone(), self.file.clone());
            tokio::task::spawn_blocking(move || access.leave(token.as_deref(), &file)).await??;
        }
        made.map_err(|error| anyhow::Error::from(error).context(format!("no token of the account {ACCOUNT}")))
    }

    async fn mint(&mut self) -> Result<(), kube::Error> {
        let spec = TokenRequestSpec {
            expiration_seconds: Some(LIFE.as_secs() as i64),
            // Those of the API server; and of no object, so that it ends with no pod.
            ..TokenRequestSpec::default()
        };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let params = PostParams::default();
        let asked = self.accounts.create_token_request(ACCOUNT, &params, &request);
        let late = |_| kube::Error::Service("the API server did not answer in time".into());
        let answer = tokio::time::timeout(API_PATIENCE, asked).await.map_err(late)??;
        let Some(status) = answer.status else {
            return Err(kube::Error::Service("the API server made no token".into()));
        };
        let now = SystemTime::now();
        let left = SystemTime::from(status.expiration_timestamp.0).duration_since(now).unwrap_or_default();
        self.minted = Some(Minted { token: status.token, renewal: now + RENEWAL.min(left / 2) });
        Ok(())
    }
}

/// Whether the agent has no right to it, or the account is not there: an installation of before there was one.
fn may_not(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if matches!(status.code, 403 | 404))
}

/// Whether `pod` is the one that the runtime means by `uid`, if it means any.
pub fn is_meant(pod: &Pod, uid: &str) -> bool {
    uid.is_empty()
        || pod.metadata.uid.as_deref() == Some(uid)
        || pod.annotations().get(MIRROR_ANNOTATION).is_some_and(|mirrored| mirrored == uid)
}

/// Why nobody knows what is wanted of a pod.
#[derive(Debug)]
pub enum Unknown {
    /// The API server answered, and not us or not of this pod: what it was asked with may be of long ago.
    Refused(String),
    /// It did not answer, or what it said means nothing.
    Silent(String),
}

impl Unknown {
    fn of(error: &anyhow::Error) -> Self {
        let text = format!("the API server cannot tell either: {error:#}");
        let refused = match error.downcast_ref::<kube::Error>() {
            Some(kube::Error::Api(status)) => matches!(status.code, 401 | 403 | 404),
            _ => error.is::<Nothing>(),
        };
        if refused { Self::Refused(text) } else { Self::Silent(text) }
    }
}

/// Answers that are none.
#[derive(Debug, thiserror::Error)]
enum Nothing {
    #[error("the node agent has left no way to it ({0} is not there)")]
    NoFile(String),
    #[error("it shows another pod of that name")]
    AnotherPod,
}

/// What is wanted of the pod, by the API server's word; or why it cannot be told.
pub async fn judged(config: &Config, event: &Event) -> Result<Verdict, Unknown> {
    let file = access_file(&config.cni_agent_run_dir);
    match tokio::time::timeout(API_PATIENCE, ask(&file, config, event)).await {
        Ok(answer) => answer.map_err(|error| Unknown::of(&error)),
        Err(_) => {
            let text = format!("the API server did not answer within {} s", API_PATIENCE.as_secs());
            Err(Unknown::Silent(text))
        }
    }
}

async fn ask(file: &Path, config: &Config, event: &Event) -> anyhow::Result<Verdict> {
    let selectors = match &config.enablement_selectors {
        None => default_selectors(),
        Some(value) => serde_json::from_value::<Vec<SelectorPair>>(value.clone())?,
    };
    let rules = Rules::new(&selectors, &config.exclude_namespaces, &config.pod_namespace)?;
    if !file.exists() {
        return Err(Nothing::NoFile(file.display().to_string()).into());
    }
    let kubeconfig = Kubeconfig::read_from(file)?;
    let way = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = Client::try_from(way)?;
    let pods = Api::<Pod>::namespaced(client.clone(), &event.pod_namespace);
    let namespaces = Api::<Namespace>::all(client);
    let (pod, namespace) = tokio::try_join!(pods.get(&event.pod_name), namespaces.get(&event.pod_namespace))?;
    if !is_meant(&pod, &event.pod_uid) {
        return Err(Nothing::AnotherPod.into());
    }
    Ok(judge(&rules, &pod, namespace.labels()))
}

#[cfg(test)]
mod tests;
