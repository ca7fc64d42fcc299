//! Small readers and writers for objects kept as JSON. They tolerate any shape, because what a client sent is looked
//! at before it has been checked: a missing field reads as empty, and writing makes the maps it needs.

use serde_json::{Map, Value};

/// The string at a JSON pointer, or "".
pub fn str_at<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or("")
}

/// `metadata.name`, or "".
pub fn name(object: &Value) -> &str {
    str_at(object, "/metadata/name")
}

/// `metadata.namespace`, or "".
pub fn namespace(object: &Value) -> &str {
    str_at(object, "/metadata/namespace")
}

/// `metadata.uid`, or "".
pub fn uid(object: &Value) -> &str {
    str_at(object, "/metadata/uid")
}

/// `metadata.resourceVersion`, or "".
pub fn resource_version(object: &Value) -> &str {
    str_at(object, "/metadata/resourceVersion")
}

/// The strings of the array at a JSON pointer.
pub fn strings_at<'a>(object: &'a Value, pointer: &str) -> Vec<&'a str> {
    array_at(object, pointer).iter().filter_map(Value::as_str).collect()
}

/// The elements of the array at a JSON pointer, or none.
pub fn array_at<'a>(object: &'a Value, pointer: &str) -> &'a [Value] {
    object.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// Whether the object is on its way out.
pub fn terminating(object: &Value) -> bool {
    !str_at(object, "/metadata/deletionTimestamp").is_empty()
}

/// The map under `key`, made if it is not there or not a map.
pub fn map_mut<'a>(object: &'a mut Value, key: &str) -> &'a mut Map<String, Value> {
    as_map(as_map(object).entry(key).or_insert(Value::Null))
}

/// The map under `metadata`.
pub fn metadata_mut(object: &mut Value) -> &mut Map<String, Value> {
    map_mut(object, "metadata")
}

/// This value as a map, replacing whatever else it was.
pub fn as_map(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("just made a map"),
    }
}

/// Sets `key` unless it already has a value.
pub fn default_to(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if map.get(key).is_none_or(Value::is_null) {
        map.insert(key.to_owned(), value.into());
    }
}

/// Removes every null: the wire says the same with and without.
pub fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Whether a value is nested deeper than any real object: everything that recurses relies on it not being so.
pub fn too_deep(value: &Value) -> bool {
    const DEEPEST: usize = 128;
    let mut open = vec![(value, 0)];
    while let Some((value, depth)) = open.pop() {
        if depth > DEEPEST {
            return true;
        }
        match value {
            Value::Object(map) => open.extend(map.values().map(|v| (v, depth + 1))),
            Value::Array(items) => open.extend(items.iter().map(|v| (v, depth + 1))),
            _ => {}
        }
    }
    false
}

/// Puts `apiVersion` and `kind` first, where people look for them.
pub fn set_type(object: &mut Value, api_version: &str, kind: &str) {
    let map = as_map(object);
    let mut fresh = Map::new();
    fresh.insert("apiVersion".into(), api_version.into());
    fresh.insert("kind".into(), kind.into());
    for (k, v) in std::mem::take(map) {
        if k != "apiVersion" && k != "kind" {
            fresh.insert(k, v);
        }
    }
    *map = fresh;
}

/// A moment as `metav1.Time` writes it: seconds, in UTC.
pub fn time(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Now, as `metav1.Time` writes it.
pub fn now() -> String {
    time(jiff::Timestamp::now())
}
