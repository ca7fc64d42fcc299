//! Does a body hold what its kind has, and nothing else? Built-in kinds are read as their type: what does not come
//! back was unknown. Objects leave here without unknown fields and without nulls.

use std::sync::Arc;

use serde_json::Value;

use super::crd;
use super::failure::Failure;
use super::object::{drop_nulls, set_type, str_at, too_deep};
use super::registry::{Kind, Origin};
use super::verbs::Unknown;

/// Checks and prunes an object that a client sent. The unknown fields found are refused, reported or dropped.
pub fn check(
    kind: &Kind,
    mut object: Value,
    unknown: Unknown,
    warnings: &mut Vec<String>,
) -> Result<Value, Failure> {
    if !object.is_object() {
        return Err(Failure::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: an object is expected",
            kind.kind, kind.version, kind.kind
        )));
    }
    if too_deep(&object) {
        return Err(unreadable(kind, "it is nested too deeply"));
    }
    typed(kind, &mut object)?;
    drop_nulls(&mut object);
    let mut found = Vec::new();
    match &kind.origin {
        Origin::Builtin(row) => {
            let back = (row.check)(&object).map_err(|e| unreadable(kind, &e))?;
            prune(&mut object, &back, "", &mut found);
        }
        Origin::Custom(version) => {
            let version: &Arc<Value> = version;
            let metadata = object.get("metadata").cloned().unwrap_or_default();
            let back = metadata_check(&metadata).map_err(|e| unreadable(kind, &format!("metadata.{e}")))?;
            if let Some(metadata) = object.get_mut("metadata") {
                prune(metadata, &back, "metadata", &mut found);
            }
            crd::prune(version, &mut object, &mut found);
        }
        Origin::Review => {}
    }
    if found.is_empty() {
        return Ok(object);
    }
    let complaints: Vec<String> = found.iter().map(|path| format!("unknown field {path:?}")).collect();
    match unknown {
        Unknown::Ignore => {}
        Unknown::Warn => warnings.extend(complaints),
        Unknown::Strict => {
            return Err(unreadable(kind, &format!("strict decoding error: {}", complaints.join(", "))));
        }
    }
    Ok(object)
}

fn unreadable(kind: &Kind, why: &str) -> Failure {
    Failure::bad_request(format!(
        "{} in version {:?} cannot be handled as a {}: {why}",
        kind.kind, kind.version, kind.kind
    ))
}

/// Fills in `apiVersion` and `kind` where they are missing, and refuses those of another kind.
fn typed(kind: &Kind, object: &mut Value) -> Result<(), Failure> {
    let (api_version, named) = (str_at(object, "/apiVersion"), str_at(object, "/kind"));
    let expected = kind.api_version();
    if !api_version.is_empty() && api_version != expected {
        return Err(Failure::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({expected})"
        )));
    }
    if !named.is_empty() && named != kind.kind {
        return Err(Failure::bad_request(format!(
            "{named} in version {:?} cannot be handled as a {}: the kind in the data does not match that of the URL",
            kind.version, kind.kind
        )));
    }
    set_type(object, &expected, &kind.kind);
    Ok(())
}

fn metadata_check(metadata: &Value) -> Result<Value, String> {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    if metadata.is_null() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    let typed: ObjectMeta =
        serde_path_to_error::deserialize(metadata).map_err(|e| format!("{}: {}", e.path(), e.inner()))?;
    serde_json::to_value(typed).map_err(|e| e.to_string())
}

/// Removes from `object` what `back` does not have, noting the paths.
fn prune(object: &mut Value, back: &Value, path: &str, found: &mut Vec<String>) {
    match (object, back) {
        (Value::Object(map), Value::Object(known)) => {
            map.retain(|key, value| {
                // An empty list or map that is required by its type is not written back when it is empty.
                let kept = known.contains_key(key) || is_empty(value);
                if !kept {
                    found.push(join(path, key));
                }
                kept
            });
            for (key, value) in map {
                if let Some(known) = known.get(key) {
                    prune(value, known, &join(path, key), found);
                }
            }
        }
        (Value::Array(items), Value::Array(known)) => {
            for (i, (item, known)) in items.iter_mut().zip(known).enumerate() {
                prune(item, known, &format!("{path}[{i}]"), found);
            }
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}
