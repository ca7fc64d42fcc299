//! Who is calling: client certificates of this server's own authority and service account tokens. What they may do is
//! [`super::rbac`]'s.

use std::collections::BTreeMap;

use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::Api;
use super::failure::Failure;
use super::object::uid;
use super::tokens::{Claims, ISSUER};

/// A caller.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct User {
    /// `system:serviceaccount:NS:NAME` for service accounts, the common name for certificates.
    pub name: String,
    /// Unique id where there is one.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// What else is known.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The user of a client certificate that has been verified already.
    pub fn of_certificate(certificate: &CertificateDer<'_>) -> Option<User> {
        let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
        let subject = certificate.subject();
        let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
        let mut groups: Vec<String> =
            subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
        groups.push("system:authenticated".into());
        Some(User { name, groups, ..User::default() })
    }

    /// `authentication.k8s.io/v1 UserInfo`.
    pub fn info(&self) -> Value {
        let mut info = json!({ "username": self.name, "groups": self.groups });
        if !self.uid.is_empty() {
            info["uid"] = self.uid.as_str().into();
        }
        if !self.extra.is_empty() {
            info["extra"] = json!(self.extra);
        }
        info
    }
}

/// The caller of a request: the certificate of the connection, or else a bearer token.
pub fn authenticate(
    api: &Api,
    certificate: Option<&User>,
    headers: &http::HeaderMap,
) -> Result<User, Failure> {
    if let Some(user) = certificate {
        return Ok(user.clone());
    }
    let header = headers.get(http::header::AUTHORIZATION).and_then(|h| h.to_str().ok()).unwrap_or("");
    let token = match header.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => return Err(Failure::unauthorized()),
    };
    match review(api, token, &[ISSUER.to_owned()]) {
        Ok((user, _)) => Ok(user),
        Err(why) => {
            tracing::debug!(why, "a bearer token was refused");
            Err(Failure::unauthorized())
        }
    }
}

/// The user of a token and which of the wanted audiences it is for.
pub fn review(api: &Api, token: &str, audiences: &[String]) -> Result<(User, Vec<String>), String> {
    let now = jiff::Timestamp::now().as_second();
    let claims = api.tokens.verify(token, now).map_err(|why| format!("invalid bearer token: {why}"))?;
    let matching: Vec<String> = audiences.iter().filter(|a| claims.audiences.contains(a)).cloned().collect();
    if matching.is_empty() {
        return Err(format!(
            "token audiences {:?} is invalid for the target audiences {audiences:?}",
            claims.audiences
        ));
    }
    alive(api, &claims)?;
    Ok((user(&claims), matching))
}

/// Refuses a token whose account, or whose bound object, is gone or has been replaced by a namesake.
fn alive(api: &Api, claims: &Claims) -> Result<(), String> {
    let same = |resource: &str, namespace: &str, name: &str, want: &str| {
        api.store.get(resource, namespace, name).is_some_and(|object| uid(&object) == want)
    };
    if !same("serviceaccounts", &claims.namespace, &claims.service_account, &claims.service_account_uid) {
        return Err(format!(
            "service account {}/{} has been deleted",
            claims.namespace, claims.service_account
        ));
    }
    if let Some((kind, name, uid)) = &claims.bound {
        let (resource, namespace) = match kind.as_str() {
            "Pod" => ("pods", claims.namespace.as_str()),
            "Secret" => ("secrets", claims.namespace.as_str()),
            _ => ("nodes", ""),
        };
        if !same(resource, namespace, name, uid) {
            return Err(format!("{kind} {name} that the token is bound to has been deleted"));
        }
    }
    Ok(())
}

fn user(claims: &Claims) -> User {
    let mut extra = BTreeMap::new();
    let mut say = |key: &str, value: &str| {
        extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value.to_owned()]);
    };
    say("credential-id", &format!("JTI={}", claims.id));
    if let Some((kind, name, uid)) = &claims.bound
        && kind == "Pod"
    {
        say("pod-name", name);
        say("pod-uid", uid);
    }
    if let Some((name, uid)) = &claims.node {
        say("node-name", name);
        say("node-uid", uid);
    }
    User {
        name: format!("system:serviceaccount:{}:{}", claims.namespace, claims.service_account),
        uid: claims.service_account_uid.clone(),
        groups: vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{}", claims.namespace),
            "system:authenticated".into(),
        ],
        extra,
    }
}
