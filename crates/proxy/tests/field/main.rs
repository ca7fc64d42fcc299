//! What went wrong for users of meshes elsewhere, played again with whole proxies, spoken to from outside only: needs
//! root. Sizes are those that CI bears; with `AMBIT_TEST_FULL=1` they are those of the cases themselves, as far as
//! 20,000 descriptors go round: both proxies, clients and servers are one process here.

#[allow(dead_code)]
#[path = "../mesh/control.rs"]
mod control;
#[allow(dead_code)]
#[path = "../mesh/harness.rs"]
mod harness;
#[allow(dead_code)]
#[path = "../mesh/namespaces.rs"]
mod namespaces;

mod churn;
mod clean_ends;
mod crowds;
mod forgotten;
mod stalled;
mod unfinished;

/// The size of a case: what every run bears, or what was reported.
fn sized<T>(every_day: T, full: T) -> T {
    if std::env::var_os("AMBIT_TEST_FULL").is_some() { full } else { every_day }
}

/// Resident memory of this process, KiB.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Descriptors of this process.
fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}
