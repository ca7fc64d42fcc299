//! The ways from one pod to another that are compared: bare, over the floor's relay, over a node proxy.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mesh::{Identity, Tunnel, Workload};
use netns::NetNs;
use netns::seqpacket::{SeqPacket, SeqPacketListener};
use prost::Message;
use wire::zds::workload_request::Payload;
use wire::zds::{AddWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest, WorkloadResponse};

use crate::control::Control;
use crate::front;
use crate::system::{Part, Space, sh, sweep};

const PREFIX: &str = "ambit-bench-";
/// The authority's certificate, beside the logs.
const ROOT: &str = "root.pem";
/// Nothing that works takes longer to start, with 100,000 workloads too.
const PATIENCE: Duration = Duration::from_secs(60);

/// The redirection that a node agent makes (reference/enrolment.md §2.4, without DNS).
const RULES: &str = "
table inet nat {
    chain prerouting { type nat hook prerouting priority -100; policy accept;
        ip daddr != 127.0.0.1 tcp dport != 15008 meta mark & 0xfff != 0x539 redirect to :15006
    }
    chain output { type nat hook output priority -100; policy accept;
        meta l4proto tcp meta mark & 0xfff == 0x111 accept
        oifname lo ip daddr != 127.0.0.1 accept
        meta l4proto tcp ip daddr != 127.0.0.1 meta mark & 0xfff != 0x539 redirect to :15001
    }
}
table inet mangle {
    chain prerouting { type filter hook prerouting priority -150; policy accept;
        meta mark & 0xfff == 0x539 ct mark set ct mark & 0xfffff000 | 0x111
    }
    chain output { type route hook output priority -150; policy accept;
        ct mark & 0xfff == 0x111 meta mark set ct mark
    }
}";

/// Neither ports nor sockets in TIME_WAIT may set the pace.
const ROOM: &str = "
cd /proc/sys/net/ipv4
echo 20000 65000 > ip_local_port_range
echo 1 > tcp_tw_reuse
echo 16384 > tcp_max_tw_buckets
echo 8192 > tcp_max_syn_backlog
cd ../netfilter 2>/dev/null && echo 1 > nf_conntrack_tcp_timeout_time_wait || true
cd ../core && echo 8192 > somaxconn || true";

#[derive(Clone, Copy, PartialEq)]
pub enum Way {
    Raw,
    Floor,
    Mesh,
}

pub struct Lane {
    pub name: &'static str,
    way: Way,
    pub client: Space,
    pub servers: Vec<(Space, String)>,
    _serve: Part,
    program: Option<PathBuf>,
    log: PathBuf,
    proxy: Option<Proxy>,
    relay: Option<Part>,
}

/// A node proxy, and the end of the node agent's socket.
struct Proxy {
    part: Part,
    /// From its start until all its pods were served.
    took: Duration,
    _agent: SeqPacket,
    _listener: SeqPacketListener,
    _directory: tempfile::TempDir,
}

/// What all lanes share.
pub struct World {
    pub prefix: String,
    pub switch: Space,
    control: Control,
    control_port: u16,
    pub congestion: String,
    _allowed: Allowed,
    hosts: Vec<Space>,
    logs: tempfile::TempDir,
    own: PathBuf,
    set: Vec<(String, String)>,
}

impl World {
    /// Makes the switch, and lives in it from now on.
    pub fn new(set: &[(String, String)]) -> anyhow::Result<(Self, tokio::runtime::Runtime)> {
        sweep(PREFIX);
        let prefix = format!("{PREFIX}{}", std::process::id());
        let switch = Space::new(format!("{prefix}-sw"))?;
        switch.sh("ip link add br0 type bridge && ip addr add 10.78.0.1/16 dev br0 && ip link set br0 up")?;
        let congestion =
            std::fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control")?.trim().to_owned();
        let allowed = Allowed::too("cubic")?;
        nix::sched::setns(std::fs::File::open(switch.path())?, nix::sched::CloneFlags::CLONE_NEWNET)?;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (control, behind) = runtime.block_on(Control::start_on("10.78.0.1:0"));
        let control_port = runtime.block_on(front::start(&control, behind.ip(), behind))?;
        let (logs, own) = (tempfile::tempdir()?, std::env::current_exe()?);
        std::fs::write(logs.path().join(ROOT), control.root())?;
        Ok((
            Self {
                prefix,
                switch,
                control,
                control_port,
                congestion,
                _allowed: allowed,
                hosts: Vec::new(),
                logs,
                own,
                set: set.to_vec(),
            },
            runtime,
        ))
    }

