//! What all parts of the data path share.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::certs::Certs;
use crate::config::Config;
use crate::dns::Dns;
use crate::engine::Workers;
use crate::failure::Failure;
use crate::flows::{Flows, Refused, Reporter};
use crate::hostnames::Hostnames;
use crate::pods::{Pod, Table};
use crate::reports::Reports;
use crate::views::Views;
use crate::xds::Demand;

/// Shared by all pods; each member has its own owner.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) settings: hbone::Settings,
    pub(crate) views: Views,
    pub(crate) demand: Demand,
    /// What came from a file and not from the control plane.
    pub(crate) local: wire::Local,
    pub(crate) certs: Certs,
    pub(crate) flows: Arc<Flows>,
    pub(crate) hostnames: Hostnames,
    pub(crate) reports: Option<Reports>,
    pub(crate) dns: Dns,
    pub(crate) pods: Table,
    pub(crate) pods_changed: watch::Sender<u64>,
    pub(crate) drain: CancellationToken,
    pub(crate) stats: Stats,
    pub(crate) workers: Arc<Workers>,
}

impl Context {
    /// Accounts for a connection of `pod` that was refused before there was a flow.
    pub(crate) fn refused(
        &self,
        pod: &Pod,
        reporter: Reporter,
        src: SocketAddr,
        dst: Option<SocketAddr>,
        failure: &Failure,
    ) {
        let view = self.views.load();
        let own = pod.find(&view, self.config.node.as_deref());
        let it = Refused { reporter, pod: &pod.info, own: own.as_deref(), src, dst, failure };
        self.flows.refused(&view, &it);
    }
}

/// Counters of the proxy's own life.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    started: AtomicU64,
    stopped: AtomicU64,
}

impl Stats {
    pub(crate) fn pods_started(&self) {
        self.started.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn pods_stopped(&self) {
        self.stopped.fetch_add(1, Ordering::Relaxed);
    }

    /// Started, stopped.
    pub(crate) fn pods(&self) -> (u64, u64) {
        (self.started.load(Ordering::Relaxed), self.stopped.load(Ordering::Relaxed))
    }
}
