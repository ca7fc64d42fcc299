//! The API server as kube-rs sees it: over TLS, on a loopback port that the test bound.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::TcpListener;
use std::pin::pin;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenRequest, TokenReview};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::events::v1::Event as NewEvent;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
    PostParams, PropagationPolicy, WatchEvent, WatchParams,
};
use kube::runtime::{reflector, watcher};
use kube::{Client, ResourceExt};
use lab::api::{Config, Server};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

async fn server(history: usize) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a loopback port");
    let config = Config {
        listeners: vec![listener],
        sans: vec!["10.96.0.1".into()],
        service_cidr: "10.96.0.0/24".parse().expect("a range"),
    };
    Server::start_remembering(config, history).await.expect("starts")
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("within the test's patience")
}

fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("of its type")
}

fn config_map(name: &str, labels: Value, data: Value) -> ConfigMap {
    of(json!({"metadata": {"name": name, "labels": labels}, "data": data}))
}

fn refused<T: std::fmt::Debug>(result: kube::Result<T>) -> (u16, String, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.reason.clone(), status.message.clone()),
        other => panic!("expected a Status, got {other:?}"),
    }
}

async fn with_account(client: &Client, name: &str) {
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    let account: ServiceAccount = of(json!({"metadata": {"name": name}}));
    accounts.create(&PostParams::default(), &account).await.expect("creates an account");
}

#[tokio::test]
async fn objects_are_created_changed_and_deleted_with_optimistic_concurrency() {
    let server = server(100).await;
    let client = server.client().await.expect("a client");
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let made = maps
        .create(&PostParams::default(), &config_map("a", json!({}), json!({"k": "1"})))
        .await
        .expect("creates");
    assert!(made.uid().is_some() && made.creation_timestamp().is_some() && made.resource_version().is_some());
    let again = maps.create(&PostParams::default(), &config_map("a", json!({}), json!({}))).await;
    assert_eq!(refused(again), (409, "AlreadyExists".into(), "configmaps \"a\" already exists".into()));
    let mut changed = made.clone();
    changed.data = Some(BTreeMap::from([("k".into(), "2".into())]));
    maps.replace("a", &PostParams::default(), &changed).await.expect("the version is the newest");
    let stale = refused(maps.replace("a", &PostParams::default(), &changed).await);
    assert_eq!((stale.0, stale.1.as_str()), (409, "Conflict"));
    assert!(
        stale.2.contains("the object has been modified; please apply your changes to the latest version")
    );
    maps.delete("a", &DeleteParams::default()).await.expect("deletes");
    assert_eq!(refused(maps.get("a").await), (404, "NotFound".into(), "configmaps \"a\" not found".into()));
    server.shutdown().await;
}

#[tokio::test]
async fn a_dry_run_and_an_unchanged_apply_change_nothing() {
    let server = server(100).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client().await.expect("a client"));
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    maps.create(&dry, &config_map("dry", json!({}), json!({}))).await.expect("would create");
    assert_eq!(refused(maps.get("dry").await).0, 404);
    let apply = || async {
        let wanted =
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "1"}});
        maps.patch("a", &PatchParams::apply("me"), &Patch::Apply(wanted)).await.expect("applies")
    };
    let first = apply().await;
    assert_eq!(apply().await.resource_version(), first.resource_version());
    let taken = json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"k": "2"}});
    let conflict = refused(maps.patch("a", &PatchParams::apply("other"), &Patch::Apply(taken.clone())).await);
    assert_eq!((conflict.0, conflict.1.as_str()), (409, "Conflict"));
    let forced =
        maps.patch("a", &PatchParams::apply("other").force(), &Patch::Apply(taken)).await.expect("forced");
    assert_eq!(forced.data.expect("data")["k"], "2");
}

#[tokio::test]
async fn a_watch_tells_what_happened_since_and_what_stopped_matching() {
    let server = server(100).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client().await.expect("a client"));
    let since =
        maps.list(&ListParams::default()).await.expect("lists").metadata.resource_version.expect("a version");
    let post = PostParams::default();
    maps.create(&post, &config_map("a", json!({"app": "x"}), json!({}))).await.expect("creates");
    maps.create(&post, &config_map("b", json!({"app": "y"}), json!({}))).await.expect("creates");
    let relabel = json!({"metadata": {"labels": {"app": "y"}}});
    maps.patch("a", &PatchParams::default(), &Patch::Merge(&relabel)).await.expect("patches");
    maps.delete("b", &DeleteParams::default()).await.expect("deletes");
    let mut stream =
        pin!(maps.watch(&WatchParams::default().labels("app=x"), &since).await.expect("watches"));
    let mut seen = Vec::new();
    while seen.len() < 2 {
        match soon(stream.try_next()).await.expect("no error").expect("no end") {
            WatchEvent::Added(o) => seen.push(format!("ADDED {}", o.name_any())),
            WatchEvent::Deleted(o) => seen.push(format!("DELETED {}", o.name_any())),
            other => panic!("unexpected {other:?}"),
        }
    }
    assert_eq!(seen, ["ADDED a", "DELETED a"]);
    server.shutdown().await;
    assert!(soon(stream.next()).await.is_none_or(|end| end.is_err()), "the watch ends with the server");
}

