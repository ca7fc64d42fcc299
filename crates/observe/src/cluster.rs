//! Watches pods, nodes and namespaces and publishes a [`Directory`], at most one a second. Reads only.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::{self, BoxStream};
use k8s_openapi::api::core::v1 as core;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::watch;

use crate::directory::{Directory, Pod};
use crate::flow::{Millis, Text};
use crate::observer::Observer;

/// Changes are gathered for this long before a new directory is made.
const GATHER: Duration = Duration::from_secs(1);
const ENROLLED: &str = "ambient.istio.io/redirection";
const MODE: &str = "istio.io/dataplane-mode";
const SIDECAR: &str = "sidecar.istio.io/status";

/// The namespaces that are not like others.
#[derive(Clone, Debug, Default)]
pub struct Special {
    /// That of the mesh itself.
    pub system: String,
    /// Those that the node agents leave out, whatever their labels are.
    pub excluded: Vec<String>,
}

/// A pod that seems to be a Prometheus, and where its API is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub struct Candidate {
    pub namespace: Text,
    pub pod: Text,
    pub api: SocketAddr,
}

type Key = (String, String);

#[derive(Default)]
struct Known {
    pods: HashMap<Key, (Pod, Option<Candidate>)>,
    nodes: HashMap<Key, Vec<IpAddr>>,
    namespaces: HashMap<Key, bool>,
    /// Which of the three have been listed.
    listed: [bool; 3],
}

enum Change {
    Pod(Box<watcher::Event<core::Pod>>),
    Node(Box<watcher::Event<core::Node>>),
    Namespace(Box<watcher::Event<core::Namespace>>),
}

/// Watches until the process ends.
pub async fn watch(
    client: Client,
    observer: Arc<Observer>,
    special: Special,
    candidates: watch::Sender<Vec<Candidate>>,
) {
    let mut changes = futures::stream::select_all([
        events::<core::Pod>(client.clone(), "pods", Change::Pod),
        events::<core::Node>(client.clone(), "nodes", Change::Node),
        events::<core::Namespace>(client, "namespaces", Change::Namespace),
    ]);
    let mut known = Known::default();
    let mut listing = Known::default();
    let mut publish_at: Option<tokio::time::Instant> = None;
    loop {
        let due = async {
            match publish_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            change = changes.next() => {
                let Some(change) = change else { return };
                match change {
                    Change::Pod(event) => apply(0, *event, &mut listing.pods, &mut known.pods, &mut known.listed, |pod| pod_of(pod, &special)),
                    Change::Node(event) => apply(1, *event, &mut listing.nodes, &mut known.nodes, &mut known.listed, addresses_of),
                    Change::Namespace(event) => apply(2, *event, &mut listing.namespaces, &mut known.namespaces, &mut known.listed, is_labelled),
                }
                if known.listed == [true; 3] && publish_at.is_none() {
                    publish_at = Some(tokio::time::Instant::now() + if observer.directory().synced { GATHER } else { Duration::ZERO });
                }
            }
            () = due => {
                publish_at = None;
                observer.set_directory(Arc::new(known.directory()));
                let mut found: Vec<_> = known.pods.values().filter_map(|(_, candidate)| candidate.clone()).collect();
                found.sort();
                candidates.send_if_modified(|before| {
                    let changed = *before != found;
                    if changed {
                        *before = found;
                    }
                    changed
                });
            }
        }
    }
}

impl Known {
    fn directory(&self) -> Directory {
        let nodes = self.nodes.iter().flat_map(|((_, name), addresses)| {
            let name: Text = name.as_str().into();
            addresses.iter().map(move |address| (*address, name.clone()))
        });
        let namespaces =
            self.namespaces.iter().map(|((_, name), labelled)| (name.as_str().into(), *labelled));
        Directory::new(self.pods.values().map(|(pod, _)| pod.clone()), nodes, namespaces)
    }
}

fn events<K>(
    client: Client,
    name: &'static str,
    wrap: fn(Box<watcher::Event<K>>) -> Change,
) -> BoxStream<'static, Change>
where
    K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
{
    let api = Api::<K>::all(client);
    let start = move || watcher(api.clone(), watcher::Config::default()).boxed();
    let heard = stream::unfold((start(), start), |(mut watch, start)| async move {
        let heard = watch.next().await?;
        if heard.as_ref().is_err_and(away) {
            watch = start();
        }
        Some((heard, (watch, start)))
    });
    // Around all of it: one that begins anew has paused, too.
    let heard = heard.default_backoff().boxed();
    stream::unfold((heard, false), move |(mut watch, mut failing)| async move {
        loop {
            match watch.next().await? {
                Ok(event) => {
                    // That a list begins does not say that it is answered.
                    let failing = failing && matches!(event, watcher::Event::Init);
                    return Some((wrap(Box::new(event)), (watch, failing)));
                }
                Err(error) => {
                    // Said once an outage; what was known stays.
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(input = name, %error, "watch broken, trying again until the API answers");
                    }
                }
            }
        }
    })
    .boxed()
}

/// Whether a watch could not be taken up because the API was not there. It may come back counting from further back,
/// and then be silent to whoever goes on from the last version heard: that one lists anew. A refusal is an answer.
fn away(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status.code >= 500,
        watcher::Error::WatchStartFailed(_) => true,
        _ => false,
    }
}

