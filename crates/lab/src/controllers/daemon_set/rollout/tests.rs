use super::*;

const ONE_BY_ONE: Strategy = Strategy::Replace { unavailable: 1 };
const SURGE: Strategy = Strategy::Surge { nodes: 1 };

fn wanted(nodes: &[&str]) -> BTreeSet<String> {
    nodes.iter().map(|node| (*node).to_owned()).collect()
}

fn daemon(pod: &str, node: &str, current: bool, available: bool) -> Daemon {
    Daemon { pod: pod.into(), node: node.into(), current, ready: available, available, ..Daemon::default() }
}

fn create(node: &str) -> Action {
    Action::Create { node: node.into() }
}

fn gone(pod: &str) -> Action {
    Action::Delete { pod: pod.into() }
}

#[test]
fn every_wanted_node_gets_one_and_no_other_keeps_one() {
    let daemons = [daemon("a", "n1", true, true), daemon("x", "gone", true, true)];
    assert_eq!(plan(&wanted(&["n1", "n2"]), &daemons, ONE_BY_ONE), [gone("x"), create("n2")]);
}

#[test]
fn a_node_waits_for_the_end_of_the_daemon_before() {
    let mut old = daemon("a", "n1", true, true);
    old.terminating = true;
    assert_eq!(plan(&wanted(&["n1"]), std::slice::from_ref(&old), ONE_BY_ONE), []);
    assert_eq!(plan(&wanted(&["n1"]), &[], ONE_BY_ONE), [create("n1")]);
}

#[test]
fn a_daemon_that_ended_is_replaced() {
    let mut ended = daemon("a", "n1", true, false);
    ended.finished = true;
    assert_eq!(plan(&wanted(&["n1"]), &[ended], ONE_BY_ONE), [gone("a")]);
}

#[test]
fn two_of_one_template_on_one_node_are_one_too_many() {
    let mut daemons = [daemon("late", "n1", true, true), daemon("early", "n1", true, true)];
    daemons[0].created = 2;
    daemons[1].created = 1;
    assert_eq!(plan(&wanted(&["n1"]), &daemons, ONE_BY_ONE), [gone("late")]);
}

#[test]
fn a_new_template_replaces_one_node_at_a_time() {
    let nodes = wanted(&["n1", "n2"]);
    let mut daemons = [daemon("a", "n1", false, true), daemon("b", "n2", false, true)];
    assert_eq!(plan(&nodes, &daemons, ONE_BY_ONE), [gone("a")]);
    daemons[0].terminating = true;
    assert_eq!(plan(&nodes, &daemons, ONE_BY_ONE), [], "n1 has none yet");
    daemons[0] = daemon("a2", "n1", true, true);
    assert_eq!(plan(&nodes, &daemons, ONE_BY_ONE), [gone("b")]);
}

#[test]
fn an_old_daemon_that_does_not_serve_is_replaced_at_once() {
    let nodes = wanted(&["n1", "n2"]);
    let daemons = [daemon("a", "n1", false, false), daemon("b", "n2", false, false)];
    assert_eq!(plan(&nodes, &daemons, ONE_BY_ONE), [gone("a"), gone("b")]);
}

#[test]
fn with_surge_the_old_daemon_serves_until_the_new_one_does() {
    let nodes = wanted(&["n1", "n2"]);
    let (a, b) = (daemon("a", "n1", false, true), daemon("b", "n2", false, true));
    assert_eq!(plan(&nodes, &[a.clone(), b.clone()], SURGE), [create("n1")]);
    let starting = daemon("a2", "n1", true, false);
    assert_eq!(plan(&nodes, &[a.clone(), b.clone(), starting], SURGE), []);
    let serving = daemon("a2", "n1", true, true);
    assert_eq!(plan(&nodes, &[a, b.clone(), serving.clone()], SURGE), [gone("a")]);
    assert_eq!(plan(&nodes, &[b, serving], SURGE), [create("n2")]);
}

#[test]
fn on_delete_leaves_old_daemons_alone() {
    assert_eq!(plan(&wanted(&["n1"]), &[daemon("a", "n1", false, true)], Strategy::OnDelete), []);
}
