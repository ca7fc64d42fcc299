//! A cluster for the controllers' tests: the API in memory, the controllers, and a kubelet that only pretends.

use std::net::TcpListener;
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Far more than any of it takes.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Cluster {
    pub client: Client,
    _server: lab::api::Server,
    stop: CancellationToken,
    controllers: JoinHandle<anyhow::Result<()>>,
    kubelet: JoinHandle<()>,
}

impl Cluster {
    /// A cluster with these nodes, all ready.
    pub async fn start(nodes: &[&str]) -> Cluster {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let service_cidr = "10.96.0.0/16".parse().unwrap();
        let config = lab::api::Config { listeners: vec![listener], sans: Vec::new(), service_cidr };
        let server = lab::api::Server::start(config).await.unwrap();
        let client = server.client().await.unwrap();
        let (stop, controllers) = start_controllers(&client);
        let kubelet = tokio::spawn(pretend(client.clone()));
        let cluster = Cluster { client, _server: server, stop, controllers, kubelet };
        for node in nodes {
            cluster.add_node(node).await;
        }
        // The API refuses pods of a service account that is not there yet.
        cluster.furnished("default").await;
        cluster
    }

    pub async fn add_node(&self, name: &str) {
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": format!("zone-of-{name}")}},
        });
        let api = Api::<Node>::all(self.client.clone());
        api.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(ready)).await.unwrap();
    }

    /// Ends the controllers and starts them anew.
    pub async fn restart_controllers(&mut self) {
        self.stop.cancel();
        (&mut self.controllers).await.unwrap().unwrap();
        (self.stop, self.controllers) = start_controllers(&self.client);
    }

    pub fn api<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(&self) -> Api<K> {
        Api::namespaced(self.client.clone(), "default")
    }

    /// Creates an object in the namespace `default`.
    pub async fn create<K>(&self, object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + DeserializeOwned,
    {
        self.api::<K>()
            .create(&PostParams::default(), &serde_json::from_value(object).unwrap())
            .await
            .unwrap()
    }

    /// The pods of the namespace `default` with this label.
    pub async fn pods(&self, selector: &str) -> Vec<Pod> {
        self.api::<Pod>().list(&ListParams::default().labels(selector)).await.unwrap().items
    }

    /// Creates a namespace and waits until it has what a new one gets.
    pub async fn namespace(&self, name: &str) {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let api = Api::<Namespace>::all(self.client.clone());
        api.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
        self.furnished(name).await;
    }

    async fn furnished(&self, namespace: &str) {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), namespace);
        eventually("the default service account", async || accounts.get_opt("default").await.unwrap()).await;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop.cancel();
        self.kubelet.abort();
    }
}

fn start_controllers(client: &Client) -> (CancellationToken, JoinHandle<anyhow::Result<()>>) {
    let stop = CancellationToken::new();
    let config = lab::controllers::Config { root_ca: Some("the CA".into()), stop: stop.clone() };
    (stop, tokio::spawn(lab::controllers::run(client.clone(), config)))
}

/// Asks until there is an answer.
pub async fn eventually<T>(what: &str, ask: impl AsyncFn() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(answer) = ask().await {
                return answer;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(answer) => answer,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}

/// Pods with a node run and are ready at once, those of Jobs succeed, and those whose deletion was asked for go.
async fn pretend(client: Client) {
    let all = Api::<Pod>::all(client.clone());
    let mut changes =
        std::pin::pin!(watcher(all, watcher::Config::default()).default_backoff().applied_objects());
    let mut last_ip = 0_u8;
    while let Some(Ok(pod)) = changes.next().await {
        let api: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap());
        let name = pod.name_any();
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
        if pod.metadata.deletion_timestamp.is_some() {
            let _ = api.delete(&name, &DeleteParams::default().grace_period(0)).await;
            continue;
        }
        if pod.spec.as_ref().unwrap().node_name.is_none() || phase != "Pending" {
            continue;
        }
        last_ip += 1;
        let is_job = pod.labels().contains_key("job-name");
        let ready = if is_job || pod.labels().contains_key("broken") { "False" } else { "True" };
        let status = json!({"status": {
            "phase": if is_job { "Succeeded" } else { "Running" },
            "podIP": format!("10.244.0.{last_ip}"),
            "podIPs": [{"ip": format!("10.244.0.{last_ip}")}],
            "conditions": [{"type": "Ready", "status": ready}],
        }});
        let _ = api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await;
    }
}
