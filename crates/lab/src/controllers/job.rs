//! Job: pods that run to their end, until enough of them did.
//!
//! Finished pods are counted as they stand there; a count once reported is not taken back when they are deleted.
//! Indexed completion is not offered: such a Job is told so and left alone.

use std::time::Duration;

use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::DeleteParams;
use kube::core::{Expression, Selector};
use kube::{Resource, ResourceExt};

use super::hub::{Change, Hub, Key};
use super::objects::{self, owner_name, write_status};
use super::{children, pods};

mod progress;

use progress::{Facts, Verdict};

const UID_LABEL: &str = "batch.kubernetes.io/controller-uid";

/// Runs Jobs.
pub struct Controller;

impl super::Controller for Controller {
    const NAME: &'static str = "job";

    fn keys(&self, _: &Hub, change: &Change) -> Vec<Key> {
        match change {
            Change::Job(job) => vec![Key::of(&job.metadata)],
            Change::Pod(pod) => owner_name(&pod.metadata, "Job")
                .map(|owner| vec![Key::new(pod.namespace().unwrap_or_default(), owner)])
                .unwrap_or_default(),
            _ => Vec::new(),
        }
    }

    async fn reconcile(&self, hub: &Hub, key: &Key) -> anyhow::Result<Option<Duration>> {
        let api = hub.api::<Job>(&key.namespace);
        let Some(mut job) = api.get_opt(&key.name).await? else { return Ok(None) };
        let Some(spec) = job.spec.clone() else { return Ok(None) };
        if job.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let now = objects::now();
        let before = job.status.clone().unwrap_or_default();
        if let Some(ended) = ended(&before) {
            return clean_up(hub, &job, &spec, &ended, &now).await;
        }
        if spec.completion_mode.as_deref() == Some("Indexed") {
            let message = "completionMode Indexed is not supported here; use NonIndexed";
            children::warn(hub, &job.object_ref(&()), "Unsupported", message).await;
            return Ok(None);
        }

        let uid = job.uid().unwrap_or_default();
        let selector = Selector::from(Expression::Equal(UID_LABEL.into(), uid));
        let mine = children::owned(hub, &job, &selector).await?;
        let facts = facts(&job, &spec, &before, &mine, &now);
        let verdict = progress::decide(&facts);
        let mut after = status(&before, &mine, &facts, &now);
        let mut again = None;
        match verdict {
            Verdict::Run { create, surplus, look_again } => {
                let active = mine.iter().filter(|pod| pods::is_active(pod));
                children::remove(hub, active.take(surplus)).await?;
                children::create_for(hub, &job, vec![pod_for(&job, &spec); create]).await?;
                set_condition(&mut after, "Suspended", spec.suspend == Some(true), "JobSuspended", "", &now);
                again = look_again;
            }
            Verdict::Complete => {
                let (reason, message) = ("CompletionsReached", "Reached expected number of succeeded pods");
                set_condition(&mut after, "SuccessCriteriaMet", true, reason, message, &now);
                set_condition(&mut after, "Complete", true, reason, message, &now);
                after.completion_time = Some(now.clone());
                children::remove(hub, mine.iter().filter(|pod| pods::is_active(pod))).await?;
            }
            Verdict::Failed { reason, message } => {
                set_condition(&mut after, "FailureTarget", true, reason, &message, &now);
                set_condition(&mut after, "Failed", true, reason, &message, &now);
                children::remove(hub, mine.iter().filter(|pod| pods::is_active(pod))).await?;
            }
        }
        job.status = Some(after.clone());
        write_status(&api, &job, &before, &after).await?;
        Ok(again)
    }
}

/// When the Job ended, if it did.
fn ended(status: &JobStatus) -> Option<Time> {
    let mut conditions = status.conditions.iter().flatten().filter(|condition| condition.status == "True");
    let last = conditions.find(|condition| matches!(condition.type_.as_str(), "Complete" | "Failed"))?;
    Some(last.last_transition_time.clone().unwrap_or_else(objects::now))
}

