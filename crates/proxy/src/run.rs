//! The proxy's life: start in the right order, run, end gracefully.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use mesh::Identity;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::certs::Certs;
use crate::config::{Config, Own};
use crate::context::{Context, Stats};
use crate::dns::Dns;
use crate::engine::{Tuning, Workers};
use crate::flows::Flows;
use crate::hostnames::Hostnames;
use crate::http::{Listeners, Shown};
use crate::logging::LogHandle;
use crate::pods::{self, Manager, Pod, PodInfo, zds};
use crate::ready::Readiness;
use crate::reports::{Observer, Reports};
use crate::sockets::Sockets;
use crate::views::Views;
use crate::xds::Demand;
use crate::{local, memory, revocation, xds};

const STATE_TASK: &str = "state manager";
const SERIES_SWEEP: Duration = Duration::from_secs(60);
const TIDE: Duration = Duration::from_secs(1);
/// Changes of the view come in bursts; which certificates they need is worked out once for each.
const SETTLE: Duration = Duration::from_millis(50);

/// Why the proxy did not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// One of its own ports is taken.
    #[error("{0}")]
    Listen(#[source] std::io::Error),
    /// A privilege is missing.
    #[error("cannot serve pods: {0}; the capabilities SYS_ADMIN, NET_ADMIN and NET_RAW are needed")]
    Privileges(String),
    /// The threads that carry bytes.
    #[error("cannot start workers: {0}")]
    Workers(#[source] std::io::Error),
    /// Without them revoked certificates would be trusted.
    #[error("CRL_PATH: {0}")]
    Revocations(String),
    /// Half a mesh is none.
    #[error("{0}")]
    Local(String),
    /// The names that it was given make no identity.
    #[error(
        "flows cannot be reported: {0}; look at TRUST_DOMAIN, POD_NAMESPACE, SERVICE_ACCOUNT and FLOW_ACCOUNT"
    )]
    Identity(String),
}

/// Runs the proxy until `shutdown` resolves (or it is told to quit), then drains and returns.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
    run_with_log(config, None, shutdown).await
}

