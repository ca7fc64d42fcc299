//! What the system says of this process: for metrics, and for the page that says what it is busy with.

use serde_json::{Value, json};

/// Figures of this process; what the system does not tell is absent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Process {
    /// Seconds of processor time so far.
    pub cpu: Option<f64>,
    /// Bytes resident.
    pub resident: Option<u64>,
    /// Bytes of address space.
    pub reserved: Option<u64>,
    /// Descriptors open.
    pub descriptors: Option<usize>,
    /// Descriptors that may be open.
    pub most_descriptors: Option<u64>,
}

/// User and system time of a `stat` file, in seconds; hundredths on every Linux that there is.
fn cpu(stat: &str) -> Option<f64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / 100.0)
}

/// A line `name: number kB` of a `status` file, in bytes.
fn kilobytes(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

impl Process {
    /// As it is now.
    pub fn now() -> Self {
        let status = read("/proc/self/status");
        let limits = read("/proc/self/limits");
        let most = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        Self {
            cpu: cpu(&read("/proc/self/stat")),
            resident: kilobytes(&status, "VmRSS"),
            reserved: kilobytes(&status, "VmSize"),
            descriptors: std::fs::read_dir("/proc/self/fd").ok().map(Iterator::count),
            most_descriptors: most.and_then(|line| line.split_whitespace().next()?.parse().ok()),
        }
    }
}

/// Processor time of each thread so far, by number and name.
fn threads() -> Vec<(String, f64)> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let one = |task: std::fs::DirEntry| {
        let path = task.path();
        let name = std::fs::read_to_string(path.join("comm")).ok()?;
        let used = cpu(&std::fs::read_to_string(path.join("stat")).ok()?)?;
        Some((format!("{} {}", task.file_name().to_string_lossy(), name.trim()), used))
    };
    tasks.filter_map(one).collect()
}

/// What the process does in a while: processor time by thread, tasks, queues.
pub(crate) async fn page(window: std::time::Duration) -> Value {
    let before = threads();
    tokio::time::sleep(window).await;
    let busy: serde_json::Map<String, Value> = threads()
        .into_iter()
        .map(|(name, used)| {
            let earlier = before.iter().find(|(other, _)| *other == name).map_or(0.0, |(_, used)| *used);
            let share = (used - earlier) / window.as_secs_f64().max(0.001);
            (name, json!((share * 1000.0).round() / 1000.0))
        })
        .collect();
    let runtime = tokio::runtime::Handle::current().metrics();
    let process = Process::now();
    json!({
        "seconds": window.as_secs_f64(),
        "coresByThread": busy,
        "workers": runtime.num_workers(),
        "tasks": runtime.num_alive_tasks(),
        "queued": runtime.global_queue_depth(),
        "cpuSeconds": process.cpu,
        "residentBytes": process.resident,
        "openDescriptors": process.descriptors,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_brackets_does_not_shift_the_fields() {
        let stat = "7 (tokio (x) y) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 5 1 1";
        assert_eq!(cpu(stat), Some(2.0));
        assert_eq!(cpu("nonsense"), None);
        assert_eq!(kilobytes("VmSize:\t 20 kB\nVmRSS:\t 10 kB\n", "VmRSS"), Some(10_240));
    }

    #[tokio::test]
    async fn the_page_tells_of_this_process() {
        let page = page(std::time::Duration::ZERO).await;
        assert!(page["residentBytes"].as_u64().is_some_and(|bytes| bytes > 0), "{page}");
        assert!(page["coresByThread"].as_object().is_some_and(|threads| !threads.is_empty()), "{page}");
    }
}
