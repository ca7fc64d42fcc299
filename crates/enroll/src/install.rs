//! Installs the CNI plugin on the node, keeps it installed, and takes it away again.
//!
//! The binary goes into the directory of plugins, one entry goes last into the network configuration the runtime
//! uses, and nothing else of that configuration changes ([`conflist`]). Others edit the same file: [`Installer::ensure`]
//! is called again and again and writes only when something is amiss. Every file is replaced in one step, so at no
//! moment is the configuration missing or half written; what it looked like before is kept beside it and put back
//! by [`Installer::uninstall`].

pub mod conflist;
pub mod places;

use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::CniInstall;

/// Name of the installed binary and type of the entry.
pub const PLUGIN: &str = "ambit-cni";
/// File of a configuration of our own, unless it is named.
const OWN: &str = "ambit-cni.conf";
/// Version of the specification that it is written in: the newest that every meta plugin in use understands.
const OWN_VERSION: &str = "0.3.1";
/// What a configuration looked like before is kept under its own name with this after it.
const BEFORE: &str = ".before-ambit";

/// Why the plugin is not installed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime has no network configuration that could be extended (yet).
    #[error("no network configuration in {0} yet: waiting for the cluster's CNI to write one")]
    NoNetwork(PathBuf),
    /// The plugins that the configuration names are in no directory we know of: neither would ours be found.
    #[error(
        "the plugins {} of the network configuration {conf} are in none of {}: the node's runtime searches \
         elsewhere; name its directory with cni.binDir. Nothing was changed", types.join(", "), paths(looked)
    )]
    NotSearched {
        /// The configuration.
        conf: PathBuf,
        /// What it names.
        types: Vec<String>,
        /// Where we looked.
        looked: Vec<PathBuf>,
    },
    /// The named configuration is missing or cannot be understood.
    #[error("the network configuration {path} cannot be extended: {reason}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// Which step.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn paths(all: &[PathBuf]) -> String {
    all.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// What [`Installer::ensure`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// Whether anything was amiss.
    pub changed: bool,
    /// Where the plugin is.
    pub place: places::Place,
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Io { what, path: path.to_owned(), source }
}

/// Keeps the plugin installed.
#[derive(Clone, Debug)]
pub struct Installer {
    place: CniInstall,
    /// The entry to add.
    entry: Value,
}

impl Installer {
    /// An installer that adds `entry`, see [`conflist::entry`].
    pub fn new(place: CniInstall, entry: Value) -> Self {
        Self { place, entry }
    }

    /// Makes good whatever is amiss. The entry is written only once the binary is in a directory that the runtime
    /// searches.
    pub fn ensure(&self) -> Result<Done, Error> {
        if !self.place.chained {
            return self.ensure_own();
        }
        let place = places::find(&self.place)?;
        let binary = self.ensure_binary(&place.bin_dir)?;
        let entry = self.ensure_entry(&place.conf)?;
        Ok(Done { changed: binary || entry, place })
    }

    /// A configuration of our own beside the cluster's, in the two directories that were named: who calls it reads
    /// it there, and no runtime does, so nothing can be detected and nobody else's file is touched.
    fn ensure_own(&self) -> Result<Done, Error> {
        let place = places::Place {
            conf: self.own_file(),
            bin_dir: self.place.bin_dir.clone(),
            found_by: "named, a configuration of its own".to_owned(),
        };
        let binary = self.ensure_binary(&place.bin_dir)?;
        let mut wanted = serde_json::json!({"cniVersion": OWN_VERSION});
        if let (Value::Object(wanted), Value::Object(entry)) = (&mut wanted, &self.entry) {
            wanted.extend(entry.clone());
        }
        let there = read_json(&place.conf).is_some_and(|(_, there)| there == wanted);
        if !there {
            replace(&place.conf, conflist::text(&wanted).as_bytes(), 0o600)?;
        }
        Ok(Done { changed: binary || !there, place })
    }

    fn own_file(&self) -> PathBuf {
        self.place.net_dir.join(self.place.conf_name.as_deref().unwrap_or(OWN))
    }

    fn ensure_binary(&self, bin_dir: &Path) -> Result<bool, Error> {
        let (source, target) = (&self.place.binary, bin_dir.join(PLUGIN));
        let from = std::fs::File::open(source).map_err(io_error("open", source))?;
        let size = from.metadata().map_err(io_error("inspect", source))?.len();
        // Written by us under a temporary name and renamed: the same size at the same age is the same content.
        let marker = bin_dir.join(format!(".{PLUGIN}.of"));
        let stamp = from.metadata().map(|m| format!("{} {} {} {}", m.dev(), m.ino(), size, m.mtime_nsec()));
        let stamp = stamp.map_err(io_error("inspect", source))?;
        let there = std::fs::metadata(&target).is_ok_and(|m| m.is_file() && m.len() == size);
        if there && (same_stamp(&marker, &stamp) || same_content(&from, &target)) {
            return Ok(false);
        }
        let mut new = tempfile::Builder::new()
            .prefix(&format!(".{PLUGIN}."))
            .tempfile_in(bin_dir)
            .map_err(io_error("write into", bin_dir))?;
        let mut from = std::fs::File::open(source).map_err(io_error("open", source))?;
        io::copy(&mut from, new.as_file_mut()).map_err(io_error("write", &target))?;
        let mode = std::fs::Permissions::from_mode(0o755);
        new.as_file().set_permissions(mode).map_err(io_error("write", &target))?;
        new.persist(&target).map_err(|error| error.error).map_err(io_error("write", &target))?;
        let _ = std::fs::write(&marker, stamp);
        Ok(true)
    }

