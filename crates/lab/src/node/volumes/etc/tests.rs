use super::*;
use serde_json::json;

fn pod(spec: serde_json::Value) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": spec}))
        .unwrap()
}

const HOST: &str = "domain example.org\nnameserver 192.0.2.1\noptions edns0\n";

fn resolv(spec: serde_json::Value) -> String {
    resolv_conf(&pod(spec), "10.96.0.10".parse().unwrap(), HOST)
}

#[test]
fn a_pod_asks_the_cluster_for_names() {
    assert_eq!(
        resolv(json!({"containers": []})),
        "search n.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"
    );
}

#[test]
fn a_pod_on_the_nodes_network_asks_as_the_host_does_unless_it_says_otherwise() {
    let host = "search example.org\nnameserver 192.0.2.1\noptions edns0\n";
    assert_eq!(resolv(json!({"containers": [], "hostNetwork": true})), host);
    let cluster =
        resolv(json!({"containers": [], "hostNetwork": true, "dnsPolicy": "ClusterFirstWithHostNet"}));
    assert!(cluster.contains("nameserver 10.96.0.10"));
}

#[test]
fn a_pods_own_dns_settings_win() {
    let text = resolv(json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {
        "nameservers": ["192.0.2.9"], "options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}]}}));
    assert_eq!(text, "nameserver 192.0.2.9\noptions ndots:2 rotate\n");
    let text = resolv(json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}}));
    assert!(text.ends_with("options ndots:1\n"), "{text}");
}

#[test]
fn hosts_names_the_pod_and_its_aliases() {
    let pod = pod(json!({"containers": [], "subdomain": "web",
        "hostAliases": [{"ip": "192.0.2.7", "hostnames": ["a", "b"]}]}));
    let text = hosts(&pod, "p", &["10.1.0.2".parse().unwrap()]);
    assert!(text.contains("10.1.0.2\tp.web.n.svc.cluster.local\tp\n"), "{text}");
    assert!(text.ends_with("192.0.2.7\ta\tb\n"), "{text}");
}
