//! The names of a cluster, answered from a [`Snapshot`]: the Kubernetes DNS specification, schema version 1.1.
//!
//! Pure: no sockets, no clock. What is not the cluster's to answer is [`Answer::NotOurs`].

use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};

use crate::node::net::model::{Host, Protocol, ServiceKey, ServiceView, Snapshot, dashed};

/// Seconds a client may keep an answer. Short, for pods come and go; the same as cluster DNS elsewhere.
const TTL: u32 = 5;
/// How often one answer follows an ExternalName to a name of the same cluster.
const MOST_ALIASES: usize = 4;

/// What the cluster knows of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The name exists. `answers` is empty when it has no record of the type asked for.
    Found {
        /// For the answer section.
        answers: Vec<Record>,
        /// Addresses of the names in `answers`, to spare the client a question.
        additionals: Vec<Record>,
    },
    /// No such name in the cluster.
    NoSuchName,
    /// A name outside the cluster's domain.
    NotOurs,
}

/// The authority over one cluster domain.
#[derive(Clone, Debug)]
pub struct Zone {
    domain: Name,
}

impl Zone {
    /// The zone `cluster.local.`, which every cluster of the lab has.
    pub fn cluster_local() -> Self {
        let mut domain = Name::from_labels(["cluster", "local"]).unwrap_or_else(|_| Name::root());
        domain.set_fqdn(true);
        Self { domain }
    }

    /// The record that says how long "no" may be remembered.
    pub fn soa(&self) -> Record {
        let name = |label: &str| self.domain.prepend_label(label).unwrap_or_else(|_| self.domain.clone());
        let soa = SOA::new(name("ns"), name("hostmaster"), 1, 7200, 1800, 86400, TTL);
        Record::from_rdata(self.domain.clone(), TTL, RData::SOA(soa))
    }

    /// Whether a name is answered from the snapshot alone, never by asking others.
    pub fn holds(&self, name: &Name) -> bool {
        self.domain.zone_of(name)
    }

    /// Everything the cluster says about `name`, of type `kind`.
    pub fn answer(&self, snapshot: &Snapshot, name: &Name, kind: RecordType) -> Answer {
        if !self.holds(name) {
            return self.reverse(snapshot, name, kind);
        }
        let count = usize::from(name.num_labels() - self.domain.num_labels());
        let mut labels = Vec::with_capacity(count);
        for label in name.iter().take(count) {
            let Ok(label) = std::str::from_utf8(label) else { return Answer::NoSuchName };
            labels.push(label.to_ascii_lowercase());
        }
        let mut labels: Vec<&str> = labels.iter().map(String::as_str).collect();
        labels.reverse(); // from the domain downwards: svc, namespace, service, …
        let found = match labels.as_slice() {
            [] if kind == RecordType::SOA => Some(vec![self.soa().data]),
            [] | ["svc"] | ["pod"] => Some(Vec::new()),
            ["dns-version"] => Some(match kind {
                RecordType::TXT => vec![RData::TXT(TXT::new(vec!["1.1.0".to_owned()]))],
                _ => Vec::new(),
            }),
            ["svc" | "pod", namespace] => snapshot.has_namespace(namespace).then(Vec::new),
            ["pod", _, address] => undashed(address).map(|ip| addresses([ip], kind)),
            ["svc", namespace, service, rest @ ..] => {
                let key = ServiceKey::new(*namespace, *service);
                return match snapshot.services.get(&key) {
                    Some(view) => self.service(snapshot, name, kind, &key, view, rest),
                    None => Answer::NoSuchName,
                };
            }
            _ => None,
        };
        match found {
            Some(data) => found_at(name, data),
            None => Answer::NoSuchName,
        }
    }

    fn service(
        &self,
        snapshot: &Snapshot,
        name: &Name,
        kind: RecordType,
        key: &ServiceKey,
        view: &ServiceView,
        below: &[&str],
    ) -> Answer {
        if let Some(alias) = &view.external_name {
            return if below.is_empty() {
                self.alias(snapshot, name, kind, alias)
            } else {
                Answer::NoSuchName
            };
        }
        match below {
            [] if kind == RecordType::SRV => self.srv(name, key, view, |_| true),
            [] => {
                let hosts = view.hosts.iter().map(|host| host.ip);
                let ips: Vec<IpAddr> = if view.headless { hosts.collect() } else { view.cluster_ips.clone() };
                // A headless Service without ready endpoints has no name, so that clients try again rather
                // than settle for an empty answer; the specification wants it so.
                if view.headless && ips.is_empty() {
                    return Answer::NoSuchName;
                }
                found_at(name, addresses(ips, kind))
            }
            [protocol] if *protocol == "_tcp" || *protocol == "_udp" => found_at(name, Vec::new()),
            [protocol, port] if protocol.starts_with('_') => {
                let (protocol, port) = (protocol.trim_start_matches('_'), port.trim_start_matches('_'));
                let wanted = |p: &(Protocol, &str, u16)| p.0.as_str() == protocol && p.1 == port;
                match kind {
                    RecordType::SRV => self.srv(name, key, view, wanted),
                    _ if srv_ports(view).iter().any(wanted) => found_at(name, Vec::new()),
                    _ => Answer::NoSuchName,
                }
            }
            [label] => {
                let ips: Vec<IpAddr> =
                    view.hosts.iter().filter(|host| host.label() == *label).map(|host| host.ip).collect();
                if ips.is_empty() { Answer::NoSuchName } else { found_at(name, addresses(ips, kind)) }
            }
            _ => Answer::NoSuchName,
        }
    }

