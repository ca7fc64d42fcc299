//! Where the node's runtime looks for network configurations and plugins: what the node itself shows decides.
//!
//! Distributions keep them in different directories and move them. Looked at, in this order: what the configuration
//! of the node's container runtime names, the directories that were mounted for us, the known layouts. A directory
//! of plugins counts only if the plugins that the network configuration names already are in it: that is where the
//! runtime searches, and a configuration that names a plugin in any other directory would stop every pod of the
//! node. Reads, never writes.

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::{Error, PLUGIN, conflist};
use crate::config::CniInstall;

/// The place of one installation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The network configuration to extend.
    pub conf: PathBuf,
    /// The directory that the runtime searches for plugins.
    pub bin_dir: PathBuf,
    /// How both were found.
    pub found_by: String,
}

/// Configurations of container runtimes, by distribution: the first that is there and names directories counts.
const RUNTIMES: [(&str, &str); 7] = [
    ("k3s", "var/lib/rancher/k3s/agent/etc/containerd/config.toml"),
    ("RKE2", "var/lib/rancher/rke2/agent/etc/containerd/config.toml"),
    ("MicroK8s", "var/snap/microk8s/current/args/containerd.toml"),
    ("k0s", "run/k0s/containerd-cri.toml"),
    ("CRI-O", "etc/crio/crio.conf.d/10-crio.conf"),
    ("CRI-O", "etc/crio/crio.conf"),
    ("containerd", "etc/containerd/config.toml"),
];

/// Known layouts: directory of configurations, directories of plugins.
const LAYOUTS: [(&str, &str, &[&str]); 6] = [
    (
        "k3s",
        "var/lib/rancher/k3s/agent/etc/cni/net.d",
        &["var/lib/rancher/k3s/data/cni", "var/lib/rancher/k3s/data/current/bin", "bin"],
    ),
    ("MicroK8s", "var/snap/microk8s/current/args/cni-network", &["var/snap/microk8s/current/opt/cni/bin"]),
    ("OpenShift", "etc/cni/multus/net.d", &["var/lib/cni/bin"]),
    ("OpenShift", "etc/kubernetes/cni/net.d", &["var/lib/cni/bin"]),
    ("GKE", "etc/cni/net.d", &["home/kubernetes/bin"]),
    ("plain", "etc/cni/net.d", &["opt/cni/bin", "usr/libexec/cni", "usr/lib/cni"]),
];

/// Directories that belong together.
struct Candidate {
    found_by: String,
    net_dir: PathBuf,
    bin_dirs: Vec<PathBuf>,
}

/// Finds the place. Without one nothing of the node is to be changed.
pub fn find(place: &CniInstall) -> Result<Place, Error> {
    let mut missing = None;
    for candidate in candidates(place) {
        let Some((conf, types)) = primary(&candidate.net_dir, place.conf_name.as_deref())? else { continue };
        // Some runtimes search several directories; ours goes where most of the others are.
        let count = |dir: &PathBuf| types.iter().filter(|kind| is_program(&dir.join(kind))).count();
        let best = candidate.bin_dirs.iter().map(|dir| (count(dir), dir)).fold(None, |best, next| {
            if best.is_some_and(|(most, _)| most >= next.0) { best } else { Some(next) }
        });
        match best {
            Some((count, dir)) if count > 0 || types.is_empty() => {
                return Ok(Place { conf, bin_dir: dir.clone(), found_by: candidate.found_by });
            }
            _ => {
                missing.get_or_insert(Error::NotSearched { conf, types, looked: candidate.bin_dirs });
            }
        }
    }
    Err(missing.unwrap_or_else(|| Error::NoNetwork(place.net_dir.clone())))
}

/// All directories of configurations that could ever have been extended.
pub fn net_dirs(place: &CniInstall) -> Vec<PathBuf> {
    distinct(candidates(place).into_iter().map(|candidate| candidate.net_dir))
}

/// All directories of plugins that could ever have been used.
pub fn bin_dirs(place: &CniInstall) -> Vec<PathBuf> {
    distinct(candidates(place).into_iter().flat_map(|candidate| candidate.bin_dirs))
}

/// Each directory once, however many names lead to it.
fn distinct(all: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    use std::os::unix::fs::MetadataExt;
    let mut seen = std::collections::BTreeSet::new();
    all.filter(|dir| std::fs::metadata(dir).is_ok_and(|there| seen.insert((there.dev(), there.ino()))))
        .collect()
}

