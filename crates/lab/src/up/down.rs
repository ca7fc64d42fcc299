//! Taking a lab down, whatever state it is in: running, half built, or left behind by a crash.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::processes::{self, Process};
use super::record::{Lock, Record};
use super::{LabName, Progress, cgroups, fabric, kubeconfig, preflight};

/// How long a lab may take to take itself down.
const GRACEFUL: Duration = Duration::from_secs(30);
/// How long the kernel may take to finish what was killed.
const KERNEL: Duration = Duration::from_secs(10);

/// Takes a lab down. Says whether there was anything to take down.
///
/// # Errors
/// What could not be removed, and what is in the way.
pub fn down(name: &LabName, progress: &Progress) -> anyhow::Result<bool> {
    preflight::machine(false)?;
    let record = Record::load(name);
    let exists = record.is_some() || name.state_dir().exists() || !fabric::namespaces(name).is_empty();
    if let Some(process) = record.map(|record| record.process).filter(|process| process.is_alive()) {
        progress(&format!("ending the lab's process {}", process.pid));
        process.signal(Signal::SIGTERM);
        if !process.ends_within(GRACEFUL) {
            progress("it does not end by itself: killing it");
            process.signal(Signal::SIGKILL);
            process.ends_within(KERNEL);
        }
    }
    let Some(lock) = take_lock(name)? else {
        bail!("another process is starting or ending the lab `{name}`: try again when it is done");
    };
    let cleared = clear(name);
    lock.remove();
    // Nothing was there before the directory of all labs either.
    let _ = fs::remove_dir("/run/ambit");
    cleared.map(|()| exists)
}

fn take_lock(name: &LabName) -> anyhow::Result<Option<Lock>> {
    let mut lock = Ok(None);
    processes::wait_until(KERNEL, || {
        lock = Lock::take(name);
        !matches!(lock, Ok(None))
    });
    lock
}

/// Removes everything of a lab that does not end with its process. The caller holds the lock, and the lab's process
/// is either gone or the caller.
pub fn clear(name: &LabName) -> anyhow::Result<()> {
    let mut trouble = Vec::new();
    let mut attempt = |result: anyhow::Result<()>| {
        if let Err(error) = result {
            trouble.push(format!("{error:#}"));
        }
    };
    if let Some(record) = Record::load(name) {
        let nodes: Vec<Process> = record.nodes.iter().map(|node| node.process).collect();
        nodes.iter().for_each(|node| node.signal(Signal::SIGKILL));
        nodes.iter().for_each(|node| _ = node.ends_within(KERNEL));
        if let Some(published) = &record.published {
            attempt(kubeconfig::unmerge(published, &name.prefix()));
        }
    }
    let inodes = fabric::inodes(name);
    let members = || {
        let mut all = processes::in_network_namespaces(&inodes);
        all.extend(cgroups::members(name));
        all
    };
    if !processes::kill_all(KERNEL, members) {
        attempt(Err(anyhow::anyhow!("processes {:?} do not end", members())));
    }
    attempt(fabric::remove(name));
    let left = cgroups::remove(name, KERNEL);
    if !left.is_empty() {
        attempt(Err(anyhow::anyhow!("control groups {left:?} cannot be removed")));
    }
    attempt(remove_state(&name.state_dir()));
    if trouble.is_empty() {
        Ok(())
    } else {
        bail!("the lab `{name}` is not gone altogether: {}", trouble.join("; "))
    }
}

/// Unmounts what is below the directory, then removes it. As long as anything is mounted there it stays: what is
/// mounted may be the host's.
fn remove_state(dir: &Path) -> anyhow::Result<()> {
    for mount in mounts_below(dir)? {
        umount2(&mount, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", mount.display()))?;
    }
    if let Some(mount) = mounts_below(dir)?.first() {
        bail!("{} is still mounted", mount.display());
    }
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Mount points at or below a directory, the last made first.
fn mounts_below(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context("cannot read the table of mounts")?;
    let points = table.lines().filter_map(|line| line.split_ascii_whitespace().nth(4)).map(unescape);
    let mut below: Vec<PathBuf> = points.map(PathBuf::from).filter(|point| point.starts_with(dir)).collect();
    below.reverse();
    Ok(below)
}

/// Spaces and the like are written as `\` and three octal digits.
fn unescape(text: &str) -> String {
    let mut plain = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let code = bytes.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match code.filter(|_| *byte == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) => {
                plain.push(code);
                at += 4;
            }
            None => {
                plain.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks_are_read_right() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
        assert_eq!(unescape("/plain\\"), "/plain\\");
        assert_eq!(unescape("/\\9z"), "/\\9z");
    }

    #[test]
    fn a_directory_whose_name_begins_alike_is_not_below() {
        let mounts = mounts_below(Path::new("/pro")).unwrap();
        assert!(mounts.is_empty(), "{mounts:?}");
        assert!(mounts_below(Path::new("/proc")).unwrap().contains(&PathBuf::from("/proc")));
    }

    #[test]
    fn a_state_directory_that_is_not_there_is_no_trouble() {
        let dir = tempfile::tempdir().unwrap();
        remove_state(&dir.path().join("gone")).unwrap();
    }
}
