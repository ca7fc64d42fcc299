//! The pods of this node that the proxy serves: their listeners, their connections, their end.
//!
//! A [`Pod`] owns everything that belongs to one pod, and stopping it stops all of that and nothing else.
//! [`Manager`] is what the node agent's messages act upon; [`zds`] speaks to the agent.

pub(crate) mod connections;
mod home;
mod listeners;
mod manager;
pub(crate) mod zds;

use std::sync::Arc;
use std::time::Duration;

use mesh::{View, Workload};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::context::Context;
use crate::failure::Failure;
use crate::sockets::Sockets;
use connections::Connections;

pub(crate) use home::Home;
pub(crate) use listeners::{serve_own, start};
pub(crate) use manager::{Manager, PodState, Table, identities};
pub use zds::exercise as exercise_zds;

/// How long a connection waits for its pod to be announced by the control plane.
const WORKLOAD_WAIT: Duration = Duration::from_secs(5);

/// Who a pod is, as the node agent says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) struct PodInfo {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) service_account: String,
}

/// One pod.
pub(crate) struct Pod {
    pub(crate) info: PodInfo,
    pub(crate) sockets: Sockets,
    pub(crate) connections: Connections,
    /// Cuts everything at once.
    pub(crate) stop: CancellationToken,
    /// No new connections; running ones may end in peace.
    pub(crate) drain: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

impl Pod {
    pub(crate) fn new(context: &Context, info: PodInfo, sockets: Sockets) -> Arc<Self> {
        Arc::new(Self {
            info,
            sockets,
            connections: Connections::default(),
            stop: CancellationToken::new(),
            drain: context.drain.child_token(),
            tasks: TaskTracker::new(),
        })
    }

    /// The pod's workload, by what both the agent and the control plane say of it.
    pub(crate) fn find(&self, view: &View, node: Option<&str>) -> Option<Arc<Workload>> {
        let PodInfo { name, namespace, service_account } = &self.info;
        view.workload_by_name(namespace, name, service_account, node).cloned()
    }

    /// The pod's workload; waits for it to be announced, bounded.
    pub(crate) async fn workload(&self, context: &Context) -> Result<Arc<Workload>, Failure> {
        let node = context.config.node.as_deref();
        let found = context.views.wait(WORKLOAD_WAIT, |view| self.find(view, node)).await;
        found.ok_or_else(|| Failure::UnknownPod {
            namespace: self.info.namespace.clone(),
            name: self.info.name.clone(),
            service_account: self.info.service_account.clone(),
        })
    }

    /// Cuts everything at once.
    pub(crate) fn cut(&self) {
        self.stop.cancel();
        self.tasks.close();
    }
}
