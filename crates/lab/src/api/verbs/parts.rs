//! Subresources: parts of an object that are read and written on their own, and what happens to an object.

use http::{Method, Request};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::delete::{DeleteOptions, Deleted, remove};
use super::options::WriteOptions;
use super::update::{Part, patch_part, replace, store};
use super::{Call, kubelet, read, token};
use crate::api::convert;
use crate::api::failure::{Cause, Failure};
use crate::api::http::{self as wire, Accept, Answer, Format};
use crate::api::object::{self, array_at, map_mut, name, namespace, resource_version, str_at, uid};
use crate::api::patch::{Patch, managed};

/// Answers a request about a subresource that the kind has.
pub async fn answer(call: Call, subresource: &str, request: Request<Incoming>) -> Result<Answer, Failure> {
    if matches!(subresource, "log" | "exec" | "attach" | "portforward") {
        return kubelet::proxy(call, subresource, request).await;
    }
    let method = call.method.clone();
    let body = wire::read_body(request.into_body()).await?;
    match (subresource, method.as_str()) {
        ("status" | "ephemeralcontainers", "GET") => read::get(&call),
        ("status", "PUT") => replace(&call, &body, Part::Status),
        ("status", "PATCH") => patch_part(&call, &body, Part::Status),
        ("ephemeralcontainers", "PUT") => replace(&call, &body, Part::Main),
        ("ephemeralcontainers", "PATCH") => patch_part(&call, &body, Part::Main),
        ("finalize", "PUT") => replace(&call, &body, Part::Finalize),
        ("scale", "GET" | "PUT" | "PATCH") => scale(&call, &body),
        ("binding", "POST") => bind(&call, &body),
        ("eviction", "POST") => evict(&call, &body),
        ("token", "POST") => token::request(&call, &body),
        _ => Err(Failure::method_not_allowed()),
    }
}

/// Where the replicas of a kind are: specification, status, selector.
fn scale_paths(call: &Call) -> (String, String, String) {
    let path = |key: &str, default: &str| -> String {
        let own = call.kind.custom().map(|v| str_at(v, &format!("/subresources/scale/{key}"))).unwrap_or("");
        if own.is_empty() { default.to_owned() } else { own.replace('.', "/") }
    };
    (
        path("specReplicasPath", "/spec/replicas"),
        path("statusReplicasPath", "/status/replicas"),
        path("labelSelectorPath", ""),
    )
}

fn scale_of(call: &Call, object: &Value) -> Value {
    let (wanted, have, selector) = scale_paths(call);
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let metadata = |key: &str| object.pointer(&format!("/metadata/{key}")).cloned().unwrap_or_default();
    let selector = if call.kind.custom().is_some() {
        str_at(object, &selector).to_owned()
    } else {
        selector_text(object.pointer("/spec/selector"))
    };
    let mut status = json!({ "replicas": number(&have) });
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {
            "name": metadata("name"), "namespace": metadata("namespace"), "uid": metadata("uid"),
            "resourceVersion": metadata("resourceVersion"), "creationTimestamp": metadata("creationTimestamp"),
        },
        "spec": { "replicas": number(&wanted) },
        "status": status,
    })
}

