//! What the system says of this process.

/// Nanoseconds on a clock that all processes of the machine share.
pub fn now() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_nanos() as u64)
}

/// Seconds of processor time so far.
pub fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = |index: usize| -> f64 {
        after.split_whitespace().nth(index).and_then(|text| text.parse().ok()).unwrap_or(0.0)
    };
    // User and system time, in hundredths of a second on every Linux that there is.
    (ticks(11) + ticks(12)) / 100.0
}

/// Megabytes resident now, and at most so far.
pub fn memory() -> (u64, u64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name));
        let kilobytes =
            line.and_then(|line| line.split_whitespace().nth(1)).and_then(|text| text.parse().ok());
        kilobytes.unwrap_or(0) / 1024
    };
    (of("VmRSS:"), of("VmHWM:"))
}

/// Forgets the peak so far: making the mesh up is not what is measured.
pub fn give_back() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
