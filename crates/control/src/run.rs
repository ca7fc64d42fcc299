//! The control plane from start to end: what depends on what, in order.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use wire::ca::istio_certificate_service_server::IstioCertificateServiceServer;

use crate::auth::{Authenticator, KubernetesReviewer, Reviewer};
use crate::ca::{self, Authority, CaServer, Keeper, Source};
use crate::http::{Pages, Phase};
use crate::metrics::Metrics;
use crate::model::Settings;
use crate::serve::{self, Serving};
use crate::state::{self, Snapshot, State};
use crate::xds::{AdsServer, Clients};
use crate::{Config, Error, http, lease, roots, status, watch as inputs};

/// Lease of the replica that spreads the root certificate.
const ROOTS_LEASE: &str = "istio-namespace-controller-election";
/// Lease of the replica that writes status.
const STATUS_LEASE: &str = "istio-status-leader";
/// How long the API may stay away at the start.
const START_PATIENCE: Duration = Duration::from_secs(60);
/// How often it is said what the first sync waits for.
const SYNC_REMINDER: Duration = Duration::from_secs(15);
/// How long open streams get to end.
const STOP_PATIENCE: Duration = Duration::from_secs(5);
/// How often the serving certificate is looked at.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(60);

/// Runs the control plane until `shutdown`.
pub async fn run(
    config: Config,
    client: Client,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // A port that is taken is said before anything is made.
    let address = |port: u16| SocketAddr::new(config.bind, port);
    let grpc = serve::reserve(address(config.ports.grpc))
        .map_err(|source| listen_error(address(config.ports.grpc), "gRPC", "--grpc-port", source))?;
    let ready = bind(address(config.ports.ready), "readiness", "--ready-port").await?;
    let monitoring = bind(address(config.ports.monitoring), "monitoring", "--monitoring-port").await?;

    let metrics = Arc::new(Metrics::default());
    let (phase, phases) = watch::channel(Phase::Authority);
    let (publish, snapshots) = watch::channel(Snapshot::default());
    let (authority_known, authorities) = watch::channel(None::<Arc<Authority>>);
    let (progress, progresses) = watch::channel(None);
    let (held_by, holders) = watch::channel(None);
    let clients: Arc<Clients> = Arc::default();
    let state = State::new(settings(&config));
    let pages = Pages {
        cluster: config.cluster.as_str().into(),
        clients: clients.clone(),
        progress: progresses,
        source: holders,
        phase: phases,
        snapshots: snapshots.clone(),
        authority: authorities.clone(),
        metrics: metrics.clone(),
        tally: state.tally(),
    };
    let mut tasks = Tasks::default();
    tasks.spawn("the readiness server", http::serve(ready, http::readiness(pages.clone())));
    tasks.spawn("the monitoring server", http::serve(monitoring, http::monitoring(pages)));

    let mut shutdown = std::pin::pin!(shutdown);
    let (source, authority) = tokio::select! {
        authority = authority(&client, &config) => authority?,
        () = &mut shutdown => return Ok(()),
    };
    let authority = Arc::new(authority);
    held_by.send_replace(Some((source.clone(), config.namespace.clone())));
    authority_known.send_replace(Some(authority.clone()));
    phase.send_replace(Phase::Listing);

    let (events, heard) = mpsc::channel(1024);
    let mut watches = inputs::all(&client, (&config.namespace, &config.mesh_config()), &events);
    drop(events);
    tasks.spawn("the state", state::own(state, heard, publish));
    tokio::select! {
        result = first_sync(snapshots.clone()) => result?,
        ended = tasks.ended() => return Err(ended),
        _ = watches.join_next() => return Err(Error::Ended("a watch")),
        () = &mut shutdown => return Ok(()),
    }
    {
        let snapshot = snapshots.borrow();
        tracing::info!(
            addresses = snapshot.addresses.len(),
            policies = snapshot.policies.len(),
            pods = snapshot.pods.len(),
            "all inputs listed"
        );
    }

    let certificates = |error: crate::ca::AuthorityError| Error::Authority {
        secret: source.place(&config.namespace),
        reason: error.to_string(),
    };
    let serving =
        Serving::new(&authority, config.serving_names(), SystemTime::now()).map_err(certificates)?;
    let serving = Arc::new(serving);
    let (renewed, tls) = watch::channel(serve::tls(serving.clone(), authority.root_bundle())?);
    let listener = serve::listen(grpc)
        .map_err(|source| listen_error(address(config.ports.grpc), "gRPC", "--grpc-port", source))?;
    let (connections, accepted) = mpsc::channel(64);
    tasks.spawn("the listener", serve::accept(listener, tls, connections));
    tasks.spawn("certificate renewal", renew(serving, authorities.clone(), renewed));

    let (stop, stopped) = watch::channel(false);
    let reviewer = Arc::new(KubernetesReviewer::new(client.clone(), config.token_audiences.clone()));
    let server = services(&config, snapshots.clone(), reviewer, authorities.clone(), metrics, clients);
    let mut server_stop = stopped.clone();
    let server = server.serve_with_incoming_shutdown(ReceiverStream::new(accepted), async move {
        let _ = server_stop.changed().await;
    });
    let mut server = tokio::spawn(server);

    let (leading, leads) = watch::channel(false);
    // A restarted container is still its pod, and may go on with the lease its predecessor held.
    let me = match config.pod_name.as_str() {
        "" => format!("ambit-control_{:08x}", rand::random::<u32>()),
        pod => pod.to_string(),
    };
    let (writing, writes) = watch::channel(false);
    let elections = [(ROOTS_LEASE, leading), (STATUS_LEASE, writing)].map(|(name, leading)| {
        let (client, namespace) = (client.clone(), config.namespace.clone());
        tokio::spawn(lease::lead(client, namespace, name, me.clone(), leading, stopped.clone()))
    });
    tasks.spawn("status", status::write(client.clone(), snapshots.clone(), writes));
    let (distributed, stands) = watch::channel(None);
    let (crl_done, _) = watch::channel(None);
    for (map, done) in [(roots::ROOTS, distributed), (roots::CRL, crl_done)] {
        let distribute = roots::distribute(client.clone(), map, authorities.clone(), leads.clone(), done);
        tasks.spawn("root distribution", distribute);
    }
    let keeper = Keeper {
        client,
        namespace: config.namespace.clone(),
        trust_domain: trust_domain(&config),
        source,
        stage: config.ca_stage,
        authority: authority_known,
        distributed: stands,
        leading: leads,
        progress,
    };
    tasks.spawn("the authority", keeper.keep());

    phase.send_replace(Phase::Serving);
    tracing::info!(address = %address(config.ports.grpc), "serving xDS and certificates");
    let result = tokio::select! {
        () = &mut shutdown => Ok(()),
        ended = tasks.ended() => Err(ended),
        _ = watches.join_next() => Err(Error::Ended("a watch")),
        _ = &mut server => Err(Error::Ended("the gRPC server")),
    };

    phase.send_replace(Phase::Stopping);
    stop.send_replace(true);
    // Without inputs the state ends, without the state the streams do, and without streams the server.
    watches.abort_all();
    let orderly = async {
        let _ = futures::future::join_all(elections).await;
        if result.is_ok() {
            let _ = (&mut server).await;
        }
    };
    if tokio::time::timeout(STOP_PATIENCE, orderly).await.is_err() {
        tracing::warn!("some clients did not let go in time");
        server.abort();
    }
    // Nothing listens any more when this returns.
    tasks.0.shutdown().await;
    result
}

