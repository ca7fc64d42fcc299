//! The node's one table: probes of the kubelet keep working under any policy.
//!
//! What a process of the node itself sends to an enrolled pod gets the source address 169.254.7.127 (or its IPv6
//! twin), which the pod's own rules exempt. "Of the node itself" is the source address: before translation, only
//! a packet made here carries a local one; traffic that is merely forwarded keeps its source and is captured.
//! Connections to a Service of the node's own processes are not exempted either: a probe goes to the pod.
//!
//! The table is replaced as a whole in one transaction at each change, so no stale entry survives and there is no
//! moment without the living ones. Who owns an address is kept here, by pod UID: a pod that is deleted late never
//! takes the entry of the pod that has its address now.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::firewall::{self, Backend, xtables};
use crate::turns::Turns;

const TABLE: &str = "ambit-probes";
const CHAIN: &str = "AMBIT_PROBES";

/// Addresses of enrolled pods and whose they are. Pure.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exempt {
    by_address: BTreeMap<IpAddr, String>,
}

impl Exempt {
    /// Makes `addresses` those of the pod `uid`: taken from whoever had them, and its other ones given up.
    /// Says whether anything changed.
    pub fn set(&mut self, uid: &str, addresses: &[IpAddr]) -> bool {
        let before = self.clone();
        let addresses: Vec<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
        self.by_address.retain(|address, owner| owner != uid || addresses.contains(address));
        for address in addresses {
            self.by_address.insert(address, uid.to_owned());
        }
        *self != before
    }

    /// Removes what the pod `uid` still owns. Says whether anything changed.
    pub fn remove(&mut self, uid: &str) -> bool {
        self.set(uid, &[])
    }

    /// The addresses of all enrolled pods.
    pub fn addresses(&self) -> impl Iterator<Item = &IpAddr> {
        self.by_address.keys()
    }
}

/// The whole table as text for `nft -f -`.
pub fn rules(exempt: &Exempt, source_v4: Ipv4Addr, source_v6: Ipv6Addr) -> String {
    let mut out = removal();
    let _ = writeln!(out, "table inet {TABLE} {{");
    for (set, kind, v6) in
        [("istio-inpod-probes-v4", "ipv4_addr", false), ("istio-inpod-probes-v6", "ipv6_addr", true)]
    {
        let _ = writeln!(out, "\tset {set} {{\n\t\ttype {kind}");
        let elements: Vec<String> = exempt
            .by_address
            .iter()
            .filter(|(address, _)| address.is_ipv6() == v6)
            .map(|(address, uid)| format!("{address} comment \"{}\"", printable(uid)))
            .collect();
        if !elements.is_empty() {
            let _ = writeln!(out, "\t\telements = {{ {} }}", elements.join(", "));
        }
        let _ = writeln!(out, "\t}}");
    }
    let _ =
        writeln!(out, "\tchain postrouting {{\n\t\ttype nat hook postrouting priority 90; policy accept;");
    let local = "meta l4proto tcp ct status & dnat == 0 fib saddr type local";
    let _ = writeln!(out, "\t\tip daddr @istio-inpod-probes-v4 {local} counter snat ip to {source_v4}");
    let _ = writeln!(out, "\t\tip6 daddr @istio-inpod-probes-v6 {local} counter snat ip6 to {source_v6}");
    let _ = writeln!(out, "\t}}\n}}");
    out
}

/// Removes the table, whether it is there or not.
pub fn removal() -> String {
    format!("table inet {TABLE}\ndelete table inet {TABLE}\n")
}

