//! Semantics of policies, one promise a test (reference/control-plane.md 0.4, reference/data-plane.md §7).

use super::*;
use crate::{Cidr, Scope, ServiceAccountMatch};

fn destination() -> Workload {
    let mut workload = Workload::new(
        "Kubernetes//Pod/app/web",
        "web",
        Identity::new("cluster.local", "app", "web").unwrap(),
    );
    workload.policies = vec!["app/bound".into()];
    workload
}

fn policy(name: &str, scope: Scope, action: Action, rules: Vec<Rule>) -> Policy {
    Policy { name: name.into(), namespace: "app".into(), scope, action, rules, dry_run: false }
}

fn rule(matches: Vec<Match>) -> Rule {
    Rule { clauses: matches.into_iter().map(|m| Clause { matches: vec![m] }).collect() }
}

fn principal(text: &str) -> Match {
    Match { principals: vec![StringMatch::Exact(text.into())], ..Match::default() }
}

fn from(identity: Option<&str>) -> Connection {
    Connection {
        identity: identity.map(|text| text.parse().unwrap()),
        source_ip: "10.0.0.9".parse().unwrap(),
        destination: "10.0.0.1:8080".parse().unwrap(),
    }
}

const PROMETHEUS: &str = "spiffe://cluster.local/ns/monitoring/sa/prometheus";
const PROMETHEUS_PRINCIPAL: &str = "cluster.local/ns/monitoring/sa/prometheus";

fn verdict(policies: Vec<Policy>, connection: &Connection) -> Verdict {
    let mut view = View::default();
    let mut workload = destination();
    let bound = policies.iter().any(|policy| policy.key() == workload.policies[0]);
    if !bound {
        workload.policies.clear();
    }
    policies.into_iter().for_each(|policy| view.insert_policy(policy));
    authorize(&view, &workload, connection)
}

#[test]
fn without_policies_everybody_may_call() {
    assert_eq!(verdict(vec![], &from(None)), Verdict::AllowedByDefault);
}

#[test]
fn a_strict_pod_refuses_plaintext_and_accepts_tunnels() {
    let unauthenticated = Match { not_principals: vec![StringMatch::Presence], ..Match::default() };
    let strict = policy("bound", Scope::WorkloadSelector, Action::Deny, vec![rule(vec![unauthenticated])]);
    assert!(
        matches!(verdict(vec![strict.clone()], &from(None)), Verdict::Denied(by) if &*by.policy == "app/bound")
    );
    assert_eq!(verdict(vec![strict], &from(Some(PROMETHEUS))), Verdict::AllowedByDefault);
}

#[test]
fn the_deciding_rule_is_named() {
    let rules = vec![rule(vec![principal("nobody")]), rule(vec![principal(PROMETHEUS_PRINCIPAL)])];
    let allow = policy("p", Scope::Namespace, Action::Allow, rules);
    assert_eq!(
        verdict(vec![allow.clone()], &from(Some(PROMETHEUS))),
        Verdict::Allowed(RuleRef { policy: "app/p".into(), rule: 1 })
    );
    assert_eq!(verdict(vec![allow], &from(None)), Verdict::NotAllowed(vec!["app/p".into()]));
}

#[test]
fn deny_wins_over_allow() {
    let allow = policy("a", Scope::Namespace, Action::Allow, vec![Rule::default()]);
    let deny = policy("d", Scope::Global, Action::Deny, vec![rule(vec![principal(PROMETHEUS_PRINCIPAL)])]);
    assert!(matches!(verdict(vec![allow, deny], &from(Some(PROMETHEUS))), Verdict::Denied(_)));
}

#[test]
fn allow_nothing_denies_all_and_deny_nothing_denies_none() {
    let allow_nothing = policy("a", Scope::Namespace, Action::Allow, vec![]);
    assert!(!verdict(vec![allow_nothing], &from(Some(PROMETHEUS))).is_allowed());
    let deny_nothing = policy("d", Scope::Namespace, Action::Deny, vec![]);
    assert!(verdict(vec![deny_nothing], &from(Some(PROMETHEUS))).is_allowed());
}

#[test]
fn an_empty_rule_matches_everything_and_an_empty_match_nothing() {
    let all = policy("a", Scope::Namespace, Action::Deny, vec![Rule::default()]);
    assert!(!verdict(vec![all], &from(None)).is_allowed());
    let none = policy("a", Scope::Namespace, Action::Deny, vec![rule(vec![Match::default()])]);
    assert!(verdict(vec![none], &from(None)).is_allowed());
    let empty_clause = Rule { clauses: vec![Clause::default()] };
    let all = policy("a", Scope::Namespace, Action::Deny, vec![empty_clause]);
    assert!(!verdict(vec![all], &from(None)).is_allowed());
}

#[test]
fn values_are_or_ed_and_kinds_and_ed() {
    let m = Match {
        principals: vec![StringMatch::Exact("x".into()), StringMatch::Exact(PROMETHEUS_PRINCIPAL.into())],
        destination_ports: vec![8080],
        ..Match::default()
    };
    let deny = policy("d", Scope::Namespace, Action::Deny, vec![rule(vec![m.clone()])]);
    assert!(!verdict(vec![deny], &from(Some(PROMETHEUS))).is_allowed());
    let other_port = Match { destination_ports: vec![9090], ..m };
    let deny = policy("d", Scope::Namespace, Action::Deny, vec![rule(vec![other_port])]);
    assert!(verdict(vec![deny], &from(Some(PROMETHEUS))).is_allowed());
}

