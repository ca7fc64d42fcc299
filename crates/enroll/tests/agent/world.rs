//! A node: its network namespace, its pods, its node proxy and its agent.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use enroll::cni::access::Access;
use enroll::cni::plugin::{self, Outcome};
use enroll::config::{CniInstall, Config, PROBE_SNAT_V4, PROBE_SNAT_V6, STATUS_PORT};
use enroll::eligibility::{SelectorPair, default_selectors};
use enroll::firewall::Backend;
use enroll::status::PodStatus;
use netns::NetNs;
use netns::seqpacket::SeqPacket;
use nix::sched::{CloneFlags, unshare};
use parking_lot::Mutex;
use prost::Message;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;
use wire::zds::workload_request::Payload;
use wire::zds::{Ack, WorkloadRequest, WorkloadResponse, ZdsHello, workload_response};

use crate::api::Api;

const PATIENCE: Duration = Duration::from_secs(20);

/// Runs a test in a namespace of its own: the thread moves there, and every thread it makes with it.
pub fn in_a_node(test: impl AsyncFnOnce(&mut World) + Send + 'static) {
    assert!(nix::unistd::geteuid().is_root(), "this test makes network namespaces: run it as root");
    let run = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new();
            test(&mut world).await;
            world.stop_agent().await;
        });
    });
    if let Err(panic) = run.join() {
        std::panic::resume_unwind(panic);
    }
}

#[derive(Default)]
struct Proxy {
    has: BTreeSet<String>,
    refuses: BTreeMap<String, String>,
}

