//! All pairs of one window, judged: the snapshot from which graph, overview and lists are made without touching the
//! store again, so that readers never hold up what comes in.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use crate::directory::Directory;
use crate::flow::{Millis, Reporter, Text, Verdict};
use crate::judge::{Judgement, Said, judge};
use crate::model::{self, Bytes, Connections, IdentityPair, Record, State};
use crate::store::history::BUCKET;
use crate::store::place::Place;
use crate::store::{Pair, Store};
use crate::unseen::{self, Unseen};
use crate::why::{Case, Code};

/// A hub calls at least so many workloads …
const HUB_FANOUT: usize = 10;
/// … and at least one in so many of all there are.
const HUB_SHARE: usize = 4;

/// A span of time that ends `at`; `live` when that is now, so that gauges hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Window {
    pub seconds: u64,
    pub at: Millis,
    pub live: bool,
}

impl Window {
    /// Begin of the window.
    pub fn from(&self) -> Millis {
        // The bucket that is being filled belongs to it whole.
        let end = self.at / BUCKET * BUCKET + BUCKET;
        end.saturating_sub(self.seconds * 1000)
    }
}

/// One judged pair.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Row {
    pub source: Arc<Place>,
    pub target: Arc<Place>,
    pub port: u16,
    pub state: State,
    pub bytes: Bytes,
    pub connections: Connections,
    pub code: Option<Code>,
    pub reason: Text,
    pub policy: Text,
    pub service: Text,
    /// The identities that were proven.
    pub identities: Option<IdentityPair>,
    pub last_activity: Option<Millis>,
    pub stale_ms: Option<Millis>,
    /// Known from Prometheus alone, see [`crate::unseen`]: nobody counted its bytes.
    pub unseen: bool,
}

/// See the module.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Table {
    pub window: Window,
    pub rows: Vec<Row>,
    /// Ids of workloads that are hubs.
    pub hubs: HashSet<Text>,
    pub proxies: Vec<model::Proxy>,
    pub limits: model::Limits,
    pub directory: Arc<Directory>,
    /// See [`crate::overview::sparklines`]; made when somebody asks for it, once.
    pub sparklines: OnceLock<HashMap<Text, Vec<u64>>>,
}

impl Table {
    /// Judges every pair of the store for a window, and adds the scrapes that no proxy saw.
    pub fn of(
        store: &Store,
        directory: &Arc<Directory>,
        unseen: &[Unseen],
        window: Window,
        now: Millis,
    ) -> Self {
        let reporting = reporting_nodes(store, now);
        let is_reporting = |node: &str| reporting.contains(node);
        let mut rows = Vec::with_capacity(store.len());
        for pair in store.pairs() {
            let places = store.place(pair.key.source).zip(store.place(pair.key.destination));
            let Some((source, target)) = places else { continue };
            rows.push(row(store, pair, source, target, directory, &is_reporting, window, now));
        }
        unseen::add(&mut rows, unseen, window);
        let (hubs, workloads, pods) = hubs(&rows);
        let namespaces: HashSet<&Text> =
            rows.iter().flat_map(|row| [&row.source.namespace_id, &row.target.namespace_id]).collect();
        let limits = model::Limits {
            workloads,
            namespaces: namespaces.len(),
            pods,
            pairs: rows.len(),
            edges_left_out: 0,
            pairs_refused: store.proxies().iter().map(|proxy| proxy.pairs_refused).sum(),
            rows_lost_by_proxies: store.proxies().iter().map(|proxy| proxy.lost.rows).sum(),
        };
        let proxies = proxies(store, directory, now);
        let sparklines = OnceLock::new();
        Self { window, rows, hubs, proxies, limits, directory: directory.clone(), sparklines }
    }
}

/// Nodes whose proxy was heard lately.
pub fn reporting_nodes(store: &Store, now: Millis) -> HashSet<Text> {
    let heard = store.proxies().iter().filter(|proxy| proxy.stale(now).is_none());
    heard.map(|proxy| proxy.node.clone()).collect()
}

/// What each proxy recorded of a pair.
pub fn said<'a>(pair: &'a Pair, window: Window) -> Vec<Said<'a>> {
    pair.lanes
        .iter()
        .map(|recorded| Said {
            lane: &recorded.lane,
            believed: recorded.believed,
            counts: recorded.within(window.from(), window.at),
            open_now: if window.live { recorded.open_now } else { 0 },
            last_activity: recorded.last_activity,
        })
        .collect()
}

