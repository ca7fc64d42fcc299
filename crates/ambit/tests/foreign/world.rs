//! A lab of two nodes that are served by two proxies: the foreign one on the first, ours on the second.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service, ServiceAccount};
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, ResourceExt};
use netns::NetNs;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::support::{TestLab, eventually, netns_of};

/// Where the pods are that meet.
pub const NAMESPACE: &str = "meeting";
/// A namespace that stays outside.
pub const OUTSIDE: &str = "outside";
/// The port of the container that keeps a pod alive; everything else is served by the test itself.
const ALIVE: u16 = 7999;
/// The port of every service, and its target.
pub const PORT: u16 = 8080;

const MESH: &str = "ambit-system";

/// Which proxy, and which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one under test as a peer, on `node1`.
    Foreign,
    /// `ambit proxy`, on `node2`.
    Ours,
}

impl Side {
    pub const BOTH: [Self; 2] = [Self::Foreign, Self::Ours];

    pub fn other(self) -> Self {
        match self {
            Self::Foreign => Self::Ours,
            Self::Ours => Self::Foreign,
        }
    }

    /// What its pods' names begin with.
    pub fn name(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Ours => "ours",
        }
    }

    fn node(self) -> &'static str {
        match self {
            Self::Foreign => "node1",
            Self::Ours => "node2",
        }
    }

    fn daemon_set(self) -> &'static str {
        match self {
            Self::Foreign => "ztunnel",
            Self::Ours => "ambit-proxy",
        }
    }
}

/// The foreign proxy.
fn foreign_proxy() -> PathBuf {
    let path = std::env::var_os("AMBIT_FOREIGN_PROXY").map(PathBuf::from);
    let path = path.expect("AMBIT_FOREIGN_PROXY must name the binary of a ztunnel: there is nobody to meet");
    assert!(path.is_file(), "AMBIT_FOREIGN_PROXY={}: there is no such file", path.display());
    path
}

/// A pod whose namespace the test opens sockets in.
pub struct Place {
    pub name: String,
    pub ip: IpAddr,
    pub netns: NetNs,
}

impl Place {
    pub fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip, port)
    }

    pub fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/{NAMESPACE}/sa/{}", self.name)
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

/// The lab with both proxies and two enrolled pods at each.
pub struct World {
    pub lab: TestLab,
    pub client: Client,
    places: Vec<Place>,
}

impl World {
    /// The lab, with the foreign proxy on its first node.
    pub async fn new(purpose: &str) -> Self {
        let binary = foreign_proxy();
        let lab = TestLab::new(purpose);
        lab.must(&["lab", "up", "--name", &lab.name]);
        lab.must(&["install"]);
        let client = lab.client().await;
        let mut world = Self { lab, client, places: Vec::new() };
        world.hand_over_a_node(&binary).await;
        for (namespace, labels) in
            [(NAMESPACE, json!({"istio.io/dataplane-mode": "ambient"})), (OUTSIDE, json!({}))]
        {
            let object = json!({"metadata": {"name": namespace, "labels": labels}});
            let api = Api::<Namespace>::all(world.client.clone());
            api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
        }
        for side in Side::BOTH {
            for number in 0..2 {
                world.start(side, &format!("{}-{number}", side.name())).await;
            }
            let service = json!({
                "metadata": {"name": side.name(), "namespace": NAMESPACE},
                "spec": {"selector": {"app": format!("{}-0", side.name())},
                    "ports": [{"name": "tcp-main", "port": 80, "targetPort": PORT}]},
            });
            let api = Api::<Service>::namespaced(world.client.clone(), NAMESPACE);
            api.create(&PostParams::default(), &serde_json::from_value(service).unwrap()).await.unwrap();
        }
        world
    }

