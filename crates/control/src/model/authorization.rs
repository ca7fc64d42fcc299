//! AuthorizationPolicy to policy (reference/control-plane.md §2.1).
//!
//! What layer 4 cannot see is never guessed at: an ALLOW rule with an HTTP attribute is left out whole (it allows
//! less), of a DENY rule only the attribute is dropped. A value that cannot be understood matches nothing: it never
//! widens a match by being left out, and an exception that hangs on it is not made. [`effect`] says truthfully what
//! was left out.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;

use mesh::{Action, Cidr, Clause, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch};

use super::Settings;
use crate::input::{AuthorizationPolicy, Condition, Operation, PolicyAction, PolicyRule, Source};

/// Why a policy is not sent to node proxies at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Omitted {
    /// It is for waypoints.
    #[error("it has a targetRef and so is for waypoints")]
    Targeted,
    /// It is only to be tried.
    #[error(
        "it is annotated istio.io/dry-run and support for ambient dry-run authorizationPolicies isn't enabled"
    )]
    DryRun,
    /// Its action means nothing at layer 4.
    #[error("ztunnel does not support the {0} action")]
    Action(String),
    /// It belongs to another control plane.
    #[error("it belongs to revision {0}")]
    Revision(String),
}

/// The policy as node proxies evaluate it.
pub fn authorization(settings: &Settings, input: &AuthorizationPolicy) -> Result<Policy, Omitted> {
    if !settings.in_revision(input.revision.as_deref()) {
        return Err(Omitted::Revision(input.revision.clone().unwrap_or_default()));
    }
    if input.dry_run {
        return Err(Omitted::DryRun);
    }
    if !input.targets.is_empty() {
        return Err(Omitted::Targeted);
    }
    let action = match &input.action {
        PolicyAction::Allow => Action::Allow,
        PolicyAction::Deny => Action::Deny,
        PolicyAction::Other(action) => return Err(Omitted::Action(action.clone())),
    };
    let scope = if input.selector.is_some() {
        Scope::WorkloadSelector
    } else if input.key.namespace == settings.root_namespace {
        Scope::Global
    } else {
        Scope::Namespace
    };
    let rules = rules(&super::aliases::expanded(settings, input), action);
    Ok(Policy {
        name: input.key.name.clone(),
        namespace: input.key.namespace.clone(),
        scope,
        action,
        rules,
        dry_run: false,
    })
}

/// What of a policy is enforced, and what is not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// HTTP attributes, which layer 4 does not enforce, sorted.
    pub http: Vec<String>,
    /// Values that cannot be understood, sorted.
    pub invalid: Vec<String>,
    /// Something matches more than was written, since an attribute beside it was dropped.
    pub wider: bool,
    /// Some of what was written never matches.
    pub lost: bool,
    /// It has rules, and none of them ever matches.
    pub dead: bool,
}

/// What of a policy is enforced, and what is not.
pub fn effect(input: &AuthorizationPolicy) -> Effect {
    let action = if input.action == PolicyAction::Deny { Action::Deny } else { Action::Allow };
    let http: BTreeSet<String> = input.rules.iter().flat_map(http_attributes).collect();
    let invalid: BTreeSet<String> = input.rules.iter().flat_map(invalid_values).collect();
    let rules = rules(input, action);
    let possible =
        |clause: &Clause| clause.matches.is_empty() || clause.matches.iter().any(|one| !one.is_empty());
    let live = |rule: &Rule| rule.clauses.iter().all(possible);
    let lost = rules.len() < input.rules.len()
        || rules.iter().any(|rule| {
            !live(rule) || rule.clauses.iter().any(|clause| clause.matches.iter().any(Match::is_empty))
        });
    let mixed = |rule: &PolicyRule| {
        let to = rule
            .to
            .iter()
            .any(|one| (!one.ports.is_empty() || !one.not_ports.is_empty()) && operation_has_http(one));
        to || rule.from.iter().any(|one| source_has_http(one) && source_has_layer_4(one))
    };
    Effect {
        http: http.into_iter().collect(),
        invalid: invalid.into_iter().collect(),
        wider: action == Action::Deny
            && input.rules.iter().any(|one| {
                mixed(one) && rule(&input.key.namespace, one, action).is_some_and(|built| live(&built))
            }),
        lost,
        dead: !input.rules.is_empty() && !rules.iter().any(live),
    }
}

