//! From a URL to what it is about. Pure; knows the shape of Kubernetes paths and nothing of what is served.

use super::failure::Failure;

/// What a path is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/healthz`, `/livez`, `/readyz` and their checks.
    Health,
    /// `/version`.
    Version,
    /// `/`, the list of paths.
    Root,
    /// `/api`.
    Core,
    /// `/apis`.
    Groups,
    /// `/apis/GROUP`.
    Group(String),
    /// `/api/v1` or `/apis/GROUP/VERSION`.
    Resources(String, String),
    /// `/openapi/…`, with the rest of the path.
    OpenApi(String),
    /// `/.well-known/openid-configuration` and `/openid/v1/jwks`.
    Oidc(bool),
    /// Objects.
    Objects(Target),
}

/// Objects, one object or a part of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    /// API group, "" for core.
    pub group: String,
    /// API version.
    pub version: String,
    /// The namespace in the path.
    pub namespace: Option<String>,
    /// Plural resource name.
    pub resource: String,
    /// One object.
    pub name: Option<String>,
    /// A part of it.
    pub subresource: Option<String>,
}

/// Reads a request path.
pub fn parse(path: &str) -> Result<Route, Failure> {
    let decoded: Vec<String> = path
        .split('/')
        .filter(|s| !s.is_empty())
        .map(decode)
        .collect::<Option<_>>()
        .ok_or_else(|| Failure::bad_request("the path holds a malformed escape"))?;
    let segments: Vec<&str> = decoded.iter().map(String::as_str).collect();
    Ok(match segments.as_slice() {
        [] => Route::Root,
        ["healthz" | "livez" | "readyz", ..] => Route::Health,
        ["version"] => Route::Version,
        ["api"] => Route::Core,
        ["apis"] => Route::Groups,
        ["apis", group] => Route::Group((*group).into()),
        ["api", version] => Route::Resources(String::new(), (*version).into()),
        ["apis", group, version] => Route::Resources((*group).into(), (*version).into()),
        ["openapi", rest @ ..] => Route::OpenApi(rest.join("/")),
        [".well-known", "openid-configuration"] => Route::Oidc(false),
        ["openid", "v1", "jwks"] => Route::Oidc(true),
        ["api", version, rest @ ..] => Route::Objects(target("", version, rest)?),
        ["apis", group, version, rest @ ..] => Route::Objects(target(group, version, rest)?),
        _ => return Err(Failure::no_such_path()),
    })
}

fn target(group: &str, version: &str, rest: &[&str]) -> Result<Target, Failure> {
    let mut target = Target { group: group.into(), version: version.into(), ..Target::default() };
    let rest = match rest {
        // A namespace's own parts look like resources in it.
        ["namespaces", ..] if rest.len() <= 2 => rest,
        ["namespaces", _, "status" | "finalize"] if group.is_empty() => rest,
        ["namespaces", namespace, rest @ ..] => {
            target.namespace = Some((*namespace).into());
            rest
        }
        rest => rest,
    };
    match rest {
        [resource] => target.resource = (*resource).into(),
        [resource, name] => {
            target.resource = (*resource).into();
            target.name = Some((*name).into());
        }
        [resource, name, subresource] => {
            target.resource = (*resource).into();
            target.name = Some((*name).into());
            target.subresource = Some((*subresource).into());
        }
        _ => return Err(Failure::no_such_path()),
    }
    Ok(target)
}

/// Decodes `%XX`; None when malformed or not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let hex = [bytes.next()?, bytes.next()?];
            let hex = std::str::from_utf8(&hex).ok().filter(|h| h.bytes().all(|b| b.is_ascii_hexdigit()))?;
            out.push(u8::from_str_radix(hex, 16).ok()?);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
mod tests;
