//! Everything that is published, for people: what `/debug/ambientz` and `/debug/config_dump` show.
//!
//! Read back from the very bytes that clients get, so that it cannot say anything else than what was sent.

use std::net::IpAddr;

use prost::Message;
use serde_json::{Value, json};
use wire::workload::{GatewayAddress, NetworkAddress, address, gateway_address};
use wire::{security, workload, xds};

use crate::state::{Resource, Shelf, Snapshot};

/// Workloads, services and policies, each sorted by name.
pub(crate) fn page(snapshot: &Snapshot) -> Value {
    let (mut workloads, mut services) = (Vec::new(), Vec::new());
    for resource in sorted(&snapshot.addresses) {
        match content::<workload::Address>(resource).and_then(|address| address.r#type) {
            Some(address::Type::Workload(one)) => workloads.push(workload(&resource.version, &one)),
            Some(address::Type::Service(one)) => services.push(service(&resource.version, &one)),
            None => {}
        }
    }
    let policies = sorted(&snapshot.policies).into_iter().filter_map(|resource| {
        let policy: security::Authorization = content(resource)?;
        let rules = policy.rules.iter().map(|rule| format!("{rule:?}")).collect::<Vec<_>>();
        Some(json!({
            "name": policy.name, "namespace": policy.namespace, "version": &*resource.version,
            "scope": policy.scope().as_str_name(), "action": policy.action().as_str_name(),
            "dryRun": policy.dry_run, "rules": rules,
        }))
    });
    json!({ "workloads": workloads, "services": services, "policies": policies.collect::<Vec<_>>() })
}

fn sorted(shelf: &Shelf) -> Vec<&Resource> {
    let mut all: Vec<&Resource> = shelf.iter().map(|one| &**one).collect();
    all.sort_by(|one, other| one.name.cmp(&other.name));
    all
}

fn content<T: Message + Default>(resource: &Resource) -> Option<T> {
    let resource = xds::Resource::decode(&resource.bytes[..]).ok()?;
    T::decode(&resource.resource?.value[..]).ok()
}

fn ip(bytes: &[u8]) -> String {
    let address = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let address = address.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    address.map_or_else(|_| format!("{bytes:02x?}"), |ip| ip.to_string())
}

fn network_address(address: &NetworkAddress) -> String {
    let length = address.length.map_or_else(String::new, |length| format!("/{length}"));
    format!("{}/{}{length}", address.network, ip(&address.address))
}

fn gateway(gateway: Option<&GatewayAddress>) -> Option<String> {
    let gateway = gateway?;
    let place = match gateway.destination.as_ref()? {
        gateway_address::Destination::Hostname(name) => format!("{}/{}", name.namespace, name.hostname),
        gateway_address::Destination::Address(address) => network_address(address),
    };
    Some(format!("{place}:{}", gateway.hbone_mtls_port))
}

fn workload(version: &str, one: &workload::Workload) -> Value {
    let services: serde_json::Map<String, Value> = one
        .services
        .iter()
        .map(|(name, list)| {
            let ports = list.ports.iter().map(|port| format!("{}:{}", port.service_port, port.target_port));
            (name.clone(), ports.collect())
        })
        .collect();
    json!({
        "uid": one.uid, "version": version, "name": one.name, "namespace": one.namespace,
        "addresses": one.addresses.iter().map(|bytes| ip(bytes)).collect::<Vec<_>>(),
        "hostname": one.hostname, "network": one.network, "clusterId": one.cluster_id, "node": one.node,
        "protocol": one.tunnel_protocol().as_str_name(), "nativeTunnel": one.native_tunnel,
        "networkMode": one.network_mode().as_str_name(), "status": one.status().as_str_name(),
        "trustDomain": one.trust_domain, "serviceAccount": one.service_account,
        "canonicalName": one.canonical_name, "canonicalRevision": one.canonical_revision,
        "workloadName": one.workload_name, "workloadType": one.workload_type().as_str_name(),
        "waypoint": gateway(one.waypoint.as_ref()), "networkGateway": gateway(one.network_gateway.as_ref()),
        "authorizationPolicies": one.authorization_policies, "services": services,
    })
}

fn service(version: &str, one: &workload::Service) -> Value {
    let ports = one.ports.iter().map(|port| format!("{}:{}", port.service_port, port.target_port));
    json!({
        "name": one.name, "namespace": one.namespace, "hostname": one.hostname, "version": version,
        "addresses": one.addresses.iter().map(network_address).collect::<Vec<_>>(),
        "ports": ports.collect::<Vec<_>>(), "subjectAltNames": one.subject_alt_names,
        "waypoint": gateway(one.waypoint.as_ref()), "canonical": one.canonical,
        "visibility": one.visibility().as_str_name(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;
    use crate::state::{Delta, Event, State};

    #[test]
    fn everything_published_is_shown_as_it_was_sent() {
        let mut state = State::new(fixtures::settings());
        state.apply(Event::Services(Delta::Put(fixtures::service("web", "10.1.0.1", json!({})))));
        state.apply(Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", json!({})))));
        let deny = json!({ "action": "DENY", "rules": [{}] });
        state.apply(Event::Authorizations(Delta::Put(fixtures::authorization("shop", "no", deny))));
        let page = page(&state.flush().unwrap());
        assert_eq!(page["workloads"][0]["uid"], "Kubernetes//Pod/shop/web-0");
        assert_eq!(page["workloads"][0]["addresses"], json!(["10.0.0.1"]));
        assert_eq!(page["workloads"][0]["services"]["shop/web.shop.svc.cluster.local"], json!(["80:8080"]));
        assert_eq!(page["services"][0]["addresses"], json!(["/10.1.0.1"]));
        assert_eq!(
            (&page["policies"][0]["name"], &page["policies"][0]["action"]),
            (&json!("no"), &json!("DENY"))
        );
    }
}
