//! What the real API server does to objects on their way in: defaults, service account and address assignment, and
//! the checks that no type makes. Runs inside the store's transaction, so what it assigns is unique.

mod defaults;
mod pod;
mod service;
mod service_account;
mod validate;

use std::sync::Arc;

use serde_json::{Value, json};

use super::failure::Failure;
use super::object::{as_map, map_mut, metadata_mut, name};
use super::registry::{Kind, Registry};
use super::store::Inner;
use super::{Api, crd};

pub use validate::validate;

const CRDS: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// Completes a new object.
pub fn on_create(api: &Api, tx: &Inner, kind: &Kind, object: &mut Value) -> Result<(), Failure> {
    defaults::fill(kind, object);
    if let Some(version) = kind.custom() {
        crd::default(version, object);
        return Ok(());
    }
    match kind.storage.as_str() {
        "namespaces" => namespace(object),
        "pods" => {
            service_account::admit(tx, object)?;
            pod::complete(object);
        }
        "services" => service::allocate(api, tx, object, None)?,
        "secrets" => secret_data(object),
        CRDS => crd::establish(object, None),
        _ => {}
    }
    Ok(())
}

/// Completes a changed object.
pub fn on_update(api: &Api, tx: &Inner, kind: &Kind, old: &Value, object: &mut Value) -> Result<(), Failure> {
    defaults::fill(kind, object);
    if let Some(version) = kind.custom() {
        crd::default(version, object);
        return Ok(());
    }
    match kind.storage.as_str() {
        "services" => service::allocate(api, tx, object, Some(old))?,
        "secrets" => secret_data(object),
        CRDS => crd::establish(object, Some(old)),
        _ => {}
    }
    Ok(())
}

/// What follows from a write: a changed CRD changes what is served.
pub fn after_write(api: &Api, tx: &Inner, kind: &Kind) {
    if kind.is(CRDS) {
        let crds: Vec<Arc<Value>> = tx.list(CRDS, None).cloned().collect();
        api.registry.store(Arc::new(Registry::new(crds.iter().map(Arc::as_ref))));
    }
}

fn namespace(object: &mut Value) {
    let name = name(object).to_owned();
    let metadata = metadata_mut(object);
    as_map(metadata.entry("labels").or_insert(Value::Null))
        .insert("kubernetes.io/metadata.name".into(), name.into());
    map_mut(object, "spec").insert("finalizers".into(), json!(["kubernetes"]));
    map_mut(object, "status").insert("phase".into(), "Active".into());
}

/// `stringData` is how people write `data`.
fn secret_data(object: &mut Value) {
    use base64::Engine;
    let Some(Value::Object(plain)) = as_map(object).shift_remove("stringData") else { return };
    let data = map_mut(object, "data");
    for (key, value) in plain {
        let encoded = base64::engine::general_purpose::STANDARD.encode(value.as_str().unwrap_or(""));
        data.insert(key, encoded.into());
    }
}
