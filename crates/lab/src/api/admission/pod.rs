//! What a new pod is given besides defaults: its first status and its quality of service.

use serde_json::{Map, Value, json};

use crate::api::object::{array_at, as_map, default_to, map_mut};

/// Completes a new pod.
pub fn complete(pod: &mut Value) {
    let qos = quality_of_service(pod);
    let status = map_mut(pod, "status");
    status.insert("phase".into(), "Pending".into());
    status.insert("qosClass".into(), qos.into());
    let spec = map_mut(pod, "spec");
    default_to(spec, "enableServiceLinks", true);
    default_to(spec, "preemptionPolicy", "PreemptLowerPriority");
    default_to(spec, "priority", priority(spec));
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    if let Value::Array(tolerations) = tolerations {
        for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
            let tolerated = tolerations.iter().any(|t| {
                let key_matches = t.get("key").is_none_or(|k| k == key);
                key_matches && t.get("effect").is_none_or(|e| e == "NoExecute")
            });
            if !tolerated {
                tolerations.push(json!({
                    "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300,
                }));
            }
        }
    }
    as_map(pod).shift_remove("binding");
}

fn priority(spec: &Map<String, Value>) -> i64 {
    match spec.get("priorityClassName").and_then(Value::as_str) {
        Some("system-node-critical") => 2_000_001_000,
        Some("system-cluster-critical") => 2_000_000_000,
        _ => 0,
    }
}

/// Guaranteed, Burstable or BestEffort.
fn quality_of_service(pod: &Value) -> &'static str {
    let containers: Vec<&Value> =
        ["/spec/containers", "/spec/initContainers"].iter().flat_map(|list| array_at(pod, list)).collect();
    let amounts = |container: &Value, what: &str| -> Map<String, Value> {
        let found = container.pointer(&format!("/resources/{what}")).and_then(Value::as_object);
        found
            .into_iter()
            .flatten()
            .filter(|(k, _)| matches!(k.as_str(), "cpu" | "memory"))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    if containers.iter().all(|c| amounts(c, "limits").is_empty() && amounts(c, "requests").is_empty()) {
        return "BestEffort";
    }
    let guaranteed = containers.iter().all(|container| {
        let (limits, requests) = (amounts(container, "limits"), amounts(container, "requests"));
        limits.len() == 2 && limits == requests
    });
    if guaranteed { "Guaranteed" } else { "Burstable" }
}
