//! The root certificate in every namespace (reference/control-plane.md §3.7): ConfigMap `istio-ca-root-cert`.
//!
//! Only the replica that leads writes. What is deleted or changed by others is put right again; a namespace that
//! cannot be written to is said once and tried again, and holds up no other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::watch;

/// Name of the ConfigMap.
pub const CONFIG_MAP: &str = "istio-ca-root-cert";
/// Key of the certificates in it.
pub const KEY: &str = "root-cert.pem";
/// Label that marks what the control plane writes.
pub const LABEL: &str = "istio.io/config";
/// Namespaces that get none.
const EXCLUDED: [&str; 3] = ["kube-public", "kube-node-lease", "local-path-storage"];
/// How often what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// What is where.
#[derive(Debug, Default)]
struct Seen {
    namespaces: BTreeSet<String>,
    /// Whether the map of a namespace is as it should be.
    maps: BTreeMap<String, bool>,
    listed: (bool, bool),
}

/// What to do in a namespace.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Create(String),
    Repair(String),
}

impl Seen {
    /// What is missing or wrong. Nothing before both kinds have been listed.
    fn plan(&self) -> Vec<Action> {
        if self.listed != (true, true) {
            return Vec::new();
        }
        let todo = self.namespaces.iter().filter(|namespace| !EXCLUDED.contains(&namespace.as_str()));
        todo.filter_map(|namespace| match self.maps.get(namespace) {
            Some(true) => None,
            Some(false) => Some(Action::Repair(namespace.clone())),
            None => Some(Action::Create(namespace.clone())),
        })
        .collect()
    }

    fn namespace(&mut self, namespace: &Namespace) {
        let Some(name) = namespace.metadata.name.clone() else { return };
        let ending = namespace.metadata.deletion_timestamp.is_some()
            || namespace.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Terminating");
        if ending {
            self.namespaces.remove(&name);
        } else {
            self.namespaces.insert(name);
        }
    }

    fn map(&mut self, map: &ConfigMap, root: &str) {
        if map.metadata.name.as_deref() != Some(CONFIG_MAP) {
            return;
        }
        let Some(namespace) = map.metadata.namespace.clone() else { return };
        self.maps.insert(namespace, is_right(map, root));
    }
}

fn is_right(map: &ConfigMap, root: &str) -> bool {
    let labelled = map
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(LABEL))
        .is_some_and(|value| value == "true");
    labelled && map.data.as_ref().and_then(|data| data.get(KEY)).is_some_and(|have| have == root)
}

