//! A mesh that comes from a file.

use crate::harness::{Proxy, World, call, echo, eventually};
use crate::namespaces::in_a_node;

#[test]
fn without_a_control_plane_a_file_is_enough() {
    in_a_node(|node| async move {
        // The control plane of this world only signs certificates for it.
        let world = World::new(&node).await;
        let pod = node.pod(40);
        let file = tempfile::NamedTempFile::new().unwrap();
        let yaml = format!(
            "workloads:
- {{ uid: local/one, name: one, namespace: ns, serviceAccount: one, workloadIps: [\"{}\"], protocol: HBONE, node: node-l }}
- {{ uid: local/b, name: b, namespace: ns, serviceAccount: b, workloadIps: [\"{}\"], protocol: HBONE, node: node-b,
    services: {{ ns/web.ns.svc.cluster.local: {{ 80: 8080 }} }} }}
services:
- {{ name: web, namespace: ns, hostname: web.ns.svc.cluster.local, vips: [/10.96.0.9], ports: {{ 80: 8080 }} }}
policies:
- {{ name: only-one, namespace: ns, scope: Namespace, action: Allow, rules: [[[{{ principals: [{{ Exact: cluster.local/ns/ns/sa/x }}] }}]]] }}
",
            pod.ip, world.b.ip
        );
        std::fs::write(file.path(), yaml).unwrap();
        let vars = [("XDS_ADDRESS", ""), ("LOCAL_XDS_PATH", file.path().to_str().unwrap())];
        let proxy = Proxy::start_with("node-l", world.address, &vars).await;
        assert_eq!(proxy.agent.add("one", "one", &pod).await, "");
        pod.redirect();
        echo(world.b.listen(8080));
        echo(pod.listen(8080));
        assert_eq!(call(&pod, "10.96.0.9:80".parse().unwrap(), b"hi").await.unwrap(), b"hi");
        let sealed = [("connection_security_policy", "mutual_tls"), ("destination_service_name", "web")];
        eventually("in a tunnel", || async {
            proxy.metrics().await.sum("istio_tcp_connections_closed_total", &sealed) == 1
        })
        .await;
        // Its policies are in force.
        assert!(call(&world.a, pod.at(8080), b"hi").await.is_err());
        let dump = proxy.dump().await;
        assert_eq!(dump["staticConfig"]["workloads"].as_array().unwrap().len(), 2);
        assert_eq!(dump["staticConfig"]["policies"][0]["name"], "only-one");
        assert_eq!(dump["config"]["xdsAddress"], serde_json::Value::Null);
        assert_eq!(dump["config"]["localNode"], "node-l");
        proxy.stop().await;
    });
}

#[test]
fn a_file_that_makes_no_sense_ends_the_start_and_is_named() {
    in_a_node(|node| async move {
        let _ = node;
        let vars = [("LOCAL_XDS", "workloads: [{ nam: x }]"), ("XDS_ADDRESS", "")];
        let config = proxy::Config::from_vars(vars.map(|(name, value)| (name.into(), value.into()))).unwrap();
        let error = proxy::run(config, std::future::pending()).await.unwrap_err().to_string();
        assert!(error.contains("LOCAL_XDS") && error.contains("nam"), "{error}");
    });
}
