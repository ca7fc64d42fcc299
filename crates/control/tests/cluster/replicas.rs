//! Several replicas: all serve, one writes, and any may be killed.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use k8s_openapi::api::coordination::v1::Lease;

use super::*;

/// A replica with a runtime of its own, so that it can be killed: at once, with everything it holds, saying nothing.
pub(super) struct Replica {
    runtime: Option<tokio::runtime::Runtime>,
    ports: control::Ports,
}

impl Replica {
    fn start(cluster: &Cluster, name: &str, shift: u16) -> Self {
        Self::with(cluster, name, shift, cluster.config())
    }

    pub(super) fn with(cluster: &Cluster, name: &str, shift: u16, config: control::Config) -> Self {
        let ports = control::Ports {
            grpc: cluster.ports.grpc + shift,
            ready: cluster.ports.ready + shift,
            monitoring: cluster.ports.monitoring + shift,
        };
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let config = control::Config { pod_name: name.into(), ports, ..config };
        let kubeconfig = cluster.api.admin_kubeconfig("ambit-lab");
        runtime.spawn(async move {
            let options = kube::config::KubeConfigOptions::default();
            let access = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
            let client = Client::try_from(access).unwrap();
            control::run(config, client, std::future::pending()).await.unwrap();
        });
        Self { runtime: Some(runtime), ports }
    }

