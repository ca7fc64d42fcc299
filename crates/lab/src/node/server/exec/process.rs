//! Runs a command in a container by `runc exec`, with pipes or with a terminal.

use std::io;
use std::os::unix::process::ExitStatusExt as _;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::mpsc;

use super::pty::{self, Terminal};
use super::{Ends, Exit, Input, Output};
use crate::node::border::ContainerRef;
use crate::node::server::request::ExecOptions;

const BLOCK: usize = 16 * 1024;
/// A command that ended may have left children that hold its output open; what is in the pipes by then is still
/// delivered, what they write later is not.
const DRAIN: Duration = Duration::from_secs(2);
/// How long a command whose client went away may take to end on SIGHUP.
const HANG_UP: Duration = Duration::from_secs(3);
/// End of transmission: what a terminal turns into the end of input.
const EOT: &[u8] = &[4];

/// Runs it to its end, or to the client's.
pub(super) async fn run(container: &ContainerRef, options: &ExecOptions, ends: Ends) -> Exit {
    let ended = if options.tty {
        with_terminal(container, options, ends).await
    } else {
        with_pipes(container, options, ends).await
    };
    match ended {
        Ok(Some(status)) => Exit::Code(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))),
        Ok(None) => Exit::Failed("the client went away; the command was told to hang up".into()),
        Err(error) => Exit::Failed(format!("cannot run the command in the container: {error}")),
    }
}

/// `runc exec …`, with `before` in front of it.
fn runc(before: &[&str], container: &ContainerRef, options: &ExecOptions) -> Command {
    let mut words = before.iter().copied().chain(["runc", "--root"]);
    let mut command = Command::new(words.next().unwrap_or("runc"));
    command.args(words).arg(&container.runc_root).arg("exec");
    if options.tty {
        // What clients' terminals understand, as other kubelets say.
        command.args(["--tty", "--env", "TERM=xterm"]);
    }
    // runc reads no options after the identifier, so the command may look like anything.
    command.arg(&container.id).args(&options.command);
    command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command.kill_on_drop(true);
    command
}

async fn with_pipes(
    container: &ContainerRef,
    options: &ExecOptions,
    ends: Ends,
) -> io::Result<Option<ExitStatus>> {
    let pipe_if = |wanted: bool| if wanted { Stdio::piped() } else { Stdio::null() };
    let mut child = runc(&[], container, options)
        .stdin(pipe_if(options.stdin))
        .stdout(pipe_if(options.stdout))
        .stderr(pipe_if(options.stderr))
        .spawn()?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let Ends { input, output } = ends;
    let outputs = async {
        let stdout = forward(stdout, &output, Output::Stdout);
        let stderr = forward(stderr, &output, Output::Stderr);
        let (stdout, stderr) = futures::join!(stdout, stderr);
        stdout && stderr
    };
    let status = supervise(&mut child, feed(stdin, input), outputs).await?;
    drop(output);
    Ok(status)
}

async fn with_terminal(
    container: &ContainerRef,
    options: &ExecOptions,
    ends: Ends,
) -> io::Result<Option<ExitStatus>> {
    let (terminal, slave) = pty::open()?;
    // setsid makes the terminal runc's own: only so does it hear of changed sizes, and of the hang-up.
    let mut child = runc(&["setsid", "--ctty", "--wait"], container, options)
        .stdin(slave.try_clone()?)
        .stdout(slave.try_clone()?)
        .stderr(slave)
        .spawn()?;
    let Ends { mut input, output } = ends;
    let typing = async {
        while let Some(input) = input.recv().await {
            let done = match input {
                Input::Stdin(bytes) => terminal.write_all(&bytes).await,
                Input::StdinClosed => terminal.write_all(EOT).await,
                Input::Resize { columns, rows } => terminal.resize(columns, rows),
            };
            if let Err(error) = done {
                tracing::debug!("terminal of an exec session: {error}");
            }
        }
    };
    let screen = show(&terminal, &output);
    supervise(&mut child, typing, screen).await
}

/// Waits for the child while its streams are carried. `gone` ends when the client went away; `outputs` ends when
/// there is no more output and says whether the client took it. `None` when the client went away.
async fn supervise(
    child: &mut Child,
    gone: impl Future<Output = ()>,
    outputs: impl Future<Output = bool>,
) -> io::Result<Option<ExitStatus>> {
    let (mut gone, mut outputs) = (pin!(gone), pin!(outputs));
    let mut open = true;
    loop {
        tokio::select! {
            status = child.wait() => {
                if open {
                    let _ = tokio::time::timeout(DRAIN, &mut outputs).await;
                }
                return status.map(Some);
            }
            taken = &mut outputs, if open => {
                open = false;
                if !taken {
                    break;
                }
            }
            () = &mut gone => break,
        }
    }
    hang_up(child).await;
    Ok(None)
}

/// SIGHUP, which runc hands on to the command, and SIGKILL to runc when that does not help.
async fn hang_up(child: &mut Child) {
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = kill(Pid::from_raw(pid), Signal::SIGHUP);
    }
    if tokio::time::timeout(HANG_UP, child.wait()).await.is_err() {
        let _ = child.start_kill();
        let _ = child.wait().await;
    }
}

/// Feeds standard input and ends when the client is gone; a command that reads no more loses only its input.
async fn feed(mut stdin: Option<ChildStdin>, mut input: mpsc::Receiver<Input>) {
    while let Some(input) = input.recv().await {
        let ended = match (input, &mut stdin) {
            (Input::Stdin(bytes), Some(open)) => open.write_all(&bytes).await.is_err(),
            (Input::StdinClosed, _) => true,
            _ => false,
        };
        if ended {
            stdin = None;
        }
    }
}

/// Whether the client took everything.
async fn forward(
    from: Option<impl AsyncRead + Unpin>,
    to: &mpsc::Sender<Output>,
    kind: impl Fn(bytes::Bytes) -> Output,
) -> bool {
    let Some(mut from) = from else { return true };
    let mut block = vec![0; BLOCK];
    loop {
        match from.read(&mut block).await {
            Ok(0) | Err(_) => return true,
            Ok(length) => {
                let piece = bytes::Bytes::copy_from_slice(&block[..length]);
                if to.send(kind(piece)).await.is_err() {
                    return false;
                }
            }
        }
    }
}

async fn show(terminal: &Terminal, to: &mpsc::Sender<Output>) -> bool {
    let mut block = vec![0; BLOCK];
    loop {
        match terminal.read(&mut block).await {
            // EIO is how a terminal says that nobody holds its other side any more.
            Ok(0) | Err(_) => return true,
            Ok(length) => {
                let piece = bytes::Bytes::copy_from_slice(&block[..length]);
                if to.send(Output::Stdout(piece)).await.is_err() {
                    return false;
                }
            }
        }
    }
}
