//! Backends as EndpointSlices: one for each address family and set of ports, a hundred endpoints at most. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use super::backends::{Backend, Port};
use super::{HEADLESS_LABEL, MANAGED_BY, MANAGER, SERVICE_LABEL};
use crate::controllers::objects;

const ENDPOINTS_PER_SLICE: usize = 100;

/// The slices of a Service. Their names follow from what they hold, so that the same slice always has the same name.
pub fn of(service: &Service, backends: &[Backend]) -> anyhow::Result<Vec<EndpointSlice>> {
    let mut slices = Vec::new();
    for family in families(service) {
        let mut groups: BTreeMap<&[Port], Vec<Endpoint>> = BTreeMap::new();
        for backend in backends {
            let Some(address) =
                backend.addresses.iter().find(|address| address.is_ipv6() == (family == "IPv6"))
            else {
                continue;
            };
            groups.entry(&backend.ports).or_default().push(endpoint(backend, address.to_string()));
        }
        if groups.is_empty() {
            // Readers tell a Service that nobody serves from one that nobody has looked at.
            groups.insert(&[], Vec::new());
        }
        for (ports, mut endpoints) in groups {
            endpoints.sort_by(|a, b| a.addresses.cmp(&b.addresses));
            let chunks: Vec<&[Endpoint]> = if endpoints.is_empty() {
                vec![&[]]
            } else {
                endpoints.chunks(ENDPOINTS_PER_SLICE).collect()
            };
            for (number, chunk) in chunks.into_iter().enumerate() {
                slices.push(slice(service, &family, ports, chunk, number)?);
            }
        }
    }
    Ok(slices)
}

fn families(service: &Service) -> Vec<String> {
    let listed = service.spec.as_ref().and_then(|spec| spec.ip_families.clone()).unwrap_or_default();
    if listed.is_empty() { vec!["IPv4".into()] } else { listed }
}

fn endpoint(backend: &Backend, address: String) -> Endpoint {
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(backend.ready),
            serving: Some(backend.serving),
            terminating: Some(backend.terminating),
        }),
        hostname: backend.hostname.clone(),
        node_name: Some(backend.node.clone()),
        zone: backend.zone.clone(),
        target_ref: Some(backend.pod.clone()),
        ..Endpoint::default()
    }
}

fn slice(
    service: &Service,
    family: &str,
    ports: &[Port],
    endpoints: &[Endpoint],
    number: usize,
) -> anyhow::Result<EndpointSlice> {
    let ports: Vec<EndpointPort> = ports
        .iter()
        .map(|port| EndpointPort {
            name: Some(port.name.clone()),
            protocol: Some(port.protocol.clone()),
            port: Some(port.number),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    let suffix = objects::hash(&(service.uid(), family, &ports, number), 0)?;
    let mut labels: BTreeMap<String, String> = service.labels().clone();
    labels.insert(SERVICE_LABEL.into(), service.name_any());
    labels.insert(MANAGED_BY.into(), MANAGER.into());
    if service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None") {
        labels.insert(HEADLESS_LABEL.into(), String::new());
    }
    Ok(EndpointSlice {
        address_type: family.into(),
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", service.name_any(), &suffix[..5])),
            namespace: service.namespace(),
            labels: Some(labels),
            owner_references: Some(vec![objects::owned_by(service)]),
            ..ObjectMeta::default()
        },
        endpoints: endpoints.to_vec(),
        ports: Some(ports),
    })
}