    fn ensure_entry(&self, path: &Path) -> Result<bool, Error> {
        let text = std::fs::read_to_string(path).map_err(io_error("read", path))?;
        let unusable = |reason: String| Error::Unusable { path: path.to_owned(), reason };
        let config: Value = serde_json::from_str(&text).map_err(|error| unusable(error.to_string()))?;
        let list = path.extension().is_none_or(|ext| ext == "conflist");
        let wanted = conflist::with_entry(&config, &self.entry, list).map_err(unusable)?;
        if list && wanted == config {
            return Ok(false);
        }
        let mode = mode(path);
        if list {
            if !conflist::has_entry(&config, PLUGIN) {
                replace(&before(path), text.as_bytes(), mode)?;
            }
            replace(path, conflist::text(&wanted).as_bytes(), mode)?;
        } else {
            // The list is complete before the single configuration steps aside; while both are there, the single
            // one is the first of them and is used as before.
            replace(&path.with_extension("conflist"), conflist::text(&wanted).as_bytes(), mode)?;
            std::fs::rename(path, before(path)).map_err(io_error("rename", path))?;
        }
        Ok(true)
    }

    /// Takes entry and binary away and puts configurations back as they were. Every step is tried; what failed is
    /// told. Doing it twice is no error.
    pub fn uninstall(&self) -> Vec<Error> {
        let mut failed = Vec::new();
        let own = self.own_file();
        let is_ours =
            |(_, config): (String, Value)| config.get("type").and_then(Value::as_str) == Some(PLUGIN);
        if !self.place.chained
            && read_json(&own).is_some_and(is_ours)
            && let Err(source) = std::fs::remove_file(&own)
        {
            failed.push(Error::Io { what: "remove", path: own, source });
        }
        for dir in places::net_dirs(&self.place) {
            match configurations(&dir) {
                Ok(paths) => failed.extend(paths.iter().filter_map(|path| restore(path).err())),
                Err(error) => failed.push(error),
            }
        }
        let binaries = places::bin_dirs(&self.place);
        for path in binaries.iter().flat_map(|dir| [dir.join(PLUGIN), dir.join(format!(".{PLUGIN}.of"))]) {
            if let Err(error) = std::fs::remove_file(&path)
                && error.kind() != io::ErrorKind::NotFound
            {
                failed.push(Error::Io { what: "remove", path, source: error });
            }
        }
        failed
    }
}

/// Takes our entry out of one configuration.
fn restore(path: &Path) -> Result<(), Error> {
    if path.extension().is_none_or(|ext| ext != "conflist") {
        return Ok(());
    }
    let text = std::fs::read_to_string(path).map_err(io_error("read", path))?;
    let Ok(config) = serde_json::from_str::<Value>(&text) else { return Ok(()) };
    if !conflist::has_entry(&config, PLUGIN) {
        return Ok(());
    }
    let without = conflist::without_entry(&config, PLUGIN);
    let list_before = before(path);
    let single = path.with_extension("conf");
    let single_before = before(&single);
    if let Some((text, kept)) = read_json(&single_before)
        && conflist::as_list(&kept).is_ok_and(|list| list == without)
    {
        replace(&single, text.as_bytes(), mode(&single_before))?;
        std::fs::remove_file(path).map_err(io_error("remove", path))?;
    } else if let Some((text, kept)) = read_json(&list_before)
        && kept == without
    {
        replace(path, text.as_bytes(), mode(path))?;
    } else {
        replace(path, conflist::text(&without).as_bytes(), mode(path))?;
    }
    for kept in [list_before, single_before] {
        let _ = std::fs::remove_file(kept);
    }
    Ok(())
}

fn read_json(path: &Path) -> Option<(String, Value)> {
    let text = std::fs::read_to_string(path).ok()?;
    let value = serde_json::from_str(&text).ok()?;
    Some((text, value))
}

/// The configurations of a directory in the order the runtime looks at them.
fn configurations(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(io_error("read", dir)(error)),
    };
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|ext| ext == "conf" || ext == "conflist"))
        .collect();
    paths.sort();
    Ok(paths)
}

fn before(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(BEFORE);
    name.into()
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).map_or(0o600, |metadata| metadata.permissions().mode() & 0o777)
}

fn replace(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    crate::netns_of::remembered::replace(path, content, mode).map_err(io_error("write", path))
}

fn same_stamp(marker: &Path, stamp: &str) -> bool {
    std::fs::read_to_string(marker).is_ok_and(|text| text == stamp)
}

fn same_content(from: &std::fs::File, target: &Path) -> bool {
    let Ok(mut there) = std::fs::File::open(target) else { return false };
    let mut here = from;
    let (mut a, mut b) = (vec![0; 256 * 1024], vec![0; 256 * 1024]);
    loop {
        let (Ok(n), Ok(m)) = (fill(&mut here, &mut a), fill(&mut there, &mut b)) else { return false };
        if a[..n] != b[..m] {
            return false;
        }
        if n == 0 {
            return true;
        }
    }
}

fn fill(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match from.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests;
