//! Settings of the control plane, from flags and environment.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;
use std::sync::Arc;

/// Settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Namespace the control plane runs in; also where its Secret and leases are, and the root namespace of policies.
    pub namespace: String,
    /// Name of this replica's pod, which holds leases under it; empty when it runs in none.
    pub pod_name: String,
    /// Name of this cluster, as workloads carry it.
    pub cluster: String,
    /// Trust domain of every identity.
    pub trust_domain: String,
    /// DNS domain of services.
    pub domain: String,
    /// Revision this control plane answers for; policies labelled with another one are left out.
    pub revision: String,
    /// Address to listen on.
    pub bind: IpAddr,
    /// Ports to listen on.
    pub ports: Ports,
    /// Accounts that may read the workload API and ask for the certificates of their node's workloads.
    pub trusted_node_accounts: Vec<Account>,
    /// Audiences a token must have one of.
    pub token_audiences: Vec<String>,
    /// Further names for the serving certificate.
    pub extra_names: Vec<String>,
    /// Directory with the files of a plugged-in authority; Secret `cacerts` is looked at without it too.
    pub ca_directory: Option<std::path::PathBuf>,
    /// Length of a stage of a root rotation; none: as long as certificates live.
    pub ca_stage: Option<std::time::Duration>,
}

/// Ports the control plane listens on.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// gRPC over TLS: xDS and the CA.
    pub grpc: u16,
    /// Readiness.
    pub ready: u16,
    /// Metrics and debugging.
    pub monitoring: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self { grpc: 15012, ready: 8080, monitoring: 15014 }
    }
}

impl Default for Config {
    fn default() -> Self {
        let account =
            |namespace: &str, name: &str| Account { namespace: namespace.into(), name: name.into() };
        Self {
            namespace: "ambit-system".into(),
            pod_name: String::new(),
            cluster: "Kubernetes".into(),
            trust_domain: "cluster.local".into(),
            domain: "cluster.local".into(),
            revision: "default".into(),
            bind: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            ports: Ports::default(),
            trusted_node_accounts: vec![
                account("ambit-system", "ambit-proxy"),
                account("ambit-system", "ztunnel"),
                account("istio-system", "ztunnel"),
            ],
            token_audiences: vec!["istio-ca".into()],
            extra_names: Vec::new(),
            ca_directory: None,
            ca_stage: None,
        }
    }
}

impl Config {
    /// Name of the ConfigMap with the mesh configuration.
    pub fn mesh_config(&self) -> String {
        match self.revision.as_str() {
            "" | "default" => "istio".into(),
            revision => format!("istio-{revision}"),
        }
    }

    /// The names the serving certificate carries (reference/control-plane.md §3.2), sorted.
    pub fn serving_names(&self) -> Vec<String> {
        let mut names = Vec::new();
        for service in ["ambit-control", "istiod", "istiod-remote", "istio-pilot"] {
            for namespace in [self.namespace.as_str(), "istio-system"] {
                names.push(format!("{service}.{namespace}.svc"));
                names.push(format!("{service}.{namespace}.svc.{}", self.domain));
            }
        }
        names.push(format!("ambit-control.{}", self.namespace));
        names.extend(self.extra_names.iter().cloned());
        names.sort();
        names.dedup();
        names
    }
}

/// A service account of a namespace.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Account {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Service account.
    pub name: Arc<str>,
}

impl FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().split_once('/') {
            Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }
            _ => Err(format!("{text:?} is no service account: write namespace/name")),
        }
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_names_what_proxies_of_ambit_and_istio_dial() {
        let names = Config::default().serving_names();
        for name in ["ambit-control.ambit-system.svc", "istiod.istio-system.svc", "istiod.ambit-system.svc"] {
            assert!(names.iter().any(|have| have == name), "{name} in {names:?}");
        }
    }

    #[test]
    fn an_account_is_namespace_and_name() {
        assert_eq!(" a/b ".parse::<Account>().unwrap().to_string(), "a/b");
        for text in ["", "a", "a/", "/b", "a/b/c"] {
            assert!(text.parse::<Account>().is_err(), "{text}");
        }
    }
}
