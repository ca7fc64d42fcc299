//! Custom resources: what a CRD must say to be served, and what its structural schema makes of an object: unknown
//! fields pruned, defaults filled in, types and bounds checked. CEL rules (`x-kubernetes-validations`) are stored
//! and not evaluated: an object that only they would refuse is accepted.

mod schema;

use std::collections::HashSet;

use serde_json::{Value, json};

pub use schema::{default, prune, validate};

use super::failure::{Cause, Failure};
use super::object::{array_at, as_map, default_to, map_mut, now, str_at};

/// The API group of CRDs and their kind, for messages.
const GROUP: &str = "apiextensions.k8s.io";

/// Fills in the defaults of a CRD and its status: it is established at once.
pub fn establish(crd: &mut Value, old: Option<&Value>) {
    let kind = str_at(crd, "/spec/names/kind").to_owned();
    let spec = map_mut(crd, "spec");
    default_to(spec, "conversion", json!({ "strategy": "None" }));
    if let Some(names) = spec.get_mut("names") {
        let names = as_map(names);
        default_to(names, "singular", kind.to_lowercase());
        default_to(names, "listKind", format!("{kind}List"));
    }
    let names = crd.pointer("/spec/names").cloned().unwrap_or_default();
    let storage: Vec<Value> = array_at(crd, "/spec/versions")
        .iter()
        .filter(|v| v.get("storage") == Some(&Value::Bool(true)))
        .filter_map(|v| v.get("name").cloned())
        .collect();
    let since = old
        .map(|old| str_at(old, "/status/conditions/0/lastTransitionTime").to_owned())
        .filter(|t| !t.is_empty())
        .unwrap_or_else(now);
    let condition = |kind: &str, reason: &str, message: &str| json!({ "type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": since });
    crd["status"] = json!({
        "conditions": [
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ],
        "acceptedNames": names,
        "storedVersions": storage,
    });
}

/// Refuses a CRD that cannot be served.
pub fn check(crd: &Value) -> Result<(), Failure> {
    let name = str_at(crd, "/metadata/name");
    let (group, plural) = (str_at(crd, "/spec/group"), str_at(crd, "/spec/names/plural"));
    let mut causes = Vec::new();
    for (field, value) in [
        ("spec.group", group),
        ("spec.names.plural", plural),
        ("spec.names.kind", str_at(crd, "/spec/names/kind")),
    ] {
        if value.is_empty() {
            causes.push(Cause::required(field, ""));
        }
    }
    let scope = str_at(crd, "/spec/scope");
    if !matches!(scope, "Namespaced" | "Cluster") {
        causes.push(Cause::unsupported("spec.scope", &scope.into(), &["Cluster", "Namespaced"]));
    }
    if causes.is_empty() && name != format!("{plural}.{group}") {
        causes.push(Cause::invalid(
            "metadata.name",
            &name.into(),
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    let versions = array_at(crd, "/spec/versions");
    if versions.is_empty() {
        causes.push(Cause::required(
            "spec.versions",
            "must have exactly one version marked as storage version",
        ));
    }
    let mut seen = HashSet::new();
    for (i, version) in versions.iter().enumerate() {
        let name = str_at(version, "/name");
        if name.is_empty() {
            causes.push(Cause::required(format!("spec.versions[{i}].name"), ""));
        } else if !seen.insert(name) {
            causes.push(Cause::duplicate(format!("spec.versions[{i}].name"), &name.into()));
        }
        if version.pointer("/schema/openAPIV3Schema").is_none() {
            causes.push(Cause::required(
                format!("spec.versions[{i}].schema.openAPIV3Schema"),
                "schemas are required",
            ));
        }
    }
    let storage = versions.iter().filter(|v| v.get("storage") == Some(&Value::Bool(true))).count();
    if !versions.is_empty() && storage != 1 {
        causes.push(Cause::invalid(
            "spec.versions",
            &storage.into(),
            "must have exactly one version marked as storage version",
        ));
    }
    if str_at(crd, "/spec/conversion/strategy") == "Webhook" {
        causes.push(Cause::forbidden(
            "spec.conversion.strategy",
            "the lab's API server does not call conversion webhooks; use None",
        ));
    }
    if causes.is_empty() {
        Ok(())
    } else {
        Err(Failure::invalid(GROUP, "CustomResourceDefinition", name, &causes))
    }
}
