//! Histograms in Prometheus' text format: a few atomic counters, no lock.

use std::fmt::Write as _;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Upper bounds of the buckets, ascending.
pub(super) trait Scale {
    /// At most [`MOST`] of them.
    const BOUNDS: &'static [f64];
}

const MOST: usize = 12;

/// Seconds, from half a millisecond.
#[derive(Debug, Default)]
pub(super) struct Seconds;

impl Scale for Seconds {
    const BOUNDS: &'static [f64] =
        &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0];
}

/// Bytes, from those of one workload to those of a large mesh.
#[derive(Debug, Default)]
pub(super) struct Bytes;

impl Scale for Bytes {
    const BOUNDS: &'static [f64] =
        &[512.0, 1024.0, 10_240.0, 102_400.0, 1_048_576.0, 10_485_760.0, 104_857_600.0];
}

/// A histogram.
#[derive(Debug, Default)]
pub(super) struct Histogram<S> {
    /// By bucket, the last one without bound; not cumulated.
    counts: [AtomicU64; MOST + 1],
    /// In millionths.
    sum: AtomicU64,
    scale: PhantomData<S>,
}

impl<S: Scale> Histogram<S> {
    pub fn observe(&self, value: f64) {
        let bucket = S::BOUNDS.iter().position(|bound| value <= *bound).unwrap_or(S::BOUNDS.len());
        if let Some(count) = self.counts.get(bucket) {
            count.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add((value * 1e6) as u64, Relaxed);
    }

    /// The samples of one series; `labels` is empty or `name="value",`.
    pub fn render(&self, out: &mut String, name: &str, labels: &str) {
        let mut total = 0;
        for (bound, count) in S::BOUNDS.iter().zip(&self.counts) {
            total += count.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels}le=\"{bound}\"}} {total}");
        }
        total += self.counts.get(S::BOUNDS.len()).map_or(0, |count| count.load(Relaxed));
        let _ = writeln!(out, "{name}_bucket{{{labels}le=\"+Inf\"}} {total}");
        let braces = match labels.trim_end_matches(',') {
            "" => String::new(),
            labels => format!("{{{labels}}}"),
        };
        let _ = writeln!(out, "{name}_sum{braces} {}", self.sum.load(Relaxed) as f64 / 1e6);
        let _ = writeln!(out, "{name}_count{braces} {total}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_cumulated_and_end_with_all() {
        let histogram = Histogram::<Seconds>::default();
        for value in [0.0001, 0.02, 0.02, 100.0] {
            histogram.observe(value);
        }
        let mut out = String::new();
        histogram.render(&mut out, "x", "type=\"wds\",");
        for line in [
            "x_bucket{type=\"wds\",le=\"0.0005\"} 1",
            "x_bucket{type=\"wds\",le=\"0.025\"} 3",
            "x_bucket{type=\"wds\",le=\"30\"} 3",
            "x_bucket{type=\"wds\",le=\"+Inf\"} 4",
            "x_sum{type=\"wds\"} 100.0401",
            "x_count{type=\"wds\"} 4",
        ] {
            assert!(out.lines().any(|have| have == line), "{line} in\n{out}");
        }
        assert!(Seconds::BOUNDS.len() <= MOST && Bytes::BOUNDS.len() <= MOST);
    }
}
