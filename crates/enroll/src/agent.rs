//! The node agent: makes the pods of one node agree with what their labels say.
//!
//! Watches put pod UIDs into a queue, and so do the CNI plugin, the coming and going of node proxies, and a slow
//! tick; a worker looks at what is wanted of the pod and what is there, and does what is missing ([`member`]).
//! Nothing is concluded from an event or from the annotation: only from the pod as it is now and from what was
//! really done. A UID is worked on by one worker at a time; a failure brings it back after a while.
//!
//! [`run`] is the whole life of the process; [`cleanup`] gives all pods of the node back to plaintext.

mod announce;
mod cleanup;
mod events;
mod find;
mod leave;
mod member;
mod peers;
mod plugin;
mod queue;
mod status;
mod stock;
mod watch;
mod wish;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::Context;
use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::Client;
use kube::runtime::reflector::Store;
use netns::NetNs;
use netns::seqpacket::SeqPacketListener;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch as signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use cleanup::cleanup;

use crate::cni::access::Keeper;
use crate::config::{Config, access_file};
use crate::eligibility::{Reason, Rules, default_selectors};
use crate::install::{self, Installer, conflist};
use crate::metrics::{Metrics, Readiness};
use crate::netns_of::remembered::Remembered;
use crate::netns_of::{Finder, addresses};
use crate::older::sweep::Sweeper;
use crate::older::{Exempt, Outside, Policy};
use crate::probes::Probes;
use crate::redirect::{self, Options};
use crate::strict::Peer;
use crate::zds::Zds;
use member::Member;
use queue::Queue;

/// How many pods are worked on at once. Mostly they wait: for the kernel, for a proxy, for connections to be idle.
const WORKERS: usize = 128;
/// How often pods are looked at that some proxy still owes.
const OWED_TICK: Duration = Duration::from_secs(5);
/// How long the next change of the list of pods outside waits after one.
const OUTSIDE_PAUSE: Duration = Duration::from_millis(50);
/// How often the installed plugin is looked at.
const INSTALL_TICK: Duration = Duration::from_secs(1);

/// Everything the workers share. Each field has one owner who changes it; see there.
struct Node {
    config: Config,
    client: Client,
    rules: Rules,
    options: Options,
    pods: Store<Pod>,
    namespaces: Store<Namespace>,
    /// Both stores have been filled once.
    synced: signal::Receiver<bool>,
    zds: Zds,
    probes: Probes,
    sweeper: Sweeper,
    outside: Arc<ArcSwap<Outside>>,
    exempt: Exempt,
    /// All PeerAuthentications, as far as they can be had.
    peers: ArcSwap<Vec<Peer>>,
    events: events::Events,
    /// Namespaces in which pods are in by their own label. They stay here when those pods have gone: more may come.
    by_own_label: Mutex<BTreeSet<String>>,
    /// Pods that look as if they were in the mesh, and why they are not, as was said.
    explained: Mutex<HashMap<String, Reason>>,
    finder: Finder,
    finds: find::Finds,
    /// Whether a pod is in the mesh may have changed: see [`note_outside`].
    outside_changed: Notify,
    remembered: Remembered,
    metrics: Arc<Metrics>,
    queue: Mutex<Queue>,
    wake: Notify,
    /// What was done for each pod. The worker that has a UID takes its entry out and puts it back.
    members: Mutex<HashMap<String, Member>>,
    /// What CNI ADD told and nobody has used yet.
    told: Mutex<HashMap<String, plugin::Told>>,
}

impl Node {
    fn push(&self, uid: impl Into<String>) {
        self.queue.lock().push(uid.into(), Instant::now());
        self.wake.notify_one();
    }

    fn pod(&self, uid: &str) -> Option<Arc<Pod>> {
        self.pods.find(|pod| pod.metadata.uid.as_deref() == Some(uid))
    }
}

