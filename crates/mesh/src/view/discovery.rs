//! A view that does not hold the whole mesh: what is missing in it can be named, asked for, and known to be absent.
//!
//! A proxy that follows everything never needs this. One that asks by name (`XDS_ON_DEMAND`) must not take "not known"
//! for "does not exist": a call to a workload that merely has not been asked for would leave in plaintext.

use std::fmt;

use super::View;
use crate::{NetworkAddress, ServiceKey};

/// What can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lookup {
    /// Whatever has this address: a workload, or a service with its workloads.
    Address(NetworkAddress),
    /// A service with its workloads, by name.
    Service(ServiceKey),
}

impl fmt::Display for Lookup {
    /// As the workload API names it: `network/ip` or `namespace/hostname`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Service(key) => key.fmt(f),
        }
    }
}

impl std::str::FromStr for Lookup {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (first, rest) = text.split_once('/').ok_or("neither network/ip nor namespace/hostname")?;
        match rest.parse() {
            Ok(ip) => Ok(Self::Address(NetworkAddress::new(first, ip))),
            Err(_) => text.parse().map(Self::Service),
        }
    }
}

impl View {
    /// From now on what is not known may exist all the same.
    pub fn set_partial(&mut self) {
        self.partial = true;
    }

    /// The control plane has said that there is nothing by this name.
    pub fn note_absent(&mut self, lookup: Lookup) {
        self.absent.insert(lookup);
    }

    /// Nobody watches any more whether something by this name appears.
    pub fn forget_absent(&mut self, lookup: &Lookup) {
        self.absent.remove(lookup);
    }

    /// How much is known to be absent.
    pub fn absent(&self) -> usize {
        self.absent.len()
    }

    /// Whether something goes by this name.
    pub fn has(&self, lookup: &Lookup) -> bool {
        match lookup {
            Lookup::Address(address) => {
                self.workloads_by_address.contains_key(address)
                    || self.hosts_by_address.contains_key(address)
                    || self.services_by_vip.contains_key(address)
            }
            Lookup::Service(key) => self.services.contains_key(key),
        }
    }

    /// Whether this has to be asked for before anything can be said of it.
    pub fn lacks(&self, lookup: &Lookup) -> bool {
        self.partial && !self.has(lookup) && !self.absent.contains(lookup)
    }
}
