//! Who is calling.
//!
//! Callers are node proxies that show the token of their service account; the Kubernetes API says whose it is
//! (reference/control-plane.md §3.3). Answers are kept for a minute at most, under the digest of the token, so that a
//! proxy that asks for fifty certificates costs one review. Whether the pod behind a token still exists is not the
//! business of this cache: the node authorizer looks that up in the current state each time.
//!
//! Unlike istiod, only the accounts of node proxies may read the workload API: the whole mesh is in it.

mod review;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use tonic::transport::server::{TcpConnectInfo, TlsConnectInfo};
use tonic::{Request, Status};

use crate::config::Account;
use crate::metrics::Metrics;

use review::Cache;
pub use review::{KubernetesReviewer, Reviewer, Verdict};

/// An authenticated caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its service account.
    pub account: Account,
    /// The pod its token is bound to, by name and UID.
    pub pod: Option<(Arc<str>, Arc<str>)>,
}

impl Caller {
    /// Name of its pod, for logs.
    pub fn pod_name(&self) -> &str {
        self.pod.as_ref().map_or("", |(name, _)| name)
    }
}

/// Finds out who is calling. Clones share the cache.
#[derive(Clone)]
pub struct Authenticator {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: String,
    trust_domain: String,
    trusted: Vec<Account>,
    cache: Cache,
    metrics: Arc<Metrics>,
}

impl Authenticator {
    /// Asks `reviewer` about tokens; `trusted` are the accounts of node proxies.
    pub fn new(
        reviewer: Arc<dyn Reviewer>,
        cluster: String,
        trust_domain: String,
        trusted: Vec<Account>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner { cluster, trust_domain, trusted, cache: Cache::new(reviewer), metrics }),
        }
    }

    /// Who is calling, by client certificate or token. `Unauthenticated` when neither says.
    pub async fn caller<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let result = match self.by_certificate(request) {
            Some(caller) => Ok(caller),
            None => self.by_token(request).await,
        };
        if result.is_err() {
            self.inner.metrics.unauthenticated();
        }
        result
    }

    /// Who is calling, if it is a node proxy; `PermissionDenied` for everybody else.
    pub async fn node_proxy<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let caller = self.caller(request).await?;
        if self.trusts(&caller.account) {
            return Ok(caller);
        }
        tracing::warn!(account = %caller.account, "refused: not the account of a node proxy");
        Err(Status::permission_denied(format!(
            "{} is not the account of a node proxy; add it to CA_TRUSTED_NODE_ACCOUNTS of the control plane",
            caller.account
        )))
    }

    /// Whether an account is that of a node proxy.
    pub fn trusts(&self, account: &Account) -> bool {
        self.inner.trusted.contains(account)
    }

    /// The client certificate was verified against our roots during the handshake; here it is only read.
    fn by_certificate<T>(&self, request: &Request<T>) -> Option<Caller> {
        let certificates = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>()?.peer_certs()?;
        let identity = identity_of(certificates.first()?)?;
        (identity.trust_domain() == self.inner.trust_domain).then(|| Caller {
            account: Account {
                namespace: identity.namespace().into(),
                name: identity.service_account().into(),
            },
            pod: None,
        })
    }

    async fn by_token<T>(&self, request: &Request<T>) -> Result<Caller, Status> {
        let header = |name: &str| request.metadata().get(name).and_then(|value| value.to_str().ok());
        let token = header("authorization")
            .and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")))
            .map(str::trim)
            .filter(|token| !token.is_empty())
            .ok_or_else(|| Status::unauthenticated("request authenticate failure"))?;
        let cluster = header("clusterid").unwrap_or_default();
        if !cluster.is_empty() && cluster != self.inner.cluster {
            tracing::warn!(cluster, "refused: a token of a cluster that is not known here");
            return Err(Status::unauthenticated("request authenticate failure"));
        }
        match self.inner.cache.review(token).await {
            Ok(Verdict::Is(caller)) => Ok(caller),
            Ok(Verdict::Unknown(reason)) => {
                tracing::warn!(reason, "refused: the token is not valid here");
                Err(Status::unauthenticated("request authenticate failure"))
            }
            // Not the caller's fault: it shall try again.
            Err(error) => {
                tracing::warn!(%error, "cannot have a token reviewed");
                Err(Status::unavailable("the Kubernetes API did not review the token; try again"))
            }
        }
    }
}

/// The first URI name of a certificate, as an identity.
fn identity_of(certificate: &CertificateDer<'_>) -> Option<mesh::Identity> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    names.value.general_names.iter().find_map(|name| match name {
        x509_parser::extensions::GeneralName::URI(uri) => uri.parse().ok(),
        _ => None,
    })
}
