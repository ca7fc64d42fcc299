//! The container runtime: overlay root file systems, bundles, and runc in the foreground.
//!
//! A container's root is the host's `/` under a private writable layer, so nothing of the host can be changed.
//! `runc run` stays as long as the container does and answers with its exit status; nothing here decides when
//! a container should run.

pub mod bundle;
pub mod caps;
pub mod env;
pub mod images;
pub mod logs;

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::process::{Child, Command};

use super::layout;
use bundle::Bundle;
use logs::Log;

/// How long runc may take to start a container.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// How long one short runc command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(20);
/// How long output may go on after the container has ended, while a process that left it holds its pipes.
const DRAIN: Duration = Duration::from_millis(500);

/// Why a container did not start.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StartError(String);

impl StartError {
    fn at(what: &str, error: impl std::fmt::Display) -> Self {
        Self(format!("{what}: {error}"))
    }
}

/// A container that has started.
pub struct Running {
    child: Child,
    id: String,
    output: [tokio::task::JoinHandle<()>; 2],
}

/// Starts a container and answers once its process runs.
///
/// `writable` are directories to make in its own layer, owned by its user.
pub async fn start(
    id: &str,
    bundle: &Bundle,
    writable: &[String],
    log: &Path,
) -> Result<Running, StartError> {
    let dir = Path::new(layout::CONTAINERS).join(id);
    let result = try_start(id, &dir, bundle, writable, log).await;
    if result.is_err() {
        remove(&dir);
    }
    result
}

async fn try_start(
    id: &str,
    dir: &Path,
    bundle: &Bundle,
    writable: &[String],
    log: &Path,
) -> Result<Running, StartError> {
    furnish(dir, bundle, writable)?;
    let pid_file = dir.join("pid");
    let complaints = dir.join("runc.log");
    let mut child = runc()
        .arg("--log")
        .arg(&complaints)
        .args(["--log-format", "json", "run", "--bundle"])
        .arg(dir)
        .arg("--pid-file")
        .arg(&pid_file)
        .arg(id)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| StartError::at("cannot run runc (is the package runc installed?)", e))?;
    let log = Log::create(log).map_err(|e| StartError::at("cannot write the log", e))?;
    let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(StartError("runc has no output".into()));
    };
    let output = [tokio::spawn(log.clone().copy("stdout", out)), tokio::spawn(log.copy("stderr", err))];
    // runc writes the file once the process of the container is started; there is nothing to subscribe to.
    let deadline = Instant::now() + START_TIMEOUT;
    loop {
        if pid_file.exists() {
            return Ok(Running { child, id: id.to_owned(), output });
        }
        tokio::select! {
            ended = child.wait() => {
                // It may have started and ended between two looks.
                if pid_file.exists() {
                    return Ok(Running { child, id: id.to_owned(), output });
                }
                let status = ended.map_err(|e| StartError::at("cannot wait for runc", e))?;
                return Err(StartError(complaint(&complaints).unwrap_or_else(|| format!("runc ended with {status}"))));
            }
            () = tokio::time::sleep(Duration::from_millis(20)) => {}
        }
        if Instant::now() > deadline {
            let _ = child.kill().await;
            let _ = runc().args(["delete", "--force", id]).output().await;
            return Err(StartError(format!("runc did not start it within {} s", START_TIMEOUT.as_secs())));
        }
    }
}

impl Running {
    /// Waits for its end, removes its files, and answers its exit code: 128 and the signal's number when a
    /// signal ended it.
    pub async fn ended(mut self) -> i32 {
        let code = match self.child.wait().await {
            Ok(status) => {
                use std::os::unix::process::ExitStatusExt;
                status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(9))
            }
            Err(_) => 255,
        };
        for output in &mut self.output {
            if tokio::time::timeout(DRAIN, &mut *output).await.is_err() {
                output.abort();
            }
        }
        if !state_is_gone(&self.id) {
            let _ = short(&["delete", "--force", &self.id]).await;
        }
        remove(&Path::new(layout::CONTAINERS).join(&self.id));
        code
    }
}

fn state_is_gone(id: &str) -> bool {
    !Path::new(layout::RUNC_ROOT).join(id).exists()
}

