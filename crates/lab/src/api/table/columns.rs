//! Columns of the built-in kinds that people look at; the others show their name and age.

use super::Column;

const NAME: Column = ("Name", "string", 0);
const AGE: Column = ("Age", "string", 0);

/// The columns of a resource.
pub fn columns(resource: &str) -> Vec<Column> {
    let text = |name: &'static str| (name, "string", 0);
    let number = |name: &'static str| (name, "integer", 0);
    let wide = |name: &'static str| (name, "string", 1);
    let middle: Vec<Column> = match resource {
        "pods" => {
            return vec![
                NAME,
                text("Ready"),
                text("Status"),
                text("Restarts"),
                AGE,
                wide("IP"),
                wide("Node"),
                wide("Nominated Node"),
                wide("Readiness Gates"),
            ];
        }
        "nodes" => {
            return vec![
                NAME,
                text("Status"),
                text("Roles"),
                AGE,
                text("Version"),
                wide("Internal-IP"),
                wide("External-IP"),
                wide("OS-Image"),
                wide("Kernel-Version"),
                wide("Container-Runtime"),
            ];
        }
        "services" => {
            return vec![
                NAME,
                text("Type"),
                text("Cluster-IP"),
                text("External-IP"),
                text("Port(s)"),
                AGE,
                wide("Selector"),
            ];
        }
        "deployments.apps" => {
            return vec![
                NAME,
                text("Ready"),
                number("Up-to-date"),
                number("Available"),
                AGE,
                wide("Containers"),
                wide("Images"),
                wide("Selector"),
            ];
        }
        "replicasets.apps" => {
            return vec![
                NAME,
                number("Desired"),
                number("Current"),
                number("Ready"),
                AGE,
                wide("Containers"),
                wide("Images"),
                wide("Selector"),
            ];
        }
        "daemonsets.apps" => {
            return vec![
                NAME,
                number("Desired"),
                number("Current"),
                number("Ready"),
                number("Up-to-date"),
                number("Available"),
                text("Node Selector"),
                AGE,
                wide("Containers"),
                wide("Images"),
                wide("Selector"),
            ];
        }
        "statefulsets.apps" => return vec![NAME, text("Ready"), AGE, wide("Containers"), wide("Images")],
        "jobs.batch" => {
            return vec![
                NAME,
                text("Status"),
                text("Completions"),
                text("Duration"),
                AGE,
                wide("Containers"),
                wide("Images"),
                wide("Selector"),
            ];
        }
        "events" => {
            return vec![
                text("Last Seen"),
                text("Type"),
                text("Reason"),
                text("Object"),
                wide("Subobject"),
                wide("Source"),
                text("Message"),
                wide("First Seen"),
                wide("Count"),
                ("Name", "string", 1),
            ];
        }
        "namespaces" => vec![text("Status")],
        "configmaps" => vec![text("Data")],
        "secrets" => vec![text("Type"), number("Data")],
        "serviceaccounts" => vec![number("Secrets")],
        "endpoints" => vec![text("Endpoints")],
        "endpointslices.discovery.k8s.io" => vec![text("AddressType"), text("Ports"), text("Endpoints")],
        "leases.coordination.k8s.io" => vec![text("Holder")],
        "customresourcedefinitions.apiextensions.k8s.io" => return vec![NAME, text("Created At")],
        "clusterroles.rbac.authorization.k8s.io" | "roles.rbac.authorization.k8s.io" => {
            return vec![NAME, text("Created At")];
        }
        "clusterrolebindings.rbac.authorization.k8s.io" | "rolebindings.rbac.authorization.k8s.io" => {
            vec![text("Role")]
        }
        _ => vec![],
    };
    [vec![NAME], middle, vec![AGE]].concat()
}
