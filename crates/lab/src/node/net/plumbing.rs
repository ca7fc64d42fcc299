//! What the node's network namespace needs before the first pod: the pods' bridge, the resolver's address, a way
//! for the node's own calls to Service addresses, and three kernel settings. All of it is inside that namespace
//! and goes with it.

use std::net::IpAddr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use ipnet::IpNet;
use netns::NetNs;

use super::TOOLS_PATH;

/// The bridge the node's pods hang on; the node's own CNI configuration names it too.
pub const BRIDGE: &str = "cni0";

/// What [`prepare`] is to make.
pub(super) struct Wanted {
    pub ip: IpAddr,
    pub dns_ip: IpAddr,
    pub pod_cidr: IpNet,
    pub service_cidr: IpNet,
}

/// Makes the namespace ready; may be called again. Returns the hardware address of the pods' bridge.
pub(super) fn prepare(ns: &NetNs, wanted: &Wanted) -> anyhow::Result<String> {
    ns.run(|| {
        ip(&["link", "set", "lo", "up"])?;
        let dns = IpNet::from(wanted.dns_ip).to_string();
        ip(&["address", "replace", &dns, "dev", "lo"])?;
        let device = device_of(wanted.ip)?;
        // Calls of the node itself to a Service address: the route gives them a source address and lets them
        // reach the output hook, where they are translated and routed anew.
        let (services, source) = (wanted.service_cidr.to_string(), wanted.ip.to_string());
        ip(&["route", "replace", &services, "dev", &device, "src", &source])?;
        settings(wanted.ip.is_ipv4())?;
        bridge(&mac_for(wanted.pod_cidr))
    })?
}

fn settings(v4: bool) -> anyhow::Result<()> {
    let forward = if v4 { "/proc/sys/net/ipv4/ip_forward" } else { "/proc/sys/net/ipv6/conf/all/forwarding" };
    sysctl(forward, "1")?;
    // Pods of one node reach each other by way of the node's routing, on purpose; it must not advise them to
    // do without.
    for of in ["all", "default"] {
        sysctl(&format!("/proc/sys/net/ipv4/conf/{of}/send_redirects"), "0")?;
    }
    // Present only where br_netfilter is loaded. The bridge table does its work; twice would be once too often.
    for name in ["bridge-nf-call-iptables", "bridge-nf-call-ip6tables"] {
        let path = format!("/proc/sys/net/bridge/{name}");
        if std::path::Path::new(&path).exists() {
            sysctl(&path, "0")?;
        }
    }
    Ok(())
}

/// The interface of this namespace that carries `address`.
fn device_of(address: IpAddr) -> anyhow::Result<String> {
    let shown = ip(&["-o", "address", "show", "to", &address.to_string()])?;
    // "2: eth0    inet 10.10.0.1/24 …"
    let device =
        shown.split_whitespace().nth(1).map(|name| name.split('@').next().unwrap_or(name).to_owned());
    device.with_context(|| format!("no interface of the node's network namespace has its address {address}"))
}

/// Makes the bridge, or takes the one that is there, and answers its hardware address.
fn bridge(mac: &str) -> anyhow::Result<String> {
    let Ok(shown) = ip(&["-o", "link", "show", "dev", BRIDGE]) else {
        ip(&["link", "add", "name", BRIDGE, "address", mac, "type", "bridge"])?;
        return Ok(mac.to_owned());
    };
    let found = shown.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
    let found = found.with_context(|| format!("{BRIDGE} in the node's network namespace is no bridge"))?;
    // Saying it makes it stay: a bridge that was given no address takes the lowest of its ports.
    ip(&["link", "set", "dev", BRIDGE, "address", found])?;
    Ok(found.to_owned())
}

/// A locally administered hardware address that is different on each node of a cluster.
fn mac_for(pods: IpNet) -> String {
    let bytes: [u8; 4] = match pods.network() {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => {
            let octets = ip.octets();
            [octets[4], octets[5], octets[6], octets[7]]
        }
    };
    format!("0a:58:{:02x}:{:02x}:{:02x}:{:02x}", bytes[0], bytes[1], bytes[2], bytes[3])
}

fn sysctl(path: &str, value: &str) -> anyhow::Result<()> {
    // net.* is of the namespace of the thread that opens the file.
    if std::fs::read_to_string(path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    std::fs::write(path, value).with_context(|| format!("cannot set {path} to {value}"))
}

fn ip(arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("ip")
        .args(arguments)
        .env("PATH", TOOLS_PATH)
        .stdin(Stdio::null())
        .output()
        .context("cannot start ip (Debian package iproute2)")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("ip {}: {}", arguments.join(" "), said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bridges_of_different_nodes_differ() {
        let (a, b) = ("10.244.0.0/24".parse().unwrap(), "10.244.1.0/24".parse().unwrap());
        assert_eq!(mac_for(a), "0a:58:0a:f4:00:00");
        assert_ne!(mac_for(a), mac_for(b));
    }
}
