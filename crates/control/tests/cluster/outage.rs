//! The Kubernetes API away for a while, and back without the memory of what happened meanwhile.

use kube::api::WatchParams;
use kube::core::WatchEvent;
use parking_lot::Mutex;

use super::*;

/// A way to the API server that can be cut and mended.
struct Line {
    address: std::net::SocketAddr,
    up: tokio::sync::watch::Sender<bool>,
}

impl Line {
    async fn to(server: std::net::SocketAddr) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (up, state) = tokio::sync::watch::channel(true);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut state = state.clone();
                if !*state.borrow() {
                    continue;
                }
                tokio::spawn(async move {
                    let Ok(mut far) = tokio::net::TcpStream::connect(server).await else { return };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                        _ = state.wait_for(|up| !up) => {}
                    }
                });
            }
        });
        Self { address, up }
    }
}

impl Cluster {
    /// A control plane behind a line to an API server that remembers so many changes.
    async fn behind_a_line(changes: usize) -> (Self, Line) {
        let mut cluster = Self::remembering(changes).await;
        cluster.root("shop").await;
        cluster.halt().await;
        let line = Line::to(cluster.api.url().strip_prefix("https://").unwrap().parse().unwrap()).await;
        let mut kubeconfig = cluster.api.admin_kubeconfig("ambit-lab");
        kubeconfig.clusters[0].cluster.as_mut().unwrap().server = Some(format!("https://{}", line.address));
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        let direct = std::mem::replace(&mut cluster.client, Client::try_from(config).unwrap());
        cluster.run();
        cluster.client = direct;
        (cluster, line)
    }
}

const NEXT: &str = "Kubernetes//Pod/shop/web-1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_the_api_forgets_nothing_and_is_caught_up_with() {
    let (mut cluster, line) = Cluster::behind_a_line(10_000).await;
    let token = cluster.proxy_token().await;
    let channel = cluster.connect().await;
    let mut proxy = Proxy::connect(channel.clone(), &token, BTreeMap::new()).await.unwrap();
    proxy.until("the mesh", |proxy| proxy.addresses.contains_key(WEB)).await;

    line.up.send_replace(false);
    cluster.pod("shop", "web-1", "web", "10.0.0.4").await;
    let pods = Api::<core::Pod>::namespaced(cluster.client.clone(), "shop");
    pods.delete("web-0", &kube::api::DeleteParams::default().grace_period(0)).await.unwrap();
    // Without the API the mesh is served as it was last known, and certificates are issued.
    let mut other = Proxy::connect(channel.clone(), &token, BTreeMap::new()).await.unwrap();
    other.until("the mesh as last known", |proxy| proxy.addresses.contains_key(WEB)).await;
    certificate(channel, &token, "spiffe://cluster.local/ns/shop/sa/web").await.unwrap();

    line.up.send_replace(true);
    proxy
        .until("what happened meanwhile", |proxy| {
            proxy.addresses.contains_key(NEXT) && !proxy.addresses.contains_key(WEB)
        })
        .await;
    cluster.halt().await;
}

