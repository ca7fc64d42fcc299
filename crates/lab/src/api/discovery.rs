//! Discovery: what is served, in the old form of one document a group version and in the aggregated form.

use http::{HeaderMap, HeaderValue, header};
use serde_json::{Value, json};

use super::Api;
use super::failure::Failure;
use super::http::{self as wire, Answer, Format};
use super::kinds::{VERBS, subresource_kind, subresource_verbs};
use super::registry::{Kind, Origin, Registry, group_version};
use super::route::Route;
use super::tokens::ISSUER;

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// `/version`.
pub fn version() -> Value {
    json!({
        "major": "1", "minor": "33", "gitVersion": "v1.33.0+ambit-lab", "gitCommit": "", "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": format!("linux/{}", if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }),
    })
}

/// `/.well-known/openid-configuration`.
pub fn openid() -> Value {
    json!({
        "issuer": ISSUER, "jwks_uri": format!("{ISSUER}/openid/v1/jwks"), "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["ES256"],
    })
}

/// Answers a discovery request.
pub fn answer(api: &Api, route: &Route, headers: &HeaderMap) -> Result<Answer, Failure> {
    let registry = api.registry.load();
    let aggregated = wants_aggregated(headers);
    let value = match route {
        Route::Core | Route::Groups if aggregated => {
            let list = aggregated_list(&registry, *route == Route::Core);
            let mut answer = wire::object(200, Format::Json, &list);
            answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(AGGREGATED));
            return Ok(answer);
        }
        Route::Root => {
            let mut paths = vec!["/api".to_owned(), "/api/v1".into(), "/apis".into()];
            for (group, versions) in registry.groups().iter().filter(|(group, _)| !group.is_empty()) {
                paths.push(format!("/apis/{group}"));
                paths.extend(versions.iter().map(|version| format!("/apis/{group}/{version}")));
            }
            paths.extend(
                ["/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz", "/version"].map(String::from),
            );
            json!({ "paths": paths })
        }
        Route::Core => json!({
            "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": api.address.to_string() }],
        }),
        Route::Groups => {
            let groups: Vec<Value> = registry
                .groups()
                .iter()
                .filter(|(g, _)| !g.is_empty())
                .map(|(g, v)| group(g, v, false))
                .collect();
            json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
        }
        Route::Group(name) => {
            let groups = registry.groups();
            let (name, versions) =
                groups.iter().find(|(g, _)| g == name && !g.is_empty()).ok_or_else(Failure::no_such_path)?;
            group(name, versions, true)
        }
        Route::Resources(group, version) => resources(&registry, group, version)?,
        _ => return Err(Failure::no_such_path()),
    };
    Ok(wire::object(200, Format::Json, &value))
}

fn wants_aggregated(headers: &HeaderMap) -> bool {
    headers.get_all(header::ACCEPT).iter().filter_map(|h| h.to_str().ok()).flat_map(|h| h.split(',')).any(
        |item| {
            let parts: Vec<&str> = item.split(';').map(str::trim).collect();
            ["application/json", "g=apidiscovery.k8s.io", "v=v2", "as=APIGroupDiscoveryList"]
                .iter()
                .all(|want| parts.contains(want))
        },
    )
}

fn group(name: &str, versions: &[String], typed: bool) -> Value {
    let entries: Vec<Value> = versions
        .iter()
        .map(|version| json!({ "groupVersion": group_version(name, version), "version": version }))
        .collect();
    let mut group = json!({
        "name": name, "versions": entries, "preferredVersion": entries.first().cloned().unwrap_or_default(),
    });
    if typed {
        group["kind"] = "APIGroup".into();
        group["apiVersion"] = "v1".into();
    }
    group
}

fn of<'a>(registry: &'a Registry, group: &'a str, version: &'a str) -> impl Iterator<Item = &'a Kind> {
    registry.kinds().iter().map(AsRef::as_ref).filter(move |k| k.group == group && k.version == version)
}

fn verbs(kind: &Kind) -> &'static [&'static str] {
    if matches!(kind.origin, Origin::Review) { &["create"] } else { VERBS }
}

fn resources(registry: &Registry, group: &str, version: &str) -> Result<Value, Failure> {
    let mut list = Vec::new();
    for kind in of(registry, group, version) {
        let mut entry = json!({
            "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
            "verbs": verbs(kind),
        });
        if !kind.short.is_empty() {
            entry["shortNames"] = json!(kind.short);
        }
        if !kind.categories.is_empty() {
            entry["categories"] = json!(kind.categories);
        }
        list.push(entry);
        for sub in &kind.subresources {
            let mut entry = json!({
                "name": format!("{}/{sub}", kind.plural), "singularName": "", "namespaced": kind.namespaced,
                "kind": kind.kind, "verbs": subresource_verbs(sub),
            });
            if let Some((group, version, kind)) = subresource_kind(sub) {
                entry["kind"] = kind.into();
                if !group.is_empty() {
                    entry["group"] = group.into();
                    entry["version"] = version.into();
                }
            }
            list.push(entry);
        }
    }
    if list.is_empty() {
        return Err(Failure::no_such_path());
    }
    Ok(json!({
        "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version(group, version), "resources": list,
    }))
}

fn aggregated_list(registry: &Registry, core: bool) -> Value {
    let items: Vec<Value> = registry
        .groups()
        .iter()
        .filter(|(group, _)| group.is_empty() == core)
        .map(|(group, versions)| {
            let versions: Vec<Value> = versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> =
                        of(registry, group, version).map(aggregated_resource).collect();
                    json!({ "version": version, "resources": resources, "freshness": "Current" })
                })
                .collect();
            let metadata = if core { json!({}) } else { json!({ "name": group }) };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    })
}

fn aggregated_resource(kind: &Kind) -> Value {
    let response =
        |group: &str, version: &str, kind: &str| json!({ "group": group, "version": version, "kind": kind });
    let subresources: Vec<Value> = kind
        .subresources
        .iter()
        .map(|sub| {
            let kind = subresource_kind(sub).unwrap_or((&kind.group, &kind.version, &kind.kind));
            json!({ "subresource": sub, "responseKind": response(kind.0, kind.1, kind.2), "verbs": subresource_verbs(sub) })
        })
        .collect();
    let mut resource = json!({
        "resource": kind.plural, "responseKind": response(&kind.group, &kind.version, &kind.kind),
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular, "verbs": verbs(kind),
    });
    for (key, list) in [("shortNames", &kind.short), ("categories", &kind.categories)] {
        if !list.is_empty() {
            resource[key] = json!(list);
        }
    }
    if !subresources.is_empty() {
        resource["subresources"] = subresources.into();
    }
    resource
}
