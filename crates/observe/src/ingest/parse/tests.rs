use sent::pair;

use super::*;

/// Messages as a proxy that means well would send them.
mod sent {
    use wire::flow;

    pub(super) fn workload(id: u32, pod: &str) -> flow::WorkloadDefinition {
        flow::WorkloadDefinition { id, namespace: "shop".into(), pod: pod.into(), ..Default::default() }
    }

    pub(super) fn pair(id: u32) -> flow::PairDefinition {
        flow::PairDefinition {
            id,
            reporter: flow::Reporter::Source.into(),
            source: 1,
            destination: 2,
            source_identity: "spiffe://td/ns/shop/sa/a".into(),
            destination_port: 8080,
            security: flow::Security::MutualTls.into(),
            verdict: flow::Verdict::Allowed.into(),
            ..Default::default()
        }
    }

    pub(super) fn batch(pairs: Vec<flow::PairDefinition>) -> flow::Batch {
        flow::Batch {
            sequence: 1,
            to_ms: 1_000,
            workloads: vec![workload(1, "a"), workload(2, "b")],
            pairs,
            ..Default::default()
        }
    }
}

fn read(message: flow::Batch) -> Result<Batch, ParseError> {
    batch(message, &mut Workloads::default(), &mut Texts::default(), &Directory::default())
}

#[test]
fn a_good_batch_is_read_whole() {
    let mut message = batch_of_one();
    message.rows = vec![flow::Row { pair: 7, bytes_sent: 5, opened: 1, ..Default::default() }];
    let batch = read(message).unwrap();
    assert_eq!((batch.definitions.len(), batch.rows.len(), batch.unreadable.0), (1, 1, 0));
    assert_eq!(&*batch.definitions[0].1.source.pod, "a");
}

fn batch_of_one() -> flow::Batch {
    sent::batch(vec![pair(7)])
}

#[test]
fn what_cannot_be_understood_is_left_out_and_named() {
    type Spoil = fn(&mut flow::PairDefinition);
    let spoil: [(&str, Spoil); 8] = [
        ("number 0", |pair| pair.id = 0),
        ("workload 9", |pair| pair.source = 9),
        ("port 70000", |pair| pair.destination_port = 70_000),
        ("which end", |pair| pair.reporter = 0),
        ("which end", |pair| pair.reporter = 77),
        ("no verdict", |pair| pair.verdict = 0),
        ("SPIFFE", |pair| pair.source_identity = "spiffe://td/ns/../sa/x/y".into()),
        ("513 bytes", |pair| pair.reason = "x".repeat(513)),
    ];
    for (word, spoil) in spoil {
        let mut spoiled = pair(7);
        spoil(&mut spoiled);
        let batch = read(sent::batch(vec![spoiled, pair(8)])).unwrap();
        assert_eq!((batch.definitions.len(), batch.unreadable.0), (1, 1), "{word}");
        let reason = batch.unreadable.1.unwrap();
        assert!(reason.contains(word), "{reason} does not say {word}");
    }
}

#[test]
fn frames_beyond_the_bounds_are_refused() {
    let rows = vec![flow::Row::default(); MAX_ROWS + 1];
    let error = read(flow::Batch { rows, sequence: 1, ..Default::default() }).unwrap_err();
    assert!(matches!(error, ParseError::TooMany { what: "batch.rows", .. }));
    assert!(read(flow::Batch::default()).is_err());
    assert!(read(flow::Batch { sequence: 1, to_ms: -1, ..Default::default() }).is_err());
}

#[test]
fn a_greeting_must_say_who_and_which_life() {
    let hello = flow::Hello { node: "n1".into(), epoch: 3, clock_ms: 5, ..Default::default() };
    let read = |hello: &flow::Hello| greeting(hello, "spiffe://a/ns/b/sa/c", &mut Texts::default());
    assert!(read(&hello).is_ok());
    for spoiled in [
        flow::Hello { node: String::new(), ..hello.clone() },
        flow::Hello { node: "n".repeat(600), ..hello.clone() },
        flow::Hello { epoch: 0, ..hello.clone() },
        flow::Hello { clock_ms: -1, ..hello.clone() },
    ] {
        assert!(read(&spoiled).is_err(), "{spoiled:?}");
    }
}

#[test]
fn an_address_alone_is_completed_by_what_the_cluster_knows() {
    let directory = Directory::new([crate::testing::pod("shop", "cart-0", "n2", 2)], [], []);
    let workload = flow::WorkloadDefinition { id: 1, address: "10.0.0.2".into(), ..Default::default() };
    let mut workloads = Workloads::default();
    let message = flow::Batch { sequence: 1, workloads: vec![workload], ..Default::default() };
    batch(message, &mut workloads, &mut Texts::default(), &directory).unwrap();
    assert_eq!((&*workloads.0[&1].namespace, &*workloads.0[&1].pod), ("shop", "cart-0"));
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
        use prost::Message;
        if let Ok(message) = flow::Batch::decode(&bytes[..]) {
            let _ = read(message);
        }
        if let Ok(hello) = flow::Hello::decode(&bytes[..]) {
            let _ = greeting(&hello, "x", &mut Texts::default());
        }
    }
}
