//! What the agent remembers of the pods it has touched, in a file that outlives it.
//!
//! For each pod its name, its addresses and, where CNI ADD told one, the path of its namespace with the inode it
//! had. A successor uses it to find namespaces in which no process lives yet, and to know which pods it has to
//! clean up. It is a hint and no proof: what it says is looked at before it is believed.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use netns::NetNsId;
use serde::{Deserialize, Serialize};

use crate::turns::Turns;

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses.
    #[serde(default)]
    pub ips: Vec<IpAddr>,
    /// Path of its network namespace as the container runtime names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Inode of that namespace.
    #[serde(default)]
    pub ino: u64,
    /// Device of that inode.
    #[serde(default)]
    pub dev: u64,
    /// When it came into the mesh, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// The tools that have written rules into it, by name: more than one while a node changes from one to another.
    #[serde(default)]
    pub written_by: Vec<String>,
}

impl Record {
    /// Whether `id` is the namespace that was told.
    pub fn is(&self, id: NetNsId) -> bool {
        self.ino == id.ino && self.dev == id.dev
    }
}

/// All pods by UID, kept in `pods.json` below the run directory.
#[derive(Debug)]
pub struct Remembered {
    file: PathBuf,
    records: parking_lot::Mutex<Records>,
    /// The writing of the file: with many pods that come at once, one writes for all of them.
    turns: Turns,
}

#[derive(Debug, Default)]
struct Records {
    all: BTreeMap<String, Record>,
    /// Grows with each change.
    generation: u64,
}

impl Remembered {
    /// Reads what a predecessor left. A file that cannot be read or understood is reported and counts as empty.
    pub fn load(run_dir: &Path) -> Self {
        let file = run_dir.join("pods.json");
        let records = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(file = %file.display(), %error, "ignoring the unreadable list of pods");
                BTreeMap::new()
            }),
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!(file = %file.display(), %error, "cannot read the list of pods");
                }
                BTreeMap::new()
            }
        };
        Self { file, records: Records { all: records, generation: 0 }.into(), turns: Turns::default() }
    }

    /// What is known of a pod.
    pub fn get(&self, uid: &str) -> Option<Record> {
        self.records.lock().all.get(uid).cloned()
    }

    /// All of it.
    pub fn all(&self) -> BTreeMap<String, Record> {
        self.records.lock().all.clone()
    }

    /// Remembers a pod; it is in the file when this returns.
    pub async fn put(&self, uid: &str, record: Record) -> std::io::Result<()> {
        let generation = {
            let mut records = self.records.lock();
            if records.all.get(uid) != Some(&record) {
                records.all.insert(uid.to_owned(), record);
                records.generation += 1;
            }
            records.generation
        };
        self.save(generation).await
    }

    /// Forgets a pod.
    pub async fn remove(&self, uid: &str) -> std::io::Result<()> {
        let generation = {
            let mut records = self.records.lock();
            if records.all.remove(uid).is_some() {
                records.generation += 1;
            }
            records.generation
        };
        self.save(generation).await
    }

    /// Removes the file.
    pub fn erase(&self) -> std::io::Result<()> {
        self.records.lock().all.clear();
        match std::fs::remove_file(&self.file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    async fn save(&self, generation: u64) -> std::io::Result<()> {
        let work = async {
            let (text, generation) = {
                let records = self.records.lock();
                (serde_json::to_vec(&records.all)?, records.generation)
            };
            // It need not survive a power cut: neither does any pod's namespace.
            new_content(&self.file, &text, 0o600)?.persist(&self.file).map_err(|error| error.error)?;
            Ok(generation)
        };
        self.turns.reach(generation, work).await
    }
}

/// Replaces a file in one step: readers see the old content or the new one.
pub fn replace(file: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    let new = new_content(file, content, mode)?;
    new.as_file().sync_all()?;
    new.persist(file).map_err(|error| error.error)?;
    Ok(())
}

fn new_content(file: &Path, content: &[u8], mode: u32) -> std::io::Result<tempfile::NamedTempFile> {
    use std::os::unix::fs::PermissionsExt;
    let directory = file.parent().unwrap_or(Path::new("/"));
    let mut new = tempfile::Builder::new().prefix(".ambit-").suffix(".tmp").tempfile_in(directory)?;
    new.write_all(content)?;
    new.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
    Ok(new)
}
