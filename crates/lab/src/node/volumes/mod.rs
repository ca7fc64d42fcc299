//! Volumes of a pod: made before its containers start, kept up to date while they run, removed with it.
//!
//! A volume is a directory (or file) inside the node; the runtime binds it into containers. Everything but
//! `hostPath` lies under `/var/lib/kubelet/pods/<uid>/volumes`, as on a real node.

pub mod atomic;
pub mod etc;
pub mod host;
pub mod payload;
mod project;
mod token;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, Pod, Volume};
use kube::{Api, Client};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::fields::{self, Facts};
use super::layout;
use super::runtime::bundle::{Bind, Propagation};
use super::runtime::env;
use token::Tokens;

/// The volumes of one pod.
pub struct Volumes {
    dir: PathBuf,
    prepared: BTreeMap<String, Prepared>,
    tokens: Tokens,
}

struct Prepared {
    path: PathBuf,
    read_only: bool,
}

/// What volumes are made from.
pub struct Sources<'a> {
    /// Where ConfigMaps, Secrets and tokens come from.
    pub client: &'a Client,
    /// The pod and what is known of it.
    pub facts: Facts<'a>,
    /// What the node has of a resource, in thousandths.
    pub capacity: &'a (dyn Fn(&str) -> Option<i128> + Send + Sync),
}

impl Volumes {
    /// No volumes yet.
    pub fn new(uid: &str) -> Self {
        Self {
            dir: Path::new(layout::PODS).join(uid).join("volumes"),
            prepared: BTreeMap::new(),
            tokens: Tokens::default(),
        }
    }

    /// Makes what is missing; can be called again after a failure.
    pub async fn set_up(&mut self, from: &Sources<'_>) -> anyhow::Result<()> {
        for volume in volumes_of(from.facts.pod) {
            if !self.prepared.contains_key(&volume.name) {
                let prepared = self
                    .prepare(volume, from)
                    .await
                    .with_context(|| format!("MountVolume.SetUp failed for volume {:?}", volume.name))?;
                self.prepared.insert(volume.name.clone(), prepared);
            }
        }
        Ok(())
    }

    /// Brings projected volumes up to date; answers what could not be, while the old files stay.
    pub async fn refresh(&mut self, from: &Sources<'_>) -> Vec<String> {
        let mut failed = Vec::new();
        for volume in volumes_of(from.facts.pod) {
            let Some(path) = self.prepared.get(&volume.name).map(|p| p.path.clone()) else { continue };
            let done = match self.project(volume, from).await {
                Ok(Some(files)) => atomic::write(&path, &files, fs_group(from.facts.pod)).map_err(Into::into),
                Ok(None) => Ok(false),
                Err(error) => Err(error),
            };
            match done {
                Ok(true) => tracing::debug!(volume = %volume.name, "volume updated"),
                Ok(false) => {}
                Err(error) => failed.push(format!("volume {:?} is not up to date: {error:#}", volume.name)),
            }
        }
        failed
    }

    /// Removes them. Memory volumes are unmounted first; a `hostPath` is left alone.
    pub fn tear_down(&self) {
        for prepared in self.prepared.values().filter(|p| p.path.starts_with(&self.dir)) {
            let _ = umount2(&prepared.path, MntFlags::MNT_DETACH);
        }
        if let Some(pod) = self.dir.parent()
            && let Err(error) = fs::remove_dir_all(pod)
            && pod.exists()
        {
            tracing::warn!(dir = %pod.display(), %error, "the volumes of a pod would not go");
        }
    }

