//! The overview: how much is mutual TLS, what is not and what cures it, and what nobody can see. Pure.

mod findings;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::flow::Text;
use crate::graph::{Filter, Sums, Visible};
use crate::model::{Blind, Hint, NamespaceRow, Overview, ProofCounts, State};
use crate::observer::Proofs;
use crate::store::Store;
use crate::store::place::id1;
use crate::table::{Row, Table};
use crate::why::Code;

const NAMES: usize = 100;
/// Points of a sparkline.
pub const POINTS: usize = 30;

/// Bytes of each namespace over a window, in [`POINTS`] parts. Needs the store, so it is made apart from the rest.
pub fn sparklines(store: &Store, table: &Table) -> HashMap<Text, Vec<u64>> {
    let mut lines: HashMap<Text, Vec<u64>> = HashMap::new();
    let (from, to) = (table.window.from(), table.window.at);
    let part = (table.window.seconds * 1000 / POINTS as u64).max(1);
    for pair in store.pairs() {
        let places = store.place(pair.key.source).zip(store.place(pair.key.destination));
        let Some((source, target)) = places else { continue };
        // The server's proxy where it reports, else the client's: one of them, not both.
        let reporters = pair.lanes.iter().filter(|lane| lane.believed);
        let Some(best) = reporters.map(|lane| lane.lane.reporter).max() else { continue };
        for lane in pair.lanes.iter().filter(|lane| lane.believed && lane.lane.reporter == best) {
            lane.each(from, to, |at, counts| {
                let point = (at.saturating_sub(from) / part).min(POINTS as u64 - 1) as usize;
                let ends = [&source.end.namespace, &target.end.namespace];
                for (i, namespace) in ends.into_iter().enumerate() {
                    if namespace.is_empty() || (i == 1 && namespace == ends[0]) {
                        continue;
                    }
                    match lines.get_mut(namespace) {
                        Some(line) => line[point] += counts.bytes(),
                        None => {
                            let mut line = vec![0; POINTS];
                            line[point] = counts.bytes();
                            lines.insert(namespace.clone(), line);
                        }
                    }
                }
            });
        }
    }
    lines
}

/// Puts the overview together.
pub fn build(
    table: &Table,
    proofs: &Proofs,
    lines: &HashMap<Text, Vec<u64>>,
    filter: &Filter,
    visible: &Visible,
) -> Overview {
    let rows: Vec<&Row> = table
        .rows
        .iter()
        .filter(|row| row.state != State::Idle && visible.pair(&row.source, &row.target) && filter.takes(row))
        .collect();
    let mut sums = Sums::default();
    rows.iter().for_each(|row| sums.add(row));
    let findings = |pick: &dyn Fn(&Row) -> Option<Code>| findings::of(&rows, pick, &table.directory);
    let known = |row: &Row| row.code.unwrap_or(Code::Unknown);
    let mut scrapes = ProofCounts::default();
    let targets = proofs.targets.iter().filter(|target| visible.namespace(&target.namespace));
    targets.for_each(|target| scrapes.add(target.proof, target.health == "up"));
    let seen = |namespace: &Text| visible.namespace(namespace);
    let prometheis = proofs.prometheis.iter().filter(|one| one.namespace.is_empty() || seen(&one.namespace));
    Overview {
        at: table.window.at,
        window_seconds: table.window.seconds,
        coverage: sums.coverage(),
        plaintext: findings(&|row| matches!(row.state, State::Plaintext | State::Mixed).then(|| known(row))),
        unproven: findings(&|row| {
            matches!(row.state, State::OneSided | State::Contradiction).then(|| known(row))
        }),
        // Also where something was carried besides: before the policy came, or at another moment.
        denied: findings(&|row| (row.connections.denied > 0).then_some(Code::DeniedByPolicy)),
        failed: findings(&|row| {
            let besides = (row.connections.failed > 0).then_some(Code::ConnectFailed);
            if row.state == State::Failed { Some(known(row)) } else { besides }
        }),
        namespaces: namespaces(table, &rows, lines, visible, filter),
        scrapes,
        prometheis: prometheis.cloned().collect(),
        blind: blind(table, visible),
        proxies: table.proxies.clone(),
        limits: table.limits.clone(),
        hints: hints(table, proofs),
    }
}

fn namespaces(
    table: &Table,
    rows: &[&Row],
    lines: &HashMap<Text, Vec<u64>>,
    visible: &Visible,
    filter: &Filter,
) -> Vec<NamespaceRow> {
    let directory = &table.directory;
    let mut sums: BTreeMap<&Text, Sums> = BTreeMap::new();
    for row in rows {
        let ends = [&row.source.end.namespace, &row.target.end.namespace];
        for (i, namespace) in ends.into_iter().enumerate() {
            let again = i == 1 && namespace == ends[0];
            if !namespace.is_empty() && !again {
                sums.entry(namespace).or_default().add(row);
            }
        }
    }
    for namespace in directory.namespaces.keys() {
        sums.entry(namespace).or_default();
    }
    // Running pods, enrolled ones, and those of the host's network.
    let mut pods: HashMap<&Text, [usize; 3]> = HashMap::new();
    for pod in directory.pods().filter(|pod| pod.running) {
        let counts = pods.entry(&pod.namespace).or_default();
        counts[0] += 1;
        counts[1] += usize::from(pod.enrolled);
        counts[2] += usize::from(pod.host_network);
    }
    let wanted = |namespace: &Text| {
        visible.namespace(namespace)
            && (filter.namespaces.is_empty() || filter.namespaces.contains(&**namespace))
            && (filter.text.is_empty() || namespace.to_lowercase().contains(&filter.text))
    };
    sums.into_iter()
        .filter(|(namespace, _)| wanted(namespace))
        .map(|(namespace, sums)| {
            let counts = directory.synced.then(|| pods.get(namespace).copied().unwrap_or_default());
            NamespaceRow {
                id: id1("ns", namespace),
                name: namespace.clone(),
                labelled: directory.namespaces.get(namespace).copied(),
                pods: counts.map(|counts| counts[0]),
                pods_enrolled: counts.map(|counts| counts[1]),
                pods_host_network: counts.map(|counts| counts[2]),
                coverage: sums.headline(),
                denied: sums.denied(),
                sparkline: lines.get(namespace).cloned().unwrap_or_else(|| vec![0; POINTS]),
            }
        })
        .collect()
}

