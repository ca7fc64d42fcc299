//! Finding the network namespace of a pod that is running already.
//!
//! In this order: what CNI ADD told (the caller keeps it, see [`remembered`]), the bind mounts that container
//! runtimes make in `/run/netns`, and last a walk over the node's processes by their cgroup. Each candidate must
//! carry one of the pod's addresses, and a process only counts for the pod whose UID stands *first* in its cgroup
//! path, so a debug process that joined a foreign namespace, or a pod that gave itself another one's address,
//! never makes one pod's UID stand for another's namespace. The bind mounts are made by root of the node alone;
//! a pod cannot add to them.
//!
//! Everything here blocks; call it from a blocking thread.

pub mod remembered;

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use netns::{NetNs, NetNsId};
use nix::ifaddrs::getifaddrs;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Finder {
    /// The node's `/proc`.
    pub host_proc: PathBuf,
    /// Where the node's file system is mounted.
    pub host_root: PathBuf,
}

/// Which pods are looked for: addresses by UID.
pub type Wanted = BTreeMap<String, Vec<IpAddr>>;

impl Finder {
    /// Looks for all of `wanted` in one pass. A pod without addresses is never found.
    pub fn find(&self, wanted: &Wanted) -> BTreeMap<String, NetNs> {
        let mut missing: Wanted = wanted.iter().filter(|(_, ips)| !ips.is_empty()).map(own).collect();
        let mut found = BTreeMap::new();
        if !missing.is_empty() {
            self.in_mounts(&mut missing, &mut found);
        }
        if !missing.is_empty() {
            self.in_processes(&missing, &mut found);
        }
        found
    }

    /// Opens a path told by the container runtime: below the node's root if it is there, else as it is.
    pub fn open(&self, path: &str) -> Result<NetNs, netns::Error> {
        NetNs::open(self.locate(Path::new(path)))
    }

    fn locate(&self, path: &Path) -> PathBuf {
        let below = |path: &Path| self.host_root.join(path.strip_prefix("/").unwrap_or(path));
        let mut candidates = vec![below(path)];
        // /var/run is a link to /run on most nodes, and which of the two is mounted differs.
        if let Ok(rest) = path.strip_prefix("/var/run") {
            candidates.push(below(&Path::new("/run").join(rest)));
        } else if let Ok(rest) = path.strip_prefix("/run") {
            candidates.push(below(&Path::new("/var/run").join(rest)));
        }
        candidates.into_iter().find(|candidate| candidate.exists()).unwrap_or_else(|| path.to_owned())
    }

    fn in_mounts(&self, missing: &mut Wanted, found: &mut BTreeMap<String, NetNs>) {
        let mut seen = self.own();
        let directories = [
            self.host_root.join("run/netns"),
            self.host_root.join("var/run/netns"),
            PathBuf::from("/run/netns"),
        ];
        for entry in directories.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten() {
            let Ok(namespace) = NetNs::open(entry.path()) else { continue };
            if !seen.insert(namespace.id()) {
                continue;
            }
            let Ok(addresses) = addresses(&namespace) else { continue };
            let owner = missing.iter().find(|(_, ips)| owns(&addresses, ips)).map(|(uid, _)| uid.clone());
            if let Some(uid) = owner {
                missing.remove(&uid);
                found.insert(uid, namespace);
            }
        }
    }

    fn in_processes(&self, missing: &Wanted, found: &mut BTreeMap<String, NetNs>) {
        let own = self.own();
        let Ok(processes) = std::fs::read_dir(&self.host_proc) else { return };
        // The oldest process of a pod is the one that was there before anybody could join.
        let mut oldest: BTreeMap<String, u64> = BTreeMap::new();
        for entry in processes.flatten() {
            let name = entry.file_name();
            if !name.to_string_lossy().bytes().all(|b| b.is_ascii_digit()) {
                continue;
            }
            let Some(uid) =
                std::fs::read_to_string(entry.path().join("cgroup")).ok().and_then(|t| pod_of_cgroup(&t))
            else {
                continue;
            };
            let Some(ips) = missing.get(&uid) else { continue };
            let Some(start) =
                std::fs::read_to_string(entry.path().join("stat")).ok().and_then(|t| start_time(&t))
            else {
                continue;
            };
            if oldest.get(&uid).is_some_and(|known| *known <= start) {
                continue;
            }
            let Ok(namespace) = NetNs::open(entry.path().join("ns/net")) else { continue };
            if own.contains(&namespace.id()) || !addresses(&namespace).is_ok_and(|there| owns(&there, ips)) {
                continue;
            }
            oldest.insert(uid.clone(), start);
            found.insert(uid, namespace);
        }
    }

    fn own(&self) -> HashSet<NetNsId> {
        [NetNs::current(), NetNs::open(self.host_proc.join("1/ns/net"))]
            .into_iter()
            .flatten()
            .map(|namespace| namespace.id())
            .collect()
    }
}

fn own((uid, ips): (&String, &Vec<IpAddr>)) -> (String, Vec<IpAddr>) {
    (uid.clone(), ips.clone())
}

fn owns(there: &[IpAddr], ips: &[IpAddr]) -> bool {
    ips.iter().any(|ip| there.contains(&ip.to_canonical()))
}

/// The addresses of all interfaces in a namespace.
pub fn addresses(namespace: &NetNs) -> Result<Vec<IpAddr>, netns::Error> {
    namespace.try_run(|| {
        Ok(getifaddrs()?
            .filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
                    .map(|ip| ip.to_canonical())
            })
            .collect())
    })
}

/// The pod UID in the cgroups of a process: the first `pod<uid>` of each path, provided that all of them agree.
/// UIDs may be written with `_` (systemd slices); what is returned has `-`.
pub fn pod_of_cgroup(text: &str) -> Option<String> {
    let mut uid: Option<String> = None;
    for line in text.lines() {
        let path = line.splitn(3, ':').nth(2)?;
        let Some(found) = first_pod(path) else { continue };
        match &uid {
            Some(known) if *known != found => return None,
            _ => uid = Some(found),
        }
    }
    uid
}

fn first_pod(path: &str) -> Option<String> {
    path.match_indices("pod").find_map(|(at, _)| {
        let before = path[..at].chars().next_back();
        let text = path.get(at + 3..at + 3 + 36)?;
        let after = path[at + 3 + 36..].chars().next();
        let bounded = |c: Option<char>| c.is_none_or(|c| c.is_ascii_punctuation());
        let shaped = text.char_indices().all(|(i, c)| match i {
            8 | 13 | 18 | 23 => c == '-' || c == '_',
            _ => c.is_ascii_hexdigit(),
        });
        (bounded(before) && bounded(after) && shaped).then(|| text.replace('_', "-"))
    })
}

/// Field 22 of `/proc/<pid>/stat`; the command name before it may contain anything.
fn start_time(stat: &str) -> Option<u64> {
    stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests;
