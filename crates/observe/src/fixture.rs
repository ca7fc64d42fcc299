//! A cluster that does not exist, for tests, measurements and work on the UI: some number of pods, all scraped by one
//! Prometheus, with other traffic and a few things that are not as they should be. Deterministic from a seed.
//!
//! It speaks as the node proxies would, in their own messages, so what is fed goes the way of real flows.

mod prometheus;
mod proxy;

use std::net::{IpAddr, Ipv4Addr};

use crate::directory::{Directory, Pod};
use crate::flow::Millis;
pub use proxy::FakeProxy;

/// What is not as it should be with a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Trouble {
    None,
    NotEnrolled,
    OptedOut,
    HostNetwork,
    Denied,
    /// Its proxy does not report the inbound side.
    OneSided,
    SpeaksHttp,
}

/// A pod of the fixture.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct FakePod {
    pub namespace: String,
    pub name: String,
    pub workload: String,
    pub node: usize,
    pub ip: IpAddr,
    pub port: u16,
    pub trouble: Trouble,
    /// Bytes of one scrape's answer.
    pub metrics: u64,
    /// Pods that it calls, by index.
    pub calls: Vec<usize>,
}

/// A whole cluster.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Fixture {
    pub pods: Vec<FakePod>,
    pub nodes: usize,
    /// Index of Prometheus among the pods.
    pub prometheus: usize,
    /// How often everything is scraped.
    pub interval: Millis,
}

/// A small deterministic generator (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// One of so many.
    pub fn below(&mut self, n: usize) -> usize {
        (self.roll() % n.max(1) as u64) as usize
    }
}

const SPACES: [&str; 12] = [
    "shop", "bookinfo", "payments", "search", "batch", "identity", "media", "orders", "mail", "ledger",
    "edge", "lab",
];
const NAMES: [&str; 20] = [
    "web",
    "cart",
    "checkout",
    "catalog",
    "productpage-v1",
    "details-v1",
    "ratings-v1",
    "reviews-v1",
    "reviews-v2",
    "reviews-v3",
    "redis",
    "postgres",
    "worker",
    "api",
    "gateway",
    "mailer",
    "index",
    "query",
    "sessions",
    "a-v1",
];

impl Fixture {
    /// `pods` scraped pods and a Prometheus.
    pub fn new(pods: usize, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let nodes = (pods / 50).clamp(2, 200);
        let spaces = (pods / 80 + 2).clamp(2, 60);
        // Some 17 pods a workload in a large cluster, 2 in a small one.
        let replicas = (pods / 100).clamp(1, 16);
        let mut all = Vec::with_capacity(pods + 1);
        let mut address = 0u32;
        let mut next = || {
            address += 1;
            IpAddr::V4(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 64, 0, 0)) + address))
        };
        all.push(FakePod {
            namespace: "monitoring".into(),
            name: "prometheus-k8s-0".into(),
            workload: "prometheus".into(),
            node: 0,
            ip: next(),
            port: 9090,
            trouble: Trouble::None,
            metrics: 0,
            calls: Vec::new(),
        });
        let mut made = 0;
        let mut workload = 0;
        while made < pods {
            let space = workload % spaces;
            let namespace = match SPACES.get(space) {
                Some(name) => (*name).to_owned(),
                None => format!("team-{space:02}"),
            };
            let of_space = workload / spaces;
            let name = match NAMES.get(of_space) {
                Some(name) => (*name).to_owned(),
                None => format!("service-{of_space:02}"),
            };
            for replica in 0..replicas.min(pods - made) {
                let trouble = trouble(made, pods, &mut dice);
                all.push(FakePod {
                    namespace: namespace.clone(),
                    name: format!("{name}-{:05x}-{replica}", dice.roll() & 0xf_ffff),
                    workload: name.clone(),
                    node: dice.below(nodes),
                    ip: next(),
                    port: [8080, 9102, 9090, 3000][workload % 4],
                    trouble,
                    metrics: 4_000 + dice.roll() % 60_000,
                    calls: Vec::new(),
                });
                made += 1;
            }
            workload += 1;
        }
        // A call or two a pod, mostly within the namespace, else to one of three others.
        let mut by_space: std::collections::BTreeMap<String, Vec<usize>> = Default::default();
        for (index, pod) in all.iter().enumerate().skip(1) {
            by_space.entry(pod.namespace.clone()).or_default().push(index);
        }
        let members: Vec<Vec<usize>> = by_space.into_values().collect();
        for (space, own) in members.iter().enumerate() {
            for (position, pod) in own.iter().enumerate() {
                for _ in 0..1 + dice.below(2) {
                    let callee = if dice.below(5) > 0 || members.len() == 1 {
                        own[(position + 1 + dice.below(3) * replicas) % own.len()]
                    } else {
                        let other = &members[(space + 1 + dice.below(3)) % members.len()];
                        other[dice.below(other.len())]
                    };
                    if callee != *pod && !all[*pod].calls.contains(&callee) {
                        all[*pod].calls.push(callee);
                    }
                }
            }
        }
        Self { pods: all, nodes, prometheus: 0, interval: 15_000 }
    }

    /// The cluster as Kubernetes would describe it.
    pub fn directory(&self) -> Directory {
        let pods = self.pods.iter().map(|pod| Pod {
            namespace: pod.namespace.as_str().into(),
            name: pod.name.as_str().into(),
            node: node_name(pod.node).into(),
            addresses: vec![pod.ip],
            workload: pod.workload.as_str().into(),
            workload_type: "deployment".into(),
            service_account: pod.workload.as_str().into(),
            finished: false,
            running: true,
            host_network: pod.trouble == Trouble::HostNetwork,
            enrolled: pod.is_enrolled(),
            opted_out: pod.trouble == Trouble::OptedOut,
            started: 1,
            ..Pod::default()
        });
        let nodes = (0..self.nodes).map(|node| {
            let ip = IpAddr::V4(Ipv4Addr::from(u32::from(Ipv4Addr::new(192, 168, 0, 0)) + 1 + node as u32));
            (ip, node_name(node).into())
        });
        let mut names: Vec<&str> = self.pods.iter().map(|pod| pod.namespace.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        let namespaces = names.into_iter().map(|name| (name.into(), true));
        Directory::new(pods, nodes, namespaces.chain([("kube-system".into(), false)]))
    }

    /// One proxy a node.
    pub fn proxies(&self) -> Vec<FakeProxy> {
        (0..self.nodes).map(|node| FakeProxy::new(self, node)).collect()
    }
}

impl FakePod {
    /// Whether it is in the mesh.
    pub fn is_enrolled(&self) -> bool {
        !matches!(self.trouble, Trouble::NotEnrolled | Trouble::OptedOut | Trouble::HostNetwork)
    }

    /// Its identity.
    pub fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.namespace, self.workload)
    }
}

/// A few in every cluster, so that every state can be seen.
fn trouble(index: usize, pods: usize, dice: &mut Dice) -> Trouble {
    if pods < 20 {
        return if index == 3 { Trouble::OptedOut } else { Trouble::None };
    }
    match index {
        5 => Trouble::OptedOut,
        9 => Trouble::Denied,
        13 => Trouble::OneSided,
        17 => Trouble::SpeaksHttp,
        19 => Trouble::HostNetwork,
        _ if dice.below(400) == 0 => Trouble::NotEnrolled,
        _ => Trouble::None,
    }
}

/// `node-000`.
pub fn node_name(node: usize) -> String {
    format!("node-{node:03}")
}
