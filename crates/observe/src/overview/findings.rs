//! What is not as it should be, put together so that one cause is one line: by workloads first, and where a caller has
//! the same trouble with several workloads of a namespace, by namespace.

use std::collections::{BTreeMap, BTreeSet};

use crate::directory::Directory;
use crate::flow::{Millis, Text};
use crate::model::{Finding, Why};
use crate::store::place::Place;
use crate::table::{Row, some};
use crate::why::{Code, explain};

const FINDINGS: usize = 200;
/// Up to so many workloads of a namespace are named one by one.
const APART: usize = 3;
const PORTS: usize = 8;

/// The rows that `pick` gives a code, put together by workloads and reason.
pub(super) fn of<'a>(
    rows: &[&'a Row],
    pick: &dyn Fn(&Row) -> Option<Code>,
    directory: &Directory,
) -> Vec<Finding> {
    struct Parts<'a> {
        first: &'a Row,
        ports: BTreeSet<u16>,
        pairs: usize,
        bytes: u64,
        connections: u64,
        last: Option<Millis>,
    }
    let mut found: BTreeMap<(&Text, &Text, Code, &'a Text), Parts<'a>> = BTreeMap::new();
    for (row, code) in rows.iter().filter_map(|row| pick(row).map(|code| (row, code))) {
        let key = (&row.source.workload_id, &row.target.workload_id, code, &row.policy);
        let parts = found.entry(key).or_insert_with(|| Parts {
            first: row,
            ports: BTreeSet::new(),
            pairs: 0,
            bytes: 0,
            connections: 0,
            last: None,
        });
        parts.ports.insert(row.port);
        parts.pairs += 1;
        let carried = row.bytes.plaintext + row.bytes.unproven;
        parts.bytes += carried;
        let connections = &row.connections;
        parts.connections += match code {
            Code::DeniedByPolicy => connections.denied,
            Code::ConnectFailed | Code::TlsFailed => connections.failed,
            _ => connections.opened.max(connections.open_now),
        };
        parts.last = parts.last.max(row.last_activity);
    }
    let finding =
        |((source, target, code, policy), parts): ((&'a Text, &'a Text, Code, &'a Text), Parts<'a>)| {
            let row = parts.first;
            let name = |place: &Place| {
                let end = &place.end;
                let workload = if end.workload.is_empty() { &end.pod } else { &end.workload };
                if place.is_inside() { format!("{}/{workload}", end.namespace) } else { place.name() }
            };
            Finding {
                source: source.clone(),
                target: target.clone(),
                source_name: name(&row.source),
                target_name: name(&row.target),
                ports: some(parts.ports, PORTS),
                why: Why {
                    count: parts.pairs,
                    ..explain(code, &row.source, &row.target, &row.reason, policy, directory)
                },
                policy: policy.clone(),
                targets: 1,
                pairs: parts.pairs,
                bytes: parts.bytes,
                connections: parts.connections,
                last_activity: parts.last,
            }
        };
    let targets = |(key, parts): ((&'a Text, &'a Text, Code, &'a Text), Parts<'a>)| {
        let target = &*parts.first.target;
        (finding((key, parts)), target)
    };
    let mut found = together(found.into_iter().map(targets).collect());
    found.sort_by_key(|finding| {
        (std::cmp::Reverse((finding.bytes, finding.connections)), finding.source.clone())
    });
    found.truncate(FINDINGS);
    found
}

/// Several workloads of a namespace with one cure are one finding.
fn together(found: Vec<(Finding, &Place)>) -> Vec<Finding> {
    type Key = (Text, Code, String, Text, Text);
    let mut groups: BTreeMap<Key, Vec<(Finding, &Place)>> = BTreeMap::new();
    for (finding, target) in found {
        let why = &finding.why;
        let (source, policy) = (finding.source.clone(), finding.policy.clone());
        let key = (source, why.code, why.command.clone(), policy, target.namespace_id.clone());
        groups.entry(key).or_default().push((finding, target));
    }
    let mut put = Vec::new();
    for ((.., namespace), group) in groups {
        let inside = group.first().is_some_and(|(_, target)| target.is_inside());
        if group.len() <= APART || !inside {
            put.extend(group.into_iter().map(|(finding, _)| finding));
            continue;
        }
        let mut members = group.into_iter();
        let Some((mut whole, target)) = members.next() else { continue };
        let mut others = 0;
        let mut ports: BTreeSet<u16> = whole.ports.iter().copied().collect();
        for (member, _) in members {
            others += usize::from(member.why.text != whole.why.text);
            ports.extend(member.ports);
            whole.targets += 1;
            whole.pairs += member.pairs;
            whole.bytes += member.bytes;
            whole.connections += member.connections;
            whole.last_activity = whole.last_activity.max(member.last_activity);
        }
        whole.target = namespace;
        whole.target_name = target.end.namespace.to_string();
        whole.ports = some(ports, PORTS);
        whole.why.count = whole.pairs;
        if others > 0 {
            whole.why.text.push_str(&format!(", and {others} more alike"));
        }
        put.push(whole);
    }
    put
}

#[cfg(test)]
mod tests;
