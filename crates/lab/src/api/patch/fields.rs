//! Who manages which fields: sets of fields, their wire form `fieldsV1`, and the entries of `managedFields` that
//! every write keeps up to date. Pure but for the time it stamps.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::schema::{List, Schema, key_of};
use crate::api::object::{array_at, metadata_mut, now, str_at};
use crate::api::registry::Kind;
use crate::api::verbs::Part;

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// `f:name`.
    Field(String),
    /// `k:{"name":"x"}`.
    Key(String),
    /// `v:"x"`.
    Value(String),
    /// `i:0`; read from others, never made here.
    Index(String),
}

impl Step {
    fn wire(&self) -> String {
        match self {
            Step::Field(name) => format!("f:{name}"),
            Step::Key(key) => format!("k:{key}"),
            Step::Value(value) => format!("v:{value}"),
            Step::Index(index) => format!("i:{index}"),
        }
    }

    fn parse(text: &str) -> Option<Step> {
        let (kind, rest) = text.split_once(':')?;
        let rest = rest.to_owned();
        // Key order is the writer's; ours is sorted.
        let canonical = |text: &str| -> Option<String> {
            let map: BTreeMap<String, Value> = serde_json::from_str(text).ok()?;
            serde_json::to_string(&map).ok()
        };
        match kind {
            "f" => Some(Step::Field(rest)),
            "k" => canonical(&rest).map(Step::Key),
            "v" => Some(Step::Value(rest)),
            "i" => Some(Step::Index(rest)),
            _ => None,
        }
    }

    fn text(&self) -> String {
        match self {
            Step::Field(name) => format!(".{name}"),
            Step::Key(key) => match serde_json::from_str::<Map<String, Value>>(key) {
                Ok(map) => {
                    let parts: Vec<String> = map.iter().map(|(k, v)| format!("{k}={v}")).collect();
                    format!("[{}]", parts.join(","))
                }
                Err(_) => format!("[{key}]"),
            },
            Step::Value(value) => format!("[={value}]"),
            Step::Index(index) => format!("[{index}]"),
        }
    }
}

/// A set of fields: a tree whose marked nodes are its members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    member: bool,
    children: BTreeMap<Step, FieldSet>,
}

impl FieldSet {
    fn leaf() -> FieldSet {
        FieldSet { member: true, children: BTreeMap::new() }
    }

    /// Every field of a value that a manager can own.
    pub fn of(schema: Schema<'_>, value: &Value) -> FieldSet {
        match value {
            Value::Object(map) if !map.is_empty() && !schema.is_atomic_map() => FieldSet {
                member: false,
                children: map
                    .iter()
                    .map(|(k, v)| (Step::Field(k.clone()), FieldSet::of(schema.field(k), v)))
                    .collect(),
            },
            Value::Array(items) if !items.is_empty() => match elements(schema, items) {
                Some(elements) => FieldSet {
                    member: false,
                    children: elements
                        .into_iter()
                        .map(|(step, item)| {
                            let mut set = match step {
                                Step::Value(_) => FieldSet::leaf(),
                                _ => FieldSet::of(schema.item(), item),
                            };
                            set.member = true;
                            (step, set)
                        })
                        .collect(),
                },
                None => FieldSet::leaf(),
            },
            _ => FieldSet::leaf(),
        }
    }