/// Sends a signal, such as `TERM`, to the first process of a container.
pub async fn signal(id: &str, signal: &str) {
    if let Err(error) = short(&["kill", id, signal]).await {
        tracing::debug!(container = id, signal, %error, "the container takes no signal");
    }
}

/// Kills every process of a container, also those that share the node's pid namespace.
pub async fn kill_all(id: &str) {
    if short(&["kill", "--all", id, "KILL"]).await.is_err() {
        signal(id, "KILL").await;
    }
}

/// Runs a command in a container; answers its exit code and the start of its output. A command that is given
/// up, because it took too long or nobody waits for it any more, is killed.
pub async fn exec(id: &str, command: &[String], timeout: Duration) -> Result<(i32, String), String> {
    let file = Path::new(layout::CONTAINERS).join(id).join(format!("exec-{:016x}", rand::random::<u64>()));
    let _given_up = Process(file.clone());
    let child =
        runc().arg("exec").arg("--pid-file").arg(&file).arg(id).args(command).stdin(Stdio::null()).output();
    match tokio::time::timeout(timeout, child).await {
        Ok(Ok(output)) => {
            // It has ended by itself: its number may be another's by now.
            let _ = fs::remove_file(&file);
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).trim().chars().take(1024).collect();
            Ok((output.status.code().unwrap_or(255), text))
        }
        Ok(Err(error)) => Err(format!("cannot run runc: {error}")),
        Err(_) => Err(format!("command {command:?} timed out after {} s", timeout.as_secs())),
    }
}

/// A process inside a container, known by the file runc writes its number to; killed when this is dropped while
/// the file is there. Killing runc alone would leave it running.
struct Process(PathBuf);

impl Drop for Process {
    fn drop(&mut self) {
        let pid = fs::read_to_string(&self.0).ok().and_then(|text| text.trim().parse().ok());
        if let Some(pid) = pid.filter(|pid| *pid > 1) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
        let _ = fs::remove_file(&self.0);
    }
}

fn runc() -> Command {
    let mut command = Command::new("runc");
    command.args(["--root", layout::RUNC_ROOT]).kill_on_drop(true);
    command
}

async fn short(args: &[&str]) -> Result<(), String> {
    let output = tokio::time::timeout(COMMAND_TIMEOUT, runc().args(args).stdin(Stdio::null()).output())
        .await
        .map_err(|_| "runc did not answer".to_owned())?
        .map_err(|e| e.to_string())?;
    if output.status.success() {
        Ok(())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// Makes the bundle: layers, root file system, `config.json`.
fn furnish(dir: &Path, bundle: &Bundle, writable: &[String]) -> Result<(), StartError> {
    let at = |what: &'static str| move |e: std::io::Error| StartError::at(what, e);
    for sub in ["upper", "work", "rootfs"] {
        fs::create_dir_all(dir.join(sub)).map_err(at("cannot make the bundle"))?;
    }
    let upper = dir.join("upper");
    // The layer's mode and owner become those of the container's root directory.
    fs::set_permissions(&upper, fs::Permissions::from_mode(0o755)).map_err(at("cannot make the bundle"))?;
    for path in writable {
        let path = upper.join(path.trim_start_matches('/'));
        fs::create_dir_all(&path)
            .and_then(|()| chown(&path, Some(bundle.user.0), Some(bundle.user.1)))
            .map_err(at("cannot make a directory of the image"))?;
    }
    let config = bundle.config().to_string();
    fs::write(dir.join("config.json"), config).map_err(at("cannot write the bundle"))?;
    let options = format!("lowerdir=/,upperdir={},workdir={}", upper.display(), dir.join("work").display());
    let rootfs: PathBuf = dir.join("rootfs");
    mount(Some("overlay"), &rootfs, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .map_err(|e| StartError::at("cannot mount the root file system", e))
}

fn remove(dir: &Path) {
    let _ = umount2(&dir.join("rootfs"), MntFlags::MNT_DETACH);
    if let Err(error) = fs::remove_dir_all(dir) {
        tracing::debug!(dir = %dir.display(), %error, "a bundle would not go");
    }
}

/// The last error runc wrote to its log.
fn complaint(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    text.lines().rev().find_map(|line| {
        let entry: serde_json::Value = serde_json::from_str(line).ok()?;
        (entry["level"] == "error").then(|| entry["msg"].as_str().map(str::to_owned))?
    })
}
