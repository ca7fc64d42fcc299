//! Gateways of other networks: which are known, and whose way in they are.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh::{Uid, Workload};

use super::State;
use super::dirty::Dirty;
use super::resource::Resource;
use crate::input::Key;
use crate::model::{self, NetworkGateway};

impl State {
    /// Finds out which networks a Gateway leads into, publishes it, and touches whatever lives there when that has
    /// changed.
    pub(super) fn flush_ways(&mut self, local: &Arc<str>, key: &Key, dirty: &mut Dirty) {
        let known = |way: &NetworkGateway| match way.workload(&self.settings) {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(gateway = %key, %error, "gateway of another network left out of the mesh");
                false
            }
        };
        let ours = self.our_gateway(key);
        let mut after = ours.map(|gateway| model::network_gateways(gateway)).unwrap_or_default();
        after.retain(known);
        let before = self.ways.get(key).map(Vec::as_slice).unwrap_or_default();
        if before == after {
            return;
        }
        let concerned = || before.iter().chain(&after);
        let names: BTreeSet<Uid> = concerned().map(NetworkGateway::uid).collect();
        let networks: BTreeSet<Arc<str>> = concerned().map(|way| way.network.clone()).collect();
        match after.is_empty() {
            true => drop(self.ways.remove(key)),
            false => drop(self.ways.insert(key.clone(), after)),
        }
        for uid in names {
            // Two Gateways may stand for one place; the first of them speaks for it.
            let way = self.ways.values().flatten().find(|way| way.uid() == uid);
            match way.and_then(|way| way.workload(&self.settings).ok()) {
                Some(workload) => self.put_address(Resource::workload(&workload, &[])),
                None => self.remove_address(&uid),
            }
        }
        self.touch_networks(local, &networks, dirty);
    }

    fn touch_networks(&self, local: &Arc<str>, networks: &BTreeSet<Arc<str>>, dirty: &mut Dirty) {
        let there = |entry: &crate::input::Entry| networks.contains(entry.network.as_ref().unwrap_or(local));
        let written = self.written.values().filter(|one| there(&one.entry));
        dirty.written.extend(written.map(|one| one.key.clone()));
        let here = networks.contains(local);
        // The endpoint that a name to resolve is stands nowhere in the object, and is on the local network.
        let entries = self.entries.values().filter(|one| here || one.endpoints.iter().any(there));
        dirty.entries.extend(entries.map(|one| one.key.clone()));
        if here {
            dirty.pods.extend(self.snapshot.pods.all().map(|pod| pod.key.clone()));
            dirty.slices.extend(self.slices.keys().cloned());
        }
    }

    /// Names the way in: the first gateway of the network that the workload is on.
    pub(super) fn with_way_in(&self, workload: &mut Workload) {
        let way = self.ways.values().flatten().find(|way| way.network == workload.network);
        workload.network_gateway = way.map(NetworkGateway::target);
    }
}
