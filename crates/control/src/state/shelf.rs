//! Published resources and when each last changed: what a snapshot holds, and how a client catches up.
//!
//! Every change has a number. A client remembers the number it has seen and asks what changed since; however slow it
//! is, it gets each name once, with the latest content. So nothing is queued for anybody: the log is one for all
//! clients, holds each name at its latest change only, and removed names are forgotten after a while.

use imbl::{HashMap, OrdMap, OrdSet};

use super::resource::{Link, Name, Resource};
use std::sync::Arc;

/// Removed names that are remembered. A client that slept through more than these starts over with a new stream,
/// and tells what it has.
const REMEMBERED: usize = 20_000;

/// Resources of one type. Clones share everything.
#[derive(Clone, Debug, Default)]
pub struct Shelf {
    resources: HashMap<Name, Entry>,
    /// What can be found by what, and its name.
    links: OrdSet<(Link, Name, Name)>,
    services: usize,
    /// Change number to name, each name at its latest change.
    log: OrdMap<u64, Name>,
    /// Change number to name of those that are gone.
    gone: OrdMap<u64, Name>,
    /// Change number of those that are gone.
    gone_at: HashMap<Name, u64>,
    /// Removals up to this number are forgotten.
    floor: u64,
    remembered: Option<usize>,
}

#[derive(Clone, Debug)]
struct Entry {
    resource: Arc<Resource>,
    /// When it was last to be sent.
    at: u64,
    /// When its content last changed.
    content_at: u64,
}

/// What changed since a client last looked.
#[derive(Debug, Default)]
pub struct Changes {
    /// New content.
    pub updated: Vec<Arc<Resource>>,
    /// Content the client has, to be sent again because what it is attached to has changed.
    pub again: Vec<Arc<Resource>>,
    /// Names that are gone.
    pub removed: Vec<Name>,
}

/// The client has slept through removals that are forgotten by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too far behind: open a new stream and send initial_resource_versions")]
pub struct TooFarBehind;

impl Shelf {
    /// Puts a resource at change `at`; false when it stands there already with the same version.
    pub fn put(&mut self, at: u64, resource: Resource) -> bool {
        let name = resource.name.clone();
        match self.resources.get(&name) {
            Some(entry) if entry.resource.version == resource.version => return false,
            Some(entry) => {
                self.log.remove(&entry.at);
                if entry.resource.links != resource.links {
                    for (kind, by) in &entry.resource.links {
                        self.links.remove(&(*kind, by.clone(), name.clone()));
                    }
                    self.link(&resource);
                }
            }
            None => {
                self.services += usize::from(resource.service);
                self.link(&resource);
                if let Some(at) = self.gone_at.remove(&name) {
                    self.gone.remove(&at);
                }
            }
        }
        self.log.insert(at, name.clone());
        self.resources.insert(name, Entry { resource: Arc::new(resource), at, content_at: at });
        true
    }

    fn link(&mut self, resource: &Resource) {
        for (kind, by) in &resource.links {
            self.links.insert((*kind, by.clone(), resource.name.clone()));
        }
    }

    /// Resources that are found by a name other than their own.
    pub fn linked<'a>(&'a self, kind: Link, by: &str) -> impl Iterator<Item = &'a Arc<Resource>> + use<'a> {
        let by: Name = by.into();
        let all = self.links.range((kind, by.clone(), Name::from(""))..);
        let those = all.take_while(move |(one, other, _)| *one == kind && *other == by);
        those.filter_map(|(_, _, name)| self.get(name))
    }

    /// Has a resource sent again; false when there is none of that name.
    pub fn touch(&mut self, at: u64, name: &str) -> bool {
        let Some(entry) = self.resources.get_mut(name) else { return false };
        self.log.remove(&entry.at);
        entry.at = at;
        self.log.insert(at, entry.resource.name.clone());
        true
    }

    /// Removes a resource; false when there is none of that name.
    pub fn remove(&mut self, at: u64, name: &str) -> bool {
        let Some(entry) = self.resources.remove(name) else { return false };
        self.log.remove(&entry.at);
        self.services -= usize::from(entry.resource.service);
        for (kind, by) in &entry.resource.links {
            self.links.remove(&(*kind, by.clone(), entry.resource.name.clone()));
        }
        self.gone.insert(at, entry.resource.name.clone());
        self.gone_at.insert(entry.resource.name.clone(), at);
        while self.gone.len() > self.remembered.unwrap_or(REMEMBERED) {
            let Some((oldest, name)) = self.gone.get_min().cloned() else { break };
            self.gone.remove(&oldest);
            self.gone_at.remove(&name);
            self.floor = oldest;
        }
        true
    }

    /// The resource of a name.
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.resources.get(name).map(|entry| &entry.resource)
    }

    /// All resources, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values().map(|entry| &entry.resource)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.resources.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.resources.is_empty()
    }

    /// How many of them are services.
    pub fn services(&self) -> usize {
        self.services
    }

    /// Number of the last change, 0 before the first.
    pub fn last(&self) -> u64 {
        let last = |log: &OrdMap<u64, Name>| log.get_max().map_or(0, |(at, _)| *at);
        last(&self.log).max(last(&self.gone))
    }

    /// What changed after change `seen`, in the order it happened.
    pub fn since(&self, seen: u64) -> Result<Changes, TooFarBehind> {
        if seen < self.floor {
            return Err(TooFarBehind);
        }
        let mut changes = Changes::default();
        for (_, name) in self.log.range(seen + 1..) {
            let Some(entry) = self.resources.get(name) else { continue };
            let list = if entry.content_at > seen { &mut changes.updated } else { &mut changes.again };
            list.push(entry.resource.clone());
        }
        changes.removed.extend(self.gone.range(seen + 1..).map(|(_, name)| name.clone()));
        Ok(changes)
    }

    /// A shelf that remembers fewer removals, for tests.
    #[cfg(test)]
    pub(crate) fn remembering(count: usize) -> Self {
        Self { remembered: Some(count), ..Self::default() }
    }
}
