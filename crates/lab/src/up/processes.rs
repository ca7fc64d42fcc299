//! Processes by number and start time: a number alone may have passed to somebody else.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

const POLL: Duration = Duration::from_millis(20);

/// One process, and no other that gets its number later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks after boot.
    pub started: u64,
}

impl Process {
    /// The process with this number, if there is one that still runs.
    pub fn find(pid: i32) -> Option<Process> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        parse_stat(&stat).map(|started| Process { pid, started })
    }

    /// This process.
    pub fn current() -> Option<Process> {
        Process::find(i32::try_from(std::process::id()).ok()?)
    }

    /// Whether it still runs; one that only waits to be reaped does not.
    pub fn is_alive(self) -> bool {
        Process::find(self.pid) == Some(self)
    }

    /// Sends a signal if it still runs.
    pub fn signal(self, signal: Signal) {
        if self.is_alive() {
            // It may have ended in between, which is what signals are mostly for.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// Whether it ended within `limit`.
    pub fn ends_within(self, limit: Duration) -> bool {
        wait_until(limit, || !self.is_alive())
    }
}

/// The start time in a line of `/proc/<pid>/stat`; `None` for a process that has ended.
fn parse_stat(stat: &str) -> Option<u64> {
    // The name in parentheses may itself hold spaces and parentheses.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// Waits until `done` holds, `limit` at most; says whether it does. For things that the kernel finishes by itself
/// after a kill and tells nobody about.
pub fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    loop {
        if done() {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(POLL);
    }
}

/// Kills processes until none of those that `list` names is left; says whether that worked within `limit`.
pub fn kill_all(limit: Duration, list: impl Fn() -> BTreeSet<i32>) -> bool {
    wait_until(limit, || {
        let found: Vec<Process> = list().into_iter().filter_map(Process::find).collect();
        found.iter().for_each(|process| process.signal(Signal::SIGKILL));
        found.is_empty()
    })
}

/// The processes that live in these network namespaces (inode numbers of nsfs).
pub fn in_network_namespaces(inodes: &BTreeSet<u64>) -> BTreeSet<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeSet::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let inside = |pid: &i32| {
        fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|meta| inodes.contains(&meta.ino()))
    };
    numbers.filter(inside).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(parse_stat(&format!("7 (a) b) (c) {tail}")), Some(4242));
        assert_eq!(parse_stat(&format!("7 (x) {}", tail.replacen('S', "Z", 1))), None);
        assert_eq!(parse_stat("7 (x) S 1"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn a_process_is_not_mistaken_for_another_one_with_its_number() {
        let me = Process::current().unwrap();
        assert!(me.is_alive());
        assert!(!Process { started: me.started + 1, ..me }.is_alive());
    }

    #[test]
    fn killing_ends_what_is_listed_and_says_so() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        assert!(kill_all(Duration::from_secs(20), || BTreeSet::from([pid])));
        assert!(!child.wait().unwrap().success());
    }
}
