//! Defaults that readers rely on: what a field means when it was left out.

use serde_json::{Map, Value, json};

use crate::api::object::{as_map, default_to, map_mut};
use crate::api::registry::Kind;

/// Fills in the defaults of a built-in kind.
pub fn fill(kind: &Kind, object: &mut Value) {
    if kind.custom().is_some() {
        return;
    }
    match kind.storage.as_str() {
        "pods" => pod_spec(map_mut(object, "spec")),
        "services" => service(map_mut(object, "spec")),
        "deployments.apps" => {
            let spec = map_mut(object, "spec");
            for (key, value) in [
                ("replicas", json!(1)),
                ("revisionHistoryLimit", json!(10)),
                ("progressDeadlineSeconds", json!(600)),
            ] {
                default_to(spec, key, value);
            }
            let strategy = strategy(spec, "strategy");
            if strategy.get("type") == Some(&"RollingUpdate".into()) {
                let rolling = as_map(strategy.entry("rollingUpdate").or_insert(Value::Null));
                default_to(rolling, "maxUnavailable", "25%");
                default_to(rolling, "maxSurge", "25%");
            }
            template(spec);
        }
        "daemonsets.apps" => {
            let spec = map_mut(object, "spec");
            default_to(spec, "revisionHistoryLimit", 10);
            let strategy = strategy(spec, "updateStrategy");
            if strategy.get("type") == Some(&"RollingUpdate".into()) {
                let rolling = as_map(strategy.entry("rollingUpdate").or_insert(Value::Null));
                default_to(rolling, "maxUnavailable", 1);
                default_to(rolling, "maxSurge", 0);
            }
            template(spec);
        }
        "statefulsets.apps" => {
            let spec = map_mut(object, "spec");
            default_to(spec, "replicas", 1);
            default_to(spec, "revisionHistoryLimit", 10);
            default_to(spec, "podManagementPolicy", "OrderedReady");
            default_to(
                spec,
                "persistentVolumeClaimRetentionPolicy",
                json!({ "whenDeleted": "Retain", "whenScaled": "Retain" }),
            );
            let strategy = strategy(spec, "updateStrategy");
            if strategy.get("type") == Some(&"RollingUpdate".into()) {
                default_to(as_map(strategy.entry("rollingUpdate").or_insert(Value::Null)), "partition", 0);
            }
            template(spec);
        }
        "replicasets.apps" | "replicationcontrollers" => {
            let spec = map_mut(object, "spec");
            default_to(spec, "replicas", 1);
            template(spec);
        }
        "jobs.batch" => job(object),
        "cronjobs.batch" => {
            let spec = map_mut(object, "spec");
            default_to(spec, "concurrencyPolicy", "Allow");
            default_to(spec, "suspend", false);
            default_to(spec, "successfulJobsHistoryLimit", 3);
            default_to(spec, "failedJobsHistoryLimit", 1);
        }
        "secrets" => default_to(as_map(object), "type", "Opaque"),
        "networkpolicies.networking.k8s.io" => {
            let spec = map_mut(object, "spec");
            let egress = spec.contains_key("egress");
            let types = if egress { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
            default_to(spec, "policyTypes", types);
        }
        "endpointslices.discovery.k8s.io" => {
            for port in each(as_map(object), "ports") {
                default_to(port, "name", "");
                default_to(port, "protocol", "TCP");
            }
        }
        "endpoints" => {
            for subset in each(as_map(object), "subsets") {
                for port in each(subset, "ports") {
                    default_to(port, "protocol", "TCP");
                }
            }
        }
        "rolebindings.rbac.authorization.k8s.io" | "clusterrolebindings.rbac.authorization.k8s.io" => {
            binding(as_map(object));
        }
        _ => {}
    }
}

/// The maps in the list under `key`.
fn each<'a>(map: &'a mut Map<String, Value>, key: &str) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    map.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn strategy<'a>(spec: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
    let strategy = as_map(spec.entry(key).or_insert(Value::Null));
    default_to(strategy, "type", "RollingUpdate");
    strategy
}

fn template(spec: &mut Map<String, Value>) {
    if let Some(template) = spec.get_mut("template") {
        pod_spec(map_mut(template, "spec"));
    }
}

fn job(object: &mut Value) {
    use crate::api::object::{name, str_at, uid};
    let (name, uid) = (name(object).to_owned(), uid(object).to_owned());
    let manual = object.pointer("/spec/manualSelector") == Some(&Value::Bool(true));
    let has_selector =
        !str_at(object, "/spec/selector/matchLabels/batch.kubernetes.io~1controller-uid").is_empty();
    let spec = map_mut(object, "spec");
    let completion_given = spec.contains_key("completions") || spec.contains_key("parallelism");
    if !completion_given {
        default_to(spec, "completions", 1);
    }
    for (key, value) in [
        ("parallelism", json!(1)),
        ("backoffLimit", json!(6)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
    ] {
        default_to(spec, key, value);
    }
    template(spec);
    if manual || has_selector || uid.is_empty() {
        return;
    }
    // A job's pods are told apart by its uid, unless the user chose a selector.
    let ours = json!({
        "batch.kubernetes.io/controller-uid": uid, "batch.kubernetes.io/job-name": name,
        "controller-uid": uid, "job-name": name,
    });
    spec.insert("selector".into(), json!({ "matchLabels": { "batch.kubernetes.io/controller-uid": uid } }));
    if let (Some(template), Value::Object(ours)) = (spec.get_mut("template"), ours) {
        let metadata = map_mut(template, "metadata");
        as_map(metadata.entry("labels").or_insert(Value::Null)).extend(ours);
    }
}

fn binding(object: &mut Map<String, Value>) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    if let Some(role) = object.get_mut("roleRef").and_then(Value::as_object_mut) {
        default_to(role, "apiGroup", GROUP);
    }
    for subject in each(object, "subjects") {
        if subject.get("kind").is_some_and(|k| k == "User" || k == "Group") {
            default_to(subject, "apiGroup", GROUP);
        }
    }
}

