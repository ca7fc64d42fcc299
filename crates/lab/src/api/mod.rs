//! A Kubernetes API server in memory: good enough that kubectl, kube-rs and Prometheus' service discovery work
//! against it unmodified. It owns objects, their history, its certificate authority and its tokens, all of it in
//! memory only. It runs no controllers (that is [`crate::controllers`]) and no pods (that is [`crate::node`]).
//!
//! What it cannot do it refuses with a `Status`. One request runs like this: [`serve`] takes the connection,
//! [`auth`] says who calls, [`route`] what about, [`rbac`] whether they may, [`verbs`] does it as one transaction of the
//! [`store`].

mod admission;
mod auth;
mod bootstrap;
mod convert;
mod crd;
mod discovery;
mod failure;
mod http;
mod kinds;
mod object;
mod openapi;
mod patch;
mod pki;
mod protobuf;
mod rbac;
mod registry;
mod route;
mod selector;
mod serve;
mod store;
mod strict;
mod table;
mod tokens;
mod verbs;

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::Context;
use arc_swap::ArcSwap;
use ipnet::IpNet;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use registry::Registry;

/// How many changes of each resource are remembered for watches.
const HISTORY: usize = 10_000;

/// How a server is set up.
pub struct Config {
    /// Bound listeners: binding is the caller's, so that a taken port is the caller's error. The first names the URL.
    pub listeners: Vec<std::net::TcpListener>,
    /// Extra DNS names and addresses of the serving certificate besides localhost, 127.0.0.1, the listeners' own
    /// addresses and `kubernetes.default.svc.cluster.local` with its shorter forms.
    pub sans: Vec<String>,
    /// Where ClusterIPs come from.
    pub service_cidr: IpNet,
}

/// What every request works with.
pub(crate) struct Api {
    store: store::Store,
    registry: ArcSwap<Registry>,
    tokens: tokens::Tokens,
    authority: pki::Authority,
    service_cidr: IpNet,
    address: SocketAddr,
    /// How kubelets are dialled.
    kubelet: tokio_rustls::TlsConnector,
    closing: CancellationToken,
}

/// A running server. Dropping it stops it; [`Server::shutdown`] does so cleanly.
pub struct Server {
    api: Arc<Api>,
    url: String,
    tasks: JoinSet<()>,
    admin: pki::Issued,
}

impl Server {
    /// Starts a server, which serves when this returns.
    pub async fn start(config: Config) -> anyhow::Result<Server> {
        Server::start_remembering(config, HISTORY).await
    }

    /// Starts a server whose watches may go back over the last `changes` of each resource and no further.
    pub async fn start_remembering(config: Config, changes: usize) -> anyhow::Result<Server> {
        // Another provider may be there already, installed by the process's entry: it is the same one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let first = config.listeners.first().context("the API server needs at least one bound listener")?;
        let address = first.local_addr().context("ask the API server's listener for its address")?;
        let authority = pki::Authority::generate()?;
        let mut names: Vec<String> = [
            "localhost",
            "127.0.0.1",
            "::1",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ]
        .map(String::from)
        .into();
        names.extend(config.listeners.iter().filter_map(|l| l.local_addr().ok()).map(|a| a.ip().to_string()));
        names.extend(config.sans);
        names.sort();
        names.dedup();
        let identity = authority.server(names)?;
        let admin = authority.client("kubernetes-admin", &["system:masters"])?;
        let api = Arc::new(Api {
            store: store::Store::new(changes),
            registry: ArcSwap::from_pointee(Registry::new(std::iter::empty())),
            tokens: tokens::Tokens::generate()?,
            kubelet: verbs::kubelet_connector(&authority)?,
            authority,
            service_cidr: config.service_cidr,
            address,
            closing: CancellationToken::new(),
        });
        bootstrap::fill(&api)?;
        let tls = serve::tls(&api.authority, identity)?;
        let mut tasks = JoinSet::new();
        for listener in config.listeners {
            listener.set_nonblocking(true)?;
            let listener = tokio::net::TcpListener::from_std(listener)?;
            tasks.spawn(serve::accept(api.clone(), listener, tls.clone()));
        }
        let host = match address {
            SocketAddr::V4(v4) if v4.ip().is_unspecified() => format!("127.0.0.1:{}", v4.port()),
            SocketAddr::V6(v6) if v6.ip().is_unspecified() => format!("[::1]:{}", v6.port()),
            address => address.to_string(),
        };
        Ok(Server { api, url: format!("https://{host}"), tasks, admin })
    }

    /// `https://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        self.url.clone()
    }

    /// The certificate of the authority that signed the serving certificate, PEM.
    pub fn ca_pem(&self) -> String {
        self.api.authority.pem().to_owned()
    }

    /// A kubeconfig of the administrator, whose cluster and context have this name.
    pub fn admin_kubeconfig(&self, cluster_and_context: &str) -> kube::config::Kubeconfig {
        use base64::Engine;
        let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let user = format!("{cluster_and_context}-admin");
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": cluster_and_context, "cluster": {
                "server": self.url, "certificate-authority-data": base64(self.api.authority.pem()),
            } }],
            "users": [{ "name": user, "user": {
                "client-certificate-data": base64(&self.admin.certificate_pem),
                "client-key-data": base64(&self.admin.key_pem),
            } }],
            "contexts": [{ "name": cluster_and_context, "context": { "cluster": cluster_and_context, "user": user } }],
            "current-context": cluster_and_context,
        });
        // The value above is of the type's own shape, so an error here cannot come from any input.
        serde_json::from_value(config).unwrap_or_default()
    }

    /// A client of the administrator.
    pub async fn client(&self) -> anyhow::Result<kube::Client> {
        let kubeconfig = self.admin_kubeconfig("ambit-lab");
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// Ends watches and connections, and stops serving; bounded to a few seconds.
    pub async fn shutdown(mut self) {
        self.api.closing.cancel();
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(std::time::Duration::from_secs(5), all).await.is_err() {
            tracing::warn!("the API server's connections did not end within 5 s and are cut");
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.api.closing.cancel();
    }
}
