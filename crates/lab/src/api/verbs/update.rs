//! update and patch of an object or of its status, and the one place where a changed object is stored.

use std::sync::Arc;

use serde_json::Value;

use super::Call;
use super::create::{has_generation, insert, place};
use super::options::WriteOptions;
use super::read::shape;
use crate::api::failure::Failure;
use crate::api::http::{self as wire, Accept, Answer};
use crate::api::object::{self, as_map, map_mut, metadata_mut, name, resource_version, uid};
use crate::api::patch::{self, Patch, managed};
use crate::api::rbac::{self, Wish};
use crate::api::registry::Kind;
use crate::api::store::Inner;
use crate::api::{Api, admission, convert, strict};

/// What part of the object a write may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Everything but the status, where there is a status subresource.
    Main,
    /// The status only.
    Status,
    /// `spec.finalizers` of a namespace.
    Finalize,
    /// The number of replicas: as [`Part::Main`], but recorded as what it is.
    Scale,
    /// Everything, by the server itself.
    Whole,
}

impl Part {
    /// The subresource's name as `managedFields` has it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Status => "status",
            Part::Finalize => "finalize",
            Part::Scale => "scale",
            Part::Main | Part::Whole => "",
        }
    }
}

/// PUT of an object.
pub fn update(call: &Call, body: &[u8]) -> Result<Answer, Failure> {
    replace(call, body, Part::Main)
}

/// PUT of an object or a part of it.
pub fn replace(call: &Call, body: &[u8], part: Part) -> Result<Answer, Failure> {
    let accept = Accept::of(&call.headers)?;
    let options = WriteOptions::of(call)?;
    let mut warnings = Vec::new();
    let mut object =
        strict::check(&call.kind, wire::decode(&call.headers, body)?, options.unknown, &mut warnings)?;
    place(call, &mut object)?;
    if name(&object).is_empty() {
        metadata_mut(&mut object).insert("name".into(), call.name().into());
    }
    let updated = call.api.store.with(|tx| {
        let old = tx.get(&call.kind.storage, call.namespace(), call.name());
        // Leases may be made by an update, as in the real server.
        if old.is_none() && part == Part::Main && call.kind.is("leases.coordination.k8s.io") {
            check_name(call, &object)?;
            rbac::check(tx, &call.user, &Wish { verb: "create", ..call.wish() })?;
            let operation = managed::Operation::update(&options.manager);
            return insert(&call.api, tx, &call.kind, object, &options, Some(&operation)).map(|o| (o, 201));
        }
        let old = old.ok_or_else(|| call.not_found())?;
        check_name(call, &object)?;
        let operation = managed::Operation { part, ..managed::Operation::update(&options.manager) };
        store(&call.api, tx, &call.kind, &old, object, part, &options, Some(&operation)).map(|o| (o, 200))
    });
    respond(call, accept, updated?, &warnings)
}

fn check_name(call: &Call, object: &Value) -> Result<(), Failure> {
    if name(object) == call.name() {
        return Ok(());
    }
    Err(Failure::bad_request(format!(
        "the name of the object ({}) does not match the name on the URL ({})",
        name(object),
        call.name()
    )))
}

fn respond(
    call: &Call,
    accept: Accept,
    (object, code): (Arc<Value>, u16),
    warnings: &[String],
) -> Result<Answer, Failure> {
    let object = convert::served(&call.kind, &object);
    let mut answer = wire::object(code, accept.format, &shape(call, accept, &object));
    wire::warn(&mut answer, warnings);
    Ok(answer)
}

/// PATCH of an object.
pub fn patch(call: &Call, body: &[u8]) -> Result<Answer, Failure> {
    patch_part(call, body, Part::Main)
}

