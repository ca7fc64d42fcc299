//! Who may call: the pure function from policies and the facts of a connection to a verdict
//! (reference/data-plane.md §7).

use std::net::{IpAddr, SocketAddr};

use crate::{Action, Clause, Identity, Match, Policy, PolicyKey, Rule, StringMatch, View, Workload};

/// The facts of a connection that policies can ask about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Identity proven by TLS; none for plaintext.
    pub identity: Option<Identity>,
    /// Address the connection or its tunnel came from.
    pub source_ip: IpAddr,
    /// Address and port of the workload that is called.
    pub destination: SocketAddr,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RuleRef {
    /// `namespace/name`.
    pub policy: PolicyKey,
    /// Position of the rule in the policy, from 0.
    pub rule: usize,
}

/// What the policies say of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing denies it, and there is no ALLOW policy that would have to match.
    AllowedByDefault,
    /// An ALLOW rule matched and no DENY rule did.
    Allowed(RuleRef),
    /// A DENY rule matched.
    Denied(RuleRef),
    /// ALLOW policies apply and none matched; they are named.
    NotAllowed(Vec<PolicyKey>),
    /// The workload names policies that are not known yet: nobody can say, so nobody may pass.
    Unknown(Vec<PolicyKey>),
}

impl Verdict {
    /// Whether the connection may go on.
    pub fn is_allowed(&self) -> bool {
        matches!(self, Self::AllowedByDefault | Self::Allowed(_))
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AllowedByDefault => f.write_str("allowed, no policy applies"),
            Self::Allowed(by) => write!(f, "allowed by: {} rule {}", by.policy, by.rule),
            Self::Denied(by) => write!(f, "explicitly denied by: {} rule {}", by.policy, by.rule),
            Self::NotAllowed(policies) => {
                write!(f, "allow policies exist, but none allowed: {}", policies.join(", "))
            }
            Self::Unknown(policies) => write!(f, "policies not known yet: {}", policies.join(", ")),
        }
    }
}

/// Decides whether `connection` to `destination` may go on. Dry-run policies take no part.
pub fn authorize(view: &View, destination: &Workload, connection: &Connection) -> Verdict {
    let missing = view.missing_policies(destination);
    let principal = connection.identity.as_ref().map(Identity::principal).unwrap_or_default();
    let facts = Facts { connection, principal: &principal };
    let mut allowed = None;
    let mut allowers = Vec::new();
    for policy in view.policies_for(destination).filter(|policy| !policy.dry_run) {
        let hit = policy.rules.iter().position(|rule| facts.rule(rule));
        let rule_ref = |rule| RuleRef { policy: policy.key(), rule };
        match (policy.action, hit) {
            (Action::Deny, Some(rule)) => return Verdict::Denied(rule_ref(rule)),
            (Action::Deny, None) => {}
            (Action::Allow, hit) => {
                allowers.push(policy.key());
                allowed = allowed.or(hit.map(rule_ref));
            }
        }
    }
    if !missing.is_empty() {
        return Verdict::Unknown(missing);
    }
    match allowed {
        Some(by) => Verdict::Allowed(by),
        None if allowers.is_empty() => Verdict::AllowedByDefault,
        None => {
            allowers.sort();
            Verdict::NotAllowed(allowers)
        }
    }
}

/// What a policy that is only tried out would have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DryRun {
    /// It would have denied the connection.
    Denied(RuleRef),
    /// It would have allowed it.
    Allowed(RuleRef),
    /// Nothing allows it, and such policies being enforced, that would have denied it; they are named.
    NotAllowed(Vec<PolicyKey>),
}

impl DryRun {
    /// The word in metrics and log.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Denied(_) => "denied",
            Self::Allowed(_) => "allowed",
            Self::NotAllowed(_) => "not_allowed",
        }
    }

    /// The policy that would have decided; the first when there are several.
    pub fn policy(&self) -> Option<&PolicyKey> {
        match self {
            Self::Denied(by) | Self::Allowed(by) => Some(&by.policy),
            Self::NotAllowed(policies) => policies.first(),
        }
    }
}

