//! PeerAuthentication to policies (reference/control-plane.md §2.2–2.4).
//!
//! Mutual TLS is demanded by denying callers without an identity: by one static policy, and, where ports differ, by a
//! policy of the PeerAuthentication's own. Every function takes *all* PeerAuthentications that are ours, and finds
//! those that matter.

use std::sync::Arc;

use mesh::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, StringMatch};

use super::Settings;
use crate::input::{Key, Labels, MtlsMode, PeerAuthentication, selects};

/// Name of the policy that denies callers without an identity.
pub const STATIC_STRICT: &str = "istio_converted_static_strict";

/// The policy that denies callers without an identity; it binds those workloads that list it.
pub fn static_strict(settings: &Settings) -> Policy {
    policy(settings.root_namespace.clone(), STATIC_STRICT.into(), vec![rule([no_identity()])])
}

/// Name of the policy made of a PeerAuthentication with ports of its own.
pub fn converted_name(key: &Key) -> String {
    format!("converted_peer_authentication_{}", key.name)
}

/// Policies a workload with these labels is bound to by PeerAuthentications, sorted.
pub fn peer_keys<'a>(
    settings: &Settings,
    all: impl Iterator<Item = &'a PeerAuthentication> + Clone,
    namespace: &str,
    labels: &Labels,
) -> Vec<PolicyKey> {
    let own = oldest(all.clone().filter(|peer| {
        &*peer.key.namespace == namespace
            && peer.key.namespace != settings.root_namespace
            && peer.selector.as_ref().is_some_and(|selector| selects(selector, labels))
    }));
    let parent_strict = inherited_strict(settings, all.clone(), namespace);
    if let Some(own) = own
        && let Some(policy) = convert(own, parent_strict)
    {
        return vec![policy.key()];
    }
    let strict = match own.map_or(MtlsMode::Unset, |own| own.mode) {
        MtlsMode::Strict => true,
        MtlsMode::Permissive => false,
        MtlsMode::Unset => parent_strict,
    };
    if strict { vec![format!("{}/{STATIC_STRICT}", settings.root_namespace).into()] } else { Vec::new() }
}

/// The policy of a PeerAuthentication with ports of its own, where those ports make a difference.
pub fn converted<'a>(
    settings: &Settings,
    all: impl Iterator<Item = &'a PeerAuthentication> + Clone,
    peer: &PeerAuthentication,
) -> Option<Policy> {
    if peer.selector.is_none() || peer.key.namespace == settings.root_namespace {
        return None;
    }
    convert(peer, inherited_strict(settings, all, &peer.key.namespace))
}

/// Whether the mesh and the namespace demand mutual TLS, before the workload has its say.
fn inherited_strict<'a>(
    settings: &Settings,
    all: impl Iterator<Item = &'a PeerAuthentication> + Clone,
    namespace: &str,
) -> bool {
    let level = |namespace: &str| {
        oldest(all.clone().filter(|peer| &*peer.key.namespace == namespace && peer.selector.is_none()))
            .map_or(MtlsMode::Unset, |peer| peer.mode)
    };
    let own = if namespace == &*settings.root_namespace { MtlsMode::Unset } else { level(namespace) };
    match own {
        MtlsMode::Strict => true,
        MtlsMode::Permissive => false,
        MtlsMode::Unset => level(&settings.root_namespace) == MtlsMode::Strict,
    }
}

fn convert(peer: &PeerAuthentication, parent_strict: bool) -> Option<Policy> {
    let strict = match peer.mode {
        MtlsMode::Strict => true,
        MtlsMode::Permissive => false,
        MtlsMode::Unset => parent_strict,
    };
    // A port that says nothing does what the workload does.
    let differ =
        |mode: MtlsMode| peer.ports.iter().filter(move |(_, have)| **have == mode).map(|(port, _)| *port);
    let rules: Vec<Rule> = if strict {
        let exempt: Vec<u16> = differ(MtlsMode::Permissive).collect();
        if exempt.is_empty() {
            return None;
        }
        let except =
            exempt.into_iter().map(|port| Match { not_destination_ports: vec![port], ..Match::default() });
        vec![rule([no_identity()].into_iter().chain(except))]
    } else {
        differ(MtlsMode::Strict)
            .map(|port| rule([Match { destination_ports: vec![port], ..no_identity() }]))
            .collect()
    };
    if rules.is_empty() {
        return None;
    }
    Some(policy(peer.key.namespace.clone(), converted_name(&peer.key), rules))
}

fn oldest<'a>(all: impl Iterator<Item = &'a PeerAuthentication>) -> Option<&'a PeerAuthentication> {
    all.min_by(|a, b| (a.created, &a.key).cmp(&(b.created, &b.key)))
}

fn no_identity() -> Match {
    Match { not_principals: vec![StringMatch::Presence], ..Match::default() }
}

fn rule(matches: impl IntoIterator<Item = Match>) -> Rule {
    Rule { clauses: matches.into_iter().map(|one| Clause { matches: vec![one] }).collect() }
}

fn policy(namespace: Arc<str>, name: String, rules: Vec<Rule>) -> Policy {
    Policy {
        name: name.into(),
        namespace,
        scope: Scope::WorkloadSelector,
        action: Action::Deny,
        rules,
        dry_run: false,
    }
}