/// The rules that are sent.
fn rules(input: &AuthorizationPolicy, action: Action) -> Vec<Rule> {
    input
        .rules
        .iter()
        .filter(|rule| action == Action::Deny || http_attributes(rule).is_empty())
        .filter_map(|one| rule(&input.key.namespace, one, action))
        .collect()
}

/// A rule; none when a value that cannot be understood leaves nothing that it could match.
fn rule(namespace: &Arc<str>, rule: &PolicyRule, action: Action) -> Option<Rule> {
    let mut clauses = Vec::new();
    let mut add = |matches: Vec<Option<Match>>| {
        let understood: Vec<Match> = matches.into_iter().flatten().collect();
        let possible = !understood.is_empty();
        clauses.push(Clause { matches: understood });
        possible
    };
    if !rule.to.is_empty() && !add(rule.to.iter().map(|one| operation(one, action)).collect()) {
        return None;
    }
    if !rule.from.is_empty() && !add(rule.from.iter().map(|one| source(namespace, one, action)).collect()) {
        return None;
    }
    for one in &rule.when {
        if !add(vec![condition(one, action)]) {
            return None;
        }
    }
    Some(Rule { clauses })
}

fn operation(operation: &Operation, action: Action) -> Option<Match> {
    Some(Match {
        destination_ports: positive(&operation.ports)?,
        not_destination_ports: negative(&operation.not_ports, action)?,
        ..Match::default()
    })
}

fn source(namespace: &Arc<str>, source: &Source, action: Action) -> Option<Match> {
    Some(Match {
        source_ips: positive(&source.ip_blocks)?,
        not_source_ips: negative(&source.not_ip_blocks, action)?,
        namespaces: strings(&source.namespaces),
        not_namespaces: strings(&source.not_namespaces),
        service_accounts: accounts(namespace, &source.service_accounts),
        not_service_accounts: accounts(namespace, &source.not_service_accounts),
        principals: strings(&source.principals),
        not_principals: strings(&source.not_principals),
        ..Match::default()
    })
}

fn condition(condition: &Condition, action: Action) -> Option<Match> {
    let (values, not_values) = (&condition.values, &condition.not_values);
    let none = Match::default();
    Some(match condition.key.as_str() {
        "source.ip" => {
            Match { source_ips: positive(values)?, not_source_ips: negative(not_values, action)?, ..none }
        }
        "source.namespace" => {
            Match { namespaces: strings(values), not_namespaces: strings(not_values), ..none }
        }
        "source.principal" => {
            Match { principals: strings(values), not_principals: strings(not_values), ..none }
        }
        "destination.ip" => Match {
            destination_ips: positive(values)?,
            not_destination_ips: negative(not_values, action)?,
            ..none
        },
        "destination.port" => Match {
            destination_ports: positive(values)?,
            not_destination_ports: negative(not_values, action)?,
            ..none
        },
        // Of HTTP: an empty match, which never matches.
        _ => none,
    })
}

/// Values of which one must match; none when there are some and none can be understood: nothing could match.
fn positive<T: FromStr>(texts: &[String]) -> Option<Vec<T>> {
    let understood: Vec<T> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    (texts.is_empty() || !understood.is_empty()).then_some(understood)
}

/// Values that must not match. Of a DENY an exception that cannot be understood is not made; an ALLOW that would
/// allow more for want of its exception allows nothing.
fn negative<T: FromStr>(texts: &[String], action: Action) -> Option<Vec<T>> {
    let understood: Vec<T> = texts.iter().filter_map(|text| text.parse().ok()).collect();
    (action == Action::Deny || understood.len() == texts.len()).then_some(understood)
}

