//! Tunnels kept for reuse, one pool a pod (reference/data-plane.md §2 "Pool").
//!
//! A tunnel is shared by calls of one source to one hop with the same expected identities. The first callers of a
//! cold key wait for a single handshake; once the peer's limit of streams is known, as many tunnels are added as the
//! waiting calls need. Dialling happens in tasks of its own, so a slow or dead hop delays its own callers only.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hbone::{HandshakeError, Tunnel};
use mesh::{Identity, ResponseFlag};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::certs::CertError;
use crate::sockets::{CONNECT_TIMEOUT, ConnectError};

/// Beyond this many tunnels to one hop calls wait for a stream to end.
const MAX_TUNNELS: usize = 256;
/// Connecting, TLS and HTTP/2 at their limits, and a little.
const MAX_WAIT: Duration = Duration::from_secs(35);
/// A burst's surplus tunnels are not kept as long as the last one.
const SURPLUS_IDLE: Duration = Duration::from_secs(10);

/// What tunnels are kept by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub(crate) struct Key {
    pub(crate) source: Identity,
    pub(crate) expected: Vec<Identity>,
    pub(crate) source_ip: IpAddr,
    pub(crate) hop: SocketAddr,
}

/// Why there is no tunnel.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum PoolError {
    #[error("no certificate: {0}")]
    Certificate(#[from] CertError),
    #[error("{0}")]
    Connect(Arc<ConnectError>),
    #[error(
        "connection timed out, maybe a NetworkPolicy is blocking HBONE port 15008: {0} did not answer within \
         {CONNECT_TIMEOUT:?}"
    )]
    Timeout(SocketAddr),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("all {MAX_TUNNELS} tunnels to {0} are full and no stream ended within {MAX_WAIT:?}")]
    Exhausted(SocketAddr),
    #[error("{0} allows no streams in its tunnels")]
    NoStreams(SocketAddr),
    #[error("the pod is being removed")]
    Closed,
}

impl PoolError {
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Certificate(_) => "no_certificate",
            Self::Connect(_) => "connect_failed",
            Self::Timeout(_) => "tunnel_timeout",
            Self::Handshake(error) => error.code(),
            Self::Exhausted(_) | Self::NoStreams(_) => "no_streams",
            Self::Closed => "pod_removed",
        }
    }

    pub(crate) fn flag(&self) -> ResponseFlag {
        match self {
            Self::Certificate(_) => ResponseFlag::IdentityError,
            Self::Timeout(_) => ResponseFlag::NetworkPolicy,
            Self::Handshake(error) => error.flag(),
            Self::Connect(_) | Self::Exhausted(_) => ResponseFlag::Connect,
            Self::NoStreams(_) => ResponseFlag::H2HandshakeFailure,
            Self::Closed => ResponseFlag::None,
        }
    }
}

/// The tunnels of one pod. Clones share them.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Inner>);

/// Makes a new tunnel. Bounded in time.
pub(crate) type Dial =
    Box<dyn Fn(Arc<Key>) -> Pin<Box<dyn Future<Output = Result<Tunnel, PoolError>> + Send>> + Send + Sync>;

struct Inner {
    dial: Dial,
    max_streams: usize,
    idle: Duration,
    stop: CancellationToken,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    by_key: HashMap<Arc<Key>, Slot>,
    next_id: u64,
}

#[derive(Default)]
struct Slot {
    tunnels: Vec<Entry>,
    waiting: VecDeque<oneshot::Sender<Result<Lease, PoolError>>>,
    dialing: usize,
    /// Streams that the peer allowed last.
    learned: Option<usize>,
}

struct Entry {
    id: u64,
    tunnel: Tunnel,
    streams: usize,
    idle_since: Instant,
}

/// The right to one stream in a tunnel; gives it back when dropped.
pub(crate) struct Lease {
    inner: Arc<Inner>,
    key: Arc<Key>,
    id: u64,
    pub(crate) tunnel: Tunnel,
}

/// What is to be done once the lock is released: leases handed out under it would lock again when refused.
#[derive(Default)]
struct Outcome {
    grants: Vec<(oneshot::Sender<Result<Lease, PoolError>>, Lease)>,
    dials: usize,
}

impl Pool {
    pub(crate) fn new(dial: Dial, max_streams: usize, idle: Duration, stop: CancellationToken) -> Self {
        Self(Arc::new(Inner { dial, max_streams, idle, stop, slots: Mutex::default() }))
    }

