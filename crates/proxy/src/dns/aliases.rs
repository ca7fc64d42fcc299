//! The full names that a client may mean by the name it asks for.
//!
//! Resolvers append search domains before they ask, and applications use short names; both are undone here, in one
//! place, as pure text (reference/data-plane.md §8). Names are lower case and have no dot at the end.

/// A name that may be meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Alias {
    pub(crate) name: String,
    /// When a search domain was stripped to get here: how many labels of the asked name were left.
    pub(crate) stripped: Option<usize>,
}

/// All names that may be meant by `name` in `namespace`, best first, each once.
pub(crate) fn of(name: &str, namespace: &str, domain: &str) -> Vec<Alias> {
    let mut all: Vec<Alias> = Vec::new();
    let mut add = |name: String, stripped: Option<usize>| {
        if !all.iter().any(|alias| alias.name == name) {
            all.push(Alias { name, stripped });
        }
    };
    add(name.to_owned(), None);
    for full in expansions(name, namespace, domain) {
        add(full, None);
    }
    for search in [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()] {
        let rest = name.strip_suffix(&search).and_then(|rest| rest.strip_suffix('.'));
        let Some(rest) = rest.filter(|rest| !rest.is_empty()) else { continue };
        let stripped = Some(rest.split('.').count());
        add(rest.to_owned(), stripped);
        for full in expansions(rest, namespace, domain) {
            add(full, stripped);
        }
    }
    all
}

/// What Kubernetes makes of a short name.
fn expansions(name: &str, namespace: &str, domain: &str) -> Vec<String> {
    let labels: Vec<&str> = name.split('.').collect();
    match *labels {
        [_] => vec![format!("{name}.{namespace}.svc.{domain}")],
        [_, _] => vec![format!("{name}.svc.{domain}"), format!("{name}.{namespace}.svc.{domain}")],
        [_, _, "svc"] => vec![format!("{name}.{domain}"), format!("{name}.svc.{domain}")],
        [_, _, _] => vec![format!("{name}.svc.{domain}")],
        [_, _, _, "svc"] => vec![format!("{name}.{domain}")],
        _ => Vec::new(),
    }
}

/// The hostnames under which a service with this name may be known: itself, then wildcards, the longest first.
pub(crate) fn patterns(name: &str) -> impl Iterator<Item = String> + '_ {
    let rests = name.match_indices('.').map(|(dot, _)| &name[dot..]);
    std::iter::once(name.to_owned()).chain(rests.map(|rest| format!("*{rest}")))
}
