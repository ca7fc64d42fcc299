//! Keeps the authority: reads it at the start, follows what holds it, and moves a rotation on.
//!
//! Every replica follows, so that all sign with the same; only the one that leads writes.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::watch;

use super::rotation::{self, LONGEST, Progress, Stage};
use super::{Authority, Lifetime, plugin, store};
use crate::watch::follow;
use crate::{Config, Error};

/// How often files and the rotation are looked at.
const EVERY: Duration = Duration::from_secs(5);
/// How long the API may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Added to the length of a stage: clocks, and proxies that were slow to renew.
const SLACK: Duration = Duration::from_secs(600);

/// What holds the authority.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// Files of a directory.
    Directory(PathBuf),
    /// Secret `cacerts`.
    Plugged,
    /// Secret `istio-ca-secret`, which is ours.
    SelfSigned,
}

impl Source {
    /// Where to look when something is wrong with it.
    pub fn place(&self, namespace: &str) -> String {
        match self {
            Self::Directory(path) => path.display().to_string(),
            Self::Plugged => format!("{namespace}/{}", plugin::SECRET),
            Self::SelfSigned => format!("{namespace}/{}", store::SECRET),
        }
    }
}

/// The authority of the cluster, and what holds it: files first, then Secret `cacerts`, then our own.
pub async fn load(
    client: &Client,
    config: &Config,
    trust_domain: &str,
) -> Result<(Source, Authority), Error> {
    let unusable =
        |source: &Source, reason: String| Error::Plugged { place: source.place(&config.namespace), reason };
    if let Some(directory) = &config.ca_directory {
        let source = Source::Directory(directory.clone());
        let files = plugin::files(directory).map_err(|error| unusable(&source, error.to_string()))?;
        if let Some(authority) = plugin::read(&files).map_err(|reason| unusable(&source, reason))? {
            return Ok((source, authority));
        }
    }
    let api = Api::<Secret>::namespaced(client.clone(), &config.namespace);
    let reading = || format!("read Secret {}/{}", config.namespace, plugin::SECRET);
    if let Some(secret) = api.get_opt(plugin::SECRET).await.map_err(|error| Error::api(reading(), error))? {
        let read = store::texts(&secret).and_then(|files| plugin::read(&files));
        if let Some(authority) = read.map_err(|reason| unusable(&Source::Plugged, reason))? {
            return Ok((Source::Plugged, authority));
        }
    }
    let authority = store::load_or_create(client, &config.namespace, trust_domain).await?;
    Ok((Source::SelfSigned, authority))
}

/// What the keeper works with.
pub struct Keeper {
    /// Client of the API.
    pub client: Client,
    /// Namespace of the Secrets.
    pub namespace: String,
    /// Trust domain of new roots.
    pub trust_domain: String,
    /// What holds the authority.
    pub source: Source,
    /// Length of a stage of a rotation; none: the life of certificates.
    pub stage: Option<Duration>,
    /// The authority that signs.
    pub authority: watch::Sender<Option<Arc<Authority>>>,
    /// Roots that stand in every namespace.
    pub distributed: watch::Receiver<Option<Arc<str>>>,
    /// Whether we lead.
    pub leading: watch::Receiver<bool>,
    /// Where a rotation stands, for pages and metrics.
    pub progress: watch::Sender<Option<Progress>>,
}

impl Keeper {
    /// Follows the authority until dropped.
    pub async fn keep(self) {
        match &self.source {
            Source::Directory(directory) => self.follow_files(directory).await,
            Source::Plugged => self.follow_secret(plugin::SECRET).await,
            Source::SelfSigned => self.follow_secret(store::SECRET).await,
        }
    }

    fn current(&self) -> Option<Arc<Authority>> {
        self.authority.borrow().clone()
    }

