//! Structural schemas at work: prune, default, validate. Pure.

use regex::Regex;
use serde_json::{Map, Value};

use crate::api::failure::Cause;
use crate::api::object::str_at;

fn root(version: &Value) -> Option<&Value> {
    version.pointer("/schema/openAPIV3Schema")
}

fn is(schema: &Value, flag: &str) -> bool {
    schema.get(flag) == Some(&Value::Bool(true))
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Removes what the schema of this CRD version does not know, noting the paths.
pub fn prune(version: &Value, object: &mut Value, found: &mut Vec<String>) {
    if let Some(schema) = root(version) {
        prune_at(schema, object, "", true, found);
    }
}

fn prune_at(schema: &Value, value: &mut Value, path: &str, is_resource: bool, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let additional = schema.get("additionalProperties").filter(|a| **a != Value::Bool(false));
            let keep = is(schema, "x-kubernetes-preserve-unknown-fields");
            let of_resource = |key: &str| is_resource && matches!(key, "apiVersion" | "kind" | "metadata");
            map.retain(|key, _| {
                let known = keep
                    || additional.is_some()
                    || of_resource(key)
                    || properties.is_some_and(|p| p.contains_key(key));
                if !known {
                    found.push(join(path, key));
                }
                known
            });
            for (key, value) in map {
                if of_resource(key) {
                    continue;
                }
                let below = properties.and_then(|p| p.get(key)).or(additional.filter(|a| a.is_object()));
                if let Some(below) = below {
                    prune_at(
                        below,
                        value,
                        &join(path, key),
                        is(below, "x-kubernetes-embedded-resource"),
                        found,
                    );
                }
            }
        }
        Value::Array(items) => {
            if let Some(below) = schema.get("items") {
                for (i, item) in items.iter_mut().enumerate() {
                    let embedded = is(below, "x-kubernetes-embedded-resource");
                    prune_at(below, item, &format!("{path}[{i}]"), embedded, found);
                }
            }
        }
        _ => {}
    }
}

/// Fills in the defaults of this CRD version.
pub fn default(version: &Value, object: &mut Value) {
    if let Some(schema) = root(version) {
        default_at(schema, object);
    }
}

fn default_at(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
                for (key, below) in properties {
                    if let (None, Some(default)) = (map.get(key), below.get("default")) {
                        map.insert(key.clone(), default.clone());
                    }
                    if let Some(value) = map.get_mut(key) {
                        default_at(below, value);
                    }
                }
            }
            if let Some(below) = schema.get("additionalProperties").filter(|a| a.is_object()) {
                map.values_mut().for_each(|value| default_at(below, value));
            }
        }
        Value::Array(items) => {
            if let Some(below) = schema.get("items") {
                items.iter_mut().for_each(|item| default_at(below, item));
            }
        }
        _ => {}
    }
}

/// What this CRD version's schema has against an object.
pub fn validate(version: &Value, object: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let (Some(schema), Value::Object(map)) = (root(version), object) {
        // The server's own checks are for these; a schema that mentions them only restates their types.
        let body: Map<String, Value> = map
            .iter()
            .filter(|(k, _)| !matches!(k.as_str(), "apiVersion" | "kind" | "metadata"))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        required(schema, &body, "", &mut causes);
        members(schema, &body, "", &mut causes);
    }
    causes
}

fn required(schema: &Value, map: &Map<String, Value>, path: &str, causes: &mut Vec<Cause>) {
    for key in
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str)
    {
        let of_resource = path.is_empty() && matches!(key, "apiVersion" | "kind" | "metadata");
        if !of_resource && !map.contains_key(key) {
            causes.push(Cause::required(join(path, key), ""));
        }
    }
}

fn members(schema: &Value, map: &Map<String, Value>, path: &str, causes: &mut Vec<Cause>) {
    let properties = schema.get("properties").and_then(Value::as_object);
    let additional = schema.get("additionalProperties").filter(|a| a.is_object());
    for (key, value) in map {
        if let Some(below) = properties.and_then(|p| p.get(key)).or(additional) {
            validate_at(below, value, &join(path, key), causes);
        }
    }
}

