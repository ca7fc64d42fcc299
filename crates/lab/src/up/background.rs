//! A lab in the background: the carrying process in a session of its own, and its progress on the way up.
//!
//! The child writes one JSON object a line to its standard output until it is ready, then closes it. Manifests have
//! been read by the parent, so that what is wrong with them is known before anything starts, and reach the child
//! through its standard input.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::record::Record;
use super::{Options, Progress, Ready, preflight, run};

/// A line from the carrying process.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Report {
    Progress(String),
    Ready(Ready),
    Error(String),
}

/// Starts a lab in the background and returns when it is ready. Cancelling `stop` before that takes everything
/// down again, which is an error too.
///
/// The background process is this very binary, run as the hidden `ambit lab carry`, which calls [`carry`].
///
/// # Errors
/// What was in the way, in a sentence.
pub async fn in_background(
    options: Options,
    progress: Progress,
    stop: CancellationToken,
) -> anyhow::Result<Ready> {
    preflight::machine(options.nodes > 0)?;
    // The child looks again, under the lock; this is for a quick answer.
    if Record::load(&options.name).is_some_and(|record| record.process.is_alive()) {
        bail!(run::already_running(&options.name));
    }
    let binary = std::env::current_exe().context("cannot find this program's own file")?;
    let mut command = Command::new(binary);
    command.args(["lab", "carry", "--name", options.name.as_str(), "--nodes", &options.nodes.to_string()]);
    if let Some(path) = &options.kubeconfig {
        command.arg("--kubeconfig").arg(std::path::absolute(path)?);
    }
    if let Some(path) = &options.join {
        command.arg("--join").arg(std::path::absolute(path)?);
    }
    if let Some(port) = options.port {
        command.args(["--port", &port.to_string()]);
    }
    command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("cannot start the lab's process")?;
    if let Some(mut input) = child.stdin.take() {
        // A child that ends before it has read everything says why.
        let _ = input.write_all(options.manifests.to_text().as_bytes()).await;
    }
    let output = child.stdout.take().context("the lab's process has no output")?;
    let mut lines = BufReader::new(output).lines();
    let mut asked = false;
    let mut said = None;
    loop {
        let line = tokio::select! {
            line = lines.next_line() => line?,
            () = stop.cancelled(), if !asked => {
                asked = true;
                if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
                }
                continue;
            }
        };
        match line.as_deref().map(serde_json::from_str) {
            Some(Ok(Report::Progress(text))) => progress(&text),
            Some(Ok(Report::Ready(ready))) if !asked => return Ok(ready),
            Some(Ok(Report::Ready(_))) => {}
            Some(Ok(Report::Error(text))) => said = Some(text),
            Some(Err(_)) => tracing::debug!(?line, "unexpected output of the lab's process"),
            None => break,
        }
    }
    let status = child.wait().await?;
    match said {
        _ if asked => bail!("interrupted: the lab `{}` was taken down again", options.name),
        Some(text) => bail!("{text}"),
        None => bail!("the lab's process ended with {status} before the lab was up"),
    }
}

/// The body of the background process: [`run::run`] in a session of its own, reporting on standard output.
/// `start_logging` is called once standard error is the lab's log; until then it is the user's terminal.
///
/// # Errors
/// Those of [`run::run`], after they were reported.
pub async fn carry(options: Options, stop: CancellationToken, start_logging: fn()) -> anyhow::Result<()> {
    // Fails only for the leader of a process group, which has a session of its own as good as that.
    let _ = nix::unistd::setsid();
    // A report that cannot be delivered is nobody's loss: the parent has what it wanted, or is gone.
    let report = |report: &Report| {
        use std::io::Write;
        if let Ok(line) = serde_json::to_string(report) {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    };
    let name = options.name.clone();
    let log = name.state_dir().join("lab.log");
    let progress: Progress = std::sync::Arc::new(move |text| {
        report(&Report::Progress(text.to_owned()));
        if log_to(&log, start_logging) {
            tracing::info!("{text}");
        }
    });
    let result = run::run(
        options,
        progress,
        |ready| {
            report(&Report::Ready(ready.clone()));
            forget_parent();
        },
        stop,
    )
    .await;
    if let Err(error) = &result {
        // The log is gone with the lab.
        report(&Report::Error(format!("{error:#}")));
    }
    result
}

/// Turns standard error into the lab's log as soon as there is a place for it; says whether it is.
fn log_to(path: &Path, start_logging: fn()) -> bool {
    static DONE: std::sync::OnceLock<()> = std::sync::OnceLock::new();
    if DONE.get().is_some() {
        return true;
    }
    let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
    if let Ok(file) = file
        && nix::unistd::dup2_stderr(&file).is_ok()
    {
        let _ = DONE.set(());
        start_logging();
    }
    DONE.get().is_some()
}

/// Lets go of the parent's pipe: it waits for the end of it.
fn forget_parent() {
    if let Ok(null) = OpenOptions::new().write(true).open("/dev/null") {
        let _ = nix::unistd::dup2_stdout(&null);
    }
}
