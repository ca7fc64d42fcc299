//! Between the form an object is stored in and the forms it is served in: versions of CRDs (which differ in their
//! name only, conversion strategy None), the two forms of events, and metadata alone.

use std::sync::Arc;

use serde_json::{Value, json};

use super::object::{as_map, set_type, str_at};
use super::registry::Kind;

/// Fields that the two forms of events name differently: (core, events.k8s.io).
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn is_new_event(kind: &Kind) -> bool {
    kind.storage != kind.resource
}

/// A stored object as this kind serves it.
pub fn served(kind: &Kind, object: &Arc<Value>) -> Arc<Value> {
    let api_version = kind.api_version();
    if str_at(object, "/apiVersion") == api_version {
        return object.clone();
    }
    let mut object = Value::clone(object);
    if is_new_event(kind) {
        rename(&mut object, EVENT_FIELDS.iter().copied());
    }
    set_type(&mut object, &api_version, &kind.kind);
    Arc::new(object)
}

/// An object of this kind as it is stored.
pub fn stored(kind: &Kind, mut object: Value) -> Value {
    if is_new_event(kind) {
        rename(&mut object, EVENT_FIELDS.iter().map(|(core, new)| (*new, *core)));
    }
    set_type(&mut object, &kind.storage_api_version(), &kind.kind);
    object
}

fn rename<'a>(object: &mut Value, names: impl Iterator<Item = (&'a str, &'a str)>) {
    let map = as_map(object);
    for (from, to) in names {
        if let Some(value) = map.shift_remove(from) {
            map.insert(to.into(), value);
        }
    }
}

/// The metadata alone.
pub fn metadata_only(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}
