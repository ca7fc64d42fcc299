//! Who may ask, and what they may see.
//!
//! On loopback everybody on the machine may ask for everything; only the `Host` header is checked, so that a web page
//! of somewhere else cannot have a browser ask in its name (DNS rebinding). Elsewhere a Kubernetes token is needed,
//! and what is shown is limited to namespaces in which its owner may list pods.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use parking_lot::Mutex;

use super::Problem;
use crate::flow::Text;
use crate::graph::Visible;
use crate::observer::Observer;

const BELIEVED: Duration = Duration::from_secs(60);
const REFUSED: Duration = Duration::from_secs(5);
const CAPACITY: usize = 4_096;
const PATIENCE: Duration = Duration::from_secs(10);
/// Reviews of one token at once.
const AT_ONCE: usize = 8;

/// The door.
pub enum Gate {
    /// Loopback.
    Open,
    /// Anything else.
    Tokens(Box<Tokens>),
}

/// What a token opens: nothing is no valid token. An error means that nothing is known.
pub type Opens = Result<Option<Visible>, String>;

/// Says what a token opens.
pub trait Reviewer: Send + Sync + 'static {
    /// Reviews a token.
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Opens>;
}

type Digest = [u8; 32];
/// Until when, and what the token opens.
type Remembered = (Instant, Option<Visible>);

/// Reviews, remembered for a while under the digest of the token.
pub struct Tokens {
    reviewer: Arc<dyn Reviewer>,
    known: Mutex<HashMap<Digest, Remembered>>,
}

impl Gate {
    /// Asks `reviewer` about every token.
    pub fn tokens(reviewer: Arc<dyn Reviewer>) -> Self {
        Self::Tokens(Box::new(Tokens { reviewer, known: Mutex::default() }))
    }
}

impl Tokens {
    async fn opens(&self, token: &str) -> Opens {
        let mut digest = [0; 32];
        let hashed = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes());
        digest.copy_from_slice(hashed.as_ref());
        let now = Instant::now();
        if let Some((until, known)) = self.known.lock().get(&digest)
            && now < *until
        {
            return Ok(known.clone());
        }
        let opens = self.reviewer.review(token).await?;
        let mut known = self.known.lock();
        if known.len() >= CAPACITY {
            known.retain(|_, (until, _)| now < *until);
        }
        if known.len() < CAPACITY {
            let good = if opens.is_some() { BELIEVED } else { REFUSED };
            known.insert(digest, (now + good, opens.clone()));
        }
        Ok(opens)
    }
}

