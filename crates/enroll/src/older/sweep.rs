//! Ends older connections, tick by tick, until none is left: the edge around [`super::due`].
//!
//! One task for the node. A pod is tracked from the moment its rules are in place; the list made then names its
//! older connections once and for all, since everything dialled later is redirected. A pod is dropped from the
//! task when none of them is left, when it leaves the mesh, or when its namespace is gone.
//!
//! To list a namespace's sockets the kernel walks those of the whole machine, which takes milliseconds however few
//! they are. So a pod is listed when it comes, once more to be sure, and then each of its connections is asked for by
//! name; and all of it happens off the threads that serve everything else.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use netns::NetNs;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use parking_lot::Mutex;

use super::diag::{Diag, Id, State};
use super::{Connection, Exempt, Outside, Policy, Side, Verdict, carried, due, illegal, older};
use crate::metrics::Metrics;
use crate::status::OlderConnection;
use crate::strict::Strictness;

/// How often connections are looked at while any is left. No round number: what clients do every quarter of a second
/// must not be looked at in the same phase each time.
pub const TICK: Duration = Duration::from_millis(211);

/// Up to so many connections are asked for one by one; more are listed.
const FEW: usize = 500;
/// How many commands are taken at once.
const BATCH: usize = 256;

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
    open: Open,
}

/// What is left of each pod's older connections, by UID. The sweeping task writes it, everybody else reads.
type Open = Arc<Mutex<BTreeMap<String, Vec<OlderConnection>>>>;

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
        let open = Open::default();
        let sweep = Sweep { policy, exempt, outside, metrics, open: open.clone(), pods: BTreeMap::new() };
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sweep.run(queue) => {}
            }
        });
        Self { commands, open }
    }

    /// The older connections of a pod that are left, as they were at the last look.
    pub fn open(&self, uid: &str) -> Vec<OlderConnection> {
        self.open.lock().get(uid).cloned().unwrap_or_default()
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
    left: Option<HashMap<Id, Side>>,
    /// How often they were looked at.
    looks: u32,
    ended: usize,
}

struct Sweep {
    policy: Policy,
    exempt: Exempt,
    outside: Arc<ArcSwap<Outside>>,
    metrics: Arc<Metrics>,
    open: Open,
    pods: BTreeMap<String, Tracked>,
}

impl Sweep {
    async fn run(mut self, mut queue: mpsc::UnboundedReceiver<Command>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut commands = Vec::new();
            tokio::select! {
                taken = queue.recv_many(&mut commands, BATCH) => if taken == 0 { return },
                _ = tick.tick(), if !self.pods.is_empty() => {}
            }
            let turn = tokio::task::spawn_blocking(move || {
                self.turn(commands);
                self
            });
            let Ok(back) = turn.await else { return };
            self = back;
        }
    }

    /// Obeys the commands, if there are any; looks at all pods otherwise.
    fn turn(&mut self, commands: Vec<Command>) {
        if commands.is_empty() {
            let uids: Vec<String> = self.pods.keys().cloned().collect();
            uids.iter().for_each(|uid| self.look_at(uid));
        }
        for command in commands {
            match command {
                Command::Track(pod, diag, strict) => {
                    let (uid, since) = (pod.uid.clone(), Instant::now());
                    let tracked = Tracked { pod, diag, strict, since, left: None, looks: 0, ended: 0 };
                    self.pods.insert(uid.clone(), tracked);
                    self.look_at(&uid);
                }
                Command::Forget(uid) => {
                    if let Some(tracked) = self.pods.remove(&uid) {
                        self.tell(&tracked.pod, Vec::new());
                    }
                }
            }
        }
    }

    fn look_at(&mut self, uid: &str) {
        let Some(mut tracked) = self.pods.remove(uid) else { return };
        if tracked.left.is_none() && tracked.since.elapsed() < first_look(&self.policy, &tracked.strict) {
            self.pods.insert(uid.to_owned(), tracked);
            return;
        }
        let outside = self.outside.load_full();
        let keep = match look(&mut tracked, &self.policy, &self.exempt, &outside, Instant::now()) {
            Look::Again => true,
            Look::Gone => {
                self.tell(&tracked.pod, Vec::new());
                false
            }
            Look::Left(left) => {
                let any = !left.is_empty();
                self.tell(&tracked.pod, left);
                any
            }
        };
        if keep {
            self.pods.insert(uid.to_owned(), tracked);
        }
    }

    fn tell(&self, pod: &Pod, left: Vec<OlderConnection>) {
        self.metrics.older_connections(&pod.namespace, &pod.name, left.len());
        let mut open = self.open.lock();
        if left.is_empty() {
            open.remove(&pod.uid);
        } else {
            open.insert(pod.uid.clone(), left);
        }
    }
}

/// When a pod is looked at for the first time. Nothing is ended before [`Policy::settle`] unless a policy forbids it, and
/// a list takes so long that pods which come at the same moment would come later for it. What is dialled meanwhile goes
/// through the proxy and is none of those that are looked for; but for what annotations keep out of the capture, which counts
/// as older until the first look.
fn first_look(policy: &Policy, strict: &Strictness) -> Duration {
    if *strict == Strictness::default() { policy.settle * 3 / 4 } else { Duration::ZERO }
}