/// A list replaces everything at its end; until then what was known holds.
fn apply<K: Resource, T>(
    index: usize,
    event: watcher::Event<K>,
    listing: &mut HashMap<Key, T>,
    known: &mut HashMap<Key, T>,
    listed: &mut [bool; 3],
    read: impl Fn(&K) -> T,
) {
    let key = |object: &K| (object.namespace().unwrap_or_default(), object.name_any());
    match event {
        watcher::Event::Init => listing.clear(),
        watcher::Event::InitApply(object) => {
            listing.insert(key(&object), read(&object));
        }
        watcher::Event::InitDone => {
            *known = std::mem::take(listing);
            listed[index] = true;
        }
        watcher::Event::Apply(object) => {
            known.insert(key(&object), read(&object));
        }
        watcher::Event::Delete(object) => {
            known.remove(&key(&object));
        }
    }
}

fn is_labelled(namespace: &core::Namespace) -> bool {
    namespace.labels().get(MODE).is_some_and(|mode| mode == "ambient")
}

/// A node's own addresses, and the first of its pod ranges: that is where a bridge speaks from.
fn addresses_of(node: &core::Node) -> Vec<IpAddr> {
    let status = node.status.as_ref().and_then(|status| status.addresses.as_ref());
    let own = status.into_iter().flatten().filter_map(|address| address.address.parse().ok());
    let ranges = node.spec.as_ref().and_then(|spec| spec.pod_cidrs.as_ref());
    let bridges = ranges.into_iter().flatten().filter_map(|range| {
        let cidr: mesh::Cidr = range.parse().ok()?;
        match cidr.network() {
            IpAddr::V4(ip) => Some(IpAddr::V4(u32::from(ip).checked_add(1)?.into())),
            IpAddr::V6(ip) => Some(IpAddr::V6(u128::from(ip).checked_add(1)?.into())),
        }
    });
    own.chain(bridges).collect()
}

fn pod_of(pod: &core::Pod, special: &Special) -> (Pod, Option<Candidate>) {
    let spec = pod.spec.as_ref();
    let status = pod.status.as_ref();
    let text = |text: Option<&String>| -> Text { text.map(String::as_str).unwrap_or_default().into() };
    let phase = status.and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let ips = status.and_then(|status| status.pod_ips.as_ref()).into_iter().flatten().map(|ip| &ip.ip);
    let one = status.and_then(|status| status.pod_ip.as_ref());
    let mut addresses: Vec<IpAddr> =
        ips.chain(one).filter_map(|ip| ip.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    let (workload, workload_type) = owner_of(pod);
    let namespace: Text = pod.namespace().unwrap_or_default().into();
    let started = status.and_then(|status| status.start_time.as_ref()).map(|time| time.0.as_millisecond());
    let found = Pod {
        name: pod.name_any().into(),
        node: text(spec.and_then(|spec| spec.node_name.as_ref())),
        workload,
        workload_type,
        service_account: text(spec.and_then(|spec| spec.service_account_name.as_ref())),
        finished: matches!(phase, "Succeeded" | "Failed"),
        running: phase == "Running",
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or_default(),
        enrolled: pod.annotations().get(ENROLLED).is_some_and(|state| state == "enabled"),
        opted_out: pod.labels().get(MODE).is_some_and(|mode| mode == "none"),
        opted_in: pod.labels().get(MODE).is_some_and(|mode| mode == "ambient"),
        sidecar: pod.annotations().contains_key(SIDECAR),
        excluded: special.excluded.iter().any(|name| **name == *namespace),
        mesh: *namespace == *special.system,
        started: started.and_then(|at| Millis::try_from(at).ok()).unwrap_or_default(),
        addresses,
        namespace,
    };
    let candidate = candidate(pod, &found);
    (found, candidate)
}

/// Name and kind of what made a pod, as users know it.
fn owner_of(pod: &core::Pod) -> (Text, Text) {
    let name = pod.name_any();
    let owner = pod.owner_references().iter().find(|owner| owner.controller.unwrap_or_default());
    let Some(owner) = owner else { return (name.into(), "pod".into()) };
    match owner.kind.as_str() {
        "ReplicaSet" => {
            let hash = pod.labels().get("pod-template-hash");
            let deployment = hash.and_then(|hash| owner.name.strip_suffix(hash.as_str())?.strip_suffix('-'));
            (deployment.unwrap_or(&owner.name).into(), "deployment".into())
        }
        "Job" => {
            // A CronJob appends the minute of the run.
            let cron = owner
                .name
                .rsplit_once('-')
                .filter(|(_, minute)| minute.len() >= 8 && minute.bytes().all(|byte| byte.is_ascii_digit()));
            match cron {
                Some((name, _)) => (name.into(), "cronjob".into()),
                None => (owner.name.as_str().into(), "job".into()),
            }
        }
        kind => (owner.name.as_str().into(), kind.to_ascii_lowercase().into()),
    }
}

/// A running pod that calls itself Prometheus.
fn candidate(pod: &core::Pod, found: &Pod) -> Option<Candidate> {
    let labels = pod.labels();
    let called = |label: &str| labels.get(label).is_some_and(|name| name == "prometheus");
    let containers = &pod.spec.as_ref()?.containers;
    let container = containers.iter().find(|container| container.name == "prometheus");
    if !(found.running && (called("app.kubernetes.io/name") || called("app") || container.is_some())) {
        return None;
    }
    let ports = container.or(containers.first())?.ports.iter().flatten();
    let names = ["web", "http-web", "http"];
    let named = ports.filter(|port| {
        port.container_port == 9090 || port.name.as_deref().is_some_and(|name| names.contains(&name))
    });
    let port = named.map(|port| port.container_port).next().unwrap_or(9090);
    let address = *found.addresses.first()?;
    Some(Candidate {
        namespace: found.namespace.clone(),
        pod: found.name.clone(),
        api: SocketAddr::new(address, u16::try_from(port).ok()?),
    })
}

#[cfg(test)]
mod tests;
