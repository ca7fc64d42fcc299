//! delete and deletecollection: at once, gracefully, or as soon as the finalizers are gone.

use std::sync::Arc;

use serde_json::{Value, json};

use super::options::dry_run;
use super::read::{selector, shape};
use super::update::finished;
use super::{Call, success};
use crate::api::failure::Failure;
use crate::api::http::{self as wire, Accept, Answer};
use crate::api::object::{
    self, array_at, map_mut, metadata_mut, name, namespace, resource_version, str_at, terminating, time, uid,
};
use crate::api::registry::Kind;
use crate::api::store::Inner;
use crate::api::{Api, admission, convert};

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds the object may take to end; None is its own default.
    pub grace: Option<i64>,
    /// Say what would happen, and change nothing.
    pub dry_run: bool,
    /// Only this incarnation.
    pub uid: String,
    /// Only this version.
    pub resource_version: String,
    /// Background, Foreground, Orphan or "".
    pub propagation: String,
}

impl DeleteOptions {
    fn of(call: &Call, body: &[u8]) -> Result<DeleteOptions, Failure> {
        let body = if body.is_empty() { json!({}) } else { wire::decode(&call.headers, body)? };
        let text = |key: &str| match call.params.get(key) {
            "" => str_at(&body, &format!("/{key}")).to_owned(),
            value => value.to_owned(),
        };
        let dry = match call.params.get("dryRun") {
            "" => array_at(&body, "/dryRun").first().and_then(Value::as_str).unwrap_or("").to_owned(),
            value => value.to_owned(),
        };
        let grace = match call.params.number("gracePeriodSeconds")? {
            Some(n) => Some(i64::try_from(n).unwrap_or(i64::MAX)),
            None => body.get("gracePeriodSeconds").and_then(Value::as_i64),
        };
        // A negative period asks for as little as possible, and absurd ones must not overflow the clock.
        let grace = grace.map(|n| if n < 0 { 1 } else { n.min(86_400 * 365) });
        let mut propagation = text("propagationPolicy");
        if propagation.is_empty() {
            let orphan =
                call.params.flag("orphanDependents") || body.get("orphanDependents") == Some(&true.into());
            propagation = if orphan { "Orphan".into() } else { String::new() };
        }
        if !matches!(propagation.as_str(), "" | "Orphan" | "Foreground" | "Background") {
            return Err(Failure::bad_request(format!(
                "propagationPolicy: Unsupported value: {propagation:?}: supported values: \"Foreground\", \"Background\", \"Orphan\""
            )));
        }
        Ok(DeleteOptions {
            grace,
            dry_run: dry_run(&dry)?,
            uid: str_at(&body, "/preconditions/uid").into(),
            resource_version: str_at(&body, "/preconditions/resourceVersion").into(),
            propagation,
        })
    }
}

/// What became of a deleted object.
pub enum Deleted {
    /// It is gone.
    Gone(Arc<Value>),
    /// It is on its way out.
    Terminating(Arc<Value>),
}

/// DELETE of one object.
pub fn delete(call: &Call, body: &[u8]) -> Result<Answer, Failure> {
    let accept = Accept::of(&call.headers)?;
    let options = DeleteOptions::of(call, body)?;
    let deleted = call.api.store.with(|tx| {
        let object =
            tx.get(&call.kind.storage, call.namespace(), call.name()).ok_or_else(|| call.not_found())?;
        remove(&call.api, tx, &call.kind, &object, &options)
    })?;
    let answer = match deleted {
        Deleted::Terminating(object) => convert::served(&call.kind, &object),
        Deleted::Gone(object) if call.kind.is("pods") => object,
        Deleted::Gone(object) => {
            let mut details = json!({ "name": name(&object), "kind": call.kind.plural, "uid": uid(&object) });
            if !call.kind.group.is_empty() {
                details["group"] = call.kind.group.as_str().into();
            }
            return Ok(wire::object(200, accept.format, &success(details)));
        }
    };
    Ok(wire::object(200, accept.format, &shape(call, accept, &answer)))
}

/// DELETE of a collection.
pub fn collection(call: &Call, body: &[u8]) -> Result<Answer, Failure> {
    let accept = Accept::of(&call.headers)?;
    let options = DeleteOptions::of(call, body)?;
    let selector = selector(call)?;
    let deleted = call.api.store.with(|tx| {
        let objects: Vec<Arc<Value>> =
            tx.list(&call.kind.storage, call.target.namespace.as_deref()).cloned().collect();
        let mut deleted = Vec::new();
        for object in objects {
            let served = convert::served(&call.kind, &object);
            if selector.matches(&served) {
                remove(&call.api, tx, &call.kind, &object, &options)?;
                deleted.push(Value::clone(&served));
            }
        }
        Ok::<_, Failure>((deleted, tx.revision()))
    });
    let (items, revision) = deleted?;
    let list = json!({
        "kind": call.kind.list_kind, "apiVersion": call.kind.api_version(),
        "metadata": { "resourceVersion": revision.to_string() }, "items": items,
    });
    Ok(wire::object(200, accept.format, &list))
}