/// What a look at a pod's older connections has shown.
enum Look {
    /// They changed while they were listed.
    Again,
    /// They cannot be listed: the pod has gone.
    Gone,
    /// These are left.
    Left(Vec<OlderConnection>),
}

/// The pod's connections as they are now that may be older ones.
fn candidates(tracked: &mut Tracked, exempt: &Exempt) -> std::io::Result<Vec<Connection>> {
    match &tracked.left {
        Some(left) if tracked.looks > 1 && left.len() <= FEW => {
            let mut there = Vec::new();
            for (id, side) in left {
                let socket = tracked.diag.get(id)?;
                there.extend(socket.map(|socket| Connection { socket, side: *side }));
            }
            Ok(there)
        }
        _ => Ok(older(&tracked.diag.list()?, exempt)),
    }
}

/// Looks at one pod's older connections once and ends those that are due.
fn look(tracked: &mut Tracked, policy: &Policy, exempt: &Exempt, outside: &Outside, now: Instant) -> Look {
    let all = candidates(tracked, exempt);
    let pod = &tracked.pod;
    let all = match all {
        Ok(all) => all,
        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Look::Again,
        Err(error) => {
            tracing::warn!(namespace = pod.namespace, pod = pod.name, %error, "cannot list the pod's connections");
            return Look::Gone;
        }
    };
    tracked.looks = tracked.looks.saturating_add(1);
    let strict = &tracked.strict;
    let keeps = |c: &Connection| {
        c.side == Side::Server && outside.contains(&c.socket.remote.ip()) && !illegal(c, strict)
    };
    let connections: Vec<Connection> = all.into_iter().filter(|c| !keeps(c)).collect();
    let first = tracked.left.is_none();
    let known =
        tracked.left.get_or_insert_with(|| connections.iter().map(|c| (c.socket.id, c.side)).collect());
    let age = now.saturating_duration_since(tracked.since);
    let mut left = Vec::new();
    for connection in connections.iter().filter(|c| known.contains_key(&c.socket.id)) {
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
            left.push(connection);
            continue;
        }
        if verdict == Verdict::EndIdle && !still(&mut tracked.diag, connection, |now| due(now, age, policy)) {
            left.push(connection);
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
                left.push(connection);
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
    tracked.left = Some(left.iter().map(|c| (c.socket.id, c.side)).collect());
    Look::Left(
        left.iter()
            .map(|c| OlderConnection {
                local: c.socket.local,
                peer: c.socket.remote,
                dialled: c.side == Side::Client,
            })
            .collect(),
    )
}

/// Whether a connection that was found idle in a list is so at this moment: a list takes long enough for a request to
/// begin. One that is gone is as good as idle.
fn still(diag: &mut Diag, connection: &Connection, verdict: impl Fn(&Connection) -> Verdict) -> bool {
    match diag.get(&connection.socket.id) {
        Ok(Some(socket)) => verdict(&Connection { socket, side: connection.side }) == Verdict::EndIdle,
        Ok(None) | Err(_) => true,
    }
}

/// What became of the connections of a pod that leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All are idle or ended.
    Idle,
    /// So many were busy when the time was over.
    Busy(usize),
    /// The pod does not leave after all.
    CalledOff,
}

/// Before a pod leaves the mesh: ends the connections that its programs dialled through the proxy as they become
/// idle, and waits until those it serves are idle too. Returns at the end of `time` at the latest; its beginning gives
/// the peers time to learn that new connections go past the proxy. Ends nothing more once it is `called_off`.
pub async fn drain(
    namespace: &NetNs,
    exempt: &Exempt,
    policy: &Policy,
    time: Range<Duration>,
    called_off: impl Fn() -> bool + Send,
) -> std::io::Result<Drained> {
    let mut diag = Diag::open(namespace)?;
    let start = Instant::now();
    // Every end has its turn at once here: nobody else will act.
    let policy =
        Policy { settle: Duration::ZERO, server_turn: Duration::ZERO, grace: Duration::MAX, ..*policy };
    let exempt = Arc::new(exempt.clone());
    loop {
        let elapsed = start.elapsed();
        let exempt = exempt.clone();
        let look = tokio::task::spawn_blocking(move || {
            let busy = drain_once(&mut diag, &exempt, &policy, elapsed * HASTE);
            (diag, busy)
        });
        let busy;
        (diag, busy) = look.await.map_err(std::io::Error::other)?;
        let busy = busy?;
        if busy == 0 && elapsed >= time.start {
            return Ok(Drained::Idle);
        }
        if elapsed >= time.end {
            return Ok(Drained::Busy(busy));
        }
        tokio::time::sleep(TICK).await;
        if called_off() {
            return Ok(Drained::CalledOff);
        }
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
            _ if connection.side == Side::Server => {}
            _ if still(diag, &connection, |now| due(now, age, policy)) => {
                diag.destroy(&connection.socket.id)?;
            }
            _ => busy += 1,
        }
    }
    Ok(busy)
}
