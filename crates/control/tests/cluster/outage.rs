//! The Kubernetes API away for a while, and back without the memory of what happened meanwhile.

use kube::api::WatchParams;
use kube::core::WatchEvent;

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
