//! Refusals as Kubernetes words them: every answer that is not a success is a `Status` object built here, so that
//! kubectl and client libraries recognise it by code, reason and message. Owns the wording; never decides.

use serde_json::{Value, json};

/// A refused request: the HTTP code, the machine-readable reason and the sentence people read.
#[derive(Clone, Debug)]
pub struct Failure {
    /// HTTP status code.
    pub code: u16,
    /// `metav1.StatusReason`; empty when the real server leaves it unset.
    pub reason: &'static str,
    /// What happened, to whom.
    pub message: String,
    /// `metav1.StatusDetails`, where clients look for causes and names.
    pub details: Option<Value>,
}

/// One field that made an object invalid.
#[derive(Clone, Debug)]
pub struct Cause {
    /// Path of the field, `spec.containers[0].name`.
    pub field: String,
    /// `FieldValueRequired`, `FieldValueInvalid`, …
    pub reason: &'static str,
    /// The complaint, without the path.
    pub message: String,
}

impl Cause {
    /// A field that must be there and is not.
    pub fn required(field: impl Into<String>, detail: &str) -> Cause {
        let message =
            if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Cause { field: field.into(), reason: "FieldValueRequired", message }
    }

    /// A value that its field cannot hold.
    pub fn invalid(field: impl Into<String>, value: &Value, detail: impl AsRef<str>) -> Cause {
        let message = format!("Invalid value: {value}: {}", detail.as_ref());
        Cause { field: field.into(), reason: "FieldValueInvalid", message }
    }

    /// A value that is not one of those supported.
    pub fn unsupported(field: impl Into<String>, value: &Value, supported: &[&str]) -> Cause {
        let list: Vec<String> = supported.iter().map(|s| format!("{s:?}")).collect();
        let message = format!("Unsupported value: {value}: supported values: {}", list.join(", "));
        Cause { field: field.into(), reason: "FieldValueNotSupported", message }
    }

    /// A value that another element already has.
    pub fn duplicate(field: impl Into<String>, value: &Value) -> Cause {
        Cause {
            field: field.into(),
            reason: "FieldValueDuplicate",
            message: format!("Duplicate value: {value}"),
        }
    }

    /// A change or a value that is not permitted here.
    pub fn forbidden(field: impl Into<String>, detail: &str) -> Cause {
        Cause { field: field.into(), reason: "FieldValueForbidden", message: format!("Forbidden: {detail}") }
    }

    fn sentence(&self) -> String {
        format!("{}: {}", self.field, self.message)
    }
}

/// Splits `deployments.apps` into its resource and its group, as `details` wants them.
fn split(resource: &str) -> (&str, &str) {
    resource.split_once('.').unwrap_or((resource, ""))
}

fn details(resource: &str, name: &str) -> Value {
    let (kind, group) = split(resource);
    let mut details = json!({ "name": name, "kind": kind });
    if !group.is_empty() {
        details["group"] = group.into();
    }
    details
}

impl Failure {
    /// A failure without details.
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Failure {
        Failure { code, reason, message: message.into(), details: None }
    }

    /// 404 for an object; `resource` is `pods` or `deployments.apps`.
    pub fn not_found(resource: &str, name: &str) -> Failure {
        Failure {
            details: Some(details(resource, name)),
            ..Failure::new(404, "NotFound", format!("{resource} {name:?} not found"))
        }
    }

    /// 404 for a path that leads nowhere.
    pub fn no_such_path() -> Failure {
        Failure {
            details: Some(json!({})),
            ..Failure::new(404, "NotFound", "the server could not find the requested resource")
        }
    }

    /// 409 for a create of what exists.
    pub fn already_exists(resource: &str, name: &str) -> Failure {
        Failure {
            details: Some(details(resource, name)),
            ..Failure::new(409, "AlreadyExists", format!("{resource} {name:?} already exists"))
        }
    }

    /// 409 with a reason of the caller's.
    pub fn conflict(resource: &str, name: &str, why: &str) -> Failure {
        let message = format!("Operation cannot be fulfilled on {resource} {name:?}: {why}");
        Failure { details: Some(details(resource, name)), ..Failure::new(409, "Conflict", message) }
    }

    /// 409 for a write that was based on an older version of the object.
    pub fn modified(resource: &str, name: &str) -> Failure {
        Failure::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 403 for something that this request may not do to this object.
    pub fn forbidden(resource: &str, name: &str, why: &str) -> Failure {
        let message = format!("{resource} {name:?} is forbidden: {why}");
        Failure { details: Some(details(resource, name)), ..Failure::new(403, "Forbidden", message) }
    }

    /// 422 for an object whose fields do not hold together.
    pub fn invalid(group: &str, kind: &str, name: &str, causes: &[Cause]) -> Failure {
        let sentences: Vec<String> = causes.iter().map(Cause::sentence).collect();
        let what =
            if sentences.len() == 1 { sentences[0].clone() } else { format!("[{}]", sentences.join(", ")) };
        let subject = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let causes: Vec<Value> = causes
            .iter()
            .map(|c| json!({ "reason": c.reason, "message": c.message, "field": c.field }))
            .collect();
        Failure {
            details: Some(json!({ "name": name, "group": group, "kind": kind, "causes": causes })),
            ..Failure::new(422, "Invalid", format!("{subject} {name:?} is invalid: {what}"))
        }
    }

    /// 400 for a request that makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Failure {
        Failure::new(400, "BadRequest", message)
    }

    /// 401: nobody this server knows.
    pub fn unauthorized() -> Failure {
        Failure::new(401, "Unauthorized", "Unauthorized")
    }

    /// 405 for a verb the resource does not have.
    pub fn method_not_allowed() -> Failure {
        Failure {
            details: Some(json!({})),
            ..Failure::new(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            )
        }
    }

    /// 406 for an `Accept` that names nothing this server speaks.
    pub fn not_acceptable() -> Failure {
        Failure::new(
            406,
            "NotAcceptable",
            "only the following media types are accepted: application/json, application/yaml",
        )
    }

    /// 415 for a body in a language this server does not read.
    pub fn unsupported_media_type(accepted: &[&str]) -> Failure {
        Failure::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    /// 410 for a version whose history is gone: the client lists again.
    pub fn expired(message: impl Into<String>) -> Failure {
        Failure::new(410, "Expired", message)
    }

    /// 500 for what should not have happened here.
    pub fn internal(message: impl std::fmt::Display) -> Failure {
        Failure::new(500, "InternalError", format!("Internal error occurred: {message}"))
    }

    /// The `Status` object of this failure.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": self.message,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if let Some(details) = &self.details {
            status["details"] = details.clone();
        }
        status["code"] = self.code.into();
        status
    }
}
