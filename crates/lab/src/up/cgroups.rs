//! The control groups of a lab: `ambit-<lab>` in every hierarchy, whichever layout the machine has.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::name::LabName;
use super::processes;

const ROOT: &str = "/sys/fs/cgroup";

/// The top groups of a lab that exist.
fn tops(lab: &LabName) -> Vec<PathBuf> {
    let name = lab.prefix();
    let below = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    // `cpu` may be a link to `cpu,cpuacct`: the same group twice does no harm.
    std::iter::once(PathBuf::from(ROOT))
        .chain(below)
        .map(|root| root.join(&name))
        .filter(|path| path.is_dir())
        .collect()
}

/// A group and all groups below it, the deepest first.
fn tree(top: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(top).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            tree(&entry.path(), found);
        }
    }
    found.push(top.to_owned());
}

fn all(lab: &LabName) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for top in tops(lab) {
        tree(&top, &mut found);
    }
    found
}

/// The processes in a lab's groups.
pub fn members(lab: &LabName) -> BTreeSet<i32> {
    let listed = all(lab).into_iter().filter_map(|group| fs::read_to_string(group.join("cgroup.procs")).ok());
    listed.flat_map(|text| text.lines().filter_map(|line| line.parse().ok()).collect::<Vec<i32>>()).collect()
}

/// Removes the groups; says which are left after `limit`. The kernel refuses for a moment after the last process.
pub fn remove(lab: &LabName, limit: Duration) -> Vec<PathBuf> {
    processes::wait_until(limit, || {
        for group in all(lab) {
            let _ = fs::remove_dir(group);
        }
        tops(lab).is_empty()
    });
    tops(lab)
}
