//! Whose token it is, and how long that is believed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};

use super::review::{ReviewError, digest, read};
use super::*;

fn status(username: &str, group: &str, audience: Option<&str>) -> TokenReviewStatus {
    let extra = BTreeMap::from([
        ("authentication.kubernetes.io/pod-name".to_string(), vec!["proxy-n1".to_string()]),
        ("authentication.kubernetes.io/pod-uid".to_string(), vec!["u1".to_string()]),
    ]);
    TokenReviewStatus {
        authenticated: Some(true),
        audiences: audience.map(|audience| vec![audience.to_string()]),
        user: Some(UserInfo {
            username: Some(username.into()),
            groups: Some(vec![group.into()]),
            extra: Some(extra),
            ..UserInfo::default()
        }),
        error: None,
    }
}

fn verdict(status: TokenReviewStatus) -> Verdict {
    read(status, &["istio-ca".to_string()])
}

const GROUP: &str = "system:serviceaccounts";
const PROXY: &str = "system:serviceaccount:ambit-system:ambit-proxy";

#[test]
fn a_reviewed_token_names_account_and_pod() {
    let Verdict::Is(caller) = verdict(status(PROXY, GROUP, Some("istio-ca"))) else { panic!("refused") };
    assert_eq!(caller.account.to_string(), "ambit-system/ambit-proxy");
    assert_eq!(caller.pod, Some(("proxy-n1".into(), "u1".into())));
}

#[test]
fn tokens_of_others_or_for_others_are_nobodys() {
    let table = [
        status("jane", GROUP, Some("istio-ca")),
        status("system:serviceaccount:a", GROUP, Some("istio-ca")),
        status("system:serviceaccount::a", GROUP, Some("istio-ca")),
        status(PROXY, "system:authenticated", Some("istio-ca")),
        status(PROXY, GROUP, Some("https://kubernetes.default.svc")),
        status(PROXY, GROUP, None),
        TokenReviewStatus { authenticated: Some(false), ..status(PROXY, GROUP, Some("istio-ca")) },
        TokenReviewStatus::default(),
    ];
    for status in table {
        assert!(matches!(verdict(status.clone()), Verdict::Unknown(_)), "{status:?}");
    }
}

struct Counting {
    asked: AtomicUsize,
    fails: bool,
}

impl Reviewer for Counting {
    fn review<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Verdict, ReviewError>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let answer = if self.fails {
            Err("the API is away".into())
        } else if token == "good" {
            Ok(verdict(status(PROXY, GROUP, Some("istio-ca"))))
        } else {
            Ok(Verdict::Unknown("no".into()))
        };
        Box::pin(std::future::ready(answer))
    }
}

fn reviewer(fails: bool) -> Arc<Counting> {
    Arc::new(Counting { asked: AtomicUsize::new(0), fails })
}

#[tokio::test]
async fn a_valid_token_is_reviewed_once_a_minute() {
    let reviewer = reviewer(false);
    let cache = Cache::new(reviewer.clone());
    for _ in 0..5 {
        assert!(matches!(cache.review("good").await.unwrap(), Verdict::Is(_)));
    }
    assert_eq!(reviewer.asked.load(Ordering::Relaxed), 1);
    let known = |after| cache.recall(&digest("good"), Instant::now() + Duration::from_secs(after)).is_some();
    assert!(known(50));
    assert!(!known(61));
}

#[tokio::test]
async fn a_refused_token_is_asked_about_again_soon() {
    let cache = Cache::new(reviewer(false));
    assert!(matches!(cache.review("bad").await.unwrap(), Verdict::Unknown(_)));
    let known = |after| cache.recall(&digest("bad"), Instant::now() + Duration::from_secs(after)).is_some();
    assert!(known(3));
    assert!(!known(6));
}

fn authenticator(reviewer: Arc<Counting>) -> Authenticator {
    let trusted = vec!["ambit-system/ambit-proxy".parse().unwrap()];
    Authenticator::new(reviewer, "Kubernetes".into(), "cluster.local".into(), trusted, Arc::default())
}

fn request(headers: &[(&'static str, &str)]) -> Request<()> {
    let mut request = Request::new(());
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    request
}

#[tokio::test]
async fn callers_without_a_valid_token_are_unauthenticated() {
    let authenticator = authenticator(reviewer(false));
    let code = async |headers: &[(&'static str, &str)]| {
        authenticator.node_proxy(&request(headers)).await.map(drop).map_err(|status| status.code())
    };
    let unauthenticated = Err(tonic::Code::Unauthenticated);
    assert_eq!(code(&[]).await, unauthenticated);
    assert_eq!(code(&[("authorization", "Bearer ")]).await, unauthenticated);
    assert_eq!(code(&[("authorization", "Basic good")]).await, unauthenticated);
    assert_eq!(code(&[("authorization", "Bearer bad")]).await, unauthenticated);
    assert_eq!(code(&[("authorization", "Bearer good"), ("clusterid", "other")]).await, unauthenticated);
    assert_eq!(code(&[("authorization", "Bearer good"), ("clusterid", "Kubernetes")]).await, Ok(()));
    assert_eq!(code(&[("authorization", "Bearer good")]).await, Ok(()));
}

#[tokio::test]
async fn when_the_api_is_away_a_caller_is_told_to_try_again() {
    let authenticator = authenticator(reviewer(true));
    let status = authenticator.caller(&request(&[("authorization", "Bearer good")])).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable);
}