#[test]
fn each_kind_of_condition_is_asked() {
    let block = |text: &str| text.parse::<Cidr>().unwrap();
    let account = |namespace: &str, account: &str| ServiceAccountMatch {
        namespace: namespace.into(),
        service_account: account.into(),
    };
    let hits = [
        Match { namespaces: vec![StringMatch::Prefix("mon".into())], ..Match::default() },
        Match { not_namespaces: vec![StringMatch::Exact("other".into())], ..Match::default() },
        Match { principals: vec![StringMatch::Suffix("/sa/prometheus".into())], ..Match::default() },
        Match { service_accounts: vec![account("monitoring", "prometheus")], ..Match::default() },
        Match { not_service_accounts: vec![account("monitoring", "grafana")], ..Match::default() },
        Match { source_ips: vec![block("10.0.0.0/24")], ..Match::default() },
        Match { not_source_ips: vec![block("192.168.0.0/16")], ..Match::default() },
        Match { destination_ips: vec![block("10.0.0.1")], ..Match::default() },
        Match { not_destination_ips: vec![block("10.0.0.2")], ..Match::default() },
        Match { not_destination_ports: vec![1], ..Match::default() },
    ];
    for hit in hits {
        let deny = policy("d", Scope::Namespace, Action::Deny, vec![rule(vec![hit.clone()])]);
        assert!(!verdict(vec![deny], &from(Some(PROMETHEUS))).is_allowed(), "{hit:?}");
    }
    let misses = [
        Match { namespaces: vec![StringMatch::Exact("mon".into())], ..Match::default() },
        Match { not_namespaces: vec![StringMatch::Exact("monitoring".into())], ..Match::default() },
        Match { service_accounts: vec![account("other", "prometheus")], ..Match::default() },
        Match { source_ips: vec![block("10.0.1.0/24")], ..Match::default() },
        Match { destination_ports: vec![1], ..Match::default() },
        Match { not_destination_ports: vec![8080], ..Match::default() },
    ];
    for miss in misses {
        let deny = policy("d", Scope::Namespace, Action::Deny, vec![rule(vec![miss.clone()])]);
        assert!(verdict(vec![deny], &from(Some(PROMETHEUS))).is_allowed(), "{miss:?}");
    }
}

#[test]
fn a_policy_of_another_namespace_or_selector_does_not_apply() {
    let mut other = policy("d", Scope::Namespace, Action::Deny, vec![Rule::default()]);
    other.namespace = "elsewhere".into();
    assert!(verdict(vec![other], &from(None)).is_allowed());
    let unbound = policy("unbound", Scope::WorkloadSelector, Action::Deny, vec![Rule::default()]);
    assert!(verdict(vec![unbound], &from(None)).is_allowed());
}

#[test]
fn a_dry_run_policy_decides_nothing() {
    let mut deny = policy("d", Scope::Namespace, Action::Deny, vec![Rule::default()]);
    deny.dry_run = true;
    assert!(verdict(vec![deny], &from(None)).is_allowed());
}

#[test]
fn a_policy_that_is_named_and_not_known_yet_keeps_the_door_shut() {
    let workload = destination();
    let verdict = authorize(&View::default(), &workload, &from(Some(PROMETHEUS)));
    assert_eq!(verdict, Verdict::Unknown(vec!["app/bound".into()]));
    assert!(!verdict.is_allowed());
}

#[test]
fn dry_run_policies_say_what_they_would_do_and_do_nothing() {
    let workload =
        Workload::new("Kubernetes//Pod/ns/b", "b", Identity::new("cluster.local", "ns", "b").unwrap());
    let connection = Connection {
        identity: None,
        source_ip: "10.0.0.1".parse().unwrap(),
        destination: "10.0.0.2:80".parse().unwrap(),
    };
    let policy = |name: &str, action, rules: Vec<Rule>, dry_run| Policy {
        name: name.into(),
        namespace: "ns".into(),
        scope: Scope::Namespace,
        action,
        rules,
        dry_run,
    };
    let mut view = View::default();
    view.insert_policy(policy("deny", Action::Deny, vec![Rule::default()], true));
    view.insert_policy(policy("allow", Action::Allow, vec![], true));
    assert_eq!(authorize(&view, &workload, &connection), Verdict::AllowedByDefault);
    let outcome = dry_run(&view, &workload, &connection);
    assert_eq!(
        outcome,
        [
            DryRun::Denied(RuleRef { policy: "ns/deny".into(), rule: 0 }),
            DryRun::NotAllowed(vec!["ns/allow".into()])
        ]
    );
    view.insert_policy(policy("enforced", Action::Allow, vec![Rule::default()], false));
    assert_eq!(dry_run(&view, &workload, &connection).len(), 1, "another policy goes on allowing it");
}
