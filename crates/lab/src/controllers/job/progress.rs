//! How a Job goes on. Pure.

use std::time::Duration;

/// A Job in numbers.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Pods that must succeed; none: one is enough, and then no new ones start.
    pub completions: Option<i32>,
    /// Pods that may run at once.
    pub parallelism: i32,
    /// Failures that are forgiven.
    pub backoff_limit: i32,
    /// Seconds that the Job may take.
    pub deadline: Option<i64>,
    /// Nothing may run.
    pub suspended: bool,
    /// Pods that run or are about to.
    pub active: usize,
    /// Pods that succeeded.
    pub succeeded: i32,
    /// Pods that failed.
    pub failed: i32,
    /// Restarts of containers in active pods.
    pub restarts: i32,
    /// Seconds since the start.
    pub running_for: i64,
    /// Seconds since the last failure.
    pub failed_for: Option<i64>,
}

/// What becomes of the Job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on.
    Run {
        /// New pods.
        create: usize,
        /// Active pods that are too many.
        surplus: usize,
        /// Look again after that long although nothing changes.
        look_again: Option<Duration>,
    },
    /// It is done.
    Complete,
    /// It is given up.
    Failed {
        /// A word for machines.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
}

/// What to do next.
pub fn decide(facts: &Facts) -> Verdict {
    let failures = facts.failed.saturating_add(facts.restarts);
    if failures > facts.backoff_limit {
        return Verdict::Failed {
            reason: "BackoffLimitExceeded",
            message: "Job has reached the specified backoff limit".into(),
        };
    }
    let time_left = facts.deadline.map(|deadline| deadline - facts.running_for);
    if !facts.suspended && time_left.is_some_and(|left| left <= 0) {
        return Verdict::Failed {
            reason: "DeadlineExceeded",
            message: "Job was active longer than specified deadline".into(),
        };
    }
    let complete = match facts.completions {
        Some(completions) => facts.succeeded >= completions,
        None => facts.succeeded > 0 && facts.active == 0,
    };
    if complete {
        return Verdict::Complete;
    }
    let wanted = match facts.completions {
        _ if facts.suspended => 0,
        Some(completions) => facts.parallelism.min(completions - facts.succeeded),
        // Success of one means that the others are finishing.
        None if facts.succeeded > 0 => i32::try_from(facts.active).unwrap_or(i32::MAX),
        None => facts.parallelism,
    };
    let wanted = usize::try_from(wanted).unwrap_or(0);
    let pause = facts.failed_for.map_or(0, |since| pause_after(facts.failed) - since);
    let create = if pause > 0 { 0 } else { wanted.saturating_sub(facts.active) };
    let seconds = [Some(pause).filter(|pause| *pause > 0), time_left.filter(|_| !facts.suspended)];
    let look_again = seconds.into_iter().flatten().min().and_then(|left| u64::try_from(left).ok());
    Verdict::Run {
        create,
        surplus: facts.active.saturating_sub(wanted),
        look_again: look_again.map(Duration::from_secs),
    }
}

/// Seconds to wait after the n-th failure: ten, doubled each time, six minutes at most.
fn pause_after(failures: i32) -> i64 {
    let doublings = u32::try_from(failures - 1).unwrap_or(0).min(10);
    (10_i64 << doublings).min(360)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Facts = Facts {
        completions: Some(3),
        parallelism: 2,
        backoff_limit: 6,
        deadline: None,
        suspended: false,
        active: 0,
        succeeded: 0,
        failed: 0,
        restarts: 0,
        running_for: 0,
        failed_for: None,
    };

    fn run(create: usize, surplus: usize) -> Verdict {
        Verdict::Run { create, surplus, look_again: None }
    }

    #[test]
    fn as_many_run_at_once_as_are_allowed_and_still_needed() {
        assert_eq!(decide(&FRESH), run(2, 0));
        assert_eq!(decide(&Facts { active: 2, ..FRESH }), run(0, 0));
        assert_eq!(decide(&Facts { succeeded: 2, ..FRESH }), run(1, 0));
        assert_eq!(decide(&Facts { active: 2, parallelism: 1, ..FRESH }), run(0, 1));
        assert_eq!(decide(&Facts { succeeded: 3, ..FRESH }), Verdict::Complete);
    }

    #[test]
    fn without_completions_the_first_success_starts_no_more() {
        let queue = Facts { completions: None, ..FRESH };
        assert_eq!(decide(&queue), run(2, 0));
        assert_eq!(decide(&Facts { succeeded: 1, active: 1, ..queue.clone() }), run(0, 0));
        assert_eq!(decide(&Facts { succeeded: 1, ..queue }), Verdict::Complete);
    }

    #[test]
    fn a_suspended_job_runs_nothing() {
        assert_eq!(decide(&Facts { suspended: true, active: 2, ..FRESH }), run(0, 2));
    }

    #[test]
    fn failures_are_tried_again_after_a_pause_until_there_are_too_many() {
        let failed = Facts { failed: 2, failed_for: Some(5), ..FRESH };
        let waiting = Verdict::Run { create: 0, surplus: 0, look_again: Some(Duration::from_secs(15)) };
        assert_eq!(decide(&failed), waiting);
        assert_eq!(decide(&Facts { failed_for: Some(20), ..failed.clone() }), run(2, 0));
        let verdict = decide(&Facts { failed: 4, restarts: 3, ..failed });
        assert!(matches!(verdict, Verdict::Failed { reason: "BackoffLimitExceeded", .. }), "{verdict:?}");
    }

    #[test]
    fn a_job_that_takes_too_long_is_given_up() {
        let late = Facts { deadline: Some(60), running_for: 60, active: 1, ..FRESH };
        assert!(matches!(decide(&late), Verdict::Failed { reason: "DeadlineExceeded", .. }));
        let early = decide(&Facts { running_for: 50, active: 2, ..late });
        assert_eq!(early, Verdict::Run { create: 0, surplus: 0, look_again: Some(Duration::from_secs(10)) });
    }
}
