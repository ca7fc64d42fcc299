use super::*;
use crate::fixture::Fixture;
use crate::flow::Security;
use crate::ingest::parse::{self, Workloads};
use crate::testing::{T0, World, batch, greeting, pod, scrape};

const PROM: (&str, &str) = ("monitoring", "prometheus-0");
const APP: (&str, &str) = ("shop", "cart-0");

fn world() -> World {
    World::new([pod(PROM.0, PROM.1, "n1", 1), pod(APP.0, APP.1, "n2", 2)])
}

fn key((namespace, name): (&str, &str)) -> PlaceKey {
    PlaceKey::Pod(namespace.into(), name.into())
}

fn lane(store: &Store, reporter: Reporter) -> &Recorded {
    let pair = store.find(&key(PROM), &key(APP), 8080).unwrap();
    pair.lanes.iter().find(|lane| lane.lane.reporter == reporter).unwrap()
}

#[test]
fn a_batch_is_counted_once_however_often_it_comes() {
    let World { mut store, directory, .. } = world();
    let says = [scrape(Reporter::Source, PROM, APP)];
    let (mut session, welcome) = store.greet(&greeting("n1", 5, T0), T0).unwrap();
    assert!(!welcome.known);
    for _ in 0..3 {
        let applied = store.apply(&mut session, &batch(1, T0, &says, &directory), T0, &directory).unwrap();
        assert_eq!(applied.sequence, 1);
    }
    assert_eq!(lane(&store, Reporter::Source).total.sent, 1_000);
    // The connection breaks; the proxy is told how far it got and sends the next, and the last once more.
    store.leave(session);
    let (mut session, welcome) = store.greet(&greeting("n1", 5, T0), T0).unwrap();
    assert_eq!((welcome.known, welcome.applied), (true, 1));
    store.apply(&mut session, &batch(1, T0, &says, &directory), T0, &directory).unwrap();
    store.apply(&mut session, &batch(2, T0 + 1_000, &says, &directory), T0 + 1_000, &directory).unwrap();
    assert_eq!(lane(&store, Reporter::Source).total.sent, 2_000);
}

#[test]
fn batches_that_are_skipped_without_being_counted_as_lost_are_refused() {
    let World { mut store, directory, .. } = world();
    let (mut session, _) = store.greet(&greeting("n1", 5, T0), T0).unwrap();
    store.apply(&mut session, &batch(1, T0, &[], &directory), T0, &directory).unwrap();
    let gap = store.apply(&mut session, &batch(4, T0, &[], &directory), T0, &directory);
    assert_eq!(gap, Err(Refused::Gap { node: "n1".into(), applied: 1, got: 4 }));
    let lost = proxy::Lost { batches: 2, rows: 9, flows: 0 };
    let honest = Batch { lost, ..batch(4, T0, &[], &directory) };
    store.apply(&mut session, &honest, T0, &directory).unwrap();
    assert_eq!(store.proxies()[0].lost, lost);
}

#[test]
fn a_restarted_proxy_counts_on_and_its_old_connections_are_not_open() {
    let World { mut store, directory, .. } = world();
    let says = [scrape(Reporter::Source, PROM, APP)];
    let (mut old, _) = store.greet(&greeting("n1", 5, T0), T0).unwrap();
    store.apply(&mut old, &batch(1, T0, &says, &directory), T0, &directory).unwrap();
    assert_eq!(lane(&store, Reporter::Source).open_now, 1);
    let (mut new, welcome) = store.greet(&greeting("n1", 6, T0), T0).unwrap();
    assert_eq!((welcome.known, welcome.applied), (false, 0));
    store.tick(T0, &directory);
    assert_eq!(lane(&store, Reporter::Source).open_now, 0);
    store.apply(&mut new, &batch(1, T0, &says, &directory), T0, &directory).unwrap();
    assert_eq!(
        (lane(&store, Reporter::Source).total.sent, lane(&store, Reporter::Source).open_now),
        (2_000, 1)
    );
    let late = store.apply(&mut old, &batch(2, T0, &says, &directory), T0, &directory);
    assert_eq!(late, Err(Refused::Replaced { node: "n1".into() }));
}

