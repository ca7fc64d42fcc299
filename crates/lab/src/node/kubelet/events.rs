//! Events on pods, written beside the loop: a slow API server must not hold up containers.
//!
//! The same event again raises its count, as with real kubelets. When too many wait, further ones are dropped:
//! events are for people.

use std::collections::HashMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;

const WAITING: usize = 512;
const REMEMBERED: usize = 2048;
const TIMEOUT: Duration = Duration::from_secs(10);

/// Where events are handed in.
#[derive(Clone)]
pub struct Events {
    sender: mpsc::Sender<Record>,
}

struct Record {
    object: ObjectReference,
    warning: bool,
    reason: &'static str,
    message: String,
}

impl Events {
    /// Starts the task that writes them.
    pub fn start(client: Client, node: String) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING);
        tokio::spawn(write(client, node, receiver));
        Self { sender }
    }

    /// Something went as it should.
    pub fn normal(
        &self,
        pod: &Pod,
        container: Option<&str>,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.send(pod, container, false, reason, message.into());
    }

    /// Something did not.
    pub fn warning(
        &self,
        pod: &Pod,
        container: Option<&str>,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.send(pod, container, true, reason, message.into());
    }

    fn send(&self, pod: &Pod, container: Option<&str>, warning: bool, reason: &'static str, message: String) {
        let meta = &pod.metadata;
        if warning {
            tracing::warn!(
                namespace = meta.namespace.as_deref().unwrap_or(""),
                pod = meta.name.as_deref().unwrap_or(""),
                reason,
                message
            );
        }
        let object = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: container.map(|c| format!("spec.containers{{{c}}}")),
        };
        if self.sender.try_send(Record { object, warning, reason, message }).is_err() {
            tracing::debug!(reason, "too many events wait; one is dropped");
        }
    }
}

async fn write(client: Client, node: String, mut records: mpsc::Receiver<Record>) {
    let mut known: HashMap<(Option<String>, &'static str, String), (String, i32)> = HashMap::new();
    while let Some(record) = records.recv().await {
        let namespace = record.object.namespace.clone().unwrap_or_else(|| "default".into());
        let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let now = Time(Timestamp::now());
        let key = (record.object.uid.clone(), record.reason, record.message.clone());
        if let Some((name, count)) = known.get_mut(&key) {
            *count += 1;
            let patch = json!({"count": *count, "lastTimestamp": now});
            let params = PatchParams::default();
            let done = tokio::time::timeout(TIMEOUT, events.patch(name, &params, &Patch::Merge(patch))).await;
            if matches!(done, Ok(Ok(_))) {
                continue;
            }
        }
        let object = record.object.name.clone().unwrap_or_default();
        let name = format!("{object}.{}", crate::node::sandbox::random_hex(8));
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: record.object,
            reason: Some(record.reason.to_owned()),
            message: Some(record.message),
            type_: Some(if record.warning { "Warning" } else { "Normal" }.to_owned()),
            source: Some(EventSource { component: Some("kubelet".into()), host: Some(node.clone()) }),
            reporting_component: Some("kubelet".into()),
            reporting_instance: Some(node.clone()),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        };
        match tokio::time::timeout(TIMEOUT, events.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => {
                if known.len() >= REMEMBERED {
                    known.clear();
                }
                known.insert(key, (name, 1));
            }
            Ok(Err(error)) => tracing::debug!(%error, "an event could not be written"),
            Err(_) => tracing::debug!("an event could not be written in time"),
        }
    }
}
