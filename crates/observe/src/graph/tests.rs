use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::directory::Pod;
use crate::flow::{Counts, Reporter, Security};
use crate::model::{Edge, Lock, Node};
use crate::testing::{Says, T0, World, pod, scrape};
use crate::why::Code;

const PROM: (&str, &str) = ("monitoring", "prometheus-0");
const CART: (&str, &str) = ("shop", "cart-0");

fn query(level: Level) -> Query {
    Query { level: Some(level), ..Query::default() }
}

fn edge<'a>(graph: &'a Graph, id: &str) -> &'a Edge {
    let ids: Vec<_> = graph.edges.iter().map(|edge| &*edge.id).collect();
    graph.edges.iter().find(|edge| *edge.id == *id).unwrap_or_else(|| panic!("{id} is not among {ids:?}"))
}

/// Bytes of `scrapes` scrapes.
fn scrapes(says: Says, scrapes: u64) -> Says {
    Says { counts: Counts { sent: 1_000 * scrapes, ..Counts::default() }, ..says }
}

/// Case D28: half a padlock.
#[test]
fn an_edge_is_locked_only_if_all_of_it_is() {
    let second = ("monitoring", "prometheus-1");
    let out = Pod { enrolled: false, workload: "prometheus".into(), ..pod(second.0, second.1, "n1", 3) };
    let mut world = World::new([pod(PROM.0, PROM.1, "n1", 1), pod(CART.0, CART.1, "n2", 2), out]);
    world.both(T0, |reporter| scrapes(scrape(reporter, PROM, CART), 95));
    let plain = scrapes(scrape(Reporter::Destination, second, CART).plaintext(""), 5);
    world.hear("n2", T0, &[plain]);
    let graph = build(&world.table(T0), &query(Level::Workload), &Visible::All);
    let found = edge(&graph, "wl:monitoring/prometheus>wl:shop/cart");
    assert_eq!((found.percent_mutual_tls, found.lock, found.state), (Some(95.0), Lock::Open, State::Mixed));
    assert_eq!(found.label, "95.00 % mTLS");
    assert_eq!(&*found.exceptions[0].source, "pod:monitoring/prometheus-1");
    assert_eq!(found.exceptions[0].code, Code::SrcNotEnrolled);
    assert_eq!(
        found.reasons[0].command,
        "kubectl label namespace monitoring istio.io/dataplane-mode=ambient"
    );
    assert_eq!(graph.coverage.by_bytes.percent, Some(95.0));

    // A window in which the destination's proxy reports nothing.
    let mut world = World::new([pod(PROM.0, PROM.1, "n1", 1), pod(CART.0, CART.1, "n2", 2)]);
    world.hear("n1", T0, &[scrape(Reporter::Source, PROM, CART)]);
    let graph = build(&world.table(T0), &query(Level::Workload), &Visible::All);
    let found = edge(&graph, "wl:monitoring/prometheus>wl:shop/cart");
    assert_eq!((found.lock, &*found.label), (Lock::Unproven, "one-sided"));

    // One in which it says plaintext while the source says mutual TLS.
    world.hear("n2", T0, &[scrape(Reporter::Destination, PROM, CART).plaintext("")]);
    let graph = build(&world.table(T0), &query(Level::Workload), &Visible::All);
    let found = edge(&graph, "wl:monitoring/prometheus>wl:shop/cart");
    assert_eq!((found.lock, &*found.label), (Lock::Unproven, "contradiction"));
    assert_eq!(graph.coverage.by_bytes.unproven, graph.coverage.by_bytes.total);
}

