//! What is said on objects of what became of them (reference/control-plane.md §1.10).
//!
//! Never more than is done: a policy that refuses nothing does not say that it is accepted.

use super::{Bound, Effect, Omitted, Unbound};
use crate::input::{AuthorizationPolicy, PolicyAction, StatusCondition};

fn condition(kind: &str, status: bool, reason: &str, message: String) -> StatusCondition {
    let (kind, reason) = (kind.to_string(), reason.to_string());
    StatusCondition { kind, status, reason, message, generation: None, since: String::new() }
}

/// Condition `istio.io/WaypointBound`; nothing when no waypoint is asked for.
pub fn binding(bound: &Result<Option<Bound>, Unbound>, service: bool) -> Option<StatusCondition> {
    const KIND: &str = "istio.io/WaypointBound";
    match bound {
        Ok(None) => None,
        Err(unbound) => Some(condition(KIND, false, unbound.reason(), unbound.to_string())),
        Ok(Some(bound)) => {
            let mut message = format!("Successfully attached to waypoint {}", bound.primary.key);
            if service {
                message.push_str(if bound.ingress {
                    ". Ingress traffic will traverse the waypoint"
                } else {
                    ". Ingress traffic is not using the waypoint, set the istio.io/ingress-use-waypoint label to true if desired."
                });
            }
            if let Some(refused) = &bound.canary_refused {
                message.push_str(&format!(". Canary waypoint not attached: {refused}"));
            }
            Some(condition(KIND, true, "WaypointAccepted", message))
        }
    }
}

/// Condition `ZtunnelAccepted` of a policy without targets; nothing when it is not ours to judge.
pub fn policy(
    input: &AuthorizationPolicy,
    omitted: Option<&Omitted>,
    effect: &Effect,
) -> Option<StatusCondition> {
    const KIND: &str = "ZtunnelAccepted";
    let unsupported =
        |status: bool, message: String| Some(condition(KIND, status, "UnsupportedValue", message));
    match omitted {
        Some(Omitted::Targeted | Omitted::Revision(_)) => return None,
        Some(Omitted::DryRun) => {
            let message = format!(
                "found policy \"{}\" using dry-run annotation, but support for ambient dry-run authorizationPolicies isn't enabled",
                input.key
            );
            return unsupported(false, message);
        }
        Some(omitted @ Omitted::Action(_)) => return unsupported(false, omitted.to_string()),
        None => {}
    }
    let deny = input.action == PolicyAction::Deny;
    let mut parts: Vec<String> = Vec::new();
    if !effect.http.is_empty() {
        parts.push(format!(
            "ztunnel does not support HTTP attributes (found: {}). In ambient mode you must use a waypoint proxy to enforce HTTP rules.",
            effect.http.join(", ")
        ));
        if !deny {
            parts.push("Within an ALLOW policy, rules matching HTTP attributes are omitted. This will be more restrictive than requested.".into());
        } else if effect.dead {
            parts.push("After omitting unsupported HTTP attributes, this DENY policy has no enforceable rules at ztunnel and will have no effect. Deploy a waypoint proxy and use a targetRef to enforce this policy.".into());
        } else {
            if effect.wider {
                parts.push("DENY policy with HTTP attributes is enforced without the HTTP rules. This will be more restrictive than requested.".into());
            }
            if effect.lost {
                parts.push("What it denies by HTTP attributes alone has no enforceable rule at ztunnel and is not denied.".into());
            }
        }
    }
    if !effect.invalid.is_empty() {
        parts.push(format!("Values that cannot be understood match nothing: {}.", effect.invalid.join(", ")));
        if effect.http.is_empty() && deny && effect.dead {
            parts.push("This DENY policy has no enforceable rule and will have no effect.".into());
        } else if !deny {
            parts.push("Rules that hang on them allow nothing.".into());
        } else {
            parts.push("Exceptions that hang on them are not made.".into());
        }
    }
    if parts.is_empty() {
        return Some(condition(KIND, true, "Accepted", "attached to ztunnel".into()));
    }
    unsupported(!(deny && effect.dead), parts.join(" "))
}

/// What became of the targets of a policy.
#[derive(Clone, Debug, Default)]
pub struct Targets {
    /// Waypoints it is bound to.
    pub bound: Vec<String>,
    /// Targets that are bound to none, each with the reason's word and why.
    pub unbound: Vec<(String, &'static str, String)>,
}

/// Condition `WaypointAccepted` of a policy with targets.
pub fn waypoint_policy(targets: &Targets) -> StatusCondition {
    const KIND: &str = "WaypointAccepted";
    let names =
        || targets.unbound.iter().map(|(target, _, _)| target.as_str()).collect::<Vec<_>>().join(", ");
    match (&targets.bound[..], &targets.unbound[..]) {
        ([waypoint], []) => condition(KIND, true, "Accepted", format!("bound to {waypoint}")),
        ([_, ..], []) => condition(KIND, true, "Accepted", String::new()),
        ([], [(_, reason, message)]) => condition(KIND, false, reason, message.clone()),
        ([], _) => condition(KIND, false, "Invalid", format!("Invalid targetRefs: {}", names())),
        (_, _) => condition(KIND, true, "PartiallyInvalid", format!("Invalid targetRefs: {}", names())),
    }
}
