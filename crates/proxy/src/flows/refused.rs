//! Connections that were refused before there was a flow to account for: counted by reason, logged, and told to the
//! observer with what is known of both ends.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;

use mesh::{NetworkAddress, View, Workload};

use super::Security;
use super::labels::{Reporter, ServiceLabels, Side};
use super::opening::{Opening, Place};
use super::{Flows, log};
use crate::failure::Failure;
use crate::pods::PodInfo;
use crate::reports::{self, End, Pair};

/// A refused connection.
pub(crate) struct Refused<'a> {
    /// Which end we are.
    pub(crate) reporter: Reporter,
    /// The pod whose connection it was, as the node agent says.
    pub(crate) pod: &'a PodInfo,
    /// The same as the control plane says, if it does.
    pub(crate) own: Option<&'a Workload>,
    pub(crate) src: SocketAddr,
    /// Where it wanted to go, if that is known.
    pub(crate) dst: Option<SocketAddr>,
    pub(crate) failure: &'a Failure,
}

impl Flows {
    /// Accounts for it.
    pub(crate) fn refused(&self, view: &View, it: &Refused<'_>) {
        let reason = it.failure.code();
        *self.refused.lock().entry((it.reporter.as_str(), reason)).or_default() += 1;
        self.note_revoked(it.reporter, it.failure);
        log::refused(it.reporter, it.src, it.dst, it.failure);
        let told = !matches!(it.failure, Failure::Abandoned);
        if let (Some(table), Some(dst), true) = (&self.reports, it.dst, told)
            && let Some(lane) = table.lane(it.pair(view, dst))
        {
            lane.failed();
        }
    }

    /// Counts what a revocation list has ended.
    pub(super) fn note_revoked(&self, reporter: Reporter, failure: &Failure) {
        if failure.code() == "certificate_revoked" {
            self.revoked[reporter as usize].fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Refused<'_> {
    fn pair(&self, view: &View, dst: SocketAddr) -> Pair {
        let at_source = self.reporter == Reporter::Source;
        let (near, far) = if at_source { (self.src.ip(), dst.ip()) } else { (dst.ip(), self.src.ip()) };
        let network = self.own.map(|own| own.network.clone()).unwrap_or_default();
        let address = NetworkAddress::new(network, far);
        let other = view.workload_by_address(&address).map(|workload| &**workload);
        let own = match self.own {
            Some(_) => end(self.own, near),
            None => End {
                namespace: self.pod.namespace.as_str().into(),
                pod: self.pod.name.as_str().into(),
                enrolled: true,
                ..end(None, near)
            },
        };
        let other_end = end(other, far);
        let called = match (at_source, other) {
            (true, None) => view.service_by_vip(&address, &self.pod.namespace).map(|service| &**service),
            _ => None,
        };
        let target = if at_source { other } else { self.own };
        let (source, destination) = if at_source { (own, other_end) } else { (other_end, own) };
        Pair {
            reporter: self.reporter,
            source,
            destination,
            source_identity: None,
            destination_identity: None,
            service: ServiceLabels::of(called, target),
            port: dst.port(),
            security: Security::Plaintext,
            verdict: reports::Verdict::Failed,
            reason: self.failure.code().into(),
            policy: "".into(),
        }
    }
}

fn end(workload: Option<&Workload>, address: std::net::IpAddr) -> End {
    let side = workload.map(|workload| Side::of(workload, None)).unwrap_or_default();
    Opening::end(&side, workload.map(|workload| &workload.name), &Place::of(workload, address))
}
