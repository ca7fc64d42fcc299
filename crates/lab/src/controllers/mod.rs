//! The controllers of a cluster: what `kube-controller-manager` and `kube-scheduler` do, as far as a lab needs it.
//!
//! They turn Deployments into pods, give pods nodes, Services endpoints and namespaces an end. They are plain
//! clients of the Kubernetes API and know nothing of the one that the lab keeps in memory, so they can run
//! against any. Every controller watches, acts on keys, decides in a pure function and converges whatever it
//! missed; it never writes an object that is already as it should be.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod children;
mod daemon_set;
mod deployment;
mod endpoints;
mod gc;
mod hub;
mod job;
mod namespace;
mod node;
mod objects;
mod pods;
mod queue;
mod replica_set;
mod scheduler;
mod stateful_set;

use hub::{Change, Hub, Key};
use queue::{Next, Outcome, Queue};

/// What the controllers cannot find out by themselves.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The CA of the API server in PEM, put into every namespace as `kube-root-ca.crt`; none, no such ConfigMap.
    pub root_ca: Option<String>,
    /// Ends [`run`] when cancelled.
    pub stop: CancellationToken,
}

/// How long a whole first look at the cluster may take.
const FIRST_SYNC: Duration = Duration::from_secs(60);

/// Runs all controllers until `config.stop` is cancelled.
///
/// # Errors
/// If the API does not answer the first lists within a minute: an API that is not there at all is the caller's
/// affair. Later interruptions are waited out.
pub async fn run(client: kube::Client, config: Config) -> anyhow::Result<()> {
    let hub = Arc::new(Hub::new(client));
    let mut tasks = JoinSet::new();
    let mut sinks: Vec<hub::Sink> = Vec::new();
    let mut starts: Vec<futures::future::BoxFuture<'static, ()>> = Vec::new();

    macro_rules! controllers {
        ($($controller:expr),* $(,)?) => {
            $(
                let driver = Arc::new(Driver::new($controller));
                sinks.push({
                    let driver = driver.clone();
                    Arc::new(move |hub: &Hub, change: &Change| driver.notice(hub, change))
                });
                starts.push(Box::pin(driver.drive(hub.clone())));
            )*
        };
    }
    controllers![
        namespace::Controller { root_ca: config.root_ca.clone() },
        scheduler::Controller::default(),
        replica_set::Controller,
        deployment::Controller,
        daemon_set::Controller,
        stateful_set::Controller,
        job::Controller,
        endpoints::Controller,
        node::Controller,
        node::Abandoned,
    ];

    let (synced, mut sync) = mpsc::channel(1);
    let fan_out: hub::Sink = Arc::new(move |hub, change| sinks.iter().for_each(|sink| sink(hub, change)));
    tasks.spawn(hub.clone().watch(fan_out, synced));
    let whole = async {
        for _ in 0..Hub::KINDS {
            sync.recv().await;
        }
    };
    tokio::select! {
        () = config.stop.cancelled() => return Ok(()),
        whole = tokio::time::timeout(FIRST_SYNC, whole) => {
            whole.context("the Kubernetes API did not answer the controllers' first lists within a minute")?;
        }
    }
    for start in starts {
        tasks.spawn(start);
    }
    tasks.spawn(gc::run(hub.client.clone()));
    tracing::info!("controllers running");

    tokio::select! {
        () = config.stop.cancelled() => Ok(()),
        // None of the tasks ends by itself, so one that did has panicked.
        ended = tasks.join_next() => match ended {
            Some(Err(error)) => Err(anyhow::Error::new(error).context("a controller failed")),
            _ => anyhow::bail!("a controller ended unexpectedly"),
        },
    }
}

/// One controller: which keys a change concerns, and how to bring a key to its desired state.
trait Controller: Send + Sync + 'static {
    /// As it appears in logs.
    const NAME: &'static str;
    /// How many keys are worked on at once.
    const WORKERS: usize = 4;

    /// The keys that a change makes worth a look. Called for every change, so it must be cheap.
    fn keys(&self, hub: &Hub, change: &Change) -> Vec<Key>;

    /// Brings one key to its desired state. `Some(delay)` asks for another look after that long.
    fn reconcile(
        &self,
        hub: &Hub,
        key: &Key,
    ) -> impl Future<Output = anyhow::Result<Option<Duration>>> + Send;
}

/// A controller with its queue.
struct Driver<C> {
    controller: C,
    queue: Mutex<Queue<Key>>,
    wake: Notify,
}

impl<C: Controller> Driver<C> {
    fn new(controller: C) -> Self {
        Driver { controller, queue: Mutex::default(), wake: Notify::new() }
    }

    fn notice(&self, hub: &Hub, change: &Change) {
        let keys = self.controller.keys(hub, change);
        if !keys.is_empty() {
            let mut queue = self.queue.lock();
            keys.into_iter().for_each(|key| queue.add(key));
            self.wake.notify_one();
        }
    }

    /// Works for ever.
    async fn drive(self: Arc<Self>, hub: Arc<Hub>) {
        let mut running = JoinSet::new();
        loop {
            let mut until = None;
            while running.len() < C::WORKERS {
                // A guard inside the pattern would live as long as the match.
                let next = self.queue.lock().take(Instant::now());
                match next {
                    Next::Key(key) => {
                        let (this, hub) = (self.clone(), hub.clone());
                        running.spawn(async move { this.work(&hub, key).await });
                    }
                    Next::At(at) => {
                        until = Some(at);
                        break;
                    }
                    Next::Idle => break,
                }
            }
            let due = async {
                match until {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.wake.notified() => {}
                () = due => {}
                Some(ended) = running.join_next() => if let Err(error) = ended {
                    tracing::error!(controller = C::NAME, %error, "work on a key panicked");
                },
            }
        }
    }

    async fn work(&self, hub: &Hub, key: Key) {
        let outcome = match self.controller.reconcile(hub, &key).await {
            Ok(None) => Outcome::Settled,
            Ok(Some(delay)) => Outcome::Again(delay),
            Err(error) => {
                if objects::is_race(&error) {
                    tracing::debug!(controller = C::NAME, %key, error = format!("{error:#}"), "lost a race");
                } else {
                    tracing::warn!(controller = C::NAME, %key, error = format!("{error:#}"), "cannot reconcile");
                }
                Outcome::Failed
            }
        };
        self.queue.lock().done(&key, outcome, Instant::now());
        self.wake.notify_one();
    }
}
