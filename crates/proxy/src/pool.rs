//! Tunnels kept for reuse, one pool a pod (reference/data-plane.md §2 "Pool").
//!
//! A tunnel is shared by calls of one source to one hop with the same expected identities. The first callers of a
//! cold key wait for a single handshake; once the peer's limit of streams is known, as many tunnels are added as the
//! waiting calls need. Dialling happens in tasks of its own, so a slow or dead hop delays its own callers only.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hbone::HandshakeError;
use mesh::{Identity, ResponseFlag};
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

/// What can be kept.
pub(crate) trait Tunnel: Clone + 'static {
    /// Streams that the peer allows at once, at this moment.
    fn max_streams(&self) -> usize;
    fn is_closed(&self) -> bool;
    /// Waits until it is gone.
    fn closed(&self) -> impl Future<Output = ()> + 'static;
    /// Whether the peer's certificate has been revoked since.
    fn is_revoked(&self) -> bool;
    /// Ends it and all its streams at once.
    fn cut(&self);
    fn identity(&self) -> &Identity;
    fn peer(&self) -> SocketAddr;
}

/// The tunnels of one pod. Clones share them.
pub(crate) struct Pool<T: Tunnel>(Rc<Inner<T>>);

impl<T: Tunnel> Clone for Pool<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Work that goes on by itself, on this thread.
pub(crate) type Work = Pin<Box<dyn Future<Output = ()>>>;

/// Makes a tunnel. Bounded in time.
pub(crate) type Dial<T> = Box<dyn Fn(Rc<Key>) -> Pin<Box<dyn Future<Output = Result<T, PoolError>>>>>;

/// How tunnels are made, and who does it.
pub(crate) struct Dialler<T> {
    pub(crate) dial: Dial<T>,
    pub(crate) spawn: Box<dyn Fn(Work)>,
}

struct Inner<T: Tunnel> {
    dialler: Dialler<T>,
    max_streams: usize,
    idle: Duration,
    stop: CancellationToken,
    slots: RefCell<Slots<T>>,
}

struct Slots<T: Tunnel> {
    by_key: HashMap<Rc<Key>, Slot<T>>,
    next_id: u64,
}

struct Slot<T: Tunnel> {
    tunnels: Vec<Entry<T>>,
    waiting: VecDeque<oneshot::Sender<Result<Lease<T>, PoolError>>>,
    dialing: usize,
    /// Streams that the peer allowed last.
    learned: Option<usize>,
}

impl<T: Tunnel> Default for Slot<T> {
    fn default() -> Self {
        Self { tunnels: Vec::new(), waiting: VecDeque::new(), dialing: 0, learned: None }
    }
}

struct Entry<T> {
    id: u64,
    tunnel: T,
    streams: usize,
    idle_since: Instant,
}

/// The right to one stream in a tunnel; gives it back when dropped.
pub(crate) struct Lease<T: Tunnel> {
    inner: Rc<Inner<T>>,
    key: Rc<Key>,
    id: u64,
    pub(crate) tunnel: T,
}

/// What is to be done once the lock is released: leases handed out under it would lock again when refused.
/// Who waits, and what he gets.
type Grant<T> = (oneshot::Sender<Result<Lease<T>, PoolError>>, Lease<T>);

struct Outcome<T: Tunnel> {
    grants: Vec<Grant<T>>,
    dials: usize,
}

impl<T: Tunnel> Pool<T> {
    pub(crate) fn new(
        dialler: Dialler<T>,
        max_streams: usize,
        idle: Duration,
        stop: CancellationToken,
    ) -> Self {
        let slots = RefCell::new(Slots { by_key: HashMap::new(), next_id: 0 });
        Self(Rc::new(Inner { dialler, max_streams, idle, stop, slots }))
    }

