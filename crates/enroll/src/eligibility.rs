//! Which pods are to be enrolled: one pure function over a pod, its namespace's labels and the configuration.
//!
//! It owns the rules and a reason for each way of being out; it never looks at what *is* (annotations written by
//! the agent, rules in a namespace), only at what is wanted. `enrolment.md` §1.1.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::core::{Selector, SelectorExt};
use serde::{Deserialize, Serialize};

/// The label that says whether a namespace or a pod is in the mesh.
pub const MODE_LABEL: &str = "istio.io/dataplane-mode";
/// Its value for "in".
pub const MODE_AMBIENT: &str = "ambient";
/// Its value for "out".
pub const MODE_NONE: &str = "none";
/// A pod with this annotation has a sidecar.
pub const SIDECAR_ANNOTATION: &str = "sidecar.istio.io/status";
/// What the agent writes on an enrolled pod.
pub const REDIRECTION_ANNOTATION: &str = "ambient.istio.io/redirection";

type Labels = BTreeMap<String, String>;

/// One way of being selected, as written in the configuration: both halves must match, an absent half matches.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SelectorPair {
    /// Over the pod's labels.
    #[serde(default)]
    pub pod_selector: LabelSelector,
    /// Over the labels of the pod's namespace.
    #[serde(default)]
    pub namespace_selector: LabelSelector,
}

/// The default: the namespace whose pods are never enrolled.
pub const DEFAULT_EXCLUDED: &str = "kube-system";

/// The default: pods labelled `ambient`, and all pods of namespaces labelled `ambient` but those labelled `none`.
pub fn default_selectors() -> Vec<SelectorPair> {
    let ambient = || LabelSelector {
        match_labels: Some(BTreeMap::from([(MODE_LABEL.to_owned(), MODE_AMBIENT.to_owned())])),
        ..LabelSelector::default()
    };
    let not_none = LabelSelector {
        match_expressions: Some(vec![LabelSelectorRequirement {
            key: MODE_LABEL.to_owned(),
            operator: "NotIn".to_owned(),
            values: Some(vec![MODE_NONE.to_owned()]),
        }]),
        ..LabelSelector::default()
    };
    vec![
        SelectorPair { pod_selector: ambient(), namespace_selector: LabelSelector::default() },
        SelectorPair { pod_selector: not_none, namespace_selector: ambient() },
    ]
}

/// A selector of the configuration that cannot be understood.
#[derive(Debug, thiserror::Error)]
#[error("enablement selector {index} is not a label selector: {reason}")]
pub struct BadSelector {
    index: usize,
    reason: String,
}

/// The configured rules, parsed.
#[derive(Clone, Debug)]
pub struct Rules {
    pairs: Vec<Pair>,
    excluded: BTreeSet<String>,
    mesh_namespace: String,
}

#[derive(Clone, Debug)]
struct Pair {
    pod: Selector,
    namespace: Selector,
    any_namespace: bool,
}

impl Rules {
    /// Parses what was configured. `mesh_namespace` is where the node proxies themselves live.
    pub fn new(
        selectors: &[SelectorPair],
        excluded: &[String],
        mesh_namespace: &str,
    ) -> Result<Self, BadSelector> {
        let pairs = selectors
            .iter()
            .enumerate()
            .map(|(index, pair)| {
                let parse = |selector: &LabelSelector| {
                    Selector::try_from(selector.clone())
                        .map_err(|error| BadSelector { index, reason: error.to_string() })
                };
                let namespace = parse(&pair.namespace_selector)?;
                Ok(Pair {
                    pod: parse(&pair.pod_selector)?,
                    any_namespace: namespace.selects_all(),
                    namespace,
                })
            })
            .collect::<Result<_, BadSelector>>()?;
        Ok(Self {
            pairs,
            excluded: excluded.iter().cloned().collect(),
            mesh_namespace: mesh_namespace.to_owned(),
        })
    }

    /// Whether a namespace's own labels put (some of) its pods into the mesh.
    pub fn namespace_is_enrolled(&self, name: &str, labels: &Labels) -> bool {
        !self.excluded.contains(name)
            && self.pairs.iter().any(|pair| !pair.any_namespace && pair.namespace.matches(labels))
    }
}

/// What is wanted of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is to be enrolled.
    Enrol,
    /// It is to be left alone.
    Not(Reason),
}

/// Why a pod is not to be enrolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It has no network namespace of its own.
    HostNetwork,
    /// It has a sidecar, and a sidecar beside the node proxy is not supported.
    Sidecar,
    /// It is one of the mesh's own node proxies.
    NodeProxy,
    /// Its namespace is excluded by the configuration.
    ExcludedNamespace,
    /// Its own label says `none`.
    OptedOut,
    /// Neither its labels nor those of its namespace say so.
    NotSelected,
    /// It has finished.
    Finished,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HostNetwork => "it uses the network of its host",
            Self::Sidecar => "it has a sidecar (annotation sidecar.istio.io/status)",
            Self::NodeProxy => "it is a node proxy of the mesh",
            Self::ExcludedNamespace => "its namespace is excluded by the node agent's configuration",
            Self::OptedOut => "its label istio.io/dataplane-mode is none",
            Self::NotSelected => "neither it nor its namespace is labelled istio.io/dataplane-mode=ambient",
            Self::Finished => "it has finished",
        })
    }
}

/// What is wanted of `pod`, whose namespace carries `namespace_labels`.
pub fn judge(rules: &Rules, pod: &Pod, namespace_labels: &Labels) -> Verdict {
    let none = Labels::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    if finished(pod) {
        return Verdict::Not(Reason::Finished);
    }
    if pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false) {
        return Verdict::Not(Reason::HostNetwork);
    }
    if pod.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(SIDECAR_ANNOTATION)) {
        return Verdict::Not(Reason::Sidecar);
    }
    if namespace == rules.mesh_namespace && labels.get("app").is_some_and(|app| app == "ztunnel") {
        return Verdict::Not(Reason::NodeProxy);
    }
    if rules.excluded.contains(namespace) {
        return Verdict::Not(Reason::ExcludedNamespace);
    }
    if rules.pairs.iter().any(|pair| pair.pod.matches(labels) && pair.namespace.matches(namespace_labels)) {
        return Verdict::Enrol;
    }
    let opted_out = labels.get(MODE_LABEL).is_some_and(|mode| mode == MODE_NONE);
    Verdict::Not(if opted_out { Reason::OptedOut } else { Reason::NotSelected })
}

/// By what a pod was chosen that is to be enrolled, in words.
pub fn chosen_by(rules: &Rules, pod: &Pod, namespace_labels: &Labels) -> String {
    let none = Labels::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    let ambient = |labels: &Labels| labels.get(MODE_LABEL).is_some_and(|mode| mode == MODE_AMBIENT);
    let matches = |pair: &&Pair| pair.pod.matches(labels) && pair.namespace.matches(namespace_labels);
    match rules.pairs.iter().position(|pair| matches(&pair)) {
        Some(_) if ambient(labels) => format!("its label {MODE_LABEL} is {MODE_AMBIENT}"),
        Some(_) if ambient(namespace_labels) => {
            format!("the label {MODE_LABEL} of its namespace is {MODE_AMBIENT}")
        }
        Some(index) => format!("enablement selector {} of the node agent selects it", index + 1),
        None => "nothing selects it".to_owned(),
    }
}

/// Whether a pod has ended for good: its address may be somebody else's by now.
pub fn finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}

#[cfg(test)]
mod tests;