#[test]
fn a_node_says_why_its_pods_are_not_in_the_mesh() {
    let opted = Pod { enrolled: false, opted_out: true, ..pod("shop", "cart-1", "n2", 3) };
    let car = |name: &str, last| Pod { enrolled: false, sidecar: true, ..pod("shop", name, "n2", last) };
    let pods = [
        pod(PROM.0, PROM.1, "n1", 1),
        pod(CART.0, CART.1, "n2", 2),
        opted,
        car("cart-2", 4),
        car("cart-3", 5),
    ];
    let mut world = World::new(pods);
    for name in ["cart-0", "cart-1", "cart-2", "cart-3"] {
        world.hear("n1", T0, &[scrape(Reporter::Source, PROM, ("shop", name)).plaintext("not_enrolled")]);
    }
    let table = world.table(T0);
    let said = |level, id: &str| {
        let graph = build(&table, &query(level), &Visible::All);
        let node = graph.nodes.into_iter().find(|node| *node.id == *id).unwrap();
        node.outside.into_iter().map(|why| (why.code, why.count, why.text)).collect::<Vec<_>>()
    };
    let all = said(Level::Workload, "wl:shop/cart");
    let codes: Vec<_> = all.iter().map(|(code, count, _)| (*code, *count)).collect();
    assert_eq!(codes, [(Code::Sidecar, 2), (Code::OptedOut, 1)]);
    // One pod stands for all of its kind, and always the same one, so that a live picture does not flicker.
    assert!(all[0].2.starts_with("shop/cart-2 "), "{all:?}");
    assert_eq!(said(Level::Namespace, "ns:shop"), all);
    assert_eq!(said(Level::Pod, "pod:shop/cart-1").len(), 1);
    assert_eq!(said(Level::Pod, "pod:shop/cart-0"), []);
}

/// A Prometheus and so many apps of their own workloads in two namespaces.
fn hub(apps: usize) -> World {
    let mut pods = vec![pod(PROM.0, PROM.1, "n1", 1)];
    for i in 0..apps {
        let name = format!("app{i}-0");
        pods.push(Pod { workload: format!("app{i}").into(), ..pod(space(i), &name, "n2", 10 + i as u8) });
    }
    let mut world = World::new(pods);
    for i in 0..apps {
        let name: &'static str = format!("app{i}-0").leak();
        if i == 3 {
            world.hear(
                "n1",
                T0,
                &[scrape(Reporter::Source, PROM, (space(i), name)).plaintext("not_enrolled")],
            );
        } else {
            world.both(T0, |reporter| scrape(reporter, PROM, (space(i), name)));
        }
    }
    world
}

fn space(i: usize) -> &'static str {
    if i.is_multiple_of(2) { "shop" } else { "batch" }
}

#[test]
fn a_hub_is_one_trunk_a_namespace_that_names_what_is_wrong() {
    let world = hub(20);
    for level in [Level::Namespace, Level::Workload, Level::Pod] {
        let graph = build(&world.table(T0), &query(level), &Visible::All);
        let from =
            if level == Level::Pod { "pod:monitoring/prometheus-0" } else { "wl:monitoring/prometheus" };
        let batch = edge(&graph, &format!("trunk:{from}>ns:batch"));
        assert_eq!((&*batch.label, batch.lock), ("9/10 mTLS", Lock::Open));
        assert_eq!(&*batch.exceptions[0].target, "pod:batch/app3-0");
        let shop = edge(&graph, &format!("trunk:{from}>ns:shop"));
        assert_eq!((&*shop.label, shop.lock, shop.kind), ("10/10 mTLS", Lock::Closed, "trunk"));
        assert_eq!(graph.edges.len(), 2);
        assert!(graph.nodes.iter().any(|node| node.hub && *node.id == *from));
        // What it reaches stands in its box, each in its own state.
        let inside = match level {
            Level::Namespace => continue,
            Level::Workload => "wl:batch/app3",
            Level::Pod => "pod:batch/app3-0",
        };
        let node = graph.nodes.iter().find(|node| *node.id == *inside).unwrap();
        assert_eq!((node.state, node.pods), (State::Plaintext, 1));
        let kind = if level == Level::Pod { "pod" } else { "workload" };
        assert_eq!(graph.nodes.iter().filter(|node| node.kind == kind).count(), 21);
    }
}

