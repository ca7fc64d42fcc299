//! `IstioCertificateService/CreateCertificate`.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use mesh::Identity;
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use wire::ca::istio_certificate_service_server::IstioCertificateService;
use wire::ca::{IstioCertificateRequest, IstioCertificateResponse};

use super::limit::Limits;
use super::{Authority, AuthorityError, Refused, may_impersonate};
use crate::auth::{Authenticator, Caller};
use crate::metrics::Metrics;
use crate::state::Snapshot;

/// How long word of a new pod is waited for.
const NEWS: Duration = Duration::from_secs(2);

/// Signs certificates for node proxies.
pub struct CaServer {
    authority: watch::Receiver<Option<Arc<Authority>>>,
    snapshots: watch::Receiver<Snapshot>,
    authenticator: Authenticator,
    trust_domain: Arc<str>,
    metrics: Arc<Metrics>,
    limits: Limits,
}

impl CaServer {
    /// Signs with the latest authority, authorizes by the latest snapshot.
    pub fn new(
        authority: watch::Receiver<Option<Arc<Authority>>>,
        snapshots: watch::Receiver<Snapshot>,
        authenticator: Authenticator,
        trust_domain: Arc<str>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { authority, snapshots, authenticator, trust_domain, metrics, limits: Limits::default() }
    }

    /// The one identity that goes into the certificate: the one asked for, or the caller's own.
    async fn identity(&self, caller: &Caller, request: &IstioCertificateRequest) -> Result<Identity, Status> {
        let Some(wanted) = metadata(request, "ImpersonatedIdentity") else {
            let account = &caller.account;
            return Identity::new(self.trust_domain.clone(), account.namespace.clone(), account.name.clone())
                .map_err(|error| Status::internal(error.to_string()));
        };
        self.impersonated(caller, wanted).await.map_err(|reason| {
            tracing::warn!(account = %caller.account, pod = caller.pod_name(), wanted, %reason, "certificate refused");
            self.metrics.unauthorized();
            Status::unauthenticated("request impersonation authentication failure")
        })
    }

