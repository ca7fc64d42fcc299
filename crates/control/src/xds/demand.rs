//! A client that asks for what it needs by name instead of following everything (`XDS_ON_DEMAND`).
//!
//! What such a client is to have follows from three things alone: the names it has asked for, the node it is on, and
//! what is published. It is to have the resources that go by a name it asked for (uid, `namespace/hostname`, or an
//! alias `network/ip`), every workload of a service that it is to have, and the workloads of its own node. What it
//! no longer is to have is told as removed; so its state never depends on how it came about.
//!
//! Stricter and fuller than istiod (reference/control-plane.md §3.5): new endpoints of a service are pushed wherever
//! they run.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::state::{Changes, Link, Name, Resource, Shelf};

/// Names that one client may ask for, at most; a mesh has fewer addresses.
pub(super) const MOST: usize = 1_000_000;

/// What one client has asked for and has.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// The client's own node.
    node: Option<Name>,
    asked: BTreeSet<Name>,
    held: BTreeSet<Name>,
}

/// What is to be told.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub resources: Vec<Arc<Resource>>,
    pub removed: Vec<Name>,
}

impl Demand {
    /// A client on `node` asks for names, and has `known` resources by version; as far as those are still published
    /// they count as asked for. The answer is what it does not have.
    pub fn open<'a>(
        node: Option<&str>,
        names: impl IntoIterator<Item = &'a String>,
        known: BTreeMap<String, String>,
        shelf: &Shelf,
    ) -> (Self, Told) {
        let node = node.filter(|node| !node.is_empty());
        let mut demand = Self { node: node.map(Name::from), ..Self::default() };
        let mut told = Told::default();
        let mut wanted = BTreeMap::new();
        for name in names {
            if !reach(shelf, name, &mut wanted) {
                told.removed.push(name.as_str().into());
            }
            demand.asked.insert(name.as_str().into());
        }
        for name in known.keys() {
            if reach(shelf, name, &mut wanted) {
                demand.asked.insert(name.as_str().into());
            } else if !demand.asked.contains(name.as_str()) {
                told.removed.push(name.as_str().into());
            }
        }
        if let Some(node) = &demand.node {
            let of_node = shelf.linked(Link::Node, node);
            wanted.extend(of_node.map(|resource| (resource.name.clone(), resource.clone())));
        }
        for (name, resource) in wanted {
            if known.get(&*name).is_none_or(|version| *version != *resource.version) {
                told.resources.push(resource);
            }
            demand.held.insert(name);
        }
        (demand, told)
    }

    /// The client asks for further names; each is answered, with what goes by it or with its removal.
    pub fn ask<'a>(&mut self, names: impl IntoIterator<Item = &'a String>, shelf: &Shelf) -> Told {
        let mut told = Told::default();
        let mut found = BTreeMap::new();
        for name in names {
            if !reach(shelf, name, &mut found) {
                told.removed.push(name.as_str().into());
            }
            self.asked.insert(name.as_str().into());
        }
        for (name, resource) in found {
            self.held.insert(name);
            told.resources.push(resource);
        }
        told
    }

    /// The client no longer asks for these names. It forgets by itself what went by them.
    pub fn drop<'a>(&mut self, names: impl IntoIterator<Item = &'a String>, shelf: &Shelf) {
        for name in names {
            self.asked.remove(name.as_str());
            let mut found = BTreeMap::new();
            reach(shelf, name, &mut found);
            for (name, resource) in found {
                if !self.wants(shelf, &resource) {
                    self.held.remove(&name);
                }
            }
        }
    }

    /// How many names it has asked for.
    pub fn asked(&self) -> usize {
        self.asked.len()
    }

    /// What of these changes concerns the client.
    pub fn filter(&mut self, changes: Changes, shelf: &Shelf) -> Told {
        let mut told = Told::default();
        // Workloads of services that the client has, or has no longer: they are to be had or not with their service.
        let mut with_service: BTreeMap<Name, Arc<Resource>> = BTreeMap::new();
        let mut changed: BTreeSet<Name> = BTreeSet::new();
        for resource in changes.updated.into_iter().chain(changes.again) {
            let wanted = self.wants(shelf, &resource);
            let held = self.held.contains(&resource.name);
            if wanted != held && resource.service {
                let workloads = shelf.linked(Link::Service, &resource.name);
                with_service.extend(workloads.map(|one| (one.name.clone(), one.clone())));
            }
            changed.insert(resource.name.clone());
            if wanted {
                self.held.insert(resource.name.clone());
                told.resources.push(resource);
            } else if held {
                self.held.remove(&resource.name);
                told.removed.push(resource.name.clone());
            }
        }
        for name in changes.removed {
            if self.held.remove(&name) {
                let workloads = shelf.linked(Link::Service, &name);
                with_service.extend(workloads.map(|one| (one.name.clone(), one.clone())));
                told.removed.push(name);
            }
        }
        for (name, resource) in with_service {
            if changed.contains(&name) {
                continue;
            }
            match (self.wants(shelf, &resource), self.held.contains(&name)) {
                (true, false) => {
                    self.held.insert(name);
                    told.resources.push(resource);
                }
                (false, true) => {
                    self.held.remove(&name);
                    told.removed.push(name);
                }
                _ => {}
            }
        }
        told
    }

    fn wants(&self, shelf: &Shelf, resource: &Resource) -> bool {
        let by_name = |resource: &Resource| resource.names().any(|name| self.asked.contains(name));
        by_name(resource)
            || self.node.as_ref().is_some_and(|node| resource.links(Link::Node).any(|one| one == node))
            || resource.links(Link::Service).any(|service| {
                self.asked.contains(service) || shelf.get(service).is_some_and(|service| by_name(service))
            })
    }
}

/// Finds what goes by a name, and with a service its workloads; false when there is nothing of that name.
fn reach(shelf: &Shelf, name: &str, found: &mut BTreeMap<Name, Arc<Resource>>) -> bool {
    let mut any = false;
    let named = shelf.get(name).into_iter().chain(shelf.linked(Link::Alias, name));
    for resource in named {
        any = true;
        if found.insert(resource.name.clone(), resource.clone()).is_none() && resource.service {
            let workloads = shelf.linked(Link::Service, &resource.name);
            found.extend(workloads.map(|one| (one.name.clone(), one.clone())));
        }
    }
    any
}
