//! Who made a pod: the name its telemetry goes by (reference/control-plane.md §1.1, owner heuristic).

use crate::input::Pod;

/// Name of the workload a pod belongs to: what it says itself, else its owner's, else its own.
pub fn workload_name(pod: &Pod) -> String {
    if let Some(name) = pod.labels.get("service.istio.io/workload-name") {
        return name.clone();
    }
    let Some(owner) = &pod.owner else { return pod.key.name.to_string() };
    let label = |key: &str| pod.labels.get(key).map(String::as_str).filter(|value| !value.is_empty());
    let without = |hash: &str| {
        owner.name.strip_suffix(hash).and_then(|name| name.strip_suffix('-')).filter(|name| !name.is_empty())
    };
    let made_by = match owner.kind.as_str() {
        "ReplicaSet" => ["pod-template-hash", "rollouts-pod-template-hash"]
            .into_iter()
            .find_map(|key| without(label(key)?)),
        "ReplicationController" => label("deploymentconfig"),
        "Job" => cron_job(&owner.name),
        _ => None,
    };
    made_by.unwrap_or(&owner.name).to_string()
}

/// The CronJob of a Job named `<cron job>-<8 to 10 digits>`.
fn cron_job(job: &str) -> Option<&str> {
    let (name, time) = job.rsplit_once('-')?;
    let scheduled = (8..=10).contains(&time.len()) && time.bytes().all(|byte| byte.is_ascii_digit());
    (scheduled && !name.is_empty()).then_some(name)
}
