//! The certificates of this node's workloads: fetched before the first byte needs them, renewed at half life, kept
//! while the authority is away, forgotten when the last workload of an identity leaves. Keys live in memory only.

mod ca;
mod roots;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hbone::Credential;
use mesh::Identity;
use parking_lot::Mutex;
use tokio::sync::{AcquireError, Notify, Semaphore, SemaphorePermit, watch};
use tokio::task::AbortHandle;

use crate::config::{Config, Root};
use crate::grpc::Connector;
use ca::Authority;

/// Requests to the authority at once: for what will be needed, and, beside them, for what a connection waits for.
const IN_FLIGHT: usize = 6;
const URGENT: usize = 2;
/// How long a connection waits for the very first certificate of an identity.
const FIRST_WAIT: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(150);
/// Over how long the renewals of a node are spread that a change of roots asks for.
const SPREAD: Duration = Duration::from_secs(5);

/// Why there is no certificate.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CertError {
    /// The authority did not give one.
    #[error("certificate authority {address}: {reason}")]
    Authority {
        /// The authority.
        address: String,
        /// What happened.
        reason: String,
    },
    /// It has expired, and renewal failed.
    #[error("certificate expired for {identity}; renewal failing because: {reason}")]
    Expired {
        /// Whose.
        identity: Identity,
        /// Why there is no newer one.
        reason: String,
    },
    /// Not there yet.
    #[error("no certificate for {identity} within {FIRST_WAIT:?}")]
    Timeout {
        /// Whose.
        identity: Identity,
    },
}

/// What is known of the certificate of one identity.
#[derive(Clone, Debug)]
pub enum State {
    /// Asked for the first time.
    Initializing,
    /// There is one, and its renewal may be failing.
    Available(Arc<Credential>, Option<Failing>),
    /// There is none.
    Unavailable(CertError),
}

/// That a certificate cannot be renewed.
#[derive(Clone, Debug)]
pub struct Failing {
    /// Since when.
    pub since: SystemTime,
    /// Why, the last time.
    pub reason: String,
}

/// All certificates. Clones share them.
#[derive(Clone)]
pub struct Certs(Arc<Inner>);

struct Inner {
    authority: Arc<Authority>,
    turns: Arc<Turns>,
    /// That the authority's roots have changed.
    roots: watch::Receiver<()>,
    entries: Mutex<BTreeMap<Identity, Entry>>,
}

/// Who may ask the authority now: thousands of certificates that are fetched ahead of time must not keep a connection
/// waiting.
struct Turns {
    ahead: Semaphore,
    urgent: Semaphore,
}