/// Waits until every input has been listed once, and says now and then what is missing.
async fn first_sync(mut snapshots: watch::Receiver<Snapshot>) -> Result<(), Error> {
    loop {
        let synced = snapshots.wait_for(Snapshot::synced);
        match tokio::time::timeout(SYNC_REMINDER, synced).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(_)) => return Err(Error::Ended("the state")),
            Err(_) => {}
        }
        let waiting = snapshots.borrow().waiting_for.clone().unwrap_or_default().join(", ");
        tracing::warn!(waiting, "not serving yet: these inputs have not been listed");
    }
}

/// The gRPC services.
fn services(
    config: &Config,
    snapshots: watch::Receiver<Snapshot>,
    reviewer: Arc<dyn Reviewer>,
    authority: watch::Receiver<Option<Arc<Authority>>>,
    metrics: Arc<Metrics>,
    clients: Arc<Clients>,
) -> tonic::transport::server::Router {
    let trust_domain: Arc<str> = trust_domain(config).into();
    let authenticator = Authenticator::new(
        reviewer,
        config.cluster.clone(),
        trust_domain.to_string(),
        config.trusted_node_accounts.clone(),
        metrics.clone(),
    );
    let ads = AdsServer::new(snapshots.clone(), authenticator.clone(), metrics.clone(), clients);
    let ca = CaServer::new(authority, snapshots, authenticator, trust_domain, metrics);
    Server::builder()
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        // Streams end before, each at its own age.
        .max_connection_age(Duration::from_secs(40 * 60))
        .max_connection_age_grace(Duration::from_secs(10))
        .max_concurrent_streams(Some(10_000))
        .add_service(ads)
        .add_service(IstioCertificateServiceServer::new(ca))
}