#[test]
fn one_proxy_cannot_open_streams_without_end() {
    let World { mut store, .. } = world();
    let mut streams: Vec<_> = (0..4).map(|_| store.greet(&greeting("n1", 5, T0), T0).unwrap().0).collect();
    let refused = store.greet(&greeting("n1", 5, T0), T0);
    assert_eq!(refused.err(), Some(Refused::TooManyStreams { node: "n1".into() }));
    assert!(store.greet(&greeting("n2", 5, T0), T0).is_ok());
    store.leave(streams.remove(0));
    assert!(store.greet(&greeting("n1", 5, T0), T0).is_ok());
}

#[test]
fn a_baseline_closes_what_it_does_not_name() {
    let World { mut store, directory, .. } = world();
    let says = [scrape(Reporter::Source, PROM, APP)];
    let (mut session, _) = store.greet(&greeting("n1", 5, T0), T0).unwrap();
    store.apply(&mut session, &batch(1, T0, &says, &directory), T0, &directory).unwrap();
    let baseline = Batch { baseline: true, ..batch(2, T0, &[], &directory) };
    store.apply(&mut session, &baseline, T0, &directory).unwrap();
    assert_eq!(lane(&store, Reporter::Source).open_now, 0);
}

#[test]
fn a_clock_in_the_future_is_refused_and_named() {
    let World { mut store, directory, .. } = world();
    let refused = store.greet(&greeting("n1", 5, T0 + 3_600_000), T0);
    assert!(matches!(refused, Err(Refused::ClockAhead { ahead_ms: 3_600_000, .. })));
    let (mut session, _) = store.greet(&greeting("n2", 5, T0), T0).unwrap();
    let future = batch(1, T0 + 60_000, &[scrape(Reporter::Destination, PROM, APP)], &directory);
    let refused = store.apply(&mut session, &future, T0, &directory);
    assert!(matches!(refused, Err(Refused::ClockAhead { ahead_ms: 60_000, .. })));
    assert!(store.is_empty());
    let window = crate::table::Window { seconds: 300, at: T0, live: true };
    let table = crate::table::Table::of(&store, &directory, &[], window, T0);
    for proxy in &table.proxies {
        assert!(proxy.problems.iter().any(|problem| problem.contains("clock")), "{proxy:?}");
    }
    assert_eq!(table.proxies.len(), 2);
}

#[test]
fn a_million_series_of_one_proxy_leave_room_for_the_others() {
    let World { directory, .. } = world();
    let mut store = Store::new(Limits { lanes_per_proxy: 50, ..Limits::default() });
    let (mut hostile, _) = store.greet(&greeting("n1", 5, T0), T0).unwrap();
    for sequence in 1..=20u64 {
        let ports = (0..10).map(|i| (sequence * 10 + i) as u16);
        let says: Vec<_> =
            ports.map(|port| crate::testing::Says { port, ..scrape(Reporter::Source, PROM, APP) }).collect();
        store.apply(&mut hostile, &batch(sequence, T0, &says, &directory), T0, &directory).unwrap();
    }
    assert_eq!(store.len(), 50);
    let proxy = &store.proxies()[0];
    assert_eq!((proxy.lanes, proxy.pairs_refused, proxy.rows_refused), (50, 150, 150));
    let (mut honest, _) = store.greet(&greeting("n2", 5, T0), T0).unwrap();
    let says = [scrape(Reporter::Destination, PROM, APP)];
    let applied = store.apply(&mut honest, &batch(1, T0, &says, &directory), T0, &directory).unwrap();
    assert_eq!(applied.refused, 0);
}

#[test]
fn a_proxy_is_not_believed_for_pods_of_other_nodes() {
    let World { mut store, directory, .. } = world();
    let (mut session, _) = store.greet(&greeting("n1", 5, T0), T0).unwrap();
    let lie = [scrape(Reporter::Destination, PROM, APP)];
    let applied = store.apply(&mut session, &batch(1, T0, &lie, &directory), T0, &directory).unwrap();
    assert_eq!(applied.refused, 1);
    assert!(applied.reason.unwrap().contains("another node"));
    // Told before the pod was known, it is found out later.
    let unknown = Directory::default();
    store.apply(&mut session, &batch(2, T0, &lie, &unknown), T0, &unknown).unwrap();
    assert!(lane(&store, Reporter::Destination).believed);
    store.tick(T0, &directory);
    assert!(!lane(&store, Reporter::Destination).believed);
}