/// 410 Gone: between what the control plane heard last and now lies more than the API remembers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_api_no_longer_remembers_is_listed_anew_and_clients_hear_only_what_is_different() {
    const REMEMBERED: usize = 64;
    let (mut cluster, line) = Cluster::behind_a_line(REMEMBERED).await;
    let token = cluster.proxy_token().await;
    let mut proxy = Proxy::connect(cluster.connect().await, &token, BTreeMap::new()).await.unwrap();
    proxy.until("the mesh", |proxy| proxy.addresses.contains_key(WEB)).await;

    line.up.send_replace(false);
    let pods = Api::<core::Pod>::namespaced(cluster.client.clone(), "shop");
    let last_heard = pods.list(&kube::api::ListParams::default()).await.unwrap().metadata;
    let last_heard = last_heard.resource_version.unwrap();
    pods.delete("web-0", &kube::api::DeleteParams::default().grace_period(0)).await.unwrap();
    cluster.pod("shop", "web-1", "web", "10.0.0.4").await;
    for turn in 0..=REMEMBERED {
        let noise = json!({ "metadata": { "annotations": { "turn": turn.to_string() } } });
        pods.patch("web-1", &PatchParams::default(), &Patch::Merge(&noise)).await.unwrap();
    }
    // Nobody who has not heard since can go on from there.
    let refused = async {
        use futures::StreamExt;
        let stream = pods.watch(&WatchParams::default(), &last_heard).await?;
        std::pin::pin!(stream).next().await.unwrap()
    };
    match soon("an answer to the watch", refused).await {
        Ok(WatchEvent::Error(status)) => assert_eq!(status.code, 410),
        Err(kube::Error::Api(status)) => assert_eq!(status.code, 410),
        other => panic!("{other:?}"),
    }

    line.up.send_replace(true);
    let (mut told, mut removed) = (Vec::new(), Vec::new());
    while !proxy.addresses.contains_key(NEXT) || proxy.addresses.contains_key(WEB) {
        let response = proxy.next().await.unwrap();
        told.extend(response.resources.into_iter().map(|resource| resource.name));
        removed.extend(response.removed_resources);
    }
    assert_eq!((told, removed), (vec![NEXT.to_string()], vec![WEB.to_string()]));
    // The new watch works.
    cluster.pod("shop", "web-2", "web", "10.0.0.5").await;
    proxy.until("a new workload", |proxy| proxy.addresses.contains_key("Kubernetes//Pod/shop/web-2")).await;
    cluster.halt().await;
}