#[tokio::test]
async fn a_version_that_is_no_longer_remembered_is_410_and_a_reflector_recovers() {
    let server = server(3).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client().await.expect("a client"));
    let since =
        maps.list(&ListParams::default()).await.expect("lists").metadata.resource_version.expect("a version");
    for n in 0..6 {
        let map = config_map(&format!("m{n}"), json!({}), json!({}));
        maps.create(&PostParams::default(), &map).await.expect("creates");
    }
    let mut stream = pin!(maps.watch(&WatchParams::default(), &since).await.expect("watches"));
    match soon(stream.try_next()).await.expect("an event").expect("no end") {
        WatchEvent::Error(status) => assert_eq!((status.code, status.reason.as_str()), (410, "Expired")),
        other => panic!("expected an error, got {other:?}"),
    }
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let (store, writer) = reflector::store();
        let events = reflector(writer, watcher(maps.clone(), config));
        let mut driven = pin!(events.try_for_each(|_| async { Ok(()) }));
        soon(async {
            tokio::select! {
                ended = &mut driven => panic!("the reflector ended: {ended:?}"),
                ready = store.wait_until_ready() => ready.expect("ready"),
            }
        })
        .await;
        assert_eq!(store.state().len(), 6);
    }
}

#[tokio::test]
async fn a_limited_list_goes_on_where_it_stopped() {
    let server = server(100).await;
    let maps: Api<ConfigMap> = Api::default_namespaced(server.client().await.expect("a client"));
    for n in 0..5 {
        let map = config_map(&format!("m{n}"), json!({}), json!({}));
        maps.create(&PostParams::default(), &map).await.expect("creates");
    }
    let (mut params, mut names) = (ListParams::default().limit(2), Vec::new());
    loop {
        let page = maps.list(&params).await.expect("lists");
        names.extend(page.items.iter().map(ResourceExt::name_any));
        match page.metadata.continue_.filter(|c| !c.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => break,
        }
    }
    assert_eq!(names, ["m0", "m1", "m2", "m3", "m4"]);
    assert_eq!(refused(maps.list(&ListParams::default().fields("data.k=1")).await).0, 400);
}

#[tokio::test]
async fn a_pods_token_is_what_the_review_says_until_the_pod_is_gone() {
    let server = server(100).await;
    let client = server.client().await.expect("a client");
    with_account(&client, "shop").await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod: Pod = of(json!({
        "metadata": {"name": "p"},
        "spec": {"serviceAccountName": "shop", "containers": [{"name": "c", "image": "i"}]},
    }));
    let pod = pods.create(&PostParams::default(), &pod).await.expect("creates");
    let volume =
        pod.spec.as_ref().and_then(|s| s.volumes.as_ref()).and_then(|v| v.first()).expect("a token volume");
    assert!(volume.name.starts_with("kube-api-access-"), "{}", volume.name);
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client.clone());
    let request: TokenRequest = of(json!({"spec": {
        "audiences": ["istio-ca"],
        "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": pod.uid()},
    }}));
    let token =
        accounts.create_token_request("shop", &PostParams::default(), &request).await.expect("a token");
    let token = token.status.expect("a status").token;
    let review = |audience: &str| {
        let reviews: Api<TokenReview> = Api::all(client.clone());
        let review: TokenReview = of(json!({"spec": {"token": token, "audiences": [audience]}}));
        async move {
            reviews.create(&PostParams::default(), &review).await.expect("reviews").status.expect("a status")
        }
    };
    let good = review("istio-ca").await;
    let user = good.user.expect("a user");
    assert_eq!((good.authenticated, good.audiences), (Some(true), Some(vec!["istio-ca".into()])));
    assert_eq!(user.username.as_deref(), Some("system:serviceaccount:default:shop"));
    let extra = user.extra.expect("extra");
    assert_eq!(extra["authentication.kubernetes.io/pod-name"], ["p"]);
    assert_eq!(extra["authentication.kubernetes.io/pod-uid"], [pod.uid().expect("a uid")]);
    assert_ne!(review("another").await.authenticated, Some(true));
    pods.delete("p", &DeleteParams::default()).await.expect("deletes");
    assert_ne!(review("istio-ca").await.authenticated, Some(true));
}

