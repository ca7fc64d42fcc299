//! Volumes of a pod: made before its containers start, kept up to date while they run, removed with it.
//!
//! A volume is a directory (or file) inside the node; the runtime binds it into containers. Everything but
//! `hostPath` lies under `/var/lib/kubelet/pods/<uid>/volumes`, as on a real node.

pub mod atomic;
pub mod host;
pub mod payload;
mod token;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, DownwardAPIVolumeFile, EmptyDirVolumeSource, KeyToPath, Pod, Secret, Volume,
};
use kube::{Api, Client};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::fields::{self, Facts};
use super::layout;
use super::runtime::bundle::{Bind, Propagation};
use super::runtime::env;
use payload::{File, Files};
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

    /// The files of a volume that is made from objects; `None` when it is of another kind.
    async fn project(&mut self, volume: &Volume, from: &Sources<'_>) -> anyhow::Result<Option<Files>> {
        let pod = from.facts.pod;
        let mode = |mode: Option<i32>| mode.map_or(0o644, |m| m as u32);
        if let Some(map) = &volume.config_map {
            return config_map(from, &map.name, map.items.as_deref(), mode(map.default_mode), map.optional)
                .await
                .map(Some);
        }
        if let Some(secret) = &volume.secret {
            let name = secret.secret_name.as_deref().unwrap_or_default();
            return secret_files(
                from,
                name,
                secret.items.as_deref(),
                mode(secret.default_mode),
                secret.optional,
            )
            .await
            .map(Some);
        }
        if let Some(downward) = &volume.downward_api {
            return downward_files(from, downward.items.iter().flatten(), mode(downward.default_mode))
                .map(Some);
        }
        let Some(projected) = &volume.projected else { return Ok(None) };
        let default = mode(projected.default_mode);
        let mut files = Files::new();
        for source in projected.sources.iter().flatten() {
            if let Some(map) = &source.config_map {
                files.extend(config_map(from, &map.name, map.items.as_deref(), default, map.optional).await?);
            } else if let Some(secret) = &source.secret {
                files.extend(
                    secret_files(from, &secret.name, secret.items.as_deref(), default, secret.optional)
                        .await?,
                );
            } else if let Some(downward) = &source.downward_api {
                files.extend(downward_files(from, downward.items.iter().flatten(), default)?);
            } else if let Some(wanted) = &source.service_account_token {
                payload::check_path(&wanted.path).map_err(|e| anyhow!(e))?;
                let token = self.tokens.get(from.client, pod, wanted).await?;
                files.insert(wanted.path.clone(), File { content: token.into_bytes(), mode: default });
            } else {
                bail!("a projected source is of a kind the lab does not offer");
            }
        }
        Ok(Some(files))
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

fn namespace<'a>(from: &Sources<'a>) -> &'a str {
    from.facts.pod.metadata.namespace.as_deref().unwrap_or("default")
}

async fn config_map(
    from: &Sources<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: Option<bool>,
) -> anyhow::Result<Files> {
    let optional = optional.unwrap_or(false);
    let Some(map) = fetch::<ConfigMap>(from.client, namespace(from), name, optional).await? else {
        return Ok(Files::new());
    };
    payload::lay_out(&format!("configmap {name:?}"), &payload::config_map(&map), items, mode, optional)
        .map_err(|e| anyhow!(e))
}

async fn secret_files(
    from: &Sources<'_>,
    name: &str,
    items: Option<&[KeyToPath]>,
    mode: u32,
    optional: Option<bool>,
) -> anyhow::Result<Files> {
    let optional = optional.unwrap_or(false);
    let Some(secret) = fetch::<Secret>(from.client, namespace(from), name, optional).await? else {
        return Ok(Files::new());
    };
    payload::lay_out(&format!("secret {name:?}"), &payload::secret(&secret), items, mode, optional)
        .map_err(|e| anyhow!(e))
}

fn downward_files<'f>(
    from: &Sources<'_>,
    items: impl Iterator<Item = &'f DownwardAPIVolumeFile>,
    default_mode: u32,
) -> anyhow::Result<Files> {
    let mut files = Files::new();
    for item in items {
        payload::check_path(&item.path).map_err(|e| anyhow!(e))?;
        let text = if let Some(field) = &item.field_ref {
            fields::field(&from.facts, &field.field_path)
        } else if let Some(resource) = &item.resource_field_ref {
            fields::resource(from.facts.pod, None, resource, from.capacity)
        } else {
            Err(format!("{:?} says neither fieldRef nor resourceFieldRef", item.path))
        };
        let content = text.map_err(|e| anyhow!(e))?.into_bytes();
        let mode = item.mode.map_or(default_mode, |m| m as u32);
        files.insert(item.path.clone(), File { content, mode });
    }
    Ok(files)
}

/// The files under `/etc` that a pod has of its own.
pub struct EtcFiles {
    /// `/etc/hosts`.
    pub hosts: PathBuf,
    /// `/etc/hostname`.
    pub hostname: PathBuf,
    /// `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

impl EtcFiles {
    /// Writes them.
    pub fn write(pod: &Pod, hostname: &str, ips: &[IpAddr], resolv_conf: &str) -> anyhow::Result<Self> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let dir = Path::new(layout::PODS).join(uid).join("etc");
        fs::create_dir_all(&dir)?;
        let files = Self {
            hosts: dir.join("hosts"),
            hostname: dir.join("hostname"),
            resolv_conf: dir.join("resolv.conf"),
        };
        fs::write(&files.hosts, hosts(pod, hostname, ips))?;
        fs::write(&files.hostname, format!("{hostname}\n"))?;
        fs::write(&files.resolv_conf, resolv_conf)?;
        Ok(files)
    }
}

fn hosts(pod: &Pod, hostname: &str, ips: &[IpAddr]) -> String {
    let spec = pod.spec.as_ref();
    let mut text =
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
            .to_owned();
    let full = spec.and_then(|s| s.subdomain.as_deref()).filter(|s| !s.is_empty()).map(|sub| {
        format!(
            "{hostname}.{sub}.{}.svc.cluster.local\t",
            pod.metadata.namespace.as_deref().unwrap_or("default")
        )
    });
    for ip in ips {
        text.push_str(&format!("{ip}\t{}{hostname}\n", full.as_deref().unwrap_or("")));
    }
    for alias in spec.iter().flat_map(|s| s.host_aliases.iter().flatten()) {
        text.push_str(&format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
        ));
    }
    text
}

/// The `resolv.conf` of a pod by its DNS policy.
pub fn resolv_conf(pod: &Pod, cluster_dns: IpAddr, host: &str) -> String {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let host_network = spec.and_then(|s| s.host_network).unwrap_or(false);
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network,
        _ => false,
    };
    let (mut servers, mut searches, mut options): (Vec<String>, Vec<String>, Vec<String>) =
        Default::default();
    if cluster {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        servers.push(cluster_dns.to_string());
        searches = vec![
            format!("{namespace}.svc.cluster.local"),
            "svc.cluster.local".to_owned(),
            "cluster.local".to_owned(),
        ];
        options.push("ndots:5".to_owned());
    } else if policy != "None" {
        for line in host.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => servers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => searches = words.map(str::to_owned).collect(),
                Some("options") => options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
    }
    if let Some(own) = spec.and_then(|s| s.dns_config.as_ref()) {
        servers.extend(own.nameservers.iter().flatten().cloned());
        searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            options.retain(|o| o.split(':').next() != Some(name.as_str()));
            options.push(option.value.as_ref().map_or_else(|| name.clone(), |v| format!("{name}:{v}")));
        }
    }
    let mut text = String::new();
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests;
