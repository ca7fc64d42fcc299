//! How often one node proxy may ask for certificates: a whole node at once, but not for ever.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Certificates that may be asked for at once: a full node of different accounts, twice over.
const BURST: f64 = 500.0;
/// And then a second.
const RATE: f64 = 20.0;
/// Callers that are remembered, at most.
const CAPACITY: usize = 16_384;

/// One bucket a caller.
#[derive(Debug, Default)]
pub struct Limits(Mutex<HashMap<Arc<str>, (f64, Instant)>>);

impl Limits {
    /// Whether a caller may ask once more; otherwise, after how long it may.
    pub fn take(&self, caller: &Arc<str>, now: Instant) -> Result<(), Duration> {
        let mut callers = self.0.lock();
        let filled = |tokens: f64, at: Instant| {
            (tokens + now.saturating_duration_since(at).as_secs_f64() * RATE).min(BURST)
        };
        if callers.len() >= CAPACITY && !callers.contains_key(caller) {
            callers.retain(|_, (tokens, at)| filled(*tokens, *at) < BURST);
        }
        let (tokens, at) = callers.entry(caller.clone()).or_insert((BURST, now));
        let have = filled(*tokens, *at);
        *at = now;
        if have < 1.0 {
            *tokens = have;
            return Err(Duration::from_secs_f64((1.0 - have) / RATE));
        }
        *tokens = have - 1.0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_gets_all_its_certificates_at_once_and_one_that_goes_on_asking_must_wait() {
        let (limits, start) = (Limits::default(), Instant::now());
        let (loud, quiet): (Arc<str>, Arc<str>) = ("loud".into(), "quiet".into());
        for _ in 0..500 {
            limits.take(&loud, start).unwrap();
        }
        let wait = limits.take(&loud, start).unwrap_err();
        assert!(wait > Duration::ZERO && wait <= Duration::from_millis(50));
        limits.take(&quiet, start).unwrap();
        limits.take(&loud, start + Duration::from_secs(1)).unwrap();
    }
}
