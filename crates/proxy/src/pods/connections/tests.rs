use mesh::{Action, Clause, Identity, Match, Rule, Scope, StringMatch};

use super::*;

fn workload() -> Workload {
    Workload::new("c//Pod/ns/b", "b", Identity::new("cluster.local", "ns", "b").unwrap())
}

fn row() -> Row {
    let any = "10.0.0.1:80".parse().unwrap();
    Row { src: any, original: None, actual: any, protocol: "HBONE" }
}

fn connection(identity: Option<Identity>) -> Connection {
    Connection {
        identity,
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    }
}

fn strict() -> Policy {
    let one = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    Policy {
        name: "strict".into(),
        namespace: "ns".into(),
        scope: Scope::Namespace,
        action: Action::Deny,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![one] }] }],
        dry_run: false,
    }
}

#[tokio::test]
async fn only_what_is_no_longer_allowed_is_revoked() {
    let connections = Connections::default();
    let mut plain = connections.inbound(row(), connection(None));
    let mut sealed = connections.inbound(row(), connection(Some(workload().identity)));
    let _outbound = connections.outbound(row());
    let mut view = View::default();
    view.insert_workload(workload());
    view.insert_policy(strict());
    connections.judge(&view, &workload());
    assert!(matches!(plain.revoked().await, Verdict::Denied(by) if &*by.policy == "ns/strict"));
    let still = tokio::time::timeout(std::time::Duration::from_millis(10), sealed.revoked()).await;
    assert!(still.is_err());
}

#[tokio::test]
async fn policies_not_known_yet_say_nothing_about_what_runs() {
    let connections = Connections::default();
    let mut running = connections.inbound(row(), connection(None));
    let mut named = workload();
    named.policies = vec!["ns/later".into()];
    connections.judge(&View::default(), &named);
    let still = tokio::time::timeout(std::time::Duration::from_millis(10), running.revoked()).await;
    assert!(still.is_err());
}

#[test]
fn a_connection_leaves_the_list_when_it_ends() {
    let connections = Connections::default();
    let inbound = connections.inbound(row(), connection(None));
    let outbound = connections.outbound(row());
    let dump = connections.dump();
    assert_eq!(dump["inbound"].as_array().map(Vec::len), Some(1));
    assert_eq!(dump["outbound"].as_array().map(Vec::len), Some(1));
    drop((inbound, outbound));
    assert_eq!(connections.len(), 0);
}

#[test]
fn nothing_is_judged_anew_while_workload_and_policies_are_the_same_objects() {
    let mut view = View::default();
    view.insert_workload(workload());
    view.insert_policy(strict());
    let found = |view: &View| view.workload("c//Pod/ns/b").unwrap().clone();
    let before = Basis::of(&view, &found(&view));
    assert!(before.same(&Basis::of(&view.clone(), &found(&view))));
    let mut other = view.clone();
    other.insert_policy(strict());
    assert!(!before.same(&Basis::of(&other, &found(&other))), "another version of the policy");
    let mut other = view.clone();
    other.insert_workload(workload());
    assert!(!before.same(&Basis::of(&other, &found(&other))), "another version of the workload");
}
