//! From a [`Snapshot`] to the text that `nft -f -` takes: what kube-proxy would program, for one node.
//!
//! Pure: the same snapshot gives the same text, byte for byte, so that an unchanged node is left alone. The text
//! replaces both tables in one transaction; there is no moment without rules.
//!
//! Two tables. `inet` translates a Service's address to one of its endpoints, for pods (prerouting) and for the
//! node itself (output), refuses Services with nobody behind them, and hides the caller only where it must:
//! a pod that reaches itself through its Service, and callers from outside through a NodePort. `bridge` hands
//! what pods of one node send each other to the node's routing: answers then pass the place that translated the
//! question, without the kernel module (br_netfilter) that would change how every bridge of the machine works.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use crate::node::net::model::{Port, Protocol, ServiceKey, ServiceView, Snapshot};

/// The name of both tables.
pub const TABLE: &str = "ambit-lab-services";

/// What the rules of a node depend on besides the Services.
#[derive(Clone, Debug)]
pub struct Node {
    /// The node's name, for `internalTrafficPolicy: Local`.
    pub name: String,
    /// The node's own address: NodePorts answer there.
    pub ip: IpAddr,
    /// The hardware address of the bridge the pods hang on.
    pub bridge_mac: String,
    /// An address served by this node itself, where no Service may take over: the resolver's.
    pub own: IpAddr,
    /// Services whose endpoints are replaced: the API server is reached through this node's relay.
    pub overrides: BTreeMap<ServiceKey, SocketAddr>,
}

/// The text for this node and these Services.
pub fn render(node: &Node, snapshot: &Snapshot) -> String {
    let mut families = [Family::new("ip", "ipv4_addr"), Family::new("ip6", "ipv6_addr")];
    let mut node_ports: BTreeMap<(Protocol, u16), String> = BTreeMap::new();
    let mut chains: BTreeMap<String, String> = BTreeMap::new();
    let mut self_calls: BTreeSet<IpAddr> = BTreeSet::new();

    for (key, view) in &snapshot.services {
        for port in &view.ports {
            let backends = backends(node, key, view, port);
            for family in &mut families {
                let targets: Vec<SocketAddr> =
                    backends.iter().copied().filter(|backend| family.holds(backend.ip())).collect();
                let chain = format!(
                    "{}/{}/{}/{}/{}",
                    family.prefix,
                    key.namespace,
                    key.name,
                    port.protocol.as_str(),
                    port.port
                );
                let ips = view.cluster_ips.iter().filter(|ip| family.holds(**ip) && **ip != node.own);
                let keys: Vec<String> =
                    ips.map(|ip| format!("{ip} . {} . {}", port.protocol.as_str(), port.port)).collect();
                if targets.is_empty() {
                    family.empty.extend(keys);
                    continue;
                }
                family.services.extend(keys.into_iter().map(|element| (element, chain.clone())));
                if let Some(node_port) = port.node_port
                    && family.holds(node.ip)
                {
                    node_ports.entry((port.protocol, node_port)).or_insert_with(|| chain.clone());
                }
                self_calls.extend(targets.iter().map(SocketAddr::ip).filter(|ip| *ip != node.ip));
                chains.insert(chain, family.translate(port.protocol, view.client_ip_affinity, &targets));
            }
        }
    }
    for family in &mut families {
        let own: Vec<IpAddr> = self_calls.iter().copied().filter(|ip| family.holds(*ip)).collect();
        family.self_calls.extend(own);
    }
    // Only chains that something leads to: headless Services have ports but no address to translate.
    let used: BTreeSet<&String> =
        families.iter().flat_map(|f| f.services.values()).chain(node_ports.values()).collect();
    chains.retain(|name, _| used.contains(name));
    write(node, &families, &node_ports, &chains)
}

/// Where connections to a port may go from this node.
fn backends(node: &Node, key: &ServiceKey, view: &ServiceView, port: &Port) -> Vec<SocketAddr> {
    if let Some(relay) = node.overrides.get(key) {
        return vec![*relay];
    }
    port.backends
        .iter()
        .filter(|backend| !view.local_only || backend.node.as_deref() == Some(node.name.as_str()))
        .map(|backend| backend.address)
        .collect()
}

/// One address family's share of the table.
struct Family {
    /// `ip` or `ip6`: the match, and the first part of chain names.
    prefix: &'static str,
    address: &'static str,
    services: BTreeMap<String, String>,
    empty: BTreeSet<String>,
    self_calls: BTreeSet<IpAddr>,
}

