//! Whatever a node proxy pushes to the observer: a greeting, then batches; afterwards the graph is asked for.

use observe::Observer;
use observe::ingest::parse::{self, Workloads};
use observe::store::Limits;
use prost::Message;
use wire::flow::{Batch, FromProxy, Hello, PairDefinition, Row, WorkloadDefinition, from_proxy};

use super::{joined, pieces};

/// The observer's clock.
const NOW: u64 = 1_700_000_000_000;

pub fn run(input: &[u8]) {
    let observer = Observer::new(Limits::default(), Box::new(|| NOW));
    let mut messages =
        pieces(input).into_iter().filter_map(|(_, bytes)| FromProxy::decode(bytes).ok()?.message);
    let Some(from_proxy::Message::Hello(hello)) = messages.next() else { return };
    let directory = observer.directory();
    let greeted = observer.with_store(|store| {
        let greeting =
            parse::greeting(&hello, "spiffe://td/ns/ambit-system/sa/ambit-proxy", &mut store.texts).ok()?;
        store.greet(&greeting, NOW).ok()
    });
    let Some((mut session, welcome)) = greeted else { return };
    assert!(!welcome.known, "nobody was here before");
    let mut workloads = Workloads::default();
    for message in messages {
        let from_proxy::Message::Batch(batch) = message else { break };
        let (rows, sequence) = (batch.rows.len(), batch.sequence);
        let applied = observer.with_store(|store| {
            let batch = parse::batch(batch, &mut workloads, &mut store.texts, &directory).ok()?;
            store.apply(&mut session, &batch, NOW, &directory).ok()
        });
        let Some(applied) = applied else { break };
        assert!(applied.sequence >= sequence, "what was applied is acknowledged");
        assert_eq!(applied.refused > 0, applied.reason.is_some(), "a refusal has a reason");
        assert!(observer.with_store(|store| store.len()) <= rows.saturating_add(1 << 16));
    }
    observer.with_store(|store| store.leave(session));
    observer.tick();
    let table = observer.table(60, None);
    drop(table);
    observer.proofs();
}

pub fn examples() -> Vec<Vec<u8>> {
    let message = |message| FromProxy { message: Some(message) }.encode_to_vec();
    let hello = message(from_proxy::Message::Hello(Hello {
        node: "n1".into(),
        pod_namespace: "ambit-system".into(),
        pod_name: "proxy".into(),
        epoch: 7,
        clock_ms: NOW as i64,
        version: "1".into(),
    }));
    let workload = |id: u32, pod: &str| WorkloadDefinition {
        id,
        namespace: "shop".into(),
        pod: pod.into(),
        workload: pod.into(),
        node: "n1".into(),
        enrolled: true,
        ..WorkloadDefinition::default()
    };
    let batch = |sequence: u64, first: bool| {
        let mut batch = Batch {
            sequence,
            from_ms: NOW as i64 - 1_000,
            to_ms: NOW as i64,
            baseline: first,
            rows: vec![Row {
                pair: 1,
                opened: 2,
                closed: 1,
                open_now: 1,
                bytes_sent: 10,
                bytes_received: 20,
                ..Row::default()
            }],
            ..Batch::default()
        };
        if first {
            batch.workloads = vec![workload(1, "a"), workload(2, "b")];
            batch.pairs = vec![PairDefinition {
                id: 1,
                reporter: 1,
                source: 1,
                destination: 2,
                destination_port: 80,
                security: 1,
                verdict: 1,
                source_identity: "spiffe://td/ns/shop/sa/a".into(),
                destination_identity: "spiffe://td/ns/shop/sa/b".into(),
                ..PairDefinition::default()
            }];
        }
        message(from_proxy::Message::Batch(batch))
    };
    let (first, second) = (batch(1, true), batch(2, false));
    vec![
        joined([(false, &hello[..]), (false, &first[..]), (false, &second[..])]),
        joined([(false, &hello[..]), (false, &second[..])]),
    ]
}
