//! The life of a pod as data: which containers run, which must start next, and when the pod is finished.
//!
//! Pure: time comes in, decisions come out. The worker carries them out and reports what happened back into
//! [`PodState`].

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::jiff::Timestamp;

/// The first delay after a crash that follows a crash.
const BACKOFF_FIRST: Duration = Duration::from_secs(10);
/// The longest delay.
const BACKOFF_MAX: Duration = Duration::from_secs(300);
/// A container that ran this long has left its crashes behind.
const BACKOFF_RESET: Duration = Duration::from_secs(600);

/// What becomes of containers that end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// They start again.
    Always,
    /// They start again unless they were successful.
    OnFailure,
    /// They stay ended.
    Never,
}

impl Restart {
    /// The policy of a pod.
    pub fn of(spec: &PodSpec) -> Self {
        match spec.restart_policy.as_deref() {
            Some("Never") => Self::Never,
            Some("OnFailure") => Self::OnFailure,
            _ => Self::Always,
        }
    }
}

/// What a container is to its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before what follows.
    Init,
    /// An init container that stays (`restartPolicy: Always`).
    Sidecar,
    /// A container proper.
    Main,
}

/// The end of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Identifier of the run.
    pub id: String,
    /// Exit code.
    pub code: i32,
    /// In a word.
    pub reason: String,
    /// What it left to say.
    pub message: Option<String>,
    /// When it started.
    pub since: Option<Timestamp>,
    /// When it ended.
    pub at: Timestamp,
}

/// What a container does at the moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Run {
    /// Never ran, or could not be started for a reason that may pass.
    Waiting {
        /// In a word.
        reason: String,
        /// In a sentence.
        message: Option<String>,
    },
    /// Is being started.
    Starting,
    /// Runs.
    Running {
        /// Identifier of the run.
        id: String,
        /// Since when.
        since: Timestamp,
        /// Whether its startup probe has succeeded, or it has none.
        started: bool,
        /// Whether its readiness probe succeeds, or it has none.
        ready: bool,
    },
    /// Has ended.
    Ended(Ended),
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// What it is to the pod.
    pub role: Role,
    /// What it does.
    pub run: Run,
    /// How often it was started again.
    pub restarts: u32,
    /// How its run before ended.
    pub last: Option<Ended>,
    /// It must not start before this.
    pub not_before: Option<Instant>,
    /// Crashes in a row.
    pub crashes: u32,
    /// When the current run began, for the reset of the delay.
    pub run_began: Option<Instant>,
    /// Whether a run that has ended was up: a sidecar that starts again holds up nobody who has passed it.
    pub was_up: bool,
}

/// How a pod ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All containers were successful.
    Succeeded,
    /// One was not.
    Failed,
}

/// What to do next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Next {
    /// Containers to start now, by index.
    pub start: Vec<usize>,
    /// Look again at this time.
    pub wake: Option<Instant>,
    /// The pod is finished; sidecars that still run are to be stopped.
    pub finished: Option<Outcome>,
}

/// The containers of a pod in the order they start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodState {
    /// What becomes of containers that end.
    pub restart: Restart,
    /// Init containers and sidecars in their order, then the others.
    pub containers: Vec<Container>,
}

impl PodState {
    /// A pod of which nothing has run on this node. Restart counts go on from what its status says, since its
    /// containers have ended with the node process that ran them.
    pub fn new(pod: &Pod) -> Self {
        let spec = pod.spec.clone().unwrap_or_default();
        let status = pod.status.clone().unwrap_or_default();
        let before = |name: &str| -> u32 {
            let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
            all.filter(|s| s.name == name)
                .map(|s| {
                    let ran = s.container_id.as_deref().is_some_and(|id| !id.is_empty());
                    s.restart_count.max(0) as u32 + u32::from(ran)
                })
                .next()
                .unwrap_or(0)
        };
        let has_init = spec.init_containers.iter().flatten().next().is_some();
        let new = |name: &str, role: Role| Container {
            name: name.to_owned(),
            role,
            run: Run::Waiting {
                reason: if has_init { "PodInitializing" } else { "ContainerCreating" }.into(),
                message: None,
            },
            restarts: before(name),
            last: None,
            not_before: None,
            crashes: 0,
            run_began: None,
            was_up: false,
        };
        let init = spec.init_containers.iter().flatten().map(|c| {
            let sidecar = c.restart_policy.as_deref() == Some("Always");
            new(&c.name, if sidecar { Role::Sidecar } else { Role::Init })
        });
        let mains = spec.containers.iter().map(|c| new(&c.name, Role::Main));
        Self { restart: Restart::of(&spec), containers: init.chain(mains).collect() }
    }

    /// Whether all init containers have done their part.
    pub fn initialized(&self) -> bool {
        self.containers.iter().filter(|c| c.role != Role::Main).all(Container::passed)
    }

    /// A container by name.
    pub fn get(&mut self, name: &str) -> Option<&mut Container> {
        self.containers.iter_mut().find(|c| c.name == name)
    }

