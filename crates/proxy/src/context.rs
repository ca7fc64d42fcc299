//! What all parts of the data path share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::certs::Certs;
use crate::config::Config;
use crate::dns::Dns;
use crate::engine::Workers;
use crate::flows::Flows;
use crate::hostnames::Hostnames;
use crate::pods::Table;
use crate::reports::Reports;
use crate::views::Views;

/// Shared by all pods; each member has its own owner.
pub(crate) struct Context {
    pub(crate) config: Config,
    pub(crate) settings: hbone::Settings,
    pub(crate) views: Views,
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
