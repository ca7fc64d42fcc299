//! Ends older connections, tick by tick, until none is left: the edge around [`super::due`].
//!
//! One task for the node. A pod is tracked from the moment its rules are in place; the list made then names its
//! older connections once and for all, since everything dialled later is redirected. A pod is dropped from the
//! task when none of them is left, when it leaves the mesh, or when its namespace is gone.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use netns::NetNs;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::diag::{Diag, Id, State};
use super::{Connection, Exempt, Outside, Policy, Side, Verdict, carried, due, illegal, older};
use crate::metrics::Metrics;
use crate::strict::Strictness;

/// How often connections are looked at while any is left. No round number: what clients do every quarter of a second
/// must not be looked at in the same phase each time.
pub const TICK: Duration = Duration::from_millis(211);

/// A pod that leaves has seconds: patience with its connections ends so much faster.
const HASTE: u32 = 6;

/// Names of the pod whose connections these are.
#[derive(Clone, Debug)]
pub struct Pod {
    /// UID.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

enum Command {
    Track(Pod, Box<Diag>, Strictness),
    Forget(String),
}

/// Hands pods to the sweeping task.
#[derive(Clone)]
pub struct Sweeper {
    commands: mpsc::UnboundedSender<Command>,
}

impl Sweeper {
    /// Starts the task; it ends with `stop`. `outside` is read at each tick.
    pub fn start(
        policy: Policy,
        exempt: Exempt,
        outside: Arc<ArcSwap<Outside>>,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Self {
        let (commands, queue) = mpsc::unbounded_channel();
        let sweep = Sweep { policy, exempt, outside, metrics, pods: BTreeMap::new() };
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sweep.run(queue) => {}
            }
        });
        Self { commands }
    }

    /// Ends the connections of `pod` that are there now and go past the proxy. Call it when the rules are in place,
    /// and again when `strict` changes.
    pub fn track(&self, pod: Pod, namespace: &NetNs, strict: Strictness) -> std::io::Result<()> {
        let diag = Diag::open(namespace)?;
        let _ = self.commands.send(Command::Track(pod, Box::new(diag), strict));
        Ok(())
    }

    /// Leaves the pod's connections alone from now on.
    pub fn forget(&self, uid: &str) {
        let _ = self.commands.send(Command::Forget(uid.to_owned()));
    }
}

struct Tracked {
    pod: Pod,
    diag: Box<Diag>,
    /// Where plaintext is illegal.
    strict: Strictness,
    since: Instant,
    /// The older connections that are left; not listed yet at first.
    left: Option<HashSet<Id>>,
    ended: usize,
}

struct Sweep {
    policy: Policy,
    exempt: Exempt,
    outside: Arc<ArcSwap<Outside>>,
    metrics: Arc<Metrics>,
    pods: BTreeMap<String, Tracked>,
}

impl Sweep {
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<Command>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = queue.recv() => match command {
                    Some(Command::Track(pod, diag, strict)) => self.track(pod, diag, strict),
                    Some(Command::Forget(uid)) => {
                        if let Some(tracked) = self.pods.remove(&uid) {
                            self.metrics.older_connections(&tracked.pod.namespace, &tracked.pod.name, 0);
                        }
                    }
                    None => return,
                },
                _ = tick.tick(), if !self.pods.is_empty() => {}
            }
            // Listing blocks for microseconds a pod, in the kernel.
            self.sweep(Instant::now());
        }
    }

    fn track(&mut self, pod: Pod, diag: Box<Diag>, strict: Strictness) {
        let tracked = Tracked { pod, diag, strict, since: Instant::now(), left: None, ended: 0 };
        self.pods.insert(tracked.pod.uid.clone(), tracked);
    }

    fn sweep(&mut self, now: Instant) {
        let outside = self.outside.load_full();
        let (policy, exempt, metrics) = (&self.policy, &self.exempt, &self.metrics);
        self.pods.retain(|_, tracked| {
            let keep = look(tracked, policy, exempt, &outside, now);
            let count = if keep { tracked.left.as_ref().map_or(0, HashSet::len) } else { 0 };
            metrics.older_connections(&tracked.pod.namespace, &tracked.pod.name, count);
            keep
        });
    }
}