#[allow(clippy::too_many_arguments)]
fn row(
    store: &Store,
    pair: &Pair,
    source: &Arc<Place>,
    target: &Arc<Place>,
    directory: &Directory,
    reporting: &dyn Fn(&str) -> bool,
    window: Window,
    now: Millis,
) -> Row {
    let said = said(pair, window);
    let judgement = judge(&said);
    // What the exception is about: the lane that is not as it should be, else the one that was last active.
    let telling = said.iter().filter(|said| !said.counts.is_zero() || said.open_now > 0).max_by_key(|said| {
        let reason = !said.lane.reason.is_empty();
        let wrong = match judgement.state {
            State::Denied => said.lane.verdict == Verdict::Denied,
            State::Failed => said.lane.verdict == Verdict::Failed,
            _ => said.lane.security == crate::flow::Security::Plaintext,
        };
        (wrong, reason, said.last_activity)
    });
    let empty: Text = "".into();
    let reason = telling.map_or(empty.clone(), |said| said.lane.reason.clone());
    let denied = said.iter().filter(|said| said.lane.verdict == Verdict::Denied && said.counts.failed > 0);
    // The caller's proxy is told that it was refused, not by which policy.
    let denied = denied.max_by_key(|said| !said.lane.policy.is_empty());
    let policy = denied.map_or(empty.clone(), |said| said.lane.policy.clone());
    let service = said.iter().map(|said| &said.lane.service).find(|service| !service.is_empty());
    let service = service.cloned().unwrap_or(empty);
    let identities = (judgement.bytes.proven > 0 || judgement.state == State::Proven).then(|| {
        let lane = said.iter().find(|said| said.lane.security == crate::flow::Security::MutualTls);
        lane.map(|said| IdentityPair {
            source: said.lane.source_identity.clone(),
            destination: said.lane.destination_identity.clone(),
        })
    });
    let case = Case { source, target, reason: &reason, directory, reporting };
    let code = code(&judgement, &case);
    Row {
        source: source.clone(),
        target: target.clone(),
        port: pair.key.port,
        state: judgement.state,
        bytes: judgement.bytes,
        connections: judgement.connections,
        code,
        reason,
        policy,
        service,
        identities: identities.flatten(),
        last_activity: said.iter().map(|said| said.last_activity).max(),
        stale_ms: if window.live { stale(store, pair, now) } else { None },
        unseen: false,
    }
}

/// The code of a judgement, completed by what the cluster knows.
pub fn code(judgement: &Judgement, case: &Case<'_>) -> Option<Code> {
    match judgement.state {
        State::Plaintext | State::Mixed => Some(judgement.code.unwrap_or_else(|| case.plaintext())),
        State::OneSided if judgement.code == Some(Code::NotReported) => Some(case.silence(judgement.silent)),
        State::Denied if matches!(case.reason, "" | "DENY") || case.reason.contains("polic") => {
            Some(Code::DeniedByPolicy)
        }
        _ => judgement.code,
    }
}

/// How long the more silent of the proxies that report on a pair has been silent.
fn stale(store: &Store, pair: &Pair, now: Millis) -> Option<Millis> {
    let of = |reporter: Reporter| {
        let lanes = pair.lanes.iter().filter(|recorded| recorded.lane.reporter == reporter);
        let heard =
            lanes.filter_map(|recorded| store.proxy(recorded.proxy)).map(|proxy| proxy.heard).max()?;
        let silent = now.saturating_sub(heard);
        (silent > crate::store::SILENT).then_some(silent)
    };
    of(Reporter::Source).max(of(Reporter::Destination))
}

/// Workloads that call a large part of all others; and how many workloads and pods (or addresses) there are.
fn hubs(rows: &[Row]) -> (HashSet<Text>, usize, usize) {
    let mut places: HashSet<&Text> = HashSet::new();
    let mut workloads: HashSet<&Text> = HashSet::new();
    let mut fanout: HashMap<&Text, HashSet<&Text>> = HashMap::new();
    for row in rows {
        places.extend([&row.source.id, &row.target.id]);
        workloads.insert(&row.source.workload_id);
        workloads.insert(&row.target.workload_id);
        if row.state != State::Idle
            && row.source.is_inside()
            && row.source.workload_id != row.target.workload_id
        {
            fanout.entry(&row.source.workload_id).or_default().insert(&row.target.workload_id);
        }
    }
    let all = workloads.len();
    let hub = |targets: &HashSet<&Text>| targets.len() >= HUB_FANOUT && targets.len() * HUB_SHARE >= all;
    let hubs = fanout.iter().filter(|(_, targets)| hub(targets)).map(|(id, _)| (*id).clone()).collect();
    (hubs, all, places.len())
}

