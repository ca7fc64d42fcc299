//! A pod while it lives: starting what [`PodState`](super::super::state::PodState) says, and taking in what runs
//! and probes report.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Container;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use super::super::container;
use super::super::lifecycle::{Handle, Happened, Job, Report};
use super::super::probe::{self, Finding, Kind, Target};
use super::super::state::{Probes, Run};
use super::{API_TIMEOUT, Slot, Why, Worker};

/// How often projected volumes are looked at.
const REFRESH: Duration = Duration::from_secs(10);

impl Worker {
    /// Lives until the pod leaves or is finished.
    pub(super) async fn live(&mut self) -> Why {
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
                told = self.told.changed() => {
                    let before = self.pod.clone();
                    self.heard(told.is_ok());
                    let (old, new) = (&before.metadata, &self.pod.metadata);
                    if old.labels != new.labels || old.annotations != new.annotations {
                        self.refresh();
                    }
                }
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

    /// Takes in what became of a run.
    pub(super) fn happened(&mut self, report: Report) {
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
                let container = &slot.handle.target.container;
                let probe =
                    if kind == Kind::Startup { &container.startup_probe } else { &container.liveness_probe };
                let own = probe.as_ref().and_then(|p| p.termination_grace_period_seconds);
                let grace = own.and_then(|s| u64::try_from(s).ok()).map_or(grace, Duration::from_secs);
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
}
