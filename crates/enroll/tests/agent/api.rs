//! As much of a Kubernetes API as the agent asks for: pods, namespaces and one DaemonSet.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use http::{Request, Response};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Bytes, Frame};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, std::io::Error>;

/// The state of the API; clones share it.
#[derive(Clone)]
pub struct Api(Arc<Inner>);

struct Inner {
    state: Mutex<State>,
    events: broadcast::Sender<(&'static str, u64, Value)>,
}

#[derive(Default)]
struct State {
    version: u64,
    pods: BTreeMap<String, Value>,
    namespaces: BTreeMap<String, Value>,
    daemonset: bool,
}

impl Api {
    pub fn new() -> Self {
        let state = State { daemonset: true, ..State::default() };
        Self(Arc::new(Inner { state: Mutex::new(state), events: broadcast::channel(1024).0 }))
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, std::convert::Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    pub fn namespace(&self, name: &str, mode: Option<&str>) {
        let labels = mode.map_or(json!({}), |mode| json!({"istio.io/dataplane-mode": mode}));
        self.put("namespaces", name, json!({"metadata": {"name": name, "labels": labels}}));
    }

    pub fn put_pod(&self, name: &str, pod: Value) {
        self.put("pods", name, pod);
    }

    pub fn pod(&self, name: &str) -> Option<Value> {
        self.0.state.lock().pods.get(name).cloned()
    }

    pub fn patch_pod(&self, name: &str, patch: &Value) {
        let mut pod = self.pod(name).unwrap();
        merge(&mut pod, patch);
        self.put("pods", name, pod);
    }

    pub fn delete_pod(&self, name: &str) {
        let mut state = self.0.state.lock();
        state.version += 1;
        let pod = state.pods.remove(name).unwrap();
        let _ = self.0.events.send(("pods", state.version, json!({"type": "DELETED", "object": pod})));
    }

    pub fn remove_daemonset(&self) {
        self.0.state.lock().daemonset = false;
    }

    fn put(&self, kind: &'static str, name: &str, mut object: Value) {
        let mut state = self.0.state.lock();
        state.version += 1;
        let version = state.version;
        object["metadata"]["resourceVersion"] = version.to_string().into();
        let all = if kind == "pods" { &mut state.pods } else { &mut state.namespaces };
        let event = if all.contains_key(name) { "MODIFIED" } else { "ADDED" };
        all.insert(name.to_owned(), object.clone());
        let _ = self.0.events.send((kind, version, json!({"type": event, "object": object})));
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let query = parts.uri.query().unwrap_or_default();
        let watch = query.contains("watch=true") || query.contains("watch=1");
        let steps: Vec<&str> = path.trim_matches('/').split('/').collect();
        match steps.as_slice() {
            ["api", "v1", kind @ ("pods" | "namespaces")] if watch => self.watch(kind),
            ["api", "v1", kind @ ("pods" | "namespaces")] => self.list(kind),
            ["api", "v1", "namespaces", name] => found(self.0.state.lock().namespaces.get(*name).cloned()),
            ["api", "v1", "namespaces", _, "pods", name] => found(self.pod(name)),
            ["api", "v1", "namespaces", _, "pods", name, "status"] => {
                let patch: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
                if self.pod(name).is_some() {
                    self.patch_pod(name, &patch);
                }
                found(self.pod(name))
            }
            ["api", "v1", "namespaces", "ambit-system", "serviceaccounts", "ambit-cni", "token"] => {
                let status =
                    json!({"token": "the plugin's token", "expirationTimestamp": "2100-01-01T00:00:00Z"});
                json_response(201, &json!({"metadata": {}, "spec": {"audiences": []}, "status": status}))
            }
            ["apis", "apps", "v1", "namespaces", "ambit-system", "daemonsets", "ambit-agent"] => {
                let there = self.0.state.lock().daemonset;
                found(there.then(|| json!({"metadata": {"name": "ambit-agent"}})))
            }
            _ => found(None),
        }
    }

    fn list(&self, kind: &str) -> Response<Body> {
        let state = self.0.state.lock();
        let all = if kind == "pods" { &state.pods } else { &state.namespaces };
        let items: Vec<Value> = all.values().cloned().collect();
        json_response(
            200,
            &json!({"metadata": {"resourceVersion": state.version.to_string()}, "items": items}),
        )
    }

    /// Replays what there is and goes on: the agent must bear seeing an object again.
    fn watch(&self, kind: &str) -> Response<Body> {
        let kind = kind.to_owned();
        let state = self.0.state.lock();
        let events = self.0.events.subscribe();
        let all = if kind == "pods" { &state.pods } else { &state.namespaces };
        let there: Vec<Value> = all.values().map(|o| json!({"type": "MODIFIED", "object": o})).collect();
        let later = tokio_stream::wrappers::BroadcastStream::new(events).filter_map(move |event| {
            let wanted = event.ok().filter(|(of, _, _)| *of == kind).map(|(_, _, event)| event);
            async move { wanted }
        });
        let lines = futures::stream::iter(there)
            .chain(later)
            .map(|event| Ok(Frame::data(Bytes::from(format!("{event}\n")))));
        Response::builder().status(200).body(BodyExt::boxed_unsync(StreamBody::new(lines))).unwrap()
    }
}

fn found(object: Option<Value>) -> Response<Body> {
    match object {
        Some(object) => json_response(200, &object),
        None => {
            let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "message": "not found", "reason": "NotFound", "code": 404});
            json_response(404, &status)
        }
    }
}

fn json_response(status: u16, value: &Value) -> Response<Body> {
    let body = http_body_util::Full::new(Bytes::from(value.to_string())).map_err(|never| match never {});
    Response::builder().status(status).body(body.boxed_unsync()).unwrap()
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}
