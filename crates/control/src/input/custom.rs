//! How objects of custom kinds are read: from dynamic objects, since their schemas are not ours to depend on.

use kube::core::DynamicObject;

use super::Key;

/// Why an object cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{kind} {key} cannot be read: {source}")]
pub struct ObjectError {
    pub(super) kind: &'static str,
    pub(super) key: Key,
    pub(super) source: serde_json::Error,
}

/// The `spec` of an object; one without any is an empty one.
pub(super) fn spec<T: serde::de::DeserializeOwned + Default>(
    kind: &'static str,
    key: &Key,
    object: &mut DynamicObject,
) -> Result<T, ObjectError> {
    match object.data.get_mut("spec").map(serde_json::Value::take) {
        None | Some(serde_json::Value::Null) => Ok(T::default()),
        Some(value) => {
            serde_json::from_value(value).map_err(|source| ObjectError { kind, key: key.clone(), source })
        }
    }
}

/// When an object was created, seconds since 1970; one without a time is younger than all.
pub(super) fn created(object: &DynamicObject) -> i64 {
    object.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second())
}

/// The revision an object is labelled with.
pub(super) fn revision(object: &DynamicObject) -> Option<String> {
    object.metadata.labels.as_ref().and_then(|labels| labels.get("istio.io/rev")).cloned()
}
