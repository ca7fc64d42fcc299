//! What the control plane writes on objects.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};

use super::*;

impl Cluster {
    pub(super) async fn kind(&self, group: &str, kind: &str, plural: &str) -> ApiResource {
        let mut definition = definition(kind, plural);
        definition["metadata"]["name"] = format!("{plural}.{group}").into();
        definition["spec"]["group"] = group.into();
        definition["spec"]["versions"][0]["subresources"] = json!({ "status": {} });
        self.ensure::<CustomResourceDefinition>(None, definition).await;
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural)
    }

    pub(super) async fn custom(&self, resource: &ApiResource, name: &str, rest: Value) -> Api<DynamicObject> {
        let api = Api::<DynamicObject>::namespaced_with(self.client.clone(), "shop", resource);
        let mut object = json!({
            "apiVersion": resource.api_version, "kind": resource.kind,
            "metadata": { "name": name, "namespace": "shop" },
        });
        for (key, value) in rest.as_object().unwrap() {
            match key.as_str() {
                "labels" => object["metadata"]["labels"] = value.clone(),
                key => object[key] = value.clone(),
            }
        }
        let object: DynamicObject = serde_json::from_value(object).unwrap();
        soon("the kind", async {
            while let Err(error) = api.create(&PostParams::default(), &object).await {
                assert!(matches!(&error, kube::Error::Api(status) if status.is_not_found()), "{error}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        api
    }
}

/// The condition of a type, once it has the status.
pub(super) async fn condition(
    api: Api<DynamicObject>,
    name: &str,
    of: &'static str,
    status: &'static str,
) -> Value {
    let find = move |object: &DynamicObject| {
        let conditions = object.data.pointer("/status/conditions")?.as_array()?.clone();
        conditions.into_iter().find(|one| one["type"] == of && one["status"] == status)
    };
    let there = move |object: Option<&DynamicObject>| object.is_some_and(|object| find(object).is_some());
    let object = soon(of, await_condition(api, name, there)).await.unwrap().unwrap();
    find(&object).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_told_what_became_of_them() {
    let mut cluster = Cluster::start().await;
    let token = cluster.proxy_token().await;
    let mut proxy = Proxy::connect(cluster.connect().await, &token, BTreeMap::new()).await.unwrap();
    let policies = cluster.kind("security.istio.io", "AuthorizationPolicy", "authorizationpolicies").await;
    let gateways = cluster.kind("gateway.networking.k8s.io", "Gateway", "gateways").await;
    let entries = cluster.kind("networking.istio.io", "ServiceEntry", "serviceentries").await;

    // A policy that refuses nothing says so (case D15), and what was mended says that too.
    let nothing = json!({ "spec": { "action": "DENY", "rules": [{ "from": [{ "source": { "notRequestPrincipals": ["*"] } }] }] } });
    let api = cluster.custom(&policies, "p", nothing).await;
    let said = condition(api.clone(), "p", "ZtunnelAccepted", "False").await;
    assert_eq!(
        (said["reason"].as_str(), said["observedGeneration"].as_i64()),
        (Some("UnsupportedValue"), Some(1))
    );
    let mended = json!({ "spec": { "rules": [{ "from": [{ "source": { "namespaces": ["shop"] } }] }] } });
    api.patch("p", &PatchParams::default(), &Patch::Merge(&mended)).await.unwrap();
    let said = condition(api, "p", "ZtunnelAccepted", "True").await;
    assert_eq!(said["message"], "attached to ztunnel");

    // A service is bound to a waypoint once that has an address.
    let services = ApiResource::erase::<core::Service>(&());
    let services = Api::<DynamicObject>::namespaced_with(cluster.client.clone(), "shop", &services);
    let wants = json!({ "metadata": { "labels": { "istio.io/use-waypoint": "w" } } });
    services.patch("web", &PatchParams::default(), &Patch::Merge(&wants)).await.unwrap();
    let said = condition(services.clone(), "web", "istio.io/WaypointBound", "False").await;
    assert_eq!(said["reason"], "WaypointIsNotReady");
    let waypoint = json!({ "spec": { "gatewayClassName": "istio-waypoint", "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }] } });
    let api = cluster.custom(&gateways, "w", waypoint).await;
    let ready = json!({ "status": { "addresses": [{ "type": "IPAddress", "value": "10.96.0.77" }] } });
    api.patch_status("w", &PatchParams::default(), &Patch::Merge(&ready)).await.unwrap();
    condition(services, "web", "istio.io/WaypointBound", "True").await;
    let bound = |proxy: &Proxy| match proxy.addresses.get(SERVICE).map(|(_, address)| address.r#type.clone())
    {
        Some(Some(wire::workload::address::Type::Service(service))) => service.waypoint.is_some(),
        _ => false,
    };
    proxy.until("the waypoint", bound).await;

    // An external service is given addresses, and proxies are told.
    let external = json!({ "spec": { "hosts": ["api.example"], "resolution": "DNS", "ports": [{ "number": 443, "name": "tls", "protocol": "TLS" }] } });
    cluster.custom(&entries, "api", external).await;
    let given = |proxy: &Proxy| match proxy
        .addresses
        .get("shop/api.example")
        .map(|(_, address)| address.r#type.clone())
    {
        Some(Some(wire::workload::address::Type::Service(service))) => service.addresses.len() == 2,
        _ => false,
    };
    proxy.until("addresses for the external service", given).await;
    cluster.halt().await;
}
