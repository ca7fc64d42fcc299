//! Checks that types do not make: names, labels, what must be there, what may not change.

use serde_json::{Value, json};

use crate::api::crd;
use crate::api::failure::{Cause, Failure};
use crate::api::object::{array_at, name, str_at};
use crate::api::registry::Kind;
use crate::api::store::Inner;

/// Refuses an object that does not hold together, or a change that may not be.
pub fn validate(_tx: &Inner, kind: &Kind, object: &Value, old: Option<&Value>) -> Result<(), Failure> {
    let mut causes = Vec::new();
    if old.is_none() {
        object_name(kind, name(object), &mut causes);
    }
    labels(object, "/metadata/labels", "metadata.labels", &mut causes);
    owners(object, &mut causes);
    if let Some(version) = kind.custom() {
        causes.extend(crd::validate(version, object));
    } else {
        built_in(kind, object, old, &mut causes);
        if kind.is("customresourcedefinitions.apiextensions.k8s.io") {
            crd::check(object)?;
        }
    }
    if causes.is_empty() {
        return Ok(());
    }
    Err(Failure::invalid(&kind.group, &kind.kind, name(object), &causes))
}

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_label_of_any_length(text)
}

fn is_label_of_any_length(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    edge(text.chars().next())
        && edge(text.chars().last())
        && text.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label_of_any_length)
}

fn object_name(kind: &Kind, name: &str, causes: &mut Vec<Cause>) {
    let value = json!(name);
    let mut invalid = |why: &str| causes.push(Cause::invalid("metadata.name", &value, why));
    if kind.custom().is_none() && kind.group == "rbac.authorization.k8s.io" {
        // Names of roles are path segments, colons included.
        if name == "." || name == ".." || name.contains(['/', '%']) {
            invalid("may not be '.' or '..' and may not contain '/' or '%'");
        }
        return;
    }
    if kind.is("namespaces") {
        if !is_label(name) {
            invalid(LABEL);
        }
    } else if kind.is("services") {
        if !is_label(name) || name.starts_with(|c: char| c.is_ascii_digit()) {
            invalid(LABEL_1035);
        }
    } else if !is_subdomain(name) {
        invalid(SUBDOMAIN);
    }
}

/// `name` or `prefix/name` with the characters that label keys may have.
fn is_qualified(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    prefix.is_none_or(is_subdomain) && !name.is_empty() && is_label_value(name)
}

fn is_label_value(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.is_empty()
        || (text.len() <= 63
            && edge(text.chars().next())
            && edge(text.chars().last())
            && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)))
}

const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";

fn labels(object: &Value, pointer: &str, field: &str, causes: &mut Vec<Cause>) {
    for (key, value) in object.pointer(pointer).and_then(Value::as_object).into_iter().flatten() {
        if !is_qualified(key) {
            causes.push(Cause::invalid(field, &json!(key), QUALIFIED));
        }
        if !value.as_str().is_some_and(is_label_value) {
            causes.push(Cause::invalid(field, value, VALUE));
        }
    }
}

fn owners(object: &Value, causes: &mut Vec<Cause>) {
    let mut controllers = 0;
    for (i, owner) in array_at(object, "/metadata/ownerReferences").iter().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if str_at(owner, &format!("/{field}")).is_empty() {
                let field = format!("metadata.ownerReferences[{i}].{field}");
                causes.push(Cause::invalid(field, &json!(""), "must not be empty"));
            }
        }
        controllers += usize::from(owner.get("controller") == Some(&Value::Bool(true)));
    }
    if controllers > 1 {
        causes.push(Cause::invalid(
            "metadata.ownerReferences",
            &json!(controllers),
            "Only one reference can have Controller set to true",
        ));
    }
}

