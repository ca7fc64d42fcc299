//! What merging must know of a type: which lists are keyed, by what, and which maps are taken whole. For built-in
//! kinds it is a table by field name and its parent's, which is unambiguous in practice; for custom kinds it is
//! their schema.

use serde_json::Value;

use crate::api::object::{str_at, strings_at};
use crate::api::registry::Kind;

/// A place in a type.
#[derive(Clone, Copy)]
pub enum Schema<'a> {
    /// In a built-in kind: the kind, the field's parent and the field.
    Builtin(&'a str, &'a str, &'a str),
    /// In a custom kind; `true` at its root.
    Custom(Option<&'a Value>, bool),
}

/// How the elements of a list are told apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum List<'a> {
    /// Not at all: the list is one value.
    Atomic,
    /// By value.
    Set,
    /// By these fields.
    Keyed(Vec<&'a str>),
}

impl<'a> Schema<'a> {
    /// The root of a kind.
    pub fn of(kind: &'a Kind) -> Schema<'a> {
        match kind.custom() {
            Some(version) => Schema::Custom(version.pointer("/schema/openAPIV3Schema"), true),
            None => Schema::Builtin(&kind.kind, "", ""),
        }
    }

    /// A field of a map.
    pub fn field(self, name: &'a str) -> Schema<'a> {
        match self {
            Schema::Builtin(kind, _, field) => Schema::Builtin(kind, field, name),
            Schema::Custom(_, true) if name == "metadata" => Schema::Builtin("", "", "metadata"),
            Schema::Custom(schema, _) => {
                let below = |key: &str| schema.and_then(|s| s.get(key));
                let found = below("properties").and_then(|p| p.get(name));
                Schema::Custom(found.or(below("additionalProperties")).filter(|s| s.is_object()), false)
            }
        }
    }

    /// An element of a list.
    pub fn item(self) -> Schema<'a> {
        match self {
            Schema::Builtin(..) => self,
            Schema::Custom(schema, _) => Schema::Custom(schema.and_then(|s| s.get("items")), false),
        }
    }

    /// How server-side apply merges the list here.
    pub fn list(self) -> List<'a> {
        match self {
            Schema::Builtin(kind, parent, field) => builtin(kind, parent, field).0,
            Schema::Custom(schema, _) => match schema.map_or("", |s| str_at(s, "/x-kubernetes-list-type")) {
                "set" => List::Set,
                "map" => List::Keyed(
                    schema.map(|s| strings_at(s, "/x-kubernetes-list-map-keys")).unwrap_or_default(),
                ),
                _ => List::Atomic,
            },
        }
    }

    /// How a strategic merge patch merges the list here: at most one key.
    pub fn strategic(self) -> List<'a> {
        match self {
            Schema::Builtin(kind, parent, field) => builtin(kind, parent, field).1,
            Schema::Custom(..) => List::Atomic,
        }
    }

    /// Whether the map here is one value for server-side apply.
    pub fn is_atomic_map(self) -> bool {
        match self {
            Schema::Builtin(_, _, field) => matches!(
                field,
                "selector"
                    | "labelSelector"
                    | "namespaceSelector"
                    | "podSelector"
                    | "objectSelector"
                    | "nodeSelector"
                    | "fieldRef"
                    | "resourceFieldRef"
                    | "secretKeyRef"
                    | "configMapKeyRef"
                    | "targetRef"
                    | "scaleTargetRef"
                    | "roleRef"
            ),
            Schema::Custom(schema, _) => {
                schema.is_some_and(|s| str_at(s, "/x-kubernetes-map-type") == "atomic")
            }
        }
    }
}

/// (server-side apply, strategic merge) of a list of a built-in kind.
fn builtin(kind: &str, parent: &str, field: &str) -> (List<'static>, List<'static>) {
    let both = |key: &'static str| (List::Keyed(vec![key]), List::Keyed(vec![key]));
    let in_container = matches!(parent, "containers" | "initContainers" | "ephemeralContainers");
    match (parent, field) {
        (_, "containers" | "initContainers" | "ephemeralContainers" | "imagePullSecrets") => both("name"),
        ("spec", "volumes" | "resourceClaims" | "schedulingGates") | ("", "webhooks") => both("name"),
        ("", "secrets") if kind == "ServiceAccount" => both("name"),
        (_, "env") if in_container => both("name"),
        (_, "volumeMounts") if in_container => both("mountPath"),
        (_, "volumeDevices") if in_container => both("devicePath"),
        (_, "ports") if in_container => {
            (List::Keyed(vec!["containerPort", "protocol"]), List::Keyed(vec!["containerPort"]))
        }
        ("spec", "ports") if kind == "Service" => {
            (List::Keyed(vec!["port", "protocol"]), List::Keyed(vec!["port"]))
        }
        ("status", "conditions") => both("type"),
        ("metadata", "ownerReferences") => both("uid"),
        ("metadata", "finalizers") => (List::Set, List::Set),
        ("spec", "finalizers") if kind == "Namespace" => (List::Atomic, List::Atomic),
        ("spec", "hostAliases") => both("ip"),
        ("spec", "topologySpreadConstraints") => {
            (List::Keyed(vec!["topologyKey", "whenUnsatisfiable"]), List::Keyed(vec!["topologyKey"]))
        }
        ("status", "podIPs" | "hostIPs") => both("ip"),
        ("status", "addresses") if kind == "Node" => both("type"),
        ("spec", "taints") if kind == "Node" => (List::Atomic, List::Keyed(vec!["key"])),
        ("spec", "podCIDRs") => (List::Set, List::Set),
        _ => (List::Atomic, List::Atomic),
    }
}

/// The values by which a list element is told apart, as canonical JSON.
pub fn key_of(keys: &[&str], item: &Value) -> Option<String> {
    let mut sorted: Vec<&str> = keys.to_vec();
    sorted.sort_unstable();
    let mut key = serde_json::Map::new();
    for name in sorted {
        let value = match item.get(name) {
            Some(value) => value.clone(),
            // The one key field that has a default.
            None if name == "protocol" => "TCP".into(),
            None => continue,
        };
        key.insert(name.to_owned(), value);
    }
    (!key.is_empty()).then(|| Value::Object(key).to_string())
}
