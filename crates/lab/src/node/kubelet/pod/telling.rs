//! What a worker tells others: the API server the status, the kubelet server what runs.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use super::super::container;
use super::super::registry::{Entry, never_ran};
use super::super::state::{Container, Role, Run};
use super::super::status::{self, View};
use super::{API_TIMEOUT, Worker};
use crate::node::border::ContainerRef;

impl Worker {
    /// Namespace and name.
    pub(super) fn names(&self) -> (String, String) {
        let meta = &self.pod.metadata;
        (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }

    /// Reports the status if it has changed.
    pub(super) async fn report(&mut self) {
        if self.gone {
            return;
        }
        let verdict = self.verdict.clone();
        let view = View {
            pod: &self.pod,
            state: &self.state,
            ips: &self.ips,
            host_ip: self.context.config.ip,
            sandbox: self.sandbox.is_some(),
            terminating: self.terminating,
            start: self.start,
            verdict: verdict.as_ref().map(|(r, m)| (*r, m.as_str())),
        };
        let status = status::status(&view, &self.reported, Timestamp::now(), Instant::now());
        if status == self.reported && !self.report_failed {
            return;
        }
        let (namespace, name) = self.names();
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        let patch = Patch::Merge(patch(&self.uid, &status, &self.pod));
        let parameters = PatchParams::default();
        let done = tokio::time::timeout(API_TIMEOUT, pods.patch_status(&name, &parameters, &patch)).await;
        self.report_failed = match done {
            Ok(Ok(_)) => false,
            Ok(Err(kube::Error::Api(answer))) if matches!(answer.code, 404 | 409) => {
                // The object is gone or another's; the watch will say so.
                tracing::debug!(namespace, pod = name, code = answer.code, "status not taken");
                false
            }
            Ok(Err(error)) => {
                tracing::warn!(namespace, pod = name, %error, "cannot report the pod's status");
                true
            }
            Err(_) => {
                tracing::warn!(namespace, pod = name, "the API server does not take the pod's status");
                true
            }
        };
        self.reported = status;
    }

    /// Reports until the API server has taken it or the pod is gone.
    pub(super) async fn report_until_done(&mut self) {
        self.report().await;
        while self.report_failed && !self.gone {
            tokio::select! {
                () = self.news() => {}
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
            self.report().await;
        }
    }

    /// Tells the kubelet server what runs.
    pub(super) fn register(&self) {
        let (namespace, name) = self.names();
        let reference = |c: &Container| {
            let log = container::log_path(&self.pod, &c.name, c.restarts);
            let previous = c.restarts.checked_sub(1).map(|n| container::log_path(&self.pod, &c.name, n));
            let id = match &c.run {
                Run::Running { id, .. } => id.clone(),
                Run::Ended(ended) => ended.id.clone(),
                _ => c.last.as_ref().map(|l| l.id.clone()).unwrap_or_default(),
            };
            let reference = ContainerRef {
                id,
                running: matches!(c.run, Run::Running { .. }),
                previous_log: previous.filter(|p| p.exists()),
                ..never_ran(log)
            };
            (c.name.clone(), reference)
        };
        let (mains, others): (Vec<_>, Vec<_>) =
            self.state.containers.iter().partition(|c| c.role == Role::Main);
        let annotations = self.pod.metadata.annotations.as_ref();
        let entry = Entry {
            uid: self.uid.clone(),
            default: annotations.and_then(|a| a.get("kubectl.kubernetes.io/default-container").cloned()),
            containers: mains.into_iter().chain(others).map(reference).collect(),
            netns: self.sandbox.as_ref().map(|s| s.netns.clone()),
        };
        self.context.registry.set(&namespace, &name, entry);
    }
}

/// The patch of a status: bound to the pod's UID, so that it never reaches another pod of the same name, and
/// with the conditions that others have set.
fn patch(uid: &str, status: &PodStatus, latest: &Pod) -> Value {
    let mut status = status.clone();
    let own: Vec<String> = status.conditions.iter().flatten().map(|c| c.type_.clone()).collect();
    let foreign = latest.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let foreign: Vec<_> = foreign.filter(|c| !own.contains(&c.type_)).cloned().collect();
    status.conditions.get_or_insert_default().extend(foreign);
    json!({"metadata": {"uid": uid}, "status": status})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_keeps_the_conditions_of_others() {
        let of = |kinds: &[&str]| -> PodStatus {
            let conditions: Vec<_> = kinds.iter().map(|k| json!({"type": k, "status": "True"})).collect();
            serde_json::from_value(json!({"conditions": conditions})).unwrap()
        };
        let latest = Pod { status: Some(of(&["Ready", "example.org/gate"])), ..Pod::default() };
        let patch = patch("u", &of(&["Ready"]), &latest);
        assert_eq!(patch["metadata"]["uid"], "u");
        let kinds: Vec<_> =
            patch["status"]["conditions"].as_array().unwrap().iter().map(|c| &c["type"]).collect();
        assert_eq!(kinds, ["Ready", "example.org/gate"]);
    }
}
