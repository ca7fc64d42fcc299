//! Why a caller that proved no identity was refused, in words that help: who it seems to be, which rule wanted an
//! identity, and what can be done. Nothing here names an account: what was not proven is not claimed.

use std::fmt;
use std::sync::Arc;

use crate::authorize::Facts;
use crate::{Connection, Match, NetworkAddress, Rule, RuleRef, Tunnel, Verdict, View, Workload};

/// A refused caller without a proven identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unproven {
    /// What its address says.
    pub caller: Caller,
    /// The rule that would have wanted an identity.
    pub rule: RuleRef,
}

/// What the address of a caller without identity says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// It is that of a node, and of whatever runs on the node's network.
    HostNetwork {
        /// The node.
        node: Arc<str>,
    },
    /// It is that of a pod that is not in the mesh.
    NotEnrolled {
        /// `namespace/name`.
        pod: String,
    },
    /// It is that of a pod of the mesh, whose call nevertheless came past its proxy.
    NotCaptured {
        /// `namespace/name`.
        pod: String,
    },
    /// Nothing in the mesh has it.
    Unknown,
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HostNetwork { node } => write!(f, "host network of node {node}"),
            Self::NotEnrolled { pod } => write!(f, "pod {pod} is not enrolled"),
            Self::NotCaptured { pod } => write!(f, "the call of pod {pod} was not captured"),
            Self::Unknown => f.write_str("no workload of the mesh has its address"),
        }
    }
}

impl Unproven {
    /// What can be done.
    pub fn cure(&self) -> &'static str {
        match self.caller {
            Caller::HostNetwork { .. } => {
                "give the caller a network of its own and enrol it, or allow its address and port without a principal"
            }
            Caller::NotEnrolled { .. } => {
                "enrol the caller, or allow its address and port without a principal"
            }
            Caller::NotCaptured { .. } => {
                "look for an exclusion among the caller's annotations, or restart the connection if it is older than \
                 the enrolment"
            }
            Caller::Unknown => "call from an enrolled pod, or allow the address and port without a principal",
        }
    }
}

impl fmt::Display for Unproven {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RuleRef { policy, rule } = &self.rule;
        write!(f, "no proven identity ({}); rule {policy}#{rule} needs a principal", self.caller)
    }
}

/// Explains `verdict` on a `connection` to `destination`; nothing when an identity would have changed nothing.
pub fn unproven(
    view: &View,
    destination: &Workload,
    connection: &Connection,
    verdict: &Verdict,
) -> Option<Unproven> {
    if connection.identity.is_some() {
        return None;
    }
    let rule = match verdict {
        Verdict::Denied(by) => {
            let rule = view.policy(&by.policy)?.rules.get(by.rule)?;
            any_match(rule, refuses_strangers).then(|| by.clone())
        }
        Verdict::NotAllowed(policies) => policies.iter().find_map(|key| {
            let rules = &view.policy(key)?.rules;
            let rule = rules
                .iter()
                .position(|rule| any_match(rule, wants_identity) && else_matches(rule, connection))?;
            Some(RuleRef { policy: key.clone(), rule })
        }),
        Verdict::AllowedByDefault | Verdict::Allowed(_) | Verdict::Unknown(_) => None,
    }?;
    let address = NetworkAddress::new(destination.network.clone(), connection.source_ip);
    Some(Unproven { caller: caller(view, &address), rule })
}

fn caller(view: &View, address: &NetworkAddress) -> Caller {
    let pod = |workload: &Workload| format!("{}/{}", workload.namespace, workload.name);
    match (view.workload_by_address(address), view.host_by_address(address)) {
        (Some(workload), _) if workload.tunnel == Tunnel::Hbone => Caller::NotCaptured { pod: pod(workload) },
        (Some(workload), _) => Caller::NotEnrolled { pod: pod(workload) },
        (None, Some(host)) => Caller::HostNetwork { node: host.node.clone() },
        (None, None) => Caller::Unknown,
    }
}

fn any_match(rule: &Rule, ask: impl Fn(&Match) -> bool) -> bool {
    rule.clauses.iter().flat_map(|clause| &clause.matches).any(ask)
}

fn wants_identity(m: &Match) -> bool {
    !(m.principals.is_empty() && m.namespaces.is_empty() && m.service_accounts.is_empty())
}

/// Of the identity, everything is denied that is not named: whoever has none as well.
fn refuses_strangers(m: &Match) -> bool {
    !(m.not_principals.is_empty() && m.not_namespaces.is_empty() && m.not_service_accounts.is_empty())
}

/// Whether the rule would match a connection like this one, were it for its identity alone.
fn else_matches(rule: &Rule, connection: &Connection) -> bool {
    let facts = Facts { connection, principal: "" };
    let otherwise = |m: &Match| {
        let rest = Match {
            namespaces: Vec::new(),
            not_namespaces: Vec::new(),
            principals: Vec::new(),
            not_principals: Vec::new(),
            service_accounts: Vec::new(),
            not_service_accounts: Vec::new(),
            ..m.clone()
        };
        if m.is_empty() { false } else { rest.is_empty() || facts.matches(&rest) }
    };
    rule.clauses.iter().all(|clause| clause.matches.is_empty() || clause.matches.iter().any(otherwise))
}

#[cfg(test)]
mod tests;
