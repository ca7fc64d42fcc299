//! The files under `/etc` that a pod has of its own: who it is, and whom it asks for names.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::Pod;

use crate::node::layout;

/// The files under `/etc` that a pod has of its own.
pub struct EtcFiles {
    /// `/etc/hosts`.
    pub hosts: PathBuf,
    /// `/etc/hostname`.
    pub hostname: PathBuf,
    /// `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
}

impl EtcFiles {
    /// Writes them.
    pub fn write(pod: &Pod, hostname: &str, ips: &[IpAddr], resolv_conf: &str) -> anyhow::Result<Self> {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let dir = Path::new(layout::PODS).join(uid).join("etc");
        fs::create_dir_all(&dir)?;
        let files = Self {
            hosts: dir.join("hosts"),
            hostname: dir.join("hostname"),
            resolv_conf: dir.join("resolv.conf"),
        };
        fs::write(&files.hosts, hosts(pod, hostname, ips))?;
        fs::write(&files.hostname, format!("{hostname}\n"))?;
        fs::write(&files.resolv_conf, resolv_conf)?;
        Ok(files)
    }
}

fn hosts(pod: &Pod, hostname: &str, ips: &[IpAddr]) -> String {
    let spec = pod.spec.as_ref();
    let mut text =
        "# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
            .to_owned();
    let full = spec.and_then(|s| s.subdomain.as_deref()).filter(|s| !s.is_empty()).map(|sub| {
        format!(
            "{hostname}.{sub}.{}.svc.cluster.local\t",
            pod.metadata.namespace.as_deref().unwrap_or("default")
        )
    });
    for ip in ips {
        text.push_str(&format!("{ip}\t{}{hostname}\n", full.as_deref().unwrap_or("")));
    }
    for alias in spec.iter().flat_map(|s| s.host_aliases.iter().flatten()) {
        text.push_str(&format!(
            "{}\t{}\n",
            alias.ip,
            alias.hostnames.iter().flatten().cloned().collect::<Vec<_>>().join("\t")
        ));
    }
    text
}

/// The `resolv.conf` of a pod by its DNS policy.
pub fn resolv_conf(pod: &Pod, cluster_dns: IpAddr, host: &str) -> String {
    let spec = pod.spec.as_ref();
    let policy = spec.and_then(|s| s.dns_policy.as_deref()).unwrap_or("ClusterFirst");
    let host_network = spec.and_then(|s| s.host_network).unwrap_or(false);
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !host_network,
        _ => false,
    };
    let (mut servers, mut searches, mut options): (Vec<String>, Vec<String>, Vec<String>) =
        Default::default();
    if cluster {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        servers.push(cluster_dns.to_string());
        searches = vec![
            format!("{namespace}.svc.cluster.local"),
            "svc.cluster.local".to_owned(),
            "cluster.local".to_owned(),
        ];
        options.push("ndots:5".to_owned());
    } else if policy != "None" {
        for line in host.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => servers.extend(words.next().map(str::to_owned)),
                Some("search" | "domain") => searches = words.map(str::to_owned).collect(),
                Some("options") => options.extend(words.map(str::to_owned)),
                _ => {}
            }
        }
    }
    if let Some(own) = spec.and_then(|s| s.dns_config.as_ref()) {
        servers.extend(own.nameservers.iter().flatten().cloned());
        searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            options.retain(|o| o.split(':').next() != Some(name.as_str()));
            options.push(option.value.as_ref().map_or_else(|| name.clone(), |v| format!("{name}:{v}")));
        }
    }
    let mut text = String::new();
    if !searches.is_empty() {
        text.push_str(&format!("search {}\n", searches.join(" ")));
    }
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !options.is_empty() {
        text.push_str(&format!("options {}\n", options.join(" ")));
    }
    text
}

#[cfg(test)]
mod tests;
