//! Where processor time goes: samples of all threads' stacks, in the form of `pprof` (reference/enrolment.md §6.1). Only
//! for who reaches the admin server, one at a time, and nothing is sampled at other times. [`heap`] tells where memory goes.

pub(super) mod heap;
mod pprof_proto;

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use axum::extract::Query;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use parking_lot::Mutex;

use super::text;

/// The sampler counts for the process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Stacks cannot be walked from within these without the risk of waiting for oneself.
const NOT_WITHIN: [&str; 4] = ["libc", "libgcc", "pthread", "vdso"];

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    seconds: u64,
    frequency: i32,
}

fn wanted(query: &HashMap<String, String>) -> Result<Wanted, String> {
    let number = |name: &str, default: u64, most: u64| match query.get(name) {
        None => Ok(default),
        Some(value) => match value.parse() {
            Ok(number) if (1..=most).contains(&number) => Ok(number),
            _ => Err(format!("{name}={value}: expected a number from 1 to {most}\n")),
        },
    };
    let frequency = number("frequency", 100, 1000)?;
    Ok(Wanted { seconds: number("seconds", 10, 300)?, frequency: i32::try_from(frequency).unwrap_or(100) })
}

/// Samples for a while, and answers with a profile.
pub(super) async fn cpu(Query(query): Query<HashMap<String, String>>) -> Response {
    let Wanted { seconds, frequency } = match wanted(&query) {
        Ok(wanted) => wanted,
        Err(reason) => return text(StatusCode::BAD_REQUEST, reason),
    };
    let sampled = tokio::task::spawn_blocking(move || sample(Duration::from_secs(seconds), frequency)).await;
    match sampled {
        Ok(Ok(profile)) => ([(header::CONTENT_TYPE, "application/octet-stream")], profile).into_response(),
        Ok(Err((status, reason))) => text(status, reason),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn sample(lasting: Duration, frequency: i32) -> Result<Vec<u8>, (StatusCode, String)> {
    let Some(_alone) = ONE_AT_A_TIME.try_lock() else {
        return Err((StatusCode::TOO_MANY_REQUESTS, "a profile is being taken already\n".into()));
    };
    let failed = |error: pprof::Error| (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"));
    let begun = SystemTime::now();
    let sampler = pprof::ProfilerGuardBuilder::default().frequency(frequency).blocklist(&NOT_WITHIN);
    let sampler = sampler.build().map_err(failed)?;
    std::thread::sleep(lasting);
    let report = sampler.report().build().map_err(failed)?;
    drop(sampler);
    let period = 1_000_000_000 / i64::from(frequency.max(1));
    let stacks = report.data.iter().map(|(frames, count)| {
        let lines = frames.frames.iter().flatten();
        let lines = lines.map(|line| pprof_proto::Line {
            function: line.name(),
            file: line.filename().into_owned(),
            number: i64::from(line.lineno()),
        });
        let stack = pprof_proto::Stack { thread: Some(frames.thread_name.clone()), lines: lines.collect() };
        let count = i64::try_from(*count).unwrap_or_default();
        (stack, vec![count, count.saturating_mul(period)])
    });
    let form = pprof_proto::Form {
        kinds: &[("samples", "count"), ("cpu", "nanoseconds")],
        default: "cpu",
        period,
        period_of: ("cpu", "nanoseconds"),
        begun,
        lasting,
    };
    let profile = pprof_proto::encode(stacks, &form);
    super::stats::gzip(&profile)
        .ok_or_else(|| (StatusCode::INTERNAL_SERVER_ERROR, "the profile cannot be packed\n".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(pairs: &[(&str, &str)]) -> Result<Wanted, String> {
        wanted(&pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn what_is_asked_for_is_bounded() {
        assert_eq!(asked(&[]), Ok(Wanted { seconds: 10, frequency: 100 }));
        assert_eq!(
            asked(&[("seconds", "300"), ("frequency", "1000")]),
            Ok(Wanted { seconds: 300, frequency: 1000 })
        );
        for wrong in [("seconds", "0"), ("seconds", "301"), ("frequency", "1001"), ("frequency", "x")] {
            assert!(asked(&[wrong]).unwrap_err().contains(wrong.0));
        }
    }

    #[test]
    fn a_busy_function_is_found_by_name() {
        let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let until = stop.clone();
        let busy = std::thread::spawn(move || busy_for_the_profile(&until));
        let profile = sample(Duration::from_millis(500), 500).unwrap();
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        busy.join().unwrap();
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*profile), &mut plain).unwrap();
        let names = pprof_proto::names(&plain);
        assert!(names.iter().any(|name| name.contains("busy_for_the_profile")), "{names:?}");
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
}
