//! The record of a lab: what it is and what has to be undone, on disk for as long as the lab exists.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::name::LabName;
use super::processes::Process;

/// What is known of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// The process that carries it.
    pub process: Process,
    /// When it was started, RFC 3339.
    pub created: String,
    /// The API's address; empty until it is known.
    pub api: String,
    /// The kubeconfig that the nodes use.
    pub kubeconfig: PathBuf,
    /// What was done to the user's kubeconfig.
    pub published: Option<Published>,
    /// The nodes' processes.
    pub nodes: Vec<NodeRecord>,
    /// Everything is up.
    pub ready: bool,
}

/// A node's process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// The node's name.
    pub name: String,
    /// The process at the top of its tree.
    pub process: Process,
}

/// An entry in a kubeconfig of the user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// The file.
    pub path: PathBuf,
    /// The context that was current before.
    pub former_context: Option<String>,
    /// The file is the lab's alone.
    pub own_file: bool,
}

impl Record {
    /// The record of a lab, if there is one.
    pub fn load(name: &LabName) -> Option<Record> {
        let text = fs::read(Record::path(name)).ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Writes the record; a reader sees the old one or the new one.
    pub fn store(&self, name: &LabName) -> anyhow::Result<()> {
        write_private(&Record::path(name), &serde_json::to_vec_pretty(self)?)
    }

    fn path(name: &LabName) -> PathBuf {
        name.state_dir().join("lab.json")
    }
}

/// Every lab that left something under `/run/ambit`.
pub fn labs() -> Vec<LabName> {
    let entries = fs::read_dir("/run/ambit").into_iter().flatten().flatten();
    let names = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    names.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Writes a file that only root may read, as a whole.
pub fn write_private(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("file");
    let temporary = path.with_file_name(format!(".{name}.{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(content)?;
        fs::rename(&temporary, path)
    };
    write()
        .inspect_err(|_| _ = fs::remove_file(&temporary))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Held by whoever builds, carries or clears a lab; the kernel lets go of it when that process ends.
pub struct Lock {
    path: PathBuf,
    _held: Flock<File>,
}

impl Lock {
    /// Takes the lock of a lab; `None` if another process has it.
    pub fn take(name: &LabName) -> anyhow::Result<Option<Lock>> {
        let path = name.lock_file();
        let dir = path.parent().unwrap_or(Path::new("/run"));
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
        // The file is removed with the lab: a lock on a file that is no longer there locks nothing.
        for _ in 0..10 {
            let file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&path);
            let file = file.with_context(|| format!("cannot open {}", path.display()))?;
            let held = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(held) => held,
                Err((_, nix::errno::Errno::EAGAIN)) => return Ok(None),
                Err((_, error)) => {
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            };
            let inode = held.metadata().map(|meta| meta.ino()).ok();
            if inode.is_some() && inode == fs::metadata(&path).map(|meta| meta.ino()).ok() {
                return Ok(Some(Lock { path, _held: held }));
            }
        }
        bail!("cannot lock {}: it keeps being replaced", path.display())
    }

    /// Lets go of the lock and removes its file.
    pub fn remove(self) {
        let _ = fs::remove_file(&self.path);
    }
}
