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

#[cfg(test)]
mod tests {
    use super::*;

    fn names(name: &str) -> Vec<String> {
        of(name, "ns", "cluster.local").into_iter().map(|alias| alias.name).collect()
    }

    #[test]
    fn short_names_are_completed_as_kubernetes_does() {
        assert_eq!(names("web"), ["web", "web.ns.svc.cluster.local"]);
        assert_eq!(names("web.x"), ["web.x", "web.x.svc.cluster.local", "web.x.ns.svc.cluster.local"]);
        assert_eq!(
            names("web.x.svc"),
            ["web.x.svc", "web.x.svc.cluster.local", "web.x.svc.svc.cluster.local"]
        );
        assert_eq!(names("a.web.x"), ["a.web.x", "a.web.x.svc.cluster.local"]);
        assert_eq!(names("a.web.x.svc"), ["a.web.x.svc", "a.web.x.svc.cluster.local"]);
        assert_eq!(names("a.b.c.d"), ["a.b.c.d"]);
    }

    #[test]
    fn search_domains_are_taken_off_and_counted() {
        let all = of("api.example.com.ns.svc.cluster.local", "ns", "cluster.local");
        let stripped = |name: &str| all.iter().find(|alias| alias.name == name).map(|alias| alias.stripped);
        assert_eq!(stripped("api.example.com"), Some(Some(3)));
        assert_eq!(stripped("api.example.com.ns"), Some(Some(4)));
        assert_eq!(stripped("api.example.com.ns.svc"), Some(Some(5)));
        assert_eq!(all[0].stripped, None);
    }

    #[test]
    fn no_name_is_tried_twice_and_only_whole_labels_are_taken_off() {
        for name in ["web", "web.ns.svc.cluster.local", "a.b.svc.cluster.local", "xcluster.local"] {
            let mut all = names(name);
            let count = all.len();
            all.sort();
            all.dedup();
            assert_eq!(all.len(), count, "{name}");
        }
        assert!(!names("xcluster.local").contains(&"x".to_owned()));
        assert!(!names(".cluster.local").contains(&String::new()));
    }

    #[test]
    fn wildcards_go_from_the_longest_to_the_shortest() {
        assert_eq!(patterns("a.b.c").collect::<Vec<_>>(), ["a.b.c", "*.b.c", "*.c"]);
    }
}
