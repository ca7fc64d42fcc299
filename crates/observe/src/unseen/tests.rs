use std::sync::Arc;

use super::*;
use crate::directory::Pod;
use crate::flow::{Counts, Reporter};
use crate::graph::{self, Hubs, Query, Visible};
use crate::model::{Lock, Proof};
use crate::proof::prometheus::RawTarget;
use crate::proof::{Facts, Scraper, prove};
use crate::table::Table;
use crate::testing::{Says, T0, World, pod, scrape};

const PROM: (&str, &str) = ("monitoring", "prometheus-0");
const CART: (&str, &str) = ("shop", "cart-0");

fn world(enrolled: bool) -> World {
    let pod = |name: (&str, &str), node, last| Pod { enrolled, ..pod(name.0, name.1, node, last) };
    World::new([pod(PROM, "n1", 1), pod(CART, "n2", 2)])
}

fn found(world: &World, health: &'static str, last: Millis) -> (Proof, Vec<Unseen>) {
    let raw = RawTarget {
        address: "10.0.0.2:8080".into(),
        ip: Some([10, 0, 0, 2].into()),
        port: 8080,
        namespace: CART.0.into(),
        pod: CART.1.into(),
        health,
        last_scrape: Some(last),
        interval: 15_000,
        ..RawTarget::default()
    };
    let scraper = Scraper {
        namespace: PROM.0.into(),
        pod: PROM.1.into(),
        targets: Arc::new(vec![raw]),
        ..Scraper::default()
    };
    let facts = Facts { store: &world.store, directory: &world.directory, now: T0 + 5_000 };
    let (targets, unseen) = prove(&scraper, &facts);
    (targets[0].proof, unseen)
}

fn drawn(world: &World, unseen: &[Unseen]) -> crate::model::Graph {
    let window = Window { seconds: 300, at: T0 + 5_000, live: true };
    let table = Table::of(&world.store, &world.directory, unseen, window, T0 + 5_000);
    graph::build(&table, &Query { hubs: Hubs::Edges, ..Query::default() }, &Visible::All)
}

#[test]
fn before_the_first_label_the_graph_has_an_open_lock_with_its_reason() {
    let world = world(false);
    let (proof, unseen) = found(&world, "up", T0);
    assert_eq!(proof, Proof::Plaintext);
    let graph = drawn(&world, &unseen);
    let edge = &graph.edges[0];
    assert_eq!(&*edge.id, "wl:monitoring/prometheus>wl:shop/cart");
    assert_eq!((edge.lock, edge.unseen, edge.last_activity), (Lock::Open, 1, Some(T0)));
    let why = &edge.reasons[0];
    assert_eq!((why.code, &*why.reason), (Code::SrcNotEnrolled, REASON));
    assert_eq!(why.command, "kubectl label namespace monitoring istio.io/dataplane-mode=ambient");
    let coverage = &graph.coverage;
    assert_eq!((coverage.by_pairs.plaintext, coverage.uncounted_pairs), (1, 1));
    assert_eq!((coverage.by_pairs.percent, coverage.by_bytes.percent), (Some(0.0), None));
    assert_eq!(graph.limits.pods, 2);
}

#[test]
fn what_was_proven_before_does_not_hide_a_scrape_that_goes_past_the_mesh_now() {
    let mut world = world(true);
    let before =
        |reporter| Says { counts: Counts { sent: 9, ..Counts::default() }, ..scrape(reporter, PROM, CART) };
    world.both(T0 - 60_000, before);
    world.directory = self::world(false).directory;
    let (_, unseen) = found(&world, "up", T0);
    let graph = drawn(&world, &unseen);
    let edge = &graph.edges[0];
    assert_eq!(
        (edge.lock, edge.percent_mutual_tls, edge.label.as_str()),
        (Lock::Open, Some(0.0), "plaintext")
    );
    assert_eq!(graph.edges.len(), 1);
}

#[test]
fn nothing_is_drawn_that_did_not_happen_or_that_a_proxy_saw() {
    // It does not answer.
    assert!(found(&world(false), "down", T0).1.is_empty());
    // Both are in the mesh and nobody has reported: unproven, which is not plaintext.
    assert!(found(&world(true), "up", T0).1.is_empty());
    // The destination's proxy saw it itself.
    let mut seen = world(true);
    seen.hear("n2", T0, &[scrape(Reporter::Destination, PROM, CART).plaintext("")]);
    assert!(found(&seen, "up", T0).1.is_empty());
    // It is older than the window; and the past is not made from what is so now.
    let old = found(&world(false), "up", T0 - 400_000).1;
    assert!(drawn(&world(false), &old).edges.is_empty());
    let (world, mut rows) = (world(false), Vec::new());
    let now = found(&world, "up", T0).1;
    add(&mut rows, &now, Window { seconds: 300, at: T0 + 5_000, live: false });
    assert!(rows.is_empty());
}
