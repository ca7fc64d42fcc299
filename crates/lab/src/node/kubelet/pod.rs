//! The worker of one pod: sets it up, keeps its containers as [`PodState`] decides, reports, and takes it down.
//!
//! One task owns everything about the pod; runs, probes and stops are tasks beside it that send messages. The
//! worker lives as long as the pod's object does.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::container::{self, Home};
use super::lifecycle::{Handle, Happened, Job, Report};
use super::probe::{self, Finding, Kind, Target};
use super::registry::{Entry, never_ran};
use super::state::{PodState, Probes, Role, Run};
use super::status::{self, View};
use super::{Context, Wanted};
use crate::node::border::ContainerRef;
use crate::node::sandbox::Sandbox;
use crate::node::volumes::{self, EtcFiles, Volumes};

/// How long one call to the API server may take.
const API_TIMEOUT: Duration = Duration::from_secs(10);
/// How often projected volumes are looked at.
const REFRESH: Duration = Duration::from_secs(10);
/// How long the first attempt to set up waits for the second; doubled up to [`SETUP_MAX`].
const SETUP_FIRST: Duration = Duration::from_millis(500);
/// The longest wait between two attempts to set up.
const SETUP_MAX: Duration = Duration::from_secs(8);
/// How long sidecars get when the containers proper have used up the grace.
const SIDECAR_GRACE: Duration = Duration::from_secs(2);

/// Why a pod stops living.
enum Why {
    /// It was deleted, or its object is gone.
    Leaving,
    /// Its containers are done.
    Finished,
}

/// A run that goes on.
struct Slot {
    handle: Handle,
    tasks: Vec<AbortHandle>,
    begin: watch::Sender<bool>,
    stopping: bool,
}

/// The worker of one pod.
pub struct Worker {
    context: Arc<Context>,
    told: watch::Receiver<Wanted>,
    pod: Arc<Pod>,
    gone: bool,
    uid: String,
    state: PodState,
    start: Timestamp,
    ips: Vec<IpAddr>,
    sandbox: Option<Sandbox>,
    volumes: Arc<Mutex<Volumes>>,
    home: Option<Home>,
    slots: HashMap<String, Slot>,
    reports: (mpsc::UnboundedSender<Report>, mpsc::UnboundedReceiver<Report>),
    findings: (mpsc::UnboundedSender<Finding>, mpsc::UnboundedReceiver<Finding>),
    reported: PodStatus,
    report_failed: bool,
    terminating: bool,
    verdict: Option<(&'static str, String)>,
}

impl Worker {
    /// The worker of the pod that `told` speaks of.
    pub fn new(context: Arc<Context>, told: watch::Receiver<Wanted>) -> Self {
        let pod = told.borrow().pod.clone();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let reported = pod.status.clone().unwrap_or_default();
        Self {
            state: PodState::new(&pod),
            start: reported.start_time.as_ref().map_or_else(Timestamp::now, |t| t.0),
            volumes: Arc::new(Mutex::new(Volumes::new(&uid))),
            context,
            told,
            pod,
            gone: false,
            uid,
            ips: Vec::new(),
            sandbox: None,
            home: None,
            slots: HashMap::new(),
            reports: mpsc::unbounded_channel(),
            findings: mpsc::unbounded_channel(),
            reported,
            report_failed: false,
            terminating: false,
            verdict: None,
        }
    }

    /// Works until the pod's object is gone.
    pub async fn run(mut self) {
        let phase = self.reported.phase.as_deref().unwrap_or_default();
        if !matches!(phase, "Succeeded" | "Failed") {
            let why = if self.set_up().await { self.live().await } else { Why::Leaving };
            self.end_containers().await;
            self.take_down().await;
            if matches!(why, Why::Finished) {
                self.terminating = false;
            }
            self.report_until_done().await;
        }
        self.await_deletion().await;
        self.delete().await;
    }

    fn leaving(&self) -> bool {
        self.gone || self.pod.metadata.deletion_timestamp.is_some()
    }

