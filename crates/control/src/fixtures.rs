//! Objects for tests, written as they stand in a manifest.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use serde_json::{Value, json};

use crate::input::{
    AuthorizationPolicy, Gateway, Namespace, Node, PeerAuthentication, Pod, Service, ServiceEntry, Slice,
    WorkloadEntry,
};
use crate::model::Settings;

pub(crate) fn settings() -> Settings {
    Settings {
        cluster: "Kubernetes".into(),
        trust_domain: "cluster.local".into(),
        trust_domain_aliases: [].into(),
        domain: "cluster.local".into(),
        root_namespace: "ambit-system".into(),
        revision: "default".into(),
    }
}

/// Lays `over` over `base`, object by object; null takes away (RFC 7396).
pub(crate) fn merge(base: &mut Value, over: Value) {
    let Value::Object(over) = over else { return *base = over };
    if !base.is_object() {
        *base = json!({});
    }
    let Value::Object(base) = base else { return };
    for (key, value) in over {
        match value {
            Value::Null => drop(base.remove(&key)),
            value => merge(base.entry(key).or_insert(Value::Null), value),
        }
    }
}

fn object<K: serde::de::DeserializeOwned>(mut base: Value, over: Value) -> K {
    merge(&mut base, over);
    serde_json::from_value(base).expect("a manifest")
}

/// A ready, captured pod of namespace shop on node n1, with `over` laid over it.
pub(crate) fn pod(name: &str, ip: &str, over: Value) -> Pod {
    let base = json!({
        "metadata": {
            "name": name, "namespace": "shop", "uid": format!("uid-{name}"), "labels": { "app": "web" },
            "annotations": { "ambient.istio.io/redirection": "enabled" },
        },
        "spec": {
            "nodeName": "n1", "serviceAccountName": "web",
            "containers": [{ "name": "c", "ports": [{ "name": "http", "containerPort": 8080 }] }],
        },
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    });
    object::<core::Pod>(base, over).into()
}

/// A service of namespace shop that selects `app: web`.
pub(crate) fn service(name: &str, vip: &str, over: Value) -> Service {
    let base = json!({
        "metadata": { "name": name, "namespace": "shop" },
        "spec": {
            "selector": { "app": "web" }, "clusterIP": vip, "clusterIPs": [vip],
            "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }],
        },
    });
    object::<core::Service>(base, over).into()
}

pub(crate) fn node(name: &str, labels: Value) -> Node {
    object::<core::Node>(json!({ "metadata": { "name": name, "labels": labels } }), json!({})).into()
}

pub(crate) fn namespace(name: &str, over: Value) -> Namespace {
    object::<core::Namespace>(json!({ "metadata": { "name": name } }), over).into()
}

pub(crate) fn slice(name: &str, service: &str, over: Value) -> Slice {
    let base = json!({
        "metadata": { "name": name, "namespace": "shop", "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4", "endpoints": [], "ports": [{ "name": "http", "port": 8080, "protocol": "TCP" }],
    });
    object::<discovery::EndpointSlice>(base, over).into()
}

pub(crate) fn authorization(namespace: &str, name: &str, spec: Value) -> AuthorizationPolicy {
    dynamic(namespace, name, spec).try_into().expect("a policy")
}

pub(crate) fn peer(namespace: &str, name: &str, spec: Value) -> PeerAuthentication {
    dynamic(namespace, name, spec).try_into().expect("a policy")
}

fn dynamic(namespace: &str, name: &str, spec: Value) -> kube::core::DynamicObject {
    let base = json!({ "metadata": { "name": name, "namespace": namespace }, "spec": spec });
    serde_json::from_value(base).expect("an object")
}

/// A custom object with `over` laid over it.
pub(crate) fn custom(namespace: &str, name: &str, over: Value) -> kube::core::DynamicObject {
    object(json!({ "metadata": { "name": name, "namespace": namespace } }), over)
}

pub(crate) fn entry(name: &str, over: Value) -> ServiceEntry {
    custom("shop", name, over).try_into().expect("a service entry")
}

pub(crate) fn written(name: &str, over: Value) -> WorkloadEntry {
    custom("shop", name, over).try_into().expect("a workload entry")
}

/// A waypoint of namespace shop that is ready.
pub(crate) fn gateway(name: &str, over: Value) -> Gateway {
    let mut base = json!({
        "spec": { "gatewayClassName": "istio-waypoint", "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }] },
        "status": { "addresses": [{ "type": "IPAddress", "value": "10.1.9.9" }] },
    });
    merge(&mut base, over);
    custom("shop", name, base).try_into().expect("a gateway")
}

/// A client of an API that gives these answers; to what it has none for, it never answers.
pub(crate) fn api(
    answer: impl Fn(&http::Method, &http::Uri) -> Option<(u16, Value)> + Send + Sync + 'static,
) -> kube::Client {
    let answer = std::sync::Arc::new(answer);
    let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
        let answer = answer(request.method(), request.uri());
        async move {
            let Some((status, body)) = answer else { return std::future::pending().await };
            let body = kube::client::Body::from(serde_json::to_vec(&body)?);
            Ok::<_, tower::BoxError>(http::Response::builder().status(status).body(body)?)
        }
    });
    kube::Client::new(service, "ambit-system")
}
