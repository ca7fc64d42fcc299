//! Questions that are answered and not stored: who does this token speak for, who am I, may I.

use serde_json::{Value, json};

use super::Call;
use crate::api::auth;
use crate::api::failure::Failure;
use crate::api::http::{self as wire, Accept, Answer};
use crate::api::object::{as_map, set_type, str_at, strings_at};
use crate::api::tokens::ISSUER;

const WHY: &str = "the lab does not enforce RBAC: whoever it knows may do anything";

/// Answers a review.
pub fn answer(call: &Call, body: &[u8]) -> Result<Answer, Failure> {
    let accept = Accept::of(&call.headers)?;
    let mut review = wire::decode(&call.headers, body)?;
    if !review.is_object() {
        return Err(Failure::bad_request(format!("a {} must be an object", call.kind.kind)));
    }
    let named = str_at(&review, "/kind");
    if !named.is_empty() && named != call.kind.kind {
        return Err(Failure::bad_request(format!("{named} cannot be handled as a {}", call.kind.kind)));
    }
    let status = match call.kind.kind.as_str() {
        "TokenReview" => token(call, &review),
        "SelfSubjectReview" => json!({ "userInfo": call.user.info() }),
        "SelfSubjectRulesReview" => json!({
            "resourceRules": [{ "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"] }],
            "nonResourceRules": [{ "verbs": ["*"], "nonResourceURLs": ["*"] }],
            "incomplete": false,
        }),
        _ => json!({ "allowed": true, "reason": WHY }),
    };
    set_type(&mut review, &call.kind.api_version(), &call.kind.kind);
    let map = as_map(&mut review);
    map.entry("metadata").or_insert_with(|| json!({}));
    map.insert("status".into(), status);
    Ok(wire::object(201, accept.format, &review))
}

fn token(call: &Call, review: &Value) -> Value {
    let audiences: Vec<String> = match strings_at(review, "/spec/audiences").as_slice() {
        [] => vec![ISSUER.into()],
        some => some.iter().map(|a| (*a).to_owned()).collect(),
    };
    match auth::review(&call.api, str_at(review, "/spec/token"), &audiences) {
        Ok((user, matching)) => json!({ "authenticated": true, "user": user.info(), "audiences": matching }),
        Err(why) => json!({ "user": {}, "error": why }),
    }
}
