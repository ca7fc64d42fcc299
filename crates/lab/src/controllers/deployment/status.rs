//! What a Deployment's status says: numbers and the two conditions that `kubectl rollout status` and `kubectl
//! wait` read. Pure.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::rollout::{Rollout, Set};

/// What the status is made of.
pub struct Facts<'a> {
    /// What is asked for.
    pub rollout: &'a Rollout,
    /// The ReplicaSet of the current template.
    pub new: Option<&'a Set>,
    /// All others.
    pub old: &'a [Set],
    /// Seconds without progress after which the rollout counts as failed.
    pub deadline: i32,
}

/// Whether every wanted pod is of the new template and available, and no other is left.
pub fn is_complete(rollout: &Rollout, new: &Set, old: &[Set]) -> bool {
    new.replicas == rollout.replicas
        && new.pods == rollout.replicas
        && new.available == rollout.replicas
        && old.iter().all(|set| set.pods == 0 && set.replicas == 0)
}

/// The status, and when it has to be looked at again although nothing changes.
pub fn of(
    before: &DeploymentStatus,
    facts: &Facts<'_>,
    generation: Option<i64>,
    now: &Time,
) -> (DeploymentStatus, Option<Duration>) {
    let sum = |what: fn(&Set) -> i32| facts.old.iter().chain(facts.new).map(what).sum::<i32>();
    let (pods, ready, available) = (sum(|set| set.pods), sum(|set| set.ready), sum(|set| set.available));
    let some = |count: i32| (count > 0).then_some(count);
    let mut after = DeploymentStatus {
        observed_generation: generation,
        replicas: some(pods),
        updated_replicas: some(facts.new.map_or(0, |set| set.pods)),
        ready_replicas: some(ready),
        available_replicas: some(available),
        unavailable_replicas: some(facts.rollout.replicas.max(pods) - available),
        ..before.clone()
    };

    let enough = available >= facts.rollout.replicas - facts.rollout.unavailable;
    let (reason, message) = if enough {
        ("MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set_condition(&mut after, "Available", enough, reason, message, now, false);

    let again = progress(before, &mut after, facts, now);
    (after, again)
}

fn progress(
    before: &DeploymentStatus,
    after: &mut DeploymentStatus,
    facts: &Facts<'_>,
    now: &Time,
) -> Option<Duration> {
    let name = facts.new.map_or("none", |set| set.name.as_str());
    if facts.new.is_some_and(|new| is_complete(facts.rollout, new, facts.old)) {
        let message = format!("ReplicaSet \"{name}\" has successfully progressed.");
        set_condition(after, "Progressing", true, "NewReplicaSetAvailable", &message, now, false);
        return None;
    }
    let moved = before.replicas != after.replicas
        || before.updated_replicas != after.updated_replicas
        || before.ready_replicas != after.ready_replicas
        || before.available_replicas != after.available_replicas
        || before.observed_generation != after.observed_generation;
    let since = condition(before, "Progressing").and_then(|condition| condition.last_update_time.as_ref());
    let waited = since.map_or(0, |since| now.0.as_second() - since.0.as_second());
    let left = i64::from(facts.deadline) - waited;
    if facts.rollout.paused {
        let message = "Deployment is paused";
        set_condition(after, "Progressing", true, "DeploymentPaused", message, now, false);
        return None;
    }
    if !moved && left <= 0 && since.is_some() {
        let message = format!("ReplicaSet \"{name}\" has timed out progressing.");
        set_condition(after, "Progressing", false, "ProgressDeadlineExceeded", &message, now, false);
        return None;
    }
    let message = format!("ReplicaSet \"{name}\" is progressing.");
    set_condition(after, "Progressing", true, "ReplicaSetUpdated", &message, now, moved);
    Some(Duration::from_secs(u64::try_from(left.max(1)).unwrap_or(1)))
}

fn condition<'a>(status: &'a DeploymentStatus, kind: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == kind)
}

fn set_condition(
    status: &mut DeploymentStatus,
    kind: &str,
    holds: bool,
    reason: &str,
    message: &str,
    now: &Time,
    refresh: bool,
) {
    let value = if holds { "True" } else { "False" };
    let known = condition(status, kind).cloned();
    let same = known.as_ref().is_some_and(|known| {
        known.status == value
            && known.reason.as_deref() == Some(reason)
            && known.message.as_deref() == Some(message)
    });
    if same && !refresh {
        return;
    }
    let transition = known.filter(|known| known.status == value).and_then(|known| known.last_transition_time);
    let new = DeploymentCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_update_time: Some(now.clone()),
        last_transition_time: transition.or_else(|| Some(now.clone())),
    };
    let conditions = status.conditions.get_or_insert_default();
    match conditions.iter_mut().find(|condition| condition.type_ == kind) {
        Some(known) => *known = new,
        None => conditions.push(new),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(second).unwrap())
    }

    fn set(replicas: i32, available: i32) -> Set {
        Set { name: "new".into(), replicas, pods: replicas, ready: available, available }
    }

    fn reason(status: &DeploymentStatus, kind: &str) -> String {
        condition(status, kind).and_then(|condition| condition.reason.clone()).unwrap()
    }

    #[test]
    fn a_rollout_progresses_completes_or_times_out() {
        let rollout =
            Rollout { replicas: 2, surge: 1, unavailable: 0, recreate: false, old_pods: 0, paused: false };
        let facts = |new| Facts { rollout: &rollout, new, old: &[], deadline: 60 };
        let starting = set(2, 0);
        let (first, again) = of(&DeploymentStatus::default(), &facts(Some(&starting)), Some(1), &at(100));
        assert_eq!(reason(&first, "Progressing"), "ReplicaSetUpdated");
        assert_eq!(reason(&first, "Available"), "MinimumReplicasUnavailable");
        assert_eq!(again, Some(Duration::from_secs(60)));

        let (same, _) = of(&first, &facts(Some(&starting)), Some(1), &at(120));
        assert_eq!(same, first, "nothing new is nothing to write");

        let (late, _) = of(&first, &facts(Some(&starting)), Some(1), &at(161));
        assert_eq!(reason(&late, "Progressing"), "ProgressDeadlineExceeded");

        let done = set(2, 2);
        let (complete, again) = of(&first, &facts(Some(&done)), Some(1), &at(130));
        assert_eq!(reason(&complete, "Progressing"), "NewReplicaSetAvailable");
        assert_eq!(reason(&complete, "Available"), "MinimumReplicasAvailable");
        assert_eq!(again, None);
    }
}
