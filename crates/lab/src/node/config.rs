//! What a node is told by whoever starts it: plain data that travels in a file.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Everything a lab node needs to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    /// The lab it belongs to; names of links, cgroups and directories start with it.
    pub lab: String,
    /// The name it registers under.
    pub name: String,
    /// Its network namespace, `/run/netns/ambit-<lab>-<node>`: has `eth0` with [`Config::ip`] and routes to the
    /// other nodes. Made and removed by whoever starts the node.
    pub netns: PathBuf,
    /// Its address, `InternalIP` of the Node object.
    pub ip: IpAddr,
    /// The addresses of its pods.
    pub pod_cidr: IpNet,
    /// The addresses of all pods of the cluster.
    pub cluster_cidr: IpNet,
    /// The addresses of Services.
    pub service_cidr: IpNet,
    /// Where pods ask for names.
    pub dns_ip: IpAddr,
    /// How to reach the API server.
    pub kubeconfig: PathBuf,
    /// What it leaves for the host to see: its configuration and its log. `/run/ambit/<lab>/<node>`.
    pub state_dir: PathBuf,
    /// The `ambit` binary that `ambit` images map to, and that the node itself runs from.
    pub binary: PathBuf,
    /// Labels of the Node object.
    pub labels: BTreeMap<String, String>,
}

impl Config {
    /// The cgroup all pods of this node live under, as runc's `cgroupsPath` names it.
    pub fn cgroup(&self) -> String {
        format!("/ambit-{}/{}", self.lab, self.name)
    }
}