/// Everything is there but what one kind of object says: nobody is served half a mesh, and who waits says for what.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_served_before_every_kind_has_been_listed_once() {
    let mut cluster = Cluster::remembering(10_000).await;
    let token = cluster.proxy_token().await;
    cluster.root("shop").await;
    cluster.halt().await;
    let (release, held) = tokio::sync::watch::channel(false);
    let direct = cluster.client.clone();
    let service = tower::service_fn({
        let direct = direct.clone();
        move |request: http::Request<kube::client::Body>| {
            let (direct, mut held) = (direct.clone(), held.clone());
            async move {
                if request.uri().path().ends_with("/endpointslices") {
                    let _ = held.wait_for(|released| *released).await;
                }
                direct.send(request).await.map_err(tower::BoxError::from)
            }
        }
    });
    cluster.client = Client::new(service, "ambit-system");
    cluster.run();
    cluster.client = direct;
    let waits = soon("word of what is waited for", async {
        loop {
            let answer = super::replicas::asked(&cluster, "/ready").await;
            match answer {
                Some((503, text)) if text.ends_with("of: endpointslices\n") => return text,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await;
    assert_eq!(waits, "waiting for the first complete list of: endpointslices\n");
    let port = tokio::net::TcpStream::connect((cluster.bind, cluster.ports.grpc)).await;
    assert_eq!(port.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);

    release.send_replace(true);
    let mut proxy = Proxy::connect(cluster.connect().await, &token, BTreeMap::new()).await.unwrap();
    proxy.until("the mesh", |proxy| proxy.addresses.contains_key(WEB)).await;
    assert_eq!(super::replicas::page(&cluster, "/ready").await, (200, "ready\n".into()));
    cluster.halt().await;
}

/// A client of whatever API server there is at the moment.
fn client_of(current: Arc<Mutex<Option<Client>>>) -> Client {
    let service = tower::service_fn(move |request| {
        let current = current.lock().clone();
        async move {
            match current {
                Some(client) => client.send(request).await.map_err(tower::BoxError::from),
                None => Err("nobody listens".into()),
            }
        }
    });
    Client::new(service, "ambit-system")
}

/// Restored from a backup: versions count from further back, what was written since is gone, and what goes by a name
/// may be something else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_comes_back_older_is_believed_whole_and_at_no_time_is_the_mesh_empty() {
    let backup = Cluster::idle(10_000).await;
    let mut cluster = Cluster::idle(10_000).await;
    let current = Arc::new(Mutex::new(Some(cluster.client.clone())));
    cluster.client = client_of(current.clone());
    for index in 0..20 {
        cluster.pod("shop", &format!("web-{index}"), "web", &format!("10.0.1.{index}")).await;
    }
    let service = |port: u16| {
        json!({
            "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "selector": { "app": "web" }, "ports": [{ "name": "http", "port": port, "targetPort": "http" }] },
        })
    };
    cluster.ensure::<core::Service>(Some("shop"), service(80)).await;
    cluster.run();
    let token = cluster.proxy_token().await;
    let channel = cluster.connect().await;
    let mut proxy = Proxy::connect(channel.clone(), &token, BTreeMap::new()).await.unwrap();
    proxy.until("the mesh", |proxy| proxy.addresses.contains_key("Kubernetes//Pod/shop/web-19")).await;

    // An hour ago there were a pod that has gone since, one at another address, and a service with another port.
    backup.pod("shop", "old", "web", "10.0.0.8").await;
    backup.pod("shop", "web-0", "web", "10.0.0.9").await;
    backup.ensure::<core::Service>(Some("shop"), service(8080)).await;
    let version = async |client: &Client| -> u64 {
        let pods = Api::<core::Pod>::all(client.clone());
        let list = pods.list(&kube::api::ListParams::default()).await.unwrap();
        list.metadata.resource_version.unwrap().parse().unwrap()
    };
    assert!(version(&backup.client).await < version(&cluster.client).await, "versions go back");
    // The authority stands in it as it does now: what becomes of a lost one is another test's.
    let secrets = |client: &Client| Api::<core::Secret>::namespaced(client.clone(), "ambit-system");
    let mut secret = secrets(&cluster.client).get("istio-ca-secret").await.unwrap();
    secret.metadata.resource_version = None;
    secrets(&backup.client).create(&PostParams::default(), &secret).await.unwrap();

    current.lock().take();
    std::mem::replace(&mut cluster.api, backup.api).shutdown().await;
    *current.lock() = Some(backup.client.clone());

    let old = "Kubernetes//Pod/shop/old";
    let port =
        |proxy: &Proxy| match proxy.addresses.get(SERVICE).map(|(_, address)| address.clone().try_into()) {
            Some(Ok(wire::Address::Service(service))) => service.ports[0].service_port,
            other => panic!("{other:?}"),
        };
    while !proxy.addresses.contains_key(old)
        || proxy.addresses.contains_key("Kubernetes//Pod/shop/web-19")
        || port(&proxy) != 8080
    {
        proxy.next().await.unwrap();
        for name in [PROXY, WEB, SERVICE] {
            assert!(proxy.addresses.contains_key(name), "{name} is in both and never gone");
        }
    }
    // What stands there now is what one who has only ever known the backup is told.
    let token = cluster.proxy_token().await;
    let mut fresh = Proxy::connect(channel.clone(), &token, BTreeMap::new()).await.unwrap();
    fresh.until("the mesh", |proxy| proxy.addresses.contains_key(old)).await;
    assert_eq!(proxy.addresses, fresh.addresses);
    let ours = fresh.addresses.keys().map(String::as_str).filter(|name| name.contains("shop/"));
    assert_eq!(ours.collect::<Vec<_>>(), [old, WEB, SERVICE]);
    // Watches work, and what the control plane had written comes back under the same root.
    cluster.pod("shop", "web-1", "web", "10.0.0.4").await;
    proxy.until("a new workload", |proxy| proxy.addresses.contains_key(NEXT)).await;
    let maps = Api::<core::ConfigMap>::namespaced(backup.client.clone(), "shop");
    let there = |map: Option<&core::ConfigMap>| map.is_some();
    soon("the root certificate", await_condition(maps, "istio-ca-root-cert", there)).await.unwrap();
    cluster.halt().await;
}