    /// Takes over what the watch says; a watch that has ended means that the object, or the node, is gone.
    fn heard(&mut self, watched: bool) {
        let wanted = self.told.borrow_and_update().clone();
        self.pod = wanted.pod;
        self.gone |= wanted.gone || !watched;
    }

    async fn news(&mut self) {
        let watched = self.told.changed().await.is_ok();
        self.heard(watched);
    }

    fn spec_of(&self, name: &str) -> Option<Container> {
        let spec = self.pod.spec.as_ref()?;
        spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|c| c.name == name).cloned()
    }

    // ── setting up ──────────────────────────────────────────────────────────────────────────────────────────

    /// Makes volumes and sandbox, trying again for as long as the pod is wanted; answers whether it still is.
    async fn set_up(&mut self) -> bool {
        let mut wait = SETUP_FIRST;
        loop {
            if self.leaving() {
                return false;
            }
            self.report().await;
            let Err((reason, error)) = self.try_set_up().await else { return true };
            self.context.events.warning(&self.pod, None, reason, format!("{error:#}"));
            let until = tokio::time::Instant::now() + wait;
            wait = (wait * 2).min(SETUP_MAX);
            loop {
                tokio::select! {
                    () = self.news() => if self.leaving() { return false },
                    () = tokio::time::sleep_until(until) => break,
                }
            }
        }
    }

    async fn try_set_up(&mut self) -> Result<(), (&'static str, anyhow::Error)> {
        let context = self.context.clone();
        if self.sandbox.is_none() {
            let sandbox = Sandbox::create(&context.config, &self.pod)
                .await
                .map_err(|e| ("FailedCreatePodSandBox", e.context("Failed to create pod sandbox")))?;
            self.ips = sandbox.ips.clone();
            self.sandbox = Some(sandbox);
            self.register();
            self.report().await;
        }
        let pod = self.pod.clone();
        let sources = container::sources(&context, &pod, &self.ips);
        let set_up = async { self.volumes.lock().await.set_up(&sources).await };
        tokio::time::timeout(3 * API_TIMEOUT, set_up)
            .await
            .unwrap_or_else(|_| Err(anyhow::anyhow!("the API server does not answer")))
            .map_err(|e| ("FailedMount", e))?;
        let hostname = container::hostname(&self.pod, &context.config.name);
        let resolv = volumes::resolv_conf(&self.pod, context.config.dns_ip, &context.resolv_conf);
        let etc = EtcFiles::write(&self.pod, &hostname, &self.ips, &resolv)
            .map_err(|e| ("FailedMount", e.context("cannot write the pod's files for /etc")))?;
        self.home = self.sandbox.as_ref().map(|sandbox| Home {
            ips: self.ips.clone(),
            netns: sandbox.netns_path.clone(),
            hostname,
            etc: Arc::new(etc),
            volumes: self.volumes.clone(),
        });
        Ok(())
    }

    // ── living ──────────────────────────────────────────────────────────────────────────────────────────────

    async fn live(&mut self) -> Why {
        let mut refresh = tokio::time::interval_at(tokio::time::Instant::now() + REFRESH, REFRESH);
        refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if self.leaving() {
                return Why::Leaving;
            }
            let now = Instant::now();
            if self.overdue() {
                self.verdict = Some((
                    "DeadlineExceeded",
                    "Pod was active on the node longer than the specified deadline".to_owned(),
                ));
                return Why::Finished;
            }
            let next = self.state.next(now);
            if next.finished.is_some() {
                return Why::Finished;
            }
            for index in next.start {
                self.start(index);
            }
            self.register();
            self.report().await;
            let again = self.report_failed.then(|| now + Duration::from_secs(1));
            let wake = [next.wake, again, self.deadline()].into_iter().flatten().min();
            let wake = wake.unwrap_or_else(|| now + Duration::from_secs(3600));
            tokio::select! {
                told = self.told.changed() => self.heard(told.is_ok()),
                Some(report) = self.reports.1.recv() => self.happened(report),
                Some(finding) = self.findings.1.recv() => self.found(finding),
                () = tokio::time::sleep_until(wake.into()) => {}
                _ = refresh.tick() => self.refresh(),
            }
            // What came at the same time is reported at once.
            while let Ok(report) = self.reports.1.try_recv() {
                self.happened(report);
            }
            while let Ok(finding) = self.findings.1.try_recv() {
                self.found(finding);
            }
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let seconds = self.pod.spec.as_ref()?.active_deadline_seconds?;
        let passed = Timestamp::now().duration_since(self.start).as_secs();
        let left = u64::try_from(seconds.saturating_sub(passed)).unwrap_or(0);
        Some(Instant::now() + Duration::from_secs(left))
    }