    /// A stream's place in a tunnel, new or kept.
    pub(crate) async fn acquire(&self, key: Key) -> Result<Lease, PoolError> {
        let inner = &self.0;
        let hop = key.hop;
        let key = Arc::new(key);
        let answer = {
            let mut slots = inner.slots.lock();
            let key = match slots.by_key.get_key_value(&key) {
                Some((known, _)) => known.clone(),
                None => key,
            };
            let slot = slots.by_key.entry(key.clone()).or_default();
            if let Some(lease) = slot.lease(inner, &key) {
                return Ok(lease);
            }
            let (waiter, answer) = oneshot::channel();
            slot.waiting.push_back(waiter);
            let dials = slot.plan_dials(inner.max_streams);
            drop(slots);
            inner.add_tunnels(&key, dials);
            answer
        };
        match tokio::time::timeout(MAX_WAIT, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(PoolError::Closed),
            Err(_) => Err(PoolError::Exhausted(hop)),
        }
    }

    /// Lets go of tunnels that have been unused for long, as of `now`.
    pub(crate) fn sweep(&self, now: Instant) {
        let mut closing = Vec::new();
        let mut slots = self.0.slots.lock();
        slots.by_key.retain(|_, slot| {
            let mut kept = 0;
            slot.tunnels.sort_by_key(|entry| std::cmp::Reverse(entry.streams));
            slot.tunnels.retain_mut(|entry| {
                let limit = if kept == 0 { self.0.idle } else { SURPLUS_IDLE };
                let keep = entry.streams > 0 || now.saturating_duration_since(entry.idle_since) < limit;
                if keep {
                    kept += 1;
                } else {
                    closing.push(entry.tunnel.clone());
                }
                keep
            });
            slot.waiting.retain(|waiter| !waiter.is_closed());
            !(slot.tunnels.is_empty() && slot.waiting.is_empty() && slot.dialing == 0)
        });
        drop(slots);
        drop(closing);
    }

    /// Cuts tunnels whose peer's certificate has been revoked.
    pub(crate) fn cut_revoked(&self) {
        let tunnels: Vec<Tunnel> = {
            let slots = self.0.slots.lock();
            slots.by_key.values().flat_map(|slot| &slot.tunnels).map(|entry| entry.tunnel.clone()).collect()
        };
        for tunnel in tunnels.iter().filter(|tunnel| tunnel.is_revoked()) {
            tracing::warn!(peer = %tunnel.peer(), identity = %tunnel.identity(), "certificate revoked, tunnel cut");
            tunnel.cut();
        }
    }

    /// Tunnels that exist.
    #[cfg(test)]
    pub(crate) fn tunnels(&self) -> usize {
        self.0.slots.lock().by_key.values().map(|slot| slot.tunnels.len()).sum()
    }

    /// Lets go of everything.
    pub(crate) fn clear(&self) {
        let slots = std::mem::take(&mut self.0.slots.lock().by_key);
        drop(slots);
    }
}

impl Slot {
    fn limit(entry: &Entry, max_streams: usize) -> usize {
        entry.tunnel.max_streams().min(max_streams)
    }

    /// The fullest tunnel that has room, so that others can run empty.
    fn lease(&mut self, inner: &Arc<Inner>, key: &Arc<Key>) -> Option<Lease> {
        self.tunnels.retain(|entry| !entry.tunnel.is_closed());
        let room = |entry: &&mut Entry| entry.streams < Self::limit(entry, inner.max_streams);
        let entry = self.tunnels.iter_mut().filter(room).max_by_key(|entry| entry.streams)?;
        entry.streams += 1;
        Some(Lease { inner: inner.clone(), key: key.clone(), id: entry.id, tunnel: entry.tunnel.clone() })
    }

    /// Hands places to those who wait.
    fn dispatch(&mut self, inner: &Arc<Inner>, key: &Arc<Key>) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some(waiter) = self.waiting.pop_front() {
            if waiter.is_closed() {
                continue;
            }
            match self.lease(inner, key) {
                Some(lease) => outcome.grants.push((waiter, lease)),
                None => {
                    self.waiting.push_front(waiter);
                    break;
                }
            }
        }
        outcome.dials = self.plan_dials(inner.max_streams);
        outcome
    }

    /// How many more tunnels those who wait need, counted as being dialled from now on.
    fn plan_dials(&mut self, max_streams: usize) -> usize {
        let each = self.learned.unwrap_or(max_streams).min(max_streams).max(1);
        let cold = self.tunnels.is_empty();
        let wanted = self.waiting.len().div_ceil(each).min(if cold { 1 } else { MAX_TUNNELS });
        let room = MAX_TUNNELS.saturating_sub(self.tunnels.len() + self.dialing);
        let more = wanted.saturating_sub(self.dialing).min(room);
        self.dialing += more;
        more
    }
}

