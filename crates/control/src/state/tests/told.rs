//! Events of custom kinds, and what is read of what is published.

use prost::Message;
use serde_json::Value;
use wire::workload::address::Type;

use super::*;
use crate::state::{StatusKind, StatusOf, Wanted};

pub(super) fn named(labels: Value) -> Value {
    json!({ "metadata": { "labels": labels } })
}

impl World {
    pub(in crate::state::tests) fn published(&self, name: &str) -> Option<Type> {
        let resource = self.state.snapshot.addresses.get(name)?;
        let resource = wire::xds::Resource::decode(&resource.bytes[..]).unwrap();
        wire::workload::Address::decode(&resource.resource.unwrap().value[..]).unwrap().r#type
    }

    pub(in crate::state::tests) fn workload(&self, name: &str) -> wire::workload::Workload {
        match self.published(name) {
            Some(Type::Workload(workload)) => workload,
            other => panic!("{name}: {other:?}"),
        }
    }

    pub(in crate::state::tests) fn service(&self, name: &str) -> wire::workload::Service {
        match self.published(name) {
            Some(Type::Service(service)) => service,
            other => panic!("{name}: {other:?}"),
        }
    }

    pub(in crate::state::tests) fn wanted(&self, kind: StatusKind, name: &str) -> Option<Arc<Wanted>> {
        self.state.snapshot.statuses.get(&StatusOf { kind, key: Key::new("shop", name) }).cloned()
    }

    /// Reason and message of a condition that is to be written.
    pub(in crate::state::tests) fn condition(
        &self,
        kind: StatusKind,
        name: &str,
        of: &str,
    ) -> Option<(bool, String, String)> {
        let wanted = self.wanted(kind, name)?;
        let condition = wanted.conditions.iter().find(|condition| condition.kind == of)?;
        Some((condition.status, condition.reason.clone(), condition.message.clone()))
    }

    pub(in crate::state::tests) fn bound(&self, name: &str) -> Option<(bool, String)> {
        let (status, reason, _) = self.condition(StatusKind::Service, name, "istio.io/WaypointBound")?;
        Some((status, reason))
    }
}

pub(super) fn gateway(name: &str, over: Value) -> Event {
    Event::Gateways(Delta::Put(fixtures::gateway(name, over)))
}

pub(super) fn service(over: Value) -> Event {
    Event::Services(Delta::Put(fixtures::service("web", "10.1.0.1", over)))
}

pub(super) fn entry(name: &str, over: Value) -> Event {
    Event::Entries(Delta::Put(fixtures::entry(name, over)))
}

pub(super) fn namespace(over: Value) -> Event {
    Event::Namespaces(Delta::Put(fixtures::namespace("shop", over)))
}

pub(super) fn policy(spec: Value) -> Event {
    Event::Authorizations(Delta::Put(fixtures::authorization("shop", "p", spec)))
}

pub(super) fn mesh_config(text: &str) -> Event {
    Event::Mesh(Delta::Put(crate::input::MeshConfig::parse("istio", text).unwrap()))
}