#[tokio::test]
async fn a_token_for_the_api_is_a_way_in_and_nothing_else_is() {
    let server = server(100).await;
    let client = server.client().await.expect("a client");
    with_account(&client, "robot").await;
    let accounts: Api<ServiceAccount> = Api::default_namespaced(client);
    let token = |audiences: Value| {
        let request: TokenRequest = of(json!({"spec": {"audiences": audiences}}));
        let accounts = accounts.clone();
        async move {
            let made = accounts.create_token_request("robot", &PostParams::default(), &request).await;
            made.expect("a token").status.expect("a status").token
        }
    };
    let with = |token: String| {
        let mut kubeconfig = serde_json::to_value(server.admin_kubeconfig("x")).expect("a value");
        kubeconfig["users"][0]["user"] = json!({ "token": token });
        async move {
            let config = kube::Config::from_custom_kubeconfig(of(kubeconfig), &Default::default())
                .await
                .expect("valid");
            Client::try_from(config).expect("a client")
        }
    };
    let me: Api<SelfSubjectReview> = Api::all(with(token(json!([])).await).await);
    let review: SelfSubjectReview = of(json!({}));
    let who =
        me.create(&PostParams::default(), &review).await.expect("let in").status.and_then(|s| s.user_info);
    assert_eq!(who.and_then(|u| u.username).as_deref(), Some("system:serviceaccount:default:robot"));
    for bad in [token(json!(["istio-ca"])).await, "nonsense".to_owned()] {
        let maps: Api<ConfigMap> = Api::default_namespaced(with(bad).await);
        assert_eq!(refused(maps.list(&ListParams::default()).await).0, 401);
    }
}

#[tokio::test]
async fn services_get_addresses_of_their_own_and_pods_are_defaulted() {
    let server = server(100).await;
    let client = server.client().await.expect("a client");
    let services: Api<Service> = Api::default_namespaced(client);
    let make = |name: &str, spec: Value| {
        let service: Service = of(json!({"metadata": {"name": name}, "spec": spec}));
        let services = services.clone();
        async move { services.create(&PostParams::default(), &service).await }
    };
    let kubernetes = services.get("kubernetes").await.expect("there from the start").spec.expect("a spec");
    assert_eq!(kubernetes.cluster_ip.as_deref(), Some("10.96.0.1"));
    let one = make("one", json!({"ports": [{"port": 80}]})).await.expect("creates").spec.expect("a spec");
    let two = make("two", json!({"ports": [{"port": 80}]})).await.expect("creates").spec.expect("a spec");
    assert_ne!(one.cluster_ip, two.cluster_ip);
    assert_eq!((one.type_.as_deref(), one.session_affinity.as_deref()), (Some("ClusterIP"), Some("None")));
    let headless =
        make("none", json!({"clusterIP": "None", "ports": [{"port": 80}]})).await.expect("creates");
    assert_eq!(headless.spec.expect("a spec").cluster_ips, Some(vec!["None".into()]));
    let taken = refused(make("three", json!({"clusterIP": one.cluster_ip, "ports": [{"port": 80}]})).await);
    assert_eq!(taken.0, 422);
    assert!(taken.2.contains("provided IP is already allocated"), "{}", taken.2);
}

#[tokio::test]
async fn a_crd_is_served_at_once_with_its_schema_versions_and_status() {
    let server = server(100).await;
    let client = server.client().await.expect("a client");
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
        "spec": {"type": "object", "required": ["size"], "properties": {
            "size": {"type": "integer", "minimum": 1}, "color": {"type": "string", "default": "red"},
        }},
        "status": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }}});
    let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": schema, "subresources": {"status": {}}});
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "things.example.com"},
        "spec": {"group": "example.com", "scope": "Namespaced", "names": {"plural": "things", "kind": "Thing"},
                 "versions": [version("v1alpha1", false), version("v1", true)]},
    });
    let crd_kind = ApiResource::from_gvk(&GroupVersionKind::gvk(
        "apiextensions.k8s.io",
        "v1",
        "CustomResourceDefinition",
    ));
    let crds: Api<DynamicObject> = Api::all_with(client.clone(), &crd_kind);
    let made = crds.create(&PostParams::default(), &of(crd)).await.expect("creates");
    assert_eq!(made.data["status"]["conditions"][1]["type"], "Established");
    let things = |version: &str| -> Api<DynamicObject> {
        let kind = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("example.com", version, "Thing"),
            "things",
        );
        Api::default_namespaced_with(client.clone(), &kind)
    };
    let thing = |spec: Value| -> DynamicObject {
        of(json!({"apiVersion": "example.com/v1", "kind": "Thing", "metadata": {"name": "t"}, "spec": spec}))
    };
    let post = PostParams::default();
    for bad in [json!({}), json!({"size": 0}), json!({"size": "big"})] {
        assert_eq!(refused(things("v1").create(&post, &thing(bad.clone())).await).0, 422, "{bad}");
    }
    let made = things("v1").create(&post, &thing(json!({"size": 2, "unknown": 1}))).await.expect("creates");
    assert_eq!(made.data["spec"], json!({"size": 2, "color": "red"}));
    let status = json!({"status": {"ready": true}, "spec": {"size": 9}});
    let patched = things("v1")
        .patch_status("t", &PatchParams::default(), &Patch::Merge(&status))
        .await
        .expect("patches");
    assert_eq!(
        (patched.data["spec"]["size"].clone(), patched.data["status"].clone()),
        (json!(2), json!({"ready": true}))
    );
    assert_eq!(patched.metadata.generation, Some(1));
    let other = things("v1alpha1").get("t").await.expect("served in its other version, too");
    assert_eq!(other.types.expect("types").api_version, "example.com/v1alpha1");
    crds.delete("things.example.com", &DeleteParams::default()).await.expect("deletes");
    assert_eq!(refused(things("v1").list(&ListParams::default()).await).0, 404);
}

