//! The observer from start to end: what depends on what, in order.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use mesh::Identity;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::api::auth::{Gate, KubernetesReviewer};
use crate::certs::Authority;
use crate::cluster::Special;
use crate::ingest::{Ingest, Trust};
use crate::observer::Observer;
use crate::scrape::Named;
use crate::serve::serve;
use crate::store::Limits;
use crate::{api, certs, cluster, ingest, scrape};

/// How often the store looks for what is old.
const TICK: Duration = Duration::from_secs(10);

/// How the observer is set up.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Config {
    /// API and web UI. On anything but loopback, tokens are needed.
    pub api: SocketAddr,
    /// The flow stream of the node proxies.
    pub ingest: SocketAddr,
    /// `/metrics`, `/healthz` and `/readyz` alone.
    pub monitoring: SocketAddr,
    /// Who we are.
    pub identity: Identity,
    /// Namespaces that are not like others.
    pub special: Special,
    pub authority: Authority,
    pub trust: Trust,
    pub prometheis: Vec<Named>,
    pub limits: Limits,
}

/// Why the observer ends.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port cannot be had.
    #[error("cannot listen on {address} for {what}: {reason}; choose another with {flag}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What for.
        what: &'static str,
        /// What to change.
        flag: &'static str,
        /// Why.
        reason: std::io::Error,
    },
    /// Something ended that must not.
    #[error("{0} has ended unexpectedly")]
    Ended(&'static str),
}

async fn bind(address: SocketAddr, what: &'static str, flag: &'static str) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|reason| Error::Listen { address, what, flag, reason })
}

/// Runs until `shutdown`.
pub async fn run(
    config: Config,
    client: Client,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), Error> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let api_listener = bind(config.api, "the API", "--api-address").await?;
    let ingest_listener = bind(config.ingest, "flows", "--ingest-address").await?;
    let monitoring_listener = bind(config.monitoring, "monitoring", "--monitoring-address").await?;

    let observer = Arc::new(Observer::new(config.limits, Observer::wall_clock()));
    let (publish, configs) = watch::channel(None);
    let (found, candidates) = watch::channel(Vec::new());
    let ready: api::Ready = {
        let (observer, configs) = (observer.clone(), configs.clone());
        Arc::new(move || match (configs.borrow().is_some(), observer.directory().synced) {
            (true, true) => Ok(()),
            (false, _) => Err("no certificate yet, so no node proxy can report; see the log".into()),
            (_, false) => Err("pods, nodes and namespaces are not listed yet".into()),
        })
    };

    let mut tasks: JoinSet<&'static str> = JoinSet::new();
    let keep = certs::keep(config.authority.clone(), config.identity.clone(), publish);
    let watching = cluster::watch(client.clone(), observer.clone(), config.special.clone(), found);
    let polling = scrape::poll(observer.clone(), config.prometheis.clone(), candidates);
    tasks.spawn(async move { named(keep, "certificate renewal").await });
    tasks.spawn(async move { named(watching, "the watch of the cluster").await });
    tasks.spawn(async move { named(polling, "the polling of Prometheis").await });
    let ticking = observer.clone();
    tasks.spawn(async move {
        let mut clock = tokio::time::interval(TICK);
        loop {
            clock.tick().await;
            let observer = ticking.clone();
            if tokio::task::spawn_blocking(move || observer.tick()).await.is_err() {
                return "the clock of the store";
            }
        }
    });

    let (connections, accepted) = mpsc::channel(64);
    tasks.spawn(async move {
        named(ingest::accept(ingest_listener, configs, connections), "the flow port").await
    });
    let service = Ingest::service(observer.clone(), config.trust.clone());
    let server = Server::builder()
        .max_concurrent_streams(4)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .add_service(service)
        .serve_with_incoming(ReceiverStream::new(accepted));
    tasks.spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the flow server failed");
        }
        "the flow server"
    });

    let gate = if config.api.ip().is_loopback() {
        Gate::Open
    } else {
        Gate::tokens(Arc::new(KubernetesReviewer::new(client, observer.clone())))
    };
    let router = api::router(observer.clone(), gate, ready.clone());
    let monitoring = api::monitoring(observer, ready);
    tasks.spawn(serve(api_listener, router, "the API"));
    tasks.spawn(serve(monitoring_listener, monitoring, "the monitoring port"));
    tracing::info!(api = %config.api, ingest = %config.ingest, monitoring = %config.monitoring, "observing");

    // Live streams never end by themselves, so nothing is waited for: what is here is in memory only.
    tokio::select! {
        () = shutdown => Ok(()),
        ended = tasks.join_next() => {
            let what = ended.and_then(Result::ok).unwrap_or("a task");
            Err(Error::Ended(what))
        }
    }
}

async fn named(work: impl Future<Output = ()>, name: &'static str) -> &'static str {
    work.await;
    name
}
