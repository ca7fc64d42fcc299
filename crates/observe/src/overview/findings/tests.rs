use super::*;
use crate::directory::Pod;
use crate::flow::Reporter;
use crate::model::Overview;
use crate::observer::Proofs;
use crate::testing::{T0, World, pod, scrape};

const PROM: (&str, &str) = ("monitoring", "prometheus-0");
const APPS: [(&str, &str); 5] =
    [("shop", "a-0"), ("shop", "b-0"), ("shop", "c-0"), ("shop", "d-0"), ("bank", "e-0")];

fn overview(world: &World) -> Overview {
    let table = world.table(T0 + 1_000);
    crate::overview::build(
        &table,
        &Proofs::default(),
        &Default::default(),
        &Default::default(),
        &crate::graph::Visible::All,
    )
}

#[test]
fn one_cause_is_one_line_however_many_workloads_it_concerns() {
    let out = Pod { enrolled: false, ..pod(PROM.0, PROM.1, "n1", 1) };
    let apps = APPS.iter().enumerate().map(|(i, app)| pod(app.0, app.1, "n2", 2 + i as u8));
    let mut world = World::new(apps.chain([out]));
    let says = APPS.map(|app| scrape(Reporter::Destination, PROM, app).plaintext(""));
    world.hear("n2", T0, &says);
    let plaintext = overview(&world).plaintext;
    let lines: Vec<_> = plaintext
        .iter()
        .map(|found| (&*found.target, found.target_name.as_str(), found.targets, found.pairs))
        .collect();
    assert_eq!(lines, [("ns:shop", "shop", 4, 4), ("wl:bank/e", "bank/e", 1, 1)]);
    assert_eq!(plaintext[0].bytes, 4 * 1_100);
    assert_eq!(plaintext[0].why.text, "monitoring/prometheus-0 is not in the mesh");
}

#[test]
fn what_is_refused_now_is_found_beside_what_was_carried_before() {
    let mut world = World::new([pod(PROM.0, PROM.1, "n1", 1), pod("shop", "a-0", "n2", 2)]);
    world.both(T0 - 20_000, |reporter| scrape(reporter, PROM, APPS[0]));
    world.hear("n2", T0, &[scrape(Reporter::Destination, PROM, APPS[0]).denied("shop/closed")]);
    let overview = overview(&world);
    assert!(overview.plaintext.is_empty() && overview.unproven.is_empty());
    let [denied] = &overview.denied[..] else { panic!("{:?}", overview.denied) };
    assert_eq!(
        (&*denied.policy, denied.connections, denied.why.code),
        ("shop/closed", 1, Code::DeniedByPolicy)
    );
    assert!(denied.why.text.contains("policy shop/closed decides"));
}
