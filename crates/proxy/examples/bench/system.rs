//! Namespaces, children and what the kernel says of them.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::Context;

/// Runs a script; its words are the error.
pub fn sh(script: &str) -> anyhow::Result<()> {
    let output = Command::new("sh").args(["-ec", script]).output()?;
    anyhow::ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A network namespace with a name of its own, gone when dropped.
pub struct Space {
    pub name: String,
}

impl Space {
    pub fn new(name: String) -> anyhow::Result<Self> {
        sh(&format!("ip netns add {name} && ip -n {name} link set lo up"))?;
        Ok(Self { name })
    }

    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    pub fn sh(&self, script: &str) -> anyhow::Result<()> {
        let output = Command::new("ip").args(["netns", "exec", &self.name, "sh", "-ec", script]).output()?;
        anyhow::ensure!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// A program inside.
    pub fn command(&self, program: &std::path::Path) -> Command {
        // Each is replaced by the next, so that the child is the program; it does not outlive us.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "ip", "netns", "exec", &self.name]).arg(program);
        command
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        let _ = sh(&format!("ip netns del {}", self.name));
    }
}

/// Takes away what a run has left that was killed.
pub fn sweep(prefix: &str) {
    let names = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        let pid = name
            .strip_prefix(prefix)
            .and_then(|rest| rest.split('-').next())
            .and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = sh(&format!("ip netns del {name}"));
        }
    }
}

/// Enough descriptors for 10,000 connections, both ends of which are in one proxy, where we may have so many.
const DESCRIPTORS: u64 = 200_000;

/// For us and our children.
pub fn many_descriptors() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if setrlimit(Resource::RLIMIT_NOFILE, DESCRIPTORS, DESCRIPTORS).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Descriptors that a process of ours may have.
pub fn descriptors() -> u64 {
    use nix::sys::resource::{Resource, getrlimit};
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft)
}

/// A child that ends with us, and says something when it is ready.
pub struct Part {
    child: Child,
    out: BufReader<ChildStdout>,
    _in: Option<ChildStdin>,
}

impl Part {
    pub fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let out = BufReader::new(child.stdout.take().context("no output")?);
        let _in = child.stdin.take();
        Ok(Self { child, out, _in })
    }

    pub fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        anyhow::ensure!(self.out.read_line(&mut line)? > 0, "a part of the benchmark has ended");
        Ok(line.trim().to_owned())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends its input and waits for it.
    pub fn finish(mut self) -> anyhow::Result<()> {
        if let Some(mut input) = self._in.take() {
            let _ = input.write_all(b"\n");
        }
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds of processor time that a process has used, all its threads together.
pub fn cpu(pid: u32) -> f64 {
    let mut total = 0.0;
    let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return 0.0 };
    for task in tasks.flatten() {
        // Nanoseconds on a processor, of this thread.
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        let nanos: f64 = text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0.0);
        total += nanos / 1e9;
    }
    total
}

/// Seconds that all processors of the machine were busy.
pub fn machine() -> f64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = text.lines().next().unwrap_or_default();
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|number| number.parse().ok()).collect();
    // All but idle and waiting for disks; guests are counted as users already.
    let busy: f64 =
        ticks.iter().take(8).enumerate().filter(|(at, _)| *at != 3 && *at != 4).map(|(_, ticks)| ticks).sum();
    busy / 100.0
}

/// Resident memory in KiB.
pub fn rss(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0.0)
}
