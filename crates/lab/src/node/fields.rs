//! What a pod can be told about itself (`fieldRef`, `resourceFieldRef`): pure functions of the pod.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};

/// What is known of a running pod beyond its object.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Its addresses, once it has a sandbox.
    pub pod_ips: &'a [IpAddr],
    /// The address of the node.
    pub host_ip: IpAddr,
}

/// The value of a field path such as `metadata.labels['app']`; an error names what is not supported.
pub fn field(facts: &Facts<'_>, path: &str) -> Result<String, String> {
    let meta = &facts.pod.metadata;
    let spec = facts.pod.spec.as_ref();
    let join = |ips: &[IpAddr]| ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return Err(format!("field {path:?} is not supported")),
        };
        return Ok(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => {
            spec.and_then(|s| s.service_account_name.clone()).unwrap_or_else(|| "default".to_owned())
        }
        "status.hostIP" | "status.hostIPs" => facts.host_ip.to_string(),
        "status.podIP" => facts.pod_ips.first().map(ToString::to_string).unwrap_or_default(),
        "status.podIPs" => join(facts.pod_ips),
        _ => return Err(format!("field {path:?} is not supported")),
    })
}

/// A map as files show it: one `key="value"` a line.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
}

/// The value of a resource of a container in units of the divisor, rounded up; what is not limited is what
/// the node has.
pub fn resource(
    pod: &Pod,
    own: Option<&Container>,
    wanted: &ResourceFieldSelector,
    node: impl Fn(&str) -> Option<i128>,
) -> Result<String, String> {
    let containers =
        pod.spec.iter().flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let container = match &wanted.container_name {
        Some(name) => containers.into_iter().find(|c| &c.name == name),
        None => own,
    };
    let container = container.ok_or_else(|| format!("resource {:?} names no container", wanted.resource))?;
    let (kind, name) = wanted
        .resource
        .split_once('.')
        .ok_or_else(|| format!("resource {:?} is not supported", wanted.resource))?;
    let resources = container.resources.as_ref();
    let map = match kind {
        "limits" => resources.and_then(|r| r.limits.as_ref()),
        "requests" => resources.and_then(|r| r.requests.as_ref()),
        _ => return Err(format!("resource {:?} is not supported", wanted.resource)),
    };
    let set = map.and_then(|m| m.get(name)).map(|q| q.0.as_str());
    let milli = match set {
        Some(text) => milli(text).ok_or_else(|| format!("{text:?} is not a quantity"))?,
        None if kind == "limits" => node(name).unwrap_or(0),
        None => 0,
    };
    let divisor = match wanted.divisor.as_ref().map(|q| q.0.as_str()) {
        None | Some("" | "0") => 1000,
        Some(text) => {
            crate::node::fields::milli(text).ok_or_else(|| format!("{text:?} is not a quantity"))?
        }
    };
    Ok(((milli + divisor - 1) / divisor.max(1)).to_string())
}

/// A Kubernetes quantity in thousandths: `100m` is 100, `1Ki` is 1024000.
pub fn milli(text: &str) -> Option<i128> {
    let split =
        text.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '+' | '-'))).unwrap_or(text.len());
    let (number, suffix) = text.split_at(split);
    let number: f64 = number.parse().ok()?;
    let factor = match suffix {
        "m" => 1.0,
        "" => 1e3,
        "k" => 1e6,
        "M" => 1e9,
        "G" => 1e12,
        "T" => 1e15,
        "P" => 1e18,
        "Ki" => 1e3 * 1024f64,
        "Mi" => 1e3 * 1024f64.powi(2),
        "Gi" => 1e3 * 1024f64.powi(3),
        "Ti" => 1e3 * 1024f64.powi(4),
        "Pi" => 1e3 * 1024f64.powi(5),
        _ => return None,
    };
    Some((number * factor).ceil() as i128)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a", "namespace": "n", "labels": {"app": "x", "b/c": "q\"q"}},
            "spec": {"nodeName": "node-1", "containers": [
                {"name": "c", "resources": {"limits": {"memory": "64Mi", "cpu": "1500m"}}}
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn a_pod_knows_its_fields() {
        let pod = pod();
        let ips = ["10.244.0.7".parse().unwrap()];
        let facts = Facts { pod: &pod, pod_ips: &ips, host_ip: "10.0.0.1".parse().unwrap() };
        let get = |path: &str| field(&facts, path);
        assert_eq!(get("metadata.labels['b/c']").unwrap(), "q\"q");
        assert_eq!(get("metadata.labels['none']").unwrap(), "");
        assert_eq!(get("metadata.labels").unwrap(), "app=\"x\"\nb/c=\"q\\\"q\"");
        assert_eq!(get("status.podIP").unwrap(), "10.244.0.7");
        assert_eq!(get("spec.nodeName").unwrap(), "node-1");
        assert_eq!(get("spec.serviceAccountName").unwrap(), "default");
        assert!(get("spec.nonsense").is_err());
    }

    #[test]
    fn resources_are_rounded_up_in_units_of_the_divisor() {
        let pod = pod();
        let own = &pod.spec.as_ref().unwrap().containers[0];
        let get = |resource: &str, divisor: Option<&str>| {
            let wanted = ResourceFieldSelector {
                resource: resource.to_owned(),
                divisor: divisor.map(|d| Quantity(d.to_owned())),
                container_name: None,
            };
            super::resource(&pod, Some(own), &wanted, |_| Some(8000)).unwrap()
        };
        assert_eq!(get("limits.cpu", None), "2");
        assert_eq!(get("limits.cpu", Some("1m")), "1500");
        assert_eq!(get("limits.memory", Some("1Mi")), "64");
        assert_eq!(get("limits.ephemeral-storage", None), "8");
        assert_eq!(get("requests.cpu", None), "0");
    }
}
