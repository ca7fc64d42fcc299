//! A whole lab node against the lab's API server: real namespaces, CNI plugins and containers. Needs root, runc,
//! the CNI plugins and node-exporter of Debian. The node's processes are `examples/node.rs`, which the test
//! runner builds along.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Event, Node, Pod, ServiceAccount};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::await_condition;
use kube::{Client, ResourceExt};
use lab::api::Server;
use lab::node;
use netns::NetNs;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpSocket;

/// Every wait for the node ends by then.
const PATIENCE: Duration = Duration::from_secs(60);

fn of<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).expect("of its type")
}

fn ip(args: &[&str]) {
    let done = Command::new("ip").args(args).output().expect("ip of iproute2");
    assert!(done.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// An API server and one node of a lab named after this process, so that tests do not meet.
struct Lab {
    client: Client,
    pods: Api<Pod>,
    netns: String,
    lab: String,
    directory: tempfile::TempDir,
    node: Option<tokio::process::Child>,
    _api: Server,
}

impl Lab {
    async fn start(name: &str) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes namespaces and containers: run it as root"
        );
        let lab = format!("t{}{name}", std::process::id());
        let netns = format!("ambit-{lab}-node");
        let api = Server::start(lab::api::Config {
            listeners: vec![TcpListener::bind("127.0.0.1:0").unwrap()],
            sans: vec![],
            service_cidr: "10.96.0.0/16".parse().unwrap(),
        })
        .await
        .unwrap();
        let directory = tempfile::tempdir().unwrap();
        let kubeconfig = directory.path().join("kubeconfig");
        std::fs::write(&kubeconfig, json!(api.admin_kubeconfig(&lab)).to_string()).unwrap();
        let loaded = Kubeconfig::read_from(&kubeconfig).unwrap();
        let loaded =
            kube::Config::from_custom_kubeconfig(loaded, &KubeConfigOptions::default()).await.unwrap();
        let client = Client::try_from(loaded).unwrap();
        let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
        accounts.create(&PostParams::default(), &of(json!({"metadata": {"name": "default"}}))).await.unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
        for map in [
            json!({"metadata": {"name": "kube-root-ca.crt"}, "data": {"ca.crt": "-"}}),
            json!({"metadata": {"name": "settings"}, "data": {"colour": "blue"}}),
        ] {
            maps.create(&PostParams::default(), &of(map)).await.unwrap();
        }

        ip(&["netns", "add", &netns]);
        let mut this = Self {
            pods: Api::namespaced(client.clone(), "default"),
            client,
            netns,
            lab,
            directory,
            node: None,
            _api: api,
        };
        ip(&["-n", &this.netns, "link", "add", "eth0", "type", "veth", "peer", "name", "far0"]);
        ip(&["-n", &this.netns, "addr", "add", "10.231.9.2/24", "dev", "eth0"]);
        ip(&["-n", &this.netns, "link", "set", "eth0", "up"]);
        ip(&["-n", &this.netns, "link", "set", "far0", "up"]);
        ip(&["-n", &this.netns, "link", "set", "lo", "up"]);
        this.spawn();
        let nodes: Api<Node> = Api::all(this.client.clone());
        this.within(
            "the node to be ready",
            await_condition(nodes, "node", |n: Option<&Node>| {
                let conditions = n.and_then(|n| n.status.as_ref()).and_then(|s| s.conditions.as_ref());
                conditions.is_some_and(|c| c.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
            }),
        )
        .await
        .unwrap();
        this
    }

    fn spawn(&mut self) {
        let binary = std::env::current_exe().unwrap();
        let binary = binary.ancestors().nth(2).unwrap().join("examples/node");
        assert!(
            binary.exists(),
            "build it with `cargo build -p ambit-lab --example node`: {}",
            binary.display()
        );
        let config = node::Config {
            lab: self.lab.clone(),
            name: "node".into(),
            netns: format!("/run/netns/{}", self.netns).into(),
            ip: "10.231.9.2".parse().unwrap(),
            pod_cidr: "10.244.9.0/24".parse().unwrap(),
            cluster_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            dns_ip: "10.96.0.10".parse().unwrap(),
            kubeconfig: self.directory.path().join("kubeconfig"),
            state_dir: PathBuf::from("/run/ambit").join(&self.lab).join("node"),
            binary,
            labels: Default::default(),
        };
        self.node = Some(node::spawn(&config).unwrap());
    }

    async fn within<T>(&self, what: &str, wait: impl Future<Output = T>) -> T {
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(done) => done,
            Err(_) => {
                let log = std::fs::read_to_string(format!("/run/ambit/{}/node/node.log", self.lab));
                let pods = self.pods.list(&ListParams::default()).await.map(|l| l.items);
                let status: Vec<_> =
                    pods.iter().flatten().map(|p| (p.name_any(), p.status.clone())).collect();
                panic!(
                    "waited in vain for {what}; the node says: {}\npods: {status:#?}",
                    log.unwrap_or_default()
                );
            }
        }
    }

    async fn create(&self, name: &str, spec: Value) {
        let mut spec = spec;
        spec["nodeName"] = json!("node");
        spec["terminationGracePeriodSeconds"] = json!(1);
        let pod = of(json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": spec}));
        self.pods.create(&PostParams::default(), &pod).await.unwrap();
    }

    async fn until(&self, name: &str, what: &str, holds: impl Fn(&Pod) -> bool) -> Pod {
        let condition = |pod: Option<&Pod>| pod.is_some_and(&holds);
        let pod = self.within(what, await_condition(self.pods.clone(), name, condition)).await.unwrap();
        pod.expect("it is there")
    }

    /// Runs a shell script to its end in a pod of its own; answers its exit code and its last word.
    async fn script(&self, name: &str, script: &str, mut spec: Value) -> (i32, String) {
        spec["restartPolicy"] = json!("Never");
        spec["containers"][0]["name"] = json!("main");
        spec["containers"][0]["image"] = json!("busybox");
        spec["containers"][0]["command"] = json!(["bash", "-c", script]);
        self.create(name, spec).await;
        let pod = self.until(name, "a script to end", |p| matches!(phase(p), "Succeeded" | "Failed")).await;
        let status = pod.status.unwrap().container_statuses.unwrap().remove(0);
        let ended = status.state.unwrap().terminated.expect("it has ended");
        (ended.exit_code, ended.message.unwrap_or_default())
    }

    async fn delete(&self, name: &str) {
        self.pods.delete(name, &DeleteParams::default()).await.unwrap();
        let gone = await_condition(self.pods.clone(), name, |p: Option<&Pod>| p.is_none());
        self.within("a pod to go", gone).await.unwrap();
    }

    /// The pod namespaces that the node's namespaces of mounts hold, seen from outside.
    fn pod_namespaces(&self) -> usize {
        let inside = self.inside();
        std::fs::read_dir(inside.join("run/netns")).unwrap().count()
    }

    /// The root of the node's file systems.
    fn inside(&self) -> PathBuf {
        let starter = self.node.as_ref().and_then(tokio::process::Child::id).expect("the node runs");
        let children = std::fs::read_to_string(format!("/proc/{starter}/task/{starter}/children")).unwrap();
        PathBuf::from(format!("/proc/{}/root", children.trim()))
    }

    async fn stop(&mut self) {
        if let Some(mut node) = self.node.take() {
            node.kill().await.unwrap();
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(self.node.take());
        let _ = Command::new("ip").args(["netns", "del", &self.netns]).output();
        let _ = std::fs::remove_dir_all(format!("/run/ambit/{}", self.lab));
        // The kernel takes a moment to end the processes in them.
        for _ in 0..100 {
            if node::remove_cgroups(&self.lab).is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default()
}

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn restarts(pod: &Pod) -> i32 {
    pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten()).map(|c| c.restart_count).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_answers_on_its_address_and_leaves_nothing_behind() {
    let mut lab = Lab::start("a").await;
    lab.create(
        "exporter",
        json!({
            "initContainers": [{"name": "init", "image": "busybox", "command": ["sh", "-c", "echo made > /shared/x"],
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}]}],
            "containers": [{
                "name": "exporter", "image": "prom/node-exporter:v1.9",
                "args": ["--web.listen-address=:9100", "--collector.disable-defaults", "--collector.textfile",
                    "--collector.textfile.directory=/shared"],
                "ports": [{"name": "metrics", "containerPort": 9100}],
                "readinessProbe": {"httpGet": {"path": "/metrics", "port": "metrics"}},
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
            }],
            "volumes": [{"name": "shared", "emptyDir": {}}],
        }),
    )
    .await;
    let pod = lab.until("exporter", "the exporter to be ready", ready).await;
    let status = pod.status.clone().unwrap();
    assert_eq!((phase(&pod), status.host_ip.as_deref()), ("Running", Some("10.231.9.2")));
    let address: SocketAddr = format!("{}:9100", status.pod_ip.unwrap()).parse().unwrap();

    let netns = NetNs::open(format!("/run/netns/{}", lab.netns)).unwrap();
    let socket = netns.try_run(TcpSocket::new_v4).unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("go_goroutines"), "{answer}");
    assert_eq!(lab.pod_namespaces(), 1);

    lab.delete("exporter").await;
    assert_eq!(lab.pod_namespaces(), 0);
    let left = |path: &str| std::fs::read_dir(lab.inside().join(path)).unwrap().count();
    assert_eq!(
        (left("var/lib/kubelet/pods"), left("run/ambit-node/containers"), left("var/log/pods")),
        (0, 0, 0)
    );
    lab.stop().await;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("ambit-node"), "{mounts}");
    assert!(!std::path::Path::new("/etc/cni/net.d/10-ambit-lab.conflist").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_gets_what_its_pod_says_and_nothing_of_the_host() {
    let lab = Lab::start("b").await;
    let script = r#"
        set -eu
        exec > /dev/termination-log 2>&1
        echo "$GREETING from $POD at $(id -u):$(id -g)"
        cat /settings/colour; echo
        test "$(ip -o -4 address show eth0 | awk '{print $4}' | cut -d/ -f1)" = "$IP"
        grep -q '^nameserver 10.96.0.10$' /etc/resolv.conf
        test "$(hostname)" = facts
        test "$(cut -d. -f2 /var/run/secrets/tokens/token | tr -- -_ +/ | base64 -d 2>/dev/null | grep -c '"aud":\["somebody"\]')" = 1
        test "$(cat /run/secrets/tokens/app)" = facts
        grep -q '/pod'"$UID_"'/' /proc/self/cgroup
        for path in /usr/x /etc/settings; do if touch $path 2>/dev/null; then echo "wrote $path"; fi; done
        echo done
    "#;
    let (code, said) = lab
        .script(
            "facts",
            script,
            json!({
                "securityContext": {"runAsUser": 1234, "runAsGroup": 5678},
                "containers": [{
                    "env": [
                        {"name": "NAME", "value": "world"},
                        {"name": "GREETING", "value": "hello $(NAME)"},
                        {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "UID_", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}},
                        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    ],
                    "volumeMounts": [
                        {"name": "settings", "mountPath": "/settings"},
                        {"name": "tokens", "mountPath": "/var/run/secrets/tokens"},
                    ],
                }],
                "volumes": [
                    {"name": "settings", "configMap": {"name": "settings"}},
                    {"name": "tokens", "projected": {"sources": [
                        {"serviceAccountToken": {"path": "token", "audience": "somebody"}},
                        {"downwardAPI": {"items": [
                            {"path": "app", "fieldRef": {"fieldPath": "metadata.labels['app']"}}]}},
                    ]}},
                ],
            }),
        )
        .await;
    assert_eq!((code, said.as_str()), (0, "hello world from facts at 1234:5678\nblue\ndone\n"));

    // Root in a container, on the node's own network, changes the node's files and none of the host's.
    let mark = format!("ambit-{}-mark", lab.lab);
    let script = format!(
        "set -u; exec > /dev/termination-log 2>&1; touch /usr/{mark} /host/etc/{mark}; touch /host/usr/{mark}; \
         ls /host/etc/cni/net.d; nsenter --net=/host/proc/1/ns/net ip -o -4 address show eth0 | grep -c 10.231.9.2"
    );
    let (code, said) = lab
        .script(
            "root",
            &script,
            json!({
                "hostNetwork": true, "hostPID": true,
                "containers": [{
                    "securityContext": {"privileged": true},
                    "volumeMounts": [
                        {"name": "etc", "mountPath": "/host/etc"},
                        {"name": "usr", "mountPath": "/host/usr"},
                        {"name": "proc", "mountPath": "/host/proc"},
                    ],
                }],
                "volumes": [
                    {"name": "etc", "hostPath": {"path": "/etc"}},
                    {"name": "usr", "hostPath": {"path": "/usr"}},
                    {"name": "proc", "hostPath": {"path": "/proc"}},
                ],
            }),
        )
        .await;
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("Read-only file system") && said.ends_with("10-ambit-lab.conflist\n1\n"), "{said}");
    for directory in ["/usr", "/etc"] {
        assert!(!PathBuf::from(directory).join(&mark).exists(), "{directory} of the host was written");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_network_is_refused_does_not_start_until_it_is_granted() {
    let lab = Lab::start("c").await;
    let etc = json!({
        "containers": [{"volumeMounts": [{"name": "cni", "mountPath": "/cni"}]}],
        "volumes": [{"name": "cni", "hostPath": {"path": "/etc/cni/net.d"}}],
        "hostNetwork": true,
    });
    let chain = r#"sed 's/"plugins": \[/"plugins": [{"type": "not-there"},/' /cni/10-ambit-lab.conflist > /cni/05-chain.conflist"#;
    assert_eq!(lab.script("chain", chain, etc.clone()).await.0, 0);

    lab.create(
        "late",
        json!({"containers": [{"name": "c", "image": "busybox", "command": ["sleep", "600"]}]}),
    )
    .await;
    let events: Api<Event> = Api::namespaced(lab.client.clone(), "default");
    let refused = async {
        loop {
            let all = events.list(&ListParams::default()).await.unwrap();
            let found = all.items.into_iter().find(|e| e.reason.as_deref() == Some("FailedCreatePodSandBox"));
            if let Some(event) = found {
                return event.message.unwrap_or_default();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let message = lab.within("the refusal", refused).await;
    assert!(message.contains("\"not-there\""), "{message}");
    let late = lab.pods.get("late").await.unwrap();
    let ip = late.status.as_ref().and_then(|s| s.pod_ip.clone());
    assert_eq!((phase(&late), ip), ("Pending", None));

    assert_eq!(lab.script("unchain", "rm /cni/05-chain.conflist", etc).await.0, 0);
    lab.until("late", "the pod to start", ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_is_restarted_by_its_probe_and_volumes_follow_their_source() {
    let lab = Lab::start("d").await;
    let command = "until grep -q green /settings/colour; do sleep 0.1; done; rm /tmp/alive; exec sleep 600";
    lab.create(
        "watcher",
        json!({
            "containers": [{
                "name": "c", "image": "busybox",
                "command": ["sh", "-c", format!("touch /tmp/alive; {command}")],
                "readinessProbe": {"exec": {"command": ["test", "-e", "/tmp/alive"]}, "periodSeconds": 1},
                "livenessProbe": {"exec": {"command": ["test", "-e", "/tmp/alive"]}, "periodSeconds": 1, "failureThreshold": 1},
                "volumeMounts": [{"name": "settings", "mountPath": "/settings"}],
            }],
            "volumes": [{"name": "settings", "configMap": {"name": "settings"}}],
        }),
    )
    .await;
    let before = lab.until("watcher", "the pod to be ready", ready).await;
    assert_eq!(restarts(&before), 0);
    let maps: Api<ConfigMap> = Api::namespaced(lab.client.clone(), "default");
    let green = Patch::Merge(json!({"data": {"colour": "green"}}));
    maps.patch("settings", &PatchParams::default(), &green).await.unwrap();
    lab.until("watcher", "the restart", |p| restarts(p) > 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_run_again_after_the_node_was_killed() {
    let mut lab = Lab::start("e").await;
    lab.create(
        "stays",
        json!({"containers": [{"name": "c", "image": "busybox", "command": ["sleep", "600"]}]}),
    )
    .await;
    lab.until("stays", "the pod to run", ready).await;
    lab.stop().await;
    lab.spawn();
    let pod = lab.until("stays", "the pod to run again", |p| ready(p) && restarts(p) == 1).await;
    assert_eq!(phase(&pod), "Running");
}