/// The proxies for the API: one a node where a newer one has taken over, none of nodes that are gone.
fn proxies(store: &Store, directory: &Directory, now: Millis) -> Vec<model::Proxy> {
    let live: HashSet<&Text> =
        store.proxies().iter().filter(|proxy| proxy.connected > 0).map(|proxy| &proxy.node).collect();
    let shown = store.proxies().iter().filter(|proxy| {
        proxy.connected > 0 || (!live.contains(&proxy.node) && directory.has_node(&proxy.node))
    });
    let mut shown: Vec<_> = shown.map(|proxy| proxy_of(proxy, now)).collect();
    shown.sort_by(|a, b| (&a.node, &a.pod).cmp(&(&b.node, &b.pod)));
    shown
}

fn proxy_of(proxy: &crate::store::proxy::Proxy, now: Millis) -> model::Proxy {
    // One that was refused at its greeting was never heard.
    let stale_ms = proxy.stale(now).filter(|_| proxy.heard > 0);
    let mut problems = Vec::new();
    let ahead = crate::store::AHEAD as i64;
    if proxy.skew_ms > ahead {
        problems.push(format!(
            "refused: its clock is {} s ahead of the observer's; set the clocks right (NTP)",
            proxy.skew_ms / 1000
        ));
    } else if proxy.skew_ms < -ahead {
        problems.push(format!("its clock is {} s behind the observer's", -proxy.skew_ms / 1000));
    }
    if let Some(silent) = stale_ms {
        problems.push(format!("silent for {} s", silent / 1000));
    }
    if proxy.pairs_refused > 0 {
        problems.push(format!("{} of its pairs are beyond the bound and are not shown", proxy.pairs_refused));
    }
    if let Some(reason) = &proxy.last_refusal {
        problems.push(format!("{} of its rows were refused; the last: {reason}", proxy.rows_refused));
    }
    if proxy.lost != Default::default() {
        let lost = proxy.lost;
        problems.push(format!(
            "it dropped {} rows and {} flows that it could not deliver",
            lost.rows, lost.flows
        ));
    }
    model::Proxy {
        node: proxy.node.clone(),
        pod: proxy.pod.clone(),
        identity: proxy.identity.clone(),
        version: proxy.version.clone(),
        connected: proxy.connected > 0,
        last_heard: proxy.heard,
        stale_ms,
        clock_skew_ms: proxy.skew_ms,
        pairs: proxy.lanes,
        pairs_refused: proxy.pairs_refused,
        rows_refused: proxy.rows_refused,
        rows_lost: proxy.lost.rows,
        problems,
    }
}

/// What each proxy said, for people.
pub fn records(store: &Store, pair: &Pair, window: Window) -> Vec<Record> {
    let record = |recorded: &crate::store::Recorded| {
        let counts = recorded.within(window.from(), window.at);
        let proxy = store.proxy(recorded.proxy);
        let lane = &recorded.lane;
        Record {
            reporter: lane.reporter.word(),
            proxy_node: proxy.map(|proxy| proxy.node.clone()).unwrap_or_default(),
            proxy_pod: proxy.map(|proxy| proxy.pod.clone()).unwrap_or_default(),
            security: lane.security.word(),
            verdict: lane.verdict.word(),
            reason: lane.reason.clone(),
            policy: lane.policy.clone(),
            source_identity: lane.source_identity.clone(),
            destination_identity: lane.destination_identity.clone(),
            source_proven: lane.source_proven,
            destination_proven: lane.destination_proven,
            service: lane.service.clone(),
            sent: counts.sent,
            received: counts.received,
            opened: counts.opened,
            closed: counts.closed,
            failed: counts.failed,
            open_now: if window.live { recorded.open_now } else { 0 },
            sent_total: recorded.total.sent,
            received_total: recorded.total.received,
            last_activity: Some(recorded.last_activity),
        }
    };
    let within = |record: &Record| {
        record.open_now > 0
            || record.sent + record.received + record.opened + record.closed + record.failed > 0
    };
    pair.lanes.iter().map(record).filter(within).collect()
}

/// All ports, services … of several rows, at most some.
pub fn some<T: Ord>(values: impl IntoIterator<Item = T>, at_most: usize) -> Vec<T> {
    values.into_iter().collect::<BTreeSet<_>>().into_iter().take(at_most).collect()
}
