//! Sets of fields, their wire form `fieldsV1`, and what differs between two objects as such sets. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use super::schema::{List, Schema, key_of};

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
    pub(super) fn stripped(mut self) -> FieldSet {
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
    let known: BTreeMap<&Step, &Value> = before.iter().map(|(step, value)| (step, value)).collect();
    for (step, value) in &after {
        match known.get(step) {
            None => drop(changed.children.insert(step.clone(), whole(step, value))),
            Some(was) => {
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
    let kept: BTreeSet<&Step> = after.iter().map(|(step, _)| step).collect();
    for (step, value) in &before {
        if !kept.contains(step) {
            removed.children.insert(step.clone(), whole(step, value));
        }
    }
    (changed, removed)
}
