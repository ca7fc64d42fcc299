//! The process that carries a lab, from the first file to the last.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use kube::Client;
use kube::config::Kubeconfig;
use tokio::process::Child;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::fabric::{self, Fabric};
use super::processes::Process;
use super::record::{Lock, Published, Record};
use super::{LabName, Options, Progress, Ready, down, kubeconfig, nodes, preflight};
use crate::{api, controllers, node};

/// How long nodes may take to become ready.
const NODES_READY: Duration = Duration::from_secs(90);
/// A node that keeps ending is not started for ever.
const NODE_RESTARTS: u32 = 5;

/// Brings a lab up, says so by `ready`, and carries it until `stop` is cancelled. Whatever the reason for the end,
/// nothing of the lab is left then.
///
/// # Errors
/// What was in the way, in a sentence; or what went wrong later. `stop` is no error.
pub async fn run(
    options: Options,
    progress: Progress,
    ready: impl FnOnce(&Ready),
    stop: CancellationToken,
) -> anyhow::Result<()> {
    preflight::machine(options.nodes > 0)?;
    let Some(lock) = Lock::take(&options.name)? else { bail!(already_running(&options.name)) };
    let result = carry(&options, &progress, ready, stop).await;
    if options.name.state_dir().exists() {
        progress("taking the lab down");
    }
    let name = options.name.clone();
    let cleared = tokio::task::spawn_blocking(move || down::clear(&name)).await?;
    lock.remove();
    // The first trouble is the one to hear about.
    result.and(cleared)
}

/// Why a lab of this name cannot be started.
pub fn already_running(name: &LabName) -> String {
    format!(
        "the lab `{name}` is running already: run `ambit lab down --name {name}` first, or choose another --name"
    )
}

async fn carry(
    options: &Options,
    progress: &Progress,
    ready: impl FnOnce(&Ready),
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let mut lab = Lab::new(stop.clone());
    let up = tokio::select! {
        up = lab.bring_up(options, progress) => up,
        () = stop.cancelled() => {
            lab.end().await;
            return Ok(());
        }
    };
    let result = match up {
        Ok(up) => {
            ready(&up);
            lab.watch_over(options).await
        }
        Err(error) => Err(error),
    };
    lab.end().await;
    result
}

/// The parts of a lab that live in this process.
struct Lab {
    stop: CancellationToken,
    server: Option<api::Server>,
    controllers: JoinSet<anyhow::Result<()>>,
    nodes: Vec<(node::Config, Child)>,
    record: Option<Record>,
    /// The cluster that the nodes joined, if it is not this lab's own.
    joined: Option<Client>,
}

impl Lab {
    fn new(stop: CancellationToken) -> Lab {
        let stop = stop.child_token();
        Lab { stop, server: None, controllers: JoinSet::new(), nodes: Vec::new(), record: None, joined: None }
    }

    async fn bring_up(&mut self, options: &Options, progress: &Progress) -> anyhow::Result<Ready> {
        let name = &options.name;
        if name.state_dir().exists() || !fabric::namespaces(name).is_empty() {
            progress("clearing away what an earlier lab of this name left behind");
            let name = name.clone();
            tokio::task::spawn_blocking(move || down::clear(&name)).await??;
        }
        // Whatever can be refused is refused before anything is made.
        let joined = match &options.join {
            Some(path) => Some((path, preflight::reachable(path).await?)),
            None => None,
        };
        let listener = if joined.is_none() { Some(preflight::listen(options.port)?) } else { None };

        let state = name.state_dir();
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&state)
            .with_context(|| format!("cannot make {}", state.display()))?;
        self.record = Some(Record {
            process: Process::current().context("cannot read this process's entry in /proc")?,
            created: jiff::Timestamp::now().to_string(),
            api: String::new(),
            kubeconfig: state.join("kubeconfig"),
            published: None,
            nodes: Vec::new(),
            ready: false,
        });
        self.store(name)?;