/// PATCH of an object or a part of it.
pub fn patch_part(call: &Call, body: &[u8], part: Part) -> Result<Answer, Failure> {
    let accept = Accept::of(&call.headers)?;
    let options = WriteOptions::of(call)?;
    let patch = Patch::parse(wire::content_type(&call.headers), body)?;
    if let Patch::Apply(config) = patch {
        return apply(call, accept, config, part, &options);
    }
    let mut warnings = Vec::new();
    let updated = call.api.store.with(|tx| {
        let stored =
            tx.get(&call.kind.storage, call.namespace(), call.name()).ok_or_else(|| call.not_found())?;
        let current = convert::served(&call.kind, &stored);
        let patched = patch.apply(&call.kind, &current)?;
        let object = strict::check(&call.kind, patched, options.unknown, &mut warnings)?;
        check_name(call, &object)?;
        if object::namespace(&object) != object::namespace(&current) {
            return Err(Failure::bad_request(
                "the namespace of the provided object does not match the namespace sent on the request",
            ));
        }
        let operation = managed::Operation { part, ..managed::Operation::update(&options.manager) };
        store(&call.api, tx, &call.kind, &stored, object, part, &options, Some(&operation)).map(|o| (o, 200))
    });
    respond(call, accept, updated?, &warnings)
}

/// Server-side apply.
fn apply(
    call: &Call,
    accept: Accept,
    config: Value,
    part: Part,
    options: &WriteOptions,
) -> Result<Answer, Failure> {
    if call.params.get("fieldManager").is_empty() {
        return Err(Failure::bad_request(
            "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch",
        ));
    }
    let mut warnings = Vec::new();
    let mut config = strict::check(&call.kind, config, options.unknown, &mut warnings)?;
    if config.pointer("/metadata/managedFields").is_some() {
        return Err(Failure::bad_request("metadata.managedFields must be nil"));
    }
    place(call, &mut config)?;
    if name(&config).is_empty() {
        metadata_mut(&mut config).insert("name".into(), call.name().into());
    }
    check_name(call, &config)?;
    // What this part cannot change is not wanted from it either, or its manager would own it in vain.
    if part == Part::Status {
        as_map(&mut config)
            .retain(|key, _| matches!(key.as_str(), "apiVersion" | "kind" | "metadata" | "status"));
        metadata_mut(&mut config)
            .retain(|key, _| matches!(key.as_str(), "name" | "namespace" | "uid" | "resourceVersion"));
    } else if call.kind.has("status") {
        as_map(&mut config).shift_remove("status");
    }
    let operation = managed::Operation { part, ..managed::Operation::apply(&options.manager) };
    let applied = call.api.store.with(|tx| {
        let Some(stored) = tx.get(&call.kind.storage, call.namespace(), call.name()) else {
            if part != Part::Main {
                return Err(call.not_found());
            }
            rbac::check(tx, &call.user, &Wish { verb: "create", ..call.wish() })?;
            if !uid(&config).is_empty() {
                return Err(Failure::conflict(
                    &call.kind.resource,
                    call.name(),
                    "uid mismatch: the provided object specified uid, and no existing object was found",
                ));
            }
            return insert(&call.api, tx, &call.kind, config, options, Some(&operation)).map(|o| (o, 201));
        };
        let current = convert::served(&call.kind, &stored);
        let merged = patch::apply::apply(&call.kind, &current, &config, &operation, options.force)?;
        store(&call.api, tx, &call.kind, &stored, merged, part, options, None).map(|o| (o, 200))
    });
    respond(call, accept, applied?, &warnings)
}

/// Stores `new` (in the form it is served in) in place of `old` (in the form it is stored in), as far as the part
/// reaches; removes it if that was what kept it alive.
#[allow(clippy::too_many_arguments, reason = "one transaction's whole context, used in one place")]
pub fn store(
    api: &Api,
    tx: &mut Inner,
    kind: &Kind,
    old: &Arc<Value>,
    mut new: Value,
    part: Part,
    options: &WriteOptions,
    operation: Option<&managed::Operation>,
) -> Result<Arc<Value>, Failure> {
    let served = convert::served(kind, old);
    preconditions(kind, &served, &new)?;
    confine(kind, &served, &mut new, part);
    if part != Part::Status {
        admission::on_update(api, tx, kind, &served, &mut new)?;
    }
    if let Some(operation) = operation {
        managed::track(kind, Some(&served), &mut new, operation);
    }
    admission::validate(tx, kind, &new, Some(&served))?;
    if has_generation(kind) && specification_changed(kind, &served, &new) {
        let generation = served.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
        metadata_mut(&mut new).insert("generation".into(), (generation + 1).into());
    }
    if managed::same_but_for_times(&served, &new) {
        return Ok(old.clone());
    }
    let new = convert::stored(kind, new);
    if options.dry_run {
        return Ok(Arc::new(new));
    }
    let stored = tx.put(&kind.storage, new);
    let stored = if finished(kind, &stored) {
        tx.remove(&kind.storage, object::namespace(&stored), name(&stored)).unwrap_or(stored)
    } else {
        stored
    };
    admission::after_write(api, tx, kind);
    Ok(stored)
}

