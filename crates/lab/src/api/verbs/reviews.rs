//! Questions that are answered and not stored: who does this token speak for, who am I, may I.

use serde_json::{Value, json};

use super::Call;
use crate::api::auth::{self, User};
use crate::api::failure::Failure;
use crate::api::http::{self as wire, Accept, Answer};
use crate::api::object::{as_map, set_type, str_at, strings_at};
use crate::api::rbac::{self, Wish};
use crate::api::tokens::ISSUER;

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
        "SelfSubjectRulesReview" => own_rules(call, &review),
        "SelfSubjectAccessReview" => access(call, &review, &call.user)?,
        _ => access(call, &review, &subject(&review))?,
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

/// Whom a review asks about.
fn subject(review: &Value) -> User {
    let groups = strings_at(review, "/spec/groups").into_iter().map(str::to_owned).collect();
    User { name: str_at(review, "/spec/user").to_owned(), groups, ..User::default() }
}

fn access(call: &Call, review: &Value, user: &User) -> Result<Value, Failure> {
    let at = |pointer: &str| str_at(review, pointer);
    let allowed = if review.pointer("/spec/resourceAttributes").is_some_and(|value| !value.is_null()) {
        let namespace = at("/spec/resourceAttributes/namespace");
        if call.kind.namespaced && namespace != call.namespace() {
            return Err(Failure::bad_request(
                "spec.resourceAttributes.namespace must match metadata.namespace",
            ));
        }
        let wish = Wish {
            verb: at("/spec/resourceAttributes/verb"),
            group: at("/spec/resourceAttributes/group"),
            resource: at("/spec/resourceAttributes/resource"),
            subresource: at("/spec/resourceAttributes/subresource"),
            namespace,
            name: at("/spec/resourceAttributes/name"),
        };
        call.api.store.with(|tx| rbac::allows(tx, user, &wish))
    } else {
        let (verb, path) = (at("/spec/nonResourceAttributes/verb"), at("/spec/nonResourceAttributes/path"));
        call.api.store.with(|tx| rbac::allows_path(tx, user, verb, path))
    };
    Ok(json!({ "allowed": allowed }))
}

fn own_rules(call: &Call, review: &Value) -> Value {
    let namespace = str_at(review, "/spec/namespace");
    let rules = call.api.store.with(|tx| rbac::rules(tx, &call.user, namespace));
    let (paths, resources): (Vec<Value>, Vec<Value>) =
        rules.into_iter().partition(|rule| !strings_at(rule, "/nonResourceURLs").is_empty());
    json!({ "resourceRules": resources, "nonResourceRules": paths, "incomplete": false })
}
