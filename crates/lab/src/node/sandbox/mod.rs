//! Sandboxes: what the containers of a pod share. A network namespace that the CNI chain has wired, and one
//! process that holds it and its cgroup, so that agents which look for pods in `/proc` find the pod even while
//! no container of it runs.
//!
//! A `hostNetwork` pod shares the node's network namespace and has no CNI attachment.

pub mod cni;

use std::fs::File;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use netns::NetNs;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::CloneFlags;
use serde_json::Value;

use super::config::Config;
use super::{layout, spawn};
use cni::{Attachment, NetworkList};

/// A live sandbox.
pub struct Sandbox {
    /// The addresses of the pod.
    pub ips: Vec<IpAddr>,
    /// Its network namespace.
    pub netns: NetNs,
    /// The path of that namespace inside the node.
    pub netns_path: PathBuf,
    attached: Option<(Attachment, NetworkList, Value)>,
    holder: std::process::Child,
}

impl Sandbox {
    /// Makes the sandbox of `pod` and wires its network; leaves nothing behind when that fails.
    pub async fn create(config: &Config, pod: &Pod) -> anyhow::Result<Self> {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let id = random_hex(32);
        let cgroup = format!("{}/pod{uid}/{id}", config.cgroup());
        if pod.spec.as_ref().and_then(|s| s.host_network).unwrap_or(false) {
            let netns = NetNs::open(layout::NODE_NETNS)?;
            let holder = hold(Some(netns.clone()), None).await?;
            join_cgroup(&cgroup, holder.id());
            let netns_path = layout::NODE_NETNS.into();
            return Ok(Self { ips: vec![config.ip], netns, netns_path, attached: None, holder });
        }

        let name = random_hex(16);
        let netns_path = Path::new(layout::NETNS_DIR).join(format!(
            "cni-{}-{}-{}-{}-{}",
            &name[..8],
            &name[8..12],
            &name[12..16],
            &name[16..20],
            &name[20..]
        ));
        let holder = hold(None, Some(netns_path.clone())).await.context("cannot make a network namespace")?;
        join_cgroup(&cgroup, holder.id());
        let mut half = Half { netns_path: netns_path.clone(), holder: Some(holder) };
        let netns = NetNs::open(&netns_path)?;
        let list = cni::load(Path::new(layout::CNI_CONF))?;
        let attachment = Attachment {
            container_id: id.clone(),
            netns: netns_path.clone(),
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            uid,
        };
        let result = cni::add(&list, &attachment).await?;
        let ips = cni::addresses(&result);
        anyhow::ensure!(!ips.is_empty(), "the CNI network {:?} gave the pod no address", list.name);
        let holder = half.holder.take().context("the sandbox has lost its process")?;
        Ok(Self { ips, netns, netns_path, attached: Some((attachment, list, result)), holder })
    }

    /// Takes it down: CNI DEL, then the namespace and the process that held it.
    pub async fn destroy(self, config: &Config, uid: &str) -> anyhow::Result<()> {
        let Self { attached, mut holder, netns_path, netns, .. } = self;
        let mut outcome = Ok(());
        if let Some((attachment, list, result)) = &attached {
            // The configuration may have changed since: what was added is what is deleted.
            outcome = cni::del(list, attachment, Some(result)).await;
        }
        drop(netns);
        end(&mut holder);
        if attached.is_some() {
            unmount_netns(&netns_path);
        }
        spawn::remove_pod_cgroups(config, uid);
        outcome.map_err(Into::into)
    }
}

/// A sandbox whose network is not wired yet; undone when dropped.
struct Half {
    netns_path: PathBuf,
    holder: Option<std::process::Child>,
}

impl Drop for Half {
    fn drop(&mut self) {
        if let Some(mut holder) = self.holder.take() {
            end(&mut holder);
            unmount_netns(&self.netns_path);
        }
    }
}

/// Starts the process that stands for the pod, in `existing` or in a new network namespace that is then bound
/// to a path. A thread enters the namespace, so that neither this process nor its other threads leave theirs.
async fn hold(existing: Option<NetNs>, bind_to: Option<PathBuf>) -> anyhow::Result<std::process::Child> {
    let start = move || -> anyhow::Result<std::process::Child> {
        match &existing {
            Some(netns) => nix::sched::setns(netns, CloneFlags::CLONE_NEWNET)?,
            None => nix::sched::unshare(CloneFlags::CLONE_NEWNET)?,
        }
        if let Some(path) = &bind_to {
            loopback_up()?;
            File::create(path)?;
            mount(
                Some("/proc/thread-self/ns/net"),
                path.as_path(),
                None::<&str>,
                MsFlags::MS_BIND,
                None::<&str>,
            )?;
        }
        Ok(std::process::Command::new("/usr/bin/sleep")
            .arg("infinity")
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?)
    };
    let (tell, told) = tokio::sync::oneshot::channel();
    // A thread of its own, which ends: it never comes back from the namespace it has entered.
    std::thread::Builder::new().name("sandbox".into()).spawn(move || drop(tell.send(start())))?;
    told.await.context("the thread that makes a sandbox ended early")?
}

/// Brings up `lo` of the calling thread's namespace.
fn loopback_up() -> anyhow::Result<()> {
    let done = std::process::Command::new("ip")
        .args(["link", "set", "lo", "up"])
        .stdin(Stdio::null())
        .output()
        .context("cannot run ip (package iproute2)")?;
    anyhow::ensure!(done.status.success(), "ip link set lo up: {}", String::from_utf8_lossy(&done.stderr));
    Ok(())
}

/// Puts a process into a cgroup of every hierarchy that takes it.
fn join_cgroup(cgroup: &str, pid: u32) {
    for hierarchy in spawn::cgroup_hierarchies() {
        let path = hierarchy.join(cgroup.trim_start_matches('/'));
        let joined = std::fs::create_dir_all(&path)
            .and_then(|()| std::fs::write(path.join("cgroup.procs"), pid.to_string()));
        if let Err(error) = joined {
            // A cpuset without CPUs takes nobody; the other hierarchies carry the name as well.
            tracing::debug!(path = %path.display(), %error, "a cgroup does not take the sandbox");
        }
    }
}

fn end(holder: &mut std::process::Child) {
    let _ = holder.kill();
    let _ = holder.wait();
}

fn unmount_netns(path: &Path) {
    let _ = umount2(path, MntFlags::MNT_DETACH);
    let _ = std::fs::remove_file(path);
}

/// `bytes` random bytes in hexadecimal.
pub fn random_hex(bytes: usize) -> String {
    use std::fmt::Write;
    let mut text = String::with_capacity(bytes * 2);
    for _ in 0..bytes {
        let _ = write!(text, "{:02x}", rand::random::<u8>());
    }
    text
}
