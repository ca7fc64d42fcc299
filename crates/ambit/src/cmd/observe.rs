//! `ambit observe`: flow store, traffic graph, scrape proof and web UI, as they run in their Deployment.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use enroll::eligibility::DEFAULT_EXCLUDED;
use observe::certs::Authority;
use observe::cluster::Special;
use observe::ingest::{Account, Trust};
use observe::scrape::Named;
use observe::store::Limits;
use observe::{Config, run as observe_until};

/// Settings; each has the environment variable that the node proxy uses, where there is one.
#[derive(clap::Args)]
pub struct Args {
    /// Address of API and web UI; on anything but loopback, Kubernetes tokens are needed
    #[arg(long, default_value = "127.0.0.1:15030")]
    api_address: SocketAddr,
    /// Address on which node proxies push their flows
    #[arg(long, default_value = "0.0.0.0:15011")]
    ingest_address: SocketAddr,
    /// Address of /metrics, /healthz and /readyz
    #[arg(long, default_value = "0.0.0.0:15014")]
    monitoring_address: SocketAddr,
    /// Namespace of the mesh
    #[arg(long, env = "POD_NAMESPACE", default_value = "ambit-system")]
    namespace: String,
    /// Namespaces that the node agents leave out, whatever their labels are, comma-separated
    #[arg(long, env = "EXCLUDE_NAMESPACES", value_delimiter = ',', default_value = DEFAULT_EXCLUDED)]
    exclude_namespaces: Vec<String>,
    /// Own service account
    #[arg(long, env = "SERVICE_ACCOUNT", default_value = "ambit-observe")]
    service_account: String,
    /// Trust domain of every identity
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// Name of this cluster
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    cluster_id: String,
    /// The certificate authority
    #[arg(long, env = "CA_ADDRESS", default_value = "https://ambit-control.ambit-system.svc:15012")]
    ca_address: String,
    /// Root certificates that the authority is checked against
    #[arg(long, env = "CA_ROOT_CA", default_value = "/var/run/secrets/istio/root-cert.pem")]
    ca_root: PathBuf,
    /// Token for the authority
    #[arg(long, env = "AUTH_TOKEN", default_value = "/var/run/secrets/tokens/istio-token")]
    token: PathBuf,
    /// Accounts of node proxies, namespace/name, comma-separated
    #[arg(
        long,
        env = "CA_TRUSTED_NODE_ACCOUNTS",
        value_delimiter = ',',
        default_value = "ambit-system/ambit-proxy,ambit-system/ztunnel,istio-system/ztunnel"
    )]
    trusted_node_accounts: Vec<Account>,
    /// Let node proxies report from any address: for networks that translate addresses
    #[arg(long)]
    ignore_proxy_addresses: bool,
    /// A Prometheus that is not found by itself, [NAMESPACE/POD=]URL; may be given several times
    #[arg(long, value_name = "PROMETHEUS")]
    prometheus: Vec<Named>,
    /// Pairs that one node proxy may fill
    #[arg(long, default_value_t = Limits::default().lanes_per_proxy)]
    max_pairs_per_proxy: u32,
    /// Pairs that are kept altogether
    #[arg(long, default_value_t = Limits::default().lanes)]
    max_pairs: usize,
}

/// Runs until SIGTERM or Ctrl-C.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    crate::logging::init();
    let identity = mesh::Identity::new(
        args.trust_domain.as_str(),
        args.namespace.as_str(),
        args.service_account.as_str(),
    )
    .context("--trust-domain, --namespace and --service-account make no identity")?;
    let config = Config {
        api: args.api_address,
        ingest: args.ingest_address,
        monitoring: args.monitoring_address,
        identity,
        special: Special { system: args.namespace, excluded: args.exclude_namespaces },
        authority: Authority {
            address: args.ca_address,
            root: args.ca_root,
            token: args.token,
            cluster: args.cluster_id,
        },
        trust: Trust {
            trust_domain: args.trust_domain,
            accounts: args.trusted_node_accounts,
            check_addresses: !args.ignore_proxy_addresses,
        },
        prometheis: args.prometheus,
        limits: Limits {
            lanes: args.max_pairs,
            lanes_per_proxy: args.max_pairs_per_proxy,
            ..Limits::default()
        },
    };
    super::block_on(async {
        let client = kube::Client::try_default().await.context(
            "no Kubernetes API to talk to; run in a pod with a service account, or set KUBECONFIG",
        )?;
        observe_until(config, client, terminated()?).await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// Until the process is asked to end.
fn terminated() -> anyhow::Result<impl Future<Output = ()> + Send> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
