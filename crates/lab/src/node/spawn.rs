//! Starting a node from outside, and removing what it cannot remove itself.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::Context;
use nix::fcntl::OFlag;

use super::config::Config;
use super::stage;

/// Starts a node as a process tree in mount and pid namespaces of its own.
///
/// The node's log is `node.log` in its state directory. The tree ends when the returned child is killed or
/// dropped, and also when the calling process ends in whatever way: it holds one end of a pipe for as long as
/// it lives, and the node watches the other.
pub fn spawn(config: &Config) -> anyhow::Result<tokio::process::Child> {
    fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("cannot make the state directory {}", config.state_dir.display()))?;
    let file = config.state_dir.join("config.json");
    let mut out = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&file)?;
    out.write_all(&serde_json::to_vec_pretty(config)?)?;
    let log = config.state_dir.join("node.log");
    let log = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;

    let (watched, held) = nix::unistd::pipe2(OFlag::O_CLOEXEC).context("cannot make a pipe")?;
    let child = tokio::process::Command::new("unshare")
        .args(["--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--"])
        .arg(&config.binary)
        .args(["lab", "node", "--config"])
        .arg(&file)
        .env_remove(stage::VARIABLE)
        .stdin(Stdio::from(watched))
        .stdout(Stdio::from(log.try_clone()?))
        .stderr(Stdio::from(log))
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start node {} (is util-linux installed?)", config.name))?;
    keep_for_life(held);
    Ok(child)
}

/// The descriptor closes when this process ends, which is the signal the node waits for.
fn keep_for_life(held: OwnedFd) {
    let _ = held.into_raw_fd();
}

/// Removes the cgroups of a lab's nodes once their processes are gone; answers the paths that would not go.
pub fn remove_cgroups(lab: &str) -> Vec<PathBuf> {
    let mut left = Vec::new();
    for hierarchy in cgroup_hierarchies() {
        let top = hierarchy.join(format!("ambit-{lab}"));
        if top.is_dir() {
            remove_tree(&top, &mut left);
        }
    }
    left
}

/// The mount points of the cgroup hierarchies: one on a unified layout, one a controller on the older ones.
pub(super) fn cgroup_hierarchies() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    entries
        .flatten()
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .filter(|p| p.join("cgroup.procs").exists())
        .collect()
}

/// Removes a cgroup directory with those below it; the files in them are the kernel's and need no removal.
fn remove_tree(path: &Path, left: &mut Vec<PathBuf>) {
    if let Ok(entries) = fs::read_dir(path) {
        for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            remove_tree(&entry.path(), left);
        }
    }
    if fs::remove_dir(path).is_err() && path.exists() {
        left.push(path.to_owned());
    }
}

/// Removes one pod's cgroups.
pub(super) fn remove_pod_cgroups(config: &Config, uid: &str) {
    let mut left = Vec::new();
    for hierarchy in cgroup_hierarchies() {
        let path = hierarchy.join(config.cgroup().trim_start_matches('/')).join(format!("pod{uid}"));
        if path.is_dir() {
            remove_tree(&path, &mut left);
        }
    }
    if !left.is_empty() {
        tracing::debug!(?left, "cgroups of a pod would not go yet");
    }
}
