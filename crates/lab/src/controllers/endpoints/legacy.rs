//! Backends as the older Endpoints object of the Service's name. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::backends::{Backend, Port};
use super::{HEADLESS_LABEL, LEGACY_MANAGED_BY, LEGACY_MANAGER};

/// The Endpoints of a Service: one subset for each set of ports, the first address of each pod.
pub fn of(service: &Service, backends: &[Backend]) -> Endpoints {
    let mut groups: BTreeMap<&[Port], (Vec<EndpointAddress>, Vec<EndpointAddress>)> = BTreeMap::new();
    for backend in backends {
        // Here nothing can be said about a pod that is on its way out, so it is not there.
        if backend.terminating && !backend.ready {
            continue;
        }
        let Some(ip) = backend.addresses.first() else { continue };
        let address = EndpointAddress {
            ip: ip.to_string(),
            hostname: backend.hostname.clone(),
            node_name: Some(backend.node.clone()),
            target_ref: Some(backend.pod.clone()),
        };
        let (ready, not_ready) = groups.entry(&backend.ports).or_default();
        if backend.ready { ready.push(address) } else { not_ready.push(address) }
    }
    let subsets: Vec<EndpointSubset> =
        groups.into_iter().map(|(ports, addresses)| subset(ports, addresses)).collect();
    let mut labels: BTreeMap<String, String> = service.labels().clone();
    labels.insert(LEGACY_MANAGED_BY.into(), LEGACY_MANAGER.into());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    }
    Endpoints {
        metadata: ObjectMeta {
            name: Some(service.name_any()),
            namespace: service.namespace(),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

fn subset(
    ports: &[Port],
    (ready, not_ready): (Vec<EndpointAddress>, Vec<EndpointAddress>),
) -> EndpointSubset {
    let sorted = |mut addresses: Vec<EndpointAddress>| {
        addresses.sort_by(|a, b| a.ip.cmp(&b.ip));
        (!addresses.is_empty()).then_some(addresses)
    };
    let ports: Vec<EndpointPort> = ports
        .iter()
        .map(|port| EndpointPort {
            name: Some(port.name.clone()).filter(|name| !name.is_empty()),
            port: port.number,
            protocol: Some(port.protocol.clone()),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    EndpointSubset {
        addresses: sorted(ready),
        not_ready_addresses: sorted(not_ready),
        ports: (!ports.is_empty()).then_some(ports),
    }
}
