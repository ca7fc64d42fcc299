//! What is still to be written on objects: the difference between what became of them and what stands on them.
//!
//! There is no memory of what was written. A write comes back as a change of the object, and then there is no
//! difference any more; whoever gains the lease finds here all that is left to do.

use std::net::IpAddr;
use std::sync::Arc;

use crate::input::{AuthorizationPolicy, Key, ServiceEntry, StatusCondition};
use crate::model::{self, Targets};

use super::State;

/// An object with a status.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StatusOf {
    /// Its kind.
    pub kind: StatusKind,
    /// Namespace and name.
    pub key: Key,
}

/// Kinds whose status is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum StatusKind {
    Service,
    ServiceEntry,
    WorkloadEntry,
    /// Condition for node proxies.
    AuthorizationPolicy,
}

/// What is to stand on an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// All of our conditions.
    pub conditions: Vec<StatusCondition>,
    /// Addresses given to the hosts of a ServiceEntry.
    pub addresses: Vec<(Arc<str>, IpAddr)>,
}

/// Addresses by host, and the flag that goes with them.
type Addresses = (Vec<(Arc<str>, IpAddr)>, bool);

impl State {
    /// Notes what is to stand on an object, when something else stands there.
    pub(super) fn want(
        &mut self,
        kind: StatusKind,
        key: &Key,
        generation: Option<i64>,
        found: &[StatusCondition],
        conditions: impl IntoIterator<Item = StatusCondition>,
        addresses: Option<Addresses>,
    ) {
        let mut conditions: Vec<StatusCondition> = conditions
            .into_iter()
            .map(|condition| {
                let since = found
                    .iter()
                    .find(|have| have.kind == condition.kind && have.status == condition.status)
                    .map_or_else(String::new, |have| have.since.clone());
                StatusCondition { generation, since, ..condition }
            })
            .collect();
        conditions.sort_by(|a, b| a.kind.cmp(&b.kind));
        let (addresses, addressed) = addresses.unwrap_or((Vec::new(), true));
        let stands = addressed
            && conditions.len() == found.len()
            && conditions.iter().zip(found).all(|(wanted, have)| wanted.same(have));
        let of = StatusOf { kind, key: key.clone() };
        if stands {
            self.unwanted(&of);
        } else {
            let wanted = Arc::new(Wanted { conditions, addresses });
            if self.snapshot.statuses.get(&of) != Some(&wanted) {
                self.snapshot.statuses.insert(of, wanted);
                self.dirty.accounts = true;
            }
        }
    }

    /// Nothing is to be written on an object.
    pub(super) fn unwanted(&mut self, of: &StatusOf) {
        if self.snapshot.statuses.remove(of).is_some() {
            self.dirty.accounts = true;
        }
    }

    /// The condition of a policy.
    pub(super) fn policy_status(&mut self, input: &AuthorizationPolicy, omitted: Option<&model::Omitted>) {
        let kind = StatusKind::AuthorizationPolicy;
        match omitted {
            // Another control plane speaks of it.
            Some(model::Omitted::Revision(_)) => {
                self.unwanted(&StatusOf { kind, key: input.key.clone() });
            }
            Some(model::Omitted::Targeted) => {
                let condition = model::waypoint_policy(&self.targets(input));
                self.want(kind, &input.key, input.generation, &input.conditions, [condition], None);
            }
            _ => {
                let condition = model::policy(input, omitted, &model::effect(input));
                self.want(kind, &input.key, input.generation, &input.conditions, condition, None);
            }
        }
    }

    /// What a policy's targets are bound to.
    fn targets(&self, input: &AuthorizationPolicy) -> Targets {
        let mut targets = Targets::default();
        for target in &input.targets {
            let namespace = target.namespace.as_deref().filter(|namespace| !namespace.is_empty());
            let namespace: Arc<str> = namespace.map_or_else(|| input.key.namespace.clone(), Arc::from);
            let key = Key::new(namespace, target.name.as_str());
            let group = if target.group.is_empty() { "core" } else { &target.group };
            let name = format!("{}.{group}:{key}", target.kind);
            let bound = match (target.group.as_str(), target.kind.as_str()) {
                ("" | "core", "Service") => match self.services.get(&key) {
                    None => Err(("TargetNotFound", format!("Service {key} was not found"))),
                    Some(service) => match self.bind_service(service) {
                        Ok(Some(bound)) => Ok(bound.primary.key.to_string()),
                        _ => Err(("AncestorNotBound", format!("Service {key} is not bound to a waypoint"))),
                    },
                },
                ("networking.istio.io", "ServiceEntry") => match self.entries.get(&key) {
                    None => Err(("TargetNotFound", format!("ServiceEntry {key} was not found"))),
                    Some(entry) => match self.bind_entry(entry) {
                        Ok(Some(bound)) => Ok(bound.primary.key.to_string()),
                        _ => Err((
                            "AncestorNotBound",
                            format!("ServiceEntry {key} is not bound to a waypoint"),
                        )),
                    },
                },
                ("gateway.networking.k8s.io", "Gateway") => match self.waypoints.get(&key) {
                    Some(waypoint) => Ok(waypoint.key.to_string()),
                    None if self.gateways.get(&key).is_some() => {
                        Err(("AncestorNotBound", "not bound".into()))
                    }
                    None => Err(("TargetNotFound", format!("Gateway {key} was not found"))),
                },
                ("gateway.networking.k8s.io", "GatewayClass") => {
                    let class = self.classes.get(&Key::new("", target.name.as_str()));
                    if input.key.namespace != self.settings.root_namespace {
                        Err(("Invalid", "a GatewayClass is a target in the root namespace only".into()))
                    } else if class.is_some() {
                        Ok(target.name.clone())
                    } else {
                        Err(("TargetNotFound", format!("GatewayClass {} was not found", target.name)))
                    }
                }
                _ => Err(("Invalid", format!("{name} is no target of a policy"))),
            };
            match bound {
                Ok(waypoint) => targets.bound.push(waypoint),
                Err((reason, message)) => targets.unbound.push((name, reason, message)),
            }
        }
        targets
    }

