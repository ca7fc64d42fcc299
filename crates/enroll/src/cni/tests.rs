use std::path::PathBuf;
use std::sync::Arc;

use proptest::strategy::Strategy;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::event::Answer;
use super::plugin::{Config, Env, Outcome, run};
use super::server::Failure;
use super::*;
use crate::metrics::Metrics;

fn env(pairs: &[(&str, &str)]) -> Env {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn add_env(namespace: &str, name: &str) -> Env {
    let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_UID=u-1");
    env(&[
        ("CNI_COMMAND", "ADD"),
        ("CNI_NETNS", "/var/run/netns/x"),
        ("CNI_ARGS", &args),
        ("CNI_IFNAME", "eth0"),
    ])
}

fn input(run_dir: &Path) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "net", "type": "ambit-cni",
        "cni_agent_run_dir": run_dir, "pod_namespace": "ambit-system", "agent_pod_prefix": "ambit-agent-",
        "exclude_namespaces": ["kube-system"], "unknown": {"kept": true},
        "prevResult": {
            "cniVersion": "1.0.0", "interfaces": [{"name": "eth0", "sandbox": "/x"}],
            "ips": [{"address": "10.244.1.5/24", "gateway": "10.244.1.1", "interface": 0}], "extra": 1
        }
    })
}

async fn call(env: &Env, input: &Value) -> Outcome {
    run(env, input.to_string().as_bytes()).await
}

fn agent(
    dir: &Path,
    answer: Result<Answer, Failure>,
) -> (Arc<parking_lot::Mutex<Vec<event::Event>>>, CancellationToken) {
    let seen: Arc<parking_lot::Mutex<Vec<event::Event>>> = Arc::default();
    let events = seen.clone();
    let handler: server::Handler = Arc::new(move |question, event| {
        if question == super::server::Question::Judge {
            let wanted = answer.clone().or_else(|failure| match failure {
                Failure::NotEnrolled(_) => Ok(Answer { enrolled: true, reason: None }),
                failure => Err(failure),
            });
            return Box::pin(async move { wanted });
        }
        events.lock().push(event);
        let answer = answer.clone();
        Box::pin(async move { answer })
    });
    let stop = CancellationToken::new();
    let socket = crate::config::event_socket(dir);
    server::serve(&socket, handler, Arc::new(Metrics::default()), stop.clone()).unwrap();
    (seen, stop)
}

