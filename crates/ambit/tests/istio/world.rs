//! A lab in which parts of the mesh are those of Istio. `ambit proxy` serves both nodes.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};
use netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::{TestLab, eventually, netns_of};

/// Where the enrolled pods are.
pub const NAMESPACE: &str = "meeting";
/// A namespace that stays outside.
pub const OUTSIDE: &str = "outside";
/// What the test serves in pods.
pub const PORT: u16 = 8080;
pub const MESH: &str = "ambit-system";
/// The container that keeps a pod alive.
const ALIVE: u16 = 7999;
/// Which pods their node agent enrols.
const SELECTORS: &str = r#"[
    {"podSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}}},
    {"podSelector": {"matchExpressions":
        [{"key": "istio.io/dataplane-mode", "operator": "NotIn", "values": ["none"]}]},
     "namespaceSelector": {"matchLabels": {"istio.io/dataplane-mode": "ambient"}}}]"#;

fn named_by(variable: &str) -> PathBuf {
    let path = std::env::var_os(variable).map(PathBuf::from);
    let path = path.unwrap_or_else(|| panic!("{variable} must name what is to be met"));
    assert!(path.exists(), "{variable}={}: there is no such file", path.display());
    path
}

/// A pod whose namespace the test opens sockets in.
pub struct Place {
    pub name: String,
    pub ip: IpAddr,
    netns: NetNs,
}

impl Place {
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    pub fn listen(&self, port: u16) -> TcpListener {
        let listen = || {
            let socket = TcpSocket::new_v4()?;
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::from(([0, 0, 0, 0], port)))?;
            socket.listen(1024)
        };
        self.netns.try_run(listen).unwrap()
    }

    pub async fn connect(&self, to: SocketAddr) -> std::io::Result<TcpStream> {
        // A socket stays in the namespace that it was made in.
        self.netns.try_run(TcpSocket::new_v4).unwrap().connect(to).await
    }
}

pub struct World {
    pub lab: TestLab,
    pub client: Client,
}

impl World {
    /// A mesh that is all ours.
    pub async fn new(purpose: &str) -> Self {
        let lab = TestLab::new(purpose);
        lab.must(&["lab", "up", "--name", &lab.name]);
        lab.must(&["install"]);
        let client = lab.client().await;
        let world = Self { lab, client };
        for (name, labels) in
            [(NAMESPACE, json!({"istio.io/dataplane-mode": "ambient"})), (OUTSIDE, json!({}))]
        {
            world
                .create(
                    &Api::<Namespace>::all(world.client.clone()),
                    json!({"name": name, "labels": labels}),
                    json!({}),
                )
                .await;
        }
        // What their charts allow them in many rules.
        let subjects: Vec<Value> = ["ambit-control", "ambit-agent"]
            .map(|name| json!({"kind": "ServiceAccount", "name": name, "namespace": MESH}))
            .into();
        let role =
            json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"});
        let bindings = Api::<ClusterRoleBinding>::all(world.client.clone());
        world
            .create(&bindings, json!({"name": "foreign"}), json!({"roleRef": role, "subjects": subjects}))
            .await;
        world
    }

    async fn create<K>(&self, api: &Api<K>, metadata: Value, mut object: Value)
    where
        K: Clone + std::fmt::Debug + serde::de::DeserializeOwned + serde::Serialize,
    {
        object["metadata"] = metadata;
        api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    }

