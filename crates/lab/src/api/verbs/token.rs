//! TokenRequest: a token for a service account, bound to the pod that asks for it.

use serde_json::{Value, json};

use super::{Call, new_uid};
use crate::api::failure::{Cause, Failure};
use crate::api::http::{self as wire, Accept, Answer};
use crate::api::object::{array_at, str_at, strings_at, time, uid};
use crate::api::tokens::{Claims, ISSUER};

const LONGEST: i64 = 1 << 32;

/// POST of `serviceaccounts/NAME/token`.
pub fn request(call: &Call, body: &[u8]) -> Result<Answer, Failure> {
    let accept = Accept::of(&call.headers)?;
    let request = wire::decode(&call.headers, body)?;
    let account = call
        .api
        .store
        .get("serviceaccounts", call.namespace(), call.name())
        .ok_or_else(|| call.not_found())?;
    let seconds = match request.pointer("/spec/expirationSeconds") {
        None | Some(Value::Null) => 3600,
        Some(value) => value.as_i64().unwrap_or(0),
    };
    let refuse = |cause: Cause| Failure::invalid("authentication.k8s.io", "TokenRequest", "", &[cause]);
    if !(600..=LONGEST).contains(&seconds) {
        let why = if seconds < 600 {
            "may not specify a duration less than 10 minutes"
        } else {
            "may not specify a duration larger than 2^32 seconds"
        };
        return Err(refuse(Cause::invalid("spec.expirationSeconds", &seconds.into(), why)));
    }
    let mut audiences: Vec<String> =
        strings_at(&request, "/spec/audiences").into_iter().map(str::to_owned).collect();
    if array_at(&request, "/spec/audiences").is_empty() {
        audiences = vec![ISSUER.into()];
    }
    let (bound, node) = bind(call, &request)?;
    let now = jiff::Timestamp::now().as_second();
    let claims = Claims {
        namespace: call.namespace().into(),
        service_account: call.name().into(),
        service_account_uid: uid(&account).into(),
        bound,
        node,
        audiences: audiences.clone(),
        issued: now,
        expires: now + seconds,
        id: new_uid(),
    };
    let token = call.api.tokens.sign(&claims).map_err(Failure::internal)?;
    let until = jiff::Timestamp::from_second(claims.expires).map_err(Failure::internal)?;
    let mut spec = json!({ "audiences": audiences, "expirationSeconds": seconds });
    if let Some(reference) = request.pointer("/spec/boundObjectRef").filter(|r| !r.is_null()) {
        spec["boundObjectRef"] = reference.clone();
    }
    let answer = json!({
        "kind": "TokenRequest", "apiVersion": "authentication.k8s.io/v1",
        "metadata": { "name": call.name(), "namespace": call.namespace(), "creationTimestamp": time(jiff::Timestamp::now()) },
        "spec": spec,
        "status": { "token": token, "expirationTimestamp": time(until) },
    });
    Ok(wire::object(201, accept.format, &answer))
}

/// (kind, name, uid) of the object, and (name, uid) of its node.
type Bound = (Option<(String, String, String)>, Option<(String, String)>);

fn bind(call: &Call, request: &Value) -> Result<Bound, Failure> {
    let Some(reference) = request.pointer("/spec/boundObjectRef").filter(|r| !r.is_null()) else {
        return Ok((None, None));
    };
    let (kind, name) = (str_at(reference, "/kind"), str_at(reference, "/name"));
    let (resource, namespace) = match kind {
        "Pod" => ("pods", call.namespace()),
        "Secret" => ("secrets", call.namespace()),
        "Node" => ("nodes", ""),
        other => {
            return Err(Failure::bad_request(format!(
                "cannot bind token for serviceaccount {:?} to object of kind {other:?}",
                call.name()
            )));
        }
    };
    let object =
        call.api.store.get(resource, namespace, name).ok_or_else(|| Failure::not_found(resource, name))?;
    let wanted = str_at(reference, "/uid");
    if !wanted.is_empty() && wanted != uid(&object) {
        let why = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The object might have been deleted and then recreated"
        );
        return Err(Failure::conflict(resource, name, &why));
    }
    let mut node = None;
    if kind == "Pod" {
        let account = str_at(&object, "/spec/serviceAccountName");
        if account != call.name() {
            let why = format!(
                "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
                call.name()
            );
            return Err(Failure::bad_request(why));
        }
        let node_name = str_at(&object, "/spec/nodeName");
        node = call.api.store.get("nodes", "", node_name).map(|n| (node_name.to_owned(), uid(&n).to_owned()));
    }
    Ok((Some((kind.to_owned(), name.to_owned(), uid(&object).to_owned())), node))
}
