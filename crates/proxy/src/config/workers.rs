//! How many threads carry bytes (reference/enrolment.md §6.6): what is asked for, else what the pod is allowed, else a
//! quarter of the node.

use super::ConfigError;
use super::env::{Vars, error};

/// Threads to start.
pub(super) fn count(vars: &Vars, cores: usize) -> Result<usize, ConfigError> {
    let variable = "ZTUNNEL_WORKER_THREADS";
    let requested = whole_cores(vars, "ZTUNNEL_RESOURCE_CPU_REQUEST")?.unwrap_or(0);
    let limit = match whole_cores(vars, "ZTUNNEL_CPU_LIMIT")? {
        Some(limit) => Some(limit),
        // Without a limit of its own the pod is told that of the node.
        None => whole_cores(vars, "ZTUNNEL_RESOURCE_CPU_LIMIT")?.filter(|limit| *limit < cores),
    };
    let Some(value) = vars.text(variable) else {
        return Ok(match limit {
            Some(limit) => limit.max(requested).max(1),
            None => (cores / 4).max(requested).max(2),
        });
    };
    let wrong = || error(variable, value, "expected a number of threads or a percentage of the cores");
    match value.strip_suffix('%') {
        Some(percent) => {
            let percent: usize = percent.parse().map_err(|_| wrong())?;
            Ok((cores * percent.min(100) / 100).max(1))
        }
        None => match value.parse().map_err(|_| wrong())? {
            0 => Ok(cores),
            threads if threads <= 1024 => Ok(threads),
            _ => Err(wrong()),
        },
    }
}

/// A quantity of Kubernetes in cores, rounded up: `2`, `1.5`, `250m`. Nothing for 0.
fn whole_cores(vars: &Vars, variable: &str) -> Result<Option<usize>, ConfigError> {
    let Some(value) = vars.text(variable) else { return Ok(None) };
    let wrong = || error(variable, value, "expected a number of cores such as 2, 1.5 or 250m");
    let (number, unit) = match value.strip_suffix('m') {
        Some(number) => (number, 0.001),
        None => (value, 1.0),
    };
    let number: f64 = number.parse().map_err(|_| wrong())?;
    if !(0.0..=1_000_000.0).contains(&number) {
        return Err(wrong());
    }
    let cores = (number * unit).ceil() as usize;
    Ok((cores > 0).then_some(cores))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn threads(vars: &[(&str, &str)], cores: usize) -> Result<usize, ConfigError> {
        count(&Vars::new(vars.iter().map(|(name, value)| ((*name).into(), (*value).into()))), cores)
    }

    #[test]
    fn without_a_word_a_quarter_of_the_node_and_at_least_two() {
        assert_eq!((threads(&[], 1), threads(&[], 64)), (Ok(2), Ok(16)));
        assert_eq!(threads(&[("ZTUNNEL_RESOURCE_CPU_REQUEST", "6")], 8), Ok(6));
    }

    #[test]
    fn a_limit_of_the_pod_wins_and_that_of_the_node_is_none() {
        assert_eq!(threads(&[("ZTUNNEL_CPU_LIMIT", "500m")], 64), Ok(1));
        assert_eq!(
            threads(&[("ZTUNNEL_CPU_LIMIT", "1.5"), ("ZTUNNEL_RESOURCE_CPU_REQUEST", "3")], 64),
            Ok(3)
        );
        assert_eq!(threads(&[("ZTUNNEL_RESOURCE_CPU_LIMIT", "4")], 64), Ok(4));
        assert_eq!(threads(&[("ZTUNNEL_RESOURCE_CPU_LIMIT", "64")], 64), Ok(16));
    }

    #[test]
    fn what_is_asked_for_wins_over_everything() {
        let limited = |value| threads(&[("ZTUNNEL_WORKER_THREADS", value), ("ZTUNNEL_CPU_LIMIT", "1")], 8);
        assert_eq!((limited("5"), limited("50%"), limited("0")), (Ok(5), Ok(4), Ok(8)));
        for wrong in ["-1", "2000", "x%", "many"] {
            assert_eq!(limited(wrong).unwrap_err().variable, "ZTUNNEL_WORKER_THREADS");
        }
        for wrong in ["NaN", "-2", "2Gi"] {
            let error = threads(&[("ZTUNNEL_CPU_LIMIT", wrong)], 8).unwrap_err();
            assert_eq!(error.variable, "ZTUNNEL_CPU_LIMIT");
        }
    }
}