/// Runs the node agent until `stop`, then leaves everything in place or cleans up, as its DaemonSet says.
///
/// Errors are those of the start: a socket or port that cannot be had, a selector that cannot be understood.
pub async fn run(config: Config, client: Client, stop: CancellationToken) -> anyhow::Result<()> {
    let rules = Rules::new(&config.selectors, &config.exclude_namespaces, &config.namespace)?;
    for dir in [Some(config.run_dir.as_path()), config.zds_socket.parent()].into_iter().flatten() {
        std::fs::create_dir_all(dir)
            .with_context(|| format!("cannot make the directory {}", dir.display()))?;
    }
    // Proxies run as root, which is the owner; nobody else may ask for the pods' namespaces.
    let listener = SeqPacketListener::bind(&config.zds_socket, 0o600)
        .with_context(|| format!("cannot listen on {}", config.zds_socket.display()))?;

    // Servers end last, so that what happens during the shutdown is still visible.
    let servers = CancellationToken::new();
    let _servers = servers.clone().drop_guard();
    let metrics = Arc::new(Metrics::default());
    let readiness = Arc::new(Readiness::default());
    let (monitoring, health) = (config.monitoring_port, config.health_port);
    crate::metrics::serve(metrics.clone(), readiness.clone(), monitoring, health, servers.clone()).await?;

    let work = stop.child_token();
    let tasks = TaskTracker::new();
    let (node, watches) = build(config, client, rules, metrics.clone(), work.clone())?;
    watches.spawn(&node, &tasks, &work);
    plugin::serve(&node, work.clone())
        .with_context(|| format!("cannot listen on {}", node.config.event_socket().display()))?;

    let mut synced = node.synced.clone();
    let seen = async { synced.wait_for(|synced| *synced).await.is_ok() };
    let seen = stop.run_until_cancelled(seen).await;
    if stop.is_cancelled() {
        // The mesh may be removed while its agent starts.
        cleanup::on_shutdown(&node).await;
        return Ok(());
    }
    anyhow::ensure!(seen == Some(true), "the watches ended before they had begun");
    stock::take(&node).await;
    status::serve(&node, servers.clone()).await?;
    tasks.spawn(work_off(node.clone(), work.clone()));
    tasks.spawn(follow_outside(node.clone(), work.clone()));
    tasks.spawn(peers::follow(node.clone(), work.clone()));
    tasks.spawn(follow_proxies(node.clone(), work.clone()));
    let zds = node.zds.clone();
    let token = work.clone();
    tasks.spawn(async move { zds.serve(listener, token).await });
    readiness.watching.store(true, Ordering::Relaxed);
    tracing::info!(node = node.config.node_name, pods = node.pods.len(), firewall = %node.config.firewall, "node agent serves");

    if let Some(access) = node.config.access.clone() {
        let file = access_file(&node.config.run_dir);
        let mut keeper = Keeper::new(access, node.client.clone(), &node.config.namespace, file);
        // Before the plugin is there: nobody shall miss it.
        keeper.tend().await;
        tasks.spawn(keeper.keep(work.clone()));
    }
    let installer = installer(&node.config);
    match installer.clone() {
        Some(installer) => {
            tasks.spawn(keep_installed(installer, metrics, readiness, work.clone()));
        }
        None => readiness.installed.store(true, Ordering::Relaxed),
    }

    stop.cancelled().await;
    work.cancel();
    tasks.close();
    // Each task is bounded in itself; this is the bound for all of them together.
    if tokio::time::timeout(Duration::from_secs(10), tasks.wait()).await.is_err() {
        tracing::warn!("some work did not end in time");
    }
    cleanup::on_shutdown(&node).await;
    Ok(())
}