    /// Decides what to do.
    pub fn next(&self, now: Instant) -> Next {
        let mut next = Next::default();
        for (index, container) in self.containers.iter().enumerate() {
            if container.role == Role::Main {
                break;
            }
            match container.due(self.restart, now) {
                Due::Now => next.start.push(index),
                Due::At(when) => next.wake = earlier(next.wake, when),
                Due::Never if container.failed_for_good(self.restart) => {
                    next.finished = Some(Outcome::Failed);
                    return next;
                }
                Due::Never => {}
            }
            if !container.passed() {
                return next;
            }
        }
        let mut over = true;
        let mut failed = false;
        for (index, container) in self.containers.iter().enumerate().filter(|(_, c)| c.role == Role::Main) {
            match container.due(self.restart, now) {
                Due::Now => next.start.push(index),
                Due::At(when) => next.wake = earlier(next.wake, when),
                Due::Never => {}
            }
            match &container.run {
                Run::Ended(ended) if !self.restart.again(ended.code) => failed |= ended.code != 0,
                _ => over = false,
            }
        }
        if over {
            next = Next {
                finished: Some(if failed { Outcome::Failed } else { Outcome::Succeeded }),
                ..Next::default()
            };
        }
        next
    }

    /// The phase as the API names it.
    pub fn phase(&self, now: Instant) -> &'static str {
        match self.next(now).finished {
            Some(Outcome::Succeeded) => "Succeeded",
            Some(Outcome::Failed) => "Failed",
            None => {
                let began =
                    |c: &Container| matches!(c.run, Run::Running { .. } | Run::Ended(_)) || c.last.is_some();
                let mut mains = self.containers.iter().filter(|c| c.role == Role::Main);
                if self.initialized() && mains.all(began) { "Running" } else { "Pending" }
            }
        }
    }
}

impl Restart {
    fn again(self, code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

enum Due {
    Now,
    At(Instant),
    Never,
}

impl Container {
    /// Whether what follows this init container may start.
    fn passed(&self) -> bool {
        match (&self.run, self.role) {
            (Run::Ended(ended), Role::Init) => ended.code == 0,
            (Run::Running { started, .. }, Role::Sidecar) => *started || self.was_up,
            (_, Role::Sidecar) => self.was_up,
            _ => false,
        }
    }

    fn due(&self, restart: Restart, now: Instant) -> Due {
        let wanted = match &self.run {
            Run::Waiting { .. } => true,
            Run::Starting | Run::Running { .. } => false,
            Run::Ended(ended) => match self.role {
                Role::Sidecar => true,
                Role::Init => ended.code != 0 && restart != Restart::Never,
                Role::Main => restart.again(ended.code),
            },
        };
        match self.not_before {
            _ if !wanted => Due::Never,
            Some(when) if when > now => Due::At(when),
            _ => Due::Now,
        }
    }

    fn failed_for_good(&self, restart: Restart) -> bool {
        self.role == Role::Init
            && restart == Restart::Never
            && matches!(&self.run, Run::Ended(e) if e.code != 0)
    }

    /// It is being started.
    pub fn starting(&mut self) {
        if let Run::Ended(ended) = std::mem::replace(&mut self.run, Run::Starting) {
            self.last = Some(ended);
            self.restarts += 1;
        }
        self.not_before = None;
    }

    /// It runs.
    pub fn running(&mut self, id: String, since: Timestamp, now: Instant, probes: Probes) {
        self.run_began = Some(now);
        self.run =
            Run::Running { id, since, started: !probes.startup, ready: !probes.startup && !probes.readiness };
    }

    /// It could not be started for a reason outside of it, which may pass.
    pub fn refused(&mut self, reason: &str, message: String, now: Instant) {
        self.crashes += 1;
        self.not_before = Some(now + delay(self.crashes));
        self.run = Run::Waiting { reason: reason.to_owned(), message: Some(message) };
    }

    /// It has ended.
    pub fn ended(&mut self, ended: Ended, now: Instant) {
        let long = self.run_began.take().is_some_and(|began| now.duration_since(began) >= BACKOFF_RESET);
        self.crashes = if long { 0 } else { self.crashes };
        self.was_up |= matches!(self.run, Run::Running { started: true, .. });
        // The first time it starts again at once.
        self.not_before = (self.crashes > 0).then(|| now + delay(self.crashes));
        self.crashes += 1;
        self.run = Run::Ended(ended);
    }
}

/// Which probes a container has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// A startup probe.
    pub startup: bool,
    /// A readiness probe.
    pub readiness: bool,
}

/// The delay after that many crashes in a row.
fn delay(crashes: u32) -> Duration {
    BACKOFF_FIRST.saturating_mul(1 << crashes.saturating_sub(1).min(10)).min(BACKOFF_MAX)
}

fn earlier(a: Option<Instant>, b: Instant) -> Option<Instant> {
    Some(a.map_or(b, |a| a.min(b)))
}

#[cfg(test)]
mod tests;