/// `@` cannot stand in a trust domain; istiod writes a dot instead.
fn trust_domain(config: &Config) -> String {
    config.trust_domain.replace('@', ".")
}

fn settings(config: &Config) -> Settings {
    Settings {
        cluster: config.cluster.as_str().into(),
        trust_domain: trust_domain(config).into(),
        // The mesh configuration has them.
        trust_domain_aliases: [].into(),
        domain: config.domain.as_str().into(),
        root_namespace: config.namespace.as_str().into(),
        revision: config.revision.as_str().into(),
    }
}

/// The authority of the cluster. Permissions and the API itself may be a moment behind us when everything is
/// installed at once; both are waited for, for a while.
async fn authority(client: &Client, config: &Config) -> Result<(Source, Authority), Error> {
    let deadline = tokio::time::Instant::now() + START_PATIENCE;
    let trust_domain = trust_domain(config);
    let mut pause = Duration::from_millis(250);
    loop {
        let attempt = ca::load(client, config, &trust_domain);
        let error = match tokio::time::timeout_at(deadline, attempt).await {
            Ok(Ok(authority)) => return Ok(authority),
            Ok(Err(error @ (Error::Api { .. } | Error::Forbidden { .. }))) => error,
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                return Err(Error::Setting(format!(
                    "the Kubernetes API did not answer within {} seconds; is it reachable from this pod?",
                    START_PATIENCE.as_secs()
                )));
            }
        };
        if tokio::time::Instant::now() + pause >= deadline {
            return Err(error);
        }
        tracing::warn!(%error, "trying again");
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Keeps the serving certificate young, and follows the authority: what it signs, and whom it trusts.
async fn renew(
    serving: Arc<Serving>,
    mut authorities: watch::Receiver<Option<Arc<Authority>>>,
    renewed: watch::Sender<TlsAcceptor>,
) {
    let mut check = tokio::time::interval(CERTIFICATE_CHECK);
    authorities.mark_unchanged();
    loop {
        let replaced = tokio::select! {
            _ = check.tick() => false,
            changed = authorities.changed() => match changed {
                Ok(()) => true,
                Err(_) => return,
            },
        };
        let Some(authority) = authorities.borrow_and_update().clone() else { continue };
        let now = SystemTime::now();
        if replaced || serving.due(now) {
            match serving.renew(&authority, now) {
                Ok(()) => tracing::info!("serving certificate renewed"),
                Err(error) => tracing::error!(%error, "serving certificate not renewed, trying again"),
            }
        }
        if replaced {
            match serve::tls(serving.clone(), authority.root_bundle()) {
                Ok(tls) => drop(renewed.send_replace(tls)),
                Err(error) => {
                    tracing::error!(%error, "client certificates are judged by the roots of before")
                }
            }
        }
    }
}

async fn bind(address: SocketAddr, purpose: &'static str, flag: &'static str) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|source| listen_error(address, purpose, flag, source))
}

fn listen_error(
    address: SocketAddr,
    purpose: &'static str,
    flag: &'static str,
    source: std::io::Error,
) -> Error {
    Error::Listen { address, purpose, flag, source }
}

/// Tasks that must not end while the control plane runs. They are stopped when this is dropped.
#[derive(Default)]
struct Tasks(JoinSet<&'static str>);

impl Tasks {
    fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.0.spawn(async move {
            task.await;
            name
        });
    }

    /// When one has ended.
    async fn ended(&mut self) -> Error {
        match self.0.join_next().await {
            Some(Ok(name)) => Error::Ended(name),
            Some(Err(error)) => {
                tracing::error!(%error, "a task failed");
                Error::Ended("a task")
            }
            None => std::future::pending().await,
        }
    }
}
