//! Removing the mesh: first the agents, which give every pod its plain network back, then the rest.

use std::time::Duration;

use anyhow::{Context, bail};
use control::state::StatusKind;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PropagationPolicy};
use kube::{Client, ResourceExt};
use tokio::time::{Instant, sleep};

use super::MANAGED_BY;
use super::cluster::{Objects, label};
use super::render::Component;

/// The label by which users enrol.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
const REDIRECTION: &str = "ambient.istio.io/redirection";
/// What the control plane puts into every namespace.
const SPREAD: [&str; 2] = ["istio-ca-root-cert", "istio-ca-crl"];

/// What an uninstall changes for users.
#[derive(Clone, Debug, Default)]
pub struct Leaving {
    /// Enrolled pods that become plaintext, `namespace/name`.
    pub pods: Vec<String>,
    /// Namespaces that keep their label.
    pub labelled: Vec<String>,
    /// PeerAuthentications that demand mutual TLS, `namespace/name`.
    pub strict: Vec<String>,
}

/// Looks at what an uninstall would change.
pub async fn leaving(client: &Client) -> anyhow::Result<Leaving> {
    let pods = Api::<Pod>::all(client.clone()).list(&ListParams::default()).await?;
    let enrolled = |pod: &&Pod| pod.annotations().get(REDIRECTION).is_some_and(|value| value == "enabled");
    let selector = ListParams::default().labels(&format!("{DATAPLANE_MODE}=ambient"));
    let namespaces = Api::<Namespace>::all(client.clone()).list(&selector).await?;
    Ok(Leaving {
        pods: pods.iter().filter(enrolled).map(full_name).collect(),
        labelled: namespaces.iter().map(|namespace| namespace.name_any()).collect(),
        strict: strict(client).await,
    })
}

async fn strict(client: &Client) -> Vec<String> {
    let gvk = kube::api::GroupVersionKind::gvk("security.istio.io", "v1", "PeerAuthentication");
    let resource = kube::api::ApiResource::from_gvk(&gvk);
    let listed = Api::<DynamicObject>::all_with(client.clone(), &resource).list(&ListParams::default()).await;
    let is_strict = |object: &&DynamicObject| object.data["spec"]["mtls"]["mode"] == "STRICT";
    // Without the kind there are none.
    listed.map(|list| list.iter().filter(is_strict).map(full_name).collect()).unwrap_or_default()
}

fn full_name(object: &impl ResourceExt) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

/// Removes what [`apply`](super::apply()) brought, in the reverse order. `progress` is told of each part, and what of it
/// stays because it is in use.
pub async fn remove(
    client: Client,
    components: &[Component],
    timeout: Duration,
    mut progress: impl FnMut(&str, &[String]),
) -> anyhow::Result<()> {
    let deadline = Instant::now() + timeout;
    let namespace = components
        .iter()
        .flat_map(|component| &component.objects)
        .find_map(|object| object.metadata.namespace.clone())
        .context("the manifests name no namespace")?;
    let mut objects = Objects::new(client.clone());

    // The agents need their roles, and the proxies to carry what is still open, until they have finished.
    let (agents, rest): (Vec<_>, Vec<_>) =
        components.iter().partition(|component| component.title == "Node agent");
    for component in agents {
        let kept = delete_all(&mut objects, component).await?;
        pods_gone(&client, &namespace, "app=ambit-agent", deadline).await?;
        progress(component.title, &kept);
    }
    for component in rest.into_iter().rev() {
        if component.title == "Namespace" {
            delete_spread_maps(&client).await?;
        }
        let kept = delete_all(&mut objects, component).await?;
        match component.title {
            "Node proxy" => pods_gone(&client, &namespace, "app=ztunnel", deadline).await?,
            // Only then the root certificates stay deleted, and what was said of objects stays unsaid.
            "Control plane" => {
                pods_gone(&client, &namespace, "app=ambit-control", deadline).await?;
                take_back_status(&client).await?;
            }
            _ => {}
        }
        progress(component.title, &kept);
    }
    gone(&client, &namespace, deadline).await
}

/// Deletes the objects of a component; what is in use stays and is named.
async fn delete_all(objects: &mut Objects, component: &Component) -> anyhow::Result<Vec<String>> {
    let mut kept = Vec::new();
    for object in component.objects.iter().rev() {
        let deleted = delete_one(objects, object).await;
        if !deleted.with_context(|| format!("cannot delete {}", label(object)))? {
            kept.push(object.name_any());
        }
    }
    Ok(kept)
}