/// Keeps the root certificate in every namespace, whenever `leading`. Runs until dropped.
pub(crate) async fn distribute(client: Client, root: String, mut leading: watch::Receiver<bool>) {
    let config = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
    let mut maps = std::pin::pin!(watcher(Api::<ConfigMap>::all(client.clone()), config).default_backoff());
    let mut namespaces = std::pin::pin!(
        watcher(Api::<Namespace>::all(client.clone()), watcher::Config::default()).default_backoff()
    );
    let mut seen = Seen::default();
    let mut said: BTreeSet<String> = BTreeSet::new();
    let mut again = tokio::time::interval(AGAIN);
    again.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some(heard) = namespaces.next() => match heard {
                // While a list is under way nothing is planned.
                Ok(watcher::Event::Init) => {
                    seen.namespaces.clear();
                    seen.listed.0 = false;
                }
                Ok(watcher::Event::InitApply(namespace) | watcher::Event::Apply(namespace)) => {
                    seen.namespace(&namespace);
                }
                Ok(watcher::Event::InitDone) => seen.listed.0 = true,
                Ok(watcher::Event::Delete(namespace)) => {
                    let name = namespace.metadata.name.unwrap_or_default();
                    seen.namespaces.remove(&name);
                    said.remove(&name);
                }
                Err(error) => tracing::debug!(%error, "cannot watch namespaces for root certificates"),
            },
            Some(heard) = maps.next() => match heard {
                Ok(watcher::Event::Init) => {
                    seen.maps.clear();
                    seen.listed.1 = false;
                }
                Ok(watcher::Event::InitApply(map) | watcher::Event::Apply(map)) => seen.map(&map, &root),
                Ok(watcher::Event::InitDone) => seen.listed.1 = true,
                Ok(watcher::Event::Delete(map)) => {
                    if map.metadata.name.as_deref() == Some(CONFIG_MAP) {
                        seen.maps.remove(&map.metadata.namespace.unwrap_or_default());
                    }
                }
                Err(error) => tracing::debug!(%error, "cannot watch config maps for root certificates"),
            },
            Ok(()) = leading.changed() => {}
            _ = again.tick() => {}
        }
        if !*leading.borrow() {
            continue;
        }
        for action in seen.plan() {
            let (namespace, result) = match action {
                Action::Create(namespace) => (namespace.clone(), create(&client, &namespace, &root).await),
                Action::Repair(namespace) => (namespace.clone(), repair(&client, &namespace, &root).await),
            };
            match result {
                // What the watch will say in a moment.
                Ok(()) => {
                    said.remove(&namespace);
                    seen.maps.insert(namespace, true);
                }
                Err(error) => {
                    if said.insert(namespace.clone()) {
                        tracing::warn!(namespace, %error, "cannot write the root certificate, trying again");
                    }
                }
            }
        }
    }
}

async fn create(client: &Client, namespace: &str, root: &str) -> Result<(), kube::Error> {
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(CONFIG_MAP.into()),
            namespace: Some(namespace.into()),
            labels: Some(BTreeMap::from([(LABEL.into(), "true".into())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(KEY.into(), root.into())])),
        ..ConfigMap::default()
    };
    match Api::namespaced(client.clone(), namespace).create(&PostParams::default(), &map).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => repair(client, namespace, root).await,
        // The namespace is gone or going.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

async fn repair(client: &Client, namespace: &str, root: &str) -> Result<(), kube::Error> {
    let patch = serde_json::json!({ "metadata": { "labels": { LABEL: "true" } }, "data": { KEY: root } });
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    match api.patch(CONFIG_MAP, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(namespaces: &[&str], maps: &[(&str, bool)]) -> Seen {
        Seen {
            namespaces: namespaces.iter().map(|name| name.to_string()).collect(),
            maps: maps.iter().map(|(name, right)| (name.to_string(), *right)).collect(),
            listed: (true, true),
        }
    }

    #[test]
    fn every_namespace_but_the_excluded_ones_gets_the_root() {
        let seen = seen(&["default", "kube-system", "kube-public", "kube-node-lease"], &[]);
        let create = |name: &str| Action::Create(name.into());
        assert_eq!(seen.plan(), [create("default"), create("kube-system")]);
    }

    #[test]
    fn what_others_changed_is_repaired_and_what_is_right_is_left_alone() {
        let seen = seen(&["a", "b"], &[("a", true), ("b", false), ("gone", false)]);
        assert_eq!(seen.plan(), [Action::Repair("b".into())]);
    }

    #[test]
    fn nothing_is_written_before_everything_is_known() {
        let mut seen = seen(&["a"], &[]);
        seen.listed = (true, false);
        assert_eq!(seen.plan(), []);
    }

    #[test]
    fn a_map_is_right_only_with_the_label_and_exactly_these_roots() {
        let map = |label: &str, root: &str| ConfigMap {
            metadata: ObjectMeta {
                labels: Some(BTreeMap::from([(LABEL.into(), label.into())])),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(KEY.into(), root.into())])),
            ..ConfigMap::default()
        };
        assert!(is_right(&map("true", "root"), "root"));
        assert!(!is_right(&map("false", "root"), "root"));
        assert!(!is_right(&map("true", "other"), "root"));
        assert!(!is_right(&ConfigMap::default(), "root"));
    }
}