#[test]
fn trunks_fan_out_where_asked_and_hubs_can_be_hidden_or_shown_alone() {
    let world = hub(20);
    let table = world.table(T0);
    let expand: BTreeSet<_> = ["batch".to_owned()].into();
    let graph = build(&table, &Query { expand, ..query(Level::Workload) }, &Visible::All);
    assert_eq!(graph.edges.len(), 11);
    assert_eq!(edge(&graph, "wl:monitoring/prometheus>wl:batch/app3").lock, Lock::Open);
    let with = |hubs| build(&table, &Query { hubs, ..query(Level::Workload) }, &Visible::All).edges.len();
    assert_eq!((with(Hubs::Edges), with(Hubs::Hide), with(Hubs::Only)), (20, 0, 20));
    // Nine are no hub.
    let few = build(&hub(9).table(T0), &query(Level::Workload), &Visible::All);
    assert_eq!(few.edges.len(), 9);
}

#[test]
fn every_end_and_every_parent_is_among_the_nodes() {
    let mut world = hub(14);
    // Somebody from outside, and a pod that the cluster does not know.
    world.hear(
        "n2",
        T0,
        &[scrape(Reporter::Destination, ("", "203.0.113.9"), ("shop", "app0-0")).plaintext("")],
    );
    world.hear("n2", T0, &[scrape(Reporter::Destination, ("ghost", "casper-0"), ("shop", "app0-0"))]);
    for level in [Level::Namespace, Level::Workload, Level::Pod] {
        for hubs in [Hubs::Trunks, Hubs::Edges] {
            let graph = build(&world.table(T0), &Query { hubs, ..query(level) }, &Visible::All);
            let ids: BTreeSet<_> = graph.nodes.iter().map(|node| node.id.clone()).collect();
            assert_eq!(ids.len(), graph.nodes.len());
            for edge in &graph.edges {
                assert!(ids.contains(&edge.source) && ids.contains(&edge.target), "{}", edge.id);
            }
            for node in &graph.nodes {
                assert!(node.parent.as_ref().is_none_or(|parent| ids.contains(parent)), "{node:?}");
            }
        }
    }
}

#[test]
fn hostile_names_keep_ids_apart_and_stay_text() {
    let evil: (&str, &str) = ("shop", "a/../<script>\u{202e}>wl:x");
    let long: (&str, &str) = ("shop", "x".repeat(253).leak());
    let mut world = World::new([
        pod(CART.0, CART.1, "n2", 2),
        pod(evil.0, evil.1, "n1", 3),
        pod(long.0, long.1, "n1", 4),
    ]);
    world.hear(
        "n2",
        T0,
        &[scrape(Reporter::Destination, evil, CART), scrape(Reporter::Destination, long, CART)],
    );
    let graph = build(&world.table(T0), &query(Level::Pod), &Visible::All);
    assert_eq!(graph.edges.len(), 2);
    for edge in &graph.edges {
        assert_eq!(edge.id.matches('>').count(), 1, "{}", edge.id);
        assert!(edge.id.is_ascii() && !edge.id.contains('<'));
    }
    assert!(graph.nodes.iter().any(|node| &*node.name == evil.1), "the name itself is kept as it is");
}

#[test]
fn filters_and_permissions_limit_what_is_shown() {
    let mut world = hub(4);
    world.both(T0, |reporter| scrape(reporter, ("shop", "app0-0"), ("shop", "app2-0")));
    let table = world.table(T0);
    let count = |filter: Filter, visible: &Visible| {
        build(&table, &Query { filter, ..query(Level::Workload) }, visible).edges.len()
    };
    assert_eq!(count(Filter::default(), &Visible::All), 5);
    assert_eq!(count(Filter::new("batch", "", "").unwrap(), &Visible::All), 2);
    assert_eq!(count(Filter::new("", "APP3", "").unwrap(), &Visible::All), 1);
    assert_eq!(count(Filter::new("", "", "plaintext").unwrap(), &Visible::All), 1);
    assert!(Filter::new("", "", "sideways").is_err());
    let some = Visible::Namespaces(["shop".into()].into());
    assert_eq!(count(Filter::default(), &some), 3);
    assert_eq!(count(Filter::default(), &Visible::Namespaces(BTreeSet::new())), 0);
}

#[test]
fn what_is_left_out_is_what_is_in_order() {
    let world = hub(9);
    let graph = build(&world.table(T0), &Query { limit: 1, ..query(Level::Workload) }, &Visible::All);
    assert_eq!((graph.edges.len(), graph.limits.edges_left_out), (1, 8));
    assert_eq!(graph.edges[0].lock, Lock::Open);
}