#[tokio::test]
async fn add_asks_the_agent_and_passes_the_previous_result_on_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let (seen, _stop) = agent(dir.path(), Ok(Answer { enrolled: true, reason: None }));
    let outcome = call(&add_env("shop", "a"), &input(dir.path())).await;
    assert_eq!(outcome.status, 0);
    assert_eq!(outcome.stdout.unwrap(), input(dir.path())["prevResult"]);
    let event = seen.lock()[0].clone();
    assert_eq!((event.pod_namespace.as_str(), event.pod_name.as_str()), ("shop", "a"));
    assert_eq!(event.addresses(), ["10.244.1.5".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(event.netns, "/var/run/netns/x");
}

#[tokio::test]
async fn a_pod_that_could_not_be_enrolled_does_not_start() {
    let dir = tempfile::tempdir().unwrap();
    let (_seen, _stop) =
        agent(dir.path(), Err(Failure::NotEnrolled("no node proxy is connected".to_owned())));
    let outcome = call(&add_env("shop", "a"), &input(dir.path())).await;
    let error = outcome.stdout.unwrap();
    assert_eq!((outcome.status, &error["code"], &error["cniVersion"]), (1, &json!(100), &json!("1.0.0")));
    assert!(error["msg"].as_str().unwrap().contains("shop/a"));
    assert!(error["details"].as_str().unwrap().contains("no node proxy is connected"));
}

#[tokio::test]
async fn a_pod_that_is_not_to_be_enrolled_starts() {
    let dir = tempfile::tempdir().unwrap();
    let (_seen, _stop) =
        agent(dir.path(), Ok(Answer { enrolled: false, reason: Some("not selected".into()) }));
    assert_eq!(call(&add_env("plain", "a"), &input(dir.path())).await.status, 0);
}

#[tokio::test]
async fn while_the_agent_is_away_only_pods_that_could_be_in_the_mesh_wait() {
    let dir = tempfile::tempdir().unwrap();
    let start = async |namespace: &str, name: &str| {
        call(&add_env(namespace, name), &input(dir.path())).await.status == 0
    };
    // Nothing is known yet.
    assert!(start("ambit-system", "ambit-agent-x2x4z").await);
    assert!(start("kube-system", "coredns").await);
    assert!(!start("plain", "a").await);
    let known = Known { namespaces: ["shop".to_owned()].into() };
    known.write(&crate::config::known_file(dir.path())).unwrap();
    assert!(start("plain", "a").await);
    assert!(!start("shop", "a").await);
    // The exemption is the agent's own: its name in another namespace is nothing.
    assert!(!start("shop", "ambit-agent-x2x4z").await);
    let refusal = call(&add_env("shop", "a"), &input(dir.path())).await.stdout.unwrap();
    assert_eq!(refusal["code"], 11);
    let text = refusal["msg"].as_str().unwrap();
    assert!(text.contains("ambit-agent-*") && text.contains("shop/a") && !text.contains('\n'), "{text}");
    // Where it is wanted so, everybody waits but the agent and what is excluded.
    let mut strict = input(dir.path());
    strict["hold_all"] = true.into();
    assert_ne!(call(&add_env("plain", "a"), &strict).await.status, 0);
    for (namespace, name) in [("ambit-system", "ambit-agent-x2x4z"), ("kube-system", "coredns")] {
        assert_eq!(call(&add_env(namespace, name), &strict).await.status, 0, "{namespace}");
    }
    // A list that cannot be read is no list.
    std::fs::write(crate::config::known_file(dir.path()), b"[").unwrap();
    assert!(!start("plain", "a").await);
}

#[tokio::test]
async fn a_dead_socket_is_an_agent_that_is_away() {
    let dir = tempfile::tempdir().unwrap();
    drop(std::os::unix::net::UnixListener::bind(crate::config::event_socket(dir.path())).unwrap());
    assert_eq!(call(&add_env("shop", "a"), &input(dir.path())).await.stdout.unwrap()["code"], 11);
}

#[tokio::test]
async fn an_agent_that_hangs_is_as_good_as_away_after_the_first_question() {
    let dir = tempfile::tempdir().unwrap();
    let socket = crate::config::event_socket(dir.path());
    // The kernel takes the connection, and nobody ever reads it.
    let _hangs = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let patience = client::Patience { judge: std::time::Duration::from_millis(20), ..Default::default() };
    let event = event::Event { pod_namespace: "plain".into(), pod_name: "a".into(), ..Default::default() };
    let error = client::ask(&socket, &event, patience).await.unwrap_err();
    assert!(matches!(error, client::Error::Unreachable { .. }), "{error}");
}

/// The list says that the namespace is outside; the agent, which knew more, dies between two words.
#[tokio::test]
async fn a_pod_of_which_the_agent_said_that_it_is_to_be_in_does_not_start_when_the_agent_dies_then() {
    let dir = tempfile::tempdir().unwrap();
    Known::default().write(&crate::config::known_file(dir.path())).unwrap();
    let listener = std::os::unix::net::UnixListener::bind(crate::config::event_socket(dir.path())).unwrap();
    listener.set_nonblocking(true).unwrap();
    let cut = Arc::new(tokio::sync::Notify::new());
    let cutting = cut.clone();
    let router =
        axum::Router::new().route("/judge", axum::routing::post(|| async { "{\"enrolled\":true}" })).route(
            "/cmdadd",
            axum::routing::post(move || async move {
                cutting.notify_one();
                std::future::pending::<()>().await;
            }),
        );
    let runtime = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            let serving = tokio::spawn(async move { axum::serve(listener, router).await });
            cut.notified().await;
            serving.abort();
        });
        // All its connections end with it.
        drop(runtime);
    });
    let outcome = call(&add_env("plain", "a"), &input(dir.path())).await;
    runtime.join().unwrap();
    let error = outcome.stdout.unwrap();
    assert_eq!((outcome.status, &error["code"]), (1, &json!(11)), "{error}");
    assert!(error["msg"].as_str().unwrap().contains("plain/a is to be in the mesh"), "{error}");
}

#[tokio::test]
async fn a_foreign_agent_is_asked_the_one_question_it_knows() {
    let dir = tempfile::tempdir().unwrap();
    let socket = crate::config::event_socket(dir.path());
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let router = axum::Router::new().route("/cmdadd", axum::routing::post(|| async { "" }));
    let server = tokio::spawn(async move { axum::serve(listener, router).await });
    assert_eq!(call(&add_env("shop", "a"), &input(dir.path())).await.status, 0);
    server.abort();
}

#[tokio::test]
async fn the_other_commands_succeed_whatever_is_gone() {
    for command in ["DEL", "CHECK", "GC", "STATUS"] {
        let env = env(&[("CNI_COMMAND", command)]);
        for input in [&b""[..], b"{", b"{\"cniVersion\":\"9.9.9\"}"] {
            assert_eq!(run(&env, input).await, Outcome { stdout: None, status: 0 }, "{command}");
        }
    }
    let version =
        run(&env(&[("CNI_COMMAND", "VERSION")]), b"{\"cniVersion\":\"0.4.0\"}").await.stdout.unwrap();
    assert_eq!(version["cniVersion"], "0.4.0");
    assert!(version["supportedVersions"].as_array().unwrap().contains(&json!("1.1.0")));
}