    /// Ports and the names to find them at; for a headless Service one record an endpoint.
    fn srv(
        &self,
        name: &Name,
        key: &ServiceKey,
        view: &ServiceView,
        wanted: impl Fn(&(Protocol, &str, u16)) -> bool,
    ) -> Answer {
        let (mut answers, mut additionals) = (Vec::new(), Vec::new());
        for port in srv_ports(view).into_iter().filter(wanted) {
            let (protocol, port_name, number) = port;
            let mut add = |target: Option<Name>, number: u16, ips: &[IpAddr]| {
                let Some(target) = target else { return };
                let data = RData::SRV(SRV::new(0, 100, number, target.clone()));
                answers.push(Record::from_rdata(name.clone(), TTL, data));
                let ips = ips.iter().map(|ip| Record::from_rdata(target.clone(), TTL, address(*ip)));
                additionals.extend(ips);
            };
            if !view.headless {
                add(self.name_of(key, None), number, &view.cluster_ips);
                continue;
            }
            let of_port = view.ports.iter().find(|port| port.name == port_name && port.protocol == protocol);
            for backend in of_port.iter().flat_map(|port| &port.backends) {
                let ip = backend.address.ip();
                if let Some(host) = view.hosts.iter().find(|host| host.ip == ip) {
                    add(self.name_of(key, Some(host)), backend.address.port(), &[ip]);
                }
            }
        }
        if answers.is_empty() {
            return Answer::NoSuchName;
        }
        additionals.dedup();
        Answer::Found { answers, additionals }
    }

    /// An ExternalName: the alias, and what this zone knows of its target.
    fn alias(&self, snapshot: &Snapshot, name: &Name, kind: RecordType, alias: &str) -> Answer {
        let mut answers = Vec::new();
        let (mut at, mut alias) = (name.clone(), Some(alias.to_owned()));
        while let Some(target) = alias.take() {
            let Ok(mut target) = Name::from_ascii(&target) else { return Answer::NoSuchName };
            target.set_fqdn(true);
            answers.push(Record::from_rdata(at, TTL, RData::CNAME(CNAME(target.clone()))));
            if kind == RecordType::CNAME || answers.len() >= MOST_ALIASES || !self.holds(&target) {
                break;
            }
            let next =
                self.service_at(&target).and_then(|key| snapshot.services.get(&key)?.external_name.clone());
            if next.is_none()
                && let Answer::Found { answers: more, .. } = self.answer(snapshot, &target, kind)
            {
                answers.extend(more);
            }
            (at, alias) = (target, next);
        }
        Answer::Found { answers, additionals: Vec::new() }
    }

    /// The Service that `service.namespace.svc.<domain>` names.
    fn service_at(&self, name: &Name) -> Option<ServiceKey> {
        let labels: Vec<&str> = name.iter().filter_map(|label| std::str::from_utf8(label).ok()).collect();
        match labels.as_slice() {
            [service, namespace, "svc", _, _] => {
                Some(ServiceKey::new(namespace.to_ascii_lowercase(), service.to_ascii_lowercase()))
            }
            _ => None,
        }
    }

    /// Names of addresses. An address the cluster does not know is somebody else's to name.
    fn reverse(&self, snapshot: &Snapshot, name: &Name, kind: RecordType) -> Answer {
        let Ok(net) = name.parse_arpa_name() else { return Answer::NotOurs };
        if net.prefix_len() != net.max_prefix_len() {
            return Answer::NotOurs;
        }
        let ip = net.addr();
        let mut names = Vec::new();
        for (key, view) in &snapshot.services {
            if view.cluster_ips.contains(&ip) {
                names.extend(self.name_of(key, None));
            }
            let hosts = view.hosts.iter().filter(|host| host.ip == ip && host.hostname.is_some());
            names.extend(hosts.filter_map(|host| self.name_of(key, Some(host))));
        }
        if names.is_empty() {
            return Answer::NotOurs;
        }
        let wanted = kind == RecordType::PTR || kind == RecordType::ANY;
        let names = names.into_iter().filter(|_| wanted);
        found_at(name, names.map(|name| RData::PTR(PTR(name))).collect())
    }

    /// The name of a Service or of one of its endpoints.
    fn name_of(&self, key: &ServiceKey, host: Option<&Host>) -> Option<Name> {
        let name = self.domain.prepend_label("svc").ok()?;
        let name = name.prepend_label(key.namespace.as_str()).ok()?;
        let name = name.prepend_label(key.name.as_str()).ok()?;
        match host {
            Some(host) => name.prepend_label(host.label().as_str()).ok(),
            None => Some(name),
        }
    }
}

/// Ports that have an SRV record: those with a name.
fn srv_ports(view: &ServiceView) -> Vec<(Protocol, &str, u16)> {
    let named = view.ports.iter().filter(|port| !port.name.is_empty());
    named.map(|port| (port.protocol, port.name.as_str(), port.port)).collect()
}

fn found_at(name: &Name, data: Vec<RData>) -> Answer {
    let answers = data.into_iter().map(|data| Record::from_rdata(name.clone(), TTL, data)).collect();
    Answer::Found { answers, additionals: Vec::new() }
}

/// The addresses of the family that was asked for.
fn addresses(ips: impl IntoIterator<Item = IpAddr>, kind: RecordType) -> Vec<RData> {
    let wanted = |ip: &IpAddr| match kind {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        RecordType::ANY => true,
        _ => false,
    };
    ips.into_iter().filter(wanted).map(address).collect()
}

fn address(ip: IpAddr) -> RData {
    match ip {
        IpAddr::V4(ip) => RData::A(A(ip)),
        IpAddr::V6(ip) => RData::AAAA(AAAA(ip)),
    }
}

/// The address that [`dashed`] wrote.
fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".").parse::<IpAddr>().ok();
    v4.or_else(|| label.replace('-', ":").parse().ok()).filter(|ip| dashed(*ip) == label)
}

#[cfg(test)]
mod tests;