/// What the dry-run policies would have done with `connection`. Nothing of it is enforced.
pub fn dry_run(view: &View, destination: &Workload, connection: &Connection) -> Vec<DryRun> {
    let principal = connection.identity.as_ref().map(Identity::principal).unwrap_or_default();
    let facts = Facts { connection, principal: &principal };
    let mut outcome = Vec::new();
    let mut allowers = Vec::new();
    let mut allowed = false;
    for policy in view.policies_for(destination).filter(|policy| policy.dry_run) {
        let hit = policy.rules.iter().position(|rule| facts.rule(rule));
        let by = hit.map(|rule| RuleRef { policy: policy.key(), rule });
        match (policy.action, by) {
            (Action::Deny, Some(by)) => outcome.push(DryRun::Denied(by)),
            (Action::Deny, None) => {}
            (Action::Allow, Some(by)) => {
                allowed = true;
                outcome.push(DryRun::Allowed(by));
            }
            (Action::Allow, None) => allowers.push(policy.key()),
        }
    }
    // An enforced policy that allows it would go on doing so.
    let otherwise = || matches!(authorize(view, destination, connection), Verdict::Allowed(_));
    if !allowed && !allowers.is_empty() && !otherwise() {
        allowers.sort();
        outcome.push(DryRun::NotAllowed(allowers));
    }
    outcome
}

pub(crate) struct Facts<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) principal: &'a str,
}

impl Facts<'_> {
    fn rule(&self, rule: &Rule) -> bool {
        rule.clauses.iter().all(|clause| self.clause(clause))
    }

    fn clause(&self, clause: &Clause) -> bool {
        clause.matches.is_empty() || clause.matches.iter().any(|m| self.matches(m))
    }

    pub(crate) fn matches(&self, m: &Match) -> bool {
        let Connection { identity, source_ip, destination } = self.connection;
        let namespace = identity.as_ref().map_or("", Identity::namespace);
        let text = |matches: &[StringMatch], text: &str| matches.iter().any(|m| m.matches(text));
        let account = |accounts: &[crate::ServiceAccountMatch]| {
            identity.as_ref().is_some_and(|id| {
                accounts
                    .iter()
                    .any(|a| *a.namespace == *id.namespace() && *a.service_account == *id.service_account())
            })
        };
        let ip = |blocks: &[crate::Cidr], ip: IpAddr| blocks.iter().any(|block| block.contains(ip));
        let asks = |wanted: bool, unwanted: bool, none_wanted: bool| (none_wanted || wanted) && !unwanted;
        !m.is_empty()
            && asks(
                text(&m.namespaces, namespace),
                text(&m.not_namespaces, namespace),
                m.namespaces.is_empty(),
            )
            && asks(
                text(&m.principals, self.principal),
                text(&m.not_principals, self.principal),
                m.principals.is_empty(),
            )
            && asks(
                account(&m.service_accounts),
                account(&m.not_service_accounts),
                m.service_accounts.is_empty(),
            )
            && asks(ip(&m.source_ips, *source_ip), ip(&m.not_source_ips, *source_ip), m.source_ips.is_empty())
            && asks(
                ip(&m.destination_ips, destination.ip()),
                ip(&m.not_destination_ips, destination.ip()),
                m.destination_ips.is_empty(),
            )
            && asks(
                m.destination_ports.contains(&destination.port()),
                m.not_destination_ports.contains(&destination.port()),
                m.destination_ports.is_empty(),
            )
    }
}

/// Whether a policy applies to a workload at all.
pub(crate) fn applies(policy: &Policy, workload: &Workload) -> bool {
    match policy.scope {
        crate::Scope::Global => true,
        crate::Scope::Namespace => policy.namespace == workload.namespace,
        crate::Scope::WorkloadSelector => workload.policies.contains(&policy.key()),
    }
}

#[cfg(test)]
mod tests;