    /// Asks the node authorizer. A pod that has just been started is waited for a moment: refusing would only have the
    /// proxy ask again later, with the pod's first connection waiting.
    async fn impersonated(&self, caller: &Caller, wanted: &str) -> Result<Identity, Refused> {
        let trusted = self.authenticator.trusts(&caller.account);
        let deadline = tokio::time::Instant::now() + NEWS;
        let mut snapshots = self.snapshots.clone();
        loop {
            let snapshot = snapshots.borrow_and_update().clone();
            let refused = match may_impersonate(&snapshot.pods, caller, trusted, wanted, &self.trust_domain) {
                Ok(identity) => return Ok(identity),
                Err(refused) => refused,
            };
            let news = refused.may_pass() && {
                let changed = tokio::time::timeout_at(deadline, snapshots.changed()).await;
                matches!(changed, Ok(Ok(())))
            };
            if !news {
                return Err(refused);
            }
        }
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
        // By the pod rather than its name: a new one starts afresh.
        let key =
            caller.pod.as_ref().map_or_else(|| caller.account.to_string().into(), |(_, uid)| uid.clone());
        if let Err(wait) = self.limits.take(&key, Instant::now()) {
            self.metrics.limited();
            tracing::warn!(account = %caller.account, pod = caller.pod_name(), "certificate refused: too many asked for");
            let message =
                format!("too many certificates asked for; try again in {} ms", wait.as_millis() + 1);
            return Err(Status::resource_exhausted(message));
        }
        let request = request.into_inner();
        let identity = self.identity(&caller, &request).await?;
        if metadata(&request, "CertSigner").is_some() {
            return Err(Status::invalid_argument("external certificate signers are not supported"));
        }
        let authority = self.authority.borrow().clone();
        let authority = authority.ok_or_else(|| Status::unavailable("there is no root certificate yet"))?;
        let start = Instant::now();
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
        self.metrics.issued(start.elapsed());
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

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;
    use serde_json::json;

    use super::*;
    use crate::auth::{Reviewer, Verdict};
    use crate::config::Account;
    use crate::fixtures;
    use crate::state::{Delta, Event, State};

    struct Proxy;

    impl Reviewer for Proxy {
        fn review<'a>(
            &'a self,
            token: &'a str,
        ) -> BoxFuture<'a, Result<Verdict, Box<dyn std::error::Error + Send + Sync>>> {
            let account = Account { namespace: "ambit-system".into(), name: "ambit-proxy".into() };
            let pod = if token == "x" { "proxy" } else { token };
            let caller = Caller { account, pod: Some((pod.into(), format!("uid-{pod}").into())) };
            Box::pin(std::future::ready(Ok(Verdict::Is(caller))))
        }
    }

    fn request(wanted: &str) -> Request<IstioCertificateRequest> {
        let key = rcgen::KeyPair::generate().unwrap();
        let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
        let value = prost_types::value::Kind::StringValue(wanted.into());
        let fields = [("ImpersonatedIdentity".to_string(), prost_types::Value { kind: Some(value) })].into();
        let metadata = Some(prost_types::Struct { fields });
        let mut request = Request::new(IstioCertificateRequest { csr, validity_duration: 0, metadata });
        request.metadata_mut().insert("authorization", "Bearer x".parse().unwrap());
        request
    }

    fn server(snapshots: watch::Receiver<Snapshot>) -> CaServer {
        let metrics: Arc<Metrics> = Arc::default();
        let trusted = vec!["ambit-system/ambit-proxy".parse().unwrap()];
        let authenticator =
            Authenticator::new(Arc::new(Proxy), "c".into(), "cluster.local".into(), trusted, metrics.clone());
        let authority = Authority::self_signed("cluster.local", SystemTime::now()).unwrap();
        let (_, authority) = watch::channel(Some(Arc::new(authority)));
        CaServer::new(authority, snapshots, authenticator, "cluster.local".into(), metrics)
    }

    #[tokio::test]
    async fn a_node_that_asks_on_and_on_is_told_to_wait_and_no_other_is() {
        let (_publish, snapshots) = watch::channel(Snapshot::default());
        let server = server(snapshots);
        // A request that is refused has cost something, too.
        let ask = |node: &str| {
            let mut request = Request::new(IstioCertificateRequest::default());
            request.metadata_mut().insert("authorization", format!("Bearer {node}").parse().unwrap());
            server.create_certificate(request)
        };
        let codes = async |node: &str, times: usize| {
            let mut codes = Vec::new();
            for _ in 0..times {
                codes.push(ask(node).await.unwrap_err().code());
            }
            codes
        };
        let loud = codes("loud", 2000).await;
        assert!(loud[..500].iter().all(|code| *code == tonic::Code::InvalidArgument));
        let waits = loud.iter().filter(|code| **code == tonic::Code::ResourceExhausted).count();
        assert!(waits > 0, "2000 at once are more than a node needs");
        assert_eq!(codes("quiet", 1).await, [tonic::Code::InvalidArgument]);
    }

    #[tokio::test]
    async fn a_pod_that_is_heard_of_while_its_certificate_is_asked_for_gets_it() {
        let mut state = State::new(fixtures::settings());
        let proxy = json!({ "metadata": { "namespace": "ambit-system" }, "spec": { "serviceAccountName": "ambit-proxy" } });
        state.apply(Event::Pods(Delta::Put(fixtures::pod("proxy", "10.0.0.9", proxy))));
        let (publish, snapshots) = watch::channel(state.flush().unwrap());
        let server = server(snapshots);

        let asked = server.create_certificate(request("spiffe://cluster.local/ns/shop/sa/web"));
        let mut asked = std::pin::pin!(asked);
        assert!(futures::poll!(&mut asked).is_pending());
        state.apply(Event::Pods(Delta::Put(fixtures::pod("web-0", "10.0.0.1", json!({})))));
        publish.send_replace(state.flush().unwrap());
        assert_eq!(asked.await.unwrap().into_inner().cert_chain.len(), 2);

        // What no news can change is refused at once.
        let foreign = server.create_certificate(request("spiffe://other/ns/shop/sa/web"));
        let mut foreign = std::pin::pin!(foreign);
        let std::task::Poll::Ready(answer) = futures::poll!(&mut foreign) else { panic!("it waits") };
        let status = answer.unwrap_err();
        assert_eq!(status.code(), tonic::Code::Unauthenticated);
        assert_eq!(status.message(), "request impersonation authentication failure");
    }
}