    fn kill(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Cluster {
    /// Halts the replica that `start` has run: those of a test are its own.
    pub(super) async fn bare() -> Self {
        let mut cluster = Self::start().await;
        cluster.root("shop").await;
        cluster.halt().await;
        cluster
    }

    pub(super) async fn connect_to(&self, replica: &Replica) -> Channel {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.root("shop").await))
            .domain_name("istiod.istio-system.svc");
        let endpoint = Endpoint::from_shared(format!("https://{}:{}", self.bind, replica.ports.grpc));
        let endpoint = endpoint.unwrap().tls_config(tls).unwrap();
        soon("a connection", async {
            loop {
                match endpoint.connect().await {
                    Ok(channel) => return channel,
                    // It does not listen before it knows everything.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        })
        .await
    }

    async fn holder(&self, name: &str) -> Option<String> {
        let leases = Api::<Lease>::namespaced(self.client.clone(), "ambit-system");
        leases.get_opt(name).await.unwrap()?.spec?.holder_identity.filter(|holder| !holder.is_empty())
    }

    async fn held_by(&self, name: &str, who: &str) {
        soon("another holder of the lease", async {
            while self.holder(name).await.as_deref() != Some(who) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
    }
}

const LEASES: [&str; 2] = ["istio-status-leader", "istio-namespace-controller-election"];

const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/web";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_replica_serves_the_same_mesh_and_signs_under_the_same_root_and_one_writes() {
    let cluster = Cluster::bare().await;
    // Both at once, over an API without a root: whoever is first makes it for both.
    let secrets = Api::<core::Secret>::namespaced(cluster.client.clone(), "ambit-system");
    secrets.delete("istio-ca-secret", &kube::api::DeleteParams::default()).await.unwrap();
    let maps = Api::<core::ConfigMap>::namespaced(cluster.client.clone(), "shop");
    maps.delete("istio-ca-root-cert", &kube::api::DeleteParams::default()).await.unwrap();
    let replicas = [Replica::start(&cluster, "control-a", 1), Replica::start(&cluster, "control-b", 2)];
    let token = cluster.proxy_token().await;
    let mut versions = Vec::new();
    for replica in &replicas {
        let channel = cluster.connect_to(replica).await;
        let mut proxy = Proxy::connect(channel.clone(), &token, BTreeMap::new()).await.unwrap();
        proxy.until("the mesh", |proxy| proxy.addresses.contains_key(SERVICE)).await;
        let held = proxy.addresses.iter().map(|(name, (version, _))| (name.clone(), version.clone()));
        versions.push(held.collect::<BTreeMap<_, _>>());
        let (answer, key) = certificate(channel, &token, IDENTITY).await.unwrap();
        assert_eq!(answer.cert_chain.last().unwrap(), &cluster.root("shop").await);
        usable_both_ways(&answer.cert_chain, &key);
    }
    assert_eq!(versions[0], versions[1], "a client that changes replicas is sent nothing");
    let holder = soon("a leader", async {
        loop {
            if let Some(holder) = cluster.holder("istio-status-leader").await {
                return holder;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert!(["control-a", "control-b"].contains(&holder.as_str()), "{holder}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_killed_under_load_costs_no_certificate_and_no_change() {
    let cluster = Arc::new(Cluster::bare().await);
    let mut first = Replica::start(&cluster, "control-a", 1);
    let token = cluster.proxy_token().await;
    let channels = [cluster.connect_to(&first).await];
    let second = Replica::start(&cluster, "control-b", 2);
    let channels = [channels[0].clone(), cluster.connect_to(&second).await];
    let mut proxy = Proxy::connect(channels[0].clone(), &token, BTreeMap::new()).await.unwrap();
    proxy.until("the mesh", |proxy| proxy.addresses.contains_key(WEB)).await;

    // Load: certificates one after the other. Like a node proxy it goes to the other replica when one does not answer.
    let stop = Arc::new(AtomicBool::new(false));
    let load = {
        let (stop, token, channels) = (stop.clone(), token.clone(), channels.clone());
        tokio::spawn(async move {
            let (mut issued, mut elsewhere, mut failed) = (0, 0, 0);
            while !stop.load(Relaxed) {
                match certificate(channels[0].clone(), &token, IDENTITY).await {
                    Ok(_) => issued += 1,
                    Err(_) => match certificate(channels[1].clone(), &token, IDENTITY).await {
                        Ok(_) => elsewhere += 1,
                        Err(_) => failed += 1,
                    },
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            (issued, elsewhere, failed)
        })
    };
    for turn in 0..10 {
        cluster.pod("shop", &format!("early-{turn}"), "web", &format!("10.0.1.{turn}")).await;
    }
    proxy.until("what is new", |proxy| proxy.addresses.contains_key("Kubernetes//Pod/shop/early-9")).await;
    first.kill();
    for turn in 0..10 {
        cluster.pod("shop", &format!("late-{turn}"), "web", &format!("10.0.2.{turn}")).await;
    }
    let pods = Api::<core::Pod>::namespaced(cluster.client.clone(), "shop");
    pods.delete("early-0", &kube::api::DeleteParams::default().grace_period(0)).await.unwrap();

    // The stream ends, with what it held still in the client's hands, and goes on at the other replica.
    let ended = soon("the end of the stream", async {
        loop {
            if let Err(status) = proxy.next().await {
                return status;
            }
        }
    });
    let _ = ended.await;
    let known: BTreeMap<String, String> =
        proxy.addresses.iter().map(|(name, (version, _))| (name.clone(), version.clone())).collect();
    let mut next = Proxy::connect(channels[1].clone(), &token, known.clone()).await.unwrap();
    next.addresses = std::mem::take(&mut proxy.addresses);
    next.until("what happened meanwhile", |proxy| {
        proxy.addresses.contains_key("Kubernetes//Pod/shop/late-9")
            && !proxy.addresses.contains_key("Kubernetes//Pod/shop/early-0")
    })
    .await;
    stop.store(true, Relaxed);
    let (issued, elsewhere, failed) = soon("the end of the load", load).await.unwrap();
    assert!(issued > 0 && elsewhere > 0, "the load went on over the kill: {issued}, {elsewhere}");
    assert_eq!(failed, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_takes_over_a_lapsed_lease_writes_conditions_and_roots() {
    let cluster = Cluster::bare().await;
    let policies = cluster.kind("security.istio.io", "AuthorizationPolicy", "authorizationpolicies").await;
    let mut first = Replica::start(&cluster, "control-a", 1);
    for lease in LEASES {
        cluster.held_by(lease, "control-a").await;
    }
    let second = Replica::start(&cluster, "control-b", 2);
    cluster.connect_to(&second).await;
    first.kill();
    // Nobody renews them any more; that they may stand still for a second only spares the test the wait.
    let leases = Api::<Lease>::namespaced(cluster.client.clone(), "ambit-system");
    let short = json!({ "spec": { "leaseDurationSeconds": 1 } });
    for lease in LEASES {
        leases.patch(lease, &PatchParams::default(), &Patch::Merge(&short)).await.unwrap();
    }
    for lease in LEASES {
        cluster.held_by(lease, "control-b").await;
    }

    cluster.ensure::<core::Namespace>(None, json!({ "metadata": { "name": "late" } })).await;
    assert_eq!(cluster.root("late").await, cluster.root("shop").await);
    let allow = json!({ "spec": { "rules": [{ "from": [{ "source": { "namespaces": ["shop"] } }] }] } });
    let api = cluster.custom(&policies, "p", allow).await;
    super::status::condition(api, "p", "ZtunnelAccepted", "True").await;
}

/// A page of a replica; none when nobody listens there yet.
pub(super) async fn asked(cluster: &Cluster, path: &str) -> Option<(u16, String)> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let address = (cluster.bind, cluster.ports.monitoring);
    let mut socket = soon("the page's port", tokio::net::TcpStream::connect(address)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    soon("the page", socket.read_to_string(&mut text)).await.unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    Some((status, text.split_once("\r\n\r\n").map(|(_, body)| body.to_string()).unwrap_or_default()))
}

/// A page of a replica that is up.
pub(super) async fn page(cluster: &Cluster, path: &str) -> (u16, String) {
    asked(cluster, path).await.expect("the page's port answers")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_tell_operators_who_is_connected_and_what_is_published() {
    let mut cluster = Cluster::start().await;
    let token = cluster.proxy_token().await;
    let mut proxy = Proxy::connect(cluster.connect().await, &token, BTreeMap::new()).await.unwrap();
    proxy.until("the mesh", |proxy| proxy.addresses.contains_key(WEB)).await;

    assert_eq!(page(&cluster, "/ready").await, (200, "ready\n".into()));
    let (status, list) = page(&cluster, "/debug/list").await;
    assert_eq!(status, 200);
    let list: BTreeMap<String, String> = serde_json::from_str(&list).unwrap();
    for path in list.keys() {
        let path = path.replace("<pod>.<namespace>", "proxy-n1.ambit-system").replace("<1 to 30>", "1");
        let (status, body) = page(&cluster, &path).await;
        assert_eq!(status, 200, "{path}: {body}");
    }
    let published: Value = serde_json::from_str(&page(&cluster, "/debug/ambientz").await.1).unwrap();
    assert!(published["workloads"].as_array().unwrap().iter().any(|one| one["uid"] == WEB));
    let connections: Value = serde_json::from_str(&page(&cluster, "/debug/connections").await.1).unwrap();
    assert_eq!(connections, json!({ "totalClients": 1, "clients": ["proxy-n1.ambit-system"] }));
    assert_eq!(page(&cluster, "/debug/config_dump?proxyID=nobody.here").await.0, 404);
    let version: Value = serde_json::from_str(&page(&cluster, "/version").await.1).unwrap();
    assert_eq!(version["component"], "ambit-control");
    let metrics = page(&cluster, "/metrics").await.1;
    for line in ["pilot_xds{version=", "pilot_proxy_convergence_time_count", "pilot_services "] {
        assert!(metrics.lines().any(|have| have.starts_with(line)), "{line} in {metrics}");
    }
    cluster.halt().await;
}
