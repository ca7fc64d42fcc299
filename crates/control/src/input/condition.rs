//! Status conditions that stand on an object now, of the types that are ours to write.

use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use serde_json::Value;

/// A condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusCondition {
    /// Type.
    pub kind: String,
    /// True or False.
    pub status: bool,
    /// Reason, one word.
    pub reason: String,
    /// What it means.
    pub message: String,
    /// Generation of the object that it speaks of.
    pub generation: Option<i64>,
    /// Since when it has this status, as written; empty when it is to be written anew.
    pub since: String,
}

impl StatusCondition {
    /// Whether both say the same, whenever they were written.
    pub fn same(&self, other: &Self) -> bool {
        (&self.kind, self.status, &self.reason, &self.message, self.generation)
            == (&other.kind, other.status, &other.reason, &other.message, other.generation)
    }
}

/// Types that this control plane writes.
fn ours(kind: &str) -> bool {
    matches!(
        kind,
        "istio.io/WaypointBound"
            | "istio.io/WaypointMissing"
            | "istio.io/VisibilityApplied"
            | "ambit.io/HostOwned"
            | "ZtunnelAccepted"
            | "WaypointAccepted"
    )
}

/// Ours among the conditions of a built-in object.
pub(super) fn of_builtin(conditions: Option<Vec<meta::Condition>>) -> Vec<StatusCondition> {
    let mut found: Vec<StatusCondition> = conditions
        .into_iter()
        .flatten()
        .filter(|condition| ours(&condition.type_))
        .map(|condition| StatusCondition {
            kind: condition.type_,
            status: condition.status == "True",
            reason: condition.reason,
            message: condition.message,
            generation: condition.observed_generation,
            since: condition.last_transition_time.0.to_string(),
        })
        .collect();
    found.sort_by(|a, b| a.kind.cmp(&b.kind));
    found
}

/// Ours among the conditions in a status.
pub(super) fn of_status(status: Option<&Value>) -> Vec<StatusCondition> {
    let list = status.and_then(|status| status.get("conditions")).and_then(Value::as_array);
    let mut found: Vec<StatusCondition> = list
        .into_iter()
        .flatten()
        .filter_map(|condition| {
            let text = |key: &str| condition.get(key).and_then(Value::as_str).unwrap_or_default().to_string();
            // int64 travels as a number or, from protobuf's JSON, as text.
            let generation = condition.get("observedGeneration").and_then(|value| {
                value.as_i64().or_else(|| value.as_str().and_then(|text| text.parse().ok()))
            });
            let kind = text("type");
            ours(&kind).then(|| StatusCondition {
                kind,
                status: text("status") == "True",
                reason: text("reason"),
                message: text("message"),
                generation,
                since: text("lastTransitionTime"),
            })
        })
        .collect();
    found.sort_by(|a, b| a.kind.cmp(&b.kind));
    found
}
