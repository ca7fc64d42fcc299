//! The worker of one pod: sets it up, keeps its containers as [`PodState`] decides, reports, and takes it down.
//!
//! One task owns everything about the pod; runs, probes and stops are tasks beside it that send messages. The
//! worker lives as long as the pod's object does.

mod ending;
mod living;
mod setting_up;
mod telling;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Pod, PodStatus};
use k8s_openapi::jiff::Timestamp;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::task::AbortHandle;

use super::container::Home;
use super::lifecycle::{Handle, Report};
use super::probe::Finding;
use super::state::PodState;
use super::{Context, Wanted};
use crate::node::sandbox::Sandbox;
use crate::node::volumes::Volumes;

/// How long one call to the API server may take.
const API_TIMEOUT: Duration = Duration::from_secs(10);

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
}
