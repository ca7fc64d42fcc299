//! `IstioCertificateService/CreateCertificate`.

use std::sync::Arc;
use std::time::SystemTime;

use mesh::Identity;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use wire::ca::istio_certificate_service_server::IstioCertificateService;
use wire::ca::{IstioCertificateRequest, IstioCertificateResponse};

use super::{Authority, AuthorityError, may_impersonate};
use crate::auth::{Authenticator, Caller};
use crate::metrics::Metrics;
use crate::state::Snapshot;

/// Signs certificates for node proxies.
pub struct CaServer {
    authority: watch::Receiver<Arc<Authority>>,
    snapshots: watch::Receiver<Snapshot>,
    authenticator: Authenticator,
    trust_domain: Arc<str>,
    metrics: Arc<Metrics>,
}

impl CaServer {
    /// Signs with the latest authority, authorizes by the latest snapshot.
    pub fn new(
        authority: watch::Receiver<Arc<Authority>>,
        snapshots: watch::Receiver<Snapshot>,
        authenticator: Authenticator,
        trust_domain: Arc<str>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { authority, snapshots, authenticator, trust_domain, metrics }
    }

    /// The one identity that goes into the certificate: the one asked for, or the caller's own.
    fn identity(&self, caller: &Caller, request: &IstioCertificateRequest) -> Result<Identity, Status> {
        let refused = || Status::unauthenticated("request impersonation authentication failure");
        let Some(wanted) = metadata(request, "ImpersonatedIdentity") else {
            let account = &caller.account;
            return Identity::new(self.trust_domain.clone(), account.namespace.clone(), account.name.clone())
                .map_err(|error| Status::internal(error.to_string()));
        };
        let snapshot = self.snapshots.borrow().clone();
        let trusted = self.authenticator.trusts(&caller.account);
        may_impersonate(&snapshot.pods, caller, trusted, wanted, &self.trust_domain).map_err(|reason| {
            tracing::warn!(account = %caller.account, pod = caller.pod_name(), wanted, %reason, "certificate refused");
            self.metrics.unauthorized();
            refused()
        })
    }
}

#[tonic::async_trait]
impl IstioCertificateService for CaServer {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        self.metrics.requested();
        let caller = self.authenticator.caller(&request).await?;
        let request = request.into_inner();
        let identity = self.identity(&caller, &request)?;
        if metadata(&request, "CertSigner").is_some() {
            return Err(Status::invalid_argument("external certificate signers are not supported"));
        }
        let authority = self.authority.borrow().clone();
        let chain = authority
            .life(request.validity_duration)
            .and_then(|life| authority.sign(&request.csr, &identity, life, SystemTime::now()))
            .map_err(|error| {
                self.metrics.sign_error(&error);
                tracing::warn!(account = %caller.account, %identity, %error, "certificate not signed");
                let message = format!("CSR signing error ({error})");
                match error {
                    AuthorityError::Request(_) | AuthorityError::TooLong { .. } => {
                        Status::invalid_argument(message)
                    }
                    _ => Status::internal(message),
                }
            })?;
        self.metrics.issued();
        tracing::info!(%identity, pod = caller.pod_name(), "certificate issued");
        Ok(Response::new(IstioCertificateResponse { cert_chain: chain }))
    }
}

/// A non-empty text of the request's metadata.
fn metadata<'a>(request: &'a IstioCertificateRequest, key: &str) -> Option<&'a str> {
    match request.metadata.as_ref()?.fields.get(key)?.kind.as_ref()? {
        prost_types::value::Kind::StringValue(text) if !text.is_empty() => Some(text),
        _ => None,
    }
}
