//! curl as a client that keeps its connection and makes up for one that broke while it was idle: a program that is
//! not ours, so that what "loses no request" means is not our reading of it.

use std::process::{Child, Command, Stdio};

use netns::NetNs;

/// A curl that asks five times a second until it is stopped.
pub struct Curl {
    child: Child,
    /// Errors and answers alike: what curl writes there it does not hold back.
    said: tempfile::NamedTempFile,
}

impl Curl {
    /// Starts it in `netns`.
    pub fn start(netns: &NetNs, ip: &str, port: u16) -> Self {
        let said = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new("curl");
        command
            .args(["--silent", "--show-error", "--no-progress-meter", "--max-time", "10", "--rate", "5/s"])
            .args(["--output", "/dev/null", "--write-out", "%{stderr}%{http_code} %{num_connects}\n"])
            .arg(format!("http://{ip}:{port}/curl-[1-100000]"))
            .env_remove("http_proxy")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(said.reopen().unwrap());
        let child = netns.run(|| command.spawn()).unwrap().expect("curl is installed");
        Self { child, said }
    }

    /// How many requests were answered so far, over how many connections. Panics when one was not.
    pub fn answered(&self) -> (usize, usize) {
        let said = std::fs::read_to_string(self.said.path()).unwrap();
        // The last line may be half written.
        let lines = said.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let connections: Vec<usize> = lines
            .map(|line| {
                let connects = line.trim().strip_prefix("200 ").and_then(|count| count.parse().ok());
                connects.unwrap_or_else(|| panic!("curl says {line}"))
            })
            .collect();
        (connections.len(), connections.iter().sum())
    }

    /// Stops it; answers as [`Self::answered`] does.
    pub fn stop(mut self) -> (usize, usize) {
        assert!(self.child.try_wait().unwrap().is_none(), "curl ended by itself");
        self.answered()
    }
}

impl Drop for Curl {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
