//! Two proxies, a control plane and a node agent in one process.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh::{Identity, Tunnel, Workload};
use netns::seqpacket::{SeqPacket, SeqPacketListener};
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use wire::zds::workload_request::Payload;
use wire::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest, WorkloadResponse,
};

use crate::control::Control;
use crate::namespaces::{Node, Pod};

/// Where a proxy's own pod is reached: at its node.
pub const OWN_ADDRESS: &str = "10.77.0.1";

pub struct Proxy {
    pub agent: Agent,
    pub stats: SocketAddr,
    pub admin: SocketAddr,
    pub readiness: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    done: tokio::task::JoinHandle<()>,
}

/// The node agent's end of a session.
pub struct Agent {
    listener: SeqPacketListener,
    socket: SeqPacket,
    // The socket's directory lives as long as the agent.
    _directory: tempfile::TempDir,
}

impl Agent {
    async fn accept(listener: SeqPacketListener, directory: tempfile::TempDir) -> Self {
        let socket = listener.accept().await.unwrap();
        let (hello, _) = socket.recv().await.unwrap();
        assert_eq!(hello, [0x08, 0x01], "hello of version 1");
        Self { listener, socket, _directory: directory }
    }

    /// Waits for the proxy to come again after this connection has ended.
    pub async fn again(self) -> Self {
        let Self { listener, socket, _directory } = self;
        while socket.recv().await.is_ok() {}
        drop(socket);
        Self::accept(listener, _directory).await
    }

    /// Sends what no agent would send; the answer's text.
    pub async fn raw(&self, bytes: &[u8], pod: Option<&Pod>) -> String {
        self.socket.send(bytes, pod.map(|pod| pod.netns.as_fd())).await.unwrap();
        self.answer().await
    }

    pub async fn keep(&self, name: &str) -> String {
        self.exchange(Payload::Keep(KeepWorkload { uid: format!("uid-{name}") }), None).await
    }

    pub async fn snapshot_sent(&self) -> String {
        self.exchange(Payload::SnapshotSent(SnapshotSent {}), None).await
    }

    async fn answer(&self) -> String {
        let (answer, fd) =
            tokio::time::timeout(Duration::from_secs(5), self.socket.recv()).await.unwrap().unwrap();
        assert!(fd.is_none());
        let answer = WorkloadResponse::decode(&*answer).unwrap();
        let Some(wire::zds::workload_response::Payload::Ack(ack)) = answer.payload else { panic!("no ack") };
        ack.error
    }

    async fn exchange(&self, payload: Payload, pod: Option<&Pod>) -> String {
        let bytes = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
        self.raw(&bytes, pod).await
    }

    pub async fn add(&self, name: &str, account: &str, pod: &Pod) -> String {
        let info =
            WorkloadInfo { name: name.into(), namespace: "ns".into(), service_account: account.into() };
        let add = AddWorkload { uid: format!("uid-{name}"), workload_info: Some(info) };
        self.exchange(Payload::Add(add), Some(pod)).await
    }

    pub async fn delete(&self, name: &str) -> String {
        self.exchange(Payload::Del(DelWorkload { uid: format!("uid-{name}") }), None).await
    }
}

impl Proxy {
    /// A ready proxy for the node `node`, with further variables.
    pub async fn start_with(node: &str, control: SocketAddr, more: &[(&str, &str)]) -> Self {
        Self::start_changed(node, control, more, |_| ()).await
    }

