//! Which nodes a pod accepts: node selector and required node affinity. Pure.

use k8s_openapi::api::core::v1::{Node, NodeSelector, NodeSelectorRequirement, PodSpec};
use kube::ResourceExt;

fn required(spec: Option<&PodSpec>) -> Option<&NodeSelector> {
    let affinity = spec?.affinity.as_ref()?.node_affinity.as_ref()?;
    affinity.required_during_scheduling_ignored_during_execution.as_ref()
}

/// Whether a pod of this spec accepts the node. No spec accepts every node.
pub fn wants(spec: Option<&PodSpec>, node: &Node) -> bool {
    let selector = spec.and_then(|spec| spec.node_selector.as_ref());
    let selected = selector
        .is_none_or(|selector| selector.iter().all(|(name, value)| node.labels().get(name) == Some(value)));
    let affine = required(spec).is_none_or(|required| {
        required.node_selector_terms.iter().any(|term| {
            let labels = term.match_expressions.iter().flatten();
            let fields = term.match_fields.iter().flatten();
            let empty = labels.clone().next().is_none() && fields.clone().next().is_none();
            !empty
                && labels
                    .into_iter()
                    .all(|asked| holds(asked, node.labels().get(&asked.key).map(String::as_str)))
                && fields
                    .into_iter()
                    .all(|asked| asked.key == "metadata.name" && holds(asked, Some(&node.name_any())))
        })
    });
    selected && affine
}

/// Whether the spec requires a node by name, as the pods of DaemonSets do.
pub fn names_node(spec: Option<&PodSpec>) -> bool {
    required(spec).is_some_and(|required| {
        !required.node_selector_terms.is_empty()
            && required.node_selector_terms.iter().all(|term| {
                term.match_fields
                    .iter()
                    .flatten()
                    .any(|field| field.key == "metadata.name" && field.operator == "In")
            })
    })
}

fn holds(asked: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = asked.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|listed| listed == value));
    let number = |text: &str| text.parse::<i64>().ok();
    let compared = || Some(value.and_then(number)?.cmp(&values.first().and_then(|limit| number(limit))?));
    match asked.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared() == Some(std::cmp::Ordering::Greater),
        "Lt" => compared() == Some(std::cmp::Ordering::Less),
        _ => false,
    }
}
