//! Layer-4 authorization policies (reference/control-plane.md 0.4).

use std::sync::Arc;

use crate::Cidr;

/// Name of a policy: `namespace/name`.
pub type PolicyKey = Arc<str>;

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Name.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// To whom it applies.
    pub scope: Scope,
    /// What a match means.
    pub action: Action,
    /// Any one must match. None at all: the policy never matches.
    pub rules: Vec<Rule>,
    /// Evaluated and reported, never enforced.
    pub dry_run: bool,
}

impl Policy {
    /// `namespace/name`.
    pub fn key(&self) -> PolicyKey {
        format!("{}/{}", self.namespace, self.name).into()
    }
}

/// To whom a policy applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    /// Every workload.
    Global,
    /// The workloads of its namespace.
    Namespace,
    /// The workloads that name it.
    WorkloadSelector,
}

/// What a match means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Action {
    Allow,
    Deny,
}

/// Matches when every clause does; with no clause it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// AND-ed.
    pub clauses: Vec<Clause>,
}

/// Matches when any of its matches does; with no match at all it is true.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Clause {
    /// OR-ed.
    pub matches: Vec<Match>,
}

/// Values of one kind are OR-ed, kinds are AND-ed. An empty match never matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Match {
    pub namespaces: Vec<StringMatch>,
    pub not_namespaces: Vec<StringMatch>,
    pub principals: Vec<StringMatch>,
    pub not_principals: Vec<StringMatch>,
    pub service_accounts: Vec<ServiceAccountMatch>,
    pub not_service_accounts: Vec<ServiceAccountMatch>,
    pub source_ips: Vec<Cidr>,
    pub not_source_ips: Vec<Cidr>,
    pub destination_ips: Vec<Cidr>,
    pub not_destination_ips: Vec<Cidr>,
    pub destination_ports: Vec<u16>,
    pub not_destination_ports: Vec<u16>,
}

impl Match {
    /// Whether nothing is asked.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum StringMatch {
    Exact(Arc<str>),
    Prefix(Arc<str>),
    Suffix(Arc<str>),
    /// Any text but the empty one.
    Presence,
}

impl StringMatch {
    /// Whether `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text == &**exact,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.ends_with(&**suffix),
            Self::Presence => !text.is_empty(),
        }
    }
}

/// A service account of a namespace, of whatever trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct ServiceAccountMatch {
    pub namespace: Arc<str>,
    pub service_account: Arc<str>,
}
