//! The ZDS server: tells the node proxies which pods are theirs and hands over the pods' network namespaces.
//!
//! [`Zds`] holds the wanted workloads, one entry a pod; every connected proxy is brought to that list by a
//! snapshot and kept there by changes, each answered by exactly one ack (`enrolment.md` §5). Where the reference
//! leaves a trap we do not: changes go to *all* proxies, a late ack ends its connection instead of being credited
//! to the next message, a proxy counts only once it has taken its snapshot, and an entry knows which proxies have
//! taken it. Descriptors are held until their ack. Every wait is bounded.
//!
//! The protocol is not extended in any way: a foreign proxy treats that as a fault.

mod exercise;
mod session;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use netns::NetNs;
use netns::seqpacket::SeqPacketListener;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use wire::zds::WorkloadInfo;

#[doc(hidden)]
pub use exercise::exercise;

/// How long one message may wait for its ack.
pub const ACK_PATIENCE: Duration = Duration::from_secs(5);
/// How long a change may take in all, queueing behind others included.
pub const CHANGE_PATIENCE: Duration = Duration::from_secs(10);
/// More proxies than an upgrade needs; more connections than that are a fault.
const MAX_SESSIONS: usize = 8;

/// A pod as the proxies see it.
#[derive(Clone, Debug)]
pub struct Workload {
    /// The pod's UID.
    pub uid: String,
    /// Name, namespace and service account, verbatim.
    pub info: WorkloadInfo,
    /// Its network namespace. A pod whose namespace is not known (yet) is kept, never added.
    pub netns: Option<NetNs>,
}

/// Why a proxy does not carry a pod.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Nobody is there to carry it.
    #[error("no node proxy is connected to the node agent")]
    NoProxy,
    /// The proxy said no.
    #[error("the node proxy refused it: {0}")]
    Refused(String),
    /// The proxy said nothing, or its connection ended.
    #[error("the node proxy did not answer: {0}")]
    NoAnswer(String),
}

type Answer = oneshot::Sender<Result<(), Error>>;

enum Change {
    Add(Workload, Answer),
    Del(String, Answer),
}

struct Entry {
    workload: Workload,
    /// The sessions that have bound this pod's listeners.
    acked: BTreeSet<u64>,
}

struct Session {
    changes: mpsc::Sender<Change>,
    /// It has taken its snapshot.
    live: bool,
}

#[derive(Default)]
struct Table {
    entries: BTreeMap<String, Entry>,
    sessions: BTreeMap<u64, Session>,
    next: u64,
}

struct Inner {
    table: Mutex<Table>,
    /// Number of live sessions, and a tick at each coming and going.
    live: watch::Sender<usize>,
}

/// The server's state; clones share it.
#[derive(Clone)]
pub struct Zds {
    inner: Arc<Inner>,
}

impl Default for Zds {
    fn default() -> Self {
        Self { inner: Arc::new(Inner { table: Mutex::default(), live: watch::Sender::new(0) }) }
    }
}

impl Zds {
    /// How many proxies are connected and have taken their snapshot; ticks at each coming and going.
    pub fn live(&self) -> watch::Receiver<usize> {
        self.inner.live.subscribe()
    }

    /// Puts a pod on the list without telling anybody: for what is known before proxies are let in.
    pub fn prepare(&self, workload: Workload) {
        let mut table = self.inner.table.lock();
        table.entries.insert(workload.uid.clone(), Entry { workload, acked: BTreeSet::new() });
    }

    /// Whether a live proxy has bound the listeners of `uid` in `netns`.
    pub fn carried(&self, uid: &str, netns: &NetNs) -> bool {
        let table = self.inner.table.lock();
        table.entries.get(uid).is_some_and(|entry| {
            entry.workload.netns.as_ref().is_some_and(|held| held.id() == netns.id())
                && entry.acked.iter().any(|id| table.sessions.get(id).is_some_and(|session| session.live))
        })
    }

    /// The pods that some live proxy has not taken.
    pub fn owed(&self) -> Vec<String> {
        let table = self.inner.table.lock();
        let live: Vec<u64> = table.sessions.iter().filter(|(_, s)| s.live).map(|(id, _)| *id).collect();
        let owed = |entry: &Entry| live.iter().any(|id| !entry.acked.contains(id));
        table.entries.iter().filter(|(_, entry)| owed(entry)).map(|(uid, _)| uid.clone()).collect()
    }

