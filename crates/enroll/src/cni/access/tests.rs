use std::sync::Arc;

use axum::extract::{Path as UrlPath, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};

use super::super::Known;
use super::super::plugin::{Env, Outcome, run};
use super::*;
use crate::config::known_file;

const AMBIENT: &str = "ambient";
const CERTIFICATE: &str = "\
-----BEGIN CERTIFICATE-----
MIIBbjCCARWgAwIBAgIUGza+N4ZanZ1VGZLIlnXKQtcNPqIwCgYIKoZIzj0EAwIw
DDEKMAgGA1UEAwwBdDAgFw0yNjExMjUxMjU2MTJaGA8yMTI2MTEwMTEyNTYxMlow
DDEKMAgGA1UEAwwBdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABB+0Yq1hmWcm
TdjXQ+wdFAN+CO2bGeBxjKluUyygtOO+FUE+feUcf7niM/vGI5yWcstcUTkLP9jj
qdUWshU0ll+jUzBRMB0GA1UdDgQWBBTbo51n8FdcrMJ2HSkJFKuONp8TYjAfBgNV
HSMEGDAWgBTbo51n8FdcrMJ2HSkJFKuONp8TYjAPBgNVHRMBAf8EBTADAQH/MAoG
CCqGSM49BAMCA0cAMEQCIDvmz/AxR+T/2RfY7l5Pm4CiKq3VkoV4HYgJ4nawGkZv
AiA5Xh7hrReCm6eg4kokqWgasDD92HCfxVq4L6XJ6PeDmw==
-----END CERTIFICATE-----
";

/// An API server on loopback that knows one token and answers 200, or what it is told to.
struct Server {
    dir: tempfile::TempDir,
    server: String,
    state: Arc<parking_lot::Mutex<Seen>>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

struct Seen {
    status: StatusCode,
    asked: Vec<String>,
    /// How it answers who wants a token made.
    making: StatusCode,
    /// For how long tokens are made, and what was asked for.
    life: Duration,
    made: Vec<(String, Value)>,
}

type Shared = State<Arc<parking_lot::Mutex<Seen>>>;

fn labels(mode: Option<&str>) -> Value {
    mode.map_or(json!({}), |mode| json!({"istio.io/dataplane-mode": mode}))
}

/// Names say what is to be answered: `in-…`, `out-…`, `host-…`, `static-…`; anything else has no label.
fn mode(name: &str) -> Option<&'static str> {
    match name.split('-').next() {
        Some("in" | "host" | "static") => Some(AMBIENT),
        Some("out") => Some("none"),
        _ => None,
    }
}

async fn answer(state: Shared, headers: &HeaderMap, what: String, object: Value) -> Response {
    let mut seen = state.lock();
    seen.asked.push(what);
    let known = headers.get("authorization").is_some_and(|token| token == "Bearer the-token");
    let status = if known { seen.status } else { StatusCode::UNAUTHORIZED };
    match status {
        StatusCode::OK => axum::Json(object).into_response(),
        status => refusal(status),
    }
}

async fn pod(
    state: Shared,
    UrlPath((namespace, name)): UrlPath<(String, String)>,
    headers: HeaderMap,
) -> Response {
    let mut pod = json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": []},
        "metadata": {"name": name, "namespace": namespace, "uid": "u-1", "labels": labels(mode(&name))}});
    if name.starts_with("host") {
        pod["spec"]["hostNetwork"] = true.into();
    }
    if name.starts_with("static") {
        pod["metadata"]["uid"] = "of-the-mirror".into();
        pod["metadata"]["annotations"] = json!({MIRROR_ANNOTATION: "u-1"});
    }
    if name.ends_with("earlier") {
        pod["metadata"]["uid"] = "u-0".into();
    }
    answer(state, &headers, format!("{namespace}/{name}"), pod).await
}

async fn namespace(state: Shared, UrlPath(name): UrlPath<String>, headers: HeaderMap) -> Response {
    let object = json!({"apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": labels(mode(&name))}});
    answer(state, &headers, name, object).await
}

async fn make(
    state: Shared,
    UrlPath((namespace, name)): UrlPath<(String, String)>,
    axum::Json(request): axum::Json<Value>,
) -> Response {
    let mut seen = state.lock();
    if seen.making != StatusCode::CREATED {
        return refusal(seen.making);
    }
    seen.made.push((format!("{namespace}/{name}"), request));
    let until = k8s_openapi::jiff::Timestamp::try_from(SystemTime::now() + seen.life).unwrap();
    let answer = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "metadata": {},
        "spec": {"audiences": ["api"]}, "status": {"token": "the-token", "expirationTimestamp": until.to_string()}});
    (StatusCode::CREATED, axum::Json(answer)).into_response()
}

