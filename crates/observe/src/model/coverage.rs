//! Shares of a whole, never rounded up.

use serde::Serialize;

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Coverage {
    pub by_bytes: Measure,
    pub by_connections: Measure,
    pub by_pairs: Measure,
    pub denied: u64,
    pub failed: u64,
    /// Pairs among `by_pairs` whose bytes nobody counted: scrapes that went past the mesh.
    pub uncounted_pairs: u64,
    pub denominator: &'static str,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct Measure {
    pub total: u64,
    pub proven: u64,
    pub unproven: u64,
    pub plaintext: u64,
    pub percent: Option<f64>,
}

impl Measure {
    /// Sums, and the percentage of them.
    pub fn of(proven: u64, unproven: u64, plaintext: u64) -> Self {
        let total = proven + unproven + plaintext;
        Self { total, proven, unproven, plaintext, percent: percent(proven, total) }
    }
}

/// Cut to hundredths, so that 100 means all and 0 means none.
pub fn percent(part: u64, total: u64) -> Option<f64> {
    if total == 0 {
        return None;
    }
    let hundredths = u128::from(part) * 10_000 / u128::from(total);
    Some(hundredths as f64 / 100.0)
}

#[cfg(test)]
mod tests {
    use super::percent;

    #[test]
    fn a_hundred_means_all_and_nothing_is_rounded_up() {
        assert_eq!(percent(9_999_999, 10_000_000), Some(99.99));
        assert_eq!((percent(5, 5), percent(0, 5), percent(0, 0)), (Some(100.0), Some(0.0), None));
        assert_eq!(percent(u64::MAX - 1, u64::MAX), Some(99.99));
    }
}
