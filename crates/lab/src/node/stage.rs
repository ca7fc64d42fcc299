//! The three lives of a node's process: furnish the mount namespace, be its init, be the kubelet.
//!
//! `furnish` is PID 1 in the host's network namespace and ends by becoming `init`, still PID 1, in the node's
//! network namespace: `/proc/1/ns/net` must be "the host" for node agents. `init` starts the kubelet back in the
//! host's network namespace, from where it reaches the API server, and reaps what is orphaned. When PID 1 ends,
//! the kernel ends every process and unmounts everything.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::wait::{WaitStatus, waitpid};

use super::config::Config;
use super::layout;

/// The environment variable that says which life it is.
pub const VARIABLE: &str = "AMBIT_LAB_NODE_STAGE";

/// Which life it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Make the mounts.
    Furnish,
    /// Be PID 1.
    Init,
    /// Be the kubelet.
    Kubelet,
}

impl Stage {
    /// Which life this process is in.
    pub fn current() -> anyhow::Result<Self> {
        Self::of(std::env::var(VARIABLE).ok().as_deref(), std::process::id())
    }

    fn of(named: Option<&str>, pid: u32) -> anyhow::Result<Self> {
        match (named, pid) {
            (None, 1) => Ok(Self::Furnish),
            (Some("init"), 1) => Ok(Self::Init),
            (Some("kubelet"), _) => Ok(Self::Kubelet),
            _ => bail!("a lab node runs in namespaces of its own: start it with `ambit lab up`"),
        }
    }
}

/// Makes the node's private file systems and goes on as [`Stage::Init`]; returns only to say what failed.
pub fn furnish(config: &Config) -> anyhow::Result<()> {
    let hidden = Hidden::open(config)?;
    bind(Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE)?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), Some("mode=0755,size=60%"))
        .context("cannot mount a private /run")?;
    for dir in
        [layout::OWN, layout::RUNC_ROOT, layout::CONTAINERS, layout::NETNS_DIR, "/run/lock", "/run/secrets"]
    {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {dir}"))?;
    }
    hidden.restore()?;
    for (top, name) in [("/etc", "etc"), ("/opt", "opt"), ("/var", "var")] {
        overlay(top, &Path::new(layout::OWN).join("node").join(name))?;
    }
    restore_resolv_conf(&hidden.resolv_conf)?;
    // What is mounted now must show in containers that ask for it (`mountPropagation: HostToContainer`).
    bind(Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_SHARED)?;
    furnish_directories()?;

    let error = enter(layout::NODE_NETNS, config, "init")?.exec();
    Err(error).context("cannot go on as the node's init process (is nsenter installed?)")
}

/// Is PID 1: starts the kubelet, reaps orphans, and ends when the kubelet ends, when the process that started
/// the node is gone, or on SIGTERM (by not surviving it: everything else ends with it).
pub fn init(config: &Config) -> anyhow::Result<()> {
    let kubelet = enter(layout::HOST_NETNS, config, "kubelet")?
        .stdin(std::process::Stdio::null())
        .spawn()
        .context("cannot start the kubelet")?;
    let kubelet = nix::unistd::Pid::from_raw(kubelet.id() as i32);
    std::thread::spawn(|| {
        let mut end = [0u8; 16];
        // Nobody writes to this pipe: it ends when the process that started the node does.
        while matches!(std::io::stdin().read(&mut end), Ok(n) if n > 0) {}
        std::process::exit(0);
    });
    loop {
        match waitpid(None, None) {
            Ok(WaitStatus::Exited(pid, code)) if pid == kubelet => std::process::exit(code),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == kubelet => {
                eprintln!("the kubelet was ended by {signal}");
                std::process::exit(128 + signal as i32)
            }
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => bail!("cannot wait for the kubelet: {error}"),
        }
    }
}

