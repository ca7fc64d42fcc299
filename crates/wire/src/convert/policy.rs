//! Authorization policies.

use mesh::{Action, Cidr, Clause, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch};

use super::service::cidr;
use super::{ConvertError, ip_from_bytes, ip_to_bytes, known, port};
use crate::security as pb;

impl TryFrom<pb::Authorization> for Policy {
    type Error = ConvertError;

    fn try_from(a: pb::Authorization) -> Result<Self, Self::Error> {
        if a.name.is_empty() {
            return Err(ConvertError::new("authorization.name", "empty"));
        }
        Ok(Self {
            name: a.name.into(),
            namespace: a.namespace.into(),
            scope: match known("authorization.scope", a.scope)? {
                pb::Scope::Global => Scope::Global,
                pb::Scope::Namespace => Scope::Namespace,
                pb::Scope::WorkloadSelector => Scope::WorkloadSelector,
            },
            action: match known("authorization.action", a.action)? {
                pb::Action::Allow => Action::Allow,
                pb::Action::Deny => Action::Deny,
            },
            rules: a.rules.into_iter().map(rule).collect::<Result<_, _>>()?,
            dry_run: a.dry_run,
        })
    }
}

fn rule(rule: pb::Rule) -> Result<Rule, ConvertError> {
    let clause = |clause: pb::Clause| {
        Ok(Clause {
            matches: clause.matches.into_iter().map(one_match).collect::<Result<_, ConvertError>>()?,
        })
    };
    Ok(Rule { clauses: rule.clauses.into_iter().map(clause).collect::<Result<_, _>>()? })
}

/// A value that cannot be understood is refused: leaving it out could widen what the match lets through.
fn one_match(m: pb::Match) -> Result<Match, ConvertError> {
    Ok(Match {
        namespaces: strings("match.namespaces", m.namespaces)?,
        not_namespaces: strings("match.not_namespaces", m.not_namespaces)?,
        principals: strings("match.principals", m.principals)?,
        not_principals: strings("match.not_principals", m.not_principals)?,
        service_accounts: accounts(m.service_accounts),
        not_service_accounts: accounts(m.not_service_accounts),
        source_ips: blocks("match.source_ips", &m.source_ips)?,
        not_source_ips: blocks("match.not_source_ips", &m.not_source_ips)?,
        destination_ips: blocks("match.destination_ips", &m.destination_ips)?,
        not_destination_ips: blocks("match.not_destination_ips", &m.not_destination_ips)?,
        destination_ports: ports("match.destination_ports", &m.destination_ports)?,
        not_destination_ports: ports("match.not_destination_ports", &m.not_destination_ports)?,
    })
}

fn strings(field: &'static str, matches: Vec<pb::StringMatch>) -> Result<Vec<StringMatch>, ConvertError> {
    use pb::string_match::MatchType;
    let string = |m: pb::StringMatch| match m.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.into())),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.into())),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.into())),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
        None => Err(ConvertError::new(field, "a string match without a kind")),
    };
    matches.into_iter().map(string).collect()
}

fn accounts(accounts: Vec<pb::ServiceAccountMatch>) -> Vec<ServiceAccountMatch> {
    let account = |a: pb::ServiceAccountMatch| ServiceAccountMatch {
        namespace: a.namespace.into(),
        service_account: a.service_account.into(),
    };
    accounts.into_iter().map(account).collect()
}

fn blocks(field: &'static str, addresses: &[pb::Address]) -> Result<Vec<Cidr>, ConvertError> {
    addresses.iter().map(|a| cidr(field, ip_from_bytes(field, &a.address)?, a.length)).collect()
}

fn ports(field: &'static str, ports: &[u32]) -> Result<Vec<u16>, ConvertError> {
    ports.iter().map(|p| port(field, *p)).collect()
}

impl From<&Policy> for pb::Authorization {
    fn from(p: &Policy) -> Self {
        let rule = |rule: &Rule| pb::Rule { clauses: rule.clauses.iter().map(clause_to_wire).collect() };
        Self {
            name: p.name.to_string(),
            namespace: p.namespace.to_string(),
            scope: match p.scope {
                Scope::Global => pb::Scope::Global,
                Scope::Namespace => pb::Scope::Namespace,
                Scope::WorkloadSelector => pb::Scope::WorkloadSelector,
            }
            .into(),
            action: match p.action {
                Action::Allow => pb::Action::Allow,
                Action::Deny => pb::Action::Deny,
            }
            .into(),
            rules: p.rules.iter().map(rule).collect(),
            dry_run: p.dry_run,
            extensions: Vec::new(),
        }
    }
}

fn clause_to_wire(clause: &Clause) -> pb::Clause {
    let one = |m: &Match| pb::Match {
        namespaces: strings_to_wire(&m.namespaces),
        not_namespaces: strings_to_wire(&m.not_namespaces),
        principals: strings_to_wire(&m.principals),
        not_principals: strings_to_wire(&m.not_principals),
        source_ips: blocks_to_wire(&m.source_ips),
        not_source_ips: blocks_to_wire(&m.not_source_ips),
        destination_ips: blocks_to_wire(&m.destination_ips),
        not_destination_ips: blocks_to_wire(&m.not_destination_ips),
        destination_ports: m.destination_ports.iter().copied().map(Into::into).collect(),
        not_destination_ports: m.not_destination_ports.iter().copied().map(Into::into).collect(),
        service_accounts: accounts_to_wire(&m.service_accounts),
        not_service_accounts: accounts_to_wire(&m.not_service_accounts),
        extensions: Vec::new(),
    };
    pb::Clause { matches: clause.matches.iter().map(one).collect() }
}

fn strings_to_wire(matches: &[StringMatch]) -> Vec<pb::StringMatch> {
    use pb::string_match::MatchType;
    let string = |m: &StringMatch| pb::StringMatch {
        match_type: Some(match m {
            StringMatch::Exact(text) => MatchType::Exact(text.to_string()),
            StringMatch::Prefix(text) => MatchType::Prefix(text.to_string()),
            StringMatch::Suffix(text) => MatchType::Suffix(text.to_string()),
            StringMatch::Presence => MatchType::Presence(()),
        }),
    };
    matches.iter().map(string).collect()
}

fn blocks_to_wire(blocks: &[Cidr]) -> Vec<pb::Address> {
    let block = |b: &Cidr| pb::Address { address: ip_to_bytes(b.network()), length: b.prefix().into() };
    blocks.iter().map(block).collect()
}

fn accounts_to_wire(accounts: &[ServiceAccountMatch]) -> Vec<pb::ServiceAccountMatch> {
    let account = |a: &ServiceAccountMatch| pb::ServiceAccountMatch {
        namespace: a.namespace.to_string(),
        service_account: a.service_account.to_string(),
    };
    accounts.iter().map(account).collect()
}
