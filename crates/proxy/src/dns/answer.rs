//! What the mesh says of a name: a pure function of what is known, who asks and what is asked.
//!
//! Names that are nobody's here are forwarded; a name that is known is never forwarded, even when there is nothing
//! to tell of it. No IO, no clock, no dice: randomness is passed in (reference/data-plane.md §8).

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::rr::Name;
use mesh::{Health, HealthPolicy, IpFamilies, Service, View, Visibility, Workload};

use super::aliases;

/// More addresses than this do not fit into any message.
const MOST: usize = 2000;

/// What holds for all questions.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    /// The cluster's domain, lower case, without a dot at the end.
    pub(crate) domain: Arc<str>,
    /// Whether IPv6 addresses are told.
    pub(crate) ipv6: bool,
    /// The namespace whose services win when neither the client's own nor a canonical one has the name.
    pub(crate) preferred_namespace: Option<Arc<str>>,
}

/// Which addresses are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// A.
    V4,
    /// AAAA.
    V6,
}

/// A question that the mesh may answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// The name, in the case in which it was asked.
    pub(crate) name: Name,
    pub(crate) family: Family,
}

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The mesh knows the name.
    Answer(Answer),
    /// The name is not the mesh's.
    Forward,
}

/// What is told of a name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The name the addresses belong to, when it is not the one that was asked for.
    pub(crate) alias: Option<Name>,
    /// May be empty: the name exists and has no address of the family.
    pub(crate) addresses: Vec<IpAddr>,
}

/// Answers `question` as it stands for `client`. `random` decides the order of the addresses.
pub(crate) fn answer(
    view: &View,
    client: &Workload,
    question: &Question,
    rules: &Rules,
    random: u64,
) -> Reply {
    let Some(name) = text(&question.name) else { return Reply::Forward };
    for alias in aliases::of(&name, &client.namespace, &rules.domain) {
        for host in aliases::patterns(&alias.name) {
            let Some(service) = best(view, &host, client, rules) else { continue };
            let mut addresses = addresses(view, service, client, question.family, rules);
            shuffle(&mut addresses, random);
            addresses.truncate(MOST);
            let wildcard = host.starts_with("*.");
            let alias = alias.stripped.filter(|_| !wildcard && !addresses.is_empty());
            let alias = alias.and_then(|labels| first_labels(&question.name, labels));
            return Reply::Answer(Answer { alias, addresses });
        }
    }
    Reply::Forward
}

/// The name in lower case without a dot at the end. None: no service can be called so.
fn text(name: &Name) -> Option<String> {
    let mut text = String::with_capacity(name.len());
    for label in name {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if !label.iter().all(plain) {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    (!text.is_empty()).then_some(text)
}

fn first_labels(name: &Name, labels: usize) -> Option<Name> {
    let mut first = Name::from_labels(name.iter().take(labels)).ok()?;
    first.set_fqdn(true);
    Some(first)
}

/// The service that `client` means by `host`.
fn best<'a>(view: &'a View, host: &str, client: &Workload, rules: &Rules) -> Option<&'a Arc<Service>> {
    let own = |service: &Service| service.key.namespace == client.namespace;
    let in_cluster = host.strip_suffix(&*rules.domain).is_some_and(|rest| rest.ends_with(".svc."));
    let candidates = view
        .services_by_hostname(host)
        .filter(|service| service.visibility == Visibility::Public || own(service))
        // Elsewhere a name without addresses of its own is for the world's resolvers to know.
        .filter(|service| in_cluster || !service.vips.is_empty());
    let rank = |service: &Service| {
        let preferred = rules.preferred_namespace.as_ref() == Some(&service.key.namespace);
        (own(service), service.canonical, preferred)
    };
    // The first of equals stays.
    candidates.reduce(|best, next| if rank(next) > rank(best) { next } else { best })
}

fn addresses(
    view: &View,
    service: &Service,
    client: &Workload,
    family: Family,
    rules: &Rules,
) -> Vec<IpAddr> {
    let wanted = |ip: &IpAddr| match family {
        Family::V4 => ip.is_ipv4(),
        Family::V6 => ip.is_ipv6() && rules.ipv6,
    };
    let usable = |ip: &IpAddr| wanted(ip) && !ip.is_unspecified();
    let found: BTreeSet<IpAddr> = if service.vips.is_empty() {
        let has_family = match family {
            Family::V4 => service.ip_families != IpFamilies::Ipv6Only,
            Family::V6 => service.ip_families != IpFamilies::Ipv4Only,
        };
        let all = service.health_policy() == HealthPolicy::AllowAll;
        let endpoints = view.endpoints(&service.key).filter(|endpoint| {
            has_family && endpoint.network == client.network && (all || endpoint.health == Health::Healthy)
        });
        endpoints.filter_map(|endpoint| endpoint.addresses.iter().copied().find(usable)).collect()
    } else {
        let here = service.vips.iter().filter(|vip| vip.network == client.network);
        here.map(|vip| vip.ip).filter(usable).collect()
    };
    found.into_iter().collect()
}

/// An even shuffle drawn from one number (splitmix64).
fn shuffle<T>(items: &mut [T], mut random: u64) {
    for last in (1..items.len()).rev() {
        random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let chosen = (u128::from(mixed) * (last as u128 + 1)) >> 64;
        items.swap(last, chosen as usize);
    }
}

#[cfg(test)]
mod tests;