fn strings(texts: &[String]) -> Vec<StringMatch> {
    texts
        .iter()
        .map(|text| match text.as_str() {
            "*" => StringMatch::Presence,
            text => match (text.strip_prefix('*'), text.strip_suffix('*')) {
                (Some(suffix), _) => StringMatch::Suffix(suffix.into()),
                (None, Some(prefix)) => StringMatch::Prefix(prefix.into()),
                (None, None) => StringMatch::Exact(text.into()),
            },
        })
        .collect()
}

fn accounts(namespace: &Arc<str>, texts: &[String]) -> Vec<ServiceAccountMatch> {
    texts
        .iter()
        .map(|text| match text.split_once('/') {
            Some((namespace, account)) => {
                ServiceAccountMatch { namespace: namespace.into(), service_account: account.into() }
            }
            None => {
                ServiceAccountMatch { namespace: namespace.clone(), service_account: text.as_str().into() }
            }
        })
        .collect()
}

fn http_attributes(rule: &PolicyRule) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut note = |name: &str, values: &[String]| {
        if !values.is_empty() {
            found.insert(name.to_string());
        }
    };
    for operation in &rule.to {
        note("hosts", &operation.hosts);
        note("notHosts", &operation.not_hosts);
        note("methods", &operation.methods);
        note("notMethods", &operation.not_methods);
        note("paths", &operation.paths);
        note("notPaths", &operation.not_paths);
    }
    for source in &rule.from {
        note("remoteIpBlocks", &source.remote_ip_blocks);
        note("notRemoteIpBlocks", &source.not_remote_ip_blocks);
        note("requestPrincipals", &source.request_principals);
        note("notRequestPrincipals", &source.not_request_principals);
    }
    const LAYER_4: [&str; 5] =
        ["source.ip", "source.namespace", "source.principal", "destination.ip", "destination.port"];
    let conditions = rule.when.iter().filter(|condition| !LAYER_4.contains(&condition.key.as_str()));
    found.extend(conditions.map(|condition| condition.key.clone()));
    found
}

fn operation_has_http(one: &Operation) -> bool {
    [&one.hosts, &one.not_hosts, &one.methods, &one.not_methods, &one.paths, &one.not_paths]
        .iter()
        .any(|values| !values.is_empty())
}

fn source_has_http(one: &Source) -> bool {
    [&one.remote_ip_blocks, &one.not_remote_ip_blocks, &one.request_principals, &one.not_request_principals]
        .iter()
        .any(|values| !values.is_empty())
}

fn source_has_layer_4(one: &Source) -> bool {
    [&one.principals, &one.not_principals, &one.namespaces, &one.not_namespaces, &one.service_accounts]
        .iter()
        .chain(&[&one.not_service_accounts, &one.ip_blocks, &one.not_ip_blocks])
        .any(|values| !values.is_empty())
}

/// Addresses and ports that cannot be understood, each with the field it stands in.
fn invalid_values(rule: &PolicyRule) -> Vec<String> {
    let mut found = Vec::new();
    let mut look = |field: &str, values: &[String], port: bool| {
        let bad = |text: &&String| match port {
            true => text.parse::<u16>().is_err(),
            false => text.parse::<Cidr>().is_err(),
        };
        for text in values.iter().filter(bad) {
            found.push(format!("{field} {:?}", text.chars().take(60).collect::<String>()));
        }
    };
    for one in &rule.from {
        look("ipBlocks", &one.ip_blocks, false);
        look("notIpBlocks", &one.not_ip_blocks, false);
    }
    for one in &rule.to {
        look("ports", &one.ports, true);
        look("notPorts", &one.not_ports, true);
    }
    for one in &rule.when {
        let port = one.key == "destination.port";
        if port || matches!(one.key.as_str(), "source.ip" | "destination.ip") {
            look(&one.key, &one.values, port);
            look(&one.key, &one.not_values, port);
        }
    }
    found
}
