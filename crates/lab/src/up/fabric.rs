//! The network between the nodes: one namespace with a bridge, one namespace a node, a veth between each.
//!
//! Links are made inside the namespaces and never appear in the host's. What to make is decided in [`Fabric`],
//! which is pure; [`Fabric::build`] hands it to `ip` and [`remove`] needs only the lab's name.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use ipnet::{IpNet, Ipv4Net};

use super::name::LabName;

/// Where `ip netns` keeps names of network namespaces.
const NETNS_DIR: &str = "/run/netns";
const BRIDGE: &str = "fabric0";
/// The most nodes that a lab can have.
pub const MOST_NODES: u8 = 50;

/// A node's place in the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeNet {
    /// 1, 2, …
    pub number: u8,
    /// Its network namespace.
    pub netns: String,
    /// Its address on the fabric.
    pub ip: IpAddr,
    /// The addresses of its pods.
    pub pod_cidr: IpNet,
}

impl NodeNet {
    /// The file of its network namespace.
    pub fn netns_path(&self) -> PathBuf {
        Path::new(NETNS_DIR).join(&self.netns)
    }
}

/// The network of a lab.
#[derive(Clone, Debug)]
pub struct Fabric {
    netns: String,
    prefix: u8,
    /// The nodes.
    pub nodes: Vec<NodeNet>,
}

/// All pods of a lab.
pub fn cluster_cidr() -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, 0, 0), 16))
}

/// Services of a lab with its own API.
pub fn service_cidr() -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 96, 0, 0), 16))
}

impl Fabric {
    /// The plan for this many nodes.
    pub fn plan(lab: &LabName, nodes: u8) -> Fabric {
        let node = |number: u8| NodeNet {
            number,
            netns: lab.node_netns(number),
            ip: IpAddr::V4(Ipv4Addr::new(10, 98, 0, number.saturating_add(10))),
            pod_cidr: IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(10, 244, number, 0), 24)),
        };
        Fabric { netns: lab.fabric(), prefix: 24, nodes: (1..=nodes.min(MOST_NODES)).map(node).collect() }
    }

    /// What `ip` has to do, by namespace; none is the host's, where only namespaces are made.
    fn batches(&self) -> Vec<(Option<String>, Vec<String>)> {
        let mut names = vec![format!("netns add {}", self.netns)];
        names.extend(self.nodes.iter().map(|node| format!("netns add {}", node.netns)));
        let mut fabric = vec![
            "link set lo up".to_owned(),
            format!("link add {BRIDGE} type bridge"),
            format!("link set {BRIDGE} up"),
        ];
        for node in &self.nodes {
            let port = format!("node{}", node.number);
            fabric.push(format!("link add {port} type veth peer name eth0 netns {}", node.netns));
            fabric.push(format!("link set {port} master {BRIDGE} up"));
        }
        let mut batches = vec![(None, names), (Some(self.netns.clone()), fabric)];
        for node in &self.nodes {
            let mut lines = vec![
                "link set lo up".to_owned(),
                format!("addr add {}/{} dev eth0", node.ip, self.prefix),
                "link set eth0 up".to_owned(),
            ];
            let others = self.nodes.iter().filter(|other| other.number != node.number);
            lines.extend(others.map(|other| format!("route add {} via {}", other.pod_cidr, other.ip)));
            batches.push((Some(node.netns.clone()), lines));
        }
        batches
    }

    /// Makes it.
    ///
    /// # Errors
    /// With what `ip` said; what was made until then is for [`remove`].
    pub fn build(&self) -> anyhow::Result<()> {
        for (netns, lines) in self.batches() {
            ip(netns.as_deref(), &lines)?;
        }
        for node in &self.nodes {
            let namespace = netns::NetNs::open(node.netns_path())?;
            namespace.try_run(route_packets).with_context(|| format!("cannot set up {}", node.netns))?;
        }
        Ok(())
    }
}

/// A node forwards between its pods and the fabric, and takes packets by whichever way they come: redirection by
/// meshes makes ways asymmetric.
fn route_packets() -> std::io::Result<()> {
    let set = |name: &str, value: &str| fs::write(format!("/proc/sys/net/ipv4/{name}"), value);
    set("ip_forward", "1")?;
    for link in ["all", "default", "eth0"] {
        set(&format!("conf/{link}/rp_filter"), "0")?;
    }
    Ok(())
}

fn ip(netns: Option<&str>, lines: &[String]) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start ip (iproute2)")?;
    if let Some(mut input) = child.stdin.take() {
        // If it ended early, what it said matters more than the broken pipe.
        let _ = input.write_all((lines.join("\n") + "\n").as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let place = netns.unwrap_or("the host");
        bail!("cannot build the network of {place}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// The network namespaces of a lab that exist.
pub fn namespaces(lab: &LabName) -> Vec<String> {
    let entries = fs::read_dir(NETNS_DIR).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| lab.owns_netns(name)).collect()
}

/// The inodes of a lab's network namespaces, by which `/proc` names them.
pub fn inodes(lab: &LabName) -> BTreeSet<u64> {
    // A file under /run/netns without a namespace mounted on it has an inode of another file system.
    let paths = namespaces(lab).into_iter().map(|name| Path::new(NETNS_DIR).join(name));
    paths
        .filter_map(|path| netns::NetNs::open(&path).ok().and(fs::metadata(&path).ok()))
        .map(|meta| meta.ino())
        .collect()
}

/// Removes a lab's network namespaces, and with them every link and rule inside.
///
/// # Errors
/// With the namespaces that would not go.
pub fn remove(lab: &LabName) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for name in namespaces(lab) {
        let output = Command::new("ip")
            .args(["netns", "del", &name])
            .output()
            .context("cannot start ip (iproute2)")?;
        if !output.status.success() {
            failed.push(format!("{name}: {}", String::from_utf8_lossy(&output.stderr).trim()));
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("cannot remove network namespaces: {}", failed.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_made_inside_namespaces_and_every_node_finds_the_others() {
        let fabric = Fabric::plan(&"lab".parse().unwrap(), 2);
        let batches = fabric.batches();
        let (host, rest) = batches.split_first().unwrap();
        assert_eq!(host.0, None);
        assert!(host.1.iter().all(|line| line.starts_with("netns add ambit-lab-")), "{host:?}");
        assert!(rest.iter().all(|(netns, _)| netns.is_some()));
        let node1 = &rest[1].1;
        assert!(node1.contains(&"addr add 10.98.0.11/24 dev eth0".to_owned()), "{node1:?}");
        assert!(node1.contains(&"route add 10.244.2.0/24 via 10.98.0.12".to_owned()), "{node1:?}");
        assert!(!node1.iter().any(|line| line.contains("10.244.1.0")), "{node1:?}");
    }

    #[test]
    fn nodes_have_places_of_their_own() {
        let fabric = Fabric::plan(&"lab".parse().unwrap(), MOST_NODES);
        assert_eq!(fabric.nodes.len(), usize::from(MOST_NODES));
        let cidrs: BTreeSet<_> = fabric.nodes.iter().map(|node| node.pod_cidr).collect();
        let ips: BTreeSet<_> = fabric.nodes.iter().map(|node| node.ip).collect();
        assert_eq!((cidrs.len(), ips.len()), (fabric.nodes.len(), fabric.nodes.len()));
        assert!(cidrs.iter().all(|cidr| cluster_cidr().contains(cidr)));
    }
}