fn preconditions(kind: &Kind, old: &Value, new: &Value) -> Result<(), Failure> {
    if !uid(new).is_empty() && uid(new) != uid(old) {
        let why = format!(
            "Precondition failed: UID in precondition: {}, UID in object meta: {}",
            uid(new),
            uid(old)
        );
        return Err(Failure::conflict(&kind.resource, name(old), &why));
    }
    let version = resource_version(new);
    if !version.is_empty() && version != resource_version(old) {
        return Err(Failure::modified(&kind.resource, name(old)));
    }
    Ok(())
}

/// Takes from the old object everything that this write may not change.
fn confine(kind: &Kind, old: &Value, new: &mut Value, part: Part) {
    let of = |object: &Value, key: &str| object.get("metadata").and_then(|m| m.get(key)).cloned();
    match part {
        Part::Whole => return,
        Part::Main | Part::Scale if kind.has("status") => {
            let map = as_map(new);
            map.shift_remove("status");
            if let Some(status) = old.get("status") {
                map.insert("status".into(), status.clone());
            }
        }
        Part::Main | Part::Scale => {}
        Part::Status | Part::Finalize => {
            let finalizers = new.pointer("/spec/finalizers").cloned();
            let status = as_map(new).shift_remove("status");
            let (labels, annotations) = (of(new, "labels"), of(new, "annotations"));
            let managed = of(new, "managedFields");
            *new = old.clone();
            if let Some(managed) = managed {
                metadata_mut(new).insert("managedFields".into(), managed);
            }
            if part == Part::Finalize {
                let spec = map_mut(new, "spec");
                spec.shift_remove("finalizers");
                if let Some(finalizers) = finalizers {
                    spec.insert("finalizers".into(), finalizers);
                }
            } else {
                let map = as_map(new);
                map.shift_remove("status");
                if let Some(status) = status {
                    map.insert("status".into(), status);
                }
                // Nodes and pods let their labels and annotations be changed along with their status.
                if kind.is("nodes") || kind.is("pods") {
                    let metadata = metadata_mut(new);
                    for (key, value) in [("labels", labels), ("annotations", annotations)] {
                        if let Some(value) = value {
                            metadata.insert(key.into(), value);
                        }
                    }
                }
            }
        }
    }
    let metadata = metadata_mut(new);
    for key in [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "selfLink",
        "resourceVersion",
    ] {
        metadata.shift_remove(key);
        if let Some(value) = of(old, key) {
            metadata.insert(key.into(), value);
        }
    }
}

fn specification_changed(kind: &Kind, old: &Value, new: &Value) -> bool {
    let rest = |object: &Value| -> Vec<(String, Value)> {
        let mut rest: Vec<(String, Value)> = object
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(k, _)| {
                *k != "metadata" && !(*k == "status" && (kind.has("status") || kind.custom().is_none()))
            })
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        rest.sort_by(|a, b| a.0.cmp(&b.0));
        rest
    };
    rest(old) != rest(new)
}

/// Whether an object on its way out has nothing left that holds it.
pub fn finished(kind: &Kind, object: &Value) -> bool {
    let none = |pointer: &str| object::array_at(object, pointer).is_empty();
    let grace = object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    let released = none("/metadata/finalizers") && (none("/spec/finalizers") || !kind.is("namespaces"));
    object::terminating(object) && grace == 0 && released
}
