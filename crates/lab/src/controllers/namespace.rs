//! Namespaces: what a new one starts with, and how one comes to its end.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use kube::core::PartialObjectMeta;
use kube::discovery::{Discovery, Scope, verbs};
use kube::{Api, ResourceExt};

use super::hub::{Change, Hub, Key};
use super::objects;

/// The ConfigMap with the CA of the API server that every pod mounts.
pub const ROOT_CA: &str = "kube-root-ca.crt";

/// How soon a namespace that still holds something is looked at again.
const STILL_FULL: Duration = Duration::from_millis(500);

/// Furnishes new namespaces and empties those that are going.
pub struct Controller {
    /// The CA of the API server in PEM, if known.
    pub root_ca: Option<String>,
}

impl super::Controller for Controller {
    const NAME: &'static str = "namespace";

    fn keys(&self, _: &Hub, change: &Change) -> Vec<Key> {
        match change {
            Change::Namespace(namespace) => vec![Key::new("", namespace.name_any())],
            Change::ServiceAccount(account) => {
                account.namespace().map(|name| Key::new("", name)).into_iter().collect()
            }
            Change::ConfigMap(map) => map.namespace().map(|name| Key::new("", name)).into_iter().collect(),
            _ => Vec::new(),
        }
    }

    async fn reconcile(&self, hub: &Hub, key: &Key) -> anyhow::Result<Option<Duration>> {
        let Some(namespace) = hub.namespaces.get(key) else { return Ok(None) };
        if namespace.metadata.deletion_timestamp.is_some() {
            return empty(hub, &key.name).await;
        }
        self.furnish(hub, &key.name).await?;
        Ok(None)
    }
}

impl Controller {
    async fn furnish(&self, hub: &Hub, namespace: &str) -> anyhow::Result<()> {
        if hub.service_accounts.get(&Key::new(namespace, "default")).is_none() {
            let account =
                ServiceAccount { metadata: named("default", namespace), ..ServiceAccount::default() };
            let created = hub.api::<ServiceAccount>(namespace).create(&PostParams::default(), &account).await;
            unless_there(created)?;
        }
        let Some(root_ca) = &self.root_ca else { return Ok(()) };
        let data = Some(BTreeMap::from([("ca.crt".to_owned(), root_ca.clone())]));
        let api = hub.api::<ConfigMap>(namespace);
        match hub.config_maps.get(&Key::new(namespace, ROOT_CA)) {
            None => {
                let map = ConfigMap { metadata: named(ROOT_CA, namespace), data, ..ConfigMap::default() };
                unless_there(api.create(&PostParams::default(), &map).await)
            }
            Some(known) if known.data == data => Ok(()),
            Some(known) => {
                let map = ConfigMap { data, ..ConfigMap::clone(&known) };
                api.replace(ROOT_CA, &PostParams::default(), &map).await?;
                Ok(())
            }
        }
    }
}

fn named(name: &str, namespace: &str) -> ObjectMeta {
    ObjectMeta { name: Some(name.into()), namespace: Some(namespace.into()), ..ObjectMeta::default() }
}

fn unless_there<K>(created: Result<K, kube::Error>) -> anyhow::Result<()> {
    match created {
        Err(error) if !objects::is_already_there(&error) => Err(error.into()),
        _ => Ok(()),
    }
}

/// Deletes everything in a namespace that is going, and lets it go once nothing is left.
async fn empty(hub: &Hub, name: &str) -> anyhow::Result<Option<Duration>> {
    let api = Api::<Namespace>::all(hub.client.clone());
    let Some(mut namespace) = api.get_opt(name).await? else { return Ok(None) };
    let finalizers = namespace.spec.get_or_insert_default().finalizers.get_or_insert_default();
    if !finalizers.iter().any(|finalizer| finalizer == "kubernetes") {
        return Ok(None);
    }
    if delete_content(hub, name).await? > 0 {
        return Ok(Some(STILL_FULL));
    }
    finalizers.retain(|finalizer| finalizer != "kubernetes");
    api.replace_subresource("finalize", name, &PostParams::default(), &namespace).await?;
    Ok(None)
}

/// Asks for the deletion of every object of a namespace and says how many are still there.
async fn delete_content(hub: &Hub, namespace: &str) -> anyhow::Result<usize> {
    let discovery =
        Discovery::new(hub.client.clone()).run().await.context("cannot discover the API's resources")?;
    let mut left = 0;
    for group in discovery.groups() {
        for (resource, can) in group.recommended_resources() {
            if can.scope != Scope::Namespaced
                || !can.supports_operation(verbs::LIST)
                || !can.supports_operation(verbs::DELETE)
            {
                continue;
            }
            // The same events under their older name.
            if resource.group == "events.k8s.io" {
                continue;
            }
            let api: Api<PartialObjectMeta<DynamicObject>> =
                Api::namespaced_with(hub.client.clone(), namespace, &resource);
            let found = match api.list(&ListParams::default()).await {
                Ok(found) => found.items,
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => continue,
                Err(error) => return Err(error).with_context(|| format!("cannot list {}", resource.plural)),
            };
            left += found.len();
            for object in found {
                if object.metadata.deletion_timestamp.is_none() {
                    let uid = object.metadata.uid.clone();
                    objects::delete(&api, &object.name_any(), uid, DeleteParams::background()).await?;
                }
            }
        }
    }
    Ok(left)
}