/// The same as a chain of iptables for one family.
fn chain(exempt: &Exempt, source: IpAddr) -> xtables::Chain {
    let of_family = exempt.by_address.iter().filter(|(address, _)| address.is_ipv6() == source.is_ipv6());
    let rules: Vec<String> = of_family
        .map(|(address, uid)| {
            let local = "-p tcp -m conntrack ! --ctstate DNAT -m addrtype --src-type LOCAL";
            format!(
                "-d {address} {local} -m comment --comment {} -j SNAT --to-source {source}",
                printable(uid)
            )
        })
        .collect();
    let wanted = !rules.is_empty();
    xtables::Chain { table: "nat", hook: "POSTROUTING", name: CHAIN, rules, wanted }
}

/// Makes the exemption of this node that of `exempt`.
async fn write(
    exempt: &Exempt,
    sources: (Ipv4Addr, Ipv6Addr),
    backend: Backend,
) -> Result<(), firewall::Error> {
    let Backend::Iptables(variant) = backend else {
        return firewall::apply(None, &rules(exempt, sources.0, sources.1)).await;
    };
    for source in [IpAddr::from(sources.0), sources.1.into()] {
        xtables::apply(None, variant, source.is_ipv6(), &[chain(exempt, source)]).await?;
    }
    Ok(())
}

/// Takes the exemption from this node.
pub async fn remove_all(backend: Backend) -> Result<(), firewall::Error> {
    let anything = (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED);
    match backend {
        Backend::Nft => firewall::apply(None, &removal()).await,
        Backend::Iptables(_) => write(&Exempt::default(), anything, backend).await,
    }
}

/// A UID comes from the API; what could end a comment in the script does not get into it.
fn printable(uid: &str) -> String {
    uid.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')).take(120).collect()
}

/// The table of this node, which is the agent's own network namespace.
pub struct Probes {
    wanted: parking_lot::Mutex<Wanted>,
    /// The replacing of the table.
    turns: Turns,
    sources: (Ipv4Addr, Ipv6Addr),
    backend: Backend,
}

struct Wanted {
    exempt: Exempt,
    /// Grows with each change.
    generation: u64,
}

impl Probes {
    /// Nothing is applied yet.
    pub fn new(source_v4: Ipv4Addr, source_v6: Ipv6Addr, backend: Backend) -> Self {
        Self {
            wanted: Wanted { exempt: Exempt::default(), generation: 1 }.into(),
            turns: Turns::default(),
            sources: (source_v4, source_v6),
            backend,
        }
    }

    /// Sets all owners at once and applies the table in any case.
    pub async fn reset(
        &self,
        owners: impl IntoIterator<Item = (String, Vec<IpAddr>)>,
    ) -> Result<(), firewall::Error> {
        let generation = {
            let mut wanted = self.wanted.lock();
            wanted.exempt = Exempt::default();
            for (uid, addresses) in owners {
                wanted.exempt.set(&uid, &addresses);
            }
            wanted.generation += 1;
            wanted.generation
        };
        self.apply(generation).await
    }

    /// Makes `addresses` those of the pod `uid`.
    pub async fn set(&self, uid: &str, addresses: &[IpAddr]) -> Result<(), firewall::Error> {
        let generation = {
            let mut wanted = self.wanted.lock();
            if wanted.exempt.set(uid, addresses) {
                wanted.generation += 1;
            }
            wanted.generation
        };
        self.apply(generation).await
    }

    /// Removes what the pod `uid` still owns.
    pub async fn remove(&self, uid: &str) -> Result<(), firewall::Error> {
        self.set(uid, &[]).await
    }

    /// The addresses of all enrolled pods.
    pub fn addresses(&self) -> Vec<IpAddr> {
        self.wanted.lock().exempt.addresses().copied().collect()
    }

    /// Returns once what was wanted at `generation` is in the kernel.
    async fn apply(&self, generation: u64) -> Result<(), firewall::Error> {
        let work = async {
            let (exempt, generation) = {
                let wanted = self.wanted.lock();
                (wanted.exempt.clone(), wanted.generation)
            };
            write(&exempt, self.sources, self.backend).await?;
            Ok(generation)
        };
        self.turns.reach(generation, work).await
    }
}

#[cfg(test)]
mod tests;
