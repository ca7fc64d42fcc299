//! AuthorizationPolicy and PeerAuthentication, read from dynamic objects: their schemas are not ours to depend on.

use std::collections::BTreeMap;

use kube::core::DynamicObject;
use serde::Deserialize;

use super::condition::{self, StatusCondition};
use super::custom::{ObjectError, created, revision, spec};
use super::{Key, Labels};

/// An AuthorizationPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Namespace and name.
    pub key: Key,
    /// Generation of its spec.
    pub generation: Option<i64>,
    /// Revision label, if any.
    pub revision: Option<String>,
    /// Conditions that stand on it.
    pub conditions: Vec<StatusCondition>,
    /// Annotation `istio.io/dry-run` is true.
    pub dry_run: bool,
    /// What it applies to by reference; any makes it a policy for waypoints.
    pub targets: Vec<TargetRef>,
    /// Labels of the workloads it applies to; none applies to the whole namespace.
    pub selector: Option<Labels>,
    /// What a match means.
    pub action: PolicyAction,
    /// Rules, OR-ed.
    pub rules: Vec<PolicyRule>,
}

/// What a policy applies to by reference.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct TargetRef {
    pub group: String,
    pub kind: String,
    pub namespace: Option<String>,
    pub name: String,
}

/// What a match of an AuthorizationPolicy means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum PolicyAction {
    #[default]
    Allow,
    Deny,
    /// AUDIT, CUSTOM or a value of a later API.
    Other(String),
}

/// One rule: who, to what, under which conditions; parts that stand empty ask nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PolicyRule {
    /// Sources, OR-ed.
    #[serde(deserialize_with = "from_entries")]
    pub from: Vec<Source>,
    /// Operations, OR-ed.
    #[serde(deserialize_with = "to_entries")]
    pub to: Vec<Operation>,
    /// Conditions, AND-ed.
    pub when: Vec<Condition>,
}

/// Who calls.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Source {
    pub principals: Vec<String>,
    pub not_principals: Vec<String>,
    pub request_principals: Vec<String>,
    pub not_request_principals: Vec<String>,
    pub namespaces: Vec<String>,
    pub not_namespaces: Vec<String>,
    pub service_accounts: Vec<String>,
    pub not_service_accounts: Vec<String>,
    pub ip_blocks: Vec<String>,
    pub not_ip_blocks: Vec<String>,
    pub remote_ip_blocks: Vec<String>,
    pub not_remote_ip_blocks: Vec<String>,
}

/// What is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Operation {
    pub hosts: Vec<String>,
    pub not_hosts: Vec<String>,
    pub ports: Vec<String>,
    pub not_ports: Vec<String>,
    pub methods: Vec<String>,
    pub not_methods: Vec<String>,
    pub paths: Vec<String>,
    pub not_paths: Vec<String>,
}

/// A further condition.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[allow(missing_docs)]
pub struct Condition {
    pub key: String,
    pub values: Vec<String>,
    pub not_values: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct FromEntry {
    source: Source,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ToEntry {
    operation: Operation,
}

fn from_entries<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Source>, D::Error> {
    Ok(Vec::<FromEntry>::deserialize(deserializer)?.into_iter().map(|entry| entry.source).collect())
}

fn to_entries<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Vec<Operation>, D::Error> {
    Ok(Vec::<ToEntry>::deserialize(deserializer)?.into_iter().map(|entry| entry.operation).collect())
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Selector {
    match_labels: Labels,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AuthorizationSpec {
    selector: Option<Selector>,
    target_ref: Option<TargetRef>,
    target_refs: Vec<TargetRef>,
    action: Option<String>,
    rules: Vec<PolicyRule>,
}

impl TryFrom<DynamicObject> for AuthorizationPolicy {
    type Error = ObjectError;

    fn try_from(mut object: DynamicObject) -> Result<Self, ObjectError> {
        let key = super::key_of(&object.metadata);
        let spec: AuthorizationSpec = spec("AuthorizationPolicy", &key, &mut object)?;
        let revision = revision(&object);
        let conditions = condition::of_status(object.data.get("status"));
        let meta = object.metadata;
        Ok(Self {
            key,
            generation: meta.generation,
            revision,
            conditions,
            dry_run: meta
                .annotations
                .as_ref()
                .and_then(|annotations| annotations.get("istio.io/dry-run"))
                .is_some_and(|value| value == "true"),
            targets: spec.target_ref.into_iter().chain(spec.target_refs).collect(),
            selector: selector(spec.selector),
            action: match spec.action.as_deref() {
                None | Some("" | "ALLOW") => PolicyAction::Allow,
                Some("DENY") => PolicyAction::Deny,
                Some(other) => PolicyAction::Other(other.into()),
            },
            rules: spec.rules,
        })
    }
}

/// Mode of a PeerAuthentication. DISABLE is treated as PERMISSIVE: nothing can be tunnelled in plaintext.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum MtlsMode {
    #[default]
    Unset,
    Permissive,
    Strict,
}

/// A PeerAuthentication.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerAuthentication {
    /// Namespace and name.
    pub key: Key,
    /// When it was created, seconds since 1970; the oldest wins.
    pub created: i64,
    /// Revision label, if any.
    pub revision: Option<String>,
    /// Labels of the workloads it applies to; none applies to the whole namespace.
    pub selector: Option<Labels>,
    /// Mode.
    pub mode: MtlsMode,
    /// Modes of single ports.
    pub ports: BTreeMap<u16, MtlsMode>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Mtls {
    mode: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct PeerSpec {
    selector: Option<Selector>,
    mtls: Option<Mtls>,
    port_level_mtls: BTreeMap<String, Mtls>,
}

impl TryFrom<DynamicObject> for PeerAuthentication {
    type Error = ObjectError;

    fn try_from(mut object: DynamicObject) -> Result<Self, ObjectError> {
        let key = super::key_of(&object.metadata);
        let spec: PeerSpec = spec("PeerAuthentication", &key, &mut object)?;
        Ok(Self {
            created: created(&object),
            revision: revision(&object),
            selector: selector(spec.selector),
            mode: mode(&key, spec.mtls.as_ref()),
            ports: spec
                .port_level_mtls
                .iter()
                .filter_map(|(port, mtls)| match port.parse() {
                    Ok(port) => Some((port, mode(&key, Some(mtls)))),
                    Err(_) => {
                        tracing::warn!(policy = %key, port, "PeerAuthentication names a port that is none; it is left out");
                        None
                    }
                })
                .collect(),
            key,
        })
    }
}

/// A selector that asks for nothing selects everything, and so is none.
fn selector(selector: Option<Selector>) -> Option<Labels> {
    selector.map(|selector| selector.match_labels).filter(|labels| !labels.is_empty())
}

/// A mode that is none of those known asks for nothing, as if it were not there; whoever wrote it reads of it.
fn mode(policy: &Key, mtls: Option<&Mtls>) -> MtlsMode {
    match mtls.and_then(|mtls| mtls.mode.as_deref()) {
        Some("STRICT") => MtlsMode::Strict,
        Some("PERMISSIVE" | "DISABLE") => MtlsMode::Permissive,
        None | Some("" | "UNSET") => MtlsMode::Unset,
        Some(other) => {
            tracing::warn!(%policy, mode = other, "PeerAuthentication with an unknown mode, treated as UNSET");
            MtlsMode::Unset
        }
    }
}