    async fn follow_files(&self, directory: &std::path::Path) {
        let mut seen = None;
        loop {
            let read = plugin::files(directory).map_err(|error| error.to_string());
            if seen.as_ref() != Some(&read) {
                self.plugged(read.clone().and_then(|files| plugin::read(&files)));
                seen = Some(read);
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    /// Takes over what was plugged in, if open connections survive it.
    fn plugged(&self, read: Result<Option<Authority>, String>) {
        let place = self.source.place(&self.namespace);
        let (Some(old), read) = (self.current(), read) else { return };
        match read {
            Ok(Some(new)) if new.same(&old) => {}
            Ok(Some(new)) if plugin::may_follow(&old, &new) => {
                tracing::info!(place, roots = new.roots().len(), "plugged-in authority replaced");
                self.authority.send_replace(Some(Arc::new(new)));
            }
            Ok(Some(_)) => tracing::error!(
                place,
                "the new authority is not used: neither do its roots hold the present ones nor those its. Put old and new roots into root-cert.pem first, wait until all certificates are renewed, then change the signing certificate"
            ),
            Ok(None) => tracing::error!(place, "the plugged-in authority is gone; the last one stays in use"),
            Err(reason) => tracing::error!(
                place,
                reason,
                "the plugged-in authority cannot be used; the last one stays in use"
            ),
        }
    }

    async fn follow_secret(&self, name: &'static str) {
        let api = Api::<Secret>::namespaced(self.client.clone(), &self.namespace);
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut secrets = std::pin::pin!(follow(|| watcher(api.clone(), config.clone())));
        let mut now: Option<Secret> = None;
        let mut listed = false;
        let mut tick = tokio::time::interval(EVERY);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(heard) = secrets.next() => match heard {
                    Ok(watcher::Event::Init) => (now, listed) = (None, false),
                    Ok(watcher::Event::InitApply(secret) | watcher::Event::Apply(secret)) => {
                        if secret.metadata.name.as_deref() == Some(name) {
                            self.heard(&secret);
                            now = Some(secret);
                        }
                    }
                    Ok(watcher::Event::InitDone) => listed = true,
                    Ok(watcher::Event::Delete(secret)) => {
                        if secret.metadata.name.as_deref() == Some(name) {
                            now = None;
                            tracing::error!(secret = name, "the Secret of the authority is gone; what it held stays in use");
                        }
                    }
                    Err(error) => tracing::debug!(%error, "cannot watch the Secret of the authority"),
                },
                _ = tick.tick() => {}
            }
            if self.source == Source::SelfSigned && listed {
                self.advance(&api, now.as_ref()).await;
            }
        }
    }

    fn heard(&self, secret: &Secret) {
        if self.source == Source::Plugged {
            return self.plugged(store::texts(secret).and_then(|files| plugin::read(&files)));
        }
        self.progress.send_replace(Some(Progress::read(secret)));
        match (store::read(secret), self.current()) {
            (Ok(new), Some(old)) if new.same(&old) => {}
            (Ok(new), _) => {
                tracing::info!(
                    stage = Progress::read(secret).stage.word(),
                    roots = new.roots().len(),
                    "authority read again from its Secret"
                );
                self.authority.send_replace(Some(Arc::new(new)));
            }
            (Err(reason), _) => {
                tracing::error!(
                    secret = store::SECRET,
                    reason,
                    "the Secret cannot be used; what it held before stays in use"
                );
            }
        }
    }

    /// Writes what is to be written to our own Secret.
    async fn advance(&self, api: &Api<Secret>, secret: Option<&Secret>) {
        let Some(authority) = self.current() else { return };
        let attempt = async {
            let Some(secret) = secret else {
                if !*self.leading.borrow() {
                    return Ok(());
                }
                // Somebody deleted it; a new root would refuse every connection there is.
                tracing::warn!(secret = store::SECRET, "Secret of the authority put back");
                let secret = store::secret(&self.namespace, &authority);
                return match api.create(&PostParams::default(), &secret).await {
                    Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
                    result => result.map(drop),
                };
            };
            let progress = Progress::read(secret);
            let longest = authority.longest();
            if longest > Lifetime::default().default && longest > progress.longest {
                let patch =
                    json!({ "metadata": { "annotations": { LONGEST: longest.as_secs().to_string() } } });
                return api
                    .patch(store::SECRET, &PatchParams::default(), &Patch::Merge(&patch))
                    .await
                    .map(drop);
            }
            if !*self.leading.borrow() {
                return Ok(());
            }
            let usual = progress.longest.max(longest).max(Lifetime::default().default) + SLACK;
            let wait = self.stage.unwrap_or(usual);
            let distributed = self.distributed.borrow().as_deref() == Some(authority.root_bundle())
                && store::read(secret).is_ok_and(|stored| stored.root_bundle() == authority.root_bundle());
            let now = SystemTime::now();
            let aged = authority.aged(now);
            let Some(step) = rotation::step(&progress, now, wait, distributed, aged) else { return Ok(()) };
            match rotation::apply(secret, step, &self.trust_domain, now) {
                Ok(changed) => {
                    // With the version that was read: of two who try at once, one fails and looks again.
                    api.replace(store::SECRET, &PostParams::default(), &changed).await?;
                    tracing::info!(
                        ?step,
                        stage = Progress::read(&changed).stage.word(),
                        "rotation of the root certificate"
                    );
                }
                Err(error) => tracing::error!(%error, ?step, "the root certificate cannot be rotated"),
            }
            Ok(())
        };
        match tokio::time::timeout(PATIENCE, attempt).await {
            Ok(Ok(())) => {}
            Ok(Err(kube::Error::Api(status))) if status.is_conflict() => {}
            Ok(Err(error)) => {
                tracing::warn!(
                    error = crate::error::causes(&error),
                    "cannot write the Secret of the authority, trying again"
                );
            }
            Err(_) => tracing::warn!("the API takes no Secret, trying again"),
        }
    }
}

/// A page about the authority: what signs, what is trusted, how a rotation goes. No key is in it.
pub fn page(
    authority: &Authority,
    source: &Source,
    namespace: &str,
    progress: Option<&Progress>,
) -> serde_json::Value {
    let seconds =
        |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    json!({
        "source": source.place(namespace),
        "signing": { "notAfter": seconds(authority.not_after()), "digest": authority.digest() },
        "roots": authority.root_digests(),
        "rotation": progress.map(|progress| json!({
            "stage": progress.stage.word(),
            "since": if progress.stage == Stage::Settled { 0 } else { seconds(progress.since) },
            "requested": progress.request,
        })),
    })
}
