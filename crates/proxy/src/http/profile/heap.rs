//! What memory was allocated by, in the form of `pprof` (reference/enrolment.md §6.1): once somebody has switched that on.

use std::collections::HashMap;
use std::ffi::c_void;
use std::time::{Duration, SystemTime};

use axum::extract::Query;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::pprof_proto::{Form, Line, Stack, encode};
use crate::heap::{self, Held};
use crate::http::text;

const OFF: &str = "heap profiling is not active: POST /debug/pprof/heap/profiling?activate=true, and what is allocated from \
                   then on is told here; the process's size is process_resident_memory_bytes in /metrics\n";
const NOT_OURS: &str = "heap profiles are taken by an allocator that this program does not have\n";

/// The stacks that hold memory.
pub(in crate::http) async fn dump() -> Response {
    let Some(held) = heap::held().filter(|_| heap::is_active()) else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, OFF);
    };
    match tokio::task::spawn_blocking(move || heap::unseen(|| profile(&held)).flatten()).await {
        Ok(Some(profile)) => ([(header::CONTENT_TYPE, "application/octet-stream")], profile).into_response(),
        Ok(None) => text(StatusCode::INTERNAL_SERVER_ERROR, "the profile cannot be packed\n"),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// Switches profiling on and off, or says how it stands.
pub(in crate::http) async fn profiling(Query(query): Query<HashMap<String, String>>) -> Response {
    match query.get("activate").map(String::as_str) {
        None => {}
        Some("true") if heap::activate(true) => {}
        Some("true") => return text(StatusCode::INTERNAL_SERVER_ERROR, NOT_OURS),
        Some("false") => drop(heap::activate(false)),
        Some(other) => {
            let reason = format!("activate={other}: expected true or false\n");
            return text(StatusCode::BAD_REQUEST, reason);
        }
    }
    text(StatusCode::OK, format!("heap profiling active: {}\n", heap::is_active()))
}

fn profile(held: &[Held]) -> Option<Vec<u8>> {
    let mut named: HashMap<usize, Vec<Line>> = HashMap::new();
    let stacks = held.iter().map(|held| {
        let mut lines = Vec::new();
        for at in held.stack.iter() {
            lines.extend(named.entry(*at).or_insert_with(|| name(*at)).iter().cloned());
        }
        // Every stack begins with how it was taken.
        let own = lines.iter().rposition(|line| of_allocator(&line.function)).map_or(0, |last| last + 1);
        lines.drain(..own);
        let numbers = [held.taken.objects, held.taken.bytes, held.held.objects, held.held.bytes];
        (
            Stack { thread: None, lines },
            numbers.map(|number| i64::try_from(number).unwrap_or(i64::MAX)).into(),
        )
    });
    let form = Form {
        kinds: &[
            ("alloc_objects", "count"),
            ("alloc_space", "bytes"),
            ("inuse_objects", "count"),
            ("inuse_space", "bytes"),
        ],
        default: "inuse_space",
        period_of: ("space", "bytes"),
        period: heap::PERIOD as i64,
        begun: SystemTime::now(),
        lasting: Duration::ZERO,
    };
    let profile = encode(stacks, &form);
    // What is known of names takes more memory than most of what is told here.
    backtrace::clear_symbol_cache();
    crate::http::stats::gzip(&profile)
}

fn of_allocator(function: &str) -> bool {
    function.contains("heap::Sampling")
        || function.contains("heap::remember")
        || function.contains("__rust_alloc")
        || function.contains("__rust_realloc")
}

/// The functions at an address, several where some were inlined, the innermost first.
fn name(at: usize) -> Vec<Line> {
    let mut lines = Vec::new();
    backtrace::resolve(at as *mut c_void, |symbol| {
        lines.push(Line {
            function: symbol.name().map_or_else(|| format!("{at:#x}"), |name| format!("{name:#}")),
            file: symbol.filename().map(|file| file.display().to_string()).unwrap_or_default(),
            number: i64::from(symbol.lineno().unwrap_or_default()),
        });
    });
    if lines.is_empty() {
        lines.push(Line { function: format!("{at:#x}"), file: String::new(), number: 0 });
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::profile::pprof_proto;

    #[global_allocator]
    static ALLOCATOR: heap::Sampling = heap::Sampling;

    async fn body(response: Response) -> (u16, Vec<u8>) {
        let status = response.status().as_u16();
        (status, axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap().to_vec())
    }

    async fn ask(activate: &str) -> (u16, String) {
        let query =
            if activate.is_empty() { vec![] } else { vec![("activate".to_owned(), activate.to_owned())] };
        let (status, body) = body(profiling(Query(query.into_iter().collect())).await).await;
        (status, String::from_utf8(body).unwrap())
    }

    /// Bytes that were taken, and bytes that are held, by stacks with this function.
    async fn of(function: &str) -> (i64, i64) {
        let (status, packed) = body(dump().await).await;
        assert_eq!(status, 200);
        let mut plain = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::GzDecoder::new(&*packed), &mut plain).unwrap();
        let stacks = pprof_proto::stacks(&plain);
        let with = stacks.iter().filter(|(names, _)| names.iter().any(|name| name.contains(function)));
        with.fold((0, 0), |sum, (_, numbers)| (sum.0 + numbers[1], sum.1 + numbers[3]))
    }

    #[inline(never)]
    fn hoard_for_the_profile() -> Vec<Vec<u8>> {
        (0..256).map(|_| std::hint::black_box(Vec::with_capacity(1 << 20))).collect()
    }

    #[tokio::test]
    async fn what_holds_memory_is_told_once_that_is_switched_on() {
        assert_eq!(ask("").await, (200, "heap profiling active: false\n".into()));
        assert_eq!(body(dump().await).await, (500, OFF.into()));
        assert_eq!(ask("maybe").await.0, 400);
        let before = hoard_for_the_profile();
        assert_eq!(ask("true").await, (200, "heap profiling active: true\n".into()));
        let hoard = hoard_for_the_profile();
        drop(before);
        // A quarter of a gibibyte, give or take eight times what drawing lots makes of it.
        let near = |bytes: i64| (200..=312).contains(&(bytes >> 20));
        let (taken, held) = of("hoard_for_the_profile").await;
        assert!(near(taken) && near(held), "{taken} taken, {held} held");
        drop(hoard);
        assert_eq!(of("hoard_for_the_profile").await, (taken, 0), "it is given back");
        // Many threads that take and give leave nothing behind.
        let threads: Vec<_> = (0..8).map(|_| std::thread::spawn(|| drop(hoard_for_the_profile()))).collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let (taken, held) = of("hoard_for_the_profile").await;
        assert!(taken >> 20 > 9 * 200 && held == 0, "{taken} taken, {held} held");
        assert_eq!(ask("false").await, (200, "heap profiling active: false\n".into()));
        assert_eq!(body(dump().await).await.0, 500);
    }
}