#[tokio::test]
async fn deletion_waits_for_finalizers_grace_and_owners() {
    let server = server(100).await;
    let client = server.client().await.expect("a client");
    with_account(&client, "default").await;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let held: ConfigMap = of(json!({"metadata": {"name": "held", "finalizers": ["example.com/hold"]}}));
    maps.create(&PostParams::default(), &held).await.expect("creates");
    maps.delete("held", &DeleteParams::default()).await.expect("starts deleting");
    assert!(maps.get("held").await.expect("still there").metadata.deletion_timestamp.is_some());
    let release = json!({"metadata": {"finalizers": null}});
    maps.patch("held", &PatchParams::default(), &Patch::Merge(&release)).await.expect("releases");
    assert_eq!(refused(maps.get("held").await).0, 404);
    let owner = config_map("owner", json!({}), json!({}));
    maps.create(&PostParams::default(), &owner).await.expect("creates");
    let foreground =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..Default::default() };
    maps.delete("owner", &foreground).await.expect("starts deleting");
    assert_eq!(maps.get("owner").await.expect("still there").finalizers(), ["foregroundDeletion"]);
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod: Pod = of(
        json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i"}]}}),
    );
    pods.create(&PostParams::default(), &pod).await.expect("creates");
    pods.delete("p", &DeleteParams::default()).await.expect("starts deleting");
    assert_eq!(pods.get("p").await.expect("still there").metadata.deletion_grace_period_seconds, Some(30));
    pods.delete("p", &DeleteParams::default().grace_period(0)).await.expect("deletes");
    assert_eq!(refused(pods.get("p").await).0, 404);
    let namespaces: Api<Namespace> = Api::all(client.clone());
    namespaces
        .create(&PostParams::default(), &of(json!({"metadata": {"name": "gone"}})))
        .await
        .expect("creates");
    namespaces.delete("gone", &DeleteParams::default()).await.expect("starts deleting");
    let inside: Api<ConfigMap> = Api::namespaced(client, "gone");
    assert_eq!(refused(inside.create(&PostParams::default(), &owner).await).0, 403);
}

#[tokio::test]
async fn events_of_both_groups_are_the_same_events() {
    let server = server(100).await;
    let client = server.client().await.expect("a client");
    let new: Api<NewEvent> = Api::default_namespaced(client.clone());
    let event: NewEvent = of(json!({
        "metadata": {"name": "e"}, "eventTime": "2026-01-01T00:00:00.000000Z", "reason": "Started", "type": "Normal",
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"}, "note": "it runs", "action": "Start",
        "reportingController": "test", "reportingInstance": "test-1",
    }));
    new.create(&PostParams::default(), &event).await.expect("creates");
    let old: Api<Event> = Api::default_namespaced(client);
    let found = old.list(&ListParams::default().fields("involvedObject.name=p")).await.expect("lists");
    assert_eq!(found.items[0].message.as_deref(), Some("it runs"));
}

#[tokio::test]
async fn autoscalers_are_served_in_the_version_that_controllers_ask_for() {
    let server = server(1000).await;
    let client = server.client().await.expect("a client");
    let scalers: Api<HorizontalPodAutoscaler> = Api::default_namespaced(client);
    let scaler = of(json!({
        "metadata": {"name": "gateway"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "gateway"},
            "maxReplicas": 3,
            "metrics": [{"type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}],
        },
    }));
    scalers.create(&PostParams::default(), &scaler).await.expect("creates one");
    let list = scalers.list(&ListParams::default()).await.expect("lists them");
    let metrics = list.items[0].spec.as_ref().and_then(|spec| spec.metrics.as_ref()).expect("kept");
    assert_eq!(metrics[0].resource.as_ref().map(|of| of.name.as_str()), Some("cpu"));
}