    fn overdue(&self) -> bool {
        self.deadline().is_some_and(|d| d <= Instant::now())
    }

    fn start(&mut self, index: usize) {
        let Some(home) = self.home.clone() else { return };
        let container = &mut self.state.containers[index];
        container.starting();
        let (name, attempt) = (container.name.clone(), container.restarts);
        let Some(spec) = self.spec_of(&name) else { return };
        let job = Job {
            context: self.context.clone(),
            pod: self.pod.clone(),
            spec,
            home,
            attempt,
            reports: self.reports.0.clone(),
        };
        tokio::spawn(job.run());
    }

    fn happened(&mut self, report: Report) {
        let Report { container: name, what } = report;
        let now = Instant::now();
        let Some(spec) = self.spec_of(&name) else { return };
        let events = self.context.events.clone();
        let pod = self.pod.clone();
        let Some(container) = self.state.get(&name) else { return };
        match what {
            Happened::Refused(refused) => {
                events.warning(&pod, Some(&name), "Failed", format!("Error: {}", refused.message));
                container.refused(refused.reason, refused.message, now);
            }
            Happened::Started { id, ended } => {
                events.normal(&pod, Some(&name), "Started", format!("Started container {name}"));
                let probes = Probes {
                    startup: spec.startup_probe.is_some(),
                    readiness: spec.readiness_probe.is_some(),
                };
                container.running(id.clone(), Timestamp::now(), now, probes);
                self.began(&spec, id, ended);
            }
            Happened::Ended(ended) => {
                if let Some(slot) = self.slots.remove(&name) {
                    slot.tasks.iter().for_each(AbortHandle::abort);
                }
                if ended.reason == "StartError" {
                    let message = ended.message.clone().unwrap_or_default();
                    events.warning(&pod, Some(&name), "Failed", format!("Error: {message}"));
                } else {
                    tracing::info!(pod = ?pod.metadata.name, container = name, code = ended.code, "container ended");
                }
                container.ended(ended, now);
                if container.not_before.is_some() && !self.terminating {
                    let message = format!("Back-off restarting failed container {name}");
                    events.warning(&pod, Some(&name), "BackOff", message);
                }
            }
        }
    }

    /// A container runs: its probes begin, and its hook is called.
    fn began(&mut self, spec: &Container, id: String, ended: CancellationToken) {
        let ip = self.ips.first().copied().unwrap_or(self.context.config.ip);
        let target = Target { netns: self.context.netns.clone(), ip, container: spec.clone(), id };
        let handle = Handle { target: target.clone(), ended };
        let (begin, begun) = watch::channel(spec.startup_probe.is_none());
        let probes = [
            (Kind::Startup, &spec.startup_probe),
            (Kind::Readiness, &spec.readiness_probe),
            (Kind::Liveness, &spec.liveness_probe),
        ];
        let mut tasks = Vec::new();
        for (kind, probe) in probes {
            if let Some(probe) = probe {
                let run =
                    probe::run(kind, probe.clone(), target.clone(), begun.clone(), self.findings.0.clone());
                tasks.push(tokio::spawn(run).abort_handle());
            }
        }
        if let Some(hook) = spec.lifecycle.as_ref().and_then(|l| l.post_start.clone()) {
            let (handle, events, pod) = (handle.clone(), self.context.events.clone(), self.pod.clone());
            let grace = self.grace();
            let task = tokio::spawn(async move {
                if let Err(error) = handle.call(&hook).await {
                    let name = handle.target.container.name.clone();
                    events.warning(&pod, Some(&name), "FailedPostStartHook", error);
                    handle.stop(grace, CancellationToken::new()).await;
                }
            });
            tasks.push(task.abort_handle());
        }
        self.slots.insert(spec.name.clone(), Slot { handle, tasks, begin, stopping: false });
    }

