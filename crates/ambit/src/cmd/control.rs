//! `ambit control`: the control plane, as it runs in its Deployment.

use std::net::IpAddr;
use std::process::ExitCode;

use control::{Account, Config, Ports};

/// Settings; each has the environment variable that istiod's Deployment uses, where there is one.
#[derive(clap::Args)]
pub struct Args {
    /// Namespace the control plane runs in; its policies hold for the whole mesh
    #[arg(long, env = "POD_NAMESPACE", default_value = "ambit-system")]
    namespace: String,
    /// Name of this pod; leases are held under it
    #[arg(long, env = "POD_NAME", default_value = "")]
    pod_name: String,
    /// Name of this cluster
    #[arg(long, env = "CLUSTER_ID", default_value = "Kubernetes")]
    cluster_id: String,
    /// Trust domain of every identity
    #[arg(long, env = "TRUST_DOMAIN", default_value = "cluster.local")]
    trust_domain: String,
    /// DNS domain of services
    #[arg(long, env = "CLUSTER_DOMAIN", default_value = "cluster.local")]
    domain: String,
    /// Revision; policies labelled with another one are left out
    #[arg(long, env = "REVISION", default_value = "default")]
    revision: String,
    /// Address to listen on
    #[arg(long, default_value = "0.0.0.0")]
    bind: IpAddr,
    /// Port of xDS and the certificate authority
    #[arg(long, default_value_t = Ports::default().grpc)]
    grpc_port: u16,
    /// Port of /ready
    #[arg(long, default_value_t = Ports::default().ready)]
    ready_port: u16,
    /// Port of /metrics
    #[arg(long, default_value_t = Ports::default().monitoring)]
    monitoring_port: u16,
    /// Accounts of node proxies, namespace/name, comma-separated
    #[arg(
        long,
        env = "CA_TRUSTED_NODE_ACCOUNTS",
        value_delimiter = ',',
        default_value = "ambit-system/ambit-proxy,ambit-system/ztunnel,istio-system/ztunnel"
    )]
    trusted_node_accounts: Vec<Account>,
    /// Audiences of tokens, comma-separated
    #[arg(long, env = "TOKEN_AUDIENCES", value_delimiter = ',', default_value = "istio-ca")]
    token_audiences: Vec<String>,
    /// Further DNS names for the serving certificate, comma-separated
    #[arg(long, env = "ISTIOD_CUSTOM_HOST", value_delimiter = ',')]
    extra_names: Vec<String>,
    /// Directory with the files of a plugged-in authority; Secret cacerts is looked at without it too
    #[arg(long, env = "ROOT_CA_DIR")]
    ca_directory: Option<std::path::PathBuf>,
    /// Seconds that a stage of a root rotation lasts; as long as certificates live when not given
    #[arg(long, env = "CA_ROTATION_STAGE_SECONDS")]
    ca_stage_seconds: Option<u64>,
}

/// Runs until SIGTERM or Ctrl-C.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    super::super::logging::init();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = Config {
        namespace: args.namespace,
        pod_name: args.pod_name,
        cluster: args.cluster_id,
        trust_domain: args.trust_domain,
        domain: args.domain,
        revision: if args.revision.is_empty() { "default".into() } else { args.revision },
        bind: args.bind,
        ports: Ports { grpc: args.grpc_port, ready: args.ready_port, monitoring: args.monitoring_port },
        trusted_node_accounts: args.trusted_node_accounts,
        token_audiences: args.token_audiences,
        extra_names: args.extra_names,
        ca_directory: args.ca_directory,
        ca_stage: args.ca_stage_seconds.map(std::time::Duration::from_secs),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        // Each error is one sentence that carries its causes already.
        let client = kube::Client::try_default().await.map_err(|error| {
            anyhow::anyhow!("no Kubernetes API to talk to; run in a pod with a service account, or set KUBECONFIG ({error})")
        })?;
        control::run(config, client, terminated()?).await.map_err(|error| anyhow::anyhow!("{error}"))?;
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