#[tokio::test]
async fn hostile_input_is_an_error_object_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let good = input(dir.path());
    let with = |key: &str, value: Value| {
        let mut changed = good.clone();
        changed[key] = value;
        changed.to_string().into_bytes()
    };
    let inputs: Vec<(Vec<u8>, u32)> = vec![
        (b"".to_vec(), 6),
        (b"null".to_vec(), 6),
        (b"[1]".to_vec(), 6),
        (vec![0xff; 4096], 6),
        ("[".repeat(100_000).into_bytes(), 6),
        (with("cniVersion", json!("2.0.0")), 1),
        (with("cniVersion", json!(7)), 6),
        (with("exclude_namespaces", json!("all")), 6),
        (with("prevResult", json!({"ips": [{"address": "nonsense"}]})), 7),
        (with("prevResult", json!({"ips": [{}]})), 7),
        (with("prevResult", json!({"ip4": 3})), 7),
    ];
    for (input, code) in inputs {
        let outcome = run(&add_env("shop", "a"), &input).await;
        assert_eq!(outcome.status, 1);
        assert_eq!(
            outcome.stdout.unwrap()["code"],
            code,
            "{}",
            String::from_utf8_lossy(&input[..input.len().min(80)])
        );
    }
    for (namespace, name) in [("../shop", "a"), ("shop", "a b"), ("Shop", "a"), ("shop", &"a".repeat(300))] {
        assert_eq!(call(&add_env(namespace, name), &good).await.stdout.unwrap()["code"], 4);
    }
    for command in ["", "EXPLODE"] {
        assert_eq!(call(&env(&[("CNI_COMMAND", command)]), &good).await.stdout.unwrap()["code"], 4);
    }
    for netns in ["", "x", "/var/run/../../etc"] {
        let args = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=a";
        let env = env(&[("CNI_COMMAND", "ADD"), ("CNI_NETNS", netns), ("CNI_ARGS", args)]);
        assert_eq!(call(&env, &good).await.stdout.unwrap()["code"], 4, "{netns}");
    }
}

#[tokio::test]
async fn without_kubernetes_arguments_it_stands_aside() {
    let env = env(&[("CNI_COMMAND", "ADD"), ("CNI_NETNS", "/var/run/netns/x")]);
    let input = json!({"cniVersion": "0.3.1", "name": "net", "type": "ambit-cni"});
    assert_eq!(call(&env, &input).await.stdout.unwrap(), json!({"cniVersion": "0.3.1", "dns": {}}));
}

#[test]
fn addresses_of_all_versions_are_understood() {
    let config: Config = serde_json::from_value(json!({})).unwrap();
    assert_eq!(config.cni_agent_run_dir, PathBuf::from("/var/run/istio-cni"));
    let event: event::Event = serde_json::from_value(json!({
        "Netns": "/var/run/netns/x", "PodName": "a", "PodNamespace": "shop",
        "IPs": [{"Interface": null, "Address": {"IP": "::ffff:10.0.0.5", "Mask": "////AA=="}, "Gateway": ""}]
    }))
    .unwrap();
    assert_eq!(event.addresses(), ["10.0.0.5".parse::<std::net::IpAddr>().unwrap()]);
}

#[tokio::test]
async fn an_agent_that_cannot_tell_yet_holds_up_only_pods_that_could_be_in_the_mesh() {
    let dir = tempfile::tempdir().unwrap();
    let known = Known { namespaces: ["shop".to_owned()].into() };
    known.write(&crate::config::known_file(dir.path())).unwrap();
    let (_seen, _stop) = agent(dir.path(), Err(Failure::CannotTell("the API server refuses".to_owned())));
    assert_eq!(call(&add_env("plain", "a"), &input(dir.path())).await.status, 0);
    let refusal = call(&add_env("shop", "a"), &input(dir.path())).await.stdout.unwrap();
    assert!(refusal["details"].as_str().unwrap().contains("the API server refuses"));
}

proptest::proptest! {
    #[test]
    fn no_input_makes_the_plugin_panic_or_print_anything_but_one_object(
        command in proptest::sample::select(vec!["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION", "X"]),
        args in "(K8S_POD_NAMESPACE=[a-z/.]{0,9};)?(K8S_POD_NAME=.{0,9};?)?.{0,9}",
        input in proptest::prop_oneof![
            proptest::collection::vec(proptest::arbitrary::any::<u8>(), 0..64),
            "\\{\"cniVersion\":\"(1.0.0|0.1.0|7)\",\"cni_agent_run_dir\":\"/nonexistent\",\"prevResult\":(\\{\"ips\":.{0,20}\\}|[0-9]|null)\\}".prop_map(String::into_bytes),
        ],
    ) {
        let env = env(&[("CNI_COMMAND", command), ("CNI_ARGS", &args), ("CNI_NETNS", "/var/run/netns/x")]);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcome = runtime.block_on(run(&env, &input));
        assert_eq!(outcome.status != 0, outcome.stdout.as_ref().is_some_and(|object| object.get("code").is_some()));
    }
}
