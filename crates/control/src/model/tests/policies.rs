//! Policies: what becomes of each part (reference/control-plane.md §2).

use super::*;

fn converted_rules(spec: Value) -> Vec<mesh::Rule> {
    authorization(&settings(), &fixtures::authorization("shop", "p", spec)).unwrap().rules
}

#[test]
fn the_scope_of_a_policy_is_its_selector_or_namespace() {
    let scope = |namespace: &str, spec: Value| {
        authorization(&settings(), &fixtures::authorization(namespace, "p", spec)).unwrap().scope
    };
    let selector = json!({ "selector": { "matchLabels": { "app": "web" } } });
    assert_eq!(scope("shop", selector.clone()), Scope::WorkloadSelector);
    assert_eq!(scope("ambit-system", selector), Scope::WorkloadSelector);
    assert_eq!(scope("shop", json!({})), Scope::Namespace);
    assert_eq!(scope("shop", json!({ "selector": {} })), Scope::Namespace);
    assert_eq!(scope("ambit-system", json!({})), Scope::Global);
}

#[test]
fn of_an_allow_policy_only_rules_without_http_remain() {
    let rules = converted_rules(json!({ "rules": [
        { "from": [{ "source": { "principals": ["*"] } }] },
        { "to": [{ "operation": { "paths": ["/x"] } }] },
        { "to": [{ "operation": { "ports": ["80", "x"] } }], "when": [{ "key": "request.headers[a]", "values": ["b"] }] },
        { "to": [{ "operation": { "ports": ["80", "70000"] } }] },
    ] }));
    assert_eq!(rules.len(), 2);
    assert_eq!(rules[0].clauses[0].matches[0].principals, [StringMatch::Presence]);
    assert_eq!(rules[1].clauses[0].matches[0].destination_ports, [80]);
}

#[test]
fn of_a_deny_policy_only_the_http_attributes_are_dropped() {
    let spec = json!({ "action": "DENY", "rules": [
        { "to": [{ "operation": { "paths": ["/x"], "ports": ["80"] } }] },
        { "to": [{ "operation": { "methods": ["GET"] } }], "from": [{ "source": { "namespaces": ["a"] } }] },
    ] });
    let rules = converted_rules(spec.clone());
    assert_eq!(rules[0].clauses[0].matches[0], Match { destination_ports: vec![80], ..Match::default() });
    assert!(rules[1].clauses[0].matches[0].is_empty());
    assert_eq!(effect(&fixtures::authorization("shop", "p", spec)).http, ["methods", "paths"]);
}

/// Seven rules that mix what can and what cannot be enforced, as an ALLOW and as a DENY (reference/control-plane.md
/// §9.4, a and b).
#[test]
fn of_a_mixed_policy_an_allow_keeps_what_is_pure_and_a_deny_keeps_every_rule() {
    let rules = json!([
        { "from": [{ "source": { "principals": ["cluster.local/ns/a/sa/b"] } }], "to": [{ "operation": { "methods": ["GET"], "paths": ["/info*"] } }] },
        { "from": [{ "source": { "namespaces": ["test"] } }], "to": [{ "operation": { "ports": ["9090"] } }] },
        { "to": [{ "operation": { "hosts": ["x.example"] } }] },
        { "from": [{ "source": { "requestPrincipals": ["*"] } }] },
        { "from": [{ "source": { "remoteIpBlocks": ["10.0.0.0/8"], "ipBlocks": ["10.1.0.0/16"] } }] },
        { "when": [{ "key": "request.auth.claims[iss]", "values": ["x"] }, { "key": "source.namespace", "values": ["a"] }] },
        { "when": [{ "key": "destination.port", "notValues": ["22"] }] },
    ]);
    let allow = converted_rules(json!({ "rules": rules }));
    let [both, port] = &allow[..] else { panic!("{allow:?}") };
    assert_eq!(both.clauses.len(), 2);
    assert_eq!(both.clauses[0].matches[0].destination_ports, [9090]);
    assert_eq!(both.clauses[1].matches[0].namespaces, [StringMatch::Exact("test".into())]);
    assert_eq!(port.clauses[0].matches[0].not_destination_ports, [22]);

    let deny = converted_rules(json!({ "action": "DENY", "rules": rules }));
    assert_eq!(deny.len(), 7);
    // What is left of an entry stands; an entry with nothing left is a match that never matches.
    let never =
        |rule: usize| deny[rule].clauses.iter().any(|clause| clause.matches.iter().all(Match::is_empty));
    let wanted = [true, false, true, true, false, true, false];
    assert_eq!([0, 1, 2, 3, 4, 5, 6].map(never), wanted);
    assert_eq!(deny[4].clauses[0].matches[0].source_ips, ["10.1.0.0/16".parse().unwrap()]);
}