/// What no proxy sees.
fn blind(table: &Table, visible: &Visible) -> Blind {
    let directory = &table.directory;
    if !directory.synced {
        return Blind {
            text: "the cluster's pods are not known to the observer, so it cannot say how many are outside the mesh"
                .into(),
            ..Blind::default()
        };
    }
    let mut blind = Blind { known: true, ..Blind::default() };
    let mut outside: BTreeMap<&Text, bool> = BTreeMap::new();
    let mut nodes: BTreeSet<&Text> = BTreeSet::new();
    for pod in directory.pods().filter(|pod| pod.running && visible.namespace(&pod.namespace)) {
        let all = outside.entry(&pod.namespace).or_insert(true);
        match () {
            () if pod.enrolled => {
                blind.pods_enrolled += 1;
                *all = false;
                nodes.insert(&pod.node);
            }
            () if pod.host_network => blind.pods_host_network += 1,
            () => blind.pods_not_enrolled += 1,
        }
    }
    blind.namespaces_not_enrolled =
        outside.into_iter().filter(|(_, all)| *all).map(|(name, _)| name.clone()).take(NAMES).collect();
    let reporting: BTreeSet<&Text> =
        table.proxies.iter().filter(|proxy| proxy.stale_ms.is_none()).map(|proxy| &proxy.node).collect();
    blind.silent_nodes = nodes.difference(&reporting).map(|name| (*name).clone()).take(NAMES).collect();
    let (none, host) = (blind.pods_not_enrolled, blind.pods_host_network);
    let pods =
        |count: usize| if count == 1 { "1 running pod".to_owned() } else { format!("{count} running pods") };
    blind.text = match (none, host) {
        (0, 0) => "every running pod is in the mesh".into(),
        (0, host) => format!("traffic among {} on host networks is seen by no proxy", pods(host)),
        (none, 0) => format!("traffic among {} outside the mesh is seen by no proxy", pods(none)),
        (none, host) => format!(
            "traffic among {} outside the mesh and {host} on host networks is seen by no proxy",
            pods(none)
        ),
    };
    if none + host > 0 {
        blind.text.push_str("; only scrapes among them are known, by Prometheus' own word");
    }
    if !blind.silent_nodes.is_empty() {
        let silent = blind.silent_nodes.len();
        blind.text.push_str(&match silent {
            1 => "; the proxy of 1 node with enrolled pods does not report".to_owned(),
            _ => format!("; the proxies of {silent} nodes with enrolled pods do not report"),
        });
    }
    blind
}

/// The next step, where something is empty or broken.
fn hints(table: &Table, proofs: &Proofs) -> Vec<Hint> {
    let mut hints = Vec::new();
    let mut hint =
        |code, text: String, command: &str| hints.push(Hint { code, text, command: command.into() });
    let silent: Vec<_> = table.proxies.iter().filter(|proxy| proxy.stale_ms.is_some()).collect();
    let look = "kubectl get pods -n ambit-system -l app=ztunnel -o wide";
    let directory = &table.directory;
    if table.proxies.is_empty() {
        hint(
            "NO_PROXIES",
            "no node proxy has reported yet; are they running, and do they know the observer?".into(),
            look,
        );
    }
    for proxy in silent.iter().take(5) {
        let seconds = proxy.stale_ms.unwrap_or_default() / 1000;
        hint(
            "PROXY_SILENT",
            format!("the node proxy of {} is silent for {seconds} s; its data is old", proxy.node),
            look,
        );
    }
    if directory.synced && !directory.pods().any(|pod| pod.enrolled) {
        hint(
            "NOTHING_ENROLLED",
            "no pod is in the mesh yet: label a namespace; nothing is restarted".into(),
            "kubectl label namespace NAME istio.io/dataplane-mode=ambient",
        );
    } else if !table.proxies.is_empty() && table.rows.is_empty() {
        hint("NO_FLOWS", "the node proxies report, and nothing has been sent yet".into(), "");
    }
    if proofs.prometheis.is_empty() {
        hint(
            "NO_PROMETHEUS",
            "no Prometheus was found; everything but the scrape proof works without one. Name it if there is one".into(),
            "ambit observe --prometheus NAMESPACE/POD=http://ADDRESS:9090",
        );
    }
    for one in &proofs.prometheis {
        if !one.reachable {
            hint("PROMETHEUS_UNREACHABLE", format!("{}: {}", one.id, one.error), "");
        } else if one.enrolled == Some(false) {
            hint(
                "PROMETHEUS_NOT_ENROLLED",
                format!("{} is not in the mesh, so every scrape of it is plaintext", one.id),
                &format!("kubectl label namespace {} istio.io/dataplane-mode=ambient", one.namespace),
            );
        }
    }
    hints
}
