//! What a proxy sends, judged at the border: bounds, texts, identities, addresses. After this nobody handles protobuf.
//!
//! A row or definition that cannot be understood is left out and counted, with the first reason; only what breaks the
//! frame (a batch that is too large, a number of 0) makes the whole message unacceptable.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use wire::flow;

use crate::directory::Directory;
use crate::flow::{Counts, Definition, End, Lane, Millis, Reporter, Row, Security, Text, Verdict};
use crate::store::proxy::Lost;
use crate::store::{Batch, Greeting, Texts};

/// Rows of a batch, at most; and definitions of each kind.
pub const MAX_ROWS: usize = 8_192;
/// Workloads that a stream may define.
const MAX_WORKLOADS: usize = 65_536;
const MAX_TEXT: usize = 512;
const MAX_IDENTITY: usize = 1_024;

/// Why a message is not acceptable at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Too many of something.
    #[error("{what} holds {got} entries, at most {max} are accepted")]
    TooMany {
        /// Which field.
        what: &'static str,
        /// How many.
        got: usize,
        /// The bound.
        max: usize,
    },
    /// A field is missing or impossible.
    #[error("{field} {problem}")]
    Field {
        /// Which field.
        field: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

/// The workloads that a stream has defined.
#[derive(Debug, Default)]
pub struct Workloads(HashMap<u32, Arc<End>>);

/// Reads a greeting; `identity` is what the certificate proved.
pub fn greeting(hello: &flow::Hello, identity: &str, texts: &mut Texts) -> Result<Greeting, ParseError> {
    let field = |field, problem| ParseError::Field { field, problem };
    if hello.node.is_empty() || hello.node.len() > MAX_TEXT {
        return Err(field(
            "hello.node",
            "is empty or too long: it is the name of the proxy's Kubernetes node",
        ));
    }
    if hello.pod_name.len() + hello.pod_namespace.len() > MAX_TEXT {
        return Err(field("hello.pod_name", "is too long"));
    }
    if hello.epoch == 0 {
        return Err(field(
            "hello.epoch",
            "is 0: it must be random and stay the same while the process lives",
        ));
    }
    let clock = Millis::try_from(hello.clock_ms).map_err(|_| field("hello.clock_ms", "is negative"))?;
    let version: String = hello.version.chars().take(100).collect();
    Ok(Greeting {
        node: texts.share(&hello.node),
        pod: texts.share(&format!("{}/{}", hello.pod_namespace, hello.pod_name)),
        identity: texts.share(identity),
        version: texts.share(&version),
        epoch: hello.epoch,
        clock,
    })
}

/// Reads a batch. Definitions of workloads are remembered in `workloads`.
pub fn batch(
    message: flow::Batch,
    workloads: &mut Workloads,
    texts: &mut Texts,
    directory: &Directory,
) -> Result<Batch, ParseError> {
    let bounded = |what, got| {
        if got > MAX_ROWS { Err(ParseError::TooMany { what, got, max: MAX_ROWS }) } else { Ok(()) }
    };
    bounded("batch.rows", message.rows.len())?;
    bounded("batch.pairs", message.pairs.len())?;
    bounded("batch.workloads", message.workloads.len())?;
    bounded("batch.forgotten_pairs", message.forgotten_pairs.len())?;
    if message.sequence == 0 {
        return Err(ParseError::Field { field: "batch.sequence", problem: "is 0: it begins at 1" });
    }
    let negative = |field| ParseError::Field { field, problem: "is negative" };
    let from = Millis::try_from(message.from_ms).map_err(|_| negative("batch.from_ms"))?;
    let to = Millis::try_from(message.to_ms).map_err(|_| negative("batch.to_ms"))?;
    let mut unreadable: (u32, Option<String>) = (0, None);
    let mut refuse = |why: String| {
        unreadable.0 = unreadable.0.saturating_add(1);
        unreadable.1.get_or_insert(why);
    };
    for workload in &message.workloads {
        match end(workload, texts) {
            Ok(end) if workloads.0.len() < MAX_WORKLOADS || workloads.0.contains_key(&workload.id) => {
                workloads.0.insert(workload.id, Arc::new(directory.complete(end)));
            }
            Ok(_) => refuse(format!("more than {MAX_WORKLOADS} workloads are defined on one stream")),
            Err(why) => refuse(why),
        }
    }
    let mut definitions = Vec::with_capacity(message.pairs.len());
    for pair in &message.pairs {
        match definition(pair, workloads, texts) {
            Ok(definition) => definitions.push((pair.id, Arc::new(definition))),
            Err(why) => refuse(why),
        }
    }
    let rows = message.rows.iter().map(row).collect();
    let dropped = message.dropped.unwrap_or_default();
    Ok(Batch {
        sequence: message.sequence,
        from,
        to,
        baseline: message.baseline,
        definitions,
        rows,
        forgotten: message.forgotten_pairs,
        lost: Lost { batches: dropped.batches, rows: dropped.rows, flows: dropped.flows },
        unreadable,
    })
}

fn end(workload: &flow::WorkloadDefinition, texts: &mut Texts) -> Result<End, String> {
    if workload.id == 0 {
        return Err("a workload is defined as number 0".into());
    }
    let fields = [
        &workload.cluster,
        &workload.namespace,
        &workload.pod,
        &workload.workload,
        &workload.workload_type,
        &workload.canonical_name,
        &workload.canonical_revision,
        &workload.node,
    ];
    if let Some(long) = fields.iter().find(|text| text.len() > MAX_TEXT) {
        return Err(format!(
            "a text of a workload has {} bytes, at most {MAX_TEXT} are accepted",
            long.len()
        ));
    }
    let [cluster, namespace, pod, name, kind, canonical, revision, node] =
        fields.map(|text| texts.share(text));
    let address = match workload.address.as_str() {
        "" => None,
        text => {
            let ip: IpAddr =
                text.parse().map_err(|_| format!("a workload's address {:?} is no IP address", cut(text)))?;
            Some(ip.to_canonical())
        }
    };
    Ok(End {
        cluster,
        namespace,
        pod,
        workload: name,
        workload_type: kind,
        canonical_name: canonical,
        canonical_revision: revision,
        node,
        address,
        enrolled: workload.enrolled,
    })
}

fn definition(
    pair: &flow::PairDefinition,
    workloads: &Workloads,
    texts: &mut Texts,
) -> Result<Definition, String> {
    let id = pair.id;
    if id == 0 {
        return Err("a pair is defined as number 0".into());
    }
    let known = |number: u32| {
        let end = workloads.0.get(&number).cloned();
        end.ok_or_else(|| format!("pair {id} names workload {number}, which was never defined"))
    };
    let (source, destination) = (known(pair.source)?, known(pair.destination)?);
    let port = u16::try_from(pair.destination_port)
        .map_err(|_| format!("pair {id} has port {}, which is none", pair.destination_port))?;
    let reporter = match pair.reporter() {
        flow::Reporter::Source => Reporter::Source,
        flow::Reporter::Destination => Reporter::Destination,
        flow::Reporter::Unspecified => return Err(format!("pair {id} does not say which end reports")),
    };
    let verdict = match pair.verdict() {
        flow::Verdict::Allowed => Verdict::Allowed,
        flow::Verdict::Denied => Verdict::Denied,
        flow::Verdict::Failed => Verdict::Failed,
        flow::Verdict::Unspecified => return Err(format!("pair {id} has no verdict")),
    };
    let security = match pair.security() {
        flow::Security::MutualTls => Security::MutualTls,
        flow::Security::Plaintext => Security::Plaintext,
        flow::Security::NodeLocal => Security::NodeLocal,
        flow::Security::Unknown => Security::Unknown,
    };
    let mut identity = |text: &str| -> Result<Text, String> {
        if text.is_empty() {
            return Ok(texts.share(""));
        }
        let valid = text.len() <= MAX_IDENTITY && text.parse::<mesh::Identity>().is_ok();
        if valid {
            Ok(texts.share(text))
        } else {
            Err(format!("pair {id}: {:?} is no SPIFFE identity", cut(text)))
        }
    };
    let source_identity = identity(&pair.source_identity)?;
    let destination_identity = identity(&pair.destination_identity)?;
    for text in [&pair.service, &pair.reason, &pair.policy] {
        if text.len() > MAX_TEXT {
            return Err(format!(
                "a text of pair {id} has {} bytes, at most {MAX_TEXT} are accepted",
                text.len()
            ));
        }
    }
    let lane = Lane {
        reporter,
        security,
        verdict,
        source_identity,
        destination_identity,
        source_proven: pair.source_proven,
        destination_proven: pair.destination_proven,
        service: texts.share(&pair.service),
        reason: texts.share(&pair.reason),
        policy: texts.share(&pair.policy),
    };
    Ok(Definition { source, destination, port, lane })
}

fn row(row: &flow::Row) -> Row {
    Row {
        pair: row.pair,
        counts: Counts {
            sent: row.bytes_sent,
            received: row.bytes_received,
            opened: row.opened.into(),
            closed: row.closed.into(),
            failed: row.failed.into(),
        },
        open_now: row.open_now,
        activity_ago: row.last_activity_ago_ms.into(),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests;
