//! The end of a pod: its containers within their grace, its sandbox and volumes, and at last its object.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Preconditions};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::super::container;
use super::super::state::{Role, Run};
use super::{API_TIMEOUT, Worker};

/// How long sidecars get when the containers proper have used up the grace.
const SIDECAR_GRACE: Duration = Duration::from_secs(2);

impl Worker {
    /// The grace a deletion asks for, or else the pod.
    pub(super) fn grace(&self) -> Duration {
        let of_pod = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
        let seconds = self.pod.metadata.deletion_grace_period_seconds.or(of_pod).unwrap_or(30);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    /// Ends all containers: those proper first, then sidecars in reverse order, all within the grace.
    pub(super) async fn end_containers(&mut self) {
        self.terminating = true;
        self.report().await;
        let began = Instant::now();
        self.end_those(Role::Main, self.grace()).await;
        self.end_those(Role::Init, SIDECAR_GRACE).await;
        let left = self.grace().saturating_sub(began.elapsed()).max(SIDECAR_GRACE);
        self.end_those(Role::Sidecar, left).await;
    }

    async fn end_those(&mut self, role: Role, grace: Duration) {
        let hurry = CancellationToken::new();
        let began = Instant::now();
        loop {
            if self.gone || (self.leaving() && began.elapsed() >= self.grace().max(grace)) {
                hurry.cancel();
            }
            let mut waiting = false;
            for container in self.state.containers.iter().filter(|c| c.role == role) {
                match (&container.run, self.slots.get_mut(&container.name)) {
                    (Run::Running { .. }, Some(slot)) => {
                        waiting = true;
                        if !slot.stopping {
                            slot.stopping = true;
                            slot.tasks.iter().for_each(AbortHandle::abort);
                            let message = format!("Stopping container {}", container.name);
                            self.context.events.normal(&self.pod, Some(&container.name), "Killing", message);
                            let grace = if self.gone { Duration::ZERO } else { grace };
                            tokio::spawn(slot.handle.clone().stop(grace, hurry.clone()));
                        } else if hurry.is_cancelled() {
                            let id = slot.handle.target.id.clone();
                            tokio::spawn(async move { crate::node::runtime::kill_all(&id).await });
                        }
                    }
                    // It is on its way and will report.
                    (Run::Starting, _) => waiting = true,
                    _ => {}
                }
            }
            if !waiting {
                return;
            }
            tokio::select! {
                told = self.told.changed(), if !self.gone => self.heard(told.is_ok()),
                Some(report) = self.reports.1.recv() => {
                    self.happened(report);
                    self.report().await;
                }
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    }

    /// Takes down sandbox and volumes; addresses stay in the status.
    pub(super) async fn take_down(&mut self) {
        if let Some(sandbox) = self.sandbox.take()
            && let Err(error) = sandbox.destroy(&self.context.config, &self.uid).await
        {
            self.context.events.warning(&self.pod, None, "FailedKillPodSandBox", format!("{error:#}"));
        }
        self.home = None;
        self.volumes.lock().await.tear_down();
        self.register();
    }

    /// Waits until the pod is to go.
    pub(super) async fn await_deletion(&mut self) {
        while !self.leaving() {
            self.news().await;
        }
    }

    /// Removes what is left of the pod, and its object unless that is gone.
    pub(super) async fn delete(&mut self) {
        let _ = std::fs::remove_dir_all(container::log_dir(&self.pod));
        let (namespace, name) = self.names();
        let pods: Api<Pod> = Api::namespaced(self.context.client.clone(), &namespace);
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid: Some(self.uid.clone()), resource_version: None }),
            ..DeleteParams::default()
        };
        while !self.gone {
            match tokio::time::timeout(API_TIMEOUT, pods.delete(&name, &parameters)).await {
                Ok(Ok(_)) => break,
                // Gone already, or another pod has the name.
                Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => break,
                Ok(Err(error)) => {
                    tracing::warn!(namespace, pod = name, %error, "cannot delete the pod's object")
                }
                Err(_) => tracing::warn!(namespace, pod = name, "the API server does not answer a deletion"),
            }
            tokio::select! {
                () = self.news() => {}
                () = tokio::time::sleep(Duration::from_secs(2)) => {}
            }
        }
        self.context.registry.remove(&namespace, &name, &self.uid);
        tracing::info!(namespace, pod = name, "pod is gone");
    }
}
