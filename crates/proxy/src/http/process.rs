//! What the kernel says of this process, under the names that all Prometheus clients give it.

use std::fs;

const TICKS: u64 = 100;

/// Name, help and value.
pub(super) fn gauges() -> Vec<(&'static str, &'static str, u64)> {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten();
    let page = page.and_then(|size| u64::try_from(size).ok()).unwrap_or(4096);
    let mut pages = statm.split(' ').map(|number| number.parse::<u64>().ok().map(|pages| pages * page));
    let (all, resident) = (pages.next().flatten(), pages.next().flatten());
    let open = fs::read_dir("/proc/self/fd").ok().map(|open| open.count() as u64);
    let most = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE).ok();
    let tokio = tokio::runtime::Handle::try_current().ok().map(|handle| handle.metrics());
    let tasks = tokio.as_ref().map(|metrics| metrics.num_alive_tasks() as u64);
    let queued = tokio.map(|metrics| metrics.global_queue_depth() as u64);
    let found = [
        ("process_open_fds", "Open file descriptors", open),
        ("process_max_fds", "File descriptors that may be open", most.map(|(soft, _)| soft)),
        ("process_resident_memory_bytes", "Resident memory", resident),
        ("process_virtual_memory_bytes", "Address space", all),
        ("process_threads", "Threads", field(&stat, 19)),
        (
            "process_start_time_seconds",
            "When the process began, since 1970",
            field(&stat, 21).and_then(start),
        ),
        ("tokio_alive_tasks", "Tasks beside the data path", tasks),
        ("tokio_global_queue_depth", "Tasks that wait for a thread", queued),
    ];
    found.into_iter().filter_map(|(name, help, value)| Some((name, help, value?))).collect()
}

/// Processor time used.
pub(super) fn cpu_seconds() -> Option<f64> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    Some((field(&stat, 13)? + field(&stat, 14)?) as f64 / TICKS as f64)
}

/// A field of `/proc/<pid>/stat`, from 0; the name of the program may hold anything.
fn field(stat: &str, index: usize) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(index.checked_sub(2)?)?.parse().ok()
}

/// From ticks since the machine started to seconds since 1970.
fn start(ticks: u64) -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    let boot: u64 = stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(boot + ticks / TICKS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_may_be_called_anything() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 9 0 1000 5 6 7";
        assert_eq!(
            (field(stat, 13), field(stat, 14), field(stat, 19), field(stat, 21)),
            (Some(150), Some(50), Some(9), Some(1000))
        );
    }

    #[test]
    fn this_process_has_all_of_it() {
        let found = gauges();
        assert!(found.iter().any(|(name, _, value)| *name == "process_open_fds" && *value > 0), "{found:?}");
        let start = found.iter().find(|(name, ..)| *name == "process_start_time_seconds").unwrap().2;
        assert!(start > 1_600_000_000);
        assert!(cpu_seconds().is_some());
    }
}