fn candidates(place: &CniInstall) -> Vec<Candidate> {
    let named = || Candidate {
        found_by: "mounted".to_owned(),
        net_dir: place.net_dir.clone(),
        bin_dirs: vec![place.bin_dir.clone()],
    };
    let Some(root) = &place.node_root else { return vec![named()] };
    let mut all = Vec::new();
    for (name, file) in RUNTIMES {
        let Ok(text) = std::fs::read_to_string(resolve(root, Path::new(file))) else { continue };
        let (confs, bins) = (
            values(&text, &["conf_dir", "network_dir"]),
            values(&text, &["bin_dir", "bin_dirs", "plugin_dirs"]),
        );
        if bins.is_empty() {
            continue;
        }
        let below = |path: &String| resolve(root, Path::new(path));
        let net_dir = confs.first().map_or_else(|| resolve(root, Path::new("etc/cni/net.d")), below);
        let bin_dirs = bins.iter().map(below).collect();
        all.push(Candidate { found_by: format!("configuration of {name}, /{file}"), net_dir, bin_dirs });
    }
    all.push(named());
    for (name, net_dir, bin_dirs) in LAYOUTS {
        let bin_dirs = bin_dirs.iter().map(|dir| resolve(root, Path::new(dir))).collect();
        all.push(Candidate {
            found_by: format!("layout of {name}"),
            net_dir: resolve(root, Path::new(net_dir)),
            bin_dirs,
        });
    }
    all
}

/// The configuration that the runtime uses, and the plugins it names: the first valid one, or the one that was named.
fn primary(dir: &Path, name: Option<&str>) -> Result<Option<(PathBuf, Vec<String>)>, Error> {
    if let Some(name) = name {
        let named = dir.join(name);
        let other = if named.extension().is_some_and(|e| e == "conf") { "conflist" } else { "conf" };
        let twin = named.with_extension(other);
        let Some(path) = [named, twin].into_iter().find(|path| path.exists()) else { return Ok(None) };
        let types = read(&path).map(|config| types(&config)).unwrap_or_default();
        return Ok(Some((path, types)));
    }
    for path in super::configurations(dir)? {
        let list = path.extension().is_some_and(|ext| ext == "conflist");
        if let Some(config) = read(&path)
            && conflist::is_valid(&config, list)
        {
            return Ok(Some((path, types(&config))));
        }
    }
    Ok(None)
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()
}

/// The plugins a configuration names, without ours.
fn types(config: &Value) -> Vec<String> {
    let of = |plugin: &Value| plugin.get("type").and_then(Value::as_str).map(str::to_owned);
    let all: Vec<String> = match config.get("plugins").and_then(Value::as_array) {
        Some(plugins) => plugins.iter().filter_map(of).collect(),
        None => of(config).into_iter().collect(),
    };
    all.into_iter().filter(|kind| kind != PLUGIN && !kind.contains('/')).collect()
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(path).is_ok_and(|there| there.is_file() && there.permissions().mode() & 0o111 != 0)
}

/// `path` as the node sees it, below `root`: links are followed within the root, as on the node itself.
pub fn resolve(root: &Path, path: &Path) -> PathBuf {
    let mut rest: Vec<PathBuf> = vec![path.to_owned()];
    let mut real = PathBuf::new();
    let mut links = 0;
    while let Some(next) = rest.pop() {
        let mut components = next.components();
        let Some(first) = components.next() else { continue };
        let after = components.as_path().to_owned();
        if !after.as_os_str().is_empty() {
            rest.push(after);
        }
        match first {
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            Component::ParentDir => {
                real.pop();
            }
            Component::Normal(name) => match std::fs::read_link(root.join(&real).join(name)) {
                // A loop ends here, and what it leads to does not exist.
                Ok(target) if links < 40 => {
                    links += 1;
                    if target.is_absolute() {
                        real.clear();
                    }
                    rest.push(target);
                }
                _ => real.push(name),
            },
        }
    }
    root.join(real)
}

/// The values of some keys in a TOML file: strings and lists of strings, in whatever section they stand. It is not
/// a TOML parser: these files are templates now and then, and one odd line must not hide the others.
fn values(text: &str, keys: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    while let Some(line) = lines.next() {
        let Some((key, value)) = line.split_once('=') else { continue };
        if !keys.contains(&key.trim().trim_matches('"')) {
            continue;
        }
        let mut value = value.trim().to_owned();
        if value.starts_with('[') {
            while !value.contains(']') {
                let Some(more) = lines.next() else { break };
                value.push_str(more);
            }
        }
        let quoted = value.split(['"', '\'']).skip(1).step_by(2);
        found.extend(quoted.filter(|path| path.starts_with('/')).map(str::to_owned));
    }
    found
}

#[cfg(test)]
mod tests;