/// Looks at one pod's older connections once; says whether any is left.
fn look(tracked: &mut Tracked, policy: &Policy, exempt: &Exempt, outside: &Outside, now: Instant) -> bool {
    let pod = &tracked.pod;
    let sockets = match tracked.diag.list() {
        Ok(sockets) => sockets,
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return true,
        Err(error) => {
            tracing::warn!(namespace = pod.namespace, pod = pod.name, %error, "cannot list the pod's connections");
            return false;
        }
    };
    let strict = &tracked.strict;
    let keeps = |c: &Connection| {
        c.side == Side::Server && outside.contains(&c.socket.remote.ip()) && !illegal(c, strict)
    };
    let connections: Vec<Connection> = older(&sockets, exempt).into_iter().filter(|c| !keeps(c)).collect();
    let first = tracked.left.is_none();
    let known = tracked.left.get_or_insert_with(|| connections.iter().map(|c| c.socket.id).collect());
    let age = now.saturating_duration_since(tracked.since);
    let mut left = HashSet::new();
    for connection in connections.iter().filter(|c| known.contains(&c.socket.id)) {
        let socket = &connection.socket;
        let verdict = match (illegal(connection, &tracked.strict), first) {
            (true, _) => Verdict::EndIllegal,
            (false, true) => Verdict::Wait(super::Busy::JustMoved),
            (false, false) => due(connection, age, policy),
        };
        let (namespace, name) = (&pod.namespace, &pod.name);
        if let Verdict::Wait(why) = verdict {
            if first {
                tracing::debug!(namespace, pod = name, local = %socket.local, peer = %socket.remote, side = ?connection.side, ?why, "connection is older than the enrolment");
            }
            left.insert(socket.id);
            continue;
        }
        match tracked.diag.destroy(&socket.id) {
            Ok(()) => {
                tracked.ended += 1;
                tracing::info!(namespace, pod = name, local = %socket.local, peer = %socket.remote, side = ?connection.side, why = ?verdict, "ended a connection older than the enrolment");
            }
            Err(error) => {
                tracing::warn!(namespace, pod = name, local = %socket.local, peer = %socket.remote, %error, "cannot end a connection older than the enrolment");
                // A kernel that cannot do it will not learn it; the connection stays counted until it ends.
                left.insert(socket.id);
            }
        }
    }
    if first || left.is_empty() {
        tracing::info!(
            namespace = pod.namespace,
            pod = pod.name,
            left = left.len(),
            ended = tracked.ended,
            "connections older than the enrolment"
        );
    }
    let any = !left.is_empty();
    tracked.left = Some(left);
    any
}

/// Before a pod leaves the mesh: ends the connections that its programs dialled through the proxy as they become
/// idle, and waits until those it serves are idle too. Returns after `most` at the latest, with the number that
/// were still busy; `least` gives the peers time to learn that new connections go past the proxy.
pub async fn drain(
    namespace: &NetNs,
    exempt: &Exempt,
    policy: &Policy,
    least: Duration,
    most: Duration,
) -> std::io::Result<usize> {
    let mut diag = Diag::open(namespace)?;
    let start = Instant::now();
    // Every end has its turn at once here: nobody else will act.
    let policy =
        Policy { settle: Duration::ZERO, server_turn: Duration::ZERO, grace: Duration::MAX, ..*policy };
    loop {
        let elapsed = start.elapsed();
        let busy = drain_once(&mut diag, exempt, &policy, elapsed * HASTE)?;
        if elapsed >= most || (busy == 0 && elapsed >= least) {
            return Ok(busy);
        }
        tokio::time::sleep(TICK / 2).await;
    }
}

fn drain_once(diag: &mut Diag, exempt: &Exempt, policy: &Policy, age: Duration) -> std::io::Result<usize> {
    let sockets = match diag.list() {
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Ok(1),
        list => list?,
    };
    let mut busy = 0;
    for connection in carried(&sockets, exempt) {
        match due(&connection, age, policy) {
            Verdict::Wait(_) if connection.socket.state == State::Established => busy += 1,
            Verdict::Wait(_) => {}
            _ if connection.side == Side::Client => diag.destroy(&connection.socket.id)?,
            _ => {}
        }
    }
    Ok(busy)
}
