use serde_json::{Value, json};

use super::*;

fn service(spec: Value) -> Service {
    serde_json::from_value(json!({"metadata": {"name": "web", "namespace": "ns", "uid": "s"}, "spec": spec}))
        .unwrap()
}

fn pod(name: &str, ip: &str, change: impl FnOnce(&mut Value)) -> Pod {
    let mut pod = json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    });
    change(&mut pod);
    serde_json::from_value(pod).unwrap()
}

fn backends(service: &Service, pods: &[Pod]) -> Vec<Backend> {
    let zone = |node: &str| (node == "n1").then(|| "z1".to_owned());
    pods.iter().filter_map(|pod| backends::of(service, pod, zone)).collect()
}

fn http() -> Service {
    service(json!({"ports": [{"name": "http", "port": 80, "targetPort": "http"}]}))
}

#[test]
fn an_endpoint_says_who_where_and_whether_it_is_ready() {
    let service = http();
    let slices = slices::of(&service, &backends(&service, &[pod("a", "10.0.0.1", |_| {})])).unwrap();
    assert_eq!(slices.len(), 1);
    assert_eq!(slices[0].ports.as_ref().unwrap()[0].port, Some(8080));
    let endpoint = &slices[0].endpoints[0];
    assert_eq!(endpoint.addresses, ["10.0.0.1"]);
    assert_eq!(endpoint.conditions.as_ref().unwrap().ready, Some(true));
    assert_eq!((endpoint.node_name.as_deref(), endpoint.zone.as_deref()), (Some("n1"), Some("z1")));
    assert_eq!(endpoint.target_ref.as_ref().unwrap().uid.as_deref(), Some("a"));
}

#[test]
fn a_pod_that_is_not_ready_is_listed_as_such_unless_the_service_publishes_it() {
    let unready = |pod: &mut Value| pod["status"]["conditions"][0]["status"] = json!("False");
    for (publish, expected) in [(false, false), (true, true)] {
        let service = service(json!({"publishNotReadyAddresses": publish, "ports": [{"port": 80}]}));
        let backends = backends(&service, &[pod("a", "10.0.0.1", unready)]);
        let slices = slices::of(&service, &backends).unwrap();
        assert_eq!(slices[0].endpoints[0].conditions.as_ref().unwrap().ready, Some(expected));
        let legacy = legacy::of(&service, &backends).subsets.unwrap();
        assert_eq!(legacy[0].addresses.is_some(), expected);
        assert_eq!(legacy[0].not_ready_addresses.is_some(), !expected);
    }
}

#[test]
fn a_terminating_pod_serves_but_is_not_ready() {
    let terminating = |pod: &mut Value| pod["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    let service = http();
    let backends = backends(&service, &[pod("a", "10.0.0.1", terminating)]);
    let slices = slices::of(&service, &backends).unwrap();
    let conditions = slices[0].endpoints[0].conditions.clone().unwrap();
    assert_eq!(
        (conditions.ready, conditions.serving, conditions.terminating),
        (Some(false), Some(true), Some(true))
    );
    assert_eq!(legacy::of(&service, &backends).subsets, None);
}

#[test]
fn pods_that_ended_or_have_no_address_or_node_are_no_endpoints() {
    let ended = |pod: &mut Value| pod["status"]["phase"] = json!("Succeeded");
    let nowhere = |pod: &mut Value| pod["spec"]["nodeName"] = Value::Null;
    let pods = [
        pod("a", "10.0.0.1", ended),
        pod("b", "10.0.0.2", nowhere),
        pod("c", "10.0.0.3", |pod| pod["status"] = json!({"phase": "Pending"})),
    ];
    let service = http();
    assert!(backends(&service, &pods).is_empty());
    let slices = slices::of(&service, &[]).unwrap();
    assert_eq!(slices.len(), 1, "an empty slice says that nobody serves");
    assert!(slices[0].endpoints.is_empty());
}

#[test]
fn a_named_port_may_be_another_number_on_every_pod() {
    let other = |pod: &mut Value| pod["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(9090);
    let without = |pod: &mut Value| pod["spec"]["containers"][0]["ports"] = json!([]);
    let service = http();
    let pods = [pod("a", "10.0.0.1", |_| {}), pod("b", "10.0.0.2", other), pod("c", "10.0.0.3", without)];
    let backends = backends(&service, &pods);
    let slices = slices::of(&service, &backends).unwrap();
    let ports: Vec<_> = slices.iter().map(|slice| slice.ports.as_ref().unwrap()[0].port.unwrap()).collect();
    assert_eq!(ports, [8080, 9090]);
    assert_ne!(slices[0].name_any(), slices[1].name_any());
    assert_eq!(legacy::of(&service, &backends).subsets.unwrap().len(), 2);
}

#[test]
fn a_headless_service_is_marked_and_stable_names_are_kept() {
    let service = service(json!({"clusterIP": "None", "selector": {"a": "b"}}));
    let named = |pod: &mut Value| {
        pod["spec"]["hostname"] = json!("web-0");
        pod["spec"]["subdomain"] = json!("web");
    };
    let backends = backends(&service, &[pod("web-0", "10.0.0.1", named)]);
    let slices = slices::of(&service, &backends).unwrap();
    assert!(slices[0].labels().contains_key(HEADLESS_LABEL));
    assert_eq!(slices[0].endpoints[0].hostname.as_deref(), Some("web-0"));
}

#[test]
fn the_same_endpoints_in_another_order_are_the_same_slice() {
    let service = http();
    let (a, b) = (pod("a", "10.0.0.1", |_| {}), pod("b", "10.0.0.2", |_| {}));
    let one = slices::of(&service, &backends(&service, &[a.clone(), b.clone()])).unwrap();
    let other = slices::of(&service, &backends(&service, &[b, a])).unwrap();
    assert!(same_slice(&one[0], &other[0]));
    assert_eq!(one[0].name_any(), other[0].name_any());
}

#[test]
fn many_endpoints_are_split() {
    let service = http();
    let pods: Vec<Pod> = (0..250).map(|n| pod(&format!("p{n}"), &format!("10.0.0.{n}"), |_| {})).collect();
    let slices = slices::of(&service, &backends(&service, &pods)).unwrap();
    assert_eq!(slices.iter().map(|slice| slice.endpoints.len()).collect::<Vec<_>>(), [100, 100, 50]);
}
