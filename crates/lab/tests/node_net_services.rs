//! Services, names and the way to the API server, for real: a node's network namespace with two pods on its
//! bridge, made by this test, and everything in between done by the kernel. Needs root.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use lab::node::{Config, net};
use netns::NetNs;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::sync::mpsc;

const NODE: &str = "10.199.0.1";
const GATEWAY: &str = "10.199.1.1";
const POD_A: &str = "10.199.1.2";
const POD_B: &str = "10.199.1.3";
const BOUND: Duration = Duration::from_secs(20);

/// Network namespaces that end with the test, also when it fails.
struct Namespaces {
    prefix: String,
    made: Vec<String>,
}

impl Namespaces {
    fn new() -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test makes network namespaces and packet rules and must run as root"
        );
        Self { prefix: format!("ambit-test-net-{}", std::process::id()), made: Vec::new() }
    }

    fn add(&mut self, what: &str) -> (String, NetNs) {
        let name = format!("{}-{what}", self.prefix);
        ip(&["netns", "add", &name]);
        self.made.push(name.clone());
        let ns = NetNs::open(format!("/run/netns/{name}")).unwrap();
        (name, ns)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.made {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

fn ip(arguments: &[&str]) {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A pod on the bridge, as the `bridge` CNI plugin would make it.
fn pod(namespaces: &mut Namespaces, node: &str, name: &str, address: &str) -> NetNs {
    let (pod, ns) = namespaces.add(name);
    let host_end = format!("veth-{name}");
    ip(&["-n", node, "link", "add", &host_end, "type", "veth", "peer", "name", "eth0", "netns", &pod]);
    ip(&["-n", node, "link", "set", &host_end, "master", net::BRIDGE, "up"]);
    ip(&["-n", node, "link", "set", &host_end, "type", "bridge_slave", "hairpin", "on"]);
    ip(&["-n", &pod, "link", "set", "lo", "up"]);
    ip(&["-n", &pod, "link", "set", "eth0", "up"]);
    ip(&["-n", &pod, "address", "add", &format!("{address}/24"), "dev", "eth0"]);
    ip(&["-n", &pod, "route", "add", "default", "via", GATEWAY]);
    ns
}

/// Answers each connection with the address it came from and the server's name.
fn serve(ns: &NetNs, address: &str, name: &'static str) {
    let address: SocketAddr = address.parse().unwrap();
    let listener = ns
        .try_run(|| {
            let listener = std::net::TcpListener::bind(address)?;
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        })
        .unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, peer) = listener.accept().await.unwrap();
            let _ = stream.write_all(format!("{} {name}", peer.ip()).as_bytes()).await;
        }
    });
}

async fn call(ns: &NetNs, address: &str) -> io::Result<String> {
    let address: SocketAddr = address.parse().unwrap();
    let socket = ns.try_run(TcpSocket::new_v4).unwrap();
    let talk = async {
        let mut stream: TcpStream = socket.connect(address).await?;
        let mut said = String::new();
        stream.read_to_string(&mut said).await?;
        Ok(said)
    };
    tokio::time::timeout(BOUND, talk).await.expect("a connection neither succeeded nor failed")
}