#[test]
fn data_of_a_silent_proxy_has_an_age() {
    let mut world = World::new([pod(PROM.0, PROM.1, "n1", 1), pod(CART.0, CART.1, "n2", 2)]);
    world.both(T0, |reporter| scrape(reporter, PROM, CART));
    world.hear("n1", T0 + 40_000, &[]);
    let graph = build(&world.table(T0 + 40_000), &query(Level::Workload), &Visible::All);
    assert_eq!(graph.edges[0].stale_ms, Some(40_000));
    let proxy = graph.proxies.iter().find(|proxy| &*proxy.node == "n2").unwrap();
    assert_eq!(proxy.stale_ms, Some(40_000));
    assert!(proxy.problems[0].contains("silent for 40 s"));
}

/// What a browser does with a delta.
fn patched(old: &Graph, new: &Graph) -> (BTreeMap<Text, Node>, BTreeMap<Text, Edge>) {
    let changes = changes(old, new);
    let mut nodes: BTreeMap<_, _> = old.nodes.iter().map(|node| (node.id.clone(), node.clone())).collect();
    let mut edges: BTreeMap<_, _> = old.edges.iter().map(|edge| (edge.id.clone(), edge.clone())).collect();
    changes.removed_nodes.iter().for_each(|id| assert!(nodes.remove(id).is_some()));
    changes.removed_edges.iter().for_each(|id| assert!(edges.remove(id).is_some()));
    nodes.extend(changes.nodes.into_iter().map(|node| (node.id.clone(), node.clone())));
    edges.extend(changes.edges.into_iter().map(|edge| (edge.id.clone(), edge.clone())));
    (nodes, edges)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn deltas_lead_to_the_same_picture_as_a_snapshot(
        steps in prop::collection::vec((0u8..6, 0u8..6, 0u8..3, 0u64..400_000), 2..40),
    ) {
        let pods: Vec<_> = (0..6u8).map(|i| pod(space(usize::from(i)), &format!("p{i}-0"), ["n1", "n2"][usize::from(i % 2)], i + 1)).collect();
        let mut world = World::new(pods);
        let mut now = T0;
        let mut before: Option<Graph> = None;
        for (source, destination, kind, pause) in steps {
            now += pause;
            let name = |i: u8| -> (&'static str, &'static str) { (space(usize::from(i)), ["p0-0", "p1-0", "p2-0", "p3-0", "p4-0", "p5-0"][usize::from(i)]) };
            let (source, destination) = (name(source), name(destination));
            match kind {
                0 => world.both(now, |reporter| Says { open_now: 0, ..scrape(reporter, source, destination) }),
                1 => world.both(now, |reporter| Says { open_now: 0, ..scrape(reporter, source, destination).plaintext("x") }),
                _ => world.both(now, |reporter| scrape(reporter, source, destination).denied("shop/no")),
            }
            let graph = build(&world.table(now), &query(Level::Pod), &Visible::All);
            if let Some(before) = &before {
                let (nodes, edges) = patched(before, &graph);
                let ids: Vec<_> = graph.nodes.iter().map(|node| node.id.clone()).collect();
                prop_assert_eq!(nodes.into_keys().collect::<Vec<_>>(), ids);
                prop_assert_eq!(edges.len(), graph.edges.len());
                for edge in &graph.edges {
                    let got = &edges[&edge.id];
                    prop_assert_eq!((got.state, got.pairs, got.connections.denied), (edge.state, edge.pairs, edge.connections.denied));
                    prop_assert!(got.bytes.sent.abs_diff(edge.bytes.sent) as f64 <= 0.06 * got.bytes.sent.max(1) as f64);
                }
            }
            before = Some(graph);
        }
    }
}

#[test]
fn nothing_new_is_nothing_to_tell() {
    let world = hub(12);
    let graph = build(&world.table(T0), &query(Level::Workload), &Visible::All);
    let again = build(&world.table(T0 + 1_000), &query(Level::Workload), &Visible::All);
    assert!(changes(&graph, &again).is_empty());
    assert_eq!(Security::MutualTls.word(), "mutual_tls");
}
