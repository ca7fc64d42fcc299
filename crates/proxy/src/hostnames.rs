//! Workloads that have only a hostname: what it resolves to, remembered for a while.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh::Workload;
use parking_lot::Mutex;

use crate::failure::Failure;
use crate::flows::{Side, escape};

/// How long an answer is believed.
const FRESH: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(5);
/// Names remembered at once.
const MAX: usize = 4096;

/// Who asked for what is counted for so many pairs of them.
const MAX_COUNTED: usize = 4096;

/// Answers of the node's resolver.
#[derive(Debug, Default)]
pub(crate) struct Hostnames {
    known: Mutex<HashMap<Arc<str>, Answer>>,
    /// How often the resolver was asked, by who asked for what, as labels.
    asked: Mutex<BTreeMap<String, u64>>,
}

/// When it came, and what it was.
type Answer = (Instant, Vec<IpAddr>);

impl Hostnames {
    /// The addresses of `hostname`, which `source` wants to call; bounded in time.
    pub(crate) async fn resolve(
        &self,
        hostname: &Arc<str>,
        source: &Workload,
    ) -> Result<Vec<IpAddr>, Failure> {
        self.count(hostname, source);
        if let Some(known) = self.known(hostname, Instant::now()) {
            return Ok(known);
        }
        let failed = |reason: String| Failure::Hostname { hostname: hostname.to_string(), reason };
        let asked = tokio::time::timeout(LIMIT, tokio::net::lookup_host((&**hostname, 0))).await;
        let found = asked.map_err(|_| failed(format!("no answer within {LIMIT:?}")))?;
        let found = found.map_err(|error| failed(error.to_string()))?;
        let mut addresses: Vec<IpAddr> = found.map(|address| address.ip().to_canonical()).collect();
        addresses.dedup();
        self.remember(hostname.clone(), addresses.clone(), Instant::now());
        Ok(addresses)
    }

    fn count(&self, hostname: &str, source: &Workload) {
        let mut text = Side::of(source, Some(source.identity.clone())).render("source");
        text.push_str(",hostname=\"");
        escape(&mut text, hostname);
        text.push('"');
        let mut asked = self.asked.lock();
        if asked.len() < MAX_COUNTED || asked.contains_key(&text) {
            *asked.entry(text).or_default() += 1;
        }
    }

    /// The metrics in OpenMetrics text.
    pub(crate) fn encode(&self, out: &mut String) {
        let name = "istio_on_demand_dns";
        let _ = writeln!(
            out,
            "# HELP {name} Calls to workloads whose name had to be resolved.\n# TYPE {name} counter"
        );
        for (labels, count) in self.asked.lock().iter() {
            let _ = writeln!(out, "{name}_total{{{labels}}} {count}");
        }
    }

    fn known(&self, hostname: &str, now: Instant) -> Option<Vec<IpAddr>> {
        let known = self.known.lock();
        let (since, addresses) = known.get(hostname)?;
        (now.saturating_duration_since(*since) < FRESH).then(|| addresses.clone())
    }

    fn remember(&self, hostname: Arc<str>, addresses: Vec<IpAddr>, now: Instant) {
        let mut known = self.known.lock();
        if known.len() >= MAX {
            known.retain(|_, (since, _)| now.saturating_duration_since(*since) < FRESH);
        }
        if known.len() < MAX {
            known.insert(hostname, (now, addresses));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_calls_workloads_by_name_is_counted() {
        let identity = mesh::Identity::new("cluster.local", "shop", "web").unwrap();
        let (names, mut out) = (Hostnames::default(), String::new());
        names.count("far.example", &Workload::new("uid", "web-0", identity));
        names.encode(&mut out);
        assert!(
            out.contains("source_workload=\"web-0\"") && out.contains("hostname=\"far.example\"} 1"),
            "{out}"
        );
    }

    #[test]
    fn an_answer_is_believed_for_a_while_and_memory_is_bounded() {
        let (names, start) = (Hostnames::default(), Instant::now());
        let ip: IpAddr = [192, 0, 2, 1].into();
        names.remember("a.example".into(), vec![ip], start);
        assert_eq!(names.known("a.example", start + FRESH / 2), Some(vec![ip]));
        assert_eq!(names.known("a.example", start + FRESH), None);
        for number in 0..2 * MAX {
            names.remember(number.to_string().into(), Vec::new(), start + FRESH);
        }
        assert_eq!(names.known.lock().len(), MAX);
    }
}