/// [`run`] with a log whose level the admin server may change.
pub async fn run_with_log(
    config: Config,
    log: Option<LogHandle>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RunError> {
    // An error means that a provider has been installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    raise_descriptor_limit();
    check_privileges(&config)?;
    tracing::info!(config = %serde_json::to_string(&config).unwrap_or_default(), "starting");

    for name in &config.unknown {
        tracing::warn!(name, "this variable is not known and has no effect: is it misspelt?");
    }

    let readiness = Readiness::default();
    let state = readiness.pending(STATE_TASK);
    let first_snapshot = readiness.pending(zds::TASK);
    let drain = CancellationToken::new();
    let reports = config.flows.as_ref().map(|_| Reports::new());
    let settings = config.tunnel_settings();
    let workers = Workers::start(config.workers, Tuning { tick: tick(&settings), spin: config.busy_spin });
    let (workers, threads) = workers.map_err(RunError::Workers)?;
    let views = Views::default();
    let demand = if config.on_demand { Demand::new(views.clone()) } else { Demand::default() };
    let context = Arc::new(Context {
        settings,
        views,
        demand,
        local: local::load(config.local.as_ref()).await.map_err(RunError::Local)?,
        certs: Certs::new(&config),
        flows: Arc::new(match &reports {
            Some(reports) => Flows::reporting(reports.table()),
            None => Flows::default(),
        }),
        reports: reports.clone(),
        hostnames: Hostnames::default(),
        dns: Dns::new(&config),
        pods: Arc::default(),
        pods_changed: watch::Sender::new(0),
        drain: drain.clone(),
        stats: Stats::default(),
        workers,
        config,
    });
    let crl = context.config.crl.clone();
    let revocations = context.settings.rules.revocations.clone();
    let lists = match &crl {
        Some(path) => revocation::load(path, &revocations).map_err(RunError::Revocations)?,
        None => Vec::new(),
    };
    let xds_stats = Arc::new(xds::Stats::default());
    let quit = CancellationToken::new();
    let listeners = Listeners::bind(&context).await.map_err(RunError::Listen)?;
    let shown = Shown {
        context: context.clone(),
        readiness: readiness.clone(),
        xds: xds_stats.clone(),
        log,
        quit: quit.clone(),
    };
    let (views, demand) = (context.views.clone(), context.demand.clone());
    let (client, local) =
        xds::Client::new(&context.config, context.local.clone(), views, demand, state, xds_stats);
    let own = own_pod(&context);
    let background = CancellationToken::new();
    let spawn = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
        let background = background.clone();
        tokio::spawn(async move {
            let _ = background.run_until_cancelled(task).await;
        })
    };
    spawn(Box::pin(listeners.serve(shown, drain.clone())));
    if let Some(client) = client {
        spawn(Box::pin(client.run()));
    }
    if let Some(path) = crl {
        spawn(Box::pin(async move { revocation::follow(&path, &revocations, lists).await }));
    }
    let observer = observer(&context)?;
    let reporter = observer.as_ref().map(|observer| observer.identity.clone());
    spawn(Box::pin(warm(context.clone(), local, own.clone(), reporter)));
    if let (Some(reports), Some(observer)) = (reports.clone(), observer) {
        spawn(Box::pin(reports.run(observer)));
    }
    spawn(Box::pin(sweep(context.flows.clone(), readiness.clone())));
    let agent = {
        let (context, readiness, drain) = (context.clone(), readiness.clone(), drain.clone());
        tokio::spawn(async move {
            // Without the state of the mesh a pod's connections could only be refused.
            wait_for_state(&context.views, &readiness, &drain).await;
            let path = context.config.zds.clone();
            let mut manager = Manager::new(context);
            zds::run(path, &mut manager, &readiness, first_snapshot, &drain).await;
        })
    };

    tokio::select! {
        () = shutdown => {}
        () = quit.cancelled() => {}
    }
    tracing::info!(deadline = ?context.config.termination_deadline, "draining");
    drain.cancel();
    let _ = agent.await;
    end(&context, own.as_deref()).await;
    if let Some(reports) = reports {
        reports.finish().await;
    }
    background.cancel();
    // On a thread that may wait for them.
    let _ = tokio::task::spawn_blocking(move || drop(threads)).await;
    Ok(())
}