#[test]
fn what_is_idle_for_an_hour_is_forgotten() {
    let mut world = world();
    let closed = |reporter| crate::testing::Says { open_now: 0, ..scrape(reporter, PROM, APP) };
    world.both(T0, closed);
    let directory = world.directory.clone();
    world.store.tick(T0 + FORGET, &directory);
    assert_eq!(world.store.len(), 1);
    world.store.tick(T0 + FORGET + 1_001, &directory);
    assert_eq!((world.store.len(), world.store.places()), (0, 0));
    assert!(world.store.proxies().iter().all(|proxy| proxy.lanes == 0));
    // The proxy still has its number for the pair, and uses it again.
    world.both(T0 + 2 * FORGET, closed);
    assert_eq!(lane(&world.store, Reporter::Source).total.sent, 1_000);
}

#[test]
fn proxies_that_come_and_go_do_not_fill_the_store() {
    let mut store = Store::new(Limits { proxies: 3, ..Limits::default() });
    for day in 0..20u64 {
        let now = T0 + day * 2 * FORGET;
        let greeting =
            Greeting { pod: format!("ambit-system/p-{day}").into(), ..greeting("n1", day + 1, now) };
        let (session, _) = store.greet(&greeting, now).unwrap();
        store.leave(session);
    }
    assert_eq!(store.proxies().len(), 1);
    let (_one, _) = store.greet(&greeting("n1", 1, T0), T0).unwrap();
    let (_two, _) = store.greet(&greeting("n2", 1, T0), T0).unwrap();
    let refused = store.greet(&greeting("n3", 1, T0), T0);
    assert_eq!(refused.err(), Some(Refused::TooManyProxies { node: "n3".into(), max: 3 }));
}

#[test]
fn connections_of_a_dead_proxy_are_not_open_for_ever() {
    let mut world = world();
    world.both(T0, |reporter| scrape(reporter, PROM, APP));
    world.hear("n2", T0 + GONE + 1, &[]);
    let directory = world.directory.clone();
    world.store.tick(T0 + GONE + 1, &directory);
    assert_eq!(lane(&world.store, Reporter::Source).open_now, 0);
    assert_eq!(lane(&world.store, Reporter::Destination).open_now, 1);
}

#[test]
fn bytes_agree_to_the_byte_with_what_was_reported() {
    let mut world = world();
    let mut sum = Counts::default();
    for second in 0..2_000u64 {
        let counts = Counts { sent: second * second % 70_001, received: second % 301, ..Counts::default() };
        sum.add(&counts);
        let at = T0 + second * 1_000;
        world.hear("n1", at, &[crate::testing::Says { counts, ..scrape(Reporter::Source, PROM, APP) }]);
    }
    let lane = lane(&world.store, Reporter::Source);
    assert_eq!(lane.lane.security, Security::MutualTls);
    assert_eq!((lane.total, lane.within(T0 - 1_000, T0 + 2_000_000)), (sum, sum));
}

/// The figure of the whole is printed by `--example generator -- --pods 10000 --history 60`.
#[test]
fn an_hour_of_a_thousand_pods_is_a_matter_of_megabytes() {
    let fixture = Fixture::new(1_000, 1);
    let mut store = Store::new(Limits::default());
    let directory = fixture.directory();
    for mut proxy in fixture.proxies() {
        let mut workloads = Workloads::default();
        let hello = proxy.hello(T0);
        let greeting = parse::greeting(&hello, "spiffe://t/ns/a/sa/b", &mut store.texts).unwrap();
        let (mut session, _) = store.greet(&greeting, T0 + 3_600_000).unwrap();
        for step in 0..120 {
            let (from, to) = (T0 + step * 30_000, T0 + step * 30_000 + 30_000);
            for message in proxy.batches(from, to) {
                let batch = parse::batch(message, &mut workloads, &mut store.texts, &directory).unwrap();
                let applied = store.apply(&mut session, &batch, T0 + 3_600_000, &directory).unwrap();
                assert_eq!(applied.refused, 0);
            }
        }
    }
    let (bytes, pairs) = (store.heap_bytes(), store.len());
    println!("1,000 pods, {pairs} pairs, an hour: {} KiB, {} bytes a pair", bytes / 1024, bytes / pairs);
    assert!(pairs > 2_000 && bytes / pairs < 6_000, "{bytes} bytes for {pairs} pairs");
}
