//! Token reviews and how long they are believed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, TokenReviewStatus};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;

use super::Caller;
use crate::config::Account;

/// How long a valid token is believed without asking again.
const BELIEVED: Duration = Duration::from_secs(60);
/// How long a refused one is refused without asking again.
const REFUSED: Duration = Duration::from_secs(5);
/// Tokens remembered, at most.
const CAPACITY: usize = 16_384;
/// How long the API may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whose token it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This caller's.
    Is(Caller),
    /// Nobody's, and why.
    Unknown(String),
}

/// Why there is no verdict.
pub type ReviewError = Box<dyn std::error::Error + Send + Sync>;

/// Says whose a token is.
pub trait Reviewer: Send + Sync + 'static {
    /// Reviews a token. An error means that nothing is known, not that the token is bad.
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Verdict, ReviewError>>;
}

/// Asks the Kubernetes API.
pub struct KubernetesReviewer {
    client: Client,
    audiences: Vec<String>,
}

impl KubernetesReviewer {
    /// Tokens must be for one of `audiences`.
    pub fn new(client: Client, audiences: Vec<String>) -> Self {
        Self { client, audiences }
    }
}

impl Reviewer for KubernetesReviewer {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Verdict, ReviewError>> {
        Box::pin(async move {
            let review = TokenReview {
                spec: TokenReviewSpec { audiences: Some(self.audiences.clone()), token: Some(token.into()) },
                ..TokenReview::default()
            };
            let api = Api::<TokenReview>::all(self.client.clone());
            let params = PostParams::default();
            let answer = tokio::time::timeout(PATIENCE, api.create(&params, &review)).await??;
            Ok(read(answer.status.unwrap_or_default(), &self.audiences))
        })
    }
}

/// What the API's answer says. Pure.
pub(super) fn read(status: TokenReviewStatus, audiences: &[String]) -> Verdict {
    let unknown = |reason: &str| Verdict::Unknown(reason.into());
    if status.authenticated != Some(true) {
        return Verdict::Unknown(status.error.unwrap_or_else(|| "not authenticated".into()));
    }
    // An API server that knows nothing of audiences answers without any, and then has not checked them.
    let confirmed = status.audiences.unwrap_or_default();
    if !confirmed.iter().any(|audience| audiences.contains(audience)) {
        return unknown("the token is for another audience");
    }
    let user = status.user.unwrap_or_default();
    if !user.groups.iter().flatten().any(|group| group == "system:serviceaccounts") {
        return unknown("the token is not that of a service account");
    }
    let account = user
        .username
        .as_deref()
        .and_then(|name| name.strip_prefix("system:serviceaccount:"))
        .and_then(|name| name.split_once(':'))
        .filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
    let Some((namespace, name)) = account else {
        return unknown("the token is not that of a service account");
    };
    let extra = |key: &str| -> Option<Arc<str>> {
        let values = user.extra.as_ref()?.get(key)?;
        values.first().map(|value| value.as_str().into())
    };
    let pod =
        extra("authentication.kubernetes.io/pod-name").zip(extra("authentication.kubernetes.io/pod-uid"));
    Verdict::Is(Caller { account: Account { namespace: namespace.into(), name: name.into() }, pod })
}

/// Remembers verdicts for a while.
pub(super) struct Cache {
    reviewer: Arc<dyn Reviewer>,
    known: Mutex<HashMap<[u8; 32], (Instant, Verdict)>>,
}

impl Cache {
    pub fn new(reviewer: Arc<dyn Reviewer>) -> Self {
        Self { reviewer, known: Mutex::new(HashMap::new()) }
    }

    pub async fn review(&self, token: &str) -> Result<Verdict, ReviewError> {
        let digest = digest(token);
        if let Some(verdict) = self.recall(&digest, Instant::now()) {
            return Ok(verdict);
        }
        let verdict = self.reviewer.review(token).await?;
        self.remember(digest, verdict.clone(), Instant::now());
        Ok(verdict)
    }

    pub(super) fn recall(&self, digest: &[u8; 32], now: Instant) -> Option<Verdict> {
        let known = self.known.lock();
        known.get(digest).filter(|(until, _)| now < *until).map(|(_, verdict)| verdict.clone())
    }

    pub(super) fn remember(&self, digest: [u8; 32], verdict: Verdict, now: Instant) {
        let until = now + if matches!(verdict, Verdict::Is(_)) { BELIEVED } else { REFUSED };
        let mut known = self.known.lock();
        if known.len() >= CAPACITY {
            known.retain(|_, (until, _)| now < *until);
        }
        // Full of what is still believed: asking again is only slower, remembering without end is worse.
        if known.len() < CAPACITY {
            known.insert(digest, (until, verdict));
        }
    }
}

pub(super) fn digest(token: &str) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}
