use wire::flow;

use super::outbox::Dictionary;
use super::*;
use crate::flows::{Reporter, Security, ServiceLabels};

fn pair(pod: &str) -> Pair {
    Pair {
        reporter: Reporter::Source,
        source: End { namespace: "shop".into(), pod: "a".into(), ..End::default() },
        destination: End { namespace: "shop".into(), pod: pod.into(), ..End::default() },
        source_identity: None,
        destination_identity: None,
        service: ServiceLabels::default(),
        port: 80,
        security: Security::Plaintext,
        verdict: Verdict::Allowed,
        reason: "not_enrolled".into(),
        policy: "".into(),
    }
}

/// Everything that has not been sent on this stream.
fn send(outbox: &mut Outbox, dictionary: &mut Dictionary, table: &Table) -> Vec<flow::Batch> {
    std::iter::from_fn(|| outbox.next(dictionary, table)).collect()
}

#[test]
fn bytes_are_counted_once_whatever_becomes_of_the_stream() {
    let (table, mut outbox) = (Table::default(), Outbox::new(7, 0));
    let lane = table.lane(pair("b")).unwrap();
    lane.opened();
    lane.sent(100);
    outbox.collect(&table, 1_000);
    let mut first = Dictionary::bounded(0);
    outbox.welcome(false, 0);
    let sent = send(&mut outbox, &mut first, &table);
    assert_eq!(sent.len(), 1);
    assert_eq!((sent[0].sequence, sent[0].baseline), (1, true));
    assert_eq!((sent[0].rows[0].bytes_sent, sent[0].rows[0].open_now), (100, 1));
    assert_eq!((sent[0].workloads.len(), sent[0].pairs.len()), (2, 1));
    lane.sent(5);
    outbox.collect(&table, 2_000);
    // The stream breaks; the observer has the first batch and never acknowledged it.
    let mut second = Dictionary::bounded(0);
    outbox.welcome(true, 1);
    let sent = send(&mut outbox, &mut second, &table);
    assert_eq!(sent.iter().map(|batch| batch.sequence).collect::<Vec<_>>(), [2]);
    assert_eq!(sent[0].rows[0].bytes_sent, 5);
    assert_eq!(sent[0].pairs.len(), 1, "a new stream knows no numbers");
    outbox.acknowledge(2);
    assert!(outbox.is_empty());
}

#[test]
fn an_observer_that_has_forgotten_everything_is_told_what_is_open() {
    let (table, mut outbox) = (Table::default(), Outbox::new(7, 0));
    let lane = table.lane(pair("b")).unwrap();
    lane.opened();
    outbox.collect(&table, 1_000);
    outbox.acknowledge(1);
    outbox.welcome(false, 0);
    outbox.collect(&table, 2_000);
    let sent = send(&mut outbox, &mut Dictionary::bounded(0), &table);
    assert!(sent[0].baseline);
    assert_eq!(sent[0].sequence, 2, "sequences go on");
    assert_eq!((sent[0].rows[0].open_now, sent[0].rows[0].opened), (1, 0));
}

#[test]
fn an_absent_observer_costs_bounded_memory_and_no_byte() {
    let (table, mut outbox) = (Table::default(), Outbox::new(7, 0));
    let lane = table.lane(pair("b")).unwrap();
    lane.opened();
    for second in 1..1_000 {
        lane.sent(1);
        outbox.collect(&table, second * 1_000);
    }
    assert!(outbox.len() <= 120);
    outbox.welcome(false, 0);
    let mut dictionary = Dictionary::bounded(0);
    let mut total = 0;
    let mut last = 0;
    for _ in 0..2 {
        for batch in send(&mut outbox, &mut dictionary, &table) {
            total += batch.rows.iter().map(|row| row.bytes_sent).sum::<u64>();
            assert_eq!(batch.sequence, last + 1, "no gap");
            last = batch.sequence;
            outbox.acknowledge(batch.sequence);
        }
        outbox.collect(&table, 1_000_000);
    }
    assert_eq!(total, 999);
}

#[test]
fn flows_without_room_in_the_table_are_counted_as_dropped() {
    let (table, mut outbox) = (Table::bounded(2), Outbox::new(7, 0));
    assert!(table.lane(pair("b")).is_some() && table.lane(pair("c")).is_some());
    assert!(table.lane(pair("b")).is_some(), "known pairs need no room");
    assert!(table.lane(pair("d")).is_none());
    outbox.collect(&table, 1_000);
    let sent = send(&mut outbox, &mut Dictionary::bounded(0), &table);
    assert_eq!(sent[0].dropped.unwrap().flows, 1);
}

#[test]
fn many_rows_come_in_batches_that_the_observer_takes() {
    let (table, mut outbox) = (Table::default(), Outbox::new(7, 0));
    for number in 0..2_000 {
        table.lane(pair(&format!("pod-{number}"))).unwrap().failed();
    }
    outbox.collect(&table, 1_000);
    let sent = send(&mut outbox, &mut Dictionary::bounded(0), &table);
    assert!(sent.iter().all(|batch| batch.rows.len() <= 512));
    assert_eq!(sent.iter().map(|batch| batch.rows.len()).sum::<usize>(), 2_000);
    assert_eq!(sent.iter().filter(|batch| batch.baseline).count(), 1);
    let numbers: std::collections::BTreeSet<u32> =
        sent.iter().flat_map(|batch| &batch.pairs).map(|pair| pair.id).collect();
    assert_eq!(numbers.len(), 2_000);
}

#[test]
fn a_quiet_proxy_gives_a_sign_of_life_now_and_then() {
    let (table, mut outbox) = (Table::default(), Outbox::new(7, 0));
    for second in 1..=30 {
        outbox.collect(&table, second * 1_000);
    }
    assert_eq!(outbox.len(), 3, "the baseline, and one each ten seconds");
}

#[test]
fn the_observer_is_told_of_no_more_pairs_than_it_keeps_and_what_it_is_not_told_is_counted() {
    let (table, mut outbox) = (Table::default(), Outbox::new(7, 0));
    for name in ["b", "c", "d"] {
        table.lane(pair(name)).unwrap().failed();
    }
    outbox.collect(&table, 1_000);
    let mut dictionary = Dictionary::bounded(2);
    let sent = send(&mut outbox, &mut dictionary, &table);
    assert_eq!((sent[0].pairs.len(), sent[0].rows.len()), (2, 2));
    let known: Vec<u32> = sent[0].pairs.iter().map(|pair| pair.id).collect();
    for name in ["b", "c", "d"] {
        table.lane(pair(name)).unwrap().failed();
    }
    outbox.collect(&table, 2_000);
    let sent = send(&mut outbox, &mut dictionary, &table);
    let rows: Vec<u32> = sent[0].rows.iter().map(|row| row.pair).collect();
    assert!(rows.len() == 2 && rows.iter().all(|id| known.contains(id)), "the same two go on");
    assert_eq!(sent[0].dropped.unwrap().rows, 1, "the one that was left out before");
}

#[test]
fn an_observer_that_wants_less_often_is_told_less_often() {
    let reports = Reports::new();
    assert_eq!(reports.interval(), INTERVAL);
    reports.0.interval_ms.store(5_000, Ordering::Relaxed);
    assert_eq!(reports.interval(), Duration::from_secs(5));
    reports.0.interval_ms.store(u32::MAX, Ordering::Relaxed);
    assert_eq!(reports.interval(), MAX_INTERVAL);
    reports.0.interval_ms.store(10, Ordering::Relaxed);
    assert_eq!(reports.interval(), INTERVAL, "never faster");
}
