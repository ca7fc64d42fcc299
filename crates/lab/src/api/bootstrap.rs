//! What a cluster has before anybody does anything: its namespaces, its own Service, the priority classes and
//! the usual roles.

use anyhow::anyhow;
use serde_json::{Value, json};

use super::Api;
use super::failure::Failure;
use super::rbac;
use super::verbs::bootstrap as create;

/// Fills a fresh store.
pub fn fill(api: &Api) -> anyhow::Result<()> {
    let put = |group: &str, version: &str, plural: &str, object: Value| {
        create(api, group, version, plural, object)
            .map_err(|Failure { message, .. }| anyhow!("set up the API server's own objects: {message}"))
    };
    for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
        put("", "v1", "namespaces", json!({ "metadata": { "name": name } }))?;
    }
    for (name, value) in [("system-cluster-critical", 2_000_000_000), ("system-node-critical", 2_000_001_000)]
    {
        let class = json!({ "metadata": { "name": name }, "value": value });
        put("scheduling.k8s.io", "v1", "priorityclasses", class)?;
    }
    for (plural, object) in rbac::defaults() {
        put("rbac.authorization.k8s.io", "v1", plural, object)?;
    }
    let range =
        json!({ "metadata": { "name": "kubernetes" }, "spec": { "cidrs": [api.service_cidr.to_string()] } });
    put("networking.k8s.io", "v1", "servicecidrs", range)?;
    let host = api.service_cidr.hosts().next().ok_or_else(|| {
        anyhow!("the service range {} has no address; give one such as 10.96.0.0/16", api.service_cidr)
    })?;
    let labels = json!({ "component": "apiserver", "provider": "kubernetes" });
    put(
        "",
        "v1",
        "services",
        json!({
            "metadata": { "name": "kubernetes", "namespace": "default", "labels": labels },
            "spec": {
                "clusterIP": host.to_string(),
                "ports": [{ "name": "https", "port": 443, "protocol": "TCP", "targetPort": api.address.port() }],
            },
        }),
    )?;
    let address = match api.address.ip() {
        ip if ip.is_unspecified() => "127.0.0.1".to_owned(),
        ip => ip.to_string(),
    };
    put(
        "",
        "v1",
        "endpoints",
        json!({
            "metadata": {
                "name": "kubernetes", "namespace": "default",
                "labels": { "endpointslice.kubernetes.io/skip-mirror": "true" },
            },
            "subsets": [{
                "addresses": [{ "ip": address }],
                "ports": [{ "name": "https", "port": api.address.port(), "protocol": "TCP" }],
            }],
        }),
    )?;
    put(
        "discovery.k8s.io",
        "v1",
        "endpointslices",
        json!({
            "metadata": {
                "name": "kubernetes", "namespace": "default", "labels": { "kubernetes.io/service-name": "kubernetes" },
            },
            "addressType": if api.address.is_ipv4() { "IPv4" } else { "IPv6" },
            "endpoints": [{ "addresses": [address], "conditions": { "ready": true } }],
            "ports": [{ "name": "https", "port": api.address.port(), "protocol": "TCP" }],
        }),
    )
}
