//! The observer's API where it is not on loopback, against a Kubernetes API that it did not make itself: the lab's, in
//! memory, with real tokens, roles and bindings. That single namespaces stay hidden is shown in `observe::api`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, Pod, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use kube::Client;
use kube::api::{Api, DeleteParams, PostParams};
use observe::Observer;
use observe::api::auth::{Gate, KubernetesReviewer};
use observe::cluster::{self, Special};
use observe::store::Limits;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpListener;

const PATIENCE: Duration = Duration::from_secs(30);

fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("of its type")
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("within the test's patience")
}

/// An observer that watches this cluster and asks for tokens.
async fn observer(client: &Client) -> SocketAddr {
    let observer = Arc::new(Observer::new(Limits::default(), Observer::wall_clock()));
    let special = Special { system: "ambit-system".into(), excluded: vec!["kube-system".into()] };
    let (found, _) = tokio::sync::watch::channel(Vec::new());
    tokio::spawn(cluster::watch(client.clone(), observer.clone(), special, found));
    soon(async {
        while !observer.directory().synced {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let gate = Gate::tokens(Arc::new(KubernetesReviewer::new(client.clone(), observer.clone())));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a loopback port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(observe::serve::serve(
        listener,
        observe::api::router(observer, gate, Arc::new(|| Ok(()))),
        "the API",
    ));
    address
}

async fn ask(address: SocketAddr, token: Option<&str>) -> (StatusCode, Value) {
    let work = async {
        let stream = tokio::net::TcpStream::connect(address).await.expect("connects");
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("speaks HTTP");
        let driver = tokio::spawn(connection);
        let mut request = http::Request::get("/api/v1/overview").header("host", "observe.example");
        if let Some(token) = token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Empty::<bytes::Bytes>::new()).expect("a request");
        let (head, body) = sender.send_request(request).await.expect("answers").into_parts();
        let body = body.collect().await.expect("a whole answer").to_bytes();
        driver.abort();
        (head.status, serde_json::from_slice(&body).expect("JSON"))
    };
    soon(work).await
}

struct Accounts(Api<ServiceAccount>);

impl Accounts {
    async fn create(&self, name: &str) {
        let account = of(json!({"metadata": {"name": name}}));
        self.0.create(&PostParams::default(), &account).await.expect("creates an account");
    }

    async fn token(&self, name: &str, audiences: Value) -> String {
        let request: TokenRequest = of(json!({"spec": {"audiences": audiences}}));
        let made = self.0.create_token_request(name, &PostParams::default(), &request).await;
        made.expect("a token").status.expect("a status").token
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn beyond_loopback_only_tokens_that_the_kubernetes_api_vouches_for_open_the_pages() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let config = lab::api::Config {
        listeners: vec![listener],
        sans: Vec::new(),
        service_cidr: "10.96.0.0/24".parse().expect("a range"),
    };
    let server = lab::api::Server::start(config).await.expect("starts");
    let client = server.client().await.expect("a client");
    let post = PostParams::default();
    let shop: Namespace =
        of(json!({"metadata": {"name": "shop", "labels": {"istio.io/dataplane-mode": "ambient"}}}));
    Api::<Namespace>::all(client.clone()).create(&post, &shop).await.expect("creates a namespace");
    let accounts = Accounts(Api::default_namespaced(client.clone()));
    for name in ["jane", "joe", "gone"] {
        accounts.create(name).await;
    }
    let may_look: ClusterRole = of(json!({
        "metadata": {"name": "look"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}],
    }));
    Api::all(client.clone()).create(&post, &may_look).await.expect("creates a role");
    let jane_may: ClusterRoleBinding = of(json!({
        "metadata": {"name": "jane"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "look"},
        "subjects": [{"kind": "ServiceAccount", "namespace": "default", "name": "jane"}],
    }));
    Api::all(client.clone()).create(&post, &jane_may).await.expect("creates a binding");
    let pod: Pod =
        of(json!({"metadata": {"name": "cart-0"}, "spec": {"containers": [{"name": "c", "image": "c"}]}}));
    let shop_accounts = Accounts(Api::namespaced(client.clone(), "shop"));
    shop_accounts.create("default").await;
    Api::<Pod>::namespaced(client.clone(), "shop").create(&post, &pod).await.expect("creates a pod");
    let address = observer(&client).await;

    let jane = accounts.token("jane", json!([])).await;
    let (status, overview) = ask(address, Some(&jane)).await;
    assert_eq!(status, StatusCode::OK, "{overview}");
    let rows = overview["namespaces"].as_array().expect("namespaces");
    assert!(rows.iter().any(|row| row["name"] == "shop" && row["labelled"] == true), "{overview}");

    let joe = accounts.token("joe", json!([])).await;
    let (status, said) = ask(address, Some(&joe)).await;
    assert_eq!(status, StatusCode::FORBIDDEN, "whom no role lets look: {said}");

    let (status, said) = ask(address, None).await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
    assert!(said["error"].as_str().expect("what to do").contains("kubectl create token"), "{said}");
    let foreign = accounts.token("jane", json!(["istio-ca"])).await;
    let gone = accounts.token("gone", json!([])).await;
    accounts.0.delete("gone", &DeleteParams::default()).await.expect("deletes");
    let (claims, signature) = jane.rsplit_once('.').expect("signed");
    let other = if signature.starts_with('A') { "B" } else { "A" };
    let forged = format!("{claims}.{other}{}", &signature[1..]);
    for (what, token) in [
        ("for another audience", foreign.as_str()),
        ("of an account that is gone", &gone),
        ("no token", "x"),
        ("forged", &forged),
    ] {
        assert_eq!(ask(address, Some(token)).await.0, StatusCode::UNAUTHORIZED, "{what}");
    }

    // What is remembered opens; what is new cannot be known while the API is away, and is not let in on a guess.
    let new = accounts.token("jane", json!([])).await;
    server.shutdown().await;
    assert_eq!(ask(address, Some(&jane)).await.0, StatusCode::OK);
    assert_eq!(ask(address, Some(&new)).await.0, StatusCode::SERVICE_UNAVAILABLE);
}
