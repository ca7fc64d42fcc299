//! Redirection inside a pod's network namespace: which of its TCP goes to the node proxy.
//!
//! Three nftables tables of family `inet`, one routing rule and one local route a family; names, marks, ports and
//! order are those of `enrolment.md` §2, so that other tools recognise them. Two things are ours:
//!
//! - only the **first packet** of a connection (SYN without ACK) is redirected. A namespace that had no connection
//!   tracking before takes up running connections in their middle, and without this condition the next packet of
//!   each of them would be redirected too and the connection reset;
//! - where IPv6 is not carried, the pod's IPv6 TCP is refused rather than left in plaintext.
//!
//! On hosts without nftables the same is written with iptables (`chains`); the words below are those of nftables.
//!
//! [`apply`] replaces whatever is there in one transaction and may be repeated; [`stop_capturing`] lets new
//! connections go past the proxy while those it holds go on; [`remove`] leaves nothing. Nothing outside the
//! namespace is touched, and no table of anybody else inside it.

mod chains;
mod routing;
mod text;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use netns::NetNs;

pub use text::{removal, rules, rules_without_capture};

use chains::{Extent, chains};

use crate::firewall::{self, Backend, xtables};

/// Mark of every packet of the proxy.
pub const PROXY_MARK: u32 = 0x539;
/// Mark of connections whose replies must come back to the proxy.
pub const CONN_MARK: u32 = 0x111;
/// The part of the mark that is ours.
pub const MARK_MASK: u32 = 0xfff;
/// Where the proxy takes what the pod dials.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where the proxy takes plaintext that reaches the pod.
pub const INBOUND_PORT: u16 = 15006;
/// Where the proxy takes tunnels.
pub const HBONE_PORT: u16 = 15008;
/// Where the proxy answers DNS.
pub const DNS_PORT: u16 = 15053;

/// What a pod's redirection looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// IPv6 is carried; otherwise it is refused.
    pub ipv6: bool,
    /// DNS queries go to the proxy.
    pub dns: bool,
    /// Only what the pod dials is captured, not what reaches it.
    pub ingress: bool,
    /// TCP that arrives on these interfaces counts as dialled by the pod.
    pub virtual_interfaces: Vec<String>,
    /// Source of probes, IPv4.
    pub probe_v4: Ipv4Addr,
    /// Source of probes, IPv6.
    pub probe_v6: Ipv6Addr,
}

/// Why a pod's redirection could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The rule set.
    #[error(transparent)]
    Rules(#[from] firewall::Error),
    /// The routing rule or route.
    #[error("cannot {what}: {source}")]
    Routing {
        /// Which step.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

impl Options {
    /// These options as changed by a pod's annotations (`enrolment.md` §2.6), and what in them was not understood.
    /// The annotations are the pod owner's: an interface name that could not be one is left out.
    pub fn of_pod(&self, annotations: &BTreeMap<String, String>) -> (Self, Vec<String>) {
        let mut options = self.clone();
        let mut warnings = Vec::new();
        let mut flag = |key: &str, target: &mut bool| match annotations.get(key).map(|text| text.as_str()) {
            None => {}
            Some("1" | "t" | "T" | "true" | "TRUE" | "True") => *target = true,
            Some("0" | "f" | "F" | "false" | "FALSE" | "False") => *target = false,
            Some(other) => warnings.push(format!("annotation {key}: {other:?} is neither true nor false")),
        };
        flag("ambient.istio.io/bypass-inbound-capture", &mut options.ingress);
        flag("ambient.istio.io/dns-capture", &mut options.dns);
        const INTERFACES: &str = "istio.io/reroute-virtual-interfaces";
        if let Some(list) = annotations.get(INTERFACES) {
            for name in list.split(',').map(str::trim).filter(|name| !name.is_empty()) {
                if is_interface_name(name) {
                    options.virtual_interfaces.push(name.to_owned());
                } else {
                    warnings.push(format!("annotation {INTERFACES}: {name:?} cannot be an interface name"));
                }
            }
        }
        (options, warnings)
    }
}

fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b'@'))
}

/// Puts the redirection into `namespace`, replacing an earlier one of whatever shape.
pub async fn apply(namespace: &NetNs, options: &Options, backend: Backend) -> Result<(), Error> {
    // Routing first: it acts on marked packets only, and those exist only once the rules are there.
    routing::add(namespace, options.ipv6)?;
    write(namespace, Extent::Whole(options), backend).await
}

/// New connections go past the proxy from now on; those that it holds go on, since address translation and
/// routing stay.
pub async fn stop_capturing(namespace: &NetNs, backend: Backend) -> Result<(), Error> {
    write(namespace, Extent::WithoutCapture, backend).await
}

/// Takes everything out of `namespace` that [`apply`] may have put there.
pub async fn remove(namespace: &NetNs, backend: Backend) -> Result<(), Error> {
    let rules = write(namespace, Extent::Nothing, backend).await;
    // Tried in any case: a failure of one must not leave the other behind.
    routing::remove(namespace)?;
    rules
}

/// Takes away the rules that `backend` wrote and leaves the routing: for a node that has changed to another one.
pub async fn remove_rules(namespace: &NetNs, backend: Backend) -> Result<(), Error> {
    write(namespace, Extent::Nothing, backend).await
}

/// The mesh's tables, or with iptables its chains by table, that are in `namespace` now.
pub async fn present(namespace: &NetNs, backend: Backend) -> Result<Vec<String>, Error> {
    let Backend::Iptables(variant) = backend else {
        let all = firewall::run(Some(namespace), "nft", &["list", "tables"], "").await?;
        let ours = all.lines().filter_map(|line| line.strip_prefix("table "));
        return Ok(ours.filter(|table| table.contains(" istio-ambient-")).map(str::to_owned).collect());
    };
    let mut found = Vec::new();
    for ipv6 in [false, true] {
        if ipv6 && !routing::has_ipv6(namespace) {
            continue;
        }
        let all = firewall::run(Some(namespace), &variant.program(ipv6, "save"), &[], "").await?;
        let mut table = "";
        for line in all.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = name;
            } else if let Some(chain) = line.strip_prefix(":ISTIO_") {
                let chain = chain.split(' ').next().unwrap_or_default();
                found.push(format!("{} {table} ISTIO_{chain}", if ipv6 { "ip6" } else { "ip" }));
            }
        }
    }
    Ok(found)
}

async fn write(namespace: &NetNs, extent: Extent<'_>, backend: Backend) -> Result<(), Error> {
    let Backend::Iptables(variant) = backend else {
        let script = match extent {
            Extent::Whole(options) => rules(options),
            Extent::WithoutCapture => rules_without_capture(),
            Extent::Nothing => removal(),
        };
        return Ok(firewall::apply(Some(namespace), &script).await?);
    };
    for ipv6 in [false, true] {
        // A kernel without IPv6 has nothing to redirect and nothing to refuse.
        if ipv6 && !routing::has_ipv6(namespace) {
            continue;
        }
        xtables::apply(Some(namespace), variant, ipv6, &chains(extent, ipv6)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