    /// A stream's place in a tunnel, new or kept.
    pub(crate) async fn acquire(&self, key: Key) -> Result<Lease<T>, PoolError> {
        let inner = &self.0;
        let hop = key.hop;
        let key = Rc::new(key);
        let answer = {
            let mut slots = inner.slots.borrow_mut();
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
        let mut slots = self.0.slots.borrow_mut();
        slots.by_key.retain(|_, slot| {
            let mut kept = 0;
            slot.tunnels.sort_by_key(|entry| std::cmp::Reverse(entry.streams));
            slot.tunnels.retain_mut(|entry| {
                let limit = if kept == 0 { self.0.idle } else { SURPLUS_IDLE.min(self.0.idle) };
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
        let tunnels: Vec<T> = {
            let slots = self.0.slots.borrow_mut();
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
        self.0.slots.borrow_mut().by_key.values().map(|slot| slot.tunnels.len()).sum()
    }

    /// Lets go of everything.
    pub(crate) fn clear(&self) {
        let slots = std::mem::take(&mut self.0.slots.borrow_mut().by_key);
        drop(slots);
    }
}

impl<T: Tunnel> Slot<T> {
    fn limit(entry: &Entry<T>, max_streams: usize) -> usize {
        entry.tunnel.max_streams().min(max_streams)
    }

    /// The fullest tunnel that has room, so that others can run empty.
    fn lease(&mut self, inner: &Rc<Inner<T>>, key: &Rc<Key>) -> Option<Lease<T>> {
        self.tunnels.retain(|entry| !entry.tunnel.is_closed());
        let room = |entry: &&mut Entry<T>| entry.streams < Self::limit(entry, inner.max_streams);
        let entry = self.tunnels.iter_mut().filter(room).max_by_key(|entry| entry.streams)?;
        entry.streams += 1;
        Some(Lease { inner: inner.clone(), key: key.clone(), id: entry.id, tunnel: entry.tunnel.clone() })
    }

    /// Hands places to those who wait.
    fn dispatch(&mut self, inner: &Rc<Inner<T>>, key: &Rc<Key>) -> Outcome<T> {
        let mut outcome = Outcome { grants: Vec::new(), dials: 0 };
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

impl<T: Tunnel> Inner<T> {
    fn add_tunnels(self: &Rc<Self>, key: &Rc<Key>, count: usize) {
        for _ in 0..count {
            let (inner, key) = (self.clone(), key.clone());
            (self.dialler.spawn)(Box::pin(async move {
                let stop = inner.stop.clone();
                // A removed pod needs no more tunnels.
                let _ = stop.run_until_cancelled(inner.keep_one(key)).await;
            }));
        }
    }

    /// Dials one tunnel and stays with it until it is gone.
    async fn keep_one(self: Rc<Self>, key: Rc<Key>) {
        match (self.dialler.dial)(key.clone()).await {
            Ok(tunnel) => {
                let closed = tunnel.closed();
                let id = self.add(&key, tunnel);
                closed.await;
                self.remove(&key, id);
            }
            Err(error) => self.failed(&key, &error),
        }
    }

    fn add(self: &Rc<Self>, key: &Rc<Key>, tunnel: T) -> u64 {
        let mut slots = self.slots.borrow_mut();
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

    fn failed(self: &Rc<Self>, key: &Rc<Key>, error: &PoolError) {
        let mut slots = self.slots.borrow_mut();
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

    fn carry_out(self: &Rc<Self>, key: &Rc<Key>, outcome: Outcome<T>) {
        for (waiter, lease) in outcome.grants {
            // Who no longer waits leaves the lease behind, and its drop passes it on.
            let _ = waiter.send(Ok(lease));
        }
        self.add_tunnels(key, outcome.dials);
    }

    fn release(self: &Rc<Self>, key: &Rc<Key>, id: u64) {
        let mut slots = self.slots.borrow_mut();
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

    fn remove(self: &Rc<Self>, key: &Rc<Key>, id: u64) {
        let mut slots = self.slots.borrow_mut();
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

impl<T: Tunnel> Lease<T> {
    /// The tunnel takes no more streams: nobody shall be sent there again.
    pub(crate) fn retire(self) {
        self.inner.remove(&self.key, self.id);
    }
}

impl<T: Tunnel> Drop for Lease<T> {
    fn drop(&mut self) {
        self.inner.release(&self.key, self.id);
    }
}

#[cfg(test)]
mod tests;
