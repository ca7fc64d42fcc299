//! Rows of the built-in kinds, cell by cell as [`super::columns`] heads them.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::age;
use super::age::duration;
use crate::api::object::{array_at, name, str_at, strings_at};

/// The row of an object, one cell a column.
pub fn cells(resource: &str, object: &Value, now: Timestamp) -> Vec<Value> {
    let age = age(str_at(object, "/metadata/creationTimestamp"), now);
    let number = |pointer: &str| object.pointer(pointer).and_then(Value::as_i64).unwrap_or(0);
    let created = str_at(object, "/metadata/creationTimestamp");
    let middle = match resource {
        "pods" => return pod(object, &age, now),
        "nodes" => return node(object, &age),
        "services" => return service(object, &age),
        "deployments.apps" => {
            let ready = format!("{}/{}", number("/status/readyReplicas"), number("/spec/replicas"));
            let (updated, available) =
                (number("/status/updatedReplicas"), number("/status/availableReplicas"));
            return with_template(
                object,
                vec![json!(name(object)), json!(ready), json!(updated), json!(available), json!(age)],
                true,
            );
        }
        "replicasets.apps" => {
            let counts = ["/spec/replicas", "/status/replicas", "/status/readyReplicas"].map(number);
            return with_template(
                object,
                vec![json!(name(object)), json!(counts[0]), json!(counts[1]), json!(counts[2]), json!(age)],
                true,
            );
        }
        "daemonsets.apps" => {
            let mut cells = vec![json!(name(object))];
            for count in [
                "desiredNumberScheduled",
                "currentNumberScheduled",
                "numberReady",
                "updatedNumberScheduled",
                "numberAvailable",
            ] {
                cells.push(json!(number(&format!("/status/{count}"))));
            }
            cells.push(json!(or_none(labels(object.pointer("/spec/template/spec/nodeSelector")))));
            cells.push(json!(age));
            return with_template(object, cells, true);
        }
        "statefulsets.apps" => {
            let ready = format!("{}/{}", number("/status/readyReplicas"), number("/spec/replicas"));
            return with_template(object, vec![json!(name(object)), json!(ready), json!(age)], false);
        }
        "jobs.batch" => return job(object, &age, now),
        "events" => return event(object, now),
        "namespaces" => vec![json!(str_at(object, "/status/phase"))],
        "configmaps" => vec![json!((size(object, "data") + size(object, "binaryData")).to_string())],
        "secrets" => vec![json!(str_at(object, "/type")), json!(size(object, "data"))],
        "serviceaccounts" => vec![json!(array_at(object, "/secrets").len())],
        "endpoints" => vec![json!(endpoints(object))],
        "endpointslices.discovery.k8s.io" => {
            let ports = array_at(object, "/ports").iter().filter_map(|p| p.get("port")).map(Value::to_string);
            let addresses = array_at(object, "/endpoints").iter().flat_map(|e| strings_at(e, "/addresses"));
            vec![
                json!(str_at(object, "/addressType")),
                json!(some_of(ports.collect(), "<unset>")),
                json!(some_of(addresses.map(str::to_owned).collect(), "<unset>")),
            ]
        }
        "leases.coordination.k8s.io" => vec![json!(str_at(object, "/spec/holderIdentity"))],
        "customresourcedefinitions.apiextensions.k8s.io"
        | "clusterroles.rbac.authorization.k8s.io"
        | "roles.rbac.authorization.k8s.io" => return vec![json!(name(object)), json!(created)],
        "clusterrolebindings.rbac.authorization.k8s.io" | "rolebindings.rbac.authorization.k8s.io" => {
            vec![json!(format!("{}/{}", str_at(object, "/roleRef/kind"), str_at(object, "/roleRef/name")))]
        }
        _ => vec![],
    };
    [vec![json!(name(object))], middle, vec![json!(age)]].concat()
}