    /// The first node's proxy becomes the foreign one: same variables, same volumes, same account, another program.
    async fn hand_over_a_node(&self, binary: &std::path::Path) {
        let sets = Api::<DaemonSet>::namespaced(self.client.clone(), MESH);
        let ours = sets.get(Side::Ours.daemon_set()).await.unwrap();
        let on = |side: Side| json!({"kubernetes.io/hostname": side.node()});
        let patch = json!({"spec": {"template": {"spec": {"nodeSelector": on(Side::Ours)}}}});
        sets.patch(Side::Ours.daemon_set(), &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();

        let mut spec = serde_json::to_value(ours.spec.unwrap()).unwrap();
        let labels = json!({"app": "foreign-proxy", "istio.io/dataplane-mode": "none"});
        spec["selector"] = json!({"matchLabels": {"app": "foreign-proxy"}});
        spec["template"]["metadata"]["labels"] = labels;
        let pod = &mut spec["template"]["spec"];
        pod["nodeSelector"] = on(Side::Foreign);
        let container = &mut pod["containers"][0];
        container["command"] = json!(["/var/run/foreign/proxy"]);
        container["args"] = json!(["proxy", "ztunnel"]);
        container["volumeMounts"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "foreign", "mountPath": "/var/run/foreign/proxy", "readOnly": true}));
        pod["volumes"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "foreign", "hostPath": {"path": binary, "type": "File"}}));
        let set = json!({"metadata": {"name": Side::Foreign.daemon_set(), "namespace": MESH}, "spec": spec});
        sets.create(&PostParams::default(), &serde_json::from_value(set).unwrap()).await.unwrap();
        eventually("one proxy of each kind to be ready", || async {
            for side in Side::BOTH {
                match self.proxy_pods(side).await.as_slice() {
                    [pod] if is_ready(pod) => {}
                    pods => {
                        let pods: Vec<_> =
                            pods.iter().map(|pod| (pod.name_any(), pod.status.clone())).collect();
                        return Err(format!("{side:?}: {pods:?}\n{}", self.log(side).await));
                    }
                }
            }
            Ok(())
        })
        .await;
    }

    async fn proxy_pods(&self, side: Side) -> Vec<Pod> {
        let app = if side == Side::Ours { "ztunnel" } else { "foreign-proxy" };
        let pods = Api::<Pod>::namespaced(self.client.clone(), MESH);
        let list = pods.list(&ListParams::default().labels(&format!("app={app}"))).await.unwrap();
        list.items
    }

    /// The pod of a proxy.
    pub async fn proxy(&self, side: Side) -> Pod {
        let pods = self.proxy_pods(side).await;
        assert_eq!(pods.len(), 1, "{side:?} has one proxy");
        pods.into_iter().next().unwrap()
    }

    /// The namespace of a proxy's pod, where its metrics and its dump are.
    pub async fn proxy_netns(&self, side: Side) -> NetNs {
        netns_of(&self.proxy(side).await).expect("the proxy runs")
    }

    /// All that a proxy has written.
    pub async fn log(&self, side: Side) -> String {
        let pods = Api::<Pod>::namespaced(self.client.clone(), MESH);
        let mut all = String::new();
        for pod in self.proxy_pods(side).await {
            all += &pods.logs(&pod.name_any(), &Default::default()).await.unwrap_or_default();
        }
        all
    }

    /// A pod on this side's node, with an account of its own name, ready and enrolled.
    pub async fn start(&mut self, side: Side, name: &str) -> &Place {
        self.start_in(NAMESPACE, side, name).await
    }

    /// The same in another namespace.
    pub async fn start_in(&mut self, namespace: &str, side: Side, name: &str) -> &Place {
        let account = json!({"metadata": {"name": name, "namespace": namespace}});
        let accounts = Api::<ServiceAccount>::namespaced(self.client.clone(), namespace);
        accounts.create(&PostParams::default(), &serde_json::from_value(account).unwrap()).await.unwrap();
        let args = ["lab", "app", "--name", name, "--port", &ALIVE.to_string()];
        let pod = json!({
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name, "version": "v1"}},
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "serviceAccountName": name,
                "nodeSelector": {"kubernetes.io/hostname": side.node()},
                "containers": [{"name": "app", "image": "ambit", "args": args,
                    "readinessProbe": {"httpGet": {"path": "/healthz", "port": ALIVE}, "periodSeconds": 1}}],
            },
        });
        let pods = Api::<Pod>::namespaced(self.client.clone(), namespace);
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
        let place = eventually(&format!("{name} to be ready"), || async {
            let pod = pods.get(name).await.map_err(|error| error.to_string())?;
            let enrolled =
                pod.annotations().get("ambient.istio.io/redirection").is_some_and(|v| v == "enabled");
            if !is_ready(&pod) || enrolled != (namespace == NAMESPACE) {
                return Err(format!("{:?} {:?}", pod.annotations(), pod.status));
            }
            let ip = pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()).ok_or("no address")?;
            let netns = netns_of(&pod).ok_or("no process")?;
            Ok(Place { name: name.to_owned(), ip: ip.parse().unwrap(), netns })
        })
        .await;
        self.places.push(place);
        self.places.last().unwrap()
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

    /// The pod `<side>-<number>`.
    pub fn place(&self, side: Side, number: usize) -> &Place {
        self.named(&format!("{}-{number}", side.name()))
    }

    pub fn named(&self, name: &str) -> &Place {
        self.places.iter().find(|place| place.name == name).expect("it was started")
    }

    /// The virtual address of a side's service, whose only endpoint is its pod 0.
    pub async fn service(&self, side: Side) -> SocketAddr {
        let services = Api::<Service>::namespaced(self.client.clone(), NAMESPACE);
        let service = services.get(side.name()).await.unwrap();
        SocketAddr::new(service.spec.unwrap().cluster_ip.unwrap().parse().unwrap(), 80)
    }

    /// Creates or replaces a policy.
    pub async fn apply(&self, kind: &str, name: &str, spec: Value) {
        let (api, resource) = self.policies(kind);
        let object = json!({"apiVersion": resource.api_version, "kind": kind,
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec});
        let manager = PatchParams::apply("test").force();
        api.patch(name, &manager, &Patch::Apply(object)).await.unwrap();
    }

    pub async fn remove(&self, kind: &str, name: &str) {
        self.policies(kind).0.delete(name, &DeleteParams::default()).await.unwrap();
    }

    fn policies(&self, kind: &str) -> (Api<DynamicObject>, ApiResource) {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("security.istio.io", "v1", kind));
        (Api::namespaced_with(self.client.clone(), NAMESPACE, &resource), resource)
    }
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}
