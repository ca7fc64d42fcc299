//! Which kinds are served right now: the built-in table and whatever CRDs define. Snapshots are immutable; a changed
//! CRD makes a new one.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use serde_json::Value;

use super::kinds::{BUILTINS, Builtin, REVIEWS};
use super::object::{array_at, str_at, strings_at};

/// Where a kind comes from, and with it how its objects are checked.
#[derive(Clone)]
pub enum Origin {
    /// The table of this server.
    Builtin(&'static Builtin),
    /// One version of a CRD: the entry of `spec.versions`.
    Custom(Arc<Value>),
    /// A question that is answered, not stored.
    Review,
}

/// A kind as it is served.
#[derive(Clone)]
pub struct Kind {
    /// API group, "" for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// Kind.
    pub kind: String,
    /// Kind of its lists.
    pub list_kind: String,
    /// Plural resource name.
    pub plural: String,
    /// Singular name.
    pub singular: String,
    /// Short names.
    pub short: Vec<String>,
    /// Categories.
    pub categories: Vec<String>,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Subresources.
    pub subresources: Vec<String>,
    /// `plural.group`, or `plural` for core: how messages name the resource.
    pub resource: String,
    /// Where its objects are stored; differs from `resource` only where two groups share them.
    pub storage: String,
    /// The version objects are stored in.
    pub storage_version: String,
    /// Fields that selectors may ask for besides name and namespace.
    pub fields: Vec<String>,
    /// Where it comes from.
    pub origin: Origin,
}

impl Kind {
    /// `apps/v1` or `v1`.
    pub fn api_version(&self) -> String {
        group_version(&self.group, &self.version)
    }

    /// The `apiVersion` of stored objects.
    pub fn storage_api_version(&self) -> String {
        let group = if self.storage == self.resource { self.group.as_str() } else { "" };
        group_version(group, &self.storage_version)
    }

    /// Whether it is the custom kind of a CRD.
    pub fn custom(&self) -> Option<&Arc<Value>> {
        match &self.origin {
            Origin::Custom(version) => Some(version),
            _ => None,
        }
    }

    /// Whether it has this subresource.
    pub fn has(&self, subresource: &str) -> bool {
        self.subresources.iter().any(|s| s == subresource)
    }

    /// Whether this is the built-in kind `resource`.
    pub fn is(&self, resource: &str) -> bool {
        self.custom().is_none() && self.storage == resource
    }
}

/// `group/version`, or `version` for core.
pub fn group_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// `plural.group`, or `plural` for core.
pub fn resource_name(group: &str, plural: &str) -> String {
    if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") }
}

/// An immutable snapshot of what is served.
#[derive(Clone, Default)]
pub struct Registry {
    kinds: Vec<Arc<Kind>>,
    by_path: HashMap<(String, String, String), Arc<Kind>>,
}

impl Registry {
    /// The built-in kinds and those of these CRDs.
    pub fn new<'a>(crds: impl Iterator<Item = &'a Value>) -> Registry {
        let mut registry = Registry::default();
        BUILTINS.iter().map(builtin).for_each(|kind| registry.add(kind));
        REVIEWS.iter().map(review).for_each(|kind| registry.add(kind));
        crds.flat_map(custom).for_each(|kind| registry.add(kind));
        registry
    }

    fn add(&mut self, kind: Kind) {
        let key = (kind.group.clone(), kind.version.clone(), kind.plural.clone());
        if let Entry::Vacant(vacant) = self.by_path.entry(key) {
            self.kinds.push(vacant.insert(Arc::new(kind)).clone());
        }
    }

    /// The kind served at a path.
    pub fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Kind>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).cloned()
    }

    /// Every kind, the table's first.
    pub fn kinds(&self) -> &[Arc<Kind>] {
        &self.kinds
    }

    /// Groups with their versions, most preferred first, core included as "".
    pub fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for kind in &self.kinds {
            let at = match groups.iter().position(|(group, _)| *group == kind.group) {
                Some(at) => at,
                None => {
                    groups.push((kind.group.clone(), Vec::new()));
                    groups.len() - 1
                }
            };
            if !groups[at].1.contains(&kind.version) {
                groups[at].1.push(kind.version.clone());
            }
        }
        for (_, versions) in &mut groups {
            versions.sort_by_key(|version| std::cmp::Reverse(priority(version)));
        }
        groups
    }
}