impl Family {
    fn new(prefix: &'static str, address: &'static str) -> Self {
        Self {
            prefix,
            address,
            services: BTreeMap::new(),
            empty: BTreeSet::new(),
            self_calls: BTreeSet::new(),
        }
    }

    fn holds(&self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self.prefix == "ip")
    }

    /// The one rule of a Service port's chain.
    fn translate(&self, protocol: Protocol, by_client: bool, targets: &[SocketAddr]) -> String {
        let family = self.prefix;
        let choose = if by_client { format!("jhash {family} saddr") } else { "numgen random".to_owned() };
        let targets: Vec<String> = targets
            .iter()
            .enumerate()
            .map(|(index, target)| format!("{index} : {} . {}", target.ip(), target.port()))
            .collect();
        format!(
            "meta l4proto {} dnat {family} to {choose} mod {} map {{ {} }}",
            protocol.as_str(),
            targets.len(),
            targets.join(", ")
        )
    }
}

fn write(
    node: &Node,
    families: &[Family],
    node_ports: &BTreeMap<(Protocol, u16), String>,
    chains: &BTreeMap<String, String>,
) -> String {
    let mut out = String::new();
    // `add` first, so that `delete` also succeeds on a node that has none yet.
    for family in ["bridge", "inet"] {
        let _ = writeln!(out, "add table {family} {TABLE}\ndelete table {family} {TABLE}");
    }
    let mac = &node.bridge_mac;
    let _ = write!(
        out,
        "table bridge {TABLE} {{
	chain prerouting {{
		type filter hook prerouting priority dstnat; policy accept;
		ether type ip meta pkttype other ether daddr set {mac} meta pkttype set host
		ether type ip6 meta l4proto {{ tcp, udp }} meta pkttype other ether daddr set {mac} meta pkttype set host
	}}
}}
table inet {TABLE} {{
"
    );
    for family in families {
        let (prefix, address) = (family.prefix, family.address);
        let services = family.services.iter().map(|(element, chain)| format!("{element} : goto {chain}"));
        let key = format!("{address} . inet_proto . inet_service");
        set(&mut out, "map", &format!("{prefix}-services"), &format!("{key} : verdict"), services);
        set(&mut out, "set", &format!("{prefix}-no-endpoints"), &key, family.empty.iter().cloned());
        let selves = family.self_calls.iter().map(|ip| format!("{ip} . {ip}"));
        set(&mut out, "set", &format!("{prefix}-self"), &format!("{address} . {address}"), selves);
    }
    let elements = node_ports
        .iter()
        .map(|((protocol, port), chain)| format!("{} . {port} : goto {chain}", protocol.as_str()));
    set(&mut out, "map", "node-ports", "inet_proto . inet_service : verdict", elements);
    for (name, rule) in chains {
        let _ = writeln!(out, "\tchain {name} {{\n\t\t{rule}\n\t}}");
    }
    let own = if node.ip.is_ipv4() { "ip" } else { "ip6" };
    let ip = node.ip;
    let _ = write!(
        out,
        "	chain services {{
		ip daddr . meta l4proto . th dport vmap @ip-services
		ip6 daddr . meta l4proto . th dport vmap @ip6-services
		{own} daddr {ip} meta l4proto . th dport vmap @node-ports
	}}
	chain nobody {{
		ip daddr . meta l4proto . th dport @ip-no-endpoints goto refuse
		ip6 daddr . meta l4proto . th dport @ip6-no-endpoints goto refuse
	}}
	chain refuse {{
		meta l4proto tcp reject with tcp reset
		reject with icmpx port-unreachable
	}}
	chain prerouting {{
		type nat hook prerouting priority dstnat; policy accept;
		jump services
	}}
	chain output {{
		type nat hook output priority -100; policy accept;
		jump services
	}}
	chain forward {{
		type filter hook forward priority filter; policy accept;
		jump nobody
	}}
	chain filter-output {{
		type filter hook output priority filter; policy accept;
		jump nobody
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat; policy accept;
		ct status dnat ip saddr . ip daddr @ip-self masquerade
		ct status dnat ip6 saddr . ip6 daddr @ip6-self masquerade
		ct status dnat ct original {own} daddr {ip} masquerade
	}}
}}
"
    );
    out
}

fn set(out: &mut String, kind: &str, name: &str, of: &str, elements: impl Iterator<Item = String>) {
    let _ = writeln!(out, "\t{kind} {name} {{\n\t\ttype {of}");
    let elements: Vec<String> = elements.collect();
    if !elements.is_empty() {
        let _ = writeln!(out, "\t\telements = {{ {} }}", elements.join(",\n\t\t\t"));
    }
    out.push_str("\t}\n");
}

#[cfg(test)]
mod tests;