fn build(
    config: Config,
    client: Client,
    rules: Rules,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> anyhow::Result<(Arc<Node>, watch::Watches)> {
    let (watches, pods, namespaces, synced) = watch::Watches::new();
    let exempt = exempt(&config)?;
    let outside: Arc<ArcSwap<Outside>> = Arc::default();
    let policy = Policy::with_grace(config.older_grace);
    let events = events::Events::start(client.clone(), &config.node_name, stop.clone());
    let sweeper = Sweeper::start(policy, exempt.clone(), outside.clone(), metrics.clone(), stop);
    let options = Options {
        ipv6: config.ipv6,
        dns: config.dns_capture,
        ingress: false,
        virtual_interfaces: vec![],
        probe_v4: config.probe_v4,
        probe_v6: config.probe_v6,
    };
    let node = Node {
        rules,
        options,
        pods,
        namespaces,
        synced,
        zds: Zds::default(),
        probes: Probes::new(config.probe_v4, config.probe_v6, config.firewall),
        sweeper,
        outside,
        exempt,
        peers: ArcSwap::default(),
        events,
        by_own_label: Mutex::default(),
        explained: Mutex::default(),
        finds: find::Finds::default(),
        outside_changed: Notify::new(),
        finder: Finder { host_proc: config.host_proc.clone(), host_root: config.host_root.clone() },
        remembered: Remembered::load(&config.run_dir),
        metrics,
        queue: Mutex::default(),
        wake: Notify::new(),
        members: Mutex::default(),
        told: Mutex::default(),
        client,
        config,
    };
    Ok((Arc::new(node), watches))
}

/// Connections with the node itself, with probes and with the API server are never ended.
fn exempt(config: &Config) -> anyhow::Result<Exempt> {
    let own = NetNs::current().and_then(|namespace| addresses(&namespace))?;
    let addresses: std::collections::HashSet<IpAddr> =
        own.into_iter().chain(config.probe_sources()).collect();
    Ok(Exempt { addresses, peers: config.never_end.iter().copied().collect() })
}

fn installer(config: &Config) -> Option<Installer> {
    let prefix = config.agent_pod_prefix();
    let mut entry = conflist::entry(&config.run_dir, &config.namespace, &prefix, &config.exclude_namespaces);
    if config.hold_all {
        entry["hold_all"] = true.into();
    }
    if config.selectors != default_selectors() {
        entry["enablement_selectors"] = serde_json::json!(config.selectors);
    }
    config.cni.clone().map(|place| Installer::new(place, entry))
}

/// Takes pods from the queue and works on them until `stop`.
async fn work_off(node: Arc<Node>, stop: CancellationToken) {
    let running = TaskTracker::new();
    let slots = Arc::new(tokio::sync::Semaphore::new(WORKERS));
    loop {
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        let uid = loop {
            let (next, due) = {
                let mut queue = node.queue.lock();
                (queue.pop(Instant::now()), queue.next_due())
            };
            if let Some(uid) = next {
                break Some(uid);
            }
            let due =
                due.map_or(Duration::from_secs(3600), |due| due.saturating_duration_since(Instant::now()));
            tokio::select! {
                () = stop.cancelled() => break None,
                () = node.wake.notified() => {}
                () = tokio::time::sleep(due) => {}
            }
        };
        let Some(uid) = uid.filter(|_| !stop.is_cancelled()) else { break };
        let node = node.clone();
        running.spawn(async move {
            let result = member::converge(&node, &uid).await;
            node.queue.lock().done(&uid, result.is_ok(), Instant::now());
            node.wake.notify_one();
            drop(slot);
        });
    }
    running.close();
    running.wait().await;
}

/// When a proxy comes or goes, and while one has not taken all pods, the pods concerned are looked at again.
async fn follow_proxies(node: Arc<Node>, stop: CancellationToken) {
    let mut live = node.zds.live();
    let mut tick = tokio::time::interval(OWED_TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = live.changed() => {
                if changed.is_err() {
                    return;
                }
                let count = *live.borrow_and_update();
                node.metrics.proxies(count);
                tracing::info!(connected = count, "node proxies");
                for pod in node.pods.state() {
                    pod.metadata.uid.iter().for_each(|uid| node.push(uid.clone()));
                }
            }
            _ = tick.tick() => node.zds.owed().into_iter().for_each(|uid| node.push(uid)),
        }
    }
}

/// Installs the plugin and keeps it installed until `stop`.
async fn keep_installed(
    installer: Installer,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    stop: CancellationToken,
) {
    let mut last = String::new();
    let mut tick = tokio::time::interval(INSTALL_TICK);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        let worker = installer.clone();
        let Ok(result) = tokio::task::spawn_blocking(move || worker.ensure()).await else { return };
        let ready = result.is_ok();
        readiness.installed.store(ready, Ordering::Relaxed);
        metrics.install_ready(ready);
        match result {
            Ok(done) if !done.changed => {}
            Ok(install::Done { place, .. }) => {
                metrics.installed("SUCCESS");
                tracing::info!(
                    configuration = %place.conf.display(),
                    plugins = %place.bin_dir.display(),
                    found_by = place.found_by,
                    "CNI plugin installed"
                );
            }
            Err(error) => {
                let text = error.to_string();
                if text != last {
                    if !matches!(error, install::Error::NoNetwork(_)) {
                        metrics.installed("CREATE_CNI_CONFIG_FAILURE");
                    }
                    tracing::warn!(%error, "CNI plugin is not installed");
                    last = text;
                }
                continue;
            }
        }
        last.clear();
    }
}

/// Keeps the list of [`note_outside`] current. Once for all pods that change in the same moment: it looks at each.
async fn follow_outside(node: Arc<Node>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = node.outside_changed.notified() => note_outside(&node),
        }
        let _ = stop.run_until_cancelled(tokio::time::sleep(OUTSIDE_PAUSE)).await;
    }
}

/// Local pods that are not in the mesh, for those who must leave their connections alone.
fn note_outside(node: &Node) {
    let enrolled: BTreeMap<IpAddr, ()> = node.probes.addresses().into_iter().map(|ip| (ip, ())).collect();
    let outside = node
        .pods
        .state()
        .iter()
        .filter(|pod| !crate::eligibility::finished(pod))
        .flat_map(|pod| wish::ips(pod))
        .filter(|ip| !enrolled.contains_key(ip))
        .collect();
    node.outside.store(Arc::new(outside));
    node.metrics.enrolled(node.members.lock().values().filter(|member| member.is_enrolled()).count());
}

/// Names the redirection's errors where they leave the crate's own types.
fn told_by_rules(result: Result<(), redirect::Error>, what: &'static str) -> anyhow::Result<()> {
    result.context(what)
}