/// Orders versions as Kubernetes does: v2, v1, v2beta1, v1alpha1, anything else.
fn priority(version: &str) -> (u8, u64, u64) {
    let numbers = |rest: &str| -> Option<(u8, u64, u64)> {
        for (word, rank) in [("beta", 2), ("alpha", 1)] {
            if let Some((major, minor)) = rest.split_once(word) {
                return Some((rank, major.parse().ok()?, minor.parse().ok()?));
            }
        }
        Some((3, rest.parse().ok()?, 0))
    };
    version.strip_prefix('v').and_then(numbers).unwrap_or((0, 0, 0))
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn builtin(row: &'static Builtin) -> Kind {
    let resource = resource_name(row.group, row.plural);
    // Events of the two groups are the same objects in two forms.
    let storage = if row.plural == "events" { "events".to_owned() } else { resource.clone() };
    let mut categories = Vec::new();
    if row.in_all {
        categories.push("all".to_owned());
    }
    if row.group == "apiextensions.k8s.io" {
        categories.push("api-extensions".to_owned());
    }
    Kind {
        group: row.group.into(),
        version: row.version.into(),
        kind: row.kind.into(),
        list_kind: format!("{}List", row.kind),
        plural: row.plural.into(),
        singular: row.kind.to_lowercase(),
        short: words(row.short),
        categories,
        namespaced: row.namespaced,
        subresources: words(row.subresources),
        resource,
        storage,
        storage_version: row.version.into(),
        fields: words(row.fields),
        origin: Origin::Builtin(row),
    }
}

fn review(row: &(&str, &str, &str, &str, bool)) -> Kind {
    let (group, version, kind, plural, namespaced) = *row;
    let resource = resource_name(group, plural);
    Kind {
        group: group.into(),
        version: version.into(),
        kind: kind.into(),
        list_kind: format!("{kind}List"),
        plural: plural.into(),
        singular: kind.to_lowercase(),
        short: Vec::new(),
        categories: Vec::new(),
        namespaced,
        subresources: Vec::new(),
        storage: resource.clone(),
        resource,
        storage_version: version.into(),
        fields: Vec::new(),
        origin: Origin::Review,
    }
}

/// The served versions of a CRD that has been established.
fn custom(crd: &Value) -> Vec<Kind> {
    let group = str_at(crd, "/spec/group");
    let names = |key: &str| str_at(crd, &format!("/spec/names/{key}")).to_owned();
    let versions = array_at(crd, "/spec/versions");
    let storage_version = versions
        .iter()
        .find(|v| v.get("storage") == Some(&Value::Bool(true)))
        .map_or("", |v| str_at(v, "/name"));
    let list = |pointer: &str| strings_at(crd, pointer).into_iter().map(str::to_owned).collect::<Vec<_>>();
    versions
        .iter()
        .filter(|v| v.get("served") == Some(&Value::Bool(true)))
        .map(|version| {
            let subresources = ["status", "scale"]
                .into_iter()
                .filter(|s| version.pointer(&format!("/subresources/{s}")).is_some_and(|v| !v.is_null()))
                .map(str::to_owned)
                .collect();
            let fields = array_at(version, "/selectableFields")
                .iter()
                .map(|f| str_at(f, "/jsonPath").trim_start_matches('.').to_owned())
                .collect();
            let resource = resource_name(group, &names("plural"));
            let or = |text: String, other: String| if text.is_empty() { other } else { text };
            Kind {
                group: group.into(),
                version: str_at(version, "/name").into(),
                kind: names("kind"),
                list_kind: or(names("listKind"), format!("{}List", names("kind"))),
                plural: names("plural"),
                singular: or(names("singular"), names("kind").to_lowercase()),
                short: list("/spec/names/shortNames"),
                categories: list("/spec/names/categories"),
                namespaced: str_at(crd, "/spec/scope") == "Namespaced",
                subresources,
                storage: resource.clone(),
                resource,
                storage_version: storage_version.into(),
                fields,
                origin: Origin::Custom(Arc::new(version.clone())),
            }
        })
        .collect()
}