fn validate_at(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    if !has_type(schema, value) {
        let (want, got) = (str_at(schema, "/type"), type_name(value));
        causes.push(Cause {
            field: path.into(),
            reason: "FieldValueTypeInvalid",
            message: format!("Invalid value: {got:?}: {path} in body must be of type {want}: {got:?}"),
        });
        return;
    }
    let mut complain =
        |why: String| causes.push(Cause::invalid(path, value, format!("{path} in body {why}")));
    let number = |key: &str| schema.get(key).and_then(Value::as_f64);
    let bound = |key: &str, length: usize, below: bool| {
        schema
            .get(key)
            .and_then(Value::as_u64)
            .filter(|n| if below { (length as u64) < *n } else { length as u64 > *n })
    };
    match value {
        Value::String(text) => {
            let length = text.chars().count();
            if let Some(n) = bound("minLength", length, true) {
                complain(format!("should be at least {n} chars long"));
            }
            if let Some(n) = bound("maxLength", length, false) {
                complain(format!("should be at most {n} chars long"));
            }
            // A pattern that this engine cannot read is not a reason to refuse every object.
            if let Some(pattern) = schema.get("pattern").and_then(Value::as_str)
                && Regex::new(pattern).is_ok_and(|regex| !regex.is_match(text))
            {
                complain(format!("should match '{pattern}'"));
            }
        }
        Value::Number(n) => {
            let n = n.as_f64().unwrap_or(0.0);
            if let Some(min) =
                number("minimum").filter(|min| n < *min || (is(schema, "exclusiveMinimum") && n == *min))
            {
                complain(format!("should be greater than or equal to {min}"));
            }
            if let Some(max) =
                number("maximum").filter(|max| n > *max || (is(schema, "exclusiveMaximum") && n == *max))
            {
                complain(format!("should be less than or equal to {max}"));
            }
        }
        Value::Array(items) => {
            if let Some(n) = bound("minItems", items.len(), true) {
                complain(format!("should have at least {n} items"));
            }
            if let Some(n) = bound("maxItems", items.len(), false) {
                complain(format!("should have at most {n} items"));
            }
        }
        Value::Object(map) => {
            if let Some(n) = bound("minProperties", map.len(), true) {
                complain(format!("should have at least {n} properties"));
            }
            if let Some(n) = bound("maxProperties", map.len(), false) {
                complain(format!("should have at most {n} properties"));
            }
        }
        _ => {}
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        let names: Vec<&str> = allowed.iter().filter_map(Value::as_str).collect();
        causes.push(Cause::unsupported(path, value, &names));
    }
    combinations(schema, value, path, causes);
    match value {
        Value::Object(map) => {
            required(schema, map, path, causes);
            members(schema, map, path, causes);
        }
        Value::Array(items) => {
            if let Some(below) = schema.get("items") {
                for (i, item) in items.iter().enumerate() {
                    validate_at(below, item, &format!("{path}[{i}]"), causes);
                }
            }
        }
        _ => {}
    }
}

fn combinations(schema: &Value, value: &Value, path: &str, causes: &mut Vec<Cause>) {
    let list = |key: &str| schema.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or(&[]);
    let holds = |schema: &Value| {
        let mut causes = Vec::new();
        validate_at(schema, value, path, &mut causes);
        causes.is_empty()
    };
    list("allOf").iter().for_each(|schema| validate_at(schema, value, path, causes));
    let mut complain =
        |what: &str| causes.push(Cause::invalid(path, value, format!("{path} in body must {what}")));
    if !list("anyOf").is_empty() && !list("anyOf").iter().any(holds) {
        complain("validate at least one schema (anyOf)");
    }
    if !list("oneOf").is_empty() && list("oneOf").iter().filter(|s| holds(s)).count() != 1 {
        complain("validate one and only one schema (oneOf)");
    }
    if schema.get("not").is_some_and(holds) {
        complain("not validate the schema (not)");
    }
}

fn has_type(schema: &Value, value: &Value) -> bool {
    if value.is_null() {
        return is(schema, "nullable");
    }
    if is(schema, "x-kubernetes-int-or-string") {
        return value.is_string() || value.as_i64().is_some();
    }
    match str_at(schema, "/type") {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.as_f64().is_some_and(|n| n.fract() == 0.0),
        _ => true,
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
