//! Workloads that have only a hostname: what it resolves to, remembered for a while.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::failure::Failure;

/// How long an answer is believed.
const FRESH: Duration = Duration::from_secs(30);
const LIMIT: Duration = Duration::from_secs(5);
/// Names remembered at once.
const MAX: usize = 4096;

/// Answers of the node's resolver.
#[derive(Debug, Default)]
pub(crate) struct Hostnames(Mutex<HashMap<Arc<str>, Answer>>);

/// When it came, and what it was.
type Answer = (Instant, Vec<IpAddr>);

impl Hostnames {
    /// The addresses of `hostname`; bounded in time.
    pub(crate) async fn resolve(&self, hostname: &Arc<str>) -> Result<Vec<IpAddr>, Failure> {
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

    fn known(&self, hostname: &str, now: Instant) -> Option<Vec<IpAddr>> {
        let known = self.0.lock();
        let (since, addresses) = known.get(hostname)?;
        (now.saturating_duration_since(*since) < FRESH).then(|| addresses.clone())
    }

    fn remember(&self, hostname: Arc<str>, addresses: Vec<IpAddr>, now: Instant) {
        let mut known = self.0.lock();
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
    fn an_answer_is_believed_for_a_while_and_memory_is_bounded() {
        let (names, start) = (Hostnames::default(), Instant::now());
        let ip: IpAddr = [192, 0, 2, 1].into();
        names.remember("a.example".into(), vec![ip], start);
        assert_eq!(names.known("a.example", start + FRESH / 2), Some(vec![ip]));
        assert_eq!(names.known("a.example", start + FRESH), None);
        for number in 0..2 * MAX {
            names.remember(number.to_string().into(), Vec::new(), start + FRESH);
        }
        assert_eq!(names.0.lock().len(), MAX);
    }
}
