//! Who manages which fields: the entries of `managedFields`, which every write keeps up to date. Pure but for the
//! time it stamps.

use serde_json::{Value, json};

use super::fields::{FieldSet, compare};
use super::schema::Schema;
use crate::api::object::{array_at, metadata_mut, now, str_at};
use crate::api::registry::Kind;
use crate::api::verbs::Part;

/// Who writes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operation {
    /// Field manager.
    pub manager: String,
    /// Whether it applies rather than updates.
    pub apply: bool,
    /// What part of the object it writes.
    pub part: Part,
}

impl Operation {
    /// An update of the whole object.
    pub fn update(manager: &str) -> Operation {
        Operation { manager: manager.into(), apply: false, part: Part::Main }
    }

    /// A server-side apply of the whole object.
    pub fn apply(manager: &str) -> Operation {
        Operation { apply: true, ..Operation::update(manager) }
    }
}

/// One entry of `managedFields`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Field manager.
    pub manager: String,
    /// Whether it applied.
    pub apply: bool,
    /// Subresource, or "".
    pub subresource: String,
    /// The version the fields are of.
    pub api_version: String,
    time: String,
    /// The fields.
    pub fields: FieldSet,
}

impl Entry {
    /// A new entry for this operation.
    pub fn new(kind: &Kind, operation: &Operation) -> Entry {
        Entry {
            manager: operation.manager.clone(),
            apply: operation.apply,
            subresource: operation.part.name().into(),
            api_version: kind.api_version(),
            time: now(),
            fields: FieldSet::default(),
        }
    }

    /// Whether this operation continues this entry.
    pub fn is_of(&self, operation: &Operation) -> bool {
        self.manager == operation.manager
            && self.apply == operation.apply
            && self.subresource == operation.part.name()
    }

    /// Stamps the entry with the present.
    pub fn touch(&mut self) {
        self.time = now();
    }
}

/// The entries of an object.
pub fn entries(object: &Value) -> Vec<Entry> {
    array_at(object, "/metadata/managedFields")
        .iter()
        .map(|entry| Entry {
            manager: str_at(entry, "/manager").into(),
            apply: str_at(entry, "/operation") == "Apply",
            subresource: str_at(entry, "/subresource").into(),
            api_version: str_at(entry, "/apiVersion").into(),
            time: str_at(entry, "/time").into(),
            fields: entry.get("fieldsV1").map(FieldSet::parse).unwrap_or_default(),
        })
        .collect()
}

/// Writes the entries that own something.
pub fn set_entries(object: &mut Value, entries: &[Entry]) {
    let list: Vec<Value> = entries
        .iter()
        .filter(|entry| !entry.fields.is_empty())
        .map(|entry| {
            let mut value = json!({
                "manager": entry.manager,
                "operation": if entry.apply { "Apply" } else { "Update" },
                "apiVersion": entry.api_version,
                "time": entry.time,
                "fieldsType": "FieldsV1",
                "fieldsV1": entry.fields.wire(),
            });
            if !entry.subresource.is_empty() {
                value["subresource"] = entry.subresource.as_str().into();
            }
            value
        })
        .collect();
    let metadata = metadata_mut(object);
    metadata.shift_remove("managedFields");
    if !list.is_empty() {
        metadata.insert("managedFields".into(), list.into());
    }
}

/// The fields of an object that a manager can own.
pub fn owned(kind: &Kind, object: &Value) -> FieldSet {
    FieldSet::of(Schema::of(kind), object).stripped()
}

/// What changed, of what a manager can own.
pub fn changes(kind: &Kind, old: &Value, new: &Value) -> (FieldSet, FieldSet) {
    let (changed, removed) = compare(Schema::of(kind), old, new);
    (changed.stripped(), removed.stripped())
}

/// Keeps `managedFields` of `new` up to date with an update from `old`, or with its creation.
pub fn track(kind: &Kind, old: Option<&Value>, new: &mut Value, operation: &Operation) {
    // An explicit list of one empty entry is how a client asks for the record to be forgotten.
    let forget = array_at(new, "/metadata/managedFields") == [json!({})];
    let mut entries = match old {
        Some(old) if !forget => entries(old),
        _ => Vec::new(),
    };
    let (changed, removed) = match old {
        Some(old) => changes(kind, old, new),
        None => (owned(kind, new), FieldSet::default()),
    };
    if !changed.is_empty() || !removed.is_empty() {
        for entry in &mut entries {
            entry.fields = entry.fields.minus(&removed);
            if !entry.is_of(operation) {
                entry.fields = entry.fields.minus(&changed);
            }
        }
        let at = match entries.iter().position(|entry| entry.is_of(operation)) {
            Some(at) => at,
            None => {
                entries.push(Entry::new(kind, operation));
                entries.len() - 1
            }
        };
        entries[at].fields.union(&changed);
        entries[at].touch();
    }
    set_entries(new, &entries);
}

/// Whether two objects differ in nothing but the times of their `managedFields` and their version.
pub fn same_but_for_times(old: &Value, new: &Value) -> bool {
    let plain = |object: &Value| {
        let mut object = object.clone();
        metadata_mut(&mut object).shift_remove("resourceVersion");
        let mut records = entries(&object);
        records.iter_mut().for_each(|entry| entry.time.clear());
        set_entries(&mut object, &records);
        object
    };
    plain(old) == plain(new)
}
