//! What the node agent's messages act upon: which pods are served, which could not be yet.
//!
//! A pod that cannot be served is retried for as long as it is listed, and hurts nobody else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh::Identity;
use netns::{NetNs, NetNsId};
use parking_lot::Mutex;

use super::{Pod, PodInfo, start};
use crate::context::Context;
use crate::sockets::Sockets;

/// A pod in dumps.
#[derive(Clone)]
pub(crate) struct PodState {
    pub(crate) info: PodInfo,
    /// None: its listeners could not be opened yet, and why.
    pub(crate) pod: Result<Arc<Pod>, String>,
}

/// The pods, for dumps and for the certificates they need.
pub(crate) type Table = Arc<Mutex<BTreeMap<String, PodState>>>;

/// All pods of this node. One task owns it.
pub(crate) struct Manager {
    context: Arc<Context>,
    running: BTreeMap<String, Running>,
    failed: BTreeMap<String, Failed>,
}

struct Running {
    pod: Arc<Pod>,
    /// While it is served the namespace is held, so its inode is not reused.
    id: NetNsId,
}

struct Failed {
    info: PodInfo,
    netns: NetNs,
}

impl Manager {
    pub(crate) fn new(context: Arc<Context>) -> Self {
        Self { context, running: BTreeMap::new(), failed: BTreeMap::new() }
    }

    /// Serves a pod. Asked again for one that is served already, nothing is done; for the same pod in another
    /// namespace, the old one is cut first.
    pub(crate) fn add(&mut self, uid: &str, info: PodInfo, netns: NetNs) -> Result<(), String> {
        self.failed.remove(uid);
        if let Some(running) = self.running.get(uid) {
            if running.id == netns.id() && running.pod.info == info {
                return Ok(());
            }
            self.stop(uid);
        }
        let sockets = Sockets::inside(netns.clone(), &self.context.config);
        let pod = Pod::new(&self.context, info.clone(), sockets);
        let PodInfo { namespace, name, .. } = &info;
        match start(&self.context, &pod) {
            Ok(()) => {
                tracing::info!(uid, namespace, name, "pod is served");
                self.context.stats.pods_started();
                let state = PodState { info, pod: Ok(pod.clone()) };
                self.context.pods.lock().insert(uid.to_owned(), state);
                self.running.insert(uid.to_owned(), Running { pod, id: netns.id() });
                self.refresh_identities();
                Ok(())
            }
            Err(error) => {
                let reason = error.to_string();
                tracing::warn!(uid, namespace, name, reason, "pod cannot be served, will be retried");
                pod.cut();
                let state = PodState { info: info.clone(), pod: Err(reason.clone()) };
                self.context.pods.lock().insert(uid.to_owned(), state);
                self.failed.insert(uid.to_owned(), Failed { info, netns });
                Err(reason)
            }
        }
    }

    /// Stops serving a pod: listeners and connections are cut at once.
    pub(crate) fn stop(&mut self, uid: &str) {
        self.failed.remove(uid);
        self.context.pods.lock().remove(uid);
        if let Some(running) = self.running.remove(uid) {
            let PodInfo { namespace, name, .. } = &running.pod.info;
            tracing::info!(uid, namespace, name, "pod is no longer served");
            running.pod.cut();
            self.context.stats.pods_stopped();
            self.refresh_identities();
        }
    }

    /// Stops serving every pod that is not in `listed`.
    pub(crate) fn reconcile(&mut self, listed: &BTreeSet<String>) {
        let known: BTreeSet<String> = self.running.keys().chain(self.failed.keys()).cloned().collect();
        for uid in known.difference(listed) {
            self.stop(uid);
        }
    }

    /// Tries those again that could not be served.
    pub(crate) fn retry(&mut self) {
        for (uid, Failed { info, netns }) in std::mem::take(&mut self.failed) {
            let _ = self.add(&uid, info, netns);
        }
    }

    /// Whether some pods could not be served yet.
    pub(crate) fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    fn refresh_identities(&self) {
        self.context.pods_changed.send_modify(|count| *count += 1);
    }
}

/// The identities of the pods that are served, as far as their workloads are known.
pub(crate) fn identities(context: &Context) -> BTreeSet<Identity> {
    let view = context.views.load();
    let node = context.config.node.as_deref();
    let pods = context.pods.lock();
    let served = pods.values().filter_map(|state| state.pod.as_ref().ok());
    served.filter_map(|pod| pod.find(&view, node)).map(|workload| workload.identity.clone()).collect()
}
