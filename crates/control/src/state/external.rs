//! Hosts of ServiceEntries, their endpoints, and WorkloadEntries: what becomes of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::State;
use super::dirty::Dirty;
use super::resource::{Name, Resource};
use super::status::{StatusKind, StatusOf};
use crate::input::{EntryVisibility, Key, Labels, Service, ServiceEntry, selects};
use crate::model::{self, EntryContext, HostContext};

/// What a ServiceEntry has of its hosts: those it serves, and those that another object has, with its name.
type Hosts = (Vec<Arc<str>>, Vec<(Arc<str>, String)>);

impl State {
    /// Whether a ServiceEntry is of this mesh at all.
    fn takes_entry(&self, entry: &ServiceEntry) -> bool {
        self.settings.in_revision(entry.revision.as_deref())
            && self.discovers(&entry.key.namespace)
            && entry.addresses.is_some()
            && self.visibility_of(entry) != EntryVisibility::None
    }

    /// Who sees a ServiceEntry.
    pub(super) fn visibility_of(&self, entry: &ServiceEntry) -> EntryVisibility {
        let namespace = self.namespace_named(&entry.key.namespace);
        let none = Labels::new();
        self.mesh.visibility(namespace.map_or(&none, |namespace| &namespace.labels))
    }

    /// Key of the Kubernetes service of a hostname, when there is one.
    pub(super) fn service_named(&self, host: &str) -> Option<&Arc<Service>> {
        let (rest, domain) = host.split_once(".svc.")?;
        let (name, namespace) = rest.split_once('.')?;
        if domain != &*self.settings.domain {
            return None;
        }
        let service = self.services.get(&Key::new(namespace, name))?;
        (!service.external && service.vips.is_some() && self.discovers(&service.key.namespace))
            .then_some(service)
    }

    /// Finds out whose a host is, in each namespace that has it, and publishes it. Touches what a change of hands
    /// means for endpoints and workloads.
    pub(super) fn flush_host(&mut self, network: &Arc<str>, host: &Arc<str>, dirty: &mut Dirty) {
        let kubernetes = self.service_named(host).map(|service| service.key.namespace.clone());
        let mut winners: BTreeMap<Arc<str>, Arc<ServiceEntry>> = BTreeMap::new();
        let keys = self.entries_of_host.get(host).into_iter().flatten();
        for entry in keys.filter_map(|key| self.entries.get(key)).filter(|entry| self.takes_entry(entry)) {
            if kubernetes.as_ref() == Some(&entry.key.namespace) {
                continue;
            }
            let age = |entry: &ServiceEntry| (entry.created, entry.key.clone());
            match winners.get(&entry.key.namespace) {
                Some(have) if age(have) <= age(entry) => {}
                _ => drop(winners.insert(entry.key.namespace.clone(), entry.clone())),
            }
        }
        let public = |entry: &&Arc<ServiceEntry>| self.visibility_of(entry) == EntryVisibility::Public;
        let oldest =
            winners.values().filter(public).min_by_key(|entry| (entry.created, entry.key.clone())).cloned();
        let canonical = oldest.filter(|_| kubernetes.is_none()).map(|entry| entry.key.clone());
        let before = self.winners.remove(host).unwrap_or_default();
        let mut after: BTreeMap<Arc<str>, Key> = BTreeMap::new();
        for (namespace, entry) in &winners {
            let says = self.namespace_named(namespace);
            let bound = self.bind_entry(entry).ok().flatten();
            let context = HostContext {
                network,
                distribution: says.and_then(|namespace| namespace.distribution),
                canonical: canonical.as_ref() == Some(&entry.key),
                visibility: match self.visibility_of(entry) {
                    EntryVisibility::Public => mesh::Visibility::Public,
                    _ => mesh::Visibility::Namespace,
                },
                bound: bound.as_ref(),
            };
            if let Some(service) = model::host(&context, entry, host) {
                after.insert(namespace.clone(), entry.key.clone());
                self.put_address(Resource::service(&service));
            }
        }
        for namespace in before.keys().filter(|namespace| !after.contains_key(*namespace)) {
            if kubernetes.as_ref() != Some(namespace) {
                self.remove_address(&format!("{namespace}/{host}"));
            }
        }
        let namespaces: BTreeSet<&Arc<str>> = before.keys().chain(after.keys()).collect();
        for namespace in namespaces {
            let (old, new) = (before.get(namespace), after.get(namespace));
            if old != new {
                for key in [old, new].into_iter().flatten() {
                    dirty.entries.insert(key.clone());
                    self.touch_entry_workloads(key, dirty);
                }
            }
        }
        // Whoever lost is told so, and who it was that won.
        dirty.entries.extend(self.entries_of_host.get(host).into_iter().flatten().cloned());
        if !after.is_empty() {
            self.winners.insert(host.clone(), after);
        }
    }

    /// Touches the workloads that a ServiceEntry selects.
    pub(super) fn touch_entry_workloads(&self, key: &Key, dirty: &mut Dirty) {
        let Some(selector) = self.entries.get(key).and_then(|entry| entry.selector.as_ref()) else { return };
        self.touch_selector(&key.namespace, selector, dirty);
    }

