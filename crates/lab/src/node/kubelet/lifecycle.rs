//! One run of one container, from plan to end, and the ways to end it: tasks beside the worker, which report
//! back by message.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Context;
use super::container::{self, Home, Refused};
use super::probe::{self, Target};
use super::state::Ended;
use crate::node::layout;
use crate::node::runtime::{self, logs};

/// How long it may take to learn what a container needs: variables out of ConfigMaps and Secrets.
const PLAN_TIMEOUT: Duration = Duration::from_secs(20);

/// What a run reports.
#[derive(Debug)]
pub enum Happened {
    /// It could not be planned.
    Refused(Refused),
    /// Its process runs.
    Started {
        /// Identifier of the run.
        id: String,
        /// Set when it has ended.
        ended: CancellationToken,
    },
    /// It has ended, or could not be started at all.
    Ended(Ended),
}

/// One report of one container.
#[derive(Debug)]
pub struct Report {
    /// The container.
    pub container: String,
    /// What happened.
    pub what: Happened,
}

/// A run to be made.
pub struct Job {
    /// What all share.
    pub context: Arc<Context>,
    /// The pod.
    pub pod: Arc<Pod>,
    /// The container.
    pub spec: Container,
    /// Where it lives.
    pub home: Home,
    /// Which run it is, counted from 0.
    pub attempt: u32,
    /// Where to report.
    pub reports: UnboundedSender<Report>,
}

impl Job {
    /// Makes the run.
    pub async fn run(self) {
        let Self { context, pod, spec, home, attempt, reports } = self;
        let tell = |what| {
            // Nobody listens any more only when the pod is gone.
            let _ = reports.send(Report { container: spec.name.clone(), what });
        };
        let id = crate::node::sandbox::random_hex(32);
        let plan = container::plan(&context, &pod, &spec, &home, &id, attempt);
        let plan = match tokio::time::timeout(PLAN_TIMEOUT, plan).await {
            Ok(Ok(plan)) => plan,
            Ok(Err(refused)) => return tell(Happened::Refused(refused)),
            Err(_) => {
                let message = "the API server does not answer what the container needs to know".to_owned();
                return tell(Happened::Refused(Refused { reason: "CreateContainerConfigError", message }));
            }
        };
        let log = container::log_path(&pod, &spec.name, attempt);
        if attempt >= 2 {
            let _ = std::fs::remove_file(container::log_path(&pod, &spec.name, attempt - 2));
        }
        let running = match runtime::start(&id, &plan.bundle, &plan.writable, &log).await {
            Ok(running) => running,
            Err(error) => {
                return tell(Happened::Ended(Ended {
                    id: String::new(),
                    code: 128,
                    reason: "StartError".to_owned(),
                    message: Some(error.to_string()),
                    since: None,
                    at: Timestamp::now(),
                }));
            }
        };
        link_log(&pod, &spec.name, &id, &log);
        let since = Timestamp::now();
        let ended = CancellationToken::new();
        tell(Happened::Started { id: id.clone(), ended: ended.clone() });
        let code = running.ended().await;
        ended.cancel();
        unlink_log(&pod, &spec.name, &id);
        let mut message = std::fs::read(&plan.termination)
            .map(|bytes| String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]).into_owned())
            .unwrap_or_default();
        let fall_back = spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError");
        if message.is_empty() && code != 0 && fall_back {
            message = logs::tail(&log, 80, 2048);
        }
        tell(Happened::Ended(Ended {
            id,
            code,
            reason: if code == 0 { "Completed" } else { "Error" }.to_owned(),
            message: (!message.is_empty()).then_some(message),
            since: Some(since),
            at: Timestamp::now(),
        }));
    }
}

/// Everything needed to end a run or call its hooks.
#[derive(Clone)]
pub struct Handle {
    /// Where probes and hooks go.
    pub target: Target,
    /// Set when the run has ended.
    pub ended: CancellationToken,
}

impl Handle {
    /// Ends the run: `preStop`, then SIGTERM, and SIGKILL when the grace is over or `hurry` says so.
    pub async fn stop(self, grace: Duration, hurry: CancellationToken) {
        let deadline = Instant::now() + grace;
        let hook = self.target.container.lifecycle.as_ref().and_then(|l| l.pre_stop.clone());
        if let (Some(hook), false) = (hook, grace.is_zero()) {
            tokio::select! {
                done = self.call(&hook) => if let Err(error) = done {
                    tracing::warn!(container = %self.target.container.name, error, "preStop failed");
                },
                () = tokio::time::sleep_until(deadline) => {}
                () = hurry.cancelled() => {}
                () = self.ended.cancelled() => return,
            }
        }
        if !grace.is_zero() && !hurry.is_cancelled() {
            runtime::signal(&self.target.id, "TERM").await;
            // A hook that used up the grace still leaves the program a moment, as kubelets do.
            let until = deadline.max(Instant::now() + Duration::from_secs(2).min(grace));
            tokio::select! {
                () = self.ended.cancelled() => return,
                () = tokio::time::sleep_until(until) => {}
                () = hurry.cancelled() => {}
            }
        }
        runtime::kill_all(&self.target.id).await;
        self.ended.cancelled().await;
    }

    /// Calls a hook once.
    pub async fn call(&self, hook: &LifecycleHandler) -> Result<(), String> {
        if let Some(sleep) = &hook.sleep {
            tokio::time::sleep(Duration::from_secs(u64::try_from(sleep.seconds).unwrap_or(0))).await;
            return Ok(());
        }
        let once = k8s_openapi::api::core::v1::Probe {
            exec: hook.exec.clone(),
            http_get: hook.http_get.clone(),
            tcp_socket: hook.tcp_socket.clone(),
            ..Default::default()
        };
        probe::ask(&once, &self.target, Duration::from_secs(600)).await
    }
}

/// The link under `/var/log/containers` by which log collectors find a log.
fn link_path(pod: &Pod, container: &str, id: &str) -> std::path::PathBuf {
    let part = |p: &Option<String>| p.clone().unwrap_or_default();
    let meta = &pod.metadata;
    std::path::Path::new(layout::CONTAINER_LOGS).join(format!(
        "{}_{}_{container}-{id}.log",
        part(&meta.name),
        part(&meta.namespace)
    ))
}

fn link_log(pod: &Pod, container: &str, id: &str, log: &std::path::Path) {
    let _ = std::os::unix::fs::symlink(log, link_path(pod, container, id));
}

fn unlink_log(pod: &Pod, container: &str, id: &str) {
    let _ = std::fs::remove_file(link_path(pod, container, id));
}
