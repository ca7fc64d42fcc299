//! get and list.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::Call;
use crate::api::convert;
use crate::api::failure::Failure;
use crate::api::http::{self as wire, Accept, Answer, Shape};
use crate::api::object::{name, namespace};
use crate::api::selector::Selector;
use crate::api::table;

/// One object.
pub fn get(call: &Call) -> Result<Answer, Failure> {
    let accept = Accept::of(&call.headers)?;
    let found = call.api.store.get(&call.kind.storage, call.namespace(), call.name());
    let object = convert::served(&call.kind, &found.ok_or_else(|| call.not_found())?);
    let shown = shape(call, accept, &object);
    Ok(wire::object(200, accept.format, &shown))
}

/// An object in the shape that was asked for.
pub fn shape(call: &Call, accept: Accept, object: &Value) -> Value {
    match accept.shape {
        Shape::Object => object.clone(),
        Shape::Metadata => convert::metadata_only(object),
        Shape::Table => table::of(&call.kind, [object].into_iter(), include(call), true),
    }
}

/// What of each object a table carries along.
pub fn include(call: &Call) -> table::Include {
    match call.params.get("includeObject") {
        "Object" => table::Include::Object,
        "None" => table::Include::None,
        _ => table::Include::Metadata,
    }
}

/// The selector of a call; refuses fields that this kind does not let itself be selected by.
pub fn selector(call: &Call) -> Result<Selector, Failure> {
    let mut selector = Selector::parse(call.params.get("labelSelector"), call.params.get("fieldSelector"))?;
    for path in selector.field_paths() {
        let known = matches!(path, "metadata.name" | "metadata.namespace");
        if !known && !call.kind.fields.iter().any(|f| f == path) {
            return Err(Failure::bad_request(format!("field label not supported: {path}")));
        }
    }
    if let Some(name) = &call.target.name {
        selector.also_named(name);
    }
    Ok(selector)
}

/// Where a limited list goes on.
struct Continue {
    revision: u64,
    after: (String, String),
}

impl Continue {
    fn parse(token: &str) -> Result<Continue, Failure> {
        let bad = || Failure::bad_request("continue key is not valid: it does not come from this server");
        let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| bad())?;
        let (revision, namespace, name) =
            serde_json::from_slice::<(u64, String, String)>(&bytes).map_err(|_| bad())?;
        Ok(Continue { revision, after: (namespace, name) })
    }

    fn token(&self) -> String {
        URL_SAFE_NO_PAD.encode(json!([self.revision, self.after.0, self.after.1]).to_string())
    }
}

/// Objects as a list.
pub fn list(call: &Call) -> Result<Answer, Failure> {
    let accept = Accept::of(&call.headers)?;
    let (objects, revision, rest, remaining) = page(call)?;
    let mut metadata = json!({ "resourceVersion": revision.to_string() });
    if let Some(token) = rest {
        metadata["continue"] = token.into();
        if remaining > 0 {
            metadata["remainingItemCount"] = remaining.into();
        }
    }
    let objects: Vec<Arc<Value>> = objects.iter().map(|o| convert::served(&call.kind, o)).collect();
    let list = match accept.shape {
        Shape::Table => {
            let mut table = table::of(&call.kind, objects.iter().map(Arc::as_ref), include(call), true);
            table["metadata"] = metadata;
            table
        }
        shape => {
            let (api_version, kind) = match shape {
                Shape::Metadata => ("meta.k8s.io/v1".to_owned(), "PartialObjectMetadataList".to_owned()),
                _ => (call.kind.api_version(), call.kind.list_kind.clone()),
            };
            let items: Vec<Value> = objects
                .iter()
                .map(|o| if shape == Shape::Metadata { convert::metadata_only(o) } else { Value::clone(o) })
                .collect();
            json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata, "items": items })
        }
    };
    Ok(wire::object(200, accept.format, &list))
}

type Page = (Vec<Arc<Value>>, u64, Option<String>, usize);

fn page(call: &Call) -> Result<Page, Failure> {
    let selector = selector(call)?;
    let limit = call.params.number("limit")?.filter(|n| *n > 0).map(|n| n as usize);
    let from = match call.params.get("continue") {
        "" => None,
        token => Some(Continue::parse(token)?),
    };
    if from.is_none() {
        check_version(call)?;
    }
    let (all, mut revision) = call.api.store.list(&call.kind.storage, call.target.namespace.as_deref());
    if let Some(from) = &from {
        // Later pages are of the present, but say the first page's version: a watch from there repeats what
        // happened in between. It must therefore still be possible.
        if call.api.store.watch(&call.kind.storage, from.revision).is_err() {
            return Err(Failure::expired(
                "The provided continue parameter is too old to display a consistent list result. You must start a new list without the continue parameter.",
            ));
        }
        revision = from.revision;
    }
    let key = |o: &Value| (namespace(o).to_owned(), name(o).to_owned());
    let mut selected: Vec<Arc<Value>> = all
        .into_iter()
        .filter(|o| from.as_ref().is_none_or(|from| key(o) > from.after))
        .filter(|o| selector.matches(&convert::served(&call.kind, o)))
        .collect();
    let Some(limit) = limit.filter(|limit| *limit < selected.len()) else {
        return Ok((selected, revision, None, 0));
    };
    let remaining = if selector.is_everything() { selected.len() - limit } else { 0 };
    selected.truncate(limit);
    let token = selected.last().map(|last| Continue { revision, after: key(last) }.token());
    Ok((selected, revision, token, remaining))
}

/// Refuses the versions of a list that this server cannot give: it keeps the present only.
fn check_version(call: &Call) -> Result<(), Failure> {
    let (asked, matching) = (call.params.get("resourceVersion"), call.params.get("resourceVersionMatch"));
    let now = call.api.store.with(|inner| inner.revision());
    let version = match asked {
        "" | "0" => 0,
        text => text.parse::<u64>().map_err(|_| {
            Failure::bad_request(format!("resourceVersion: Invalid value: {text:?}: must be a number"))
        })?,
    };
    match matching {
        "" | "NotOlderThan" | "Exact" => {}
        other => {
            return Err(Failure::bad_request(format!(
                "resourceVersionMatch: Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\""
            )));
        }
    }
    if !matching.is_empty() && asked.is_empty() {
        return Err(Failure::bad_request(
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        ));
    }
    if version > now {
        return Err(Failure {
            details: Some(json!({
                "causes": [{ "reason": "ResourceVersionTooLarge", "message": "Too large resource version" }],
                "retryAfterSeconds": 1,
            })),
            ..Failure::new(
                504,
                "Timeout",
                format!("Timeout: Too large resource version: {version}, current: {now}"),
            )
        });
    }
    let unchanged = || {
        call.api.store.watch(&call.kind.storage, version).is_ok_and(|mut watcher| {
            watcher.drain(&call.api.store).is_ok_and(|(changes, _)| changes.is_empty())
        })
    };
    if matching == "Exact" && !unchanged() {
        return Err(Failure::expired(format!(
            "The resourceVersion for the provided list is too old: {version}"
        )));
    }
    Ok(())
}