/// Deletes an object (in its stored form), or sets it on its way.
pub fn remove(
    api: &Api,
    tx: &mut Inner,
    kind: &Kind,
    object: &Arc<Value>,
    options: &DeleteOptions,
) -> Result<Deleted, Failure> {
    check(kind, object, options)?;
    let mut new = Value::clone(object);
    let graceful = if kind.is("pods") { grace_of_pod(object, options) } else { 0 };
    let was_terminating = terminating(object);
    let old_grace = object.pointer("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
    if !was_terminating {
        mark_propagation(kind, &mut new, options);
    }
    if !was_terminating || old_grace.is_some_and(|old| graceful < old) {
        // Counted from the first request when that is what is being shortened.
        let since = jiff::Timestamp::now();
        let until = since.checked_add(jiff::SignedDuration::from_secs(graceful)).unwrap_or(since);
        let generation = new.pointer("/metadata/generation").and_then(Value::as_i64);
        let metadata = metadata_mut(&mut new);
        metadata.insert("deletionTimestamp".into(), time(until).into());
        metadata.insert("deletionGracePeriodSeconds".into(), graceful.into());
        if let Some(generation) = generation
            && !was_terminating
        {
            metadata.insert("generation".into(), (generation + 1).into());
        }
        if kind.is("namespaces") {
            map_mut(&mut new, "status").insert("phase".into(), "Terminating".into());
        }
    }
    let gone = finished(kind, &new);
    if options.dry_run {
        return Ok(if gone { Deleted::Gone(object.clone()) } else { Deleted::Terminating(Arc::new(new)) });
    }
    if gone {
        let removed =
            tx.remove(&kind.storage, namespace(object), name(object)).unwrap_or_else(|| object.clone());
        if kind.is("customresourcedefinitions.apiextensions.k8s.io") {
            tx.drop_resource(name(object));
        }
        admission::after_write(api, tx, kind);
        return Ok(Deleted::Gone(removed));
    }
    if new == **object {
        return Ok(Deleted::Terminating(object.clone()));
    }
    let stored = tx.put(&kind.storage, new);
    Ok(Deleted::Terminating(stored))
}

fn check(kind: &Kind, object: &Value, options: &DeleteOptions) -> Result<(), Failure> {
    let conflict = |what: &str, asked: &str, is: &str| {
        let why =
            format!("Precondition failed: {what} in precondition: {asked}, {what} in object meta: {is}");
        Failure::conflict(&kind.resource, name(object), &why)
    };
    if !options.uid.is_empty() && options.uid != uid(object) {
        return Err(conflict("UID", &options.uid, uid(object)));
    }
    if !options.resource_version.is_empty() && options.resource_version != resource_version(object) {
        return Err(conflict("ResourceVersion", &options.resource_version, resource_version(object)));
    }
    if kind.is("namespaces") && matches!(name(object), "default" | "kube-system" | "kube-public") {
        return Err(Failure::forbidden("namespaces", name(object), "this namespace may not be deleted"));
    }
    Ok(())
}

/// Seconds a pod may take to end; one that never ran, or has ended, takes none.
fn grace_of_pod(pod: &Value, options: &DeleteOptions) -> i64 {
    let ended = matches!(str_at(pod, "/status/phase"), "Succeeded" | "Failed");
    if str_at(pod, "/spec/nodeName").is_empty() || ended {
        return 0;
    }
    let own = pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    options.grace.or(own).unwrap_or(30).max(0)
}

/// Leaves the garbage collector its orders.
fn mark_propagation(kind: &Kind, object: &mut Value, options: &DeleteOptions) {
    // Jobs orphan their pods unless told otherwise, an old promise of batch/v1.
    let by_default = if kind.is("jobs.batch") { "Orphan" } else { "Background" };
    let policy = if options.propagation.is_empty() { by_default } else { &options.propagation };
    let already = object::strings_at(object, "/metadata/finalizers").into_iter().map(str::to_owned);
    let mut finalizers: Vec<String> =
        already.filter(|f| f != "orphan" && f != "foregroundDeletion").collect();
    match policy {
        "Orphan" => finalizers.push("orphan".into()),
        "Foreground" => finalizers.push("foregroundDeletion".into()),
        _ => {}
    }
    let metadata = metadata_mut(object);
    metadata.shift_remove("finalizers");
    if !finalizers.is_empty() {
        metadata.insert("finalizers".into(), json!(finalizers));
    }
}