fn built_in(kind: &Kind, object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    match kind.storage.as_str() {
        "pods" => {
            pod_spec(object, "/spec", "spec", causes);
            if let Some(old) = old {
                pod_update(object, old, causes);
            }
        }
        "services" => service(object, causes),
        "deployments.apps" | "daemonsets.apps" | "replicasets.apps" | "statefulsets.apps" => {
            workload(object, old, causes);
        }
        "jobs.batch" => pod_spec(object, "/spec/template/spec", "spec.template.spec", causes),
        "configmaps" | "secrets" => {
            if let Some(old) = old.filter(|old| old.get("immutable") == Some(&Value::Bool(true)))
                && (old.get("data") != object.get("data")
                    || old.get("binaryData") != object.get("binaryData")
                    || object.get("immutable") != Some(&Value::Bool(true)))
            {
                causes.push(Cause::forbidden("data", "field is immutable when `immutable` is set"));
            }
        }
        _ => {}
    }
}

fn pod_spec(object: &Value, pointer: &str, field: &str, causes: &mut Vec<Cause>) {
    let at = |tail: &str| format!("{pointer}{tail}");
    let containers = array_at(object, &at("/containers"));
    if containers.is_empty() {
        causes.push(Cause::required(format!("{field}.containers"), ""));
    }
    let volumes: Vec<&str> = array_at(object, &at("/volumes")).iter().map(|v| str_at(v, "/name")).collect();
    for (i, volume) in volumes.iter().enumerate() {
        let field = format!("{field}.volumes[{i}].name");
        if volume.is_empty() {
            causes.push(Cause::required(field, ""));
        } else if volumes[..i].contains(volume) {
            causes.push(Cause::duplicate(field, &json!(volume)));
        }
    }
    let mut seen = Vec::new();
    for list in ["initContainers", "containers"] {
        for (i, container) in array_at(object, &at(&format!("/{list}"))).iter().enumerate() {
            let field = format!("{field}.{list}[{i}]");
            let name = str_at(container, "/name");
            if name.is_empty() {
                causes.push(Cause::required(format!("{field}.name"), ""));
            } else if !is_label(name) {
                causes.push(Cause::invalid(format!("{field}.name"), &json!(name), LABEL));
            } else if seen.contains(&name) {
                causes.push(Cause::duplicate(format!("{field}.name"), &json!(name)));
            }
            seen.push(name);
            if str_at(container, "/image").is_empty() {
                causes.push(Cause::required(format!("{field}.image"), ""));
            }
            parts_of_container(container, &field, &volumes, causes);
        }
    }
    let policy = str_at(object, &at("/restartPolicy"));
    if !matches!(policy, "" | "Always" | "OnFailure" | "Never") {
        let supported = ["Always", "OnFailure", "Never"];
        causes.push(Cause::unsupported(format!("{field}.restartPolicy"), &json!(policy), &supported));
    }
}

fn parts_of_container(container: &Value, field: &str, volumes: &[&str], causes: &mut Vec<Cause>) {
    for (i, port) in array_at(container, "/ports").iter().enumerate() {
        let number = port.get("containerPort").and_then(Value::as_i64).unwrap_or(0);
        if !(1..=65_535).contains(&number) {
            let field = format!("{field}.ports[{i}].containerPort");
            causes.push(Cause::invalid(field, &json!(number), "must be between 1 and 65535, inclusive"));
        }
        protocol(port, &format!("{field}.ports[{i}]"), causes);
    }
    for (i, mount) in array_at(container, "/volumeMounts").iter().enumerate() {
        let volume = str_at(mount, "/name");
        if !volumes.contains(&volume) {
            causes.push(Cause {
                field: format!("{field}.volumeMounts[{i}].name"),
                reason: "FieldValueNotFound",
                message: format!("Not found: {volume:?}"),
            });
        }
        if str_at(mount, "/mountPath").is_empty() {
            causes.push(Cause::required(format!("{field}.volumeMounts[{i}].mountPath"), ""));
        }
    }
    for (i, variable) in array_at(container, "/env").iter().enumerate() {
        if str_at(variable, "/name").is_empty() {
            causes.push(Cause::required(format!("{field}.env[{i}].name"), ""));
        }
    }
}