fn size(object: &Value, key: &str) -> usize {
    object.get(key).and_then(Value::as_object).map_or(0, serde_json::Map::len)
}

fn or_none(text: String) -> String {
    if text.is_empty() { "<none>".into() } else { text }
}

/// The first three, and how many more there are.
fn some_of(items: Vec<String>, none: &str) -> String {
    match items.len() {
        0 => none.into(),
        1..=3 => items.join(","),
        n => format!("{} + {} more...", items[..3].join(","), n - 3),
    }
}

fn labels(map: Option<&Value>) -> String {
    let map = map.and_then(Value::as_object);
    let pairs = map.into_iter().flatten().filter_map(|(k, v)| v.as_str().map(|v| format!("{k}={v}")));
    pairs.collect::<Vec<_>>().join(",")
}

/// Adds the wide columns of whatever has a pod template.
fn with_template(object: &Value, mut cells: Vec<Value>, selector: bool) -> Vec<Value> {
    let containers = array_at(object, "/spec/template/spec/containers");
    for field in ["/name", "/image"] {
        cells.push(json!(containers.iter().map(|c| str_at(c, field)).collect::<Vec<_>>().join(",")));
    }
    if selector {
        cells.push(json!(or_none(labels(object.pointer("/spec/selector/matchLabels")))));
    }
    cells
}

fn pod(pod: &Value, age: &str, now: Timestamp) -> Vec<Value> {
    let total = array_at(pod, "/spec/containers").len();
    let statuses = array_at(pod, "/status/containerStatuses");
    let count = |s: &Value| s.get("restartCount").and_then(Value::as_i64).unwrap_or(0);
    let ready = statuses.iter().filter(|s| s.get("ready") == Some(&Value::Bool(true))).count();
    let restarts: i64 = statuses.iter().map(count).sum();
    let last = statuses
        .iter()
        .map(|s| str_at(s, "/lastState/terminated/finishedAt"))
        .filter(|at| !at.is_empty())
        .max();
    let restarts = match last {
        Some(at) if restarts > 0 => format!("{restarts} ({} ago)", super::age(at, now)),
        _ => restarts.to_string(),
    };
    let gates = array_at(pod, "/spec/readinessGates");
    let passed = gates.iter().filter(|gate| {
        array_at(pod, "/status/conditions")
            .iter()
            .any(|c| str_at(c, "/type") == str_at(gate, "/conditionType") && str_at(c, "/status") == "True")
    });
    let gates = if gates.is_empty() { String::new() } else { format!("{}/{}", passed.count(), gates.len()) };
    let text = |pointer: &str| json!(or_none(str_at(pod, pointer).to_owned()));
    vec![
        json!(name(pod)),
        json!(format!("{ready}/{total}")),
        json!(pod_status(pod)),
        json!(restarts),
        json!(age),
        text("/status/podIP"),
        text("/spec/nodeName"),
        text("/status/nominatedNodeName"),
        json!(or_none(gates)),
    ]
}

