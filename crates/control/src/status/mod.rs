//! Writes status back to objects (reference/control-plane.md §1.10): conditions, and addresses of ServiceEntries.
//!
//! What is to be written stands in the snapshot as long as it does not stand on the object; this only writes it, on
//! the replica that leads. A write that fails or has no effect is tried again, ever more slowly, and holds up no other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Service;
use kube::api::{Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::state::{Snapshot, StatusKind, StatusOf, Wanted};
use crate::watch::{AUTHORIZATION_POLICIES, SERVICE_ENTRIES, WORKLOAD_ENTRIES};

/// Writes at once.
const AT_ONCE: usize = 8;
/// After a write, the watch has this long to tell of it.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause between two tries.
const LAST_PAUSE: Duration = Duration::from_secs(300);
/// How long the API may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was tried, to be tried again not before.
#[derive(Debug)]
struct Tried {
    wanted: Arc<Wanted>,
    pause: Duration,
    again: Instant,
}

/// Which writes are due.
#[derive(Debug, Default)]
struct Due(BTreeMap<StatusOf, Tried>);

impl Due {
    /// What is to be written now. What is wanted no more is forgotten.
    fn take(&mut self, snapshot: &Snapshot, now: Instant) -> Vec<(StatusOf, Arc<Wanted>)> {
        self.0.retain(|of, _| snapshot.statuses.contains_key(of));
        let mut due = Vec::new();
        for (of, wanted) in &snapshot.statuses {
            let pause = match self.0.get(of) {
                Some(tried) if tried.wanted == *wanted && now < tried.again => continue,
                Some(tried) if tried.wanted == *wanted => (tried.pause * 2).min(LAST_PAUSE),
                _ => FIRST_PAUSE,
            };
            self.0.insert(of.clone(), Tried { wanted: wanted.clone(), pause, again: now + pause });
            due.push((of.clone(), wanted.clone()));
        }
        due
    }

    /// When something is due next.
    fn next(&self) -> Option<Instant> {
        self.0.values().map(|tried| tried.again).min()
    }
}

/// Writes what is to be written, whenever `leading`. Runs until nobody publishes snapshots any more.
pub(crate) async fn write(
    client: Client,
    mut snapshots: watch::Receiver<Snapshot>,
    mut leading: watch::Receiver<bool>,
) {
    let mut due = Due::default();
    loop {
        if *leading.borrow_and_update() {
            let snapshot = snapshots.borrow_and_update().clone();
            // Half of the inputs would make conditions that are taken back a moment later.
            if snapshot.synced() {
                let writes = due.take(&snapshot, Instant::now()).into_iter().map(|(of, wanted)| {
                    let (client, leads) = (client.clone(), leading.clone());
                    async move {
                        // A long batch may outlast the lease.
                        if *leads.borrow() {
                            put(client, &of, &wanted).await;
                        }
                    }
                });
                futures::stream::iter(writes).buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
            }
        } else {
            due = Due::default();
        }
        let again = due.next();
        tokio::select! {
            changed = snapshots.changed() => if changed.is_err() { return },
            changed = leading.changed() => if changed.is_err() { return },
            () = async { tokio::time::sleep_until(again.unwrap_or_else(Instant::now)).await }, if again.is_some() => {}
        }
    }
}

/// Where the status of a kind is written, and as which field manager.
pub fn written(kind: StatusKind) -> (ApiResource, &'static str) {
    match kind {
        StatusKind::Service => (ApiResource::erase::<Service>(&()), "istio-ambient-service"),
        StatusKind::ServiceEntry => (SERVICE_ENTRIES.resource(), "istio-ambient-service"),
        StatusKind::WorkloadEntry => (WORKLOAD_ENTRIES.resource(), "istio-ambient-workloadentry"),
        StatusKind::AuthorizationPolicy => {
            (AUTHORIZATION_POLICIES.resource(), "istio-ambient-ztunnel-policy")
        }
    }
}

async fn put(client: Client, of: &StatusOf, wanted: &Wanted) {
    let (resource, manager) = written(of.kind);
    let now = k8s_openapi::jiff::Timestamp::now();
    // The API keeps whole seconds.
    let now = k8s_openapi::jiff::Timestamp::from_second(now.as_second()).unwrap_or(now).to_string();
    let body = body(&resource, of, wanted, &now);
    let api = Api::<DynamicObject>::namespaced_with(client, &of.key.namespace, &resource);
    let params = PatchParams::apply(manager).force();
    let patch = Patch::Apply(&body);
    match tokio::time::timeout(PATIENCE, api.patch_status(&of.key.name, &params, &patch)).await {
        Ok(Ok(_)) => tracing::debug!(kind = ?of.kind, object = %of.key, "status written"),
        Ok(Err(kube::Error::Api(status))) if status.is_not_found() => {}
        Ok(Err(error)) => {
            let error = crate::error::causes(&error);
            tracing::warn!(kind = ?of.kind, object = %of.key, error, "cannot write the status, trying again");
        }
        Err(_) => {
            tracing::warn!(kind = ?of.kind, object = %of.key, "the API takes no status, trying again");
        }
    }
}

/// What is applied: our conditions, and nothing of anybody else's.
fn body(resource: &ApiResource, of: &StatusOf, wanted: &Wanted, now: &str) -> Value {
    let conditions: Vec<Value> = wanted
        .conditions
        .iter()
        .map(|condition| {
            let since = if condition.since.is_empty() { now } else { &condition.since };
            let mut value = json!({
                "type": condition.kind, "status": if condition.status { "True" } else { "False" },
                "reason": condition.reason, "message": condition.message, "lastTransitionTime": since,
            });
            if let Some(generation) = condition.generation {
                value["observedGeneration"] = generation.into();
            }
            value
        })
        .collect();
    let mut status = json!({ "conditions": conditions });
    if !wanted.addresses.is_empty() {
        status["addresses"] = wanted
            .addresses
            .iter()
            .map(|(host, ip)| json!({ "host": **host, "value": ip.to_string() }))
            .collect();
    }
    json!({
        "apiVersion": resource.api_version, "kind": resource.kind,
        "metadata": { "name": *of.key.name, "namespace": *of.key.namespace },
        "status": status,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;
    use crate::input::Key;

    fn of(name: &str) -> StatusOf {
        StatusOf { kind: StatusKind::Service, key: Key::new("shop", name) }
    }

    fn wanting(names: &[&str]) -> Snapshot {
        let wanted = Arc::new(Wanted { conditions: vec![], addresses: vec![] });
        Snapshot {
            statuses: names.iter().map(|name| (of(name), wanted.clone())).collect(),
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_write_without_effect_is_tried_again_ever_more_slowly() {
        let (mut due, start) = (Due::default(), Instant::now());
        assert_eq!(due.take(&wanting(&["a"]), start).len(), 1);
        assert_eq!(due.take(&wanting(&["a", "b"]), start).len(), 1);
        let second = start + FIRST_PAUSE;
        assert_eq!(due.take(&wanting(&["a", "b"]), second).len(), 2);
        assert_eq!(due.take(&wanting(&["a"]), second + FIRST_PAUSE).len(), 0);
        assert_eq!(due.take(&wanting(&["a"]), second + FIRST_PAUSE * 2).len(), 1);
    }

    #[tokio::test]
    async fn whoever_stops_leading_writes_nothing_more() {
        let names: Vec<String> = (0..100).map(|index| format!("s{index}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let snapshot = Snapshot { waiting_for: Some(vec![]), ..wanting(&names) };
        let (lead, leads) = watch::channel(true);
        let writes = Arc::new(AtomicUsize::new(0));
        let written = writes.clone();
        let client = crate::fixtures::api(move |_, _| {
            written.fetch_add(1, Relaxed);
            lead.send_replace(false);
            Some((404, json!({ "kind": "Status", "status": "Failure", "reason": "NotFound", "code": 404 })))
        });
        // No further snapshot comes, so it ends after this one.
        let (_, snapshots) = watch::channel(snapshot);
        write(client, snapshots, leads).await;
        assert!((1..=AT_ONCE).contains(&writes.load(Relaxed)), "{writes:?}");
    }

    #[test]
    fn what_was_put_right_and_is_wrong_again_is_written_at_once() {
        let (mut due, now) = (Due::default(), Instant::now());
        assert_eq!(due.take(&wanting(&["a"]), now).len(), 1);
        assert_eq!(due.take(&wanting(&[]), now).len(), 0);
        assert_eq!(due.take(&wanting(&["a"]), now).len(), 1);
    }
}
