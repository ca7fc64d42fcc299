//! As much OpenAPI as clients need in order to work: which kinds exist at which paths, and that the server checks
//! fields itself (`fieldValidation`). Built-in schemas are not published, so `kubectl explain` knows only the
//! schemas of CRDs.

use http::{HeaderMap, HeaderValue, header};
use serde_json::{Map, Value, json};

use super::Api;
use super::failure::Failure;
use super::http::{self as wire, Answer, Format};
use super::object::as_map;
use super::registry::{Kind, Registry, group_version};

/// Answers a request below `/openapi/`.
pub fn answer(api: &Api, path: &str, headers: &HeaderMap) -> Result<Answer, Failure> {
    let registry = api.registry.load();
    match path {
        "v2" => Ok(v2(headers)),
        "v3" => Ok(wire::object(200, Format::Json, &root(&registry))),
        path => {
            let (group, version) = match path.strip_prefix("v3/") {
                Some(rest) => match rest.split('/').collect::<Vec<_>>().as_slice() {
                    ["api", version] => (String::new(), (*version).to_owned()),
                    ["apis", group, version] => ((*group).to_owned(), (*version).to_owned()),
                    _ => return Err(Failure::no_such_path()),
                },
                None => return Err(Failure::no_such_path()),
            };
            let document = document(&registry, &group, &version).ok_or_else(Failure::no_such_path)?;
            Ok(wire::object(200, Format::Json, &document))
        }
    }
}

/// An empty document: clients then fall back to the schemas compiled into them, or to v3.
fn v2(headers: &HeaderMap) -> Answer {
    let accept = headers.get(header::ACCEPT).and_then(|h| h.to_str().ok()).unwrap_or("");
    const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    const ANSWERED: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
    if accept.contains(PROTOBUF) {
        // openapi.v2.Document { swagger: "2.0", info: { title: "Kubernetes", version: "v1.33.0" } }
        let mut document = vec![0x0a, 3];
        document.extend(b"2.0");
        document.extend([0x12, 21, 0x0a, 10]);
        document.extend(b"Kubernetes");
        document.extend([0x12, 7]);
        document.extend(b"v1.33.0");
        let mut answer = wire::reply(200, "application/octet-stream", document);
        // Clients ask with an "@" and cannot parse it in an answer.
        answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(ANSWERED));
        return answer;
    }
    let document = json!({
        "swagger": "2.0", "info": { "title": "Kubernetes", "version": "v1.33.0" }, "paths": {}, "definitions": {},
    });
    wire::object(200, Format::Json, &document)
}

fn base(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn root(registry: &Registry) -> Value {
    let mut paths = Map::new();
    for (group, versions) in registry.groups() {
        for version in versions {
            let base = base(&group, &version);
            let url = format!("/openapi/v3/{base}");
            paths.insert(base, json!({ "serverRelativeURL": url }));
        }
    }
    json!({ "paths": paths })
}

fn document(registry: &Registry, group: &str, version: &str) -> Option<Value> {
    let kinds: Vec<&Kind> = registry
        .kinds()
        .iter()
        .map(AsRef::as_ref)
        .filter(|kind| kind.group == group && kind.version == version)
        .collect();
    if kinds.is_empty() {
        return None;
    }
    let (mut paths, mut schemas) = (Map::new(), Map::new());
    for kind in kinds {
        let scope = if kind.namespaced { "/namespaces/{namespace}" } else { "" };
        let collection = format!("/{}{scope}/{}", base(group, version), kind.plural);
        let one = format!("{collection}/{{name}}");
        paths.insert(collection, json!({ "get": operation(kind, "list"), "post": operation(kind, "post") }));
        paths.insert(
            one,
            json!({ "get": operation(kind, "get"), "put": operation(kind, "put"), "patch": operation(kind, "patch") }),
        );
        schemas.insert(schema_name(kind), schema(kind));
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "v1.33.0" },
        "paths": paths,
        "components": { "schemas": schemas },
    }))
}

fn schema_name(kind: &Kind) -> String {
    let group: Vec<&str> = kind.group.split('.').rev().filter(|p| !p.is_empty()).collect();
    let group = if group.is_empty() { "io.k8s.api.core".to_owned() } else { group.join(".") };
    format!("{group}.{}.{}", kind.version, kind.kind)
}

fn gvk(kind: &Kind) -> Value {
    json!({ "group": kind.group, "version": kind.version, "kind": kind.kind })
}

fn schema(kind: &Kind) -> Value {
    let own = kind.custom().and_then(|version| version.pointer("/schema/openAPIV3Schema")).cloned();
    let mut schema = own.unwrap_or_else(|| {
        json!({ "type": "object", "description": format!("{} of {}", kind.kind, group_version(&kind.group, &kind.version)) })
    });
    as_map(&mut schema).insert("x-kubernetes-group-version-kind".into(), json!([gvk(kind)]));
    schema
}

fn operation(kind: &Kind, verb: &str) -> Value {
    let text = |name: &str| json!({ "name": name, "in": "query", "schema": { "type": "string", "uniqueItems": true } });
    let reference = json!({ "schema": { "$ref": format!("#/components/schemas/{}", schema_name(kind)) } });
    let mut operation = json!({
        "operationId": format!("{verb}{}{}", kind.version, kind.kind),
        "responses": { "200": { "description": "OK", "content": { "application/json": reference } } },
        "x-kubernetes-action": verb,
        "x-kubernetes-group-version-kind": gvk(kind),
    });
    if matches!(verb, "post" | "put" | "patch") {
        operation["parameters"] = ["dryRun", "fieldManager", "fieldValidation"].map(text).to_vec().into();
        // Strategic merge is left out on purpose: clients then use the merge keys they know, as no schema here
        // tells them.
        let types: &[&str] = if verb == "patch" {
            &["application/apply-patch+yaml", "application/json-patch+json", "application/merge-patch+json"]
        } else {
            &["application/json", "application/yaml"]
        };
        let content: Map<String, Value> =
            types.iter().map(|t| ((*t).to_owned(), json!({ "schema": { "type": "object" } }))).collect();
        operation["requestBody"] = json!({ "content": content, "required": true });
    }
    operation
}
