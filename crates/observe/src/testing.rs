//! A small world for tests: pods, and proxies that say things about them.

use std::collections::HashMap;
use std::sync::Arc;

use crate::directory::{Directory, Pod};
use crate::flow::{Counts, Definition, End, Lane, Millis, Reporter, Row, Security, Verdict};
use crate::store::{Batch, Greeting, Limits, Session, Store};
use crate::table::{Table, Window};

/// The beginning of every test's time.
pub(crate) const T0: Millis = 1_760_000_000_000;

pub(crate) fn pod(namespace: &str, name: &str, node: &str, last: u8) -> Pod {
    Pod {
        namespace: namespace.into(),
        name: name.into(),
        node: node.into(),
        addresses: vec![[10, 0, 0, last].into()],
        workload: name.split("-").next().unwrap_or(name).into(),
        workload_type: "deployment".into(),
        service_account: "default".into(),
        running: true,
        enrolled: true,
        started: 1,
        ..Pod::default()
    }
}

pub(crate) fn identity(namespace: &str, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}

/// One sentence of a proxy.
#[derive(Clone)]
pub(crate) struct Says {
    pub reporter: Reporter,
    pub source: (&'static str, &'static str),
    pub destination: (&'static str, &'static str),
    pub port: u16,
    pub security: Security,
    pub verdict: Verdict,
    pub reason: &'static str,
    pub policy: &'static str,
    pub identities: Option<(String, String)>,
    pub counts: Counts,
    pub open_now: u32,
}

/// Mutual TLS as it should be; a scrape's worth of bytes.
pub(crate) fn scrape(
    reporter: Reporter,
    source: (&'static str, &'static str),
    destination: (&'static str, &'static str),
) -> Says {
    Says {
        reporter,
        source,
        destination,
        port: 8080,
        security: Security::MutualTls,
        verdict: Verdict::Allowed,
        reason: "",
        policy: "",
        identities: None,
        counts: Counts { sent: 1_000, received: 100, ..Counts::default() },
        open_now: 1,
    }
}

impl Says {
    pub fn plaintext(self, reason: &'static str) -> Self {
        Self { security: Security::Plaintext, reason, ..self }
    }

    pub fn denied(self, policy: &'static str) -> Self {
        let counts = Counts { failed: 1, ..Counts::default() };
        Self { verdict: Verdict::Denied, reason: "DENY", policy, counts, open_now: 0, ..self }
    }
}

pub(crate) struct World {
    pub store: Store,
    pub directory: Arc<Directory>,
    sessions: HashMap<String, (Session, u64)>,
}

impl World {
    pub fn new(pods: impl IntoIterator<Item = Pod>) -> Self {
        let nodes = [([192, 168, 0, 1].into(), "n1".into()), ([192, 168, 0, 2].into(), "n2".into())];
        let directory = Directory::new(pods, nodes, []);
        Self {
            store: Store::new(Limits::default()),
            directory: Arc::new(directory),
            sessions: HashMap::new(),
        }
    }

    /// The proxy of `node` says something at a moment.
    pub fn hear(&mut self, node: &str, at: Millis, says: &[Says]) {
        let (mut session, mut sequence) = match self.sessions.remove(node) {
            Some(session) => session,
            None => {
                let greeting = greeting(node, 7, at);
                (self.store.greet(&greeting, at).unwrap().0, 0)
            }
        };
        sequence += 1;
        let batch = batch(sequence, at, says, &self.directory);
        self.store.apply(&mut session, &batch, at, &self.directory).unwrap();
        self.sessions.insert(node.into(), (session, sequence));
    }

    /// Both proxies of a pair on nodes n1 and n2 say the same.
    pub fn both(&mut self, at: Millis, says: impl Fn(Reporter) -> Says) {
        for reporter in [Reporter::Source, Reporter::Destination] {
            let says = says(reporter);
            let end = if reporter == Reporter::Source { says.source } else { says.destination };
            let node = self.directory.pod(&end.0.into(), &end.1.into()).map(|pod| pod.node.to_string());
            self.hear(&node.unwrap(), at, &[says]);
        }
    }

    pub fn table(&self, now: Millis) -> Table {
        let window = Window { seconds: 300, at: now, live: true };
        Table::of(&self.store, &self.directory, &[], window, now)
    }
}

pub(crate) fn greeting(node: &str, epoch: u64, clock: Millis) -> Greeting {
    Greeting {
        node: node.into(),
        pod: format!("ambit-system/ambit-proxy-{node}").into(),
        identity: identity("ambit-system", "ambit-proxy").into(),
        version: "test".into(),
        epoch,
        clock,
    }
}

pub(crate) fn batch(sequence: u64, at: Millis, says: &[Says], directory: &Directory) -> Batch {
    let mut batch = Batch { sequence, from: at - 1_000, to: at, ..Batch::default() };
    for (i, says) in says.iter().enumerate() {
        // A number is never used twice, so that tests need not mind dictionaries.
        let id = (sequence * 1_000) as u32 + i as u32 + 1;
        batch.definitions.push((id, Arc::new(definition(says, directory))));
        batch.rows.push(Row { pair: id, counts: says.counts, open_now: says.open_now, activity_ago: 1 });
    }
    batch
}

pub(crate) fn definition(says: &Says, directory: &Directory) -> Definition {
    let end = |(namespace, name): (&str, &str)| {
        let known = directory.pod(&namespace.into(), &name.into());
        let address = if namespace.is_empty() { name.parse().ok() } else { None };
        Arc::new(End {
            namespace: namespace.into(),
            pod: if namespace.is_empty() { "".into() } else { name.into() },
            workload: known.map(|pod| pod.workload.clone()).unwrap_or_default(),
            node: known.map(|pod| pod.node.clone()).unwrap_or_default(),
            address: address.or_else(|| known.and_then(|pod| pod.addresses.first().copied())),
            enrolled: known.is_some_and(|pod| pod.enrolled),
            ..End::default()
        })
    };
    let mutual = says.security == Security::MutualTls;
    let named = || (identity(says.source.0, "default"), identity(says.destination.0, "default"));
    let (source, destination) = match &says.identities {
        Some(identities) => identities.clone(),
        None if mutual => named(),
        None => (String::new(), String::new()),
    };
    Definition {
        source: end(says.source),
        destination: end(says.destination),
        port: says.port,
        lane: Lane {
            reporter: says.reporter,
            security: says.security,
            verdict: says.verdict,
            source_identity: source.as_str().into(),
            destination_identity: destination.as_str().into(),
            source_proven: mutual,
            destination_proven: mutual,
            service: "".into(),
            reason: says.reason.into(),
            policy: says.policy.into(),
        },
    }
}
