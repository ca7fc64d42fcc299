//! What the control plane has told: the view, the version of each resource, and whose certificates that needs.

mod asked;
mod exercise;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use asked::Asked;
use mesh::{Identity, Lookup, NetworkAddress, Policy, Service, ServiceKey, Tunnel, Uid, View, Workload};
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
    /// What was asked for by name; none: everything is followed.
    asked: Option<Asked>,
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
            asked: None,
            publish,
        };
        (known, local)
    }

    /// Asks by name from now on.
    pub(super) fn on_demand(&mut self) {
        self.view.set_partial();
        self.asked = Some(Asked::default());
    }

    /// Takes in what needs no control plane.
    pub(super) fn take_in(&mut self, local: wire::Local) {
        for workload in local.workloads {
            self.note(&workload);
            self.view.insert_workload(workload);
        }
        for service in local.services {
            self.view.insert_service(service);
        }
        for policy in local.policies {
            self.view.insert_policy(policy);
        }
        self.tell();
    }

    /// Wants to know of these names.
    pub(super) fn ask(&mut self, lookups: impl IntoIterator<Item = Lookup>) {
        if let Some(asked) = &mut self.asked {
            lookups.into_iter().for_each(|lookup| asked.ask(lookup));
        }
    }

    /// Names to subscribe to and to unsubscribe from, as far as the control plane has not been told.
    pub(super) fn questions(&mut self) -> Option<(Vec<String>, Vec<String>)> {
        self.asked.as_mut()?.take()
    }

    /// All names that are asked for; nothing when everything is followed.
    pub(super) fn all_questions(&mut self) -> Option<Vec<String>> {
        Some(self.asked.as_mut()?.all())
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
        // Only who asks by name has to know what happened to which name.
        let mut touched = self.asked.is_some().then(Vec::new);
        for name in &response.removed_resources {
            self.remove(type_url, name, &mut touched);
            if let Some(touched) = &mut touched {
                touched.extend(name.parse::<Lookup>());
            }
        }
        for resource in response.resources {
            let (name, version) = (resource.name.clone(), resource.version.clone());
            if let Some(touched) = &mut touched {
                touched.extend(self.names_of(&name));
            }
            match self.insert(type_url, resource) {
                Ok(()) => {
                    self.versions.entry(type_url).or_default().insert(name, version);
                }
                Err(reason) => rejected.push(format!("{name}: {reason}")),
            }
        }
        self.tell();
        if let (Some(asked), Some(touched)) = (&mut self.asked, touched) {
            // What others call this node's workloads by must be known before they call.
            let ours = self.local.keys().filter_map(|uid| self.view.workload(uid));
            let services = ours.flat_map(|workload| workload.services.keys());
            services.for_each(|key| asked.ask(Lookup::Service(key.clone())));
            asked.settle(&mut self.view, touched);
        }
        rejected
    }

    /// Tells whose certificates this node needs.
    fn tell(&self) {
        let identities: BTreeSet<Identity> = self.local.values().cloned().collect();
        self.publish.send_if_modified(|published| {
            let changed = **published != identities;
            if changed {
                *published = Arc::new(identities);
            }
            changed
        });
    }

    /// What goes by the resource's name now.
    fn names_of(&self, name: &str) -> Vec<Lookup> {
        if let Some(workload) = self.view.workload(name) {
            return names_of_workload(workload);
        }
        let service = name.parse::<ServiceKey>().ok();
        service
            .and_then(|key| self.view.service(&key))
            .map(|service| names_of_service(service))
            .unwrap_or_default()
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

    fn remove(&mut self, type_url: &'static str, name: &str, touched: &mut Option<Vec<Lookup>>) {
        if let Some(versions) = self.versions.get_mut(type_url) {
            versions.remove(name);
        }
        if let Some(touched) = touched {
            touched.extend(self.names_of(name));
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

fn names_of_workload(workload: &Workload) -> Vec<Lookup> {
    let address = |ip: &std::net::IpAddr| Lookup::Address(NetworkAddress::new(workload.network.clone(), *ip));
    workload.addresses.iter().map(address).collect()
}

fn names_of_service(service: &Service) -> Vec<Lookup> {
    let vips = service.vips.iter().cloned().map(Lookup::Address);
    vips.chain([Lookup::Service(service.key.clone())]).collect()
}

#[cfg(test)]
mod tests;