pub struct World {
    pub api: Api,
    dir: tempfile::TempDir,
    pods: BTreeMap<String, NetNs>,
    proxy: Arc<Mutex<Proxy>>,
    proxy_task: Option<tokio::task::JoinHandle<()>>,
    /// Which pods the agent enrols.
    pub selectors: Vec<SelectorPair>,
    /// What the agent writes rules with.
    pub firewall: Backend,
    agent: Option<(CancellationToken, tokio::task::JoinHandle<anyhow::Result<()>>)>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["host/run/netns", "host/net.d", "host/bin", "run"] {
            std::fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        std::fs::write(
            dir.path().join("host/net.d/10-net.conflist"),
            r#"{"name":"n","plugins":[{"type":"bridge"}]}"#,
        )
        .unwrap();
        for (name, content) in
            [("binary", "the plugin"), ("ca.crt", "certificates"), ("token", "the token\n")]
        {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        let bridge = dir.path().join("host/bin/bridge");
        std::fs::write(&bridge, "program").unwrap();
        std::fs::set_permissions(&bridge, std::fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            api: Api::new(),
            dir,
            pods: BTreeMap::new(),
            proxy: Arc::default(),
            proxy_task: None,
            selectors: default_selectors(),
            firewall: Backend::Nft,
            agent: None,
        }
    }

    fn config(&self) -> Config {
        let dir = self.dir.path();
        Config {
            node_name: "node1".into(),
            namespace: "ambit-system".into(),
            daemonset: "ambit-agent".into(),
            selectors: self.selectors.clone(),
            exclude_namespaces: vec!["kube-system".into()],
            dns_capture: false,
            ipv6: true,
            firewall: self.firewall,
            probe_v4: PROBE_SNAT_V4,
            probe_v6: PROBE_SNAT_V6,
            zds_socket: dir.join("z.sock"),
            run_dir: self.run_dir(),
            hold_all: false,
            access: Some(self.access()),
            cni: Some(CniInstall {
                net_dir: dir.join("host/net.d"),
                bin_dir: dir.join("host/bin"),
                node_root: None,
                conf_name: None,
                chained: true,
                binary: dir.join("binary"),
            }),
            host_proc: self.proc(),
            host_root: dir.join("host"),
            monitoring_port: 15014,
            health_port: 8000,
            status_port: STATUS_PORT,
            older_grace: Duration::from_secs(600),
            never_end: vec![],
            safe_upgrade: true,
        }
    }

    fn access(&self) -> Access {
        let dir = self.dir.path();
        let file = |name: &str| dir.join(name);
        Access { server: "https://10.0.0.1:443".into(), ca_file: file("ca.crt"), token_file: file("token") }
    }

    pub fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn start_agent(&mut self) {
        let stop = CancellationToken::new();
        let task = tokio::spawn(enroll::run(self.config(), self.api.client(), stop.clone()));
        self.agent = Some((stop, task));
    }

    pub async fn stop_agent(&mut self) {
        if let Some((stop, task)) = self.agent.take() {
            stop.cancel();
            tokio::time::timeout(PATIENCE, task).await.unwrap().unwrap().unwrap();
            // A process gives up its ports by ending; here its servers end a moment after it.
            for port in [15014, 8000, STATUS_PORT] {
                self.until("the port is free", |_| std::net::TcpListener::bind(("::", port)).is_ok()).await;
            }
        }
    }

    /// A running pod.
    pub fn pod(&mut self, namespace: &str, name: &str, ip: &str) {
        self.new_pod(namespace, name, ip);
        self.api
            .patch_pod(name, &json!({"status": {"phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}]}}));
    }

    /// A pod that has its network, but neither address nor phase in its status.
    pub fn new_pod(&mut self, namespace: &str, name: &str, ip: &str) {
        let made = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            NetNs::current().unwrap()
        });
        self.new_pod_in(namespace, name, ip, made.join().unwrap());
        self.show(name);
    }

    /// The same in a namespace that somebody else made, and that the agent knows nothing of.
    pub fn new_pod_in(&mut self, namespace: &str, name: &str, ip: &str, made: NetNs) {
        let run = |args: &str| {
            let output = made.run(|| Command::new("ip").args(args.split(' ')).output()).unwrap().unwrap();
            assert!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
        };
        run("link set lo up");
        run("link add eth0 type bridge");
        run(&format!("addr add {ip}/24 dev eth0"));
        self.pods.insert(name.to_owned(), made);
        self.api.put_pod(
            name,
            json!({
                "metadata": {"name": name, "namespace": namespace, "uid": format!("uid-{name}"), "annotations": {}},
                "spec": {"nodeName": "node1", "serviceAccountName": "default", "containers": []},
                "status": {"phase": "Pending"},
            }),
        );
    }

    /// One more address of a pod.
    pub fn address(&self, name: &str, ip: &str) {
        output_in(&self.pods[name], &["ip", "addr", "add", &format!("{ip}/64"), "dev", "eth0"]);
    }

    /// Where the agent finds the node's processes.
    pub fn proc(&self) -> PathBuf {
        self.dir.path().join("proc")
    }

    /// What runs in a pod's namespace.
    pub fn spawn_in(&self, name: &str, command: &mut Command) -> std::process::Child {
        self.pods[name].run(|| command.spawn()).unwrap().unwrap()
    }

    fn mount(&self, name: &str) -> PathBuf {
        self.dir.path().join("host/run/netns").join(name)
    }

    /// Takes away what the agent could find the pod's namespace by.
    pub fn hide(&self, name: &str) {
        std::fs::remove_file(self.mount(name)).unwrap();
    }

    /// A link to the descriptor stands in for the runtime's bind mount.
    pub fn show(&self, name: &str) {
        let fd = format!("/proc/{}/fd/{}", std::process::id(), self.pods[name].as_fd().as_raw_fd());
        std::os::unix::fs::symlink(fd, self.mount(name)).unwrap();
    }

    pub fn unplug(&mut self, name: &str) {
        self.hide(name);
        self.pods.remove(name);
    }

    pub async fn cni_add(&self, namespace: &str, name: &str, ip: &str) -> Outcome {
        self.cni_add_at(namespace, name, ip, &format!("/run/netns/{name}")).await
    }

    pub async fn cni_add_at(&self, namespace: &str, name: &str, ip: &str, netns: &str) -> Outcome {
        let args = format!("K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}");
        let env = [("CNI_COMMAND", "ADD"), ("CNI_NETNS", netns), ("CNI_ARGS", &args)];
        let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut input = json!({
            "cniVersion": "1.0.0", "cni_agent_run_dir": self.run_dir(), "pod_namespace": "ambit-system",
        });
        // In a configuration of its own the plugin hears of no addresses.
        if !ip.is_empty() {
            input["prevResult"] = json!({"cniVersion": "1.0.0", "ips": [{"address": format!("{ip}/24")}]});
        }
        plugin::run(&env, input.to_string().as_bytes()).await
    }

    pub fn start_proxy(&mut self) {
        let (state, socket) = (self.proxy.clone(), self.dir.path().join("z.sock"));
        self.proxy_task = Some(tokio::spawn(async move {
            loop {
                if let Ok(socket) = SeqPacket::connect(&socket).await {
                    serve(&state, socket).await;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }));
    }

    pub fn stop_proxy(&mut self) {
        if let Some(task) = self.proxy_task.take() {
            task.abort();
        }
        self.proxy.lock().has.clear();
    }

    /// What the agent says of a pod.
    pub async fn status(&self, namespace: &str, name: &str) -> Result<PodStatus, String> {
        let socket = tokio::net::TcpStream::connect(("127.0.0.1", STATUS_PORT)).await;
        let mut socket = socket.map_err(|error| error.to_string())?;
        let request = format!("GET /pods/{namespace}/{name} HTTP/1.0\r\n\r\n");
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        serde_json::from_str(body).map_err(|_| body.to_owned())
    }

    /// Whether chains of iptables are in a pod.
    pub fn chains(&self, name: &str) -> bool {
        output_in(&self.pods[name], &["iptables-legacy-save"]).contains("ISTIO_")
    }

    pub fn refuse(&self, uid: &str, why: &str) {
        self.proxy.lock().refuses.insert(uid.to_owned(), why.to_owned());
    }

    pub fn proxy_has(&self) -> Vec<String> {
        self.proxy.lock().has.iter().cloned().collect()
    }

    pub fn annotation(&self, name: &str) -> Option<String> {
        let pod = self.api.pod(name)?;
        pod["metadata"]["annotations"]["ambient.istio.io/redirection"].as_str().map(str::to_owned)
    }

    /// All that the agent could have left in a pod.
    pub fn traces(&self, name: &str) -> String {
        output_in(&self.pods[name], &["nft", "list", "ruleset"])
            + &output_in(&self.pods[name], &["ip", "rule"])
    }

    pub fn touched(&self, name: &str) -> bool {
        let traces = self.traces(name);
        traces.contains("istio") || traces.contains("0x111")
    }

    pub fn redirected(&self, name: &str) -> bool {
        let traces = self.traces(name);
        traces.contains("redirect to :15001") && traces.contains("0x111/0xfff lookup 100")
    }

    /// The node's own table.
    pub fn probes(&self) -> String {
        output_in(&NetNs::current().unwrap(), &["nft", "list", "ruleset"])
    }

    pub fn conflist(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("host/net.d/10-net.conflist")).unwrap()
    }

    pub fn ready(&self) -> bool {
        enroll::cni::Known::read(&enroll::config::known_file(&self.run_dir())).is_some()
            && self.dir.path().join("host/bin/ambit-cni").exists()
    }

    pub async fn until(&mut self, what: &str, mut holds: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !holds(self) {
            if Instant::now() >= deadline {
                // What an agent that serves has to say about it.
                let mut said = Vec::new();
                for name in self.pods.keys() {
                    said.push(self.status("shop", name).await);
                }
                panic!("never: {what}: {said:#?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn output_in(ns: &NetNs, command: &[&str]) -> String {
    let output = ns.run(|| Command::new(command[0]).args(&command[1..]).output()).unwrap().unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

/// One connection of the test's proxy: it takes what it is given, and keeps it only if it is in the snapshot.
async fn serve(state: &Mutex<Proxy>, socket: SeqPacket) {
    if socket.send(&ZdsHello { version: 1 }.encode_to_vec(), None).await.is_err() {
        return;
    }
    let mut snapshot = Some(BTreeSet::new());
    while let Ok((bytes, fd)) = socket.recv().await {
        let request = WorkloadRequest::decode(bytes.as_slice()).unwrap();
        let mut error = String::new();
        {
            let mut state = state.lock();
            match request.payload.unwrap() {
                Payload::Add(add) => {
                    let netns = NetNs::from_fd(fd.unwrap()).unwrap();
                    assert!(netns.run(|| nix::ifaddrs::getifaddrs().unwrap().count()).unwrap() > 0);
                    assert!(add.workload_info.is_some());
                    match state.refuses.get(&add.uid) {
                        Some(why) => error = why.clone(),
                        None => {
                            state.has.insert(add.uid.clone());
                        }
                    }
                    snapshot.iter_mut().for_each(|uids| {
                        uids.insert(add.uid.clone());
                    });
                }
                Payload::Keep(keep) => {
                    let uids = snapshot.as_mut().expect("a keep after the snapshot ends a real proxy");
                    uids.insert(keep.uid);
                }
                Payload::Del(del) => {
                    state.has.remove(&del.uid);
                }
                Payload::SnapshotSent(_) => {
                    let uids = snapshot.take().expect("a second snapshot ends a real proxy");
                    state.has.retain(|uid| uids.contains(uid));
                }
            }
        }
        let payload = Some(workload_response::Payload::Ack(Ack { error }));
        if socket.send(&WorkloadResponse { payload }.encode_to_vec(), None).await.is_err() {
            return;
        }
    }
}
