//! Principals of policies under the other names of the trust domain (MeshConfig's `trustDomainAliases`).
//!
//! A mesh that changed its trust domain goes on with the policies that were written before: a principal of one of the
//! mesh's names stands for that account under all of them, in what must match as in what must not. A principal of any
//! other trust domain, and one that leaves the trust domain open, says what it says.

use std::borrow::Cow;
use std::sync::Arc;

use super::Settings;
use crate::input::AuthorizationPolicy;

/// The policy with its principals under all names of the trust domain.
pub(super) fn expanded<'a>(
    settings: &Settings,
    input: &'a AuthorizationPolicy,
) -> Cow<'a, AuthorizationPolicy> {
    if settings.trust_domain_aliases.is_empty() {
        return Cow::Borrowed(input);
    }
    let mut policy = input.clone();
    for rule in &mut policy.rules {
        for source in &mut rule.from {
            expand(settings, &mut source.principals);
            expand(settings, &mut source.not_principals);
        }
        for condition in rule.when.iter_mut().filter(|condition| condition.key == "source.principal") {
            expand(settings, &mut condition.values);
            expand(settings, &mut condition.not_values);
        }
    }
    Cow::Owned(policy)
}

/// Adds to each principal the same one under the other names, unless it stands there already.
fn expand(settings: &Settings, principals: &mut Vec<String>) {
    let names = || std::iter::once(&settings.trust_domain).chain(settings.trust_domain_aliases.iter());
    let written = std::mem::take(principals);
    let mut known = std::collections::HashSet::new();
    let mut add = |principal: String| {
        if known.insert(principal.clone()) {
            principals.push(principal);
        }
    };
    for principal in written {
        let others: Vec<String> = match principal.split_once('/') {
            Some((domain, account)) if names().any(|name| covers(domain, name)) => {
                let others = names().filter(|name| !covers(domain, name));
                others.map(|name| format!("{name}/{account}")).collect()
            }
            _ => Vec::new(),
        };
        add(principal);
        others.into_iter().for_each(&mut add);
    }
}

/// Whether what stands for the trust domain in a principal (a name, `*` or `*suffix`) is this one.
fn covers(written: &str, name: &Arc<str>) -> bool {
    match written.strip_prefix('*') {
        Some(suffix) => name.ends_with(suffix),
        None => written == &**name,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::fixtures;
    use crate::model::{authorization, effect};

    fn settings() -> Settings {
        let aliases = ["old.example", "older.example"];
        Settings {
            trust_domain: "new.example".into(),
            trust_domain_aliases: aliases.map(Arc::from).into(),
            ..fixtures::settings()
        }
    }

    #[test]
    fn a_principal_of_the_mesh_is_meant_under_all_its_names() {
        let table: &[(&[&str], &[&str])] = &[
            (
                &["old.example/ns/a/sa/b"],
                &["old.example/ns/a/sa/b", "new.example/ns/a/sa/b", "older.example/ns/a/sa/b"],
            ),
            (&["new.example/ns/a/*"], &["new.example/ns/a/*", "old.example/ns/a/*", "older.example/ns/a/*"]),
            (&["old.example/*"], &["old.example/*", "new.example/*", "older.example/*"]),
            // Written under two names already.
            (
                &["old.example/ns/a/sa/b", "new.example/ns/a/sa/b"],
                &["old.example/ns/a/sa/b", "new.example/ns/a/sa/b", "older.example/ns/a/sa/b"],
            ),
            // An end of a name: only the names that it leaves out are added.
            (
                &["*er.example/ns/a/sa/b"],
                &["*er.example/ns/a/sa/b", "new.example/ns/a/sa/b", "old.example/ns/a/sa/b"],
            ),
            // Another mesh, no trust domain at all, a beginning of one that may be anybody's.
            (&["other.example/ns/a/sa/b"], &["other.example/ns/a/sa/b"]),
            (&["old.example.evil/ns/a/sa/b"], &["old.example.evil/ns/a/sa/b"]),
            (&["*"], &["*"]),
            (&["*/ns/a/sa/b"], &["*/ns/a/sa/b"]),
            (&["*/sa/b"], &["*/sa/b"]),
            (&["old.example*"], &["old.example*"]),
            (&["old*/ns/a"], &["old*/ns/a"]),
            (&["b", ""], &["b", ""]),
            (&[], &[]),
        ];
        for (written, wanted) in table {
            let mut principals: Vec<String> = written.iter().map(|text| text.to_string()).collect();
            expand(&settings(), &mut principals);
            assert_eq!(principals, *wanted, "{written:?}");
        }
    }

    #[test]
    fn every_place_of_a_policy_that_names_a_principal_is_expanded_and_no_other() {
        let one = "old.example/ns/a/sa/b";
        let input = fixtures::authorization(
            "shop",
            "p",
            json!({ "action": "DENY", "rules": [{
                "from": [{ "source": { "principals": [one], "notPrincipals": [one], "namespaces": [one] } }],
                "when": [
                    { "key": "source.principal", "values": [one], "notValues": [one] },
                    { "key": "source.namespace", "values": [one] },
                ],
            }] }),
        );
        let policy = authorization(&settings(), &input).unwrap();
        let [from, principal, namespace] = &policy.rules[0].clauses[..] else { panic!("{policy:?}") };
        for clause in [from, principal] {
            let one = &clause.matches[0];
            assert_eq!((one.principals.len(), one.not_principals.len()), (3, 3));
        }
        assert_eq!((from.matches[0].namespaces.len(), namespace.matches[0].namespaces.len()), (1, 1));
        assert_eq!(effect(&input), Default::default());
        let without = authorization(&fixtures::settings(), &input).unwrap();
        assert_eq!(without.rules[0].clauses[0].matches[0].principals.len(), 1);
    }
}