async fn ask(ns: &NetNs, name: &str) -> Vec<String> {
    let mut query = Message::new(1, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    let query = query.to_vec().unwrap();
    let addresses = |bytes: &[u8]| {
        let message = Message::from_vec(bytes).unwrap();
        message.answers.iter().map(|record| record.data.to_string()).collect::<Vec<_>>()
    };
    let talk = async {
        let udp = udp_socket(ns, "0.0.0.0:0");
        udp.connect("10.96.0.10:53").await.unwrap();
        udp.send(&query).await.unwrap();
        let mut buffer = [0; 1500];
        let length = udp.recv(&mut buffer).await.unwrap();
        let by_udp = addresses(&buffer[..length]);

        let tcp = ns.try_run(TcpSocket::new_v4).unwrap();
        let mut tcp = tcp.connect("10.96.0.10:53".parse().unwrap()).await.unwrap();
        tcp.write_u16(query.len() as u16).await.unwrap();
        tcp.write_all(&query).await.unwrap();
        let mut answer = vec![0; usize::from(tcp.read_u16().await.unwrap())];
        tcp.read_exact(&mut answer).await.unwrap();
        assert_eq!(by_udp, addresses(&answer), "UDP and TCP disagree");
        by_udp
    };
    tokio::time::timeout(BOUND, talk).await.expect("the resolver does not answer")
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// Just enough of an API server: one list of each kind, then the events the test sends.
fn api(services: Vec<Value>, slices: Vec<Value>, slice_events: mpsc::Receiver<Value>) -> kube::Client {
    let slice_events = Arc::new(parking_lot::Mutex::new(VecDeque::from([slice_events])));
    let handler = move |request: http::Request<kube::client::Body>| {
        let path = request.uri().path().to_owned();
        let watch = request.uri().query().unwrap_or_default().contains("watch=");
        let of_slices = path.ends_with("endpointslices");
        let body: Body = if watch {
            let events = of_slices.then(|| slice_events.lock().pop_front()).flatten();
            StreamBody::new(futures::stream::unfold(events, |events| async {
                let mut events = match events {
                    Some(events) => events,
                    None => std::future::pending().await,
                };
                let object = match events.recv().await {
                    Some(object) => object,
                    None => std::future::pending().await,
                };
                let line = json!({"type": "MODIFIED", "object": object}).to_string() + "\n";
                Some((Ok(http_body::Frame::data(Bytes::from(line))), Some(events)))
            }))
            .boxed_unsync()
        } else {
            let (kind, version, items) = if of_slices {
                ("EndpointSliceList", "discovery.k8s.io/v1", &slices)
            } else {
                ("ServiceList", "v1", &services)
            };
            let list = json!({"kind": kind, "apiVersion": version,
                "metadata": {"resourceVersion": "1"}, "items": items});
            Full::from(list.to_string()).boxed_unsync()
        };
        async move { Ok::<_, Infallible>(http::Response::new(body)) }
    };
    kube::Client::new(tower::service_fn(handler), "default")
}

fn service(name: &str, address: &str, port: u16) -> Value {
    json!({"metadata": {"namespace": "default", "name": name, "resourceVersion": "1"},
        "spec": {"clusterIP": address, "ports": [{"port": port}]}})
}

fn slice(service: &str, port: u16, addresses: &[&str]) -> Value {
    let endpoints: Vec<Value> = addresses.iter().map(|ip| json!({"addresses": [ip]})).collect();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": service, "resourceVersion": "2",
            "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"port": port}], "endpoints": endpoints})
}

fn forms(name: &str, family: &str, addresses: &[&str]) -> Value {
    let mut slice = slice("forms", 8080, addresses);
    slice["addressType"] = family.into();
    slice["metadata"]["name"] = format!("forms-{name}").into();
    slice["ports"] = json!([{"name": "tcp", "port": 8080}, {"name": "udp", "port": 8080, "protocol": "UDP"}]);
    slice
}

fn config(netns: PathBuf, kubeconfig: PathBuf) -> Config {
    Config {
        lab: "test".into(),
        name: "node-1".into(),
        netns,
        ip: NODE.parse().unwrap(),
        pod_cidr: "10.199.1.0/24".parse().unwrap(),
        cluster_cidr: "10.199.0.0/16".parse().unwrap(),
        service_cidr: "10.96.0.0/12".parse().unwrap(),
        dns_ip: "10.96.0.10".parse().unwrap(),
        kubeconfig,
        state_dir: PathBuf::new(),
        binary: PathBuf::new(),
        labels: BTreeMap::new(),
    }
}

fn kubeconfig(directory: &Path, server: SocketAddr) -> PathBuf {
    let path = directory.join("kubeconfig");
    let text = json!({"apiVersion": "v1", "kind": "Config", "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": {"server": format!("https://{server}")}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
        "users": [{"name": "lab", "user": {}}]});
    std::fs::write(&path, text.to_string()).unwrap();
    path
}

fn udp_socket(ns: &NetNs, address: &str) -> UdpSocket {
    ns.try_run(|| {
        let socket = std::net::UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    })
    .unwrap()
}

/// Sends a datagram and answers what comes back, which only an answer from the address asked can be.
async fn call_udp(ns: &NetNs, address: &str) -> String {
    let socket = udp_socket(ns, "0.0.0.0:0");
    socket.connect(address).await.unwrap();
    socket.send(b"?").await.unwrap();
    let mut buffer = [0; 100];
    let received = tokio::time::timeout(BOUND, socket.recv(&mut buffer)).await;
    let length = received.expect("no answer by UDP").unwrap();
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

fn serve_udp(ns: &NetNs, address: &str, name: &'static str) {
    let socket = udp_socket(ns, address);
    tokio::spawn(async move {
        let mut buffer = [0; 100];
        loop {
            let (_, peer) = socket.recv_from(&mut buffer).await.unwrap();
            socket.send_to(format!("{} {name}", peer.ip()).as_bytes(), peer).await.unwrap();
        }
    });
}

/// Calls until the answer is as wanted: the rules follow the API with a delay.
async fn eventually(what: &str, ns: &NetNs, address: &str, wanted: impl Fn(&io::Result<String>) -> bool) {
    let until = async {
        while !wanted(&call(ns, address).await) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(BOUND, until).await.unwrap_or_else(|_| panic!("{what}: not within {BOUND:?}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_reach_services_names_and_the_api_server() {
    let mut namespaces = Namespaces::new();
    let directory = tempfile::tempdir().unwrap();
    let (node_name, node) = namespaces.add("node");
    ip(&["-n", &node_name, "link", "add", "eth0", "type", "veth", "peer", "name", "wire"]);
    ip(&["-n", &node_name, "link", "set", "wire", "up"]);
    ip(&["-n", &node_name, "address", "add", &format!("{NODE}/24"), "dev", "eth0"]);
    ip(&["-n", &node_name, "link", "set", "eth0", "up"]);

    let api_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let api_address = api_listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = api_listener.accept().await {
            let _ = stream.write_all(b"the API server").await;
        }
    });
    let (events, slice_events) = mpsc::channel(4);
    let client = api(
        vec![
            service("web", "10.96.0.5", 80),
            service("self", "10.96.0.6", 80),
            service("nobody", "10.96.0.7", 80),
            service("kubernetes", "10.96.0.1", 443),
            service("headless", "None", 8080),
            // Every other form a rule can take: nft refuses all of them if one is wrong.
            json!({"metadata": {"namespace": "default", "name": "forms", "resourceVersion": "1"},
                "spec": {"type": "NodePort", "sessionAffinity": "ClientIP",
                    "clusterIPs": ["10.96.0.8", "fd00:96::8"], "ports": [
                        {"name": "tcp", "port": 80, "nodePort": 30080},
                        {"name": "udp", "port": 80, "nodePort": 30080, "protocol": "UDP"}]}}),
        ],
        vec![
            forms("4", "IPv4", &[POD_A]),
            forms("6", "IPv6", &["fd00:199::2"]),
            slice("web", 8080, &[POD_A, POD_B]),
            slice("self", 8080, &[POD_A]),
            slice("headless", 8080, &[POD_A]),
        ],
        slice_events,
    );
    let config = config(format!("/run/netns/{node_name}").into(), kubeconfig(directory.path(), api_address));
    net::start(&config, client).unwrap();

    ip(&["-n", &node_name, "address", "add", &format!("{GATEWAY}/24"), "dev", net::BRIDGE]);
    ip(&["-n", &node_name, "link", "set", net::BRIDGE, "up"]);
    let a = pod(&mut namespaces, &node_name, "a", POD_A);
    let b = pod(&mut namespaces, &node_name, "b", POD_B);
    serve(&a, &format!("{POD_A}:8080"), "a");
    serve(&b, &format!("{POD_B}:8080"), "b");
    eventually("the rules are there", &b, "10.96.0.5:80", Result::is_ok).await;

    // Pods of one node, and the source address the callee sees.
    let mut answers = BTreeSet::new();
    for _ in 0..40 {
        answers.insert(call(&b, "10.96.0.5:80").await.unwrap());
    }
    // b reaching itself is masqueraded behind the gateway, or the answer would never come back.
    let wanted = [format!("{POD_B} a"), format!("{GATEWAY} b")];
    assert_eq!(answers, BTreeSet::from(wanted), "both endpoints answer and see who calls");
    assert_eq!(call(&b, "10.96.0.6:80").await.unwrap(), format!("{POD_B} a"));
    assert_eq!(call(&a, "10.96.0.6:80").await.unwrap(), format!("{GATEWAY} a"));
    assert_eq!(call(&a, &format!("{POD_B}:8080")).await.unwrap(), format!("{POD_A} b"), "without a Service");

    // The node itself.
    assert_eq!(call(&node, "10.96.0.6:80").await.unwrap(), format!("{NODE} a"));

    // UDP, and ports on the node's own address, whose callers are hidden so that answers come back this way.
    serve_udp(&a, &format!("{POD_A}:8080"), "a");
    assert_eq!(call_udp(&b, "10.96.0.8:80").await, format!("{POD_B} a"));
    assert_eq!(call(&b, "10.96.0.8:80").await.unwrap(), format!("{POD_B} a"));
    assert_eq!(call(&b, &format!("{NODE}:30080")).await.unwrap(), format!("{GATEWAY} a"));
    assert_eq!(call_udp(&b, &format!("{NODE}:30080")).await, format!("{GATEWAY} a"));

    // Nobody behind it: refused at once, from a pod and from the node.
    for caller in [&a, &node] {
        let refused = call(caller, "10.96.0.7:80").await.unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
    }
    events.send(slice("nobody", 8080, &[POD_B])).await.unwrap();
    eventually("an endpoint appears", &a, "10.96.0.7:80", Result::is_ok).await;
    events.send(slice("nobody", 8080, &[])).await.unwrap();
    eventually("the endpoint goes", &a, "10.96.0.7:80", Result::is_err).await;

    // The API server, which only the host's own namespace can reach.
    for caller in [&a, &node] {
        assert_eq!(call(caller, "10.96.0.1:443").await.unwrap(), "the API server");
    }

    // Names.
    assert_eq!(ask(&a, "web.default.svc.cluster.local.").await, ["10.96.0.5"]);
    assert_eq!(ask(&b, "headless.default.svc.cluster.local.").await, [POD_A]);
    assert_eq!(ask(&node, "nothing.default.svc.cluster.local.").await, Vec::<String>::new());
}