/// Deletes what this installation made. What somebody else made stays, and so does a definition in use, which is
/// answered by false: users' policies are not ours to destroy.
async fn delete_one(objects: &mut Objects, object: &DynamicObject) -> anyhow::Result<bool> {
    let api = objects.api_for(object).await?;
    let name = object.metadata.name.as_deref().unwrap_or_default();
    let Some(present) = api.get_opt(name).await? else { return Ok(true) };
    if present.labels().get(MANAGED_BY.0).is_none_or(|value| value != MANAGED_BY.1) {
        return Ok(true);
    }
    if label(object).starts_with("CustomResourceDefinition ") && in_use(objects, &present).await? {
        return Ok(false);
    }
    let params =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..Default::default() };
    match api.delete(name, &params).await {
        Err(error) if !is_not_found(&error) => Err(error.into()),
        _ => Ok(true),
    }
}

/// Takes back conditions and addresses that the control plane wrote on objects: nobody keeps them true any more. What
/// others wrote beside them stays.
async fn take_back_status(client: &Client) -> anyhow::Result<()> {
    use StatusKind::{AuthorizationPolicy, Service, ServiceEntry, WorkloadEntry};
    for kind in [Service, ServiceEntry, WorkloadEntry, AuthorizationPolicy] {
        let (resource, manager) = control::status::written(kind);
        let all = Api::<DynamicObject>::all_with(client.clone(), &resource);
        let found = match all.list_metadata(&ListParams::default()).await {
            Err(error) if is_not_found(&error) => continue,
            found => found.with_context(|| format!("cannot list {}", resource.plural))?,
        };
        let ours = |object: &&kube::core::PartialObjectMeta<DynamicObject>| {
            object.managed_fields().iter().any(|entry| entry.manager.as_deref() == Some(manager))
        };
        for object in found.iter().filter(ours) {
            let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
            let api = Api::<DynamicObject>::namespaced_with(client.clone(), &namespace, &resource);
            let nothing = serde_json::json!({
                "apiVersion": resource.api_version, "kind": resource.kind, "metadata": { "name": name },
            });
            let params = PatchParams::apply(manager).force();
            match api.patch_status(&name, &params, &Patch::Apply(&nothing)).await {
                Err(error) if !is_not_found(&error) => {
                    return Err(error).with_context(|| {
                        format!("cannot take back the status of {} {namespace}/{name}", resource.kind)
                    });
                }
                _ => {}
            }
        }
    }
    Ok(())
}

async fn in_use(objects: &Objects, definition: &DynamicObject) -> anyhow::Result<bool> {
    let spec = &definition.data["spec"];
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let gvk = kube::api::GroupVersionKind::gvk(
        &text(&spec["group"]),
        &text(&spec["versions"][0]["name"]),
        &text(&spec["names"]["kind"]),
    );
    let resource = kube::api::ApiResource::from_gvk_with_plural(&gvk, &text(&spec["names"]["plural"]));
    let api = Api::<DynamicObject>::all_with(objects.client().clone(), &resource);
    Ok(!api.list(&ListParams::default().limit(1)).await?.items.is_empty())
}

async fn delete_spread_maps(client: &Client) -> anyhow::Result<()> {
    let selector = ListParams::default().labels("istio.io/config=true");
    for map in Api::<ConfigMap>::all(client.clone()).list(&selector).await? {
        let (Some(namespace), name) = (map.namespace(), map.name_any()) else { continue };
        if !SPREAD.contains(&name.as_str()) {
            continue;
        }
        match Api::<ConfigMap>::namespaced(client.clone(), &namespace)
            .delete(&name, &DeleteParams::default())
            .await
        {
            Err(error) if !is_not_found(&error) => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

async fn pods_gone(
    client: &Client,
    namespace: &str,
    selector: &str,
    deadline: Instant,
) -> anyhow::Result<()> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    loop {
        let left = pods.list(&ListParams::default().labels(selector)).await?;
        if left.items.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let names: Vec<String> = left.iter().map(full_name).collect();
            bail!(
                "these pods do not end: {}; look at their logs, then run the command again",
                names.join(", ")
            );
        }
        sleep(Duration::from_millis(200)).await;
    }
}

async fn gone(client: &Client, namespace: &str, deadline: Instant) -> anyhow::Result<()> {
    let namespaces = Api::<Namespace>::all(client.clone());
    while namespaces.get_opt(namespace).await?.is_some() {
        if Instant::now() > deadline {
            bail!(
                "namespace {namespace} is still terminating; `kubectl get all -n {namespace}` shows what holds it"
            );
        }
        sleep(Duration::from_millis(200)).await;
    }
    Ok(())
}
