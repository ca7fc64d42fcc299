//! create, and what is common to every object that comes into being.

use std::sync::Arc;

use http::StatusCode;
use serde_json::Value;

use super::Call;
use super::options::WriteOptions;
use super::read::shape;
use crate::api::admission;
use crate::api::failure::{Cause, Failure};
use crate::api::http::{self as wire, Accept, Answer};
use crate::api::object::{self, metadata_mut, name, now, str_at};
use crate::api::patch::managed;
use crate::api::registry::Kind;
use crate::api::store::Inner;
use crate::api::{Api, convert, strict};

/// POST of a collection.
pub fn create(call: &Call, body: &[u8]) -> Result<Answer, Failure> {
    let accept = Accept::of(&call.headers)?;
    let options = WriteOptions::of(call)?;
    let mut warnings = Vec::new();
    let mut object =
        strict::check(&call.kind, wire::decode(&call.headers, body)?, options.unknown, &mut warnings)?;
    place(call, &mut object)?;
    let created = call.api.store.with(|tx| {
        insert(
            &call.api,
            tx,
            &call.kind,
            object,
            &options,
            Some(&managed::Operation::update(&options.manager)),
        )
    })?;
    let created = convert::served(&call.kind, &created);
    let mut answer =
        wire::object(StatusCode::CREATED.as_u16(), accept.format, &shape(call, accept, &created));
    wire::warn(&mut answer, &warnings);
    Ok(answer)
}

/// Puts the object into the namespace of the URL, which its own must not contradict.
pub fn place(call: &Call, object: &mut Value) -> Result<(), Failure> {
    let own = object::namespace(object).to_owned();
    let metadata = metadata_mut(object);
    match &call.target.namespace {
        Some(namespace) if own.is_empty() => {
            metadata.insert("namespace".into(), namespace.as_str().into());
        }
        Some(namespace) if own != *namespace => {
            return Err(Failure::bad_request(format!(
                "the namespace of the provided object does not match the namespace sent on the request: {own} is not {namespace}"
            )));
        }
        Some(_) => {}
        None => drop(metadata.shift_remove("namespace")),
    }
    Ok(())
}

/// Stores a new object of `kind`, which is in the form it is served in. Returns it in the form it is stored in.
pub fn insert(
    api: &Api,
    tx: &mut Inner,
    kind: &Kind,
    mut object: Value,
    options: &WriteOptions,
    operation: Option<&managed::Operation>,
) -> Result<Arc<Value>, Failure> {
    if !object::resource_version(&object).is_empty() {
        return Err(Failure::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let generated = generate_name(&mut object);
    let (namespace, object_name) = (object::namespace(&object).to_owned(), name(&object).to_owned());
    if object_name.is_empty() {
        let cause = Cause::required("metadata.name", "name or generateName is required");
        return Err(Failure::invalid(&kind.group, &kind.kind, "", &[cause]));
    }
    if kind.namespaced {
        check_namespace(tx, kind, &namespace, &object_name)?;
    }
    if tx.get(&kind.storage, &namespace, &object_name).is_some() {
        let mut failure = Failure::already_exists(&kind.resource, &object_name);
        if generated {
            failure.message.push_str(", the server was not able to generate a unique name for the object");
        }
        return Err(failure);
    }
    let metadata = metadata_mut(&mut object);
    for key in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields"] {
        metadata.shift_remove(key);
    }
    metadata.insert("uid".into(), new_uid().into());
    metadata.insert("creationTimestamp".into(), now().into());
    metadata.shift_remove("generation");
    if has_generation(kind) {
        metadata.insert("generation".into(), 1.into());
    }
    if kind.has("status") && !keeps_status_on_create(kind) {
        object::as_map(&mut object).shift_remove("status");
    }
    if let Some(operation) = operation {
        managed::track(kind, None, &mut object, operation);
    }
    admission::on_create(api, tx, kind, &mut object)?;
    admission::validate(tx, kind, &object, None)?;
    let object = convert::stored(kind, object);
    if options.dry_run {
        return Ok(Arc::new(object));
    }
    let stored = tx.put(&kind.storage, object);
    admission::after_write(api, tx, kind);
    Ok(stored)
}

/// Whether the kind counts changes of its specification.
pub fn has_generation(kind: &Kind) -> bool {
    let without = ["events.k8s.io", "coordination.k8s.io", "rbac.authorization.k8s.io", "storage.k8s.io"];
    (!kind.group.is_empty() && !without.contains(&kind.group.as_str())) || kind.is("replicationcontrollers")
}

/// Kinds whose creator may bring a status: nodes register with theirs, and CRDs and namespaces get one here.
fn keeps_status_on_create(kind: &Kind) -> bool {
    kind.is("nodes")
}

fn generate_name(object: &mut Value) -> bool {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let prefix = str_at(object, "/metadata/generateName").to_owned();
    if !name(object).is_empty() || prefix.is_empty() {
        return false;
    }
    let prefix: String = prefix.chars().take(58).collect();
    let suffix: String =
        (0..5).map(|_| char::from(ALPHABET[rand::random_range(0..ALPHABET.len())])).collect();
    metadata_mut(object).insert("name".into(), format!("{prefix}{suffix}").into());
    true
}

fn check_namespace(tx: &Inner, kind: &Kind, namespace: &str, object_name: &str) -> Result<(), Failure> {
    let found =
        tx.get("namespaces", "", namespace).ok_or_else(|| Failure::not_found("namespaces", namespace))?;
    if !object::terminating(&found) {
        return Ok(());
    }
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut failure = Failure::forbidden(&kind.resource, object_name, &why);
    if let Some(details) = &mut failure.details {
        let cause = format!("namespace {namespace} is being terminated");
        details["causes"] = serde_json::json!([{ "reason": "NamespaceTerminating", "message": cause, "field": "metadata.namespace" }]);
    }
    Err(failure)
}

/// A random (version 4) UUID.
pub fn new_uid() -> String {
    let mut b: [u8; 16] = rand::random();
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    let hex: String = b.iter().map(|b| format!("{b:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}
