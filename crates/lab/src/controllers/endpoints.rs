//! Endpoints of Services: EndpointSlices, and the older Endpoints that Prometheus' role `endpoints` reads.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams};

use super::hub::{Change, Hub, Key};
use super::objects;

mod backends;
mod legacy;
mod slices;

use backends::Backend;

const SERVICE_LABEL: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
const LEGACY_MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const LEGACY_MANAGER: &str = "endpoint-controller";

/// Tells who serves each Service.
pub struct Controller;

impl super::Controller for Controller {
    const NAME: &'static str = "endpoints";

    fn keys(&self, hub: &Hub, change: &Change) -> Vec<Key> {
        match change {
            Change::Service(service) => vec![Key::of(&service.metadata)],
            // A pod whose labels changed leaves Services that no longer select it, so all of them are looked at.
            Change::Pod(pod) => {
                let services = hub.services.of_namespace(&pod.namespace().unwrap_or_default());
                services
                    .iter()
                    .filter(|service| selector(service).is_some())
                    .map(|found| Key::of(&found.metadata))
                    .collect()
            }
            Change::EndpointSlice(slice)
                if slice.labels().get(MANAGED_BY).is_some_and(|name| name == MANAGER) =>
            {
                let service = slice.labels().get(SERVICE_LABEL);
                service
                    .map(|name| Key::new(slice.namespace().unwrap_or_default(), name))
                    .into_iter()
                    .collect()
            }
            Change::Endpoints(endpoints) => vec![Key::of(&endpoints.metadata)],
            _ => Vec::new(),
        }
    }

    async fn reconcile(&self, hub: &Hub, key: &Key) -> anyhow::Result<Option<Duration>> {
        let service = hub.services.get(key).filter(|found| found.metadata.deletion_timestamp.is_none());
        let service = service.filter(|service| selector(service).is_some());
        let backends = service.as_deref().map(|service| backends_of(hub, service)).unwrap_or_default();

        let wanted = service.as_deref().map(|service| slices::of(service, &backends)).transpose()?;
        let present = hub.endpoint_slices.of_namespace(&key.namespace);
        let present = present.iter().filter(|slice| {
            slice.labels().get(SERVICE_LABEL) == Some(&key.name)
                && slice.labels().get(MANAGED_BY).is_some_and(|name| name == MANAGER)
        });
        let mut present: BTreeMap<String, _> =
            present.map(|slice| (slice.name_any(), slice.clone())).collect();
        let api = hub.api::<EndpointSlice>(&key.namespace);
        for mut slice in wanted.into_iter().flatten() {
            match present.remove(&slice.name_any()) {
                None => _ = api.create(&PostParams::default(), &slice).await?,
                Some(known) if same_slice(&known, &slice) => {}
                Some(known) => {
                    slice.metadata.resource_version = known.metadata.resource_version.clone();
                    api.replace(&slice.name_any(), &PostParams::default(), &slice).await?;
                }
            }
        }
        for (name, slice) in present {
            objects::delete(&api, &name, slice.uid(), DeleteParams::default()).await?;
        }

        let legacy = service.as_deref().map(|service| legacy::of(service, &backends));
        write_legacy(hub, key, legacy).await?;
        Ok(None)
    }
}

fn selector(service: &Service) -> Option<&BTreeMap<String, String>> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    spec.selector.as_ref().filter(|selector| !selector.is_empty())
}

fn backends_of(hub: &Hub, service: &Service) -> Vec<Backend> {
    let namespace = service.namespace().unwrap_or_default();
    let Some(selector) = selector(service) else { return Vec::new() };
    let pods = hub.pods.of_namespace(&namespace);
    let selected = pods.iter().filter(|pod: &&std::sync::Arc<Pod>| {
        selector.iter().all(|(name, value)| pod.labels().get(name) == Some(value))
    });
    let zone = |node: &str| {
        let node = hub.nodes.get(&Key::new("", node))?;
        node.labels().get("topology.kubernetes.io/zone").cloned()
    };
    selected.filter_map(|pod| backends::of(service, pod, zone)).collect()
}

fn same_slice(known: &EndpointSlice, wanted: &EndpointSlice) -> bool {
    known.endpoints == wanted.endpoints
        && known.ports.as_deref().unwrap_or_default() == wanted.ports.as_deref().unwrap_or_default()
        && known.metadata.labels == wanted.metadata.labels
}

async fn write_legacy(hub: &Hub, key: &Key, wanted: Option<Endpoints>) -> anyhow::Result<()> {
    let api = hub.api::<Endpoints>(&key.namespace);
    match (hub.endpoints.get(key), wanted) {
        (None, None) => {}
        (None, Some(endpoints)) => _ = api.create(&PostParams::default(), &endpoints).await?,
        (Some(known), None) => {
            if known.labels().get(LEGACY_MANAGED_BY).is_some_and(|name| name == LEGACY_MANAGER) {
                objects::delete(&api, &key.name, known.uid(), DeleteParams::default()).await?;
            }
        }
        (Some(known), Some(mut endpoints)) => {
            let subsets = |endpoints: &Endpoints| endpoints.subsets.clone().unwrap_or_default();
            if subsets(&known) != subsets(&endpoints) || known.metadata.labels != endpoints.metadata.labels {
                endpoints.metadata.resource_version = known.metadata.resource_version.clone();
                api.replace(&key.name, &PostParams::default(), &endpoints).await?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
