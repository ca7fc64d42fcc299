//! Server-side apply: what one manager wants is merged into what is there; what it no longer wants and nobody else
//! owns is removed; what others own and it would change is a conflict, unless it insists.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::fields::{FieldSet, Step, elements};
use super::managed::{self, Entry, Operation};
use super::schema::{List, Schema};
use crate::api::failure::Failure;
use crate::api::object::{as_map, metadata_mut};
use crate::api::registry::Kind;

/// The object after `operation.manager` applied `config` to `live`, its `managedFields` included.
pub fn apply(
    kind: &Kind,
    live: &Value,
    config: &Value,
    operation: &Operation,
    force: bool,
) -> Result<Value, Failure> {
    let schema = Schema::of(kind);
    let wanted = managed::owned(kind, config);
    let mut entries = managed::entries(live);
    let mut merged = live.clone();
    merge(schema, &mut merged, config);
    let (changed, _) = managed::changes(kind, live, &merged);
    let conflicts: Vec<(&Entry, FieldSet)> = entries
        .iter()
        .filter(|entry| !entry.is_of(operation))
        .map(|entry| (entry, entry.fields.and(&changed)))
        .filter(|(_, both)| !both.is_empty())
        .collect();
    if !conflicts.is_empty() && !force {
        return Err(conflict(&conflicts));
    }
    let mine = match entries.iter().position(|entry| entry.is_of(operation)) {
        Some(at) => at,
        None => {
            entries.push(Entry::new(kind, operation));
            entries.len() - 1
        }
    };
    let mut others = FieldSet::default();
    for (i, entry) in entries.iter_mut().enumerate() {
        if i != mine {
            entry.fields = entry.fields.minus(&changed);
            others.union(&entry.fields);
        }
    }
    let dropped = entries[mine].fields.minus(&wanted).minus(&others);
    remove(schema, &mut merged, &dropped, &others, &wanted);
    if entries[mine].fields != wanted {
        entries[mine].touch();
    }
    entries[mine].fields = wanted;
    managed::set_entries(&mut merged, &entries);
    // A version in the configuration is a precondition, which the merge has carried over already.
    if let Some(version) = config.pointer("/metadata/resourceVersion") {
        metadata_mut(&mut merged).insert("resourceVersion".into(), version.clone());
    }
    Ok(merged)
}

fn conflict(conflicts: &[(&Entry, FieldSet)]) -> Failure {
    let mut causes = Vec::new();
    let mut sentences = Vec::new();
    let mut count = 0;
    for (entry, set) in conflicts {
        let paths = set.paths();
        count += paths.len();
        let mut who = format!("{:?}", entry.manager);
        if !entry.subresource.is_empty() {
            who.push_str(&format!(" with subresource {:?}", entry.subresource));
        }
        who.push_str(&format!(" using {}", entry.api_version));
        for path in &paths {
            causes.push(json!({
                "reason": "FieldManagerConflict", "message": format!("conflict with {who}"), "field": path,
            }));
        }
        sentences.push(match paths.as_slice() {
            [one] => format!("conflict with {who}: {one}"),
            many => format!("conflicts with {who}:\n- {}", many.join("\n- ")),
        });
    }
    let noun = if count == 1 { "conflict" } else { "conflicts" };
    Failure {
        details: Some(json!({ "causes": causes })),
        ..Failure::new(409, "Conflict", format!("Apply failed with {count} {noun}: {}", sentences.join("\n")))
    }
}

/// Merges `config` into `target` by the lists' keys.
pub fn merge(schema: Schema<'_>, target: &mut Value, config: &Value) {
    match config {
        Value::Object(map) if target.is_object() && !schema.is_atomic_map() => {
            let target = as_map(target);
            for (key, value) in map {
                match target.get_mut(key) {
                    Some(slot) => merge(schema.field(key), slot, value),
                    None => drop(target.insert(key.clone(), value.clone())),
                }
            }
        }
        Value::Array(items) => match (elements(schema, items), target.as_array()) {
            (Some(wanted), Some(have)) if elements(schema, have).is_some() => {
                *target = Value::Array(merge_list(schema, have, &wanted));
            }
            _ => *target = config.clone(),
        },
        _ => *target = config.clone(),
    }
}

fn merge_list(schema: Schema<'_>, have: &[Value], wanted: &[(Step, &Value)]) -> Vec<Value> {
    let mut out = have.to_vec();
    let steps = elements(schema, have).unwrap_or_default().into_iter().map(|(step, _)| step);
    let mut places: BTreeMap<Step, usize> = steps.enumerate().map(|(place, step)| (step, place)).collect();
    for (step, item) in wanted {
        match places.get(step) {
            Some(place) => merge(schema.item(), &mut out[*place], item),
            None => {
                places.insert(step.clone(), out.len());
                out.push((*item).clone());
            }
        }
    }
    out
}

/// Removes from `target` the fields of `gone`; a list element goes only when nobody else owns anything in it.
fn remove(schema: Schema<'_>, target: &mut Value, gone: &FieldSet, others: &FieldSet, wanted: &FieldSet) {
    let nothing = FieldSet::default();
    match target {
        Value::Object(map) => {
            for (step, set) in gone.children() {
                let Step::Field(name) = step else { continue };
                let (others, wanted) =
                    (others.child(step).unwrap_or(&nothing), wanted.child(step).unwrap_or(&nothing));
                if set.is_member() && others.is_empty() && wanted.is_empty() {
                    map.shift_remove(name);
                } else if let Some(value) = map.get_mut(name) {
                    remove(schema.field(name), value, set, others, wanted);
                    if is_empty(value) && others.is_empty() && wanted.is_empty() {
                        map.shift_remove(name);
                    }
                }
            }
        }
        Value::Array(items) => {
            let keys = match schema.list() {
                List::Keyed(keys) => keys,
                _ => Vec::new(),
            };
            let Some(steps) = elements(schema, items)
                .map(|elements| elements.into_iter().map(|(step, _)| step).collect::<Vec<_>>())
            else {
                return;
            };
            let mut kept = Vec::new();
            for (step, mut item) in steps.into_iter().zip(std::mem::take(items)) {
                if let Some(set) = gone.child(&step) {
                    let (others, wanted) =
                        (others.child(&step).unwrap_or(&nothing), wanted.child(&step).unwrap_or(&nothing));
                    if set.is_member() && others.is_empty() && wanted.is_empty() {
                        continue;
                    }
                    // The fields that name the element stay as long as it does.
                    let names: Map<String, Value> = keys
                        .iter()
                        .filter_map(|key| Some(((*key).to_owned(), item.get(*key)?.clone())))
                        .collect();
                    remove(schema.item(), &mut item, set, others, wanted);
                    if item.is_object() {
                        as_map(&mut item).extend(names);
                    }
                }
                kept.push(item);
            }
            *items = kept;
        }
        _ => {}
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}
