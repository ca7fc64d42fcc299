//! The four ways of changing an object in part. Pure: a patch and a current object give a new object or a refusal.

pub mod apply;
mod fields;
pub mod managed;
mod schema;
mod strategic;

use serde_json::Value;

use super::failure::Failure;
use super::http::{BODY_LIMIT, json, yaml};
use super::registry::Kind;

/// A patch that has been read.
pub enum Patch {
    /// RFC 6902.
    Json(json_patch::Patch),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' own, which knows the keys of lists.
    Strategic(Value),
    /// Server-side apply: what one manager wants, not what changes.
    Apply(Value),
}

const ALL: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];
const OF_CUSTOM: &[&str] =
    &["application/json-patch+json", "application/merge-patch+json", "application/apply-patch+yaml"];

impl Patch {
    /// Reads a patch of this media type.
    pub fn parse(content_type: &str, body: &[u8]) -> Result<Patch, Failure> {
        let object = |value: Value| match value {
            Value::Object(_) => Ok(value),
            _ => Err(Failure::bad_request("a patch of this type must be an object")),
        };
        Ok(match content_type {
            "application/json-patch+json" => {
                let operations = serde_json::from_slice(body)
                    .map_err(|e| Failure::bad_request(format!("error decoding patch: {e}")))?;
                Patch::Json(operations)
            }
            "application/merge-patch+json" => Patch::Merge(object(json(body)?)?),
            "application/strategic-merge-patch+json" => Patch::Strategic(object(json(body)?)?),
            "application/apply-patch+yaml" => Patch::Apply(object(yaml(body)?)?),
            _ => return Err(Failure::unsupported_media_type(ALL)),
        })
    }

    /// The object after this patch. An [`Patch::Apply`] goes through [`apply::apply`] instead, as it needs to know
    /// who applies.
    pub fn apply(&self, kind: &Kind, current: &Value) -> Result<Value, Failure> {
        let mut object = current.clone();
        match self {
            Patch::Json(operations) => json_patch_within_limits(&mut object, operations)?,
            Patch::Merge(patch) => json_patch::merge(&mut object, patch),
            Patch::Strategic(patch) if kind.custom().is_none() => {
                strategic::merge(schema::Schema::of(kind), &mut object, patch)?;
            }
            Patch::Strategic(_) => return Err(Failure::unsupported_media_type(OF_CUSTOM)),
            Patch::Apply(_) => return Err(Failure::internal("an apply configuration is not a patch")),
        }
        Ok(object)
    }
}

/// Applies a JSON patch. Copies can double an object each time, so what they make is measured.
fn json_patch_within_limits(object: &mut Value, operations: &json_patch::Patch) -> Result<(), Failure> {
    let refuse = |why: String| {
        let message = format!("the server rejected our request due to an error in our request: {why}");
        Failure::new(422, "Invalid", message)
    };
    let mut copied = 0;
    for operation in &operations.0 {
        if let json_patch::PatchOperation::Copy(copy) = operation {
            copied += copy.from.resolve(object).map_or(0, |value| value.to_string().len());
            if copied > BODY_LIMIT {
                return Err(refuse(format!(
                    "the copies of the patch are together larger than {BODY_LIMIT} bytes"
                )));
            }
        }
        json_patch::patch(object, std::slice::from_ref(operation)).map_err(|e| refuse(e.to_string()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