    /// Conditions and addresses of a ServiceEntry. `lost` are hosts that belong to another service.
    pub(super) fn entry_status(&mut self, entry: &ServiceEntry, lost: &[(Arc<str>, String)]) {
        let bound = self.bind_entry(entry);
        let mut conditions: Vec<StatusCondition> = model::binding(&bound, true).into_iter().collect();
        let unbound = !matches!(bound, Ok(Some(_)));
        if unbound && entry.racing {
            conditions.push(missing(
                "NoWaypointForRacingConnectStrategy",
                "the first connection that is made is only known to a waypoint",
            ));
        } else if unbound && entry.hosts.iter().any(|host| host.starts_with('*')) {
            conditions.push(missing(
                "NoWaypointForWildcardService",
                "names of a wildcard host are only known to a waypoint",
            ));
        }
        if self.mesh.visibility.is_some() {
            use crate::input::EntryVisibility::{Namespace, None, Public};
            let (status, reason, message) = match self.visibility_of(entry) {
                Public => (true, "Public", "seen by every namespace"),
                Namespace => (true, "Namespace", "seen by its own namespace only"),
                None => (false, "None", "seen by nobody, as the mesh configuration says"),
            };
            conditions.push(one("istio.io/VisibilityApplied", status, reason, message.into()));
        }
        if !lost.is_empty() {
            let hosts: Vec<String> = lost.iter().map(|(host, owner)| format!("{host} ({owner})")).collect();
            let message = format!(
                "hosts that another object has, and that this one therefore does not serve: {}",
                hosts.join(", ")
            );
            conditions.push(one("ambit.io/HostOwned", false, "HostTaken", message));
        }
        let addresses = self.allocate(entry);
        let have: Vec<(Arc<str>, IpAddr)> = entry
            .hosts
            .iter()
            .flat_map(|host| entry.allocated.get(host).into_iter().flatten().map(|ip| (host.clone(), *ip)))
            .collect();
        // What stands there of an earlier time does no harm: it is not used.
        let addressed = have == addresses || addresses.is_empty();
        let kind = StatusKind::ServiceEntry;
        let keep = if addresses.is_empty() { have } else { addresses };
        self.want(kind, &entry.key, entry.generation, &entry.conditions, conditions, Some((keep, addressed)));
    }

    /// The addresses that a ServiceEntry is to have; they are noted as taken.
    fn allocate(&mut self, entry: &ServiceEntry) -> Vec<(Arc<str>, IpAddr)> {
        self.release(&entry.key);
        let me = (entry.created, entry.key.clone());
        let hold = |state: &mut Self, ips: Vec<IpAddr>| {
            for ip in &ips {
                state.holders.entry(*ip).or_default().insert(me.clone());
            }
            state.held.entry(entry.key.clone()).or_default().extend(ips);
        };
        if entry.wants_addresses() {
            hold(self, entry.allocated.values().flatten().copied().collect());
        }
        let first = |ip: &IpAddr| self.holders.get(ip).is_some_and(|holders| holders.first() == Some(&me));
        let given = model::allocation(entry, first, |ip| !self.holders.contains_key(ip));
        hold(self, given.iter().map(|(_, ip)| *ip).collect());
        given
    }

    /// Lets go of the addresses of a ServiceEntry.
    pub(super) fn release(&mut self, key: &Key) {
        for ip in self.held.remove(key).unwrap_or_default() {
            if let Some(holders) = self.holders.get_mut(&ip) {
                holders.retain(|(_, holder)| holder != key);
                if holders.is_empty() {
                    self.holders.remove(&ip);
                }
            }
        }
    }
}

fn one(kind: &str, status: bool, reason: &str, message: String) -> StatusCondition {
    let (kind, reason) = (kind.to_string(), reason.to_string());
    StatusCondition { kind, status, reason, message, generation: None, since: String::new() }
}

fn missing(reason: &str, message: &str) -> StatusCondition {
    one("istio.io/WaypointMissing", true, reason, format!("{message}, and it is bound to none"))
}
