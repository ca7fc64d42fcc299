//! A mesh that is made up: like a real one in shape, the same each time.

use control::input::{AuthorizationPolicy, Namespace, Node, Pod, Service};
use control::model::Settings;
use control::state::{Delta, Event};
use serde_json::{Value, json};

/// Settings of the made-up mesh.
pub fn settings() -> Settings {
    Settings {
        cluster: "Kubernetes".into(),
        trust_domain: "cluster.local".into(),
        trust_domain_aliases: [].into(),
        domain: "cluster.local".into(),
        root_namespace: "ambit-system".into(),
        revision: "default".into(),
    }
}

/// Ten pods a service, ten services a namespace, a policy for every fifth service, a hundred pods a node.
pub struct Mesh {
    pods: usize,
    pub services: usize,
    pub policies: usize,
    pub nodes: usize,
}

fn namespace(pod: usize) -> usize {
    pod / 100
}

fn read<T: serde::de::DeserializeOwned>(object: Value) -> T {
    serde_json::from_value(object).expect("an object")
}

fn pod_object(index: usize) -> Value {
    let (service, [_, high, middle, low]) = (index / 10, (index as u32).to_be_bytes());
    json!({
        "metadata": {
            "name": format!("service-{service}-6c7d8f9b5-{index:05}"), "namespace": format!("team-{}", namespace(index)),
            "uid": format!("uid-{index}"), "generateName": format!("service-{service}-6c7d8f9b5-"),
            "labels": {
                "app": format!("service-{service}"), "version": "v1", "pod-template-hash": "6c7d8f9b5",
                "app.kubernetes.io/part-of": "shop",
            },
            "annotations": { "ambient.istio.io/redirection": "enabled" },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("service-{service}-6c7d8f9b5"), "uid": "u", "controller": true }],
        },
        "spec": {
            "nodeName": format!("node-{}", index / 100), "serviceAccountName": format!("service-{service}"),
            "containers": [{ "name": "app", "ports": [{ "name": "http", "containerPort": 8080 }] }],
        },
        "status": {
            "phase": "Running", "podIP": format!("10.{high}.{middle}.{low}"),
            "podIPs": [{ "ip": format!("10.{high}.{middle}.{low}") }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn pod(object: Value) -> Pod {
    read::<k8s_openapi::api::core::v1::Pod>(object).into()
}

/// A pod in another state than the turn before: ready in turn and not.
pub fn changed(index: usize, turn: usize) -> Pod {
    let mut object = pod_object(index);
    object["metadata"]["labels"]["version"] = format!("turn-{turn}").into();
    pod(object)
}

/// A step of a pod's restart, and how many pushes it makes.
pub struct Step {
    pub event: Event,
    pub pushes: usize,
}

/// What is heard when a pod is replaced by its successor.
pub fn restart() -> Vec<Step> {
    let old = pod_object(7);
    let mut going = old.clone();
    going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    let mut new = old.clone();
    new["metadata"]["name"] = "service-0-6c7d8f9b5-fresh".into();
    new["metadata"]["uid"] = "uid-fresh".into();
    new["status"]["podIP"] = "10.200.0.1".into();
    new["status"]["podIPs"] = json!([{ "ip": "10.200.0.1" }]);
    let mut pending = new.clone();
    pending["status"] = json!({ "phase": "Pending" });
    let mut starting = new.clone();
    starting["status"]["conditions"] = json!([{ "type": "Ready", "status": "False" }]);
    let put = |object: Value, pushes: usize| Step { event: Event::Pods(Delta::Put(pod(object))), pushes };
    let gone = pod(old).key;
    vec![
        put(pending, 0),
        put(going, 1),
        // Its workload, and once more the policy that is bound to it.
        put(starting, 2),
        put(new, 1),
        Step { event: Event::Pods(Delta::Gone(gone)), pushes: 1 },
    ]
}

impl Mesh {
    /// A mesh of so many pods.
    pub fn of(pods: usize) -> Self {
        Self { pods, services: pods / 10, policies: (pods / 50).min(2000), nodes: (pods / 100).max(1) }
    }

    /// Everything, as it is heard at the start.
    pub fn events(&self) -> Vec<Event> {
        let service = |index: usize| -> Service {
            let [_, high, middle, low] = (index as u32).to_be_bytes();
            read::<k8s_openapi::api::core::v1::Service>(json!({
                "metadata": { "name": format!("service-{index}"), "namespace": format!("team-{}", namespace(index * 10)) },
                "spec": {
                    "selector": { "app": format!("service-{index}") },
                    "clusterIP": format!("172.{}.{middle}.{low}", 16 + high),
                    "clusterIPs": [format!("172.{}.{middle}.{low}", 16 + high)],
                    "ports": [{ "name": "http", "port": 80, "targetPort": "http" }],
                },
            }))
            .into()
        };
        let policy = |index: usize| -> AuthorizationPolicy {
            let of = index * 5;
            let object: kube::core::DynamicObject = read(json!({
                "metadata": { "name": format!("policy-{index}"), "namespace": format!("team-{}", namespace(of * 10)) },
                "spec": {
                    "selector": { "matchLabels": { "app": format!("service-{of}") } },
                    "rules": [{ "from": [{ "source": { "namespaces": ["monitoring", format!("team-{}", namespace(of * 10))] } }] }],
                },
            }));
            object.try_into().expect("a policy")
        };
        let named = |name: String, labels: Value| json!({ "metadata": { "name": name, "labels": labels } });
        let node = |index: usize| -> Node {
            let zone = json!({ "topology.kubernetes.io/region": "r", "topology.kubernetes.io/zone": format!("z{}", index % 3) });
            read::<k8s_openapi::api::core::v1::Node>(named(format!("node-{index}"), zone)).into()
        };
        let team = |index: usize| -> Namespace {
            read::<k8s_openapi::api::core::v1::Namespace>(named(format!("team-{index}"), json!({}))).into()
        };
        vec![
            Event::Mesh(Delta::All(vec![])),
            Event::Nodes(Delta::All((0..self.nodes).map(node).collect())),
            Event::Namespaces(Delta::All((0..=namespace(self.pods)).map(team).collect())),
            Event::Services(Delta::All((0..self.services).map(service).collect())),
            Event::Slices(Delta::All(vec![])),
            Event::Authorizations(Delta::All((0..self.policies).map(policy).collect())),
            Event::Peers(Delta::All(vec![])),
            Event::Entries(Delta::All(vec![])),
            Event::Written(Delta::All(vec![])),
            Event::Gateways(Delta::All(vec![])),
            Event::Classes(Delta::All(vec![])),
            Event::Pods(Delta::All((0..self.pods).map(|index| pod(pod_object(index))).collect())),
        ]
    }
}
