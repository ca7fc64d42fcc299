//! What the node agent can be told. Names and defaults of the environment variables are in `ambit agent --help`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cni::access::Access;
use crate::eligibility::SelectorPair;
use crate::firewall::Backend;

/// Source address of the kubelet's probes as an enrolled pod sees them, IPv4.
pub const PROBE_SNAT_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 7, 127);
/// Source address of the kubelet's probes as an enrolled pod sees them, IPv6.
pub const PROBE_SNAT_V6: Ipv6Addr =
    Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff);

/// Where the node agent tells of single pods, on loopback.
pub const STATUS_PORT: u16 = 15016;

/// The node agent's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The node whose pods it enrols.
    pub node_name: String,
    /// The namespace of the agent's own pod: the mesh's namespace.
    pub namespace: String,
    /// The DaemonSet the agent belongs to. While it exists, a terminating agent is being upgraded; when it is
    /// gone, the mesh is being uninstalled.
    pub daemonset: String,
    /// Which pods are to be enrolled.
    pub selectors: Vec<SelectorPair>,
    /// Namespaces whose pods are never enrolled.
    pub exclude_namespaces: Vec<String>,
    /// Whether the pods' DNS queries go to the proxy.
    pub dns_capture: bool,
    /// Whether IPv6 is carried. Where it is not, an enrolled pod's IPv6 TCP is refused, not left in plaintext.
    pub ipv6: bool,
    /// Which tools write the rules.
    pub firewall: Backend,
    /// Source address of probes, IPv4.
    pub probe_v4: Ipv4Addr,
    /// Source address of probes, IPv6.
    pub probe_v6: Ipv6Addr,
    /// Where the node proxy connects to.
    pub zds_socket: PathBuf,
    /// Where the CNI plugin finds the agent, and where the agent keeps what must outlive it.
    pub run_dir: PathBuf,
    /// While neither agent nor API server can tell the CNI plugin of a new pod, it waits, not only in namespaces that
    /// are known to be in the mesh.
    pub hold_all: bool,
    /// What the CNI plugin may use to ask the API server while the agent is away.
    pub access: Option<Access>,
    /// Installs the CNI plugin when given.
    pub cni: Option<CniInstall>,
    /// The node's `/proc`.
    pub host_proc: PathBuf,
    /// Where the node's file system is mounted: paths told by the container runtime are looked up below it first.
    pub host_root: PathBuf,
    /// Port of `/metrics`; none when 0.
    pub monitoring_port: u16,
    /// Port of `/readyz` and `/healthz`; none when 0.
    pub health_port: u16,
    /// Port on loopback that tells of single pods; none when 0.
    pub status_port: u16,
    /// How long a connection that is older than the enrolment may stay when it never becomes idle.
    pub older_grace: Duration,
    /// Peers whose connections are never ended for being old: the API server is never in the mesh.
    pub never_end: Vec<SocketAddr>,
    /// Leave everything in place on termination while the DaemonSet exists.
    pub safe_upgrade: bool,
}

/// Where and how the CNI plugin is installed.
#[derive(Clone, Debug)]
pub struct CniInstall {
    /// Directory of the network configurations, as mounted.
    pub net_dir: PathBuf,
    /// Directory of the plugin binaries, as mounted.
    pub bin_dir: PathBuf,
    /// The node's file system, to look there where the runtime really searches
    /// ([`places`](crate::install::places)); with none, the mounted directories are all there is.
    pub node_root: Option<PathBuf>,
    /// The configuration to extend, the first valid one when not given; or the name of our own one.
    pub conf_name: Option<String>,
    /// The plugin stands last in the cluster's own configuration; otherwise in one of its own, for meta plugins that
    /// call each configuration themselves (Multus, as on OpenShift).
    pub chained: bool,
    /// The binary to copy.
    pub binary: PathBuf,
}

impl Config {
    /// The socket the CNI plugin posts to.
    pub fn event_socket(&self) -> PathBuf {
        event_socket(&self.run_dir)
    }

    /// Names of the agent's own pods begin with this.
    pub fn agent_pod_prefix(&self) -> String {
        format!("{}-", self.daemonset)
    }

    /// The probe source addresses that are in use.
    pub fn probe_sources(&self) -> [IpAddr; 2] {
        [self.probe_v4.into(), self.probe_v6.into()]
    }
}

/// The plugin's socket below a run directory.
pub fn event_socket(run_dir: &Path) -> PathBuf {
    run_dir.join("pluginevent.sock")
}

/// What the agent leaves for the plugin, below a run directory.
pub fn known_file(run_dir: &Path) -> PathBuf {
    run_dir.join("enrolled-namespaces.json")
}

/// The plugin's way to the API server, below a run directory.
pub fn access_file(run_dir: &Path) -> PathBuf {
    run_dir.join("kubeconfig")
}