/// A `LabelSelector` as the text that list requests take.
fn selector_text(selector: Option<&Value>) -> String {
    let Some(selector) = selector else { return String::new() };
    // A replication controller's selector is the labels themselves.
    let labels = selector.get("matchLabels").and_then(Value::as_object).or(selector.as_object());
    let mut parts: Vec<String> =
        labels.into_iter().flatten().filter_map(|(k, v)| v.as_str().map(|v| format!("{k}={v}"))).collect();
    for expression in array_at(selector, "/matchExpressions") {
        let (key, values) = (str_at(expression, "/key"), object::strings_at(expression, "/values").join(","));
        parts.push(match str_at(expression, "/operator") {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    parts.join(",")
}

fn scale(call: &Call, body: &[u8]) -> Result<Answer, Failure> {
    let accept = Accept::of(&call.headers)?;
    let options = WriteOptions::of(call)?;
    let scaled = call.api.store.with(|tx| {
        let stored =
            tx.get(&call.kind.storage, call.namespace(), call.name()).ok_or_else(|| call.not_found())?;
        if call.method == Method::GET {
            return Ok(stored);
        }
        let served = convert::served(&call.kind, &stored);
        let current = scale_of(call, &served);
        let wanted = if call.method == Method::PUT {
            wire::decode(&call.headers, body)?
        } else {
            match Patch::parse(wire::content_type(&call.headers), body)? {
                Patch::Apply(config) => {
                    let mut merged = current.clone();
                    json_patch::merge(&mut merged, &config);
                    merged
                }
                patch => patch.apply(&call.kind, &current)?,
            }
        };
        let version = resource_version(&wanted);
        if !version.is_empty() && version != resource_version(&served) {
            return Err(Failure::modified(&call.kind.resource, call.name()));
        }
        let refuse = |value: &Value, why: &str| {
            let cause = Cause::invalid("spec.replicas", value, why);
            Failure::invalid("autoscaling", "Scale", call.name(), &[cause])
        };
        let replicas = match wanted.pointer("/spec/replicas") {
            None => 0,
            Some(value) => value
                .as_i64()
                .filter(|n| i32::try_from(*n).is_ok())
                .ok_or_else(|| refuse(value, "must be a 32-bit integer"))?,
        };
        if replicas < 0 {
            return Err(refuse(&replicas.into(), "must be greater than or equal to 0"));
        }
        let mut new = Value::clone(&served);
        let (path, _, _) = scale_paths(call);
        set_at(&mut new, &path, replicas.into());
        let operation =
            managed::Operation { part: Part::Scale, ..managed::Operation::update(&options.manager) };
        store(&call.api, tx, &call.kind, &stored, new, Part::Scale, &options, Some(&operation))
    })?;
    let scaled = convert::served(&call.kind, &scaled);
    Ok(wire::object(200, accept.format, &scale_of(call, &scaled)))
}

fn set_at(object: &mut Value, pointer: &str, value: Value) {
    let mut at = object;
    for step in pointer.trim_start_matches('/').split('/') {
        at = object::as_map(at).entry(step).or_insert(Value::Null);
    }
    *at = value;
}

/// Binds a pod to a node: the scheduler's last word.
fn bind(call: &Call, body: &[u8]) -> Result<Answer, Failure> {
    let binding = wire::decode(&call.headers, body)?;
    let options = WriteOptions::of(call)?;
    let node = str_at(&binding, "/target/name").to_owned();
    if node.is_empty() {
        let cause = Cause::required("target.name", "");
        return Err(Failure::invalid("", "Binding", call.name(), &[cause]));
    }
    call.api.store.with(|tx| {
        let pod = tx.get("pods", call.namespace(), call.name()).ok_or_else(|| call.not_found())?;
        if !uid(&binding).is_empty() && uid(&binding) != uid(&pod) {
            let why = format!("Precondition failed: UID in precondition: {}, UID in object meta: {}", uid(&binding), uid(&pod));
            return Err(Failure::conflict("pods/binding", call.name(), &why));
        }
        if object::terminating(&pod) {
            let why = format!("pod {} is being deleted, cannot be assigned to a host", call.name());
            return Err(Failure::conflict("pods/binding", call.name(), &why));
        }
        let bound = str_at(&pod, "/spec/nodeName");
        if !bound.is_empty() {
            let why = format!("pod {} is already assigned to node {bound:?}", call.name());
            return Err(Failure::conflict("pods/binding", call.name(), &why));
        }
        let mut new = Value::clone(&pod);
        map_mut(&mut new, "spec").insert("nodeName".into(), node.into());
        let scheduled = json!({
            "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": object::now(),
        });
        if let Value::Array(list) =
            map_mut(&mut new, "status").entry("conditions").or_insert_with(|| json!([]))
        {
            list.retain(|c| str_at(c, "/type") != "PodScheduled");
            list.push(scheduled);
        }
        object::drop_nulls(&mut new);
        let operation = managed::Operation::update(&options.manager);
        store(&call.api, tx, &call.kind, &pod, new, Part::Whole, &options, Some(&operation))
    })?;
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
    });
    Ok(wire::object(201, Format::Json, &status))
}

/// Evicts a pod, unless a disruption budget forbids it.
fn evict(call: &Call, body: &[u8]) -> Result<Answer, Failure> {
    let eviction = wire::decode(&call.headers, body)?;
    let dry = array_at(&eviction, "/deleteOptions/dryRun").iter().any(|d| d == "All");
    let options = DeleteOptions {
        grace: eviction
            .pointer("/deleteOptions/gracePeriodSeconds")
            .and_then(Value::as_i64)
            .map(|n| n.max(0)),
        dry_run: dry || call.params.get("dryRun") == "All",
        uid: str_at(&eviction, "/deleteOptions/preconditions/uid").into(),
        ..DeleteOptions::default()
    };
    call.api.store.with(|tx| {
        let pod = tx.get("pods", call.namespace(), call.name()).ok_or_else(|| call.not_found())?;
        let forbidding = tx.list("poddisruptionbudgets.policy", Some(namespace(&pod))).find(|budget| {
            let labels = budget.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
            let selects = labels.is_some_and(|labels| {
                labels.iter().all(|(k, v)| pod.pointer("/metadata/labels").and_then(|l| l.get(k)) == Some(v))
            });
            selects && budget.pointer("/status/disruptionsAllowed").and_then(Value::as_i64) == Some(0)
        });
        if let Some(budget) = forbidding {
            let message = "Cannot evict pod as it would violate the pod's disruption budget.";
            let details = json!({ "causes": [{
                "reason": "DisruptionBudget",
                "message": format!("The disruption budget {} does not allow it now", name(budget)),
            }] });
            return Err(Failure { details: Some(details), ..Failure::new(429, "TooManyRequests", message) });
        }
        let removed = remove(&call.api, tx, &call.kind, &pod, &options)?;
        match removed {
            Deleted::Gone(_) | Deleted::Terminating(_) => Ok(()),
        }
    })?;
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201,
    });
    Ok(wire::object(201, Format::Json, &status))
}