    fn found(&mut self, finding: Finding) {
        let Finding { container: name, id: of, kind, settled, message } = finding;
        let events = self.context.events.clone();
        let pod = self.pod.clone();
        let grace = self.grace();
        let Some(container) = self.state.get(&name) else { return };
        let Run::Running { id, started, ready, .. } = &mut container.run else { return };
        if *id != of || self.terminating {
            return;
        }
        if let Some(message) = &message {
            events.warning(&pod, Some(&name), "Unhealthy", format!("{kind:?} probe failed: {message}"));
        }
        let Some(slot) = self.slots.get_mut(&name) else { return };
        match (kind, settled) {
            (Kind::Readiness, Some(ok)) => *ready = ok,
            (Kind::Startup, Some(true)) => {
                *started = true;
                *ready = slot.handle.target.container.readiness_probe.is_none();
                slot.begin.send_replace(true);
            }
            (Kind::Startup | Kind::Liveness, Some(false)) if !slot.stopping => {
                slot.stopping = true;
                let message =
                    format!("Container {name} failed {kind:?} probe, will be restarted").to_lowercase();
                events.normal(&pod, Some(&name), "Killing", message);
                tokio::spawn(slot.handle.clone().stop(grace, CancellationToken::new()));
            }
            _ => {}
        }
    }

    /// Looks after projected volumes, beside the loop.
    fn refresh(&self) {
        let (context, pod, ips) = (self.context.clone(), self.pod.clone(), self.ips.clone());
        let volumes = self.volumes.clone();
        tokio::spawn(async move {
            let Ok(mut volumes) = volumes.try_lock() else { return };
            let sources = container::sources(&context, &pod, &ips);
            let failed =
                tokio::time::timeout(API_TIMEOUT, volumes.refresh(&sources)).await.unwrap_or_default();
            for message in failed {
                tracing::debug!(pod = ?pod.metadata.name, message, "a volume stays as it was");
            }
        });
    }

    // ── ending ──────────────────────────────────────────────────────────────────────────────────────────────

    /// The grace a deletion asks for, or else the pod.
    fn grace(&self) -> Duration {
        let of_pod = self.pod.spec.as_ref().and_then(|s| s.termination_grace_period_seconds);
        let seconds = self.pod.metadata.deletion_grace_period_seconds.or(of_pod).unwrap_or(30);
        Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
    }

    /// Ends all containers: those proper first, then sidecars in reverse order, all within the grace.
    async fn end_containers(&mut self) {
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
    async fn take_down(&mut self) {
        if let Some(sandbox) = self.sandbox.take()
            && let Err(error) = sandbox.destroy(&self.context.config, &self.uid).await
        {
            self.context.events.warning(&self.pod, None, "FailedKillPodSandBox", format!("{error:#}"));
        }
        self.home = None;
        self.volumes.lock().await.tear_down();
        self.register();
    }

    async fn await_deletion(&mut self) {
        while !self.leaving() {
            self.news().await;
        }
    }

    /// Removes what is left of the pod, and its object unless that is gone.
    async fn delete(&mut self) {
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

    // ── telling ─────────────────────────────────────────────────────────────────────────────────────────────

    fn names(&self) -> (String, String) {
        let meta = &self.pod.metadata;
        (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
    }

    /// Reports the status if it has changed.
    async fn report(&mut self) {
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
    async fn report_until_done(&mut self) {
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
    fn register(&self) {
        let (namespace, name) = self.names();
        let reference = |c: &super::state::Container| {
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