/// Deletes a Job that ended once its time to live is over.
async fn clean_up(
    hub: &Hub,
    job: &Job,
    spec: &JobSpec,
    ended: &Time,
    now: &Time,
) -> anyhow::Result<Option<Duration>> {
    let Some(ttl) = spec.ttl_seconds_after_finished else { return Ok(None) };
    let left = ended.0.as_second().saturating_add(i64::from(ttl)) - now.0.as_second();
    if let Ok(left @ 1..) = u64::try_from(left) {
        return Ok(Some(Duration::from_secs(left)));
    }
    let api = hub.api::<Job>(&job.namespace().unwrap_or_default());
    objects::delete(&api, &job.name_any(), job.uid(), DeleteParams::background()).await?;
    Ok(None)
}

fn facts(job: &Job, spec: &JobSpec, before: &JobStatus, mine: &[Pod], now: &Time) -> Facts {
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let count = |phase: &str| number(mine.iter().filter(|pod| pods::phase(pod) == phase).count());
    let restarts: i32 = mine.iter().filter(|pod| pods::is_active(pod)).map(pods::restarts).sum();
    let since = |time: Option<&Time>| time.map(|time| now.0.as_second() - time.0.as_second());
    let failed = mine.iter().filter(|pod| pods::phase(pod) == "Failed");
    let last_failure = failed.filter_map(ended_at).max();
    Facts {
        completions: spec.completions,
        parallelism: spec.parallelism.unwrap_or(1),
        backoff_limit: spec.backoff_limit.unwrap_or(6),
        deadline: spec.active_deadline_seconds,
        suspended: spec.suspend == Some(true),
        active: mine.iter().filter(|pod| pods::is_active(pod)).count(),
        succeeded: count("Succeeded").max(before.succeeded.unwrap_or(0)),
        failed: count("Failed").max(before.failed.unwrap_or(0)),
        restarts,
        running_for: since(before.start_time.as_ref().or(job.metadata.creation_timestamp.as_ref()))
            .unwrap_or(0),
        failed_for: last_failure.map(|second| now.0.as_second() - second),
    }
}

/// When the last container of a pod ended, in seconds since 1970.
fn ended_at(pod: &Pod) -> Option<i64> {
    let containers = pod.status.as_ref()?.container_statuses.iter().flatten();
    let ends = containers
        .filter_map(|container| container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref());
    ends.map(|at| at.0.as_second()).max()
}

fn pod_for(job: &Job, spec: &JobSpec) -> Pod {
    let mut pod = children::from_template(job, &spec.template);
    let labels = pod.metadata.labels.get_or_insert_default();
    let (name, uid) = (job.name_any(), job.uid().unwrap_or_default());
    labels.insert(UID_LABEL.into(), uid.clone());
    labels.insert("controller-uid".into(), uid);
    labels.insert("batch.kubernetes.io/job-name".into(), name.clone());
    labels.insert("job-name".into(), name);
    pod
}

fn status(before: &JobStatus, mine: &[Pod], facts: &Facts, now: &Time) -> JobStatus {
    let count = |what: fn(&Pod) -> bool| {
        i32::try_from(mine.iter().filter(|pod| pods::is_active(pod) && what(pod)).count()).unwrap_or(i32::MAX)
    };
    let some = |count: i32| (count > 0).then_some(count);
    JobStatus {
        active: some(count(|_| true)),
        ready: Some(count(pods::is_ready)),
        succeeded: some(facts.succeeded),
        failed: some(facts.failed),
        start_time: before.start_time.clone().or_else(|| (!facts.suspended).then(|| now.clone())),
        ..before.clone()
    }
}

fn set_condition(status: &mut JobStatus, kind: &str, holds: bool, reason: &str, message: &str, now: &Time) {
    let value = if holds { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let known = conditions.iter().position(|condition| condition.type_ == kind);
    match known {
        Some(at) if conditions[at].status == value => return,
        // What never held is not worth saying.
        None if !holds => {
            if conditions.is_empty() {
                status.conditions = None;
            }
            return;
        }
        Some(at) => _ = conditions.remove(at),
        None => {}
    }
    conditions.push(JobCondition {
        type_: kind.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message.into()),
        last_probe_time: Some(now.clone()),
        last_transition_time: Some(now.clone()),
    });
}