#[test]
fn every_part_of_a_rule_becomes_a_clause_in_order() {
    let rules = converted_rules(json!({ "rules": [{
        "from": [{ "source": {
            "namespaces": ["a*"], "notPrincipals": ["*b"], "serviceAccounts": ["x", "n/y"], "ipBlocks": ["10.0.0.0/8"],
        } }],
        "to": [{ "operation": { "notPorts": ["1"] } }],
        "when": [{ "key": "source.ip", "notValues": ["192.0.2.1"] }, { "key": "destination.port", "values": ["9"] }],
    }] }));
    let [to, from, ip, port] = &rules[0].clauses[..] else { panic!("{rules:?}") };
    assert_eq!(to.matches[0].not_destination_ports, [1]);
    let source = &from.matches[0];
    assert_eq!(source.namespaces, [StringMatch::Prefix("a".into())]);
    assert_eq!(source.not_principals, [StringMatch::Suffix("b".into())]);
    let accounts: Vec<(&str, &str)> =
        source.service_accounts.iter().map(|one| (&*one.namespace, &*one.service_account)).collect();
    assert_eq!(accounts, [("shop", "x"), ("n", "y")]);
    assert_eq!(source.source_ips, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(ip.matches[0].not_source_ips, ["192.0.2.1".parse().unwrap()]);
    assert_eq!(port.matches[0].destination_ports, [9]);
}

#[test]
fn a_policy_without_rules_is_sent_and_an_empty_rule_matches_all() {
    assert!(converted_rules(json!({})).is_empty());
    assert_eq!(converted_rules(json!({ "rules": [{}] })), [mesh::Rule::default()]);
}

#[test]
fn policies_that_are_not_for_node_proxies_are_omitted_with_the_reason() {
    let of =
        |spec: Value| authorization(&settings(), &fixtures::authorization("shop", "p", spec)).unwrap_err();
    assert_eq!(of(json!({ "action": "AUDIT" })), Omitted::Action("AUDIT".into()));
    assert_eq!(of(json!({ "targetRefs": [{ "kind": "Gateway", "name": "w" }] })), Omitted::Targeted);
    let mut policy = fixtures::authorization("shop", "p", json!({}));
    policy.revision = Some("canary".into());
    assert!(matches!(authorization(&settings(), &policy), Err(Omitted::Revision(_))));
    policy.revision = None;
    policy.dry_run = true;
    assert_eq!(authorization(&settings(), &policy), Err(Omitted::DryRun));
}

fn keys(peers: &[crate::input::PeerAuthentication]) -> Vec<String> {
    let labels = [("app".to_string(), "web".to_string())].into();
    peer_keys(&settings(), peers.iter(), "shop", &labels).iter().map(|key| key.to_string()).collect()
}

#[test]
fn the_workload_overrides_the_namespace_and_that_the_mesh() {
    let static_key = "ambit-system/istio_converted_static_strict";
    let mesh = |mode: &str| fixtures::peer("ambit-system", "default", json!({ "mtls": { "mode": mode } }));
    let namespace = |mode: &str| fixtures::peer("shop", "default", json!({ "mtls": { "mode": mode } }));
    let workload = |mode: &str, ports: Value| {
        let selector = json!({ "matchLabels": { "app": "web" } });
        fixtures::peer(
            "shop",
            "web",
            json!({ "selector": selector, "mtls": { "mode": mode }, "portLevelMtls": ports }),
        )
    };
    let strict_port = json!({ "9090": { "mode": "STRICT" } });
    let open_port = json!({ "9090": { "mode": "PERMISSIVE" } });
    let disabled_port = json!({ "9090": { "mode": "DISABLE" } });
    let own = "shop/converted_peer_authentication_web";
    let table: Vec<(Vec<_>, Vec<&str>)> = vec![
        (vec![], vec![]),
        (vec![mesh("STRICT")], vec![static_key]),
        (vec![mesh("STRICT"), namespace("PERMISSIVE")], vec![]),
        (vec![mesh("STRICT"), namespace("UNSET")], vec![static_key]),
        (vec![namespace("STRICT")], vec![static_key]),
        (vec![namespace("STRICT"), workload("DISABLE", json!({}))], vec![]),
        (vec![workload("STRICT", json!({}))], vec![static_key]),
        (vec![workload("STRICT", open_port.clone())], vec![own]),
        (vec![workload("STRICT", strict_port.clone())], vec![static_key]),
        (vec![workload("PERMISSIVE", strict_port.clone())], vec![own]),
        (vec![workload("PERMISSIVE", open_port.clone())], vec![]),
        (vec![mesh("STRICT"), workload("UNSET", open_port)], vec![own]),
        (vec![mesh("STRICT"), workload("UNSET", disabled_port)], vec![own]),
        (vec![mesh("STRICT"), workload("PERMISSIVE", strict_port.clone())], vec![own]),
        (vec![workload("UNSET", strict_port)], vec![own]),
    ];
    for (peers, wanted) in table {
        assert_eq!(keys(&peers), wanted, "{peers:?}");
        // Whatever is listed is also published.
        let published: Vec<String> = peers
            .iter()
            .filter_map(|peer| converted(&settings(), peers.iter(), peer))
            .map(|policy| policy.key().to_string())
            .collect();
        assert!(wanted.iter().all(|key| *key == static_key || published.iter().any(|have| have == key)));
    }
}

#[test]
fn of_two_of_a_level_the_oldest_wins() {
    let mut old = fixtures::peer("shop", "z", json!({ "mtls": { "mode": "PERMISSIVE" } }));
    old.created = 1;
    let mut new = fixtures::peer("shop", "a", json!({ "mtls": { "mode": "STRICT" } }));
    new.created = 2;
    assert!(keys(&[new, old]).is_empty());
}

#[test]
fn ports_of_their_own_become_a_deny_policy() {
    let selector = json!({ "matchLabels": { "app": "web" } });
    let peer = |mode: &str, ports: Value| {
        fixtures::peer(
            "shop",
            "web",
            json!({ "selector": selector, "mtls": { "mode": mode }, "portLevelMtls": ports }),
        )
    };
    let policy_of =
        |peer: &crate::input::PeerAuthentication| converted(&settings(), std::iter::once(peer), peer);
    let one = policy_of(&peer("PERMISSIVE", json!({ "9090": { "mode": "STRICT" } }))).unwrap();
    assert_eq!((one.action, one.scope, one.rules.len()), (Action::Deny, Scope::WorkloadSelector, 1));
    let only = &one.rules[0].clauses[0].matches[0];
    assert_eq!(
        (&only.destination_ports[..], &only.not_principals[..]),
        (&[9090][..], &[StringMatch::Presence][..])
    );
    let two = policy_of(&peer("STRICT", json!({ "9090": { "mode": "PERMISSIVE" } }))).unwrap();
    assert_eq!(two.rules[0].clauses.len(), 2);
    assert_eq!(two.rules[0].clauses[1].matches[0].not_destination_ports, [9090]);
    assert_eq!(policy_of(&peer("STRICT", json!({ "9090": { "mode": "STRICT" } }))), None);
}

/// §9.4, d.
#[test]
fn an_open_port_under_an_inherited_strict_is_the_only_exception() {
    let mesh = fixtures::peer("ambit-system", "default", json!({ "mtls": { "mode": "STRICT" } }));
    let ports = json!({ "9090": { "mode": "PERMISSIVE" }, "8080": { "mode": "STRICT" } });
    let selector = json!({ "matchLabels": { "app": "web" } });
    let workload = fixtures::peer("shop", "web", json!({ "selector": selector, "portLevelMtls": ports }));
    let policy = converted(&settings(), [&mesh, &workload].into_iter(), &workload).unwrap();
    assert_eq!(policy.rules.len(), 1);
    let mut clauses: Vec<&Match> = policy.rules[0].clauses.iter().map(|clause| &clause.matches[0]).collect();
    clauses.sort_by_key(|one| one.not_principals.len());
    let [open, unproven] = clauses[..] else { panic!("{policy:?}") };
    assert_eq!(open, &Match { not_destination_ports: vec![9090], ..Match::default() });
    assert_eq!(unproven, &Match { not_principals: vec![StringMatch::Presence], ..Match::default() });
}

#[test]
fn a_value_that_cannot_be_understood_never_widens_a_match() {
    let allow = |source: Value| converted_rules(json!({ "rules": [{ "from": [{ "source": source }] }] }));
    let deny = |source: Value| {
        converted_rules(json!({ "action": "DENY", "rules": [{ "from": [{ "source": source }] }] }))
    };
    let only = |rules: &[mesh::Rule]| rules[0].clauses[0].matches[0].clone();
    // Of several, what is understood still counts.
    let some = json!({ "ipBlocks": ["10.0.0.0/8", "10.0.0.300"] });
    assert_eq!(only(&allow(some.clone())).source_ips.len(), 1);
    assert_eq!(only(&deny(some)).source_ips.len(), 1);
    // None is understood: it matches nothing, also beside something else.
    let none = json!({ "ipBlocks": ["10.0.0.300"], "namespaces": ["a"] });
    assert!(allow(none.clone()).is_empty() && deny(none).is_empty());
    // An exception that is not understood: an ALLOW allows nothing, a DENY makes no exception.
    let except = json!({ "namespaces": ["a"], "notIpBlocks": ["x"] });
    assert!(allow(except.clone()).is_empty());
    assert!(only(&deny(except.clone())).not_source_ips.is_empty());
    let input = fixtures::authorization(
        "shop",
        "p",
        json!({ "action": "DENY", "rules": [{ "from": [{ "source": except }] }, { "to": [{ "operation": { "ports": ["http"] } }] }] }),
    );
    let effect = effect(&input);
    assert_eq!(effect.invalid, ["notIpBlocks \"x\"", "ports \"http\""]);
    assert!(!effect.dead && effect.lost);
}

proptest::proptest! {
    /// Whatever stands in a policy, it is converted or refused, and never matches more than without the bad value.
    #[test]
    fn absurd_policies_are_converted_without_harm(texts in proptest::collection::vec(".{0,20}", 0..20), deny: bool) {
        let action = if deny { "DENY" } else { "ALLOW" };
        let spec = json!({ "action": action, "rules": [
            { "from": [{ "source": { "ipBlocks": texts, "notIpBlocks": texts, "principals": texts } }] },
            { "to": [{ "operation": { "ports": texts } }], "when": [{ "key": "source.ip", "values": texts }] },
        ] });
        let input = fixtures::authorization("shop", "p", spec);
        let _ = (authorization(&settings(), &input), effect(&input));
    }
}