    fn pod(&self, name: &str, address: &str, number: usize) -> anyhow::Result<Space> {
        let space = Space::new(format!("{}-{name}", self.prefix))?;
        sh(&format!(
            "ip -n {sw} link add v{number} type veth peer name eth0 address {mac} netns {pod} && \
             ip -n {sw} link set v{number} master br0 up && ip -n {pod} addr add {address}/16 dev eth0 && \
             ip -n {pod} link set eth0 up && ip -n {pod} route add default via 10.78.0.1",
            sw = self.switch.name,
            pod = space.name,
            mac = mac(address)?,
        ))?;
        space.sh(ROOM)?;
        Ok(space)
    }

    /// A client pod and `count` server pods, and what is between them.
    pub async fn lane(
        &mut self,
        name: &'static str,
        number: usize,
        way: Way,
        count: usize,
        program: Option<&Path>,
    ) -> anyhow::Result<Lane> {
        let port = |of: usize| number * 1000 + of;
        let client = self.pod(&format!("{name}-c"), &format!("10.78.{}.1", 10 + number), port(0))?;
        let mut servers = Vec::new();
        for server in 0..count {
            let address = format!("10.78.{}.{}", 10 + number + 10 * (1 + server / 200), 2 + server % 200);
            servers.push((self.pod(&format!("{name}-s{server}"), &address, port(1 + server))?, address));
        }
        know_each_other(&client, &format!("10.78.{}.1", 10 + number), &servers)?;
        if way != Way::Raw {
            for pod in std::iter::once(&client).chain(servers.iter().map(|(pod, _)| pod)) {
                pod.sh("ip route add local 0.0.0.0/0 dev lo table 100 && \
                     ip rule add fwmark 0x111/0xfff lookup 100 pref 32764")?;
                pod.sh(&format!("printf '%s' '{RULES}' | nft -f -"))?;
            }
        }
        let mut serve = self.switch.command(&self.own);
        serve.arg("serve").args(servers.iter().map(|(pod, _)| pod.path()));
        let mut serve = Part::start(&mut serve)?;
        anyhow::ensure!(serve.line()? == "ready", "the server did not start");
        let log = self.logs.path().join(name);
        let mut lane = Lane {
            log,
            name,
            way,
            client,
            servers,
            _serve: serve,
            program: program.map(Path::to_owned),
            proxy: None,
            relay: None,
        };
        if way == Way::Mesh {
            self.hosts.push(self.pod(
                &format!("{name}-h"),
                &format!("10.78.0.{}", 10 + number),
                port(999),
            )?);
            for (at, (_, address)) in lane.servers.iter().enumerate() {
                self.announce(name, &format!("s{at}"), address);
            }
            let address = format!("10.78.{}.1", 10 + number);
            self.announce(name, "c", &address);
        }
        self.start(&mut lane).await?;
        Ok(lane)
    }

    fn announce(&self, lane: &str, pod: &str, address: &str) {
        let name = format!("{lane}-{pod}");
        let identity = Identity::new("cluster.local", "bench", &*name).unwrap();
        let mut workload = Workload::new(format!("Kubernetes//Pod/bench/{name}"), &*name, identity);
        workload.namespace = "bench".into();
        workload.addresses = vec![address.parse().unwrap()];
        workload.node = format!("node-{lane}").into();
        workload.tunnel = Tunnel::Hbone;
        self.control.workload(&workload);
    }

    /// Starts what is between the pods of a lane, anew if it runs.
    pub async fn start(&self, lane: &mut Lane) -> anyhow::Result<()> {
        lane.stop();
        match lane.way {
            Way::Raw => {}
            Way::Floor => {
                let mut command = self.switch.command(&self.own);
                command.arg("floor").arg(lane.client.path());
                command.args(lane.servers.iter().map(|(pod, _)| pod.path()));
                let mut relay = Part::start(&mut command)?;
                for _ in 0..=lane.servers.len().min(1) {
                    anyhow::ensure!(relay.line()? == "ready", "the floor did not start");
                }
                lane.relay = Some(relay);
            }
            Way::Mesh => {
                let program =
                    lane.program.clone().ok_or_else(|| anyhow::anyhow!("no program for {}", lane.name))?;
                lane.proxy = Some(self.proxy(lane, &program).await?);
            }
        }
        Ok(())
    }