/// Hides the way back to the host's network namespace from pods, once the kubelet stands in it.
pub fn forget_host_netns() {
    let _ = umount2(layout::HOST_NETNS, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(layout::HOST_NETNS);
}

/// The same program again in another network namespace.
fn enter(netns: &str, config: &Config, stage: &str) -> anyhow::Result<Command> {
    let file = config.state_dir.join("config.json");
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net={netns}"))
        .arg("--")
        .arg(&config.binary)
        .args(["lab", "node", "--config"])
        .arg(file)
        .env(VARIABLE, stage);
    Ok(command)
}

/// What lies under the host's `/run` and must stay reachable once that is hidden.
struct Hidden {
    paths: Vec<(PathBuf, File)>,
    host_netns: File,
    node_netns: File,
    resolv_conf: Vec<u8>,
}

impl Hidden {
    fn open(config: &Config) -> anyhow::Result<Self> {
        let mut paths = Vec::new();
        for path in [&config.state_dir, &config.kubeconfig, &config.binary] {
            let real = path
                .canonicalize()
                .with_context(|| format!("node {}: {} cannot be found", config.name, path.display()))?;
            if real.starts_with("/run") {
                let file = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_PATH).open(&real)?;
                paths.push((real, file));
            }
        }
        let node_netns = File::open(&config.netns).with_context(|| {
            format!("node {}: no network namespace {}", config.name, config.netns.display())
        })?;
        Ok(Self {
            paths,
            host_netns: File::open("/proc/self/ns/net")?,
            node_netns,
            resolv_conf: fs::read("/etc/resolv.conf").unwrap_or_default(),
        })
    }

    fn restore(&self) -> anyhow::Result<()> {
        for (path, file) in &self.paths {
            if path.exists() {
                continue; // lies below one that is back already
            }
            if file.metadata()?.is_dir() {
                fs::create_dir_all(path)?;
            } else {
                if let Some(parent) = path.parent() {
                    fs::create_dir_all(parent)?;
                }
                File::create(path)?;
            }
            bind_file(file, path)?;
        }
        for (file, target) in [(&self.host_netns, layout::HOST_NETNS), (&self.node_netns, layout::NODE_NETNS)]
        {
            File::create(target)?;
            bind_file(file, Path::new(target))?;
        }
        fs::write(layout::RESOLV_CONF, &self.resolv_conf)?;
        Ok(())
    }
}

/// Binds what an open descriptor stands for, whose path may be covered by now.
fn bind_file(file: &File, target: &Path) -> anyhow::Result<()> {
    bind(target, Some(&PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))), MsFlags::MS_BIND)
}

fn bind(target: &Path, source: Option<&Path>, flags: MsFlags) -> anyhow::Result<()> {
    mount(source, target, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("cannot mount on {} (CAP_SYS_ADMIN is needed)", target.display()))
}

/// Covers a directory of the host by one that reads the same and keeps what is written to itself.
fn overlay(top: &str, layers: &Path) -> anyhow::Result<()> {
    let (upper, work) = (layers.join("upper"), layers.join("work"));
    fs::create_dir_all(&upper)?;
    fs::create_dir_all(&work)?;
    let options = format!("lowerdir={top},upperdir={},workdir={}", upper.display(), work.display());
    mount(Some("overlay"), top, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .with_context(|| format!("cannot cover {top} by a private layer (is overlayfs available?)"))
}

/// `/etc/resolv.conf` is often a link to a file under `/run`, which is hidden now.
fn restore_resolv_conf(content: &[u8]) -> anyhow::Result<()> {
    let path = Path::new("/etc/resolv.conf");
    if path.is_symlink() {
        fs::remove_file(path)?;
        fs::write(path, content)?;
    }
    Ok(())
}

fn furnish_directories() -> anyhow::Result<()> {
    // Sockets and token files of pods live here; an overlay would do for neither hard links nor fsync-heavy use.
    fs::create_dir_all("/var/lib/kubelet")?;
    mount(Some("tmpfs"), "/var/lib/kubelet", Some("tmpfs"), MsFlags::empty(), Some("mode=0755,size=60%"))
        .context("cannot mount /var/lib/kubelet")?;
    for dir in [
        layout::CNI_CONF,
        layout::CNI_BIN,
        "/var/lib/cni",
        layout::PODS,
        layout::POD_LOGS,
        layout::CONTAINER_LOGS,
    ] {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {dir}"))?;
    }
    let plugins = Path::new("/usr/lib/cni");
    let entries = fs::read_dir(plugins)
        .context("no CNI plugins in /usr/lib/cni: install the package containernetworking-plugins")?;
    for entry in entries.flatten() {
        let link = Path::new(layout::CNI_BIN).join(entry.file_name());
        if !link.exists() {
            std::os::unix::fs::symlink(entry.path(), link)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_does_not_run_outside_its_namespaces() {
        assert_eq!(Stage::of(None, 1).unwrap(), Stage::Furnish);
        assert_eq!(Stage::of(Some("init"), 1).unwrap(), Stage::Init);
        assert_eq!(Stage::of(Some("kubelet"), 7).unwrap(), Stage::Kubelet);
        for (named, pid) in [(None, 4711), (Some("init"), 4711), (Some("other"), 1)] {
            let error = Stage::of(named, pid).unwrap_err().to_string();
            assert!(error.contains("ambit lab up"), "{error}");
        }
    }
}