struct Entry {
    state: watch::Receiver<State>,
    /// A connection waits for it.
    urgent: Arc<Notify>,
    task: AbortHandle,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Certs {
    /// Certificates from the authority that `config` names.
    pub fn new(config: &Config) -> Self {
        let connector = Connector::new(config.ca.clone(), config.cluster_id.clone());
        let (changed, roots) = watch::channel(());
        if let Root::File(path) = &config.ca.root {
            tokio::spawn(roots::follow(path.clone(), changed));
        }
        Self(Arc::new(Inner {
            authority: Arc::new(Authority::new(connector, config.secret_ttl)),
            turns: Arc::new(Turns { ahead: Semaphore::new(IN_FLIGHT), urgent: Semaphore::new(URGENT) }),
            roots,
            entries: Mutex::default(),
        }))
    }

    /// The identities that this node needs from now on; others are forgotten.
    pub fn want(&self, identities: &BTreeSet<Identity>) {
        let mut entries = self.0.entries.lock();
        let gone: Vec<Identity> =
            entries.keys().filter(|known| !identities.contains(known)).cloned().collect();
        for identity in gone {
            entries.remove(&identity);
        }
        for identity in identities {
            self.entry(&mut entries, identity);
        }
    }

    fn entry(&self, entries: &mut BTreeMap<Identity, Entry>, identity: &Identity) -> watch::Receiver<State> {
        if let Some(entry) = entries.get(identity) {
            return entry.state.clone();
        }
        let (publish, state) = watch::channel(State::Initializing);
        let urgent = Arc::new(Notify::new());
        let keep = keep(self.0.source(&urgent), identity.clone(), publish);
        let task = tokio::spawn(keep).abort_handle();
        entries.insert(identity.clone(), Entry { state: state.clone(), urgent, task });
        state
    }

    /// A valid certificate for `identity`. Waits, bounded, only while the first one is being fetched.
    pub async fn get(&self, identity: &Identity) -> Result<Arc<Credential>, CertError> {
        let mut state = {
            let mut entries = self.0.entries.lock();
            let state = self.entry(&mut entries, identity);
            if matches!(*state.borrow(), State::Initializing)
                && let Some(entry) = entries.get(identity)
            {
                entry.urgent.notify_one();
            }
            state
        };
        let timeout = || CertError::Timeout { identity: identity.clone() };
        let settled = state.wait_for(|state| !matches!(state, State::Initializing));
        let settled = tokio::time::timeout(FIRST_WAIT, settled).await.map_err(|_| timeout())?;
        match &*settled.map_err(|_| timeout())? {
            State::Available(credential, failing) => {
                if credential.validity().holds_at(SystemTime::now()) {
                    return Ok(credential.clone());
                }
                let reason = match failing {
                    Some(failing) => failing.reason.clone(),
                    None => "it is being renewed".into(),
                };
                Err(CertError::Expired { identity: identity.clone(), reason })
            }
            State::Unavailable(error) => Err(error.clone()),
            State::Initializing => Err(timeout()),
        }
    }

    /// All identities and their state, for dumps.
    pub fn snapshot(&self) -> Vec<(Identity, State)> {
        let entries = self.0.entries.lock();
        entries.iter().map(|(identity, entry)| (identity.clone(), entry.state.borrow().clone())).collect()
    }
}

impl Inner {
    fn source(&self, urgent: &Arc<Notify>) -> Source {
        Source {
            authority: self.authority.clone(),
            turns: self.turns.clone(),
            roots: self.roots.clone(),
            urgent: urgent.clone(),
        }
    }
}

/// What is needed to fetch the certificate of one identity, and to know when.
struct Source {
    authority: Arc<Authority>,
    turns: Arc<Turns>,
    roots: watch::Receiver<()>,
    urgent: Arc<Notify>,
}

/// Fetches and renews the certificate of one identity for as long as somebody holds its state.
async fn keep(mut source: Source, identity: Identity, publish: watch::Sender<State>) {
    let mut retry = FIRST_RETRY;
    let mut current: Option<Arc<Credential>> = None;
    let mut failing_since = None;
    while !publish.is_closed() {
        // A change while the certificate is being fetched calls for another one.
        source.roots.mark_unchanged();
        let result = {
            let Ok(_turn) = source.turns.mine(&source.urgent).await else { return };
            source.authority.issue(&identity).await
        };
        let pause = match result {
            Ok(credential) => {
                (retry, failing_since) = (FIRST_RETRY, None);
                let credential = Arc::new(credential);
                let pause = renewal(credential.validity().not_after, SystemTime::now(), rand::random());
                tracing::info!(%identity, next_in = ?pause, "certificate issued");
                current = Some(credential.clone());
                publish.send_replace(State::Available(credential, None));
                pause
            }
            Err(error) => {
                let valid = current.clone().filter(|held| held.validity().holds_at(SystemTime::now()));
                match valid {
                    Some(held) => {
                        tracing::warn!(%identity, %error, "renewal failed, the certificate is still valid");
                        let since = *failing_since.get_or_insert_with(SystemTime::now);
                        let failing = Failing { since, reason: error.to_string() };
                        publish.send_replace(State::Available(held, Some(failing)));
                    }
                    None => {
                        tracing::error!(%identity, %error, "no certificate");
                        let error = match current.take() {
                            Some(_) => {
                                CertError::Expired { identity: identity.clone(), reason: error.to_string() }
                            }
                            None => error,
                        };
                        publish.send_replace(State::Unavailable(error));
                    }
                }
                let pause = jitter(retry, rand::random());
                retry = (retry * 2).min(LAST_RETRY);
                // The back-off must not outlast the certificate that it is to replace.
                match &current {
                    Some(held) => pause.min(renewal(held.validity().not_after, SystemTime::now(), 0)),
                    None => pause,
                }
            }
        };
        let changed = async {
            if source.roots.changed().await.is_err() {
                // Nobody looks: the roots are in no file.
                std::future::pending::<()>().await;
            }
            tokio::time::sleep(SPREAD.mul_f64(rand::random())).await;
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = changed => {}
            () = publish.closed() => return,
        }
    }
}

impl Turns {
    async fn mine(&self, urgent: &Notify) -> Result<SemaphorePermit<'_>, AcquireError> {
        tokio::select! {
            biased;
            turn = self.ahead.acquire() => turn,
            () = urgent.notified() => self.urgent.acquire().await,
        }
    }
}

/// When half of what is left of a certificate's life is over, up to a tenth earlier, so that a node's certificates
/// are not all renewed at once.
fn renewal(not_after: SystemTime, now: SystemTime, random: u32) -> Duration {
    let left = not_after.duration_since(now).unwrap_or_default();
    let half = left / 2;
    let early = half.mul_f64(0.1 * f64::from(random) / f64::from(u32::MAX));
    (half - early).max(Duration::from_secs(1))
}

/// ±20 %.
fn jitter(pause: Duration, random: u32) -> Duration {
    pause.mul_f64(0.8 + 0.4 * f64::from(random) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests;