    /// The binds of a container's `volumeMounts`.
    pub fn binds(&self, container: &Container, known: &env::Env) -> anyhow::Result<Vec<Bind>> {
        let mut binds = Vec::new();
        for wanted in container.volume_mounts.iter().flatten() {
            let volume = self.prepared.get(&wanted.name).with_context(|| {
                format!("container {:?} mounts unknown volume {:?}", container.name, wanted.name)
            })?;
            let sub = match (&wanted.sub_path, &wanted.sub_path_expr) {
                (Some(path), _) if !path.is_empty() => Some(path.clone()),
                (_, Some(expr)) if !expr.is_empty() => Some(env::expand(expr, known.values())),
                _ => None,
            };
            let source = match sub {
                Some(sub) => sub_path(&volume.path, &sub, volume.read_only)
                    .with_context(|| format!("subPath {sub:?} of volume {:?}", wanted.name))?,
                None => volume.path.clone(),
            };
            binds.push(Bind {
                source,
                target: wanted.mount_path.clone(),
                read_only: volume.read_only || wanted.read_only.unwrap_or(false),
                propagation: match wanted.mount_propagation.as_deref() {
                    Some("HostToContainer") => Propagation::HostToContainer,
                    Some("Bidirectional") => Propagation::Bidirectional,
                    _ => Propagation::None,
                },
            });
        }
        Ok(binds)
    }

    async fn prepare(&mut self, volume: &Volume, from: &Sources<'_>) -> anyhow::Result<Prepared> {
        if let Some(host) = &volume.host_path {
            let (path, read_only) =
                host::prepare(&host.path, host.type_.as_deref().unwrap_or("")).map_err(|e| anyhow!(e))?;
            return Ok(Prepared { path, read_only });
        }
        let group = fs_group(from.facts.pod);
        if let Some(empty) = &volume.empty_dir {
            let path = self.dir.join("kubernetes.io~empty-dir").join(&volume.name);
            empty_dir(&path, empty, group)?;
            return Ok(Prepared { path, read_only: false });
        }
        let kind = if volume.config_map.is_some() {
            "kubernetes.io~configmap"
        } else if volume.secret.is_some() {
            "kubernetes.io~secret"
        } else if volume.downward_api.is_some() {
            "kubernetes.io~downward-api"
        } else {
            "kubernetes.io~projected"
        };
        let path = self.dir.join(kind).join(&volume.name);
        let files = self.project(volume, from).await?.context(
            "the lab offers emptyDir, hostPath, configMap, secret, downwardAPI and projected volumes only",
        )?;
        atomic::write(&path, &files, group).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Prepared { path, read_only: true })
    }
}

fn volumes_of(pod: &Pod) -> impl Iterator<Item = &Volume> {
    pod.spec.iter().flat_map(|s| s.volumes.iter().flatten())
}

fn fs_group(pod: &Pod) -> Option<u32> {
    let context = pod.spec.as_ref()?.security_context.as_ref()?;
    u32::try_from(context.fs_group?).ok()
}

fn empty_dir(path: &Path, wanted: &EmptyDirVolumeSource, group: Option<u32>) -> anyhow::Result<()> {
    fs::create_dir_all(path)?;
    if wanted.medium.as_deref().is_some_and(|m| m == "Memory") {
        let limit = wanted.size_limit.as_ref().and_then(|q| fields::milli(&q.0)).map(|m| m / 1000);
        let options = limit.map_or_else(String::new, |bytes| format!("size={bytes}"));
        mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options.as_str()))?;
    }
    if group.is_some() {
        chown(path, None, group)?;
    }
    let mode = if group.is_some() { 0o2777 } else { 0o777 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    Ok(())
}

/// A path below a volume that does not leave it by links; made as a directory when it is not there.
fn sub_path(volume: &Path, sub: &str, read_only: bool) -> anyhow::Result<PathBuf> {
    payload::check_path(sub).map_err(|e| anyhow!(e))?;
    let path = volume.join(sub);
    if !path.exists() {
        anyhow::ensure!(!read_only, "does not exist");
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
    }
    let real = path.canonicalize()?;
    anyhow::ensure!(real.starts_with(volume.canonicalize()?), "leads out of the volume");
    Ok(real)
}

/// A namespaced object by name; `None` when it is missing and may be.
pub async fn fetch<K>(
    client: &Client,
    namespace: &str,
    name: &str,
    optional: bool,
) -> anyhow::Result<Option<K>>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
{
    let kind = K::kind(&()).to_lowercase();
    let found = Api::<K>::namespaced(client.clone(), namespace)
        .get_opt(name)
        .await
        .with_context(|| format!("cannot read {kind} {namespace}/{name}"))?;
    if found.is_none() && !optional {
        bail!("{kind} \"{name}\" not found");
    }
    Ok(found)
}

#[cfg(test)]
mod tests;
