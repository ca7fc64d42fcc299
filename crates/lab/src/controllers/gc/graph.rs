//! Who owns whom, and what follows. Pure.

use std::collections::{HashMap, HashSet};
use std::fmt::{Display, Formatter};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

/// The finalizer that keeps an owner until its dependents are gone.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer that keeps an owner until its dependents have been let go.
pub const ORPHAN: &str = "orphan";

/// Where an object is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// `group/version`, or only the version.
    pub api_version: String,
    /// Its kind.
    pub kind: String,
    /// Its namespace, or empty.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)
    }
}

/// An object as far as ownership is concerned.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Item {
    /// Where it is.
    pub place: Place,
    /// Which one it is.
    pub uid: String,
    /// Its version, for writes that must not meet a change.
    pub resource_version: Option<String>,
    /// Its owners.
    pub owners: Vec<OwnerReference>,
    /// What keeps it.
    pub finalizers: Vec<String>,
    /// Its deletion was asked for.
    pub deleting: bool,
}

impl Item {
    /// An item from an object's metadata.
    pub fn new(place: Place, meta: &ObjectMeta) -> Item {
        Item {
            place,
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone(),
            owners: meta.owner_references.clone().unwrap_or_default(),
            finalizers: meta.finalizers.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    fn waits_for(&self, finalizer: &str) -> bool {
        self.deleting && self.finalizers.iter().any(|name| name == finalizer)
    }

    fn blocks(&self, owner: &str) -> bool {
        self.owners.iter().any(|found| found.uid == owner && found.block_owner_deletion == Some(true))
    }
}

/// What to do about an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Nothing.
    Nothing,
    /// Nothing keeps it any more: take this finalizer off.
    Release {
        /// The object.
        item: Item,
        /// The finalizer.
        finalizer: &'static str,
    },
    /// It waits for these; delete them.
    DeleteFirst {
        /// Dependents that are not on their way out yet.
        dependents: Vec<Item>,
    },
    /// It leaves these behind: take it off their owners, then let it go.
    Orphan {
        /// The object.
        item: Item,
        /// Its dependents.
        dependents: Vec<Item>,
    },
    /// Not all of its owners are known here; those that do not exist are to be forgotten, and when none is left the
    /// object goes too.
    CheckOwners {
        /// The object.
        item: Item,
    },
}

/// All objects, and the dependents of each UID, whether that owner was seen or not.
#[derive(Debug, Default)]
pub struct Graph {
    items: HashMap<String, Item>,
    dependents: HashMap<String, HashSet<String>>,
}

impl Graph {
    /// Notes an object as it is now; returns which ones are worth a look.
    pub fn put(&mut self, item: Item) -> Vec<String> {
        let before = self.items.get(&item.uid).map(|known| known.owners.clone()).unwrap_or_default();
        for owner in &before {
            self.detach(&owner.uid, &item.uid);
        }
        for owner in &item.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(item.uid.clone());
        }
        let mut affected = Vec::new();
        if !item.owners.is_empty() || item.waits_for(FOREGROUND) || item.waits_for(ORPHAN) {
            affected.push(item.uid.clone());
        }
        // An owner that waits may wait for this one no longer.
        affected.extend(self.waiting_owners(&before));
        self.items.insert(item.uid.clone(), item);
        affected
    }

    /// Notes that an object is gone; returns which ones are worth a look.
    pub fn remove(&mut self, uid: &str) -> Vec<String> {
        let Some(item) = self.items.remove(uid) else { return Vec::new() };
        for owner in &item.owners {
            self.detach(&owner.uid, uid);
        }
        let mut affected: Vec<String> = self.dependents.get(uid).into_iter().flatten().cloned().collect();
        affected.extend(self.waiting_owners(&item.owners));
        affected
    }

    fn detach(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents.remove(owner);
            }
        }
    }

    fn waiting_owners(&self, owners: &[OwnerReference]) -> Vec<String> {
        let waiting = |uid: &String| self.items.get(uid).is_some_and(|item| item.waits_for(FOREGROUND));
        owners.iter().map(|owner| owner.uid.clone()).filter(waiting).collect()
    }

    fn dependents(&self, uid: &str) -> impl Iterator<Item = &Item> {
        self.dependents.get(uid).into_iter().flatten().filter_map(|uid| self.items.get(uid))
    }

    /// What to do about an object.
    pub fn decide(&self, uid: &str) -> Decision {
        let Some(item) = self.items.get(uid) else { return Decision::Nothing };
        if item.waits_for(ORPHAN) {
            return Decision::Orphan {
                item: item.clone(),
                dependents: self.dependents(uid).cloned().collect(),
            };
        }
        if item.waits_for(FOREGROUND) {
            if !self.dependents(uid).any(|dependent| dependent.blocks(uid)) {
                return Decision::Release { item: item.clone(), finalizer: FOREGROUND };
            }
            let dependents = self.dependents(uid).filter(|dependent| !dependent.deleting).cloned().collect();
            return Decision::DeleteFirst { dependents };
        }
        if item.deleting || item.owners.is_empty() {
            return Decision::Nothing;
        }
        if item.owners.iter().any(|owner| !self.items.contains_key(&owner.uid)) {
            return Decision::CheckOwners { item: item.clone() };
        }
        let all_going = item
            .owners
            .iter()
            .all(|owner| self.items.get(&owner.uid).is_some_and(|owner| owner.waits_for(FOREGROUND)));
        if all_going { Decision::DeleteFirst { dependents: vec![item.clone()] } } else { Decision::Nothing }
    }
}

#[cfg(test)]
mod tests;