impl Inner {
    fn add_tunnels(self: &Arc<Self>, key: &Arc<Key>, count: usize) {
        for _ in 0..count {
            let (inner, key) = (self.clone(), key.clone());
            tokio::spawn(async move {
                let stop = inner.stop.clone();
                // A removed pod needs no more tunnels.
                let _ = stop.run_until_cancelled(inner.keep_one(key)).await;
            });
        }
    }

    /// Dials one tunnel and stays with it until it is gone.
    async fn keep_one(self: Arc<Self>, key: Arc<Key>) {
        match (self.dial)(key.clone()).await {
            Ok(tunnel) => {
                let closed = tunnel.closed();
                let id = self.add(&key, tunnel);
                closed.await;
                self.remove(&key, id);
            }
            Err(error) => self.failed(&key, &error),
        }
    }

    fn add(self: &Arc<Self>, key: &Arc<Key>, tunnel: Tunnel) -> u64 {
        let mut slots = self.slots.lock();
        slots.next_id += 1;
        let id = slots.next_id;
        let slot = slots.by_key.entry(key.clone()).or_default();
        slot.dialing = slot.dialing.saturating_sub(1);
        let allowed = tunnel.max_streams();
        slot.learned = Some(allowed);
        let refused = if allowed == 0 { std::mem::take(&mut slot.waiting) } else { VecDeque::new() };
        slot.tunnels.push(Entry { id, tunnel, streams: 0, idle_since: Instant::now() });
        let outcome = slot.dispatch(self, key);
        drop(slots);
        for waiter in refused {
            let _ = waiter.send(Err(PoolError::NoStreams(key.hop)));
        }
        self.carry_out(key, outcome);
        id
    }

    fn failed(self: &Arc<Self>, key: &Arc<Key>, error: &PoolError) {
        let mut slots = self.slots.lock();
        let Some(slot) = slots.by_key.get_mut(key) else { return };
        slot.dialing = slot.dialing.saturating_sub(1);
        // As long as another dial is under way there is hope.
        let waiting = if slot.dialing == 0 { std::mem::take(&mut slot.waiting) } else { VecDeque::new() };
        if slot.tunnels.is_empty() && slot.dialing == 0 && slot.waiting.is_empty() {
            slots.by_key.remove(key);
        }
        drop(slots);
        for waiter in waiting {
            let _ = waiter.send(Err(error.clone()));
        }
    }

    fn carry_out(self: &Arc<Self>, key: &Arc<Key>, outcome: Outcome) {
        for (waiter, lease) in outcome.grants {
            // Who no longer waits leaves the lease behind, and its drop passes it on.
            let _ = waiter.send(Ok(lease));
        }
        self.add_tunnels(key, outcome.dials);
    }

    fn release(self: &Arc<Self>, key: &Arc<Key>, id: u64) {
        let mut slots = self.slots.lock();
        let Some(slot) = slots.by_key.get_mut(key) else { return };
        if let Some(entry) = slot.tunnels.iter_mut().find(|entry| entry.id == id) {
            entry.streams = entry.streams.saturating_sub(1);
            entry.idle_since = Instant::now();
        }
        if slot.waiting.is_empty() {
            return;
        }
        let outcome = slot.dispatch(self, key);
        drop(slots);
        self.carry_out(key, outcome);
    }

    fn remove(self: &Arc<Self>, key: &Arc<Key>, id: u64) {
        let mut slots = self.slots.lock();
        let Some(slot) = slots.by_key.get_mut(key) else { return };
        slot.tunnels.retain(|entry| entry.id != id);
        let outcome = slot.dispatch(self, key);
        if slot.tunnels.is_empty() && slot.dialing == 0 && slot.waiting.is_empty() {
            slots.by_key.remove(key);
        }
        drop(slots);
        self.carry_out(key, outcome);
    }
}

impl Lease {
    /// The tunnel takes no more streams: nobody shall be sent there again.
    pub(crate) fn retire(self) {
        self.inner.remove(&self.key, self.id);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.inner.release(&self.key, self.id);
    }
}

#[cfg(test)]
mod tests;