fn protocol(port: &Value, field: &str, causes: &mut Vec<Cause>) {
    let protocol = str_at(port, "/protocol");
    if !matches!(protocol, "" | "TCP" | "UDP" | "SCTP") {
        let supported = ["SCTP", "TCP", "UDP"];
        causes.push(Cause::unsupported(format!("{field}.protocol"), &json!(protocol), &supported));
    }
}

/// Of a pod that exists, only images, deadlines, tolerations and gates may change.
fn pod_update(object: &Value, old: &Value, causes: &mut Vec<Cause>) {
    let fixed = |pod: &Value| {
        let mut spec = pod.get("spec").cloned().unwrap_or_default();
        for list in ["containers", "initContainers"] {
            let containers = spec.get_mut(list).and_then(Value::as_array_mut);
            for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
                container.shift_remove("image");
                container.shift_remove("resources");
                container.shift_remove("imagePullPolicy");
            }
        }
        if let Some(spec) = spec.as_object_mut() {
            for key in [
                "activeDeadlineSeconds",
                "tolerations",
                "terminationGracePeriodSeconds",
                "schedulingGates",
                "ephemeralContainers",
                "nodeName",
            ] {
                spec.shift_remove(key);
            }
        }
        spec
    };
    let node_changed = !str_at(old, "/spec/nodeName").is_empty()
        && str_at(old, "/spec/nodeName") != str_at(object, "/spec/nodeName");
    if node_changed || fixed(object) != fixed(old) {
        causes.push(Cause::forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        ));
    }
}

fn service(object: &Value, causes: &mut Vec<Cause>) {
    const TYPES: [&str; 4] = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    let kind = str_at(object, "/spec/type");
    if !TYPES.contains(&kind) {
        causes.push(Cause::unsupported("spec.type", &json!(kind), &TYPES));
    }
    let ports = array_at(object, "/spec/ports");
    let headless = str_at(object, "/spec/clusterIP") == "None";
    if ports.is_empty() && kind != "ExternalName" && !headless {
        causes.push(Cause::required("spec.ports", ""));
    }
    for (i, port) in ports.iter().enumerate() {
        let field = format!("spec.ports[{i}]");
        let number = port.get("port").and_then(Value::as_i64).unwrap_or(0);
        if !(1..=65_535).contains(&number) {
            let field = format!("{field}.port");
            causes.push(Cause::invalid(field, &json!(number), "must be between 1 and 65535, inclusive"));
        }
        protocol(port, &field, causes);
        let name = str_at(port, "/name");
        if name.is_empty() && ports.len() > 1 {
            causes.push(Cause::required(format!("{field}.name"), ""));
        } else if !name.is_empty() && ports[..i].iter().any(|p| str_at(p, "/name") == name) {
            causes.push(Cause::duplicate(format!("{field}.name"), &json!(name)));
        }
    }
    if kind == "ExternalName" && str_at(object, "/spec/externalName").is_empty() {
        causes.push(Cause::required("spec.externalName", ""));
    }
}

fn workload(object: &Value, old: Option<&Value>, causes: &mut Vec<Cause>) {
    let selector = object.pointer("/spec/selector");
    if selector.is_none_or(|s| s.as_object().is_none_or(|s| s.is_empty())) {
        causes.push(Cause::required("spec.selector", ""));
    }
    let labels = object.pointer("/spec/template/metadata/labels");
    for (key, value) in
        object.pointer("/spec/selector/matchLabels").and_then(Value::as_object).into_iter().flatten()
    {
        if labels.and_then(|l| l.get(key)) != Some(value) {
            causes.push(Cause::invalid(
                "spec.template.metadata.labels",
                labels.unwrap_or(&Value::Null),
                "`selector` does not match template `labels`",
            ));
            break;
        }
    }
    if let Some(old) = old
        && old.pointer("/spec/selector") != selector
    {
        let selector = selector.cloned().unwrap_or_default();
        causes.push(Cause::invalid("spec.selector", &selector, "field is immutable"));
    }
    pod_spec(object, "/spec/template/spec", "spec.template.spec", causes);
}