/// How often tunnels are looked after: well within the shortest of their limits.
fn tick(settings: &hbone::Settings) -> Duration {
    let shortest = settings.ping_interval.min(settings.ping_timeout).min(settings.answer_timeout);
    (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
}

async fn wait_for_state(views: &Views, readiness: &Readiness, drain: &CancellationToken) {
    let mut changes = views.changes();
    let wait = async {
        while readiness.is_pending(STATE_TASK) {
            // The task is done just after something was published.
            let _ = tokio::time::timeout(Duration::from_millis(20), changes.changed()).await;
        }
    };
    let _ = drain.run_until_cancelled(wait).await;
}

/// Lets running connections end until the deadline, then cuts them.
async fn end(context: &Context, own: Option<&Pod>) {
    let pods: Vec<Arc<Pod>> =
        context.pods.lock().values().filter_map(|state| state.pod.as_ref().ok().cloned()).collect();
    let all = || pods.iter().map(|pod| &**pod).chain(own);
    let ended = async {
        for pod in all() {
            pod.tasks.close();
            pod.tasks.wait().await;
        }
    };
    if tokio::time::timeout(context.config.termination_deadline, ended).await.is_err() {
        let left: usize = all().map(|pod| pod.connections.len()).sum();
        tracing::warn!(left, "connections did not end before the deadline and are cut");
    }
    for pod in all() {
        pod.cut();
    }
    let cut = async {
        for pod in all() {
            pod.tasks.wait().await;
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(1), cut).await;
}

/// The proxy's own pod: its metrics are reached over the mesh under its own identity.
fn own_pod(context: &Arc<Context>) -> Option<Arc<Pod>> {
    let own = &context.config.own;
    let info = PodInfo {
        name: own.name.clone()?,
        namespace: own.namespace.clone()?,
        service_account: own.service_account.clone()?,
    };
    let pod = Pod::new(context, info, Sockets::own(&context.config));
    match pods::serve_own(context, &pod) {
        Ok(()) => Some(pod),
        Err(error) => {
            tracing::warn!(%error, "the proxy's own metrics cannot be served over the mesh");
            None
        }
    }
}

/// Whom flows are reported to, if anybody.
fn observer(context: &Context) -> Result<Option<Observer>, RunError> {
    let config = &context.config;
    let Some(target) = &config.flows else { return Ok(None) };
    let identity = |namespace: &str, account: &str| {
        Identity::new(&*config.trust_domain, namespace, account)
            .map_err(|error| RunError::Identity(error.to_string()))
    };
    let Own { name, namespace, service_account, .. } = &config.own;
    let namespace = namespace.clone().unwrap_or_default();
    Ok(Some(Observer {
        address: target.address.clone(),
        expected: identity(&target.account.0, &target.account.1)?,
        identity: identity(&namespace, service_account.as_deref().unwrap_or_default())?,
        node: config.node.clone().unwrap_or_default(),
        pod_namespace: namespace,
        pod_name: name.clone().unwrap_or_default(),
        certs: context.certs.clone(),
        rules: context.settings.rules.clone(),
    }))
}

/// Fetches certificates before they are needed: for this node's workloads and for the pods that are served.
async fn warm(
    context: Arc<Context>,
    mut local: watch::Receiver<Arc<BTreeSet<Identity>>>,
    own: Option<Arc<Pod>>,
    reporter: Option<Identity>,
) {
    let mut views = context.views.changes();
    let mut pods = context.pods_changed.subscribe();
    loop {
        let mut wanted: BTreeSet<Identity> = (**local.borrow_and_update()).clone();
        wanted.extend(pods::identities(&context));
        wanted.extend(reporter.clone());
        if let Some(own) = &own
            && let Some(workload) = own.find(&context.views.load(), context.config.node.as_deref())
        {
            wanted.insert(workload.identity.clone());
        }
        context.certs.want(&wanted);
        tokio::select! {
            changed = views.changed() => if changed.is_err() { return },
            changed = pods.changed() => if changed.is_err() { return },
            // Ends together with the client; the other two go on.
            Ok(()) = local.changed() => {}
        }
        tokio::time::sleep(SETTLE).await;
    }
}

/// Keeps memory small: series that rest, what bursts needed, and what the start needed.
async fn sweep(flows: Arc<Flows>, readiness: Readiness) {
    let mut turn = tokio::time::interval(SERIES_SWEEP);
    let mut look = tokio::time::interval(TIDE);
    let mut tide = memory::Tide::default();
    let mut starting = true;
    loop {
        tokio::select! {
            _ = turn.tick() => flows.sweep(),
            _ = look.tick() => {
                if starting && readiness.list().is_empty() {
                    starting = false;
                    let _ = tokio::task::spawn_blocking(memory::forget_start).await;
                }
                if tide.has_ebbed(flows.open_now()) {
                    let _ = tokio::task::spawn_blocking(memory::give_back).await;
                }
            }
        }
    }
}

/// A node's pods together have more sockets than a shell may.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Entering a namespace and marking packets must work, or no pod could be served.
fn check_privileges(config: &Config) -> Result<(), RunError> {
    netns::NetNs::may_enter().map_err(|error| RunError::Privileges(error.to_string()))?;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let marked = socket.and_then(|socket| socket.set_mark(config.mark));
    marked.map_err(|error| RunError::Privileges(format!("packets cannot be marked: {error}")))
}
