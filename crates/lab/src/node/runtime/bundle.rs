//! The OCI bundle of a container: a pure function from what a container is to runc's `config.json`.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};

/// A bind mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Where it comes from, inside the node.
    pub source: PathBuf,
    /// Where it shows in the container.
    pub target: String,
    /// Whether it cannot be written.
    pub read_only: bool,
    /// How later mounts travel.
    pub propagation: Propagation,
}

/// How mounts made later travel between node and container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Propagation {
    /// Not at all.
    #[default]
    None,
    /// From the node into the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// Everything runc needs to know of a container.
#[derive(Clone, Debug, Default)]
pub struct Bundle {
    /// Words to run.
    pub args: Vec<String>,
    /// `NAME=value` lines.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// User and group.
    pub user: (u32, u32),
    /// Further groups.
    pub groups: Vec<u32>,
    /// Capabilities, `CAP_…`.
    pub capabilities: Vec<String>,
    /// No privilege may be gained by executing a file.
    pub no_new_privileges: bool,
    /// Sees the devices and unmasked files of the node.
    pub privileged: bool,
    /// The root file system cannot be written.
    pub read_only_root: bool,
    /// Shares the pid namespace of the node.
    pub host_pid: bool,
    /// Shares the IPC namespace of the node.
    pub host_ipc: bool,
    /// Host name; nothing shares the node's UTS namespace.
    pub hostname: Option<String>,
    /// Path of the network namespace.
    pub netns: String,
    /// The cgroup, `/ambit-<lab>/<node>/pod<uid>/<container>`.
    pub cgroup: String,
    /// Kernel parameters of the pod.
    pub sysctls: BTreeMap<String, String>,
    /// Bind mounts in whatever order.
    pub binds: Vec<Bind>,
}

const TMPFS: [&str; 3] = ["nosuid", "nodev", "mode=1777"];

impl Bundle {
    /// runc's `config.json`; the root file system is `rootfs` beside it.
    pub fn config(&self) -> Value {
        let caps = &self.capabilities;
        let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "network", "path": self.netns})];
        if !self.host_pid {
            namespaces.push(json!({"type": "pid"}));
        }
        if !self.host_ipc {
            namespaces.push(json!({"type": "ipc"}));
        }
        if self.hostname.is_some() {
            namespaces.push(json!({"type": "uts"}));
        }
        let bidirectional = self.binds.iter().any(|b| b.propagation == Propagation::Bidirectional);
        let mut config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false,
                "user": {"uid": self.user.0, "gid": self.user.1, "additionalGids": self.groups},
                "args": self.args,
                "env": self.env,
                "cwd": self.cwd,
                "capabilities": {"bounding": caps, "effective": caps, "permitted": caps},
                "noNewPrivileges": self.no_new_privileges,
            },
            "root": {"path": "rootfs", "readonly": self.read_only_root},
            "mounts": self.mounts(),
            "linux": {
                "cgroupsPath": self.cgroup,
                "namespaces": namespaces,
                "resources": {"devices": [{"allow": self.privileged, "access": "rwm"}]},
                "rootfsPropagation": if bidirectional { "rshared" } else { "rslave" },
                "sysctl": self.sysctls,
            },
        });
        if let Some(hostname) = &self.hostname {
            config["hostname"] = json!(hostname);
        }
        if !self.privileged {
            config["linux"]["maskedPaths"] = json!([
                "/proc/acpi",
                "/proc/asound",
                "/proc/kcore",
                "/proc/keys",
                "/proc/latency_stats",
                "/proc/timer_list",
                "/proc/timer_stats",
                "/proc/sched_debug",
                "/sys/firmware",
                "/proc/scsi"
            ]);
            config["linux"]["readonlyPaths"] =
                json!(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
        }
        config
    }

    fn mounts(&self) -> Vec<Value> {
        let sys = if self.privileged { "rw" } else { "ro" };
        let mut mounts = vec![
            mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount(
                "/dev/pts",
                "devpts",
                "devpts",
                &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
            ),
            mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]),
            mount("/tmp", "tmpfs", "tmpfs", &TMPFS),
            mount("/run", "tmpfs", "tmpfs", &["nosuid", "nodev", "mode=755"]),
        ];
        let mut binds: Vec<(String, &Bind)> = self.binds.iter().map(|b| (tidy(&b.target), b)).collect();
        binds.sort_by_key(|(target, _)| target.matches('/').count());
        // What a pod mounts itself takes the place of the base's own.
        mounts.retain(|m| !binds.iter().any(|(target, _)| m["destination"] == *target));
        mounts.extend(binds.into_iter().map(|(target, bind)| {
            let propagation = match bind.propagation {
                Propagation::None => "rprivate",
                Propagation::HostToContainer => "rslave",
                Propagation::Bidirectional => "rshared",
            };
            let access = if bind.read_only { "ro" } else { "rw" };
            mount(&target, "bind", &bind.source.to_string_lossy(), &["rbind", propagation, access])
        }));
        mounts
    }
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": target, "type": kind, "source": source, "options": options})
}

/// A target path without detours; `/var/run` is a link to `/run`.
pub fn tidy(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => parts.push(name.to_str().unwrap_or_default()),
            Component::ParentDir => drop(parts.pop()),
            _ => {}
        }
    }
    if parts.starts_with(&["var", "run"]) {
        parts.remove(0);
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(bundle: &Bundle) -> Vec<String> {
        bundle.mounts().iter().map(|m| m["destination"].as_str().unwrap_or_default().to_owned()).collect()
    }

    fn bind(target: &str) -> Bind {
        Bind {
            source: "/s".into(),
            target: target.to_owned(),
            read_only: true,
            propagation: Propagation::None,
        }
    }

    #[test]
    fn both_names_of_run_are_one_place() {
        assert_eq!(tidy("/var/run/secrets/x/"), "/run/secrets/x");
        assert_eq!(tidy("/var/running"), "/var/running");
        assert_eq!(tidy("/a/../b/./c"), "/b/c");
    }

    #[test]
    fn outer_mounts_come_before_inner_ones() {
        let bundle = Bundle {
            binds: vec![bind("/data/a/b"), bind("/var/run/x"), bind("/data")],
            ..Default::default()
        };
        let targets = targets(&bundle);
        let at = |t: &str| targets.iter().position(|x| x == t).unwrap();
        assert!(at("/data") < at("/data/a/b"));
        assert!(at("/run") < at("/run/x"));
    }

    #[test]
    fn a_volume_takes_the_place_of_the_private_tmp() {
        let bundle = Bundle { binds: vec![bind("/tmp")], ..Default::default() };
        assert_eq!(targets(&bundle).iter().filter(|t| *t == "/tmp").count(), 1);
    }

    #[test]
    fn a_pod_that_shares_the_pid_namespace_gets_none_of_its_own() {
        let kinds = |bundle: Bundle| bundle.config()["linux"]["namespaces"].to_string();
        assert!(kinds(Bundle::default()).contains("\"pid\""));
        assert!(!kinds(Bundle { host_pid: true, ..Default::default() }).contains("\"pid\""));
    }
}
