//! Where processor time goes: samples of all threads' stacks, one line a stack with how often it was seen, as the tools
//! that draw flame graphs read them. Only for who reaches the debug pages, one at a time; nothing is sampled otherwise.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::StatusCode;
use parking_lot::Mutex;

/// The sampler counts for the process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Samples a second of processor time: no divisor of what timers do, which would be seen always or never.
const FREQUENCY: i32 = 99;

/// Stacks cannot be walked from within these without the risk of waiting for oneself.
const NOT_WITHIN: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// A page: what was seen while `lasting`.
pub(crate) async fn page(lasting: Duration) -> (StatusCode, String) {
    match tokio::task::spawn_blocking(move || sample(lasting, FREQUENCY)).await {
        Ok(Ok(stacks)) => (StatusCode::OK, stacks),
        Ok(Err(refused)) => refused,
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn sample(lasting: Duration, frequency: i32) -> Result<String, (StatusCode, String)> {
    let Some(_alone) = ONE_AT_A_TIME.try_lock() else {
        return Err((StatusCode::TOO_MANY_REQUESTS, "a profile is being taken already\n".into()));
    };
    let failed = |error: pprof::Error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"));
    let sampler = pprof::ProfilerGuardBuilder::default().frequency(frequency).blocklist(&NOT_WITHIN);
    let sampler = sampler.build().map_err(failed)?;
    std::thread::sleep(lasting);
    let report = sampler.report().build().map_err(failed)?;
    drop(sampler);
    let stacks = report.data.iter().map(|(stack, count)| {
        let names = stack.frames.iter().flatten().map(pprof::Symbol::name);
        (stack.thread_name.as_str(), names.collect(), *count)
    });
    Ok(folded(stacks))
}

/// `thread;outermost;…;innermost count`, a line each. Names come with the innermost function first.
fn folded<'a>(stacks: impl Iterator<Item = (&'a str, Vec<String>, isize)>) -> String {
    let mut lines: BTreeMap<String, isize> = BTreeMap::new();
    for (thread, names, count) in stacks {
        // What parts the functions of a line, and the lines, can stand in a name: `[u8; 4]`.
        let plain = |name: &str| name.replace(';', ",").replace('\n', " ");
        let names = std::iter::once(thread).chain(names.iter().rev().map(String::as_str));
        let line = names.map(plain).collect::<Vec<_>>().join(";");
        *lines.entry(line).or_default() += count;
    }
    lines.into_iter().map(|(line, count)| format!("{line} {count}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_is_a_line_from_the_thread_inwards_and_equal_ones_are_counted_together() {
        let names = |names: &[&str]| names.iter().map(|name| name.to_string()).collect::<Vec<_>>();
        let stacks = [
            ("worker", names(&["encode::<[u8; 4]>", "push", "main"]), 2),
            ("worker", names(&["push", "main"]), 1),
            ("worker", names(&["encode::<[u8; 4]>", "push", "main"]), 3),
        ];
        assert_eq!(folded(stacks.into_iter()), "worker;main;push 1\nworker;main;push;encode::<[u8, 4]> 5\n");
        assert_eq!(folded(std::iter::empty()), "");
    }

    #[test]
    fn a_busy_function_is_found_by_name() {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let until = stop.clone();
        let busy = std::thread::spawn(move || busy_for_the_profile(&until));
        // How much of the processor it gets is the machine's to say.
        let mut looks = (0..100).filter_map(|_| sample(Duration::from_millis(100), 500).ok());
        let found = looks.any(|stacks| stacks.lines().any(|line| line.contains("busy_for_the_profile")));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        busy.join().unwrap();
        assert!(found);
    }

    #[inline(never)]
    fn busy_for_the_profile(stop: &std::sync::atomic::AtomicBool) -> u64 {
        let mut number = 1_u64;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            for _ in 0..1000 {
                number = std::hint::black_box(number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
            }
        }
        number
    }

    #[test]
    fn a_second_profile_at_the_same_time_is_refused() {
        let _one = ONE_AT_A_TIME.lock();
        assert_eq!(sample(Duration::ZERO, FREQUENCY).unwrap_err().0, StatusCode::TOO_MANY_REQUESTS);
    }
}
