//! Service account tokens of projected volumes: asked of the API server, and again before they expire.

use std::collections::BTreeMap;

use anyhow::Context;
use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount, ServiceAccountTokenProjection};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::api::PostParams;
use kube::{Api, Client};

/// A token and when to get the next one.
struct Held {
    token: String,
    renew: Timestamp,
}

/// The tokens of one pod, by audience and lifetime.
#[derive(Default)]
pub struct Tokens(BTreeMap<(String, i64), Held>);

impl Tokens {
    /// The token of a projection, still good for a while.
    pub async fn get(
        &mut self,
        client: &Client,
        pod: &Pod,
        wanted: &ServiceAccountTokenProjection,
    ) -> anyhow::Result<String> {
        let audience = wanted.audience.clone().unwrap_or_default();
        let seconds = wanted.expiration_seconds.unwrap_or(3600).max(600);
        let key = (audience.clone(), seconds);
        let now = Timestamp::now();
        if let Some(held) = self.0.get(&key).filter(|h| now < h.renew) {
            return Ok(held.token.clone());
        }
        let meta = &pod.metadata;
        let account = pod
            .spec
            .as_ref()
            .and_then(|s| s.service_account_name.clone())
            .filter(|n| !n.is_empty())
            .unwrap_or_else(|| "default".to_owned());
        let namespace = meta.namespace.as_deref().unwrap_or("default");
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: if audience.is_empty() { vec![] } else { vec![audience] },
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: meta.name.clone(),
                    uid: meta.uid.clone(),
                }),
                expiration_seconds: Some(seconds),
            },
            ..Default::default()
        };
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
        let status = accounts
            .create_token_request(&account, &PostParams::default(), &request)
            .await
            .with_context(|| format!("no token for service account {namespace}/{account}"))?
            .status
            .with_context(|| {
                format!("the API server gave no token for service account {namespace}/{account}")
            })?;
        let renew = renew_at(now, status.expiration_timestamp.0);
        self.0.insert(key, Held { token: status.token.clone(), renew });
        Ok(status.token)
    }
}

/// A token is renewed when four fifths of its life are over, and after a day in any case.
fn renew_at(now: Timestamp, expires: Timestamp) -> Timestamp {
    let life = expires.duration_since(now).max(SignedDuration::ZERO);
    let wait = (life / 5 * 4).min(SignedDuration::from_hours(24));
    now.checked_add(wait).unwrap_or(expires)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_well_before_it_expires() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let hours = |n| now.checked_add(SignedDuration::from_hours(n)).unwrap();
        let minutes = |n| now.checked_add(SignedDuration::from_mins(n)).unwrap();
        assert_eq!(renew_at(now, hours(1)), minutes(48));
        assert_eq!(renew_at(now, hours(24 * 365)), hours(24));
        assert_eq!(renew_at(hours(2), hours(1)), hours(2));
    }
}
