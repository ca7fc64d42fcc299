//! `ambit agent`: the node agent, as it runs in its DaemonSet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use enroll::cni::access::Access;
use enroll::config::{CniInstall, Config, PROBE_SNAT_V4, PROBE_SNAT_V6};
use enroll::eligibility::{DEFAULT_EXCLUDED, SelectorPair, default_selectors};
use enroll::firewall::Backend;
use enroll::privileges;
use tokio::signal::unix::{SignalKind, signal};

/// Where Kubernetes puts what a pod's service account may use.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Settings; each has the environment variable that istio-cni's DaemonSet uses, where there is one.
#[derive(clap::Args)]
pub struct Args {
    /// The node whose pods are enrolled
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// Namespace of the agent's own pod
    #[arg(long, env = "POD_NAMESPACE", default_value = "ambit-system")]
    namespace: String,
    /// The agent's DaemonSet: while it exists, pods stay enrolled when the agent ends
    #[arg(long, env = "AMBIT_AGENT_DAEMONSET", default_value = "ambit-agent")]
    daemonset: String,
    /// Which pods are enrolled: a YAML list of podSelector and namespaceSelector
    #[arg(long, env = "AMBIENT_ENABLEMENT_SELECTOR")]
    enablement_selector: Option<String>,
    /// Namespaces whose pods are never enrolled, comma-separated
    #[arg(long, env = "EXCLUDE_NAMESPACES", value_delimiter = ',', default_value = DEFAULT_EXCLUDED)]
    exclude_namespaces: Vec<String>,
    /// Send the pods' DNS queries to the node proxy
    #[arg(long, env = "AMBIENT_DNS_CAPTURE", action = clap::ArgAction::Set, default_value_t = true)]
    dns_capture: bool,
    /// Carry IPv6; when off, IPv6 TCP of enrolled pods is refused
    #[arg(long, env = "AMBIENT_IPV6", action = clap::ArgAction::Set, default_value_t = true)]
    ipv6: bool,
    /// How rules are written: auto (nftables where it works), nft, iptables, iptables-nft or iptables-legacy
    #[arg(long, env = "AMBIT_FIREWALL", default_value = "auto")]
    firewall: String,
    /// Clean up at every end, also when the DaemonSet still exists
    #[arg(long, env = "AMBIENT_DISABLE_SAFE_UPGRADE", action = clap::ArgAction::Set, default_value_t = false)]
    disable_safe_upgrade: bool,
    /// Socket that node proxies connect to
    #[arg(long, env = "ZTUNNEL_UDS_ADDRESS", default_value = "/var/run/ztunnel/ztunnel.sock")]
    zds_socket: PathBuf,
    /// Directory where the CNI plugin finds the agent; the same path on the node
    #[arg(long, env = "CNI_AGENT_RUN_DIR", default_value = "/var/run/istio-cni")]
    run_dir: PathBuf,
    /// Install the CNI plugin
    #[arg(long, env = "AMBIT_INSTALL_CNI", action = clap::ArgAction::Set, default_value_t = true)]
    install_cni: bool,
    /// Put the plugin into the cluster's own network configuration; off: into one of its own (Multus, OpenShift)
    #[arg(long, env = "CHAINED_CNI_PLUGIN", action = clap::ArgAction::Set, default_value_t = true)]
    chained: bool,
    /// While neither the agent nor the API server can tell of a new pod it waits, not only in namespaces known to be in
    /// the mesh
    #[arg(long, env = "AMBIT_CNI_HOLD_ALL", action = clap::ArgAction::Set, default_value_t = false)]
    hold_all: bool,
    /// Directory of the node's network configurations
    #[arg(long, env = "MOUNTED_CNI_NET_DIR", default_value = "/host/etc/cni/net.d")]
    cni_net_dir: PathBuf,
    /// Directory of the node's CNI plugins
    #[arg(long, env = "MOUNTED_CNI_BIN_DIR", default_value = "/host/opt/cni/bin")]
    cni_bin_dir: PathBuf,
    /// Look where the node's runtime really searches for both; off: only the two directories above are used
    #[arg(long, env = "AMBIT_CNI_DETECT", action = clap::ArgAction::Set, default_value_t = true)]
    cni_detect: bool,
    /// Network configuration to extend; the first valid one when not given
    #[arg(long, env = "CNI_CONF_NAME")]
    cni_conf_name: Option<String>,
    /// The node's /proc
    #[arg(long, env = "HOST_PROC", default_value = "/host/proc")]
    host_proc: PathBuf,
    /// Where the node's file system is mounted
    #[arg(long, env = "HOST_ROOT", default_value = "/host")]
    host_root: PathBuf,
    /// Port of /metrics, 0 for none
    #[arg(long, env = "MONITORING_PORT", default_value_t = 15014)]
    monitoring_port: u16,
    /// Port of /readyz and /healthz, 0 for none
    #[arg(long, env = "HEALTH_PORT", default_value_t = 8000)]
    health_port: u16,
    /// Port on loopback that `ambit explain pod` asks, 0 for none
    #[arg(long, env = "AMBIT_STATUS_PORT", default_value_t = enroll::config::STATUS_PORT)]
    status_port: u16,
    /// Source address of probes as pods see them
    #[arg(long, env = "HOST_PROBE_SNAT_IP", default_value_t = PROBE_SNAT_V4)]
    probe_snat_ip: Ipv4Addr,
    /// The same for IPv6
    #[arg(long, env = "HOST_PROBE_SNAT_IPV6", default_value_t = PROBE_SNAT_V6)]
    probe_snat_ipv6: Ipv6Addr,
    /// Seconds after which a connection older than the enrolment is ended although it never was idle
    #[arg(long, env = "AMBIT_OLDER_CONNECTIONS_GRACE", default_value_t = 600)]
    older_connections_grace: u64,
    /// Address of the API server; connections to it are never ended
    #[arg(long, env = "KUBERNETES_SERVICE_HOST")]
    api_host: Option<String>,
    /// Port of the API server
    #[arg(long, env = "KUBERNETES_SERVICE_PORT", default_value_t = 443)]
    api_port: u16,
}

