//! AuthorizationPolicy to policy (reference/control-plane.md §2.1).
//!
//! What layer 4 cannot see is never guessed at: an ALLOW rule with an HTTP attribute is left out whole (it allows
//! less), of a DENY rule only the attribute is dropped. [`effect`] says truthfully what was left out.

use std::collections::BTreeSet;
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
    if input.targeted {
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
    let rules = input
        .rules
        .iter()
        .filter(|rule| action == Action::Deny || http_attributes(rule).is_empty())
        .map(|one| rule(&input.key.namespace, one))
        .collect();
    Ok(Policy {
        name: input.key.name.clone(),
        namespace: input.key.namespace.clone(),
        scope,
        action,
        rules,
        dry_run: false,
    })
}

/// HTTP attributes that layer 4 does not enforce, sorted; empty when the policy is enforced in full.
pub fn effect(input: &AuthorizationPolicy) -> Vec<String> {
    let all: BTreeSet<String> = input.rules.iter().flat_map(http_attributes).collect();
    all.into_iter().collect()
}

fn rule(namespace: &Arc<str>, rule: &PolicyRule) -> Rule {
    let mut clauses = Vec::new();
    if !rule.to.is_empty() {
        clauses.push(Clause { matches: rule.to.iter().map(operation).collect() });
    }
    if !rule.from.is_empty() {
        clauses.push(Clause { matches: rule.from.iter().map(|one| source(namespace, one)).collect() });
    }
    clauses.extend(rule.when.iter().map(|one| Clause { matches: vec![condition(one)] }));
    Rule { clauses }
}

fn operation(operation: &Operation) -> Match {
    Match {
        destination_ports: ports(&operation.ports),
        not_destination_ports: ports(&operation.not_ports),
        ..Match::default()
    }
}

fn source(namespace: &Arc<str>, source: &Source) -> Match {
    Match {
        source_ips: cidrs(&source.ip_blocks),
        not_source_ips: cidrs(&source.not_ip_blocks),
        namespaces: strings(&source.namespaces),
        not_namespaces: strings(&source.not_namespaces),
        service_accounts: accounts(namespace, &source.service_accounts),
        not_service_accounts: accounts(namespace, &source.not_service_accounts),
        principals: strings(&source.principals),
        not_principals: strings(&source.not_principals),
        ..Match::default()
    }
}

fn condition(condition: &Condition) -> Match {
    let (values, not_values) = (&condition.values, &condition.not_values);
    let none = Match::default();
    match condition.key.as_str() {
        "source.ip" => Match { source_ips: cidrs(values), not_source_ips: cidrs(not_values), ..none },
        "source.namespace" => {
            Match { namespaces: strings(values), not_namespaces: strings(not_values), ..none }
        }
        "source.principal" => {
            Match { principals: strings(values), not_principals: strings(not_values), ..none }
        }
        "destination.ip" => {
            Match { destination_ips: cidrs(values), not_destination_ips: cidrs(not_values), ..none }
        }
        "destination.port" => {
            Match { destination_ports: ports(values), not_destination_ports: ports(not_values), ..none }
        }
        // Of HTTP: an empty match, which never matches.
        _ => none,
    }
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

fn ports(texts: &[String]) -> Vec<u16> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

fn cidrs(texts: &[String]) -> Vec<Cidr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
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