fn service(spec: &mut Map<String, Value>) {
    default_to(spec, "type", "ClusterIP");
    default_to(spec, "sessionAffinity", "None");
    let external_name = spec.get("type").is_some_and(|t| t == "ExternalName");
    if !external_name {
        default_to(spec, "internalTrafficPolicy", "Cluster");
    }
    if spec.get("type").is_some_and(|t| t == "LoadBalancer" || t == "NodePort") {
        default_to(spec, "externalTrafficPolicy", "Cluster");
    }
    if spec.get("type").is_some_and(|t| t == "LoadBalancer") {
        default_to(spec, "allocateLoadBalancerNodePorts", true);
    }
    for port in each(spec, "ports") {
        default_to(port, "protocol", "TCP");
        if let Some(number) = port.get("port").cloned() {
            default_to(port, "targetPort", number);
        }
    }
}

/// Defaults of a pod's specification, in a pod or in a template.
pub fn pod_spec(spec: &mut Map<String, Value>) {
    for (key, value) in [
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("securityContext", json!({})),
        ("schedulerName", json!("default-scheduler")),
    ] {
        default_to(spec, key, value);
    }
    // Both names are the same field; readers of either exist.
    if let Some(account) = spec.get("serviceAccountName").or(spec.get("serviceAccount")).cloned()
        && account != ""
    {
        default_to(spec, "serviceAccountName", account.clone());
        spec.insert("serviceAccount".into(), account);
    }
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in each(spec, list) {
            self::container(container, host_network);
        }
    }
    for volume in each(spec, "volumes") {
        self::volume(volume);
    }
}

fn container(container: &mut Map<String, Value>, host_network: bool) {
    let image = container.get("image").and_then(Value::as_str).unwrap_or("");
    let name = image.rsplit('/').next().unwrap_or("");
    let latest = !image.contains('@') && (!name.contains(':') || name.ends_with(":latest"));
    for (key, value) in [
        ("imagePullPolicy", json!(if latest { "Always" } else { "IfNotPresent" })),
        ("terminationMessagePath", json!("/dev/termination-log")),
        ("terminationMessagePolicy", json!("File")),
        ("resources", json!({})),
    ] {
        default_to(container, key, value);
    }
    for port in each(container, "ports") {
        default_to(port, "protocol", "TCP");
        if let (true, Some(number)) = (host_network, port.get("containerPort").cloned()) {
            default_to(port, "hostPort", number);
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(key).and_then(Value::as_object_mut) {
            self::probe(probe);
        }
    }
    for hook in ["postStart", "preStop"] {
        let handler = container.get_mut("lifecycle").and_then(|l| l.get_mut(hook));
        if let Some(http) = handler.and_then(|h| h.get_mut("httpGet")).and_then(Value::as_object_mut) {
            http_get(http);
        }
    }
    for variable in each(container, "env") {
        let field = variable.get_mut("valueFrom").and_then(|f| f.get_mut("fieldRef"));
        if let Some(field) = field.and_then(Value::as_object_mut) {
            default_to(field, "apiVersion", "v1");
        }
    }
    // A limit is also a request unless that is given.
    if let Some(resources) = container.get_mut("resources").and_then(Value::as_object_mut)
        && let Some(Value::Object(limits)) = resources.get("limits").cloned()
    {
        let requests = as_map(resources.entry("requests").or_insert(Value::Null));
        for (key, value) in limits {
            default_to(requests, &key, value);
        }
    }
}

fn probe(probe: &mut Map<String, Value>) {
    for (key, value) in
        [("timeoutSeconds", 1), ("periodSeconds", 10), ("successThreshold", 1), ("failureThreshold", 3)]
    {
        default_to(probe, key, value);
    }
    if let Some(http) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
        http_get(http);
    }
    if let Some(grpc) = probe.get_mut("grpc").and_then(Value::as_object_mut) {
        default_to(grpc, "service", "");
    }
}

fn http_get(http: &mut Map<String, Value>) {
    default_to(http, "path", "/");
    default_to(http, "scheme", "HTTP");
}

fn volume(volume: &mut Map<String, Value>) {
    const MODE: i32 = 0o644;
    if volume.len() <= 1 {
        volume.insert("emptyDir".into(), json!({}));
    }
    for key in ["configMap", "secret", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(key).and_then(Value::as_object_mut) {
            default_to(source, "defaultMode", MODE);
        }
    }
    if let Some(host) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
        default_to(host, "type", "");
    }
    let items = |source: &mut Map<String, Value>| {
        for item in each(source, "items") {
            if let Some(field) = item.get_mut("fieldRef").and_then(Value::as_object_mut) {
                default_to(field, "apiVersion", "v1");
            }
        }
    };
    if let Some(source) = volume.get_mut("downwardAPI").and_then(Value::as_object_mut) {
        items(source);
    }
    if let Some(projected) = volume.get_mut("projected").and_then(Value::as_object_mut) {
        for source in each(projected, "sources") {
            if let Some(token) = source.get_mut("serviceAccountToken").and_then(Value::as_object_mut) {
                default_to(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = source.get_mut("downwardAPI").and_then(Value::as_object_mut) {
                items(downward);
            }
        }
    }
}