/// The one word for a pod's state, as kubectl users know it.
fn pod_status(pod: &Value) -> String {
    let mut word = str_at(pod, "/status/phase").to_owned();
    if !str_at(pod, "/status/reason").is_empty() {
        word = str_at(pod, "/status/reason").to_owned();
    }
    let ended = |status: &Value| {
        let reason = str_at(status, "/state/terminated/reason");
        let number = |key: &str| status.pointer(&format!("/state/terminated/{key}")).and_then(Value::as_i64);
        match (reason, number("signal").unwrap_or(0)) {
            ("", 0) => format!("ExitCode:{}", number("exitCode").unwrap_or(0)),
            ("", signal) => format!("Signal:{signal}"),
            (reason, _) => reason.to_owned(),
        }
    };
    let inits = array_at(pod, "/status/initContainerStatuses");
    let total = array_at(pod, "/spec/initContainers").len();
    let mut initializing = false;
    for (i, status) in inits.iter().enumerate() {
        let exit = status.pointer("/state/terminated/exitCode").and_then(Value::as_i64);
        if exit == Some(0) || status.get("started") == Some(&Value::Bool(true)) {
            continue;
        }
        let waiting = str_at(status, "/state/waiting/reason");
        word = match exit {
            Some(_) => format!("Init:{}", ended(status)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => format!("Init:{waiting}"),
            None => format!("Init:{i}/{total}"),
        };
        initializing = true;
        break;
    }
    if !initializing {
        let mut running = false;
        for status in array_at(pod, "/status/containerStatuses").iter().rev() {
            let waiting = str_at(status, "/state/waiting/reason");
            if !waiting.is_empty() {
                word = waiting.to_owned();
            } else if status.pointer("/state/terminated").is_some() {
                word = ended(status);
            } else if status.get("ready") == Some(&Value::Bool(true))
                && status.pointer("/state/running").is_some()
            {
                running = true;
            }
        }
        if word == "Completed" && running {
            let ready = array_at(pod, "/status/conditions")
                .iter()
                .any(|c| str_at(c, "/type") == "Ready" && str_at(c, "/status") == "True");
            word = if ready { "Running".into() } else { "NotReady".into() };
        }
    }
    if crate::api::object::terminating(pod) {
        word =
            if str_at(pod, "/status/reason") == "NodeLost" { "Unknown".into() } else { "Terminating".into() };
    }
    word
}

fn node(node: &Value, age: &str) -> Vec<Value> {
    let condition = array_at(node, "/status/conditions").iter().find(|c| str_at(c, "/type") == "Ready");
    let mut status = match condition.map(|c| str_at(c, "/status")) {
        Some("True") => "Ready".to_owned(),
        Some(_) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node.pointer("/spec/unschedulable") == Some(&Value::Bool(true)) {
        status.push_str(",SchedulingDisabled");
    }
    let labels = node.pointer("/metadata/labels").and_then(Value::as_object);
    let mut roles: Vec<&str> = labels
        .into_iter()
        .flatten()
        .filter_map(|(k, _)| k.strip_prefix("node-role.kubernetes.io/"))
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    let address = |of_type: &str| {
        let found = array_at(node, "/status/addresses").iter().find(|a| str_at(a, "/type") == of_type);
        json!(or_none(found.map(|a| str_at(a, "/address").to_owned()).unwrap_or_default()))
    };
    let info = |key: &str| {
        let text = str_at(node, &format!("/status/nodeInfo/{key}"));
        json!(if text.is_empty() { "<unknown>" } else { text })
    };
    vec![
        json!(name(node)),
        json!(status),
        json!(or_none(roles.join(","))),
        json!(age),
        json!(str_at(node, "/status/nodeInfo/kubeletVersion")),
        address("InternalIP"),
        address("ExternalIP"),
        info("osImage"),
        info("kernelVersion"),
        info("containerRuntimeVersion"),
    ]
}

fn service(service: &Value, age: &str) -> Vec<Value> {
    let kind = str_at(service, "/spec/type");
    let ingress: Vec<String> = array_at(service, "/status/loadBalancer/ingress")
        .iter()
        .map(|i| {
            if str_at(i, "/ip").is_empty() { str_at(i, "/hostname") } else { str_at(i, "/ip") }.to_owned()
        })
        .collect();
    let mut external: Vec<String> =
        strings_at(service, "/spec/externalIPs").into_iter().map(str::to_owned).collect();
    external.splice(0..0, ingress);
    let external = match kind {
        "ExternalName" => str_at(service, "/spec/externalName").to_owned(),
        "LoadBalancer" if external.is_empty() => "<pending>".into(),
        _ => or_none(external.join(",")),
    };
    let ports: Vec<String> = array_at(service, "/spec/ports")
        .iter()
        .map(|p| {
            let number = |key: &str| p.get(key).and_then(Value::as_i64);
            let node = number("nodePort").map(|n| format!(":{n}")).unwrap_or_default();
            format!("{}{node}/{}", number("port").unwrap_or(0), str_at(p, "/protocol"))
        })
        .collect();
    vec![
        json!(name(service)),
        json!(kind),
        json!(or_none(str_at(service, "/spec/clusterIP").to_owned())),
        json!(external),
        json!(or_none(ports.join(","))),
        json!(age),
        json!(or_none(labels(service.pointer("/spec/selector")))),
    ]
}

fn job(job: &Value, age: &str, now: Timestamp) -> Vec<Value> {
    let number = |pointer: &str| job.pointer(pointer).and_then(Value::as_i64);
    let has = |kind: &str| {
        array_at(job, "/status/conditions")
            .iter()
            .any(|c| str_at(c, "/type") == kind && str_at(c, "/status") == "True")
    };
    let status = match () {
        () if has("Complete") => "Complete",
        () if has("Failed") => "Failed",
        () if crate::api::object::terminating(job) => "Terminating",
        () if has("Suspended") => "Suspended",
        () if has("FailureTarget") => "FailureTarget",
        () => "Running",
    };
    let succeeded = number("/status/succeeded").unwrap_or(0);
    let completions = match (number("/spec/completions"), number("/spec/parallelism").unwrap_or(0)) {
        (Some(wanted), _) => format!("{succeeded}/{wanted}"),
        (None, parallel) if parallel > 1 => format!("{succeeded}/1 of {parallel}"),
        (None, _) => format!("{succeeded}/1"),
    };
    let parse = |pointer: &str| str_at(job, pointer).parse::<Timestamp>().ok();
    let took = match (parse("/status/startTime"), parse("/status/completionTime")) {
        (Some(start), Some(end)) => duration(end.as_second() - start.as_second()),
        (Some(start), None) => duration(now.as_second() - start.as_second()),
        _ => String::new(),
    };
    let cells = vec![json!(name(job)), json!(status), json!(completions), json!(took), json!(age)];
    with_template(job, cells, true)
}

fn event(event: &Value, now: Timestamp) -> Vec<Value> {
    let first_of = |pointers: &[&str]| {
        let found = pointers.iter().map(|p| str_at(event, p)).find(|t| !t.is_empty()).unwrap_or("");
        age(found, now)
    };
    let first = first_of(&["/firstTimestamp", "/eventTime"]);
    let last = first_of(&["/series/lastObservedTime", "/lastTimestamp", "/eventTime"]);
    let count = event.get("count").or(event.pointer("/series/count")).and_then(Value::as_i64).unwrap_or(1);
    let source = match str_at(event, "/source/component") {
        "" => str_at(event, "/reportingComponent"),
        component => component,
    };
    let host = str_at(event, "/source/host");
    let source = if host.is_empty() { source.to_owned() } else { format!("{source}, {host}") };
    let (kind, about) = (str_at(event, "/involvedObject/kind"), str_at(event, "/involvedObject/name"));
    vec![
        json!(last),
        json!(str_at(event, "/type")),
        json!(str_at(event, "/reason")),
        json!(format!("{}/{about}", kind.to_lowercase())),
        json!(str_at(event, "/involvedObject/fieldPath")),
        json!(source),
        json!(str_at(event, "/message").trim()),
        json!(first),
        json!(count),
        json!(name(event)),
    ]
}

fn endpoints(endpoints: &Value) -> String {
    let mut all = Vec::new();
    for subset in array_at(endpoints, "/subsets") {
        let ports: Vec<i64> =
            array_at(subset, "/ports").iter().filter_map(|p| p.get("port").and_then(Value::as_i64)).collect();
        for address in array_at(subset, "/addresses") {
            let ip = str_at(address, "/ip");
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(ports.iter().map(|port| format!("{ip}:{port}")));
        }
    }
    some_of(all, "<none>")
}
