//! Events on pods: who looks at a pod sees whether it is in the mesh and, if not, why.
//!
//! `Enrolled` when it has come in, `NotEnrolled` when it has left, when it is out although its namespace or its own
//! label suggests that it were in, and, as a warning, when it should be in and cannot be. They are for people: one
//! task publishes them, what it cannot keep up with is dropped, and nothing waits for it.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::eligibility::Reason;

/// How long one event may take.
const API_PATIENCE: Duration = Duration::from_secs(10);
/// How long one waits for the other: of many pods that join at once nobody reads as fast, and what they wait for
/// themselves goes first.
const PACE: Duration = Duration::from_millis(20);
/// How many may wait.
const QUEUE: usize = 1024;

/// The most of an error that is shown: the API server refuses notes of more than a kilobyte.
const MOST: usize = 900;

/// Hands events to the publishing task.
#[derive(Clone)]
pub(super) struct Events(mpsc::Sender<(ObjectReference, Event)>);

impl Events {
    /// Starts the task; it ends with `stop`.
    pub(super) fn start(client: Client, node_name: &str, stop: CancellationToken) -> Self {
        let (sender, mut queue) = mpsc::channel::<(ObjectReference, Event)>(QUEUE);
        let reporter =
            Reporter { controller: "ambit-agent".to_owned(), instance: Some(node_name.to_owned()) };
        let recorder = Recorder::new(client, reporter);
        let publish = async move {
            let mut failing = false;
            while let Some((pod, event)) = queue.recv().await {
                let publishing = recorder.publish(&event, &pod);
                let result = match tokio::time::timeout(API_PATIENCE, publishing).await {
                    Ok(result) => result.map_err(|error| error.to_string()),
                    Err(_) => Err("the API server did not answer in time".to_owned()),
                };
                if let Err(error) = &result
                    && !failing
                {
                    tracing::warn!(error, "cannot publish events on pods");
                }
                failing = result.is_err();
                tokio::time::sleep(PACE).await;
            }
        };
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = publish => {}
            }
        });
        Self(sender)
    }

    pub(super) fn enrolled(&self, pod: &Pod) {
        let note = "The pod is in the mesh: the node proxy carries its TCP traffic.".to_owned();
        self.send(pod, EventType::Normal, "Enrolled", "Enrol", note);
    }

    pub(super) fn not_enrolled(&self, pod: &Pod, reason: &Reason) {
        self.send(
            pod,
            EventType::Normal,
            "NotEnrolled",
            "Judge",
            format!("The pod is not in the mesh: {reason}."),
        );
    }

    pub(super) fn failed(&self, pod: &Pod, error: &str) {
        let error: String = error.chars().take(MOST).collect();
        let note = format!("The pod is to be in the mesh and is not: {error}. The node agent keeps trying.");
        self.send(pod, EventType::Warning, "NotEnrolled", "Enrol", note);
    }

    fn send(&self, pod: &Pod, type_: EventType, reason: &str, action: &str, note: String) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note),
            action: action.to_owned(),
            secondary: None,
        };
        // Full: people have enough to read already.
        let _ = self.0.try_send((pod.object_ref(&()), event));
    }
}

/// Whether somebody who looks at the pod or its namespace would expect it to be in the mesh.
pub(super) fn is_surprising(reason: &Reason, suggested: bool) -> bool {
    suggested
        && matches!(
            reason,
            Reason::HostNetwork | Reason::Sidecar | Reason::ExcludedNamespace | Reason::OptedOut
        )
}