    pub async fn start_changed(
        node: &str,
        control: SocketAddr,
        more: &[(&str, &str)],
        change: impl FnOnce(&mut proxy::Config),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("zds.sock");
        let listener = SeqPacketListener::bind(&path, 0o600).unwrap();
        let mut vars: BTreeMap<String, String> = BTreeMap::from([
            ("NODE_NAME".into(), node.into()),
            ("XDS_ADDRESS".into(), format!("http://{control}")),
            ("CA_ADDRESS".into(), format!("http://{control}")),
            ("INPOD_UDS".into(), path.display().to_string()),
        ]);
        vars.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let mut config = proxy::Config::from_vars(vars).unwrap();
        let (admin, stats, readiness) = (free_port(), free_port(), free_port());
        config.ports = proxy::Ports { admin: admin.port(), stats: stats.port(), readiness: readiness.port() };
        change(&mut config);
        let (stop, stopped) = oneshot::channel();
        let done = tokio::spawn(async move {
            let result = proxy::run(config, async move {
                let _ = stopped.await;
            });
            result.await.unwrap();
        });
        let agent = Agent::accept(listener, directory).await;
        assert_eq!(agent.exchange(Payload::SnapshotSent(SnapshotSent {}), None).await, "");
        Self { agent, stats, admin, readiness, stop: Some(stop), done }
    }

    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(&http_get(self.stats, "/metrics").await.1)
    }

    pub async fn dump(&self) -> serde_json::Value {
        serde_json::from_str(&http_get(self.admin, "/config_dump").await.1).unwrap()
    }

    pub async fn stop(mut self) {
        let _ = self.stop.take().unwrap().send(());
        self.done.await.unwrap();
    }
}

/// A port that nobody else takes: below those that the kernel gives to whoever asks for any, which a connection could be
/// given before the proxy listens. The namespace is the test's own.
fn free_port() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    SocketAddr::from(([127, 0, 0, 1], NEXT.fetch_add(1, Ordering::Relaxed)))
}

/// Status and body.
pub async fn http_get(address: SocketAddr, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// Series of a scrape.
pub struct Metrics(Vec<(String, BTreeMap<String, String>, u64)>);

impl Metrics {
    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| line.contains('{') && !line.starts_with('#'));
        let series = lines.map(|line| {
            let (name, rest) = line.split_once('{').unwrap();
            let (labels, value) = rest.rsplit_once("} ").unwrap();
            let labels = labels.split("\",").map(|label| {
                let (name, value) = label.split_once("=\"").unwrap();
                (name.to_owned(), value.trim_end_matches('"').to_owned())
            });
            (name.to_owned(), labels.collect(), value.parse::<f64>().unwrap() as u64)
        });
        Self(series.collect())
    }

    pub fn find(&self, name: &str, wanted: &[(&str, &str)]) -> Vec<(&BTreeMap<String, String>, u64)> {
        let matches = |labels: &BTreeMap<String, String>| {
            wanted.iter().all(|(name, value)| labels.get(*name).is_some_and(|found| found == value))
        };
        let found = self.0.iter().filter(|(found, labels, _)| found == name && matches(labels));
        found.map(|(_, labels, value)| (labels, *value)).collect()
    }

    pub fn sum(&self, name: &str, wanted: &[(&str, &str)]) -> u64 {
        self.find(name, wanted).iter().map(|(_, value)| value).sum()
    }
}

pub fn identity(account: &str) -> Identity {
    Identity::new("cluster.local", "ns", account).unwrap()
}

/// An enrolled workload, called like its service account.
pub fn workload(name: &str, node: &str, pod: &Pod) -> Workload {
    let mut workload = Workload::new(format!("Kubernetes//Pod/ns/{name}"), name, identity(name));
    workload.addresses = vec![pod.ip];
    workload.node = node.into();
    workload.tunnel = Tunnel::Hbone;
    workload
}

/// Pods a and b, enrolled, each on a node of its own, and c, which is not.
pub struct World {
    pub control: Control,
    pub address: SocketAddr,
    pub a: Pod,
    pub b: Pod,
    pub c: Pod,
    pub pa: Proxy,
    pub pb: Proxy,
}

impl World {
    pub async fn new(node: &Node) -> Self {
        let (control, address) = Control::start().await;
        Self::with(node, control, address, &[]).await
    }

    /// With further variables for both proxies.
    pub async fn with(node: &Node, control: Control, address: SocketAddr, more: &[(&str, &str)]) -> Self {
        log::collect();
        let (a, b, c) = (node.pod(2), node.pod(3), node.pod(4));
        control.workload(&workload("a", "node-a", &a));
        control.workload(&workload("b", "node-b", &b));
        let mut plain = workload("c", "node-b", &c);
        plain.tunnel = Tunnel::None;
        control.workload(&plain);
        let pa = Proxy::start_with("node-a", address, more).await;
        let pb = Proxy::start_with("node-b", address, more).await;
        for (proxy, name, pod) in [(&pa, "a", &a), (&pb, "b", &b)] {
            assert_eq!(proxy.agent.add(name, name, pod).await, "");
            pod.redirect();
        }
        Self { control, address, a, b, c, pa, pb }
    }