/// Runs until SIGTERM or Ctrl-C.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    super::super::logging::init();
    let backend = match args.firewall.as_str() {
        "auto" => Backend::detect()?,
        name => Backend::named(name).with_context(|| {
            format!("AMBIT_FIREWALL={name}: write auto, nft, iptables, iptables-nft or iptables-legacy")
        })?,
    };
    // While there is one thread only: capabilities belong to threads.
    if let Err(error) = privileges::drop_to(&privileges::needed(backend)) {
        tracing::warn!(%error, "cannot give up the capabilities that are not needed");
    }
    let config = args.config(backend)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build()?;
    runtime.block_on(async {
        let client = kube::Client::try_default().await.context(
            "no way to the Kubernetes API: neither a service account nor a kubeconfig can be used",
        )?;
        let stop = enroll::CancellationToken::new();
        let stopping = stop.clone();
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::spawn(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            stopping.cancel();
        });
        enroll::run(config, client, stop).await
    })?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn config(self, firewall: Backend) -> anyhow::Result<Config> {
        let selectors = match self.enablement_selector.as_deref().map(str::trim) {
            None | Some("") => default_selectors(),
            Some(text) => serde_saphyr::from_str::<Vec<SelectorPair>>(text)
                .context("AMBIENT_ENABLEMENT_SELECTOR is not a list of podSelector and namespaceSelector")?,
        };
        let excluded = self.exclude_namespaces.iter().map(|name| name.trim().to_owned());
        let api: Option<IpAddr> = self.api_host.as_deref().and_then(|host| host.parse().ok());
        // As the API server shows itself to every pod; the agent has the network of its host, where the plugin runs too.
        let access = self.api_host.as_deref().map(|host| Access {
            server: match api {
                Some(IpAddr::V6(ip)) => format!("https://[{ip}]:{}", self.api_port),
                _ => format!("https://{host}:{}", self.api_port),
            },
            ca_file: format!("{SERVICE_ACCOUNT}/ca.crt").into(),
            token_file: format!("{SERVICE_ACCOUNT}/token").into(),
        });
        let cni = self.install_cni.then(|| CniInstall {
            net_dir: self.cni_net_dir,
            bin_dir: self.cni_bin_dir,
            node_root: self.cni_detect.then(|| self.host_proc.join("1/root")),
            conf_name: self.cni_conf_name.filter(|name| !name.is_empty()),
            chained: self.chained,
            binary: "/proc/self/exe".into(),
        });
        Ok(Config {
            node_name: self.node_name,
            namespace: self.namespace,
            daemonset: self.daemonset,
            selectors,
            exclude_namespaces: excluded.filter(|name| !name.is_empty()).collect(),
            dns_capture: self.dns_capture,
            ipv6: self.ipv6,
            firewall,
            probe_v4: self.probe_snat_ip,
            probe_v6: self.probe_snat_ipv6,
            zds_socket: self.zds_socket,
            run_dir: self.run_dir,
            hold_all: self.hold_all,
            access,
            cni,
            host_proc: self.host_proc,
            host_root: self.host_root,
            monitoring_port: self.monitoring_port,
            health_port: self.health_port,
            status_port: self.status_port,
            older_grace: Duration::from_secs(self.older_connections_grace),
            never_end: api.map(|ip| SocketAddr::new(ip, self.api_port)).into_iter().collect(),
            safe_upgrade: !self.disable_safe_upgrade,
        })
    }
}
