//! The kubelet: one worker a pod, fed by a watch of the pods bound to this node.
//!
//! [`state`] and [`status`] decide and are pure; [`pod`] carries out; the runtime, sandboxes and volumes know
//! nothing of either. Nothing here writes to a pod but its `status`, and its final deletion.

mod container;
mod events;
mod lifecycle;
mod node_object;
mod pod;
mod probe;
mod registry;
mod state;
mod status;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use netns::NetNs;
use tokio::sync::{OnceCell, watch};

use super::config::Config;
use super::{layout, runtime, sandbox, stage};
use events::Events;
use registry::Registry;

/// What all workers share.
pub struct Context {
    /// The node.
    pub config: Config,
    /// The API server.
    pub client: Client,
    /// What runs, for the kubelet server.
    pub registry: Arc<Registry>,
    /// Where events go.
    pub events: Events,
    /// The node's network namespace.
    pub netns: NetNs,
    /// The node's own capabilities.
    pub capabilities: u64,
    /// The host's `resolv.conf`.
    pub resolv_conf: String,
    api_service: OnceCell<(String, String)>,
}

impl Context {
    /// Address and port under which pods find the API server: those of Service `default/kubernetes`.
    pub async fn api_service(&self) -> (String, String) {
        let found = self
            .api_service
            .get_or_try_init(|| async {
                let services: Api<Service> = Api::namespaced(self.client.clone(), "default");
                let service = services.get("kubernetes").await?;
                let spec = service.spec.unwrap_or_default();
                let port = spec.ports.iter().flatten().map(|p| p.port).next().unwrap_or(443);
                let ip = spec.cluster_ip.filter(|ip| ip.parse::<std::net::IpAddr>().is_ok());
                Ok::<_, kube::Error>((ip.unwrap_or_else(|| self.first_service()), port.to_string()))
            })
            .await;
        found.cloned().unwrap_or_else(|_| (self.first_service(), "443".to_owned()))
    }

    /// By convention it has the first address of the range.
    fn first_service(&self) -> String {
        let first = self.config.service_cidr.hosts().next();
        first.unwrap_or_else(|| self.config.service_cidr.addr()).to_string()
    }
}

/// Runs the kubelet until it is told to end.
pub async fn run(mut config: Config) -> anyhow::Result<()> {
    // The path the node was given is under the host's `/run`, which cannot be seen from here.
    config.netns = layout::NODE_NETNS.into();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    stage::forget_host_netns();
    let default_list = Path::new(layout::CNI_CONF).join("10-ambit-lab.conflist");
    std::fs::write(&default_list, sandbox::cni::default_list(&config.pod_cidr))
        .with_context(|| format!("cannot write {}", default_list.display()))?;

    let kubeconfig = Kubeconfig::read_from(&config.kubeconfig)
        .with_context(|| format!("cannot read kubeconfig {}", config.kubeconfig.display()))?;
    let cluster =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.with_context(
            || format!("kubeconfig {} does not say how to reach a cluster", config.kubeconfig.display()),
        )?;
    let client = Client::try_from(cluster.clone()).context("cannot make a Kubernetes client")?;
    let context = Arc::new(Context {
        events: Events::start(client.clone(), config.name.clone()),
        registry: Arc::new(Registry::default()),
        netns: NetNs::open(layout::NODE_NETNS)?,
        capabilities: runtime::caps::own(),
        resolv_conf: std::fs::read_to_string(layout::RESOLV_CONF).unwrap_or_default(),
        api_service: OnceCell::new(),
        client: client.clone(),
        config: config.clone(),
    });

    super::net::start(&config, client.clone()).context("cannot set up services and names")?;
    let authorities = authorities_pem(cluster.root_cert.as_deref().unwrap_or_default());
    let port =
        super::server::start(context.registry.clone(), authorities).context("cannot serve logs and exec")?;
    tokio::spawn(node_object::keep(config.clone(), client.clone(), Some(port)));
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        ended = follow(context) => ended,
        _ = terminate.recv() => Ok(()),
    }
}

/// The certificates of a kubeconfig's authorities as PEM: whose clients the kubelet server believes.
fn authorities_pem(certificates: &[Vec<u8>]) -> String {
    use base64::Engine;
    certificates
        .iter()
        .map(|der| {
            let text = base64::engine::general_purpose::STANDARD.encode(der);
            format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
        })
        .collect()
}

/// What a worker is told.
#[derive(Clone)]
pub struct Wanted {
    /// The latest object.
    pub pod: Arc<Pod>,
    /// Whether the object is gone from the API server.
    pub gone: bool,
}

struct Worker {
    uid: String,
    tell: watch::Sender<Wanted>,
}

/// Follows the pods of this node for ever; a broken watch is taken up again.
async fn follow(context: Arc<Context>) -> anyhow::Result<()> {
    let pods: Api<Pod> = Api::all(context.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", context.config.name));
    let mut stream = pin!(watcher(pods, config).backoff(Patience::default()));
    let mut workers: HashMap<(String, String), Worker> = HashMap::new();
    let mut listed: HashSet<(String, String)> = HashSet::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Apply(pod)) => tell(&context, &mut workers, pod),
            Ok(watcher::Event::Delete(pod)) => {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                if let Some(worker) = workers.remove(&key(&pod)) {
                    if worker.uid == uid {
                        leave(&worker);
                    } else {
                        workers.insert(key(&pod), worker);
                    }
                }
            }
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(pod)) => {
                listed.insert(key(&pod));
                tell(&context, &mut workers, pod);
            }
            Ok(watcher::Event::InitDone) => {
                workers.retain(|key, worker| {
                    let stays = listed.contains(key);
                    if !stays {
                        leave(worker);
                    }
                    stays
                });
            }
            Err(error) => tracing::warn!(%error, "the watch of pods was interrupted"),
        }
    }
    anyhow::bail!("the watch of pods has ended")
}

fn key(pod: &Pod) -> (String, String) {
    let meta = &pod.metadata;
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

fn leave(worker: &Worker) {
    worker.tell.send_modify(|wanted| wanted.gone = true);
}

fn tell(context: &Arc<Context>, workers: &mut HashMap<(String, String), Worker>, pod: Pod) {
    let key = key(&pod);
    let uid = pod.metadata.uid.clone().unwrap_or_default();
    let pod = Arc::new(pod);
    if let Some(worker) = workers.get(&key) {
        if worker.uid == uid {
            worker.tell.send_modify(|wanted| wanted.pod = pod);
            return;
        }
        // The name has passed on to another pod.
        leave(worker);
    }
    let (tell, told) = watch::channel(Wanted { pod, gone: false });
    tokio::spawn(pod::Worker::new(context.clone(), told).run());
    workers.insert(key, Worker { uid, tell });
}

/// How long to wait before the watch is taken up again: briefly, since on one machine an API server that was
/// restarted is back in a moment.
#[derive(Clone, Debug)]
struct Patience(Duration);

impl Default for Patience {
    fn default() -> Self {
        Self(Duration::from_millis(200))
    }
}

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = self.0;
        self.0 = (now * 2).min(Duration::from_secs(5));
        Some(now)
    }
}

impl kube::runtime::utils::Backoff for Patience {
    fn reset(&mut self) {
        *self = Self::default();
    }
}
