//! The root certificate in every namespace (reference/control-plane.md §3.7): ConfigMap `istio-ca-root-cert`, and the
//! revocation list beside it: `istio-ca-crl`.
//!
//! Only the replica that leads writes. What is deleted or changed by others is put right again; a namespace that
//! cannot be written to is said once and tried again, and holds up no other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::watch;

use crate::ca::Authority;
use crate::watch::follow;

/// A ConfigMap that stands in every namespace.
#[derive(Clone, Copy, Debug)]
pub struct Map {
    /// Its name.
    pub name: &'static str,
    /// The key in it.
    pub key: &'static str,
    /// What stands there.
    pub content: fn(&Authority) -> &str,
}

/// The root certificates.
pub const ROOTS: Map =
    Map { name: "istio-ca-root-cert", key: "root-cert.pem", content: Authority::root_bundle };
/// The revocation list; empty when there is none.
pub const CRL: Map = Map { name: "istio-ca-crl", key: "ca-crl.pem", content: Authority::crl };
/// Label that marks what the control plane writes.
pub const LABEL: &str = "istio.io/config";
/// Namespaces that get none.
const EXCLUDED: [&str; 3] = ["kube-public", "kube-node-lease", "local-path-storage"];
/// How often what could not be written is tried again.
const AGAIN: Duration = Duration::from_secs(10);
/// How long the API may take for one write.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is where.
#[derive(Debug, Default)]
struct Seen {
    namespaces: BTreeSet<String>,
    /// What the map of a namespace has, when it is labelled as it should be.
    maps: BTreeMap<String, Option<String>>,
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
    fn plan(&self, content: &str) -> Vec<Action> {
        if self.listed != (true, true) {
            return Vec::new();
        }
        let todo = self.namespaces.iter().filter(|namespace| !EXCLUDED.contains(&namespace.as_str()));
        todo.filter_map(|namespace| match self.maps.get(namespace) {
            Some(Some(have)) if have == content => None,
            Some(_) => Some(Action::Repair(namespace.clone())),
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

    fn map(&mut self, map: &ConfigMap, what: Map) {
        if map.metadata.name.as_deref() != Some(what.name) {
            return;
        }
        let Some(namespace) = map.metadata.namespace.clone() else { return };
        self.maps.insert(namespace, content(map, what.key));
    }
}

/// What a map has, when it is labelled as it should be.
fn content(map: &ConfigMap, key: &str) -> Option<String> {
    let labelled = map
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(LABEL))
        .is_some_and(|value| value == "true");
    map.data.as_ref()?.get(key).filter(|_| labelled).cloned()
}

/// Keeps a map in every namespace, whenever `leading`, and tells in `done` what stands in all of them. Runs until
/// dropped.
pub(crate) async fn distribute(
    client: Client,
    what: Map,
    mut authority: watch::Receiver<Option<Arc<Authority>>>,
    mut leading: watch::Receiver<bool>,
    done: watch::Sender<Option<Arc<str>>>,
) {
    let config = watcher::Config::default().fields(&format!("metadata.name={}", what.name));
    let every_map = Api::<ConfigMap>::all(client.clone());
    let mut maps = std::pin::pin!(follow(|| watcher(every_map.clone(), config.clone())));
    let every_namespace = Api::<Namespace>::all(client.clone());
    let mut namespaces =
        std::pin::pin!(follow(|| watcher(every_namespace.clone(), watcher::Config::default())));
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
                Ok(watcher::Event::InitApply(map) | watcher::Event::Apply(map)) => seen.map(&map, what),
                Ok(watcher::Event::InitDone) => seen.listed.1 = true,
                Ok(watcher::Event::Delete(map)) => {
                    if map.metadata.name.as_deref() == Some(what.name) {
                        seen.maps.remove(&map.metadata.namespace.unwrap_or_default());
                    }
                }
                Err(error) => tracing::debug!(%error, "cannot watch config maps for root certificates"),
            },
            Ok(()) = leading.changed() => {}
            Ok(()) = authority.changed() => {}
            _ = again.tick() => {}
        }
        let now = authority.borrow_and_update().clone();
        if !*leading.borrow() {
            done.send_replace(None);
            continue;
        }
        let Some(now) = now else { continue };
        let text = (what.content)(&now);
        for action in seen.plan(text) {
            // Whoever leads now may spread other roots than these.
            if !*leading.borrow() {
                break;
            }
            let (namespace, result) = match action {
                Action::Create(namespace) => {
                    (namespace.clone(), bounded(create(&client, what, &namespace, text)).await)
                }
                Action::Repair(namespace) => {
                    (namespace.clone(), bounded(repair(&client, what, &namespace, text)).await)
                }
            };
            match result {
                // What the watch will say in a moment.
                Ok(()) => {
                    said.remove(&namespace);
                    seen.maps.insert(namespace, Some(text.into()));
                }
                Err(error) => {
                    if said.insert(namespace.clone()) {
                        tracing::warn!(namespace, map = what.name, %error, "cannot write the map, trying again");
                    }
                }
            }
        }
        let everywhere = seen.listed == (true, true) && seen.plan(text).is_empty();
        done.send_if_modified(|stands| {
            let new = everywhere.then(|| text.into());
            let changed = *stands != new;
            *stands = new;
            changed
        });
    }
}