        let (client, kubeconfig) = match (joined, listener) {
            (Some((path, client)), _) => {
                self.joined = Some(client.clone());
                (client, self.join(name, path)?)
            }
            (None, Some(listener)) => self.start_api(name, listener, progress).await?,
            (None, None) => bail!("there is neither an API to start nor one to join"),
        };
        if options.nodes > 0 {
            self.start_nodes(options, &client, progress).await?;
        }
        if !options.manifests.is_empty() {
            progress(&format!("applying {} objects", options.manifests.len()));
            self.unless_broken(options.manifests.apply(&client)).await?;
        }
        let context = kubeconfig.current_context.clone().unwrap_or_default();
        // Nobody's current context changes when nodes join a cluster that has its kubeconfig already.
        let path = match &options.join {
            Some(path) => path.clone(),
            None => self.publish(options, &kubeconfig)?.path,
        };
        let record = self.record.as_mut().context("the lab has no record")?;
        record.ready = true;
        let ready = Ready { api: record.api.clone(), context, kubeconfig: path };
        self.store(name)?;
        Ok(ready)
    }

    fn store(&self, name: &LabName) -> anyhow::Result<()> {
        self.record.as_ref().map_or(Ok(()), |record| record.store(name))
    }

    /// The nodes get a copy, so that the cluster stays the one that was named.
    fn join(&mut self, name: &LabName, path: &Path) -> anyhow::Result<Kubeconfig> {
        let config = Kubeconfig::read_from(path)?;
        if let Some(record) = &mut self.record {
            kubeconfig::write_whole(&record.kubeconfig, &config)?;
            record.api = server_of(&config).unwrap_or_default();
        }
        self.store(name)?;
        Ok(config)
    }

    async fn start_api(
        &mut self,
        name: &LabName,
        listener: TcpListener,
        progress: &Progress,
    ) -> anyhow::Result<(Client, Kubeconfig)> {
        progress("starting the API and the controllers");
        let service_cidr = fabric::service_cidr();
        let kubernetes = service_cidr.hosts().next().context("no room for Services")?;
        let config =
            api::Config { listeners: vec![listener], sans: vec![kubernetes.to_string()], service_cidr };
        let server = api::Server::start(config).await.context("cannot start the API")?;
        let kubeconfig = server.admin_kubeconfig(&name.prefix());
        let client = server.client().await?;
        if let Some(record) = &mut self.record {
            kubeconfig::write(&record.kubeconfig, &kubeconfig)?;
            record.api = server.url();
        }
        let config = controllers::Config { root_ca: Some(server.ca_pem()), stop: self.stop.clone() };
        self.controllers.spawn(controllers::run(client.clone(), config));
        self.server = Some(server);
        self.store(name)?;
        Ok((client, kubeconfig))
    }

    async fn start_nodes(
        &mut self,
        options: &Options,
        client: &Client,
        progress: &Progress,
    ) -> anyhow::Result<()> {
        let name = &options.name;
        progress("building the network between the nodes");
        let plan = Fabric::plan(name, options.nodes);
        let to_build = plan.clone();
        tokio::task::spawn_blocking(move || to_build.build()).await??;

        progress(&format!("starting {} nodes", options.nodes));
        let service_cidr = if options.join.is_some() {
            nodes::service_cidr_of(client).await
        } else {
            fabric::service_cidr()
        };
        let binary = std::env::current_exe().context("cannot find this program's own file")?;
        let record = self.record.as_mut().context("the lab has no record")?;
        for place in &plan.nodes {
            let node_name = nodes::node_name(options, place.number);
            let config = node::Config {
                lab: name.to_string(),
                netns: place.netns_path(),
                ip: place.ip,
                pod_cidr: place.pod_cidr,
                cluster_cidr: fabric::cluster_cidr(),
                service_cidr,
                dns_ip: service_cidr
                    .hosts()
                    .nth(9)
                    .context("the Service range is too small for a DNS address")?,
                kubeconfig: record.kubeconfig.clone(),
                state_dir: name.state_dir().join(&node_name),
                binary: binary.clone(),
                labels: nodes::labels(place),
                name: node_name,
            };
            let child = nodes::start_node(&config, record)?;
            self.nodes.push((config, child));
        }
        self.store(name)?;
        let names: Vec<String> = self.nodes.iter().map(|(config, _)| config.name.clone()).collect();
        let waiting = nodes::wait_ready(client.clone(), names, progress.clone());
        let waited = self.unless_broken(async {
            tokio::time::timeout(NODES_READY, waiting)
                .await
                .map_err(|_| anyhow::anyhow!("the nodes were not ready within {} s", NODES_READY.as_secs()))?
        });
        let result = waited.await;
        result.map_err(|error| match self.last_words() {
            Some(words) => error.context(words),
            None => error,
        })
    }

    /// `work`, unless a part of the lab fails before it is done.
    async fn unless_broken<T>(&mut self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let exits = self.nodes.iter_mut().map(|(config, child)| {
            Box::pin(async move {
                let status = child.wait().await;
                (config.name.clone(), status)
            })
        });
        let exits: Vec<_> = exits.collect();
        let any_exit = async {
            if exits.is_empty() {
                std::future::pending().await
            } else {
                futures::future::select_all(exits).await.0
            }
        };
        tokio::select! {
            result = work => result,
            (name, status) = any_exit => match status {
                Ok(status) => bail!("{name} ended with {status}"),
                Err(error) => Err(error).context(format!("{name} is lost")),
            },
            Some(ended) = self.controllers.join_next() => {
                ended?.context("the controllers failed")?;
                bail!("the controllers ended")
            }
        }
    }

    /// The end of the log of a node, which usually says why it does not come up.
    fn last_words(&self) -> Option<String> {
        let (config, _) = self.nodes.first()?;
        let log = fs::read_to_string(config.state_dir.join("node.log")).ok()?;
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        (!lines.is_empty()).then(|| format!("the log of {} ends with: {}", config.name, lines.join(" | ")))
    }

    fn publish(&mut self, options: &Options, kubeconfig: &Kubeconfig) -> anyhow::Result<Published> {
        let published = match &options.kubeconfig {
            Some(path) => {
                kubeconfig::write(path, kubeconfig)?;
                Published { path: path.clone(), former_context: None, own_file: true }
            }
            None => kubeconfig::merge(&kubeconfig::default_path()?, kubeconfig)?,
        };
        if let Some(record) = &mut self.record {
            record.published = Some(published.clone());
        }
        self.store(&options.name)?;
        Ok(published)
    }

    /// Carries the lab until it is told to end. A node that ends by itself is started again.
    async fn watch_over(&mut self, options: &Options) -> anyhow::Result<()> {
        let mut restarts: BTreeMap<String, u32> = BTreeMap::new();
        loop {
            let ended = {
                let exits = self
                    .nodes
                    .iter_mut()
                    .enumerate()
                    .map(|(at, (_, child))| Box::pin(async move { (at, child.wait().await) }));
                let exits: Vec<_> = exits.collect();
                let any_exit = async {
                    if exits.is_empty() {
                        std::future::pending().await
                    } else {
                        futures::future::select_all(exits).await.0
                    }
                };
                tokio::select! {
                    () = self.stop.cancelled() => return Ok(()),
                    Some(ended) = self.controllers.join_next() => {
                        ended?.context("the controllers failed")?;
                        // They end when they are told to, which is the end of the lab.
                        if self.stop.is_cancelled() {
                            return Ok(());
                        }
                        bail!("the controllers ended");
                    }
                    ended = any_exit => ended,
                }
            };
            let (at, status) = ended;
            let (config, _) = &self.nodes[at];
            let count = restarts.entry(config.name.clone()).or_default();
            *count += 1;
            tracing::error!(node = config.name, ?status, restarts = *count, "a node ended by itself");
            if *count > NODE_RESTARTS {
                bail!("{} keeps ending: see {}", config.name, config.state_dir.join("node.log").display());
            }
            let config = config.clone();
            let record = self.record.as_mut().context("the lab has no record")?;
            record.nodes.retain(|known| known.name != config.name);
            let child = nodes::start_node(&config, record)?;
            self.nodes[at].1 = child;
            self.store(&options.name)?;
        }
    }

    /// Ends what lives in and below this process. The rest is [`down::clear`]'s.
    async fn end(&mut self) {
        self.stop.cancel();
        for (config, child) in &mut self.nodes {
            if let Err(error) = child.kill().await {
                tracing::warn!(node = config.name, %error, "cannot end a node");
            }
        }
        if let Some(client) = self.joined.take() {
            let leaving = nodes::leave(client, self.nodes.iter().map(|(config, _)| config.name.as_str()));
            if tokio::time::timeout(Duration::from_secs(5), leaving).await.is_err() {
                tracing::warn!("the cluster did not let the nodes go in time");
            }
        }
        self.controllers.shutdown().await;
        if let Some(server) = self.server.take()
            && tokio::time::timeout(Duration::from_secs(5), server.shutdown()).await.is_err()
        {
            tracing::warn!("the API did not end in time");
        }
    }
}

fn server_of(config: &Kubeconfig) -> Option<String> {
    let current = config.current_context.as_ref()?;
    let context = config.contexts.iter().find(|context| &context.name == current)?.context.as_ref()?;
    let cluster = config.clusters.iter().find(|cluster| cluster.name == context.cluster)?;
    cluster.cluster.as_ref()?.server.clone()
}