    /// The control plane becomes an istiod: same account, same Service, same Secret with the root.
    pub async fn hand_control_to_istiod(&self) {
        let binary = named_by("AMBIT_FOREIGN_ISTIOD");
        let sets = Api::<Deployment>::namespaced(self.client.clone(), MESH);
        let ours = serde_json::to_value(sets.get("ambit-control").await.unwrap().spec.unwrap()).unwrap();
        let mut pod = ours["template"]["spec"].clone();
        let container = &mut pod["containers"][0];
        container["command"] = json!(["/var/run/foreign/istiod"]);
        container["args"] = json!(["discovery", "--monitoringAddr=:15014", "--domain=cluster.local"]);
        let set = [
            ("SERVICE_ACCOUNT", "ambit-control"),
            ("PILOT_ENABLE_AMBIENT", "true"),
            ("AMBIENT_ENABLE_DRY_RUN_AUTHORIZATION_POLICY", "true"),
            // The name that our proxies call it by.
            ("ISTIOD_CUSTOM_HOST", "ambit-control.ambit-system.svc"),
            ("VALIDATION_WEBHOOK_CONFIG_NAME", ""),
            ("INJECTION_WEBHOOK_CONFIG_NAME", ""),
        ];
        let variables = container["env"].as_array_mut().unwrap();
        variables.extend(set.map(|(name, value)| json!({"name": name, "value": value})));
        container["volumeMounts"] = json!([
            {"name": "foreign", "mountPath": "/var/run/foreign/istiod", "readOnly": true},
            {"name": "certs", "mountPath": "/var/run/secrets/istio-dns"},
            {"name": "cacerts", "mountPath": "/etc/cacerts", "readOnly": true},
            {"name": "tmp", "mountPath": "/tmp"},
        ]);
        pod["volumes"] = json!([
            {"name": "foreign", "hostPath": {"path": binary, "type": "File"}},
            {"name": "certs", "emptyDir": {"medium": "Memory"}},
            {"name": "cacerts", "secret": {"secretName": "cacerts", "optional": true}},
            {"name": "tmp", "emptyDir": {}},
        ]);
        // One after the other: two kinds of control plane at once are not what is met here.
        let patch = json!({"spec": {"strategy": {"type": "Recreate", "rollingUpdate": null}, "template": {"spec": pod}}});
        sets.patch("ambit-control", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        eventually("an istiod to be ready", || async {
            let pods = self.pods("app=ambit-control").await;
            match pods.as_slice() {
                [pod] if is_ready(pod) && !self.foreign("istiod").is_empty() => Ok(()),
                _ => Err(format!("{}\n{}", seen(&pods), self.log("app=ambit-control").await)),
            }
        })
        .await;
    }

    /// The node agents become those of Istio, with their plugin.
    pub async fn hand_nodes_to_istio_cni(&self) {
        let directory = named_by("AMBIT_FOREIGN_CNI");
        let sets = Api::<DaemonSet>::namespaced(self.client.clone(), MESH);
        let ours = sets.get("ambit-agent").await.unwrap();
        // Deleted and not replaced: only then does our agent take its plugin away.
        sets.delete("ambit-agent", &DeleteParams::default()).await.unwrap();
        eventually("our node agents to be gone", || async {
            let pods = self.pods("app=ambit-agent").await;
            if pods.is_empty() { Ok(()) } else { Err(seen(&pods)) }
        })
        .await;
        let mut spec = serde_json::to_value(ours.spec.unwrap()).unwrap();
        let labels =
            json!({"app": "foreign-agent", "k8s-app": "istio-cni-node", "istio.io/dataplane-mode": "none"});
        spec["selector"] = json!({"matchLabels": {"app": "foreign-agent"}});
        spec["template"]["metadata"]["labels"] = labels;
        let pod = &mut spec["template"]["spec"];
        let container = &mut pod["containers"][0];
        container["command"] = json!(["/opt/cni/bin/install-cni"]);
        container["args"] = json!([]);
        let of =
            |name: &str, field: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}});
        let mut variables = vec![
            of("NODE_NAME", "spec.nodeName"),
            of("KUBERNETES_NODE_NAME", "spec.nodeName"),
            of("POD_NAME", "metadata.name"),
            of("POD_NAMESPACE", "metadata.namespace"),
        ];
        let set = [
            ("AMBIENT_ENABLED", "true"),
            ("AMBIENT_ENABLEMENT_SELECTOR", SELECTORS),
            ("AMBIENT_DNS_CAPTURE", "true"),
            ("AMBIENT_IPV6", "true"),
            ("CHAINED_CNI_PLUGIN", "true"),
            ("EXCLUDE_NAMESPACES", "kube-system"),
            ("REPAIR_ENABLED", "false"),
        ];
        variables.extend(set.map(|(name, value)| json!({"name": name, "value": value})));
        container["env"] = variables.into();
        let mounts = container["volumeMounts"].as_array_mut().unwrap();
        mounts.push(json!({"name": "foreign", "mountPath": "/opt/cni/bin", "readOnly": true}));
        let volumes = pod["volumes"].as_array_mut().unwrap();
        volumes.push(json!({"name": "foreign", "hostPath": {"path": directory, "type": "Directory"}}));
        self.create(&sets, json!({"name": "istio-cni-node", "namespace": MESH}), json!({"spec": spec})).await;
        eventually("their node agents to be ready", || async {
            let pods = self.pods("app=foreign-agent").await;
            if pods.len() == 2 && pods.iter().all(is_ready) {
                return Ok(());
            }
            Err(format!("{}\n{}", seen(&pods), self.log("app=foreign-agent").await))
        })
        .await;
    }

    /// The pods of the mesh with this label.
    pub async fn pods(&self, labels: &str) -> Vec<Pod> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), MESH);
        pods.list(&ListParams::default().labels(labels)).await.unwrap().items
    }

    /// All that pods of the mesh have written.
    pub async fn log(&self, labels: &str) -> String {
        let pods = Api::<Pod>::namespaced(self.client.clone(), MESH);
        let mut all = String::new();
        for pod in self.pods(labels).await {
            all += &pods.logs(&pod.name_any(), &Default::default()).await.unwrap_or_default();
        }
        all
    }

    /// Processes of the lab with this program.
    pub fn foreign(&self, program: &str) -> Vec<i32> {
        let lab = format!("ambit-{}/", self.lab.name);
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        all.filter_map(|entry| {
            let pid = entry.file_name().to_string_lossy().parse::<i32>().ok()?;
            let read = |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
            let runs = read("cmdline").split('\0').next().is_some_and(|path| path.ends_with(program));
            (runs && read("cgroup").contains(&lab)).then_some(pid)
        })
        .collect()
    }

    /// Kills every process of this program, and waits until as many new ones run.
    pub async fn kill(&self, program: &str) {
        let victims = self.foreign(program);
        assert!(!victims.is_empty(), "no {program} runs");
        for pid in &victims {
            kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
        }
        eventually(&format!("{program} to come back"), || async {
            let now = self.foreign(program);
            let fresh = now.len() == victims.len() && now.iter().all(|pid| !victims.contains(pid));
            if fresh { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
    }

    /// A pod with an account of its own name and a Service in front, ready and in the mesh if its namespace is.
    pub async fn start(&self, namespace: &str, node: u8, name: &str) -> Place {
        let metadata =
            json!({"name": name, "namespace": namespace, "labels": {"app": name, "version": "v1"}});
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        self.create(&accounts, metadata.clone(), json!({})).await;
        let services = Api::<Service>::namespaced(self.client.clone(), namespace);
        let ports = json!([{"name": "tcp-main", "port": 80, "targetPort": PORT}]);
        self.create(
            &services,
            metadata.clone(),
            json!({"spec": {"selector": {"app": name}, "ports": ports}}),
        )
        .await;
        let args = ["lab", "app", "--name", name, "--port", &ALIVE.to_string()];
        let spec = json!({
            "terminationGracePeriodSeconds": 1,
            "serviceAccountName": name,
            "nodeSelector": {"kubernetes.io/hostname": format!("node{node}")},
            "containers": [{"name": "app", "image": "ambit", "args": args,
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": ALIVE}, "periodSeconds": 1}}],
        });
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        self.create(&pods, metadata, json!({"spec": spec})).await;
        eventually(&format!("{name} to be ready"), || async {
            let pod = pods.get(name).await.map_err(|error| error.to_string())?;
            if !is_ready(&pod) || is_enrolled(&pod) != (namespace == NAMESPACE) {
                return Err(format!("{:?} {:?}", pod.annotations(), pod.status));
            }
            let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()).ok_or("no address")?;
            let netns = netns_of(&pod).ok_or("no process")?;
            Ok(Place { name: name.to_owned(), ip: ip.parse().unwrap(), netns })
        })
        .await
    }

    /// Deletes a pod at once and waits until the API has none of it.
    pub async fn delete(&self, name: &str) {
        let pods = Api::<Pod>::namespaced(self.client.clone(), NAMESPACE);
        pods.delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
        eventually(&format!("{name} to be gone"), || async {
            match pods.get_opt(name).await {
                Ok(None) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// The virtual address of a place's service.
    pub async fn service(&self, place: &Place) -> SocketAddr {
        let services = Api::<Service>::namespaced(self.client.clone(), NAMESPACE);
        let service = services.get(&place.name).await.unwrap();
        SocketAddr::new(service.spec.unwrap().cluster_ip.unwrap().parse().unwrap(), 80)
    }

    /// Creates or replaces a policy.
    pub async fn apply(&self, kind: &str, name: &str, annotations: Value, spec: Value) {
        let (api, resource) = self.policies(kind);
        let metadata = json!({"name": name, "namespace": NAMESPACE, "annotations": annotations});
        let object =
            json!({"apiVersion": resource.api_version, "kind": kind, "metadata": metadata, "spec": spec});
        api.patch(name, &PatchParams::apply("test").force(), &Patch::Apply(object)).await.unwrap();
    }

    pub async fn remove(&self, kind: &str, name: &str) {
        self.policies(kind).0.delete(name, &DeleteParams::default()).await.unwrap();
    }

    fn policies(&self, kind: &str) -> (Api<DynamicObject>, ApiResource) {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("security.istio.io", "v1", kind));
        (Api::namespaced_with(self.client.clone(), NAMESPACE, &resource), resource)
    }

    /// What the admin page or the metrics of each of our proxies says.
    pub async fn ask_proxies(&self, port: u16, path: &str) -> Vec<String> {
        let mut answers = Vec::new();
        for pod in self.pods("app=ztunnel").await {
            let Some(netns) = netns_of(&pod) else { continue };
            let socket = netns.try_run(TcpSocket::new_v4).unwrap();
            let work = async {
                let mut stream = socket.connect(SocketAddr::from(([127, 0, 0, 1], port))).await?;
                stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: proxy\r\n\r\n").as_bytes()).await?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await?;
                Ok::<_, std::io::Error>(answer)
            };
            let answer = tokio::time::timeout(std::time::Duration::from_secs(10), work).await;
            let answer = answer.expect("an answer within 10 s").unwrap();
            answers.push(answer.split_once("\r\n\r\n").expect("a head and a body").1.to_owned());
        }
        answers
    }

    /// Waits until what every proxy knows of the mesh `holds`.
    pub async fn all_know(&self, what: &str, holds: impl Fn(&Value) -> bool) {
        eventually(what, || async {
            let dumps = self.ask_proxies(15000, "/config_dump").await;
            let good = |dump: &String| serde_json::from_str(dump).is_ok_and(|dump| holds(&dump));
            if dumps.len() == 2 && dumps.iter().all(good) { Ok(()) } else { Err(dumps.join("\n")) }
        })
        .await;
    }
}

/// Whether a dump has a workload of this name.
pub fn has_workload(dump: &Value, name: &str) -> bool {
    dump["workloads"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == name))
}

/// Whether a dump has a policy of this name.
pub fn has_policy(dump: &Value, name: &str) -> bool {
    dump["policies"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == name))
}

pub fn is_enrolled(pod: &Pod) -> bool {
    pod.annotations().get("ambient.istio.io/redirection").is_some_and(|value| value == "enabled")
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn seen(pods: &[Pod]) -> String {
    let pods = pods.iter().map(|pod| format!("{}: {:?}", pod.name_any(), pod.status));
    pods.collect::<Vec<_>>().join("\n")
}
