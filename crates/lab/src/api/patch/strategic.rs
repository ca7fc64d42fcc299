//! Strategic merge patch: a merge patch that knows which lists are keyed, with its directives (`$patch`,
//! `$retainKeys`, `$deleteFromPrimitiveList/…`, `$setElementOrder/…`).

use serde_json::{Map, Value};

use super::schema::{List, Schema, key_of};
use crate::api::failure::Failure;
use crate::api::object::as_map;

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// Merges `patch` into `target`.
pub fn merge(schema: Schema<'_>, target: &mut Value, patch: &Value) -> Result<(), Failure> {
    let Some(patch) = patch.as_object() else {
        *target = patch.clone();
        return Ok(());
    };
    match patch.get(PATCH).and_then(Value::as_str) {
        Some("replace") => {
            *target = Value::Object(
                patch.iter().filter(|(k, _)| *k != PATCH).map(|(k, v)| (k.clone(), v.clone())).collect(),
            );
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(bad(&format!("unknown value {other:?} of $patch"))),
    }
    let target = as_map(target);
    if let Some(keep) = patch.get(RETAIN).and_then(Value::as_array) {
        target.retain(|key, _| keep.iter().any(|k| k == key));
    }
    for (key, value) in patch {
        if let Some(field) = key.strip_prefix(DELETE) {
            let gone = value.as_array().map(Vec::as_slice).unwrap_or(&[]);
            if let Some(list) = target.get_mut(field).and_then(Value::as_array_mut) {
                list.retain(|item| !gone.contains(item));
            }
        } else if !key.starts_with('$') {
            member(schema.field(key), target, key, value)?;
        }
    }
    for (key, order) in patch {
        if let (Some(field), Some(order)) = (key.strip_prefix(ORDER), order.as_array())
            && let Some(list) = target.get_mut(field).and_then(Value::as_array_mut)
        {
            reorder(schema.field(field), list, order);
        }
    }
    Ok(())
}

fn member(
    schema: Schema<'_>,
    target: &mut Map<String, Value>,
    key: &str,
    value: &Value,
) -> Result<(), Failure> {
    match value {
        Value::Null => drop(target.shift_remove(key)),
        // `$patch: delete` alone removes the field itself.
        Value::Object(map) if map.get(PATCH).and_then(Value::as_str) == Some("delete") => {
            target.shift_remove(key);
        }
        Value::Object(_) => {
            let slot = target.entry(key).or_insert(Value::Null);
            merge(schema, slot, value)?;
        }
        Value::Array(items) => match schema.strategic() {
            List::Keyed(keys) => {
                let slot = target.entry(key).or_insert_with(|| Value::Array(Vec::new()));
                if !slot.is_array() {
                    *slot = Value::Array(Vec::new());
                }
                if let Value::Array(list) = slot {
                    merge_list(schema, keys.first().copied().unwrap_or(""), list, items)?;
                }
            }
            List::Set => {
                let mut list = target.get(key).and_then(Value::as_array).cloned().unwrap_or_default();
                for item in items {
                    if !list.contains(item) {
                        list.push(item.clone());
                    }
                }
                target.insert(key.to_owned(), Value::Array(list));
            }
            List::Atomic => drop(target.insert(key.to_owned(), value.clone())),
        },
        other => drop(target.insert(key.to_owned(), other.clone())),
    }
    Ok(())
}

fn merge_list(schema: Schema<'_>, key: &str, list: &mut Vec<Value>, items: &[Value]) -> Result<(), Failure> {
    let directive = |item: &Value| item.get(PATCH).and_then(Value::as_str).map(str::to_owned);
    if items.iter().any(|item| directive(item).as_deref() == Some("replace")) {
        *list = items.iter().filter(|item| directive(item).is_none()).cloned().collect();
        return Ok(());
    }
    for item in items {
        let value = item
            .get(key)
            .ok_or_else(|| bad(&format!("map: {item} does not contain declared merge key: {key}")))?;
        let at = list.iter().position(|have| have.get(key) == Some(value));
        match (directive(item).as_deref(), at) {
            // Every element with that key goes: a key may occur twice where types allow it (ports of two protocols).
            (Some("delete"), _) => list.retain(|have| have.get(key) != Some(value)),
            (_, Some(at)) => merge(schema.item(), &mut list[at], item)?,
            (_, None) => {
                let mut fresh = Value::Object(Map::new());
                merge(schema.item(), &mut fresh, item)?;
                list.push(fresh);
            }
        }
    }
    Ok(())
}

/// Puts the elements that `order` names into that order; the others follow as they were.
fn reorder(schema: Schema<'_>, list: &mut [Value], order: &[Value]) {
    let key = match schema.strategic() {
        List::Keyed(keys) => keys,
        _ => Vec::new(),
    };
    let id = |item: &Value| {
        if item.is_object() { key_of(&key, item).unwrap_or_default() } else { item.to_string() }
    };
    let order: Vec<String> = order.iter().map(&id).collect();
    list.sort_by_key(|item| {
        let id = id(item);
        order.iter().position(|o| *o == id).unwrap_or(order.len())
    });
}

fn bad(why: &str) -> Failure {
    Failure::bad_request(format!("the strategic merge patch cannot be applied: {why}"))
}