    async fn proxy(&self, lane: &Lane, program: &Path) -> anyhow::Result<Proxy> {
        let directory = tempfile::tempdir()?;
        let socket = directory.path().join("zds.sock");
        let listener = SeqPacketListener::bind(&socket, 0o600)?;
        let host = self.hosts.iter().find(|host| host.name.ends_with(&format!("{}-h", lane.name)));
        let host = host.ok_or_else(|| anyhow::anyhow!("no host for {}", lane.name))?;
        let at = format!("https://10.78.0.1:{}", self.control_port);
        let root = self.logs.path().join(ROOT).display().to_string();
        let token = directory.path().join("token");
        std::fs::write(&token, "token")?;
        let mut variables: BTreeMap<&str, String> = BTreeMap::from([
            ("NODE_NAME", format!("node-{}", lane.name)),
            ("XDS_ADDRESS", at.clone()),
            ("CA_ADDRESS", at),
            ("XDS_ROOT_CA", root.clone()),
            ("CA_ROOT_CA", root),
            ("INPOD_UDS", socket.display().to_string()),
            ("PROXY_MODE", "shared".into()),
            ("CLUSTER_ID", "Kubernetes".into()),
            ("NETWORK", String::new()),
            ("RUST_LOG", "warn,access=off".into()),
            ("ZTUNNEL_WORKER_THREADS", "2".into()),
            ("ISTIO_META_DNS_CAPTURE", "false".into()),
            ("AUTH_TOKEN", token.display().to_string()),
        ]);
        if lane.name == "mesh" {
            variables.extend(self.set.iter().map(|(name, value)| (&**name, value.clone())));
        }
        let mut command = host.command(program);
        match program.file_name().and_then(|name| name.to_str()) {
            Some("ambit") => _ = command.arg("proxy"),
            Some(name) if name.contains("ztunnel") => _ = command.args(["proxy", "ztunnel"]),
            _ => {}
        }
        let log = lane.log.clone();
        command.envs(&variables).stderr(std::fs::File::create(&log)?);
        let (start, issued) = (Instant::now(), self.control.issued());
        let part = Part::start(&mut command)?;
        let agent = match tokio::time::timeout(PATIENCE, listener.accept()).await {
            Ok(agent) => agent?,
            Err(_) => {
                anyhow::bail!("{} did not start: {}", program.display(), std::fs::read_to_string(&log)?)
            }
        };
        agent.recv().await?;
        let pods = std::iter::once((format!("{}-c", lane.name), &lane.client));
        let servers =
            lane.servers.iter().enumerate().map(|(at, (pod, _))| (format!("{}-s{at}", lane.name), pod));
        for (name, pod) in pods.chain(servers) {
            let space = NetNs::open(pod.path())?;
            let info =
                WorkloadInfo { name: name.clone(), namespace: "bench".into(), service_account: name.clone() };
            let add = Payload::Add(AddWorkload { uid: format!("uid-{name}"), workload_info: Some(info) });
            exchange(&agent, add, Some(&space)).await?;
        }
        exchange(&agent, Payload::SnapshotSent(SnapshotSent {}), None).await?;
        let took = start.elapsed();
        // Every pod has its certificate before anything is measured.
        while self.control.issued() < issued + 1 + lane.servers.len() {
            anyhow::ensure!(
                start.elapsed() < PATIENCE,
                "{} asks for too few certificates",
                program.display()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(Proxy { part, took, _agent: agent, _listener: listener, _directory: directory })
    }

    /// Makes so many workloads known, on other nodes, before a proxy is there to be told one by one.
    pub fn crowd(&self, from: usize, to: usize) {
        for number in from..to {
            let name = format!("crowd-{number}");
            let identity =
                Identity::new("cluster.local", "crowd", format!("account-{}", number % 1000)).unwrap();
            let mut workload = Workload::new(format!("Kubernetes//Pod/crowd/{name}"), &*name, identity);
            workload.namespace = "crowd".into();
            workload.addresses = vec![std::net::Ipv4Addr::from(0x0a80_0000 + number as u32).into()];
            workload.node = format!("node-{}", number / 100).into();
            workload.tunnel = Tunnel::Hbone;
            self.control.workload(&workload);
        }
    }

    /// Sets the pods' own congestion control; tunnels that stand keep theirs, so that what is between is started anew.
    pub async fn congestion(&self, lanes: &mut [Lane], name: &str) -> anyhow::Result<()> {
        for lane in lanes {
            for pod in std::iter::once(&lane.client).chain(lane.servers.iter().map(|(pod, _)| pod)) {
                pod.sh(&format!("echo {name} > /proc/sys/net/ipv4/tcp_congestion_control"))?;
            }
            self.start(lane).await?;
        }
        Ok(())
    }
}

/// Which congestion control a namespace may have by default, which only the machine's own namespace says; put back when
/// dropped.
struct Allowed {
    home: NetNs,
    before: String,
}

const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

impl Allowed {
    fn too(name: &str) -> anyhow::Result<Self> {
        let home = NetNs::current()?;
        let before = std::fs::read_to_string(ALLOWED)?.trim().to_owned();
        if !before.split(' ').any(|known| known == name) {
            std::fs::write(ALLOWED, format!("{before} {name}"))?;
        }
        Ok(Self { home, before })
    }
}

impl Drop for Allowed {
    fn drop(&mut self) {
        // An error means that it stays allowed, which harms nobody.
        let _ = self.home.try_run(|| std::fs::write(ALLOWED, &self.before));
    }
}

/// A link address that tells the IP address.
fn mac(address: &str) -> anyhow::Result<String> {
    let [a, b, c, d] = address.parse::<std::net::Ipv4Addr>()?.octets();
    Ok(format!("02:00:{a:02x}:{b:02x}:{c:02x}:{d:02x}"))
}

/// The kernel's table of neighbours is one for all namespaces, and too small for some hundreds of pods: entries that
/// stay for ever do not count.
fn know_each_other(client: &Space, address: &str, servers: &[(Space, String)]) -> anyhow::Result<()> {
    let add = |address: &str| {
        Ok(format!("neigh replace {address} lladdr {} dev eth0 nud permanent", mac(address)?))
    };
    let known = servers.iter().map(|(_, address)| add(address)).collect::<anyhow::Result<Vec<_>>>()?;
    client.sh(&format!("printf '{}\\n' | ip -batch -", known.join("\\n")))?;
    servers.iter().try_for_each(|(server, _)| server.sh(&format!("ip {}", add(address)?)))
}

async fn exchange(agent: &SeqPacket, payload: Payload, space: Option<&NetNs>) -> anyhow::Result<()> {
    let bytes = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
    agent.send(&bytes, space.map(AsFd::as_fd)).await?;
    let (answer, _) = tokio::time::timeout(PATIENCE, agent.recv()).await??;
    let answer = WorkloadResponse::decode(&*answer)?;
    match answer.payload {
        Some(wire::zds::workload_response::Payload::Ack(ack)) if ack.error.is_empty() => Ok(()),
        other => anyhow::bail!("the proxy does not serve a pod: {other:?}"),
    }
}

impl Lane {
    /// The process whose work is counted, if there is one.
    pub fn worker(&self) -> Option<u32> {
        let proxy = self.proxy.as_ref().map(|proxy| proxy.part.pid());
        proxy.or(self.relay.as_ref().map(Part::pid))
    }

    /// How long the proxy took to serve its pods.
    pub fn took(&self) -> Option<Duration> {
        self.proxy.as_ref().map(|proxy| proxy.took)
    }

    /// The proxy's last words.
    pub fn said(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Ends what is between the pods.
    pub fn stop(&mut self) {
        self.relay = None;
        self.proxy = None;
    }

    pub fn targets(&self, port: u16) -> String {
        let all: Vec<String> = self.servers.iter().map(|(_, address)| format!("{address}:{port}")).collect();
        all.join(",")
    }

    /// Starts the calling application.
    pub fn load(&self, args: &[String]) -> anyhow::Result<Part> {
        let mut command = self.client.command(&std::env::current_exe()?);
        command.arg("load").args(args);
        Part::start(&mut command)
    }
}
