//! From a request to the verb that answers it. Each verb stands in a module of its own; this one only sorts.

mod create;
mod delete;
mod kubelet;
mod options;
mod parts;
mod read;
mod reviews;
mod token;
mod update;
mod watch;

pub(super) use create::new_uid;
pub(super) use kubelet::connector as kubelet_connector;
pub(super) use options::Unknown;
pub(super) use update::Part;

use std::sync::Arc;

use http::{HeaderMap, Method, Request};
use hyper::body::Incoming;
use serde_json::json;

use super::auth::{self, User};
use super::failure::Failure;
use super::http::{self as wire, Answer, Format, Params};
use super::rbac::{self, Wish};
use super::registry::{Kind, Origin};
use super::route::{self, Route, Target};
use super::{Api, discovery, openapi};

/// A request about objects, read as far as its body.
pub(super) struct Call {
    pub api: Arc<Api>,
    pub user: User,
    pub method: Method,
    pub headers: HeaderMap,
    pub params: Params,
    pub target: Target,
    pub kind: Arc<Kind>,
}

impl Call {
    /// The namespace part of the object's key.
    pub fn namespace(&self) -> &str {
        self.target.namespace.as_deref().unwrap_or("")
    }

    /// The name in the path; there is one wherever this is called.
    pub fn name(&self) -> &str {
        self.target.name.as_deref().unwrap_or("")
    }

    /// What this call wants to do, in the words of access reviews.
    pub fn wish(&self) -> Wish<'_> {
        let one = self.target.name.is_some();
        let verb = match self.method.as_str() {
            "GET" | "HEAD" if self.params.flag("watch") => "watch",
            "GET" | "HEAD" if one => "get",
            "GET" | "HEAD" => "list",
            "POST" => "create",
            "PUT" => "update",
            "PATCH" => "patch",
            "DELETE" if one => "delete",
            "DELETE" => "deletecollection",
            other => other,
        };
        // One object may be listed and watched by a selector, too.
        let selected = self.params.get("fieldSelector").split(',').find_map(|term| {
            let name = term.trim().strip_prefix("metadata.name=")?;
            Some(name.strip_prefix('=').unwrap_or(name))
        });
        let name = match &self.target.name {
            Some(name) => name,
            None if matches!(verb, "list" | "watch") => selected.unwrap_or(""),
            None => "",
        };
        Wish {
            verb,
            group: &self.kind.group,
            resource: &self.kind.plural,
            subresource: self.target.subresource.as_deref().unwrap_or(""),
            // A namespace is in itself.
            namespace: if self.kind.is("namespaces") { self.name() } else { self.namespace() },
            name,
        }
    }

    /// The 404 of the object of this call.
    pub fn not_found(&self) -> Failure {
        Failure::not_found(&self.kind.resource, self.name())
    }
}

/// Answers one request.
pub(super) async fn answer(
    api: Arc<Api>,
    certificate: Option<&User>,
    request: Request<Incoming>,
) -> Result<Answer, Failure> {
    let route = route::parse(request.uri().path())?;
    // As in a real cluster, health and version are open to everybody.
    if matches!(route, Route::Health | Route::Version | Route::Oidc(_)) {
        return Ok(match route {
            Route::Health => wire::reply(200, "text/plain; charset=utf-8", "ok"),
            Route::Version => wire::object(200, Format::Json, &discovery::version()),
            Route::Oidc(true) => wire::object(200, Format::Json, &api.tokens.jwks()),
            _ => wire::object(200, Format::Json, &discovery::openid()),
        });
    }
    let user = auth::authenticate(&api, certificate, request.headers())?;
    let target = match route {
        Route::Objects(target) => target,
        other => {
            if request.method() != Method::GET && request.method() != Method::HEAD {
                return Err(Failure::method_not_allowed());
            }
            if let Route::OpenApi(path) = &other {
                return openapi::answer(&api, path, request.headers());
            }
            return discovery::answer(&api, &other, request.headers());
        }
    };
    let kind = api
        .registry
        .load()
        .find(&target.group, &target.version, &target.resource)
        .ok_or_else(Failure::no_such_path)?;
    let params = Params::of(request.uri())?;
    let (parts, body) = request.into_parts();
    let mut call = Call {
        api,
        user,
        method: parts.method.clone(),
        headers: parts.headers.clone(),
        params,
        target,
        kind,
    };
    if !call.kind.namespaced && call.target.namespace.is_some() && call.kind.resource != "namespaces" {
        return Err(Failure::no_such_path());
    }
    // GET /api/v1/namespaces/NS is about the namespace itself, whose objects have no namespace.
    if !call.kind.namespaced {
        call.target.namespace = None;
    } else if call.target.namespace.is_none()
        && (call.target.name.is_some() || (call.method != Method::GET && call.method != Method::DELETE))
        && !matches!(call.kind.origin, Origin::Review)
    {
        return Err(if call.method == Method::POST {
            Failure::bad_request("an empty namespace may not be set during creation")
        } else {
            Failure::no_such_path()
        });
    }
    call.api.store.with(|tx| rbac::check(tx, &call.user, &call.wish()))?;
    if let Some(subresource) = call.target.subresource.clone() {
        if !call.kind.has(&subresource) {
            return Err(Failure::no_such_path());
        }
        return parts::answer(call, &subresource, Request::from_parts(parts, body)).await;
    }
    if matches!(call.kind.origin, Origin::Review) {
        if call.method != Method::POST || call.target.name.is_some() {
            return Err(Failure::method_not_allowed());
        }
        return reviews::answer(&call, &wire::read_body(body).await?);
    }
    match (call.method.as_str(), call.target.name.is_some()) {
        ("GET", _) if call.params.flag("watch") => watch::watch(call),
        ("GET" | "HEAD", true) => read::get(&call),
        ("GET" | "HEAD", false) => read::list(&call),
        ("POST", false) => create::create(&call, &wire::read_body(body).await?),
        ("PUT", true) => update::update(&call, &wire::read_body(body).await?),
        ("PATCH", true) => update::patch(&call, &wire::read_body(body).await?),
        ("DELETE", true) => delete::delete(&call, &wire::read_body(body).await?),
        ("DELETE", false) => delete::collection(&call, &wire::read_body(body).await?),
        _ => Err(Failure::method_not_allowed()),
    }
}

/// `Status` of something that went well and has no object to show.
pub(super) fn success(details: serde_json::Value) -> serde_json::Value {
    json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details })
}

/// Creates an object of the server's own.
pub(super) fn bootstrap(
    api: &Api,
    group: &str,
    version: &str,
    plural: &str,
    object: serde_json::Value,
) -> Result<(), Failure> {
    let kind = api.registry.load().find(group, version, plural).ok_or_else(Failure::no_such_path)?;
    let options = options::WriteOptions {
        dry_run: false,
        manager: "kube-apiserver".into(),
        unknown: Unknown::Strict,
        force: false,
    };
    let object = super::strict::check(&kind, object, options.unknown, &mut Vec::new())?;
    let operation = super::patch::managed::Operation::update(&options.manager);
    api.store.with(|tx| create::insert(api, tx, &kind, object, &options, Some(&operation))).map(drop)
}