    /// An enrolled workload whose address swallows everything, known to the proxy of a.
    pub async fn hole(&self, node: &Node) -> Pod {
        let hole = node.pod(9);
        hole.sh("nft 'table inet t { chain c { type filter hook input priority 0; policy drop; }; }'");
        self.control.workload(&workload("hole", "node-x", &hole));
        eventually("it is known", async || self.pa.dump().await["workloads"].as_array().unwrap().len() == 4)
            .await;
        hole
    }

    /// A third proxy, of the node `node-c`, whose own pod `own` has the node's address.
    pub async fn proxy_with_a_pod_of_its_own(&self) -> Proxy {
        let own = [("POD_NAME", "own"), ("POD_NAMESPACE", "ns"), ("SERVICE_ACCOUNT", "own")];
        let proxy = Proxy::start_with("node-c", self.address, &own).await;
        let mut here = workload("own", "node-c", &self.a);
        here.addresses = vec![OWN_ADDRESS.parse().unwrap()];
        self.control.workload(&here);
        proxy
    }
}

/// Answers every connection with what it got, and closes when the client has.
pub fn echo(listener: TcpListener) -> Arc<Mutex<Vec<SocketAddr>>> {
    let peers = Arc::new(Mutex::new(Vec::new()));
    let seen = peers.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, peer)) = listener.accept().await {
            seen.lock().unwrap().push(peer);
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
                let _ = write.shutdown().await;
            });
        }
    });
    peers
}

/// Sends `data`, half-closes, and reads until the end.
pub async fn call(from: &Pod, to: SocketAddr, data: &[u8]) -> std::io::Result<Vec<u8>> {
    let stream = from.connect(to).await?;
    let (mut read, mut write) = stream.into_split();
    let data = data.to_vec();
    let writing = tokio::spawn(async move {
        write.write_all(&data).await?;
        write.shutdown().await
    });
    let mut answer = Vec::new();
    read.read_to_end(&mut answer).await?;
    writing.await.unwrap()?;
    Ok(answer)
}

/// Waits, bounded, until `check` holds.
pub async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    for _ in 0..500 {
        if check().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("never happened: {what}");
}

pub mod log {
    //! What the proxies wrote into the access log.

    use std::sync::{Arc, Mutex, OnceLock};

    use tracing::field::{Field, Visit};
    use tracing_subscriber::layer::{Context, SubscriberExt};
    use tracing_subscriber::util::SubscriberInitExt;

    type Line = std::collections::BTreeMap<String, String>;
    static LINES: OnceLock<Arc<Mutex<Vec<Line>>>> = OnceLock::new();

    struct Collect(Arc<Mutex<Vec<Line>>>);
    struct Fields(Line);

    impl Visit for Fields {
        fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
            self.0.insert(field.name().into(), format!("{value:?}"));
        }
        fn record_str(&mut self, field: &Field, value: &str) {
            self.0.insert(field.name().into(), value.into());
        }
    }

    impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Collect {
        fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
            let mut fields = Fields(Line::new());
            event.record(&mut fields);
            if event.metadata().target() == "access" {
                self.0.lock().unwrap().push(fields.0);
            } else if *event.metadata().level() <= tracing::Level::DEBUG
                && event.metadata().target().starts_with("proxy")
            {
                eprintln!("{} {:?}", event.metadata().target(), fields.0);
            }
        }
    }

    pub fn collect() {
        let lines = LINES.get_or_init(Arc::default).clone();
        let _ = tracing_subscriber::registry().with(Collect(lines)).try_init();
    }

    /// Lets go of what was collected: it is no memory of the proxies.
    #[allow(dead_code)] // Not every program that has this module measures memory.
    pub fn forget() {
        *LINES.get_or_init(Arc::default).lock().unwrap() = Vec::new();
    }

    pub fn lines(direction: &str, message: &str) -> Vec<Line> {
        let lines = LINES.get_or_init(Arc::default).lock().unwrap();
        let wanted = |line: &&Line| {
            line.get("direction").is_some_and(|d| d == direction) && line["message"] == message
        };
        lines.iter().filter(wanted).cloned().collect()
    }
}