fn refusal(status: StatusCode) -> Response {
    let refusal = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no", "reason": "no",
        "code": status.as_u16()});
    (status, axum::Json(refusal)).into_response()
}

impl Server {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(parking_lot::Mutex::new(Seen {
            status: StatusCode::OK,
            asked: vec![],
            making: StatusCode::CREATED,
            life: LIFE,
            made: vec![],
        }));
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let router = axum::Router::new()
            .route("/api/v1/namespaces/{namespace}/pods/{name}", get(pod))
            .route("/api/v1/namespaces/{name}", get(namespace))
            .route("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", post(make))
            .with_state(state.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await });
        let made = Self { dir, state, task, server };
        // Without TLS no certificate is looked at, but one must be there to be read.
        std::fs::write(made.dir.path().join("ca.crt"), CERTIFICATE).unwrap();
        std::fs::write(made.dir.path().join("token"), "of-the-agent\n").unwrap();
        made.access().leave(Some("the-token"), &made.file()).unwrap();
        made
    }

    fn access(&self) -> Access {
        let file = |name: &str| self.dir.path().join(name);
        Access { server: self.server.clone(), ca_file: file("ca.crt"), token_file: file("token") }
    }

    fn file(&self) -> PathBuf {
        access_file(self.dir.path())
    }

    /// What an agent does that has just started.
    fn keeper(&self) -> Keeper {
        let client = Client::try_from(kube::Config::new(self.server.parse().unwrap())).unwrap();
        Keeper::new(self.access(), client, "ambit-system", self.file())
    }

    /// The token that the plugin has.
    fn left(&self) -> String {
        let there: Value = serde_json::from_slice(&std::fs::read(self.file()).unwrap()).unwrap();
        there["users"][0]["user"]["token"].as_str().unwrap().to_owned()
    }

    fn says(&self, status: StatusCode) {
        self.state.lock().status = status;
    }

    fn knows(&self, namespaces: &[&str]) {
        let known = Known { namespaces: namespaces.iter().map(|name| (*name).to_owned()).collect() };
        known.write(&known_file(self.dir.path())).unwrap();
    }

    /// ADD while no agent is there.
    async fn add(&self, namespace: &str, name: &str, more: Value) -> Outcome {
        let args = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID=u-1");
        let env: Env =
            [("CNI_COMMAND", "ADD"), ("CNI_NETNS", "/var/run/netns/x"), ("CNI_ARGS", args.as_str())]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into_iter()
                .collect();
        let mut input = json!({
            "cniVersion": "1.0.0", "name": "net", "type": "ambit-cni", "cni_agent_run_dir": self.dir.path(),
            "pod_namespace": "ambit-system", "agent_pod_prefix": "ambit-agent-", "exclude_namespaces": ["kube-system"],
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            input[key] = value.clone();
        }
        run(&env, input.to_string().as_bytes()).await
    }

    async fn starts(&self, namespace: &str, name: &str) -> bool {
        self.add(namespace, name, json!({})).await.status == 0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn without_an_agent_pods_are_judged_by_what_the_api_server_shows() {
    let server = Server::start().await;
    // The list is older than the labels: it is right about neither of them.
    server.knows(&["plain-was-in"]);
    for (namespace, name, starts) in [
        ("plain", "in-by-its-own-label", false),
        ("in-since-a-moment", "a", false),
        ("in-since-a-moment", "out-by-its-own-label", true),
        ("plain", "a", true),
        ("plain-was-in", "a", true),
        ("in-since-a-moment", "host-network", true),
        ("plain", "static-in", false),
    ] {
        assert_eq!(server.starts(namespace, name).await, starts, "{namespace}/{name}");
    }
    let refusal = server.add("plain", "in-first", json!({})).await.stdout.unwrap();
    assert_eq!(refusal["code"], 11, "{refusal}");
    let text = refusal["msg"].as_str().unwrap();
    assert!(text.contains("plain/in-first is to be in the mesh") && text.contains("ambit-agent-*"), "{text}");
}

#[tokio::test]
async fn selectors_of_ones_own_hold_for_the_plugin_too() {
    let server = Server::start().await;
    let own = json!({"enablement_selectors": [
        {"podSelector": {"matchLabels": {"istio.io/dataplane-mode": "none"}}}
    ]});
    assert_eq!(server.add("plain", "out-of-the-usual", own.clone()).await.status, 1);
    assert_eq!(server.add("plain", "in-the-usual", own).await.status, 0);
    // Those that cannot be understood are no leave to start.
    let broken = json!({"enablement_selectors": [{"podSelector": 7}]});
    assert_eq!(server.add("plain", "a", broken).await.stdout.unwrap()["code"], 11);
}

#[tokio::test]
async fn an_api_server_that_refuses_to_tell_leaves_it_to_the_list() {
    let server = Server::start().await;
    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN, StatusCode::NOT_FOUND] {
        server.says(status);
        server.knows(&["shop"]);
        // The agent's own pod and what is outside start at once, a pod of the mesh waits: a token may be an old one.
        assert!(server.starts("ambit-system", "ambit-agent-new").await, "{status}");
        assert!(server.starts("plain", "a").await, "{status}");
        assert!(!server.starts("shop", "a").await, "{status}");
        let waits = server.add("plain", "a", json!({"hold_all": true})).await.stdout.unwrap();
        assert_eq!(waits["code"], 11, "{status}");
        let details = waits["details"].as_str().unwrap();
        assert!(details.contains("no answer from the node agent"), "{details}");
        assert!(details.contains("the API server cannot tell either"), "{details}");
    }
    server.says(StatusCode::OK);
    // A pod of that name, but not this one.
    assert!(!server.starts("shop", "a-earlier").await);
    let exempt = server.state.lock().asked.iter().any(|what| what.starts_with("ambit-system"));
    assert!(!exempt, "nobody is asked about the agent's own pod");
}

/// The list may be older than the label that puts the pod into the mesh, so it is no leave to start.
#[tokio::test]
async fn while_neither_agent_nor_api_server_answers_every_pod_waits_but_those_that_are_never_in() {
    let server = Server::start().await;
    server.knows(&[]);
    let gone = Access { server: "http://127.0.0.1:1".to_owned(), ..server.access() };
    for broken in [StatusCode::INTERNAL_SERVER_ERROR, StatusCode::BAD_REQUEST, StatusCode::OK] {
        server.says(broken);
        if broken == StatusCode::OK {
            // Nobody listens there.
            gone.leave(Some("the-token"), &server.file()).unwrap();
        }
        let waits = server.add("plain", "a", json!({})).await.stdout.unwrap();
        assert_eq!(waits["code"], 11, "{broken}: {waits}");
        assert!(
            server.starts("kube-system", "a").await && server.starts("ambit-system", "ambit-agent-new").await
        );
    }
}

#[tokio::test]
async fn the_plugins_token_is_of_an_account_of_its_own_bound_to_no_pod_and_for_root_only() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let server = Server::start().await;
    std::fs::remove_file(server.file()).unwrap();
    let mut keeper = server.keeper();
    keeper.tend().await;
    assert_eq!(server.left(), "the-token");
    let (account, request) = server.state.lock().made[0].clone();
    assert_eq!(account, "ambit-system/ambit-cni");
    assert_eq!(request["spec"]["expirationSeconds"], 86400);
    assert!(request["spec"].get("boundObjectRef").is_none(), "{request}");
    let before = std::fs::metadata(server.file()).unwrap();
    assert_eq!(before.permissions().mode() & 0o777, 0o600);
    assert!(!server.starts("plain", "in-by-its-own-label").await);

    keeper.tend().await;
    assert_eq!(
        std::fs::metadata(server.file()).unwrap().ino(),
        before.ino(),
        "what is right is not written again"
    );
    assert_eq!(server.state.lock().made.len(), 1, "and a young token not replaced");
    std::fs::remove_file(server.file()).unwrap();
    keeper.tend().await;
    assert_eq!((server.left().as_str(), server.state.lock().made.len()), ("the-token", 1));
    // A server that gives it for a moment only is asked again before it ends.
    server.state.lock().life = Duration::ZERO;
    let mut keeper = server.keeper();
    keeper.tend().await;
    keeper.tend().await;
    assert_eq!(server.state.lock().made.len(), 3);
}

#[tokio::test]
async fn an_agent_that_gets_no_token_leaves_what_there_is_and_its_own_where_it_may_have_none() {
    let server = Server::start().await;
    let mut keeper = server.keeper();
    server.state.lock().making = StatusCode::INTERNAL_SERVER_ERROR;
    keeper.tend().await;
    assert_eq!(server.left(), "the-token", "an agent before it left that, for a day");
    std::fs::remove_file(server.file()).unwrap();
    keeper.tend().await;
    assert_eq!(server.left(), "of-the-agent");
    // An installation of before there was such an account: the agent's own token follows its renewals.
    server.state.lock().making = StatusCode::FORBIDDEN;
    std::fs::write(server.dir.path().join("token"), "renewed").unwrap();
    keeper.tend().await;
    assert_eq!(server.left(), "renewed");
    server.state.lock().making = StatusCode::CREATED;
    keeper.tend().await;
    assert_eq!(server.left(), "the-token");
}