    /// Whether it has no member.
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.values().all(FieldSet::is_empty)
    }

    /// The part under a step.
    pub fn child(&self, step: &Step) -> Option<&FieldSet> {
        self.children.get(step)
    }

    /// Whether this very node is a member.
    pub fn is_member(&self) -> bool {
        self.member
    }

    /// Steps with what is under them.
    pub fn children(&self) -> impl Iterator<Item = (&Step, &FieldSet)> {
        self.children.iter()
    }

    /// Members of either.
    pub fn union(&mut self, other: &FieldSet) {
        self.member |= other.member;
        for (step, set) in &other.children {
            self.children.entry(step.clone()).or_default().union(set);
        }
    }

    /// Members of this that are not in the other.
    pub fn minus(&self, other: &FieldSet) -> FieldSet {
        let children = self.children.iter().map(|(step, set)| {
            (step.clone(), other.children.get(step).map_or_else(|| set.clone(), |other| set.minus(other)))
        });
        FieldSet {
            member: self.member && !other.member,
            children: children.filter(|(_, set)| !set.is_empty()).collect(),
        }
    }

    /// Members of both.
    pub fn and(&self, other: &FieldSet) -> FieldSet {
        let children = self
            .children
            .iter()
            .filter_map(|(step, set)| other.children.get(step).map(|other| (step.clone(), set.and(other))));
        FieldSet {
            member: self.member && other.member,
            children: children.filter(|(_, set)| !set.is_empty()).collect(),
        }
    }

    /// Paths of all members, as people write them.
    pub fn paths(&self) -> Vec<String> {
        let mut out = Vec::new();
        self.collect("", &mut out);
        out
    }

    fn collect(&self, path: &str, out: &mut Vec<String>) {
        if self.member {
            out.push(path.to_owned());
        }
        for (step, set) in &self.children {
            set.collect(&format!("{path}{}", step.text()), out);
        }
    }

    /// The wire form.
    pub fn wire(&self) -> Value {
        let mut map = Map::new();
        if self.member && !self.children.is_empty() {
            map.insert(".".into(), json!({}));
        }
        for (step, set) in &self.children {
            map.insert(step.wire(), set.wire());
        }
        Value::Object(map)
    }

    /// Reads the wire form; what is not of it is left out.
    pub fn parse(value: &Value) -> FieldSet {
        let Some(map) = value.as_object() else { return FieldSet::default() };
        if map.is_empty() {
            return FieldSet::leaf();
        }
        FieldSet {
            member: map.contains_key("."),
            children: map.iter().filter_map(|(k, v)| Some((Step::parse(k)?, FieldSet::parse(v)))).collect(),
        }
    }

    /// Without what nobody can own: the type, the name and what the server sets.
    fn stripped(mut self) -> FieldSet {
        for field in ["apiVersion", "kind"] {
            self.children.remove(&Step::Field(field.into()));
        }
        if let Some(metadata) = self.children.get_mut(&Step::Field("metadata".into())) {
            metadata.member = false;
            for field in [
                "name",
                "namespace",
                "generateName",
                "uid",
                "resourceVersion",
                "creationTimestamp",
                "deletionTimestamp",
                "deletionGracePeriodSeconds",
                "generation",
                "managedFields",
                "selfLink",
            ] {
                metadata.children.remove(&Step::Field(field.into()));
            }
        }
        self.children.retain(|_, set| !set.is_empty());
        self
    }
}

/// The elements of a list that is merged by element, with the steps that name them; None where it is one value.
pub fn elements<'a>(schema: Schema<'_>, items: &'a [Value]) -> Option<Vec<(Step, &'a Value)>> {
    match schema.list() {
        List::Atomic => None,
        List::Set => Some(items.iter().map(|item| (Step::Value(item.to_string()), item)).collect()),
        List::Keyed(keys) => {
            items.iter().map(|item| key_of(&keys, item).map(|key| (Step::Key(key), item))).collect()
        }
    }
}

/// Fields set or changed from `old` to `new`, and fields removed.
pub fn compare(schema: Schema<'_>, old: &Value, new: &Value) -> (FieldSet, FieldSet) {
    if old == new {
        return Default::default();
    }
    let pairs = |object: &Value| -> Option<Vec<(Step, Value)>> {
        match object {
            Value::Object(map) if !schema.is_atomic_map() => {
                Some(map.iter().map(|(k, v)| (Step::Field(k.clone()), v.clone())).collect())
            }
            Value::Array(items) => elements(schema, items)
                .map(|elements| elements.into_iter().map(|(step, item)| (step, item.clone())).collect()),
            _ => None,
        }
    };
    let (Some(before), Some(after)) = (pairs(old), pairs(new)) else {
        return (FieldSet::of(schema, new), FieldSet::default());
    };
    let (mut changed, mut removed) = (FieldSet::default(), FieldSet::default());
    let below = |step: &Step| -> (bool, String) {
        match step {
            Step::Field(name) => (true, name.clone()),
            _ => (false, String::new()),
        }
    };
    let whole = |step: &Step, value: &Value| {
        let (is_field, name) = below(step);
        let schema = if is_field { schema.field(&name) } else { schema.item() };
        let mut set = match step {
            Step::Value(_) => FieldSet::leaf(),
            _ => FieldSet::of(schema, value),
        };
        set.member |= !is_field;
        set
    };
    for (step, value) in &after {
        match before.iter().find(|(s, _)| s == step) {
            None => drop(changed.children.insert(step.clone(), whole(step, value))),
            Some((_, was)) => {
                let (is_field, name) = below(step);
                let schema = if is_field { schema.field(&name) } else { schema.item() };
                let (more, less) = compare(schema, was, value);
                if !more.is_empty() {
                    changed.children.insert(step.clone(), more);
                }
                if !less.is_empty() {
                    removed.children.insert(step.clone(), less);
                }
            }
        }
    }
    for (step, value) in &before {
        if !after.iter().any(|(s, _)| s == step) {
            removed.children.insert(step.clone(), whole(step, value));
        }
    }
    (changed, removed)
}

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