    /// Touches the workloads of a namespace that a selector selects, if it asks for anything.
    pub(super) fn touch_selector(&self, namespace: &Arc<str>, selector: &Labels, dirty: &mut Dirty) {
        if selector.is_empty() {
            return;
        }
        let pods = self.snapshot.pods.of(namespace).filter(|pod| selects(selector, &pod.labels));
        dirty.pods.extend(pods.map(|pod| pod.key.clone()));
        let written = self.written.of(namespace).filter(|one| selects(selector, &one.entry.labels));
        dirty.written.extend(written.map(|one| one.key.clone()));
    }

    /// Publishes the endpoints of a ServiceEntry, and says what became of it.
    pub(super) fn flush_entry(&mut self, network: &Arc<str>, key: &Key) {
        let Some(entry) = self.entries.get(key).cloned() else {
            self.release(key);
            self.unwanted(&StatusOf { kind: StatusKind::ServiceEntry, key: key.clone() });
            return self.put_endpoints(key, Vec::new());
        };
        let ours = self.settings.in_revision(entry.revision.as_deref()) && self.discovers(&key.namespace);
        if !ours {
            self.release(key);
            self.unwanted(&StatusOf { kind: StatusKind::ServiceEntry, key: key.clone() });
            return self.put_endpoints(key, Vec::new());
        }
        let (won, lost) = self.hosts_of(&entry);
        let policies = self.policies_bound(&key.namespace, &entry.labels);
        let endpoints = model::endpoints(&self.settings, network, &entry, &won, &policies, |endpoint| {
            let attachment =
                crate::input::Attachment::read(Some(&endpoint.labels), None, &entry.key.namespace);
            self.bind_workload(&attachment, &entry.key.namespace)
                .ok()
                .flatten()
                .map(|bound| bound.primary.gateway.clone())
        });
        let resources = endpoints.into_iter().map(|workload| self.encode(workload, [])).collect();
        self.put_endpoints(key, resources);
        self.entry_status(&entry, &lost);
    }

    fn put_endpoints(&mut self, key: &Key, resources: Vec<Resource>) {
        let names: BTreeSet<Name> = resources.iter().map(|resource| resource.name.clone()).collect();
        let before = self.endpoints_of_entry.remove(key).unwrap_or_default();
        for resource in resources {
            self.put_address(resource);
        }
        for name in before.difference(&names) {
            self.remove_address(name);
        }
        if !names.is_empty() {
            self.endpoints_of_entry.insert(key.clone(), names);
        }
    }

    fn hosts_of(&self, entry: &ServiceEntry) -> Hosts {
        let (mut won, mut lost) = (Vec::new(), Vec::new());
        for host in &entry.hosts {
            match self.winners.get(host).and_then(|winners| winners.get(&entry.key.namespace)) {
                Some(winner) if *winner == entry.key => won.push(host.clone()),
                Some(winner) => lost.push((host.clone(), format!("ServiceEntry {winner}"))),
                None => {
                    let service =
                        self.service_named(host).filter(|one| one.key.namespace == entry.key.namespace);
                    lost.extend(service.map(|service| (host.clone(), format!("Service {}", service.key))));
                }
            }
        }
        (won, lost)
    }

    /// Hosts that a workload with these labels serves, each with its ServiceEntry.
    pub(super) fn hosts_selecting<'a>(
        &'a self,
        namespace: &'a Arc<str>,
        labels: &Labels,
    ) -> Vec<(&'a ServiceEntry, Arc<str>)> {
        let selecting = self.entries.of(namespace).filter(|entry| {
            entry.selector.as_ref().is_some_and(|selector| !selector.is_empty() && selects(selector, labels))
        });
        selecting
            .flat_map(|entry| self.hosts_of(entry).0.into_iter().map(move |host| (&**entry, host)))
            .collect()
    }

    /// Publishes a WorkloadEntry, and says what became of it.
    pub(super) fn flush_written(&mut self, network: &Arc<str>, key: &Key) {
        let uid = model::workload_entry_uid(&self.settings, key);
        let ours = self.written.get(key).cloned().filter(|input| {
            self.settings.in_revision(input.revision.as_deref()) && self.discovers(&key.namespace)
        });
        let Some(input) = ours else {
            self.unwanted(&StatusOf { kind: StatusKind::WorkloadEntry, key: key.clone() });
            return self.remove_address(&uid);
        };
        let labels = &input.entry.labels;
        let bound = self.bind_workload(&input.attachment, &key.namespace);
        let services = self.services.of(&key.namespace).map(|service| &**service).filter(|service| {
            !service.external && !service.selector.is_empty() && selects(&service.selector, labels)
        });
        let context = EntryContext {
            network: network.clone(),
            services: services.collect(),
            hosts: self.hosts_selecting(&key.namespace, labels),
            policies: self.policies_bound(&key.namespace, labels),
            waypoint: bound.as_ref().ok().and_then(Option::as_ref).map(|bound| bound.primary.gateway.clone()),
        };
        match model::workload_entry(&self.settings, context, &input) {
            Ok(workload) => {
                let resource = self.encode(workload, []);
                self.put_address(resource);
            }
            Err(error) => {
                tracing::warn!(workload_entry = %key, %error, "workload entry left out of the mesh");
                self.remove_address(&uid);
            }
        }
        let condition = model::binding(&bound, false);
        let kind = StatusKind::WorkloadEntry;
        self.want(kind, key, input.generation, &input.conditions, condition, None);
    }
}