    /// Puts a pod on the list and tells the proxies that have not taken it. Succeeds as soon as one proxy has
    /// bound its listeners. On failure the pod stays on the list: a proxy that comes later gets it.
    pub async fn add(&self, workload: Workload) -> Result<(), Error> {
        let targets = {
            let mut table = self.inner.table.lock();
            let uid = workload.uid.clone();
            let acked = match table.entries.get(&uid) {
                Some(entry) if same_netns(&entry.workload, &workload) => entry.acked.clone(),
                _ => BTreeSet::new(),
            };
            let targets: Vec<_> = table
                .sessions
                .iter()
                .filter(|(id, _)| !acked.contains(id))
                .map(|(_, session)| session.changes.clone())
                .collect();
            let served = table.sessions.iter().any(|(id, session)| session.live && acked.contains(id));
            table.entries.insert(uid, Entry { workload: workload.clone(), acked });
            if targets.is_empty() && served {
                return Ok(());
            }
            targets
        };
        first_success(tell(targets, |answer| Change::Add(workload.clone(), answer))).await
    }

    /// Takes a pod off the list and tells all proxies; each of them must have answered.
    pub async fn del(&self, uid: &str) -> Result<(), Error> {
        let targets: Vec<_> = {
            let mut table = self.inner.table.lock();
            if table.entries.remove(uid).is_none() {
                return Ok(());
            }
            table.sessions.values().map(|session| session.changes.clone()).collect()
        };
        all_successful(tell(targets, |answer| Change::Del(uid.to_owned(), answer))).await
    }

    /// Accepts proxies until `stop`. Call it once the list is complete: a proxy drops what its snapshot lacks.
    pub async fn serve(&self, listener: SeqPacketListener, stop: CancellationToken) {
        let sessions = tokio_util::task::TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(_) if sessions.len() >= MAX_SESSIONS => {
                    tracing::warn!(
                        limit = MAX_SESSIONS,
                        "too many node proxies are connected; refusing another"
                    );
                }
                Ok(socket) => {
                    let zds = self.clone();
                    let stop = stop.clone();
                    sessions.spawn(async move {
                        tokio::select! {
                            () = stop.cancelled() => {}
                            () = session::run(&zds, socket) => {}
                        }
                    });
                }
                Err(error) => {
                    tracing::error!(%error, "cannot accept node proxies any more");
                    break;
                }
            }
        }
        sessions.close();
        sessions.wait().await;
    }
}

/// Hands a change to each target and waits for each answer, bounded.
fn tell<F: Fn(Answer) -> Change>(
    targets: Vec<mpsc::Sender<Change>>,
    change: F,
) -> FuturesUnordered<impl Future<Output = Result<(), Error>> + use<F>> {
    targets
        .into_iter()
        .map(|target| {
            let (answer, answered) = oneshot::channel();
            let change = change(answer);
            async move {
                let work = async {
                    let gone = || Error::NoAnswer("its connection ended".to_owned());
                    target.send(change).await.map_err(|_| gone())?;
                    answered.await.map_err(|_| gone())?
                };
                let late = |_| Err(Error::NoAnswer(format!("not within {} s", CHANGE_PATIENCE.as_secs())));
                tokio::time::timeout(CHANGE_PATIENCE, work).await.unwrap_or_else(late)
            }
        })
        .collect()
}

fn same_netns(a: &Workload, b: &Workload) -> bool {
    a.netns.as_ref().map(NetNs::id) == b.netns.as_ref().map(NetNs::id)
}

async fn first_success<F>(mut answers: FuturesUnordered<F>) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let mut failure = Error::NoProxy;
    while let Some(answer) = answers.next().await {
        match answer {
            Ok(()) => return Ok(()),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn all_successful<F>(mut answers: FuturesUnordered<F>) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    let mut result = Ok(());
    while let Some(answer) = answers.next().await {
        if answer.is_err() {
            result = answer;
        }
    }
    result
}

#[cfg(test)]
mod tests;