/// Lets a request in with what it may see, or does not.
pub(super) async fn guard(State(gate): State<Arc<Gate>>, mut request: Request, next: Next) -> Response {
    let visible = match &*gate {
        Gate::Open => Ok(Visible::All),
        Gate::Tokens(tokens) => by_token(tokens, bearer(request.headers())).await,
    };
    match visible {
        Ok(visible) => {
            request.extensions_mut().insert(visible);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

/// The token of a request. Its body cannot be shared between threads, so only this is carried on.
fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let token = value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer "))?.trim();
    (!token.is_empty()).then(|| token.to_owned())
}

async fn by_token(tokens: &Tokens, token: Option<String>) -> Result<Visible, Problem> {
    let unauthorized = |text: &str| Problem(StatusCode::UNAUTHORIZED, text.into());
    let Some(token) = token else {
        return Err(unauthorized(
            "a Kubernetes token is needed: send Authorization: Bearer $(kubectl create token ACCOUNT), or use ambit dashboard",
        ));
    };
    match tokens.opens(&token).await {
        Ok(Some(Visible::Namespaces(none))) if none.is_empty() => Err(Problem(
            StatusCode::FORBIDDEN,
            "the owner of this token may list pods in no namespace, so there is nothing to show".into(),
        )),
        Ok(Some(visible)) => Ok(visible),
        Ok(None) => Err(unauthorized("the Kubernetes API does not know this token, or it has expired")),
        Err(reason) => {
            tracing::warn!(reason, "cannot have a token reviewed");
            Err(Problem(
                StatusCode::SERVICE_UNAVAILABLE,
                "the Kubernetes API did not review the token; try again".into(),
            ))
        }
    }
}

/// On loopback, only names of loopback are answered.
pub(super) async fn known_host(State(gate): State<Arc<Gate>>, request: Request, next: Next) -> Response {
    if matches!(*gate, Gate::Open) {
        let named = request.headers().get(header::HOST).and_then(|host| host.to_str().ok());
        let named = named.or_else(|| request.uri().authority().map(|authority| authority.as_str()));
        if !named.is_some_and(is_loopback) {
            let text = "this observer listens on loopback and answers to localhost only";
            return Problem(StatusCode::MISDIRECTED_REQUEST, text.into()).into_response();
        }
    }
    next.run(request).await
}

fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.to_ascii_lowercase().ends_with(".localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Asks the Kubernetes API: TokenReview, then SubjectAccessReview for every namespace.
pub struct KubernetesReviewer {
    client: Client,
    observer: Arc<Observer>,
}

impl KubernetesReviewer {
    /// Namespaces are those that `observer` knows.
    pub fn new(client: Client, observer: Arc<Observer>) -> Self {
        Self { client, observer }
    }

    async fn opens(&self, token: &str) -> Result<Option<Visible>, kube::Error> {
        let review = TokenReview {
            spec: TokenReviewSpec { token: Some(token.into()), audiences: None },
            ..TokenReview::default()
        };
        let api: Api<TokenReview> = Api::all(self.client.clone());
        let status = api.create(&PostParams::default(), &review).await?.status.unwrap_or_default();
        let (Some(true), Some(user)) = (status.authenticated, status.user) else { return Ok(None) };
        if self.may_list(&user, None).await? {
            return Ok(Some(Visible::All));
        }
        let directory = self.observer.directory();
        let names: Vec<Text> = directory.namespaces.keys().cloned().collect();
        let reviews = futures::stream::iter(names).map(|name| {
            let user = user.clone();
            async move { self.may_list(&user, Some(&name)).await.map(|may| may.then(|| name.clone())) }
        });
        let answers: Vec<_> = reviews.buffer_unordered(AT_ONCE).collect().await;
        let mut seen = BTreeSet::new();
        for answer in answers {
            seen.extend(answer?);
        }
        Ok(Some(Visible::Namespaces(seen)))
    }

    async fn may_list(&self, user: &UserInfo, namespace: Option<&str>) -> Result<bool, kube::Error> {
        let attributes = ResourceAttributes {
            namespace: namespace.map(ToOwned::to_owned),
            verb: Some("list".into()),
            resource: Some("pods".into()),
            ..ResourceAttributes::default()
        };
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: user.username.clone(),
                uid: user.uid.clone(),
                groups: user.groups.clone(),
                extra: user.extra.clone(),
                resource_attributes: Some(attributes),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let api: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = api.create(&PostParams::default(), &review).await?;
        Ok(answer.status.is_some_and(|status| status.allowed))
    }
}

impl Reviewer for KubernetesReviewer {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Opens> {
        Box::pin(async move {
            let answer = tokio::time::timeout(PATIENCE, self.opens(token)).await;
            answer.map_err(|_| format!("no answer within {PATIENCE:?}"))?.map_err(|error| error.to_string())
        })
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;
    use crate::directory::Directory;
    use crate::store::Limits;

    /// An API that knows one token, whose owner may list pods in namespace shop.
    async fn api(request: http::Request<Body>) -> Result<http::Response<Body>, std::convert::Infallible> {
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let asked: Value = serde_json::from_slice(&body).unwrap_or_default();
        let status = match path.as_str() {
            "/apis/authentication.k8s.io/v1/tokenreviews" if asked["spec"]["token"] == "good" => {
                json!({ "authenticated": true, "user": { "username": "jane", "groups": ["dev"] } })
            }
            "/apis/authentication.k8s.io/v1/tokenreviews" => {
                json!({ "authenticated": false, "error": "unknown" })
            }
            "/apis/authorization.k8s.io/v1/subjectaccessreviews" => {
                let attributes = &asked["spec"]["resourceAttributes"];
                let pods = attributes["resource"] == "pods" && attributes["verb"] == "list";
                let jane = asked["spec"]["user"] == "jane" && asked["spec"]["groups"] == json!(["dev"]);
                json!({ "allowed": jane && pods && attributes["namespace"] == "shop" })
            }
            other => json!({ "error": format!("{other} was not expected") }),
        };
        let mut answer = asked;
        answer["status"] = status;
        Ok(http::Response::builder()
            .status(201)
            .body(Body::from(serde_json::to_vec(&answer).unwrap()))
            .unwrap())
    }

    #[tokio::test]
    async fn a_token_opens_the_namespaces_in_which_its_owner_may_list_pods() {
        let observer = Arc::new(Observer::new(Limits::default(), Box::new(|| 0)));
        let names = ["shop", "bank", "kube-system"].map(|name| (Text::from(name), true));
        observer.set_directory(Arc::new(Directory::new([], [], names)));
        let client = Client::new(tower::service_fn(api), "default");
        let reviewer = KubernetesReviewer::new(client, observer);
        let only_shop = Visible::Namespaces(["shop".into()].into());
        assert_eq!(Reviewer::review(&reviewer, "good").await, Ok(Some(only_shop)));
        assert_eq!(Reviewer::review(&reviewer, "bad").await, Ok(None));
    }

    #[test]
    fn only_names_of_loopback_are_loopback() {
        for host in ["localhost", "localhost:8089", "127.0.0.1:80", "[::1]:80", "a.localhost:1"] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:80", "10.0.0.1:80", "", "[::2]:80"] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
