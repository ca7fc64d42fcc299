//! A small cluster, and a control plane that runs on it.

use super::*;

/// An API server with a small cluster in it, and a control plane that runs on it.
pub struct Cluster {
    pub api: lab::api::Server,
    pub client: Client,
    pub bind: IpAddr,
    pub ports: control::Ports,
    /// Length of a stage of a root rotation.
    pub stage: Option<Duration>,
    pub stop: Option<oneshot::Sender<()>>,
    pub control: Option<tokio::task::JoinHandle<Result<(), control::Error>>>,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::remembering(10_000).await
    }

    /// With an API server whose watches may go back over so many changes and no further.
    pub async fn remembering(changes: usize) -> Self {
        let mut cluster = Self::idle(changes).await;
        cluster.pod("shop", "web-0", "web", "10.0.0.3").await;
        let service = json!({
            "metadata": { "name": "web", "namespace": "shop" },
            "spec": { "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 80, "targetPort": "http" }] },
        });
        cluster.ensure::<core::Service>(Some("shop"), service).await;
        cluster.run();
        cluster
    }

    /// With a node proxy and nothing to proxy, and no control plane yet.
    pub async fn idle(changes: usize) -> Self {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let config = lab::api::Config {
            listeners: vec![listener],
            sans: vec![],
            service_cidr: "10.96.0.0/16".parse().unwrap(),
        };
        let api = lab::api::Server::start_remembering(config, changes).await.unwrap();
        let client = api.client().await.unwrap();
        // An address of the loopback of this process's own and ports of this test's own, so that all may run at once.
        static CLUSTERS: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
        let shift = 10 * CLUSTERS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let usual = control::Ports::default();
        let ports = control::Ports {
            grpc: usual.grpc + shift,
            ready: usual.ready + shift,
            monitoring: usual.monitoring + shift,
        };
        let [_, high, middle, low] = std::process::id().to_be_bytes();
        let bind = IpAddr::V4(Ipv4Addr::new(127, 64 | high & 0x3f, middle, low.max(1)));
        let cluster = Self { api, client, bind, ports, stage: None, stop: None, control: None };
        for namespace in ["ambit-system", "shop"] {
            cluster.ensure::<core::Namespace>(None, json!({ "metadata": { "name": namespace } })).await;
        }
        cluster.ensure::<core::Node>(None, json!({ "metadata": { "name": "n1" } })).await;
        for (namespace, account) in [("ambit-system", "ambit-proxy"), ("shop", "web"), ("shop", "idle")] {
            let account = json!({ "metadata": { "name": account, "namespace": namespace } });
            cluster.ensure::<core::ServiceAccount>(Some(namespace), account).await;
        }
        cluster.pod("ambit-system", "proxy-n1", "ambit-proxy", "10.0.0.2").await;
        cluster
    }

    pub fn config(&self) -> control::Config {
        control::Config {
            bind: self.bind,
            ports: self.ports,
            ca_stage: self.stage,
            ..control::Config::default()
        }
    }

    pub fn run(&mut self) {
        let (stop, stopped) = oneshot::channel::<()>();
        let (config, client) = (self.config(), self.client.clone());
        self.stop = Some(stop);
        self.control = Some(tokio::spawn(async move {
            control::run(config, client, async {
                let _ = stopped.await;
            })
            .await
        }));
    }

    pub async fn halt(&mut self) {
        let _ = self.stop.take().unwrap().send(());
        soon("the end of the control plane", self.control.take().unwrap()).await.unwrap().unwrap();
    }

    pub async fn ensure<K>(&self, namespace: Option<&str>, object: Value)
    where
        K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + serde::Serialize + std::fmt::Debug,
    {
        let plural = K::plural(&());
        let resource = kube::core::ApiResource::erase::<K>(&());
        let api = match namespace {
            Some(namespace) => {
                Api::<kube::core::DynamicObject>::namespaced_with(self.client.clone(), namespace, &resource)
            }
            None => Api::all_with(self.client.clone(), &resource),
        };
        let object = serde_json::from_value(object).unwrap();
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_already_exists() => {}
            Err(error) => panic!("create {plural}: {error}"),
        }
    }

    pub async fn pod(&self, namespace: &str, name: &str, account: &str, ip: &str) {
        let pod = json!({
            "metadata": {
                "name": name, "namespace": namespace, "labels": { "app": account },
                "annotations": { "ambient.istio.io/redirection": "enabled" },
            },
            "spec": {
                "serviceAccountName": account, "nodeName": "n1",
                "containers": [{ "name": "c", "image": "c", "ports": [{ "name": "http", "containerPort": 8080 }] }],
            },
        });
        self.ensure::<core::Pod>(Some(namespace), pod).await;
        let status = json!({ "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{ "ip": ip }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        } });
        let api = Api::<core::Pod>::namespaced(self.client.clone(), namespace);
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    }

    pub async fn token(&self, namespace: &str, account: &str, pod: Option<&str>, audience: &str) -> String {
        let bound = match pod {
            Some(name) => {
                let api = Api::<core::Pod>::namespaced(self.client.clone(), namespace);
                Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: Some(name.into()),
                    uid: api.get(name).await.unwrap().metadata.uid,
                })
            }
            None => None,
        };
        let spec = TokenRequestSpec {
            audiences: vec![audience.into()],
            bound_object_ref: bound,
            expiration_seconds: Some(3600),
        };
        let request = TokenRequest { spec, ..TokenRequest::default() };
        let api = Api::<core::ServiceAccount>::namespaced(self.client.clone(), namespace);
        let answer = api.create_token_request(account, &PostParams::default(), &request).await.unwrap();
        answer.status.unwrap().token
    }

    pub async fn proxy_token(&self) -> String {
        self.token("ambit-system", "ambit-proxy", Some("proxy-n1"), "istio-ca").await
    }

    /// The root certificate as a pod of `namespace` would mount it.
    pub async fn root(&self, namespace: &str) -> String {
        let api = Api::<core::ConfigMap>::namespaced(self.client.clone(), namespace);
        let there = |map: Option<&core::ConfigMap>| map.is_some();
        let map = soon("the root certificate", await_condition(api, "istio-ca-root-cert", there)).await;
        map.unwrap().unwrap().data.unwrap()["root-cert.pem"].clone()
    }

    /// A connection as a ztunnel makes it: TLS, the root from the ConfigMap, the name of istiod.
    pub async fn connect(&self) -> Channel {
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(self.root("shop").await))
            .domain_name("istiod.istio-system.svc");
        let endpoint = Endpoint::from_shared(format!("https://{}:{}", self.bind, self.ports.grpc))
            .unwrap()
            .tls_config(tls)
            .unwrap();
        soon("a connection", async {
            loop {
                match endpoint.connect().await {
                    Ok(channel) => return channel,
                    Err(_) if self.control.as_ref().is_none_or(|control| control.is_finished()) => {
                        panic!("the control plane has ended")
                    }
                    // It does not listen before it knows everything.
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        })
        .await
    }
}
