//! TLS and tokens: what production has on the port, and what clients need to call it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use control::auth::KubernetesReviewer;
use control::ca::Authority;
use control::serve::{self, Serving};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1 as core;
use kube::api::PostParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint};

use crate::clients::Calls;

const NAME: &str = "istiod.istio-system.svc";

/// The port as it is in production.
pub struct Port {
    serving: Arc<Serving>,
    root: String,
    place: PathBuf,
}

impl Port {
    /// With an authority of its own, whose root the clients find at [`Port::place`].
    pub fn new() -> Self {
        let now = SystemTime::now();
        let authority = Authority::self_signed("cluster.local", now).expect("an authority");
        let serving = Serving::new(&authority, vec![NAME.into()], now).expect("a certificate");
        let place = std::env::temp_dir().join(format!("ambit-bench-{}", std::process::id()));
        std::fs::create_dir_all(&place).expect("a directory");
        let root = authority.root_bundle().to_string();
        std::fs::write(place.join("root.pem"), &root).expect("a file");
        Self { serving: Arc::new(serving), root, place }
    }

    /// Where both processes leave what the other one needs.
    pub fn place(&self) -> &Path {
        &self.place
    }

    /// Has tokens reviewed by the API server beside the clients.
    pub async fn reviewer(&self) -> KubernetesReviewer {
        let kubeconfig = Kubeconfig::read_from(self.place.join("kubeconfig")).expect("a kubeconfig");
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a cluster");
        KubernetesReviewer::new(Client::try_from(config).expect("a client"), vec!["istio-ca".into()])
    }

    /// Connections that have shaken hands.
    pub fn incoming(
        &self,
        listener: tokio::net::TcpListener,
    ) -> ReceiverStream<
        std::io::Result<
            impl tokio::io::AsyncRead
            + tokio::io::AsyncWrite
            + tonic::transport::server::Connected
            + Unpin
            + Send
            + 'static
            + use<>,
        >,
    > {
        let tls = serve::tls(self.serving.clone(), &self.root).expect("TLS");
        let (connections, accepted) = mpsc::channel(64);
        let (keep, tls) = watch::channel(tls);
        tokio::spawn(async move {
            serve::accept(listener, tls, connections).await;
            drop(keep);
        });
        ReceiverStream::new(accepted)
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.place);
    }
}

/// Calls without either.
pub fn plain(address: &str, count: usize) -> Calls {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
    Calls { endpoint, tokens: vec!["bench".into(); count], beside: None }
}

/// Calls with TLS, and a token each, of an API server that runs from now on.
pub async fn calls(address: &str, place: &Path, count: usize) -> Calls {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let config = lab::api::Config {
        listeners: vec![listener],
        sans: vec![],
        service_cidr: "10.96.0.0/16".parse().expect("a block"),
    };
    let api = lab::api::Server::start(config).await.expect("an API server");
    let client = api.client().await.expect("a client");
    let object = serde_json::json!({ "metadata": { "name": "ambit-system" } });
    let namespace: core::Namespace = serde_json::from_value(object).expect("an object");
    Api::all(client.clone()).create(&PostParams::default(), &namespace).await.expect("a namespace");
    let object = serde_json::json!({ "metadata": { "name": "ztunnel" } });
    let account: core::ServiceAccount = serde_json::from_value(object).expect("an object");
    let accounts = Api::<core::ServiceAccount>::namespaced(client, "ambit-system");
    accounts.create(&PostParams::default(), &account).await.expect("an account");
    let spec = TokenRequestSpec { audiences: vec!["istio-ca".into()], ..TokenRequestSpec::default() };
    let request = TokenRequest { spec, ..TokenRequest::default() };
    let mut tokens = Vec::with_capacity(count);
    for _ in 0..count {
        let answer = accounts.create_token_request("ztunnel", &PostParams::default(), &request).await;
        tokens.push(answer.expect("a token").status.expect("a token").token);
    }
    let kubeconfig = serde_json::to_string(&api.admin_kubeconfig("bench")).expect("a kubeconfig");
    std::fs::write(place.join("kubeconfig"), kubeconfig).expect("a file");

    let root = std::fs::read(place.join("root.pem")).expect("the root certificate");
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(root)).domain_name(NAME);
    let endpoint = Endpoint::from_shared(format!("https://{address}")).expect("an address");
    Calls { endpoint: endpoint.tls_config(tls).expect("TLS"), tokens, beside: Some(api) }
}
