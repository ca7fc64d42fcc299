//! Pods of an owner: find them, make them from the owner's template, take them away.
//!
//! Children are read from the API and not from the hub's store, so that a controller sees what it did a moment
//! ago and never makes a pod twice.

use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::core::Selector;
use kube::{Resource, ResourceExt};

use super::hub::Hub;
use super::objects::{controller_of, delete, is_controlled_by, is_not_found, now, owned_by};
use super::pods;

/// How many pods an owner makes or deletes at once.
const PARALLEL: usize = 8;

/// The pods that `owner` manages, whatever their state.
pub async fn owned<K: Resource>(hub: &Hub, owner: &K, selector: &Selector) -> anyhow::Result<Vec<Pod>> {
    let uid = owner.uid().unwrap_or_default();
    let mut pods = selected(hub, owner, selector).await?;
    pods.retain(|pod| is_controlled_by(&pod.metadata, &uid));
    Ok(pods)
}

/// Like [`owned`], after taking over matching pods that nobody manages.
pub async fn owned_or_adopted<K>(hub: &Hub, owner: &K, selector: &Selector) -> anyhow::Result<Vec<Pod>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let uid = owner.uid().unwrap_or_default();
    let namespace = owner.namespace().unwrap_or_default();
    let mut mine = Vec::new();
    for pod in selected(hub, owner, selector).await? {
        if is_controlled_by(&pod.metadata, &uid) {
            mine.push(pod);
        } else if controller_of(&pod.metadata).is_none() && pods::is_active(&pod) {
            let mut owners = pod.metadata.owner_references.clone().unwrap_or_default();
            owners.push(owned_by(owner));
            let patch = serde_json::json!({"metadata": {"uid": pod.uid(), "ownerReferences": owners}});
            match hub
                .api::<Pod>(&namespace)
                .patch(&pod.name_any(), &PatchParams::default(), &Patch::Merge(&patch))
                .await
            {
                Ok(pod) => mine.push(pod),
                Err(error) if is_not_found(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(mine)
}

async fn selected<K: Resource>(hub: &Hub, owner: &K, selector: &Selector) -> anyhow::Result<Vec<Pod>> {
    let namespace = owner.meta().namespace.clone().unwrap_or_default();
    let params = ListParams::default().labels_from(selector);
    Ok(hub.api::<Pod>(&namespace).list(&params).await?.items)
}

/// A pod of a template: its labels, annotations and spec under the owner's name with a random suffix.
pub fn from_template<K>(owner: &K, template: &PodTemplateSpec) -> Pod
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let of_template = template.metadata.clone().unwrap_or_default();
    Pod {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", owner.name_any())),
            namespace: owner.namespace(),
            labels: of_template.labels,
            annotations: of_template.annotations,
            finalizers: of_template.finalizers,
            owner_references: Some(vec![owned_by(owner)]),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    }
}

/// Creates pods; what the API refuses is told to the user as an event on the owner.
pub async fn create(hub: &Hub, owner: &OwnerReference, new: Vec<Pod>) -> anyhow::Result<()> {
    let mut made = stream::iter(new)
        .map(|pod| async move {
            let api = hub.api::<Pod>(&pod.namespace().unwrap_or_default());
            api.create(&PostParams::default(), &pod).await
        })
        .buffer_unordered(PARALLEL);
    let mut failed = None;
    while let Some(result) = made.next().await {
        failed = result.err().or(failed);
    }
    match failed {
        None => Ok(()),
        // The namespace is on its way out and everything in it too.
        Some(kube::Error::Api(status)) if status.is_forbidden() && status.message.contains("terminat") => {
            Ok(())
        }
        Some(error) => Err(anyhow::Error::new(error)
            .context(format!("cannot create a pod of {} {}", owner.kind, owner.name))),
    }
}

/// Creates pods like [`create`] and, when that fails, says so in an event on `owner`.
pub async fn create_for<K>(hub: &Hub, owner: &K, new: Vec<Pod>) -> anyhow::Result<()>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let result = create(hub, &owned_by(owner), new).await;
    if let Err(error) = &result {
        warn(hub, &owner.object_ref(&()), "FailedCreate", &format!("{error:#}")).await;
    }
    result
}

/// Deletes pods gracefully.
pub async fn remove<'a>(hub: &Hub, pods: impl IntoIterator<Item = &'a Pod>) -> anyhow::Result<()> {
    let doomed: Vec<_> = pods
        .into_iter()
        .map(|pod| (hub.api::<Pod>(&pod.namespace().unwrap_or_default()), pod.name_any(), pod.uid()))
        .collect();
    stream::iter(doomed)
        .map(|(api, name, uid)| async move { delete(&api, &name, uid, DeleteParams::background()).await })
        .buffer_unordered(PARALLEL)
        .try_collect()
        .await
}

/// Records a Warning event about an object. The same warning about the same object is one event with a count of
/// one: its name is made of what it says, so that a retry does not add another. Failing to record is only logged.
pub async fn warn(hub: &Hub, about: &ObjectReference, reason: &str, message: &str) {
    let namespace = about.namespace.clone().unwrap_or_else(|| "default".into());
    let Ok(hash) = super::objects::hash(&(about, reason, message), 0) else { return };
    let name = about.name.clone().unwrap_or_default();
    let event = Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{hash}")),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: about.clone(),
        type_: Some("Warning".into()),
        reason: Some(reason.into()),
        message: Some(message.chars().take(1000).collect()),
        source: Some(EventSource { component: Some("ambit-lab-controllers".into()), host: None }),
        first_timestamp: Some(now()),
        last_timestamp: Some(now()),
        count: Some(1),
        ..Event::default()
    };
    let result = hub.api::<Event>(&namespace).create(&PostParams::default(), &event).await;
    if let Err(error) = result
        && !super::objects::is_already_there(&error)
    {
        tracing::debug!(%error, reason, message, "cannot record an event");
    }
}
