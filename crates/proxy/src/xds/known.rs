//! What the control plane has told: the view, the version of each resource, and whose certificates that needs.

mod exercise;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use mesh::{Identity, Policy, ServiceKey, Tunnel, Uid, View, Workload};
use prost::Message;
use tokio::sync::watch;
use wire::Address;
use wire::xds::{DeltaDiscoveryResponse, Resource};

pub use exercise::exercise;

/// The owner of the view.
pub(super) struct Known {
    view: View,
    versions: BTreeMap<&'static str, BTreeMap<String, String>>,
    node: Option<String>,
    local: HashMap<Uid, Identity>,
    publish: watch::Sender<Arc<BTreeSet<Identity>>>,
}

impl Known {
    pub(super) fn new(node: Option<&str>) -> (Self, watch::Receiver<Arc<BTreeSet<Identity>>>) {
        let (publish, local) = watch::channel(Arc::default());
        let known = Self {
            view: View::default(),
            versions: BTreeMap::new(),
            node: node.map(str::to_owned),
            local: HashMap::new(),
            publish,
        };
        (known, local)
    }

    pub(super) fn view(&self) -> View {
        self.view.clone()
    }

    pub(super) fn versions(&self, type_url: &str) -> BTreeMap<String, String> {
        self.versions.get(type_url).cloned().unwrap_or_default()
    }

    /// Takes in what can be understood; says what cannot, and why.
    pub(super) fn apply(&mut self, type_url: &'static str, response: DeltaDiscoveryResponse) -> Vec<String> {
        let mut rejected = Vec::new();
        for name in &response.removed_resources {
            self.remove(type_url, name);
        }
        for resource in response.resources {
            let (name, version) = (resource.name.clone(), resource.version.clone());
            match self.insert(type_url, resource) {
                Ok(()) => {
                    self.versions.entry(type_url).or_default().insert(name, version);
                }
                Err(reason) => rejected.push(format!("{name}: {reason}")),
            }
        }
        let identities: BTreeSet<Identity> = self.local.values().cloned().collect();
        self.publish.send_if_modified(|published| {
            let changed = **published != identities;
            if changed {
                *published = Arc::new(identities);
            }
            changed
        });
        rejected
    }

    fn insert(&mut self, type_url: &'static str, resource: Resource) -> Result<(), String> {
        let any = resource.resource.ok_or("it is empty")?;
        if any.type_url != type_url {
            return Err(format!("it is a {}, not a {type_url}", any.type_url));
        }
        let undecodable = |error: prost::DecodeError| error.to_string();
        let refused = |error: wire::ConvertError| error.to_string();
        if type_url == wire::type_url::AUTHORIZATION {
            let policy = wire::security::Authorization::decode(&*any.value).map_err(undecodable)?;
            self.view.insert_policy(Policy::try_from(policy).map_err(refused)?);
            return Ok(());
        }
        let address = wire::workload::Address::decode(&*any.value).map_err(undecodable)?;
        match Address::try_from(address).map_err(refused)? {
            Address::Workload(workload) => {
                self.note(&workload);
                self.view.insert_workload(workload);
            }
            Address::Service(service) => self.view.insert_service(service),
        }
        Ok(())
    }

    fn note(&mut self, workload: &Workload) {
        let here = self.node.as_deref().is_none_or(|node| node == &*workload.node);
        let ours = here && (workload.tunnel == Tunnel::Hbone || workload.native_tunnel);
        if ours {
            self.local.insert(workload.uid.clone(), workload.identity.clone());
        } else {
            self.local.remove(&workload.uid);
        }
    }

    fn remove(&mut self, type_url: &'static str, name: &str) {
        if let Some(versions) = self.versions.get_mut(type_url) {
            versions.remove(name);
        }
        if type_url == wire::type_url::AUTHORIZATION {
            self.view.remove_policy(name);
        } else if self.view.remove_workload(name).is_some() {
            self.local.remove(name);
        } else if let Ok(key) = name.parse::<ServiceKey>() {
            self.view.remove_service(&key);
        }
    }
}

#[cfg(test)]
mod tests;