/// A write, or that it took too long; the reason in words.
async fn bounded(write: impl Future<Output = Result<(), kube::Error>>) -> Result<(), String> {
    match tokio::time::timeout(PATIENCE, write).await {
        Ok(result) => result.map_err(|error| crate::error::causes(&error)),
        Err(_) => Err(format!("the API did not answer within {} seconds", PATIENCE.as_secs())),
    }
}

async fn create(client: &Client, what: Map, namespace: &str, text: &str) -> Result<(), kube::Error> {
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(what.name.into()),
            namespace: Some(namespace.into()),
            labels: Some(BTreeMap::from([(LABEL.into(), "true".into())])),
            ..ObjectMeta::default()
        },
        data: Some(BTreeMap::from([(what.key.into(), text.into())])),
        ..ConfigMap::default()
    };
    match Api::namespaced(client.clone(), namespace).create(&PostParams::default(), &map).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => {
            repair(client, what, namespace, text).await
        }
        // The namespace is gone or going.
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

async fn repair(client: &Client, what: Map, namespace: &str, text: &str) -> Result<(), kube::Error> {
    let patch =
        serde_json::json!({ "metadata": { "labels": { LABEL: "true" } }, "data": { what.key: text } });
    let api = Api::<ConfigMap>::namespaced(client.clone(), namespace);
    match api.patch(what.name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::*;

    /// An API with namespaces `n0` to `n19` and no maps in them. `create` hears of each namespace that is to get one,
    /// and says whether the API answers.
    fn cluster(create: impl Fn(&str) -> bool + Send + Sync + 'static) -> Client {
        let list = |kind: &str, items: Vec<Value>| {
            let list = json!({ "kind": kind, "apiVersion": "v1", "metadata": { "resourceVersion": "1" }, "items": items });
            Some((200, list))
        };
        crate::fixtures::api(move |method, uri| match uri.path() {
            _ if uri.query().is_some_and(|query| query.contains("watch=true")) => None,
            "/api/v1/namespaces" => {
                let names = (0..20).map(|index| json!({ "metadata": { "name": format!("n{index}") } }));
                list("NamespaceList", names.collect())
            }
            "/api/v1/configmaps" => list("ConfigMapList", vec![]),
            path if method == http::Method::POST => {
                let namespace = path.split('/').nth(4).unwrap_or_default();
                create(namespace).then(|| (201, json!({ "metadata": { "name": ROOTS.name } })))
            }
            path => panic!("{method} {path}"),
        })
    }

    /// Spreads the roots while `leads`; the other end tells what stands everywhere.
    fn spread(
        client: Client,
        leads: watch::Receiver<bool>,
    ) -> (tokio::task::JoinHandle<()>, watch::Receiver<Option<Arc<str>>>) {
        let authority = Authority::self_signed("cluster.local", std::time::SystemTime::now()).unwrap();
        let (done, stands) = watch::channel(None);
        let task = async move {
            let (_known, authorities) = watch::channel(Some(Arc::new(authority)));
            distribute(client, ROOTS, authorities, leads, done).await;
        };
        (tokio::spawn(task), stands)
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_stops_leading_spreads_no_more_roots() {
        let (lead, leads) = watch::channel(true);
        let written = Arc::new(Mutex::new(Vec::new()));
        let heard = written.clone();
        let client = cluster(move |namespace| {
            heard.lock().push(namespace.to_string());
            lead.send_replace(false);
            true
        });
        let (task, _) = spread(client, leads);
        tokio::time::sleep(AGAIN * 10).await;
        assert_eq!(*written.lock(), ["n0"]);
        task.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_namespace_for_which_the_api_does_not_answer_holds_up_no_other() {
        let (_lead, leads) = watch::channel(true);
        let written = Arc::new(Mutex::new(BTreeMap::new()));
        let heard = written.clone();
        let client = cluster(move |namespace| {
            *heard.lock().entry(namespace.to_string()).or_insert(0) += 1;
            namespace != "n1"
        });
        let (task, stands) = spread(client, leads);
        tokio::time::sleep((PATIENCE + AGAIN) * 10).await;
        let tries = written.lock().clone();
        assert_eq!(tries.len(), 20);
        // It is tried again and again, the others have theirs, and nobody believes that it stands everywhere.
        assert!(tries.iter().all(|(namespace, tries)| (namespace == "n1") == (*tries > 1)), "{tries:?}");
        assert!(stands.borrow().is_none());
        task.abort();
    }

    fn seen(namespaces: &[&str], maps: &[(&str, bool)]) -> Seen {
        Seen {
            namespaces: namespaces.iter().map(|name| name.to_string()).collect(),
            maps: maps
                .iter()
                .map(|(name, right)| (name.to_string(), right.then(|| "root".to_string())))
                .collect(),
            listed: (true, true),
        }
    }

    #[test]
    fn every_namespace_but_the_excluded_ones_gets_the_root() {
        let seen = seen(&["default", "kube-system", "kube-public", "kube-node-lease"], &[]);
        let create = |name: &str| Action::Create(name.into());
        assert_eq!(seen.plan("root"), [create("default"), create("kube-system")]);
    }

    #[test]
    fn what_others_changed_is_repaired_and_what_is_right_is_left_alone() {
        let seen = seen(&["a", "b"], &[("a", true), ("b", false), ("gone", false)]);
        assert_eq!(seen.plan("root"), [Action::Repair("b".into())]);
    }

    #[test]
    fn nothing_is_written_before_everything_is_known() {
        let mut seen = seen(&["a"], &[]);
        seen.listed = (true, false);
        assert_eq!(seen.plan("root"), []);
    }

    #[test]
    fn a_map_is_right_only_with_the_label_and_exactly_these_roots() {
        let map = |label: &str, root: &str| ConfigMap {
            metadata: ObjectMeta {
                labels: Some(BTreeMap::from([(LABEL.into(), label.into())])),
                ..ObjectMeta::default()
            },
            data: Some(BTreeMap::from([(ROOTS.key.into(), root.into())])),
            ..ConfigMap::default()
        };
        assert_eq!(content(&map("true", "root"), ROOTS.key).as_deref(), Some("root"));
        assert_eq!(content(&map("false", "root"), ROOTS.key), None);
        assert_eq!(content(&ConfigMap::default(), ROOTS.key), None);
        let mut other = seen(&["a"], &[]);
        other.map(&map("true", "other"), ROOTS);
        other.maps.insert("a".into(), content(&map("true", "other"), ROOTS.key));
        assert_eq!(other.plan("root"), [Action::Repair("a".into())]);
    }
}
