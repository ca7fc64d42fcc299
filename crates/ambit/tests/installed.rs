//! What an installation puts into a Kubernetes API, without nodes and processes: definitions as other writers meet them,
//! and what its accounts may do.
//!
//! The lists of what they do are what a real API server heard of them (docs/reference/interoperability.md).

mod support;

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::discovery::{Scope, pinned_kind};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use support::{AMBIT, text};

const MESH: &str = "ambit-system";
/// A namespace of somebody else's.
const SHOP: &str = "shop";

/// An API with the manifests in it.
async fn installed() -> (lab::api::Server, Client) {
    let config = lab::api::Config {
        listeners: vec![std::net::TcpListener::bind("127.0.0.1:0").unwrap()],
        sans: vec![],
        service_cidr: "10.96.0.0/16".parse().unwrap(),
    };
    let server = lab::api::Server::start(config).await.unwrap();
    let client = server.client().await.unwrap();
    let output = std::process::Command::new(AMBIT).args(["install", "--dry-run"]).output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    for document in String::from_utf8(output.stdout).unwrap().split("---\n").filter(|text| !text.is_empty()) {
        let object: DynamicObject = serde_saphyr::from_str(document).unwrap();
        let gvk = GroupVersionKind::try_from(object.types.as_ref().unwrap()).unwrap();
        let (resource, capabilities) = pinned_kind(&client, &gvk).await.unwrap();
        let api: Api<DynamicObject> = match capabilities.scope {
            Scope::Cluster => Api::all_with(client.clone(), &resource),
            Scope::Namespaced => Api::namespaced_with(client.clone(), MESH, &resource),
        };
        let params = PatchParams::apply("ambit").force();
        api.patch(&object.name_any(), &params, &Patch::Apply(&object)).await.unwrap();
    }
    let shop = serde_json::from_value(json!({ "metadata": { "name": SHOP } })).unwrap();
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &shop).await.unwrap();
    (server, client)
}

/// Which of these, `verb resource.group[/part] namespace[/name]`, an account of the mesh may do.
async fn may(client: &Client, account: &str, wishes: &[&str]) -> Vec<(String, bool)> {
    let reviews = Api::<SubjectAccessReview>::all(client.clone());
    let mut answers = Vec::new();
    for wish in wishes {
        let words: Vec<&str> = wish.split(' ').collect();
        let (what, part) = words[1].split_once('/').unwrap_or((words[1], ""));
        let (resource, group) = what.split_once('.').unwrap_or((what, ""));
        let (namespace, name) = words[2].split_once('/').unwrap_or((words[2], ""));
        let text = |text: &str| (!text.is_empty() && text != "*").then(|| text.to_owned());
        let attributes = ResourceAttributes {
            verb: text(words[0]),
            group: text(group),
            resource: text(resource),
            subresource: text(part),
            namespace: text(namespace),
            name: text(name),
            ..ResourceAttributes::default()
        };
        let spec = SubjectAccessReviewSpec {
            user: Some(format!("system:serviceaccount:{MESH}:{account}")),
            resource_attributes: Some(attributes),
            ..SubjectAccessReviewSpec::default()
        };
        let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
        let answer = reviews.create(&PostParams::default(), &review).await.unwrap();
        answers.push(((*wish).to_owned(), answer.status.unwrap().allowed));
    }
    answers
}

async fn check(account: &str, does: &[&str], may_not: &[&str]) {
    let (server, client) = installed().await;
    let refused: Vec<_> = may(&client, account, does).await.into_iter().filter(|(_, may)| !may).collect();
    let granted: Vec<_> = may(&client, account, may_not).await.into_iter().filter(|(_, may)| *may).collect();
    assert!(refused.is_empty() && granted.is_empty(), "refused {refused:?}, granted {granted:?}");
    server.shutdown().await;
}

#[tokio::test]
async fn the_control_plane_may_do_what_it_does_and_reads_no_secret_or_map_of_others() {
    let does = [
        "list pods *",
        "watch pods *",
        "list nodes *",
        "watch nodes *",
        "list services *",
        "watch services *",
        "list namespaces *",
        "watch namespaces *",
        "list endpointslices.discovery.k8s.io *",
        "watch endpointslices.discovery.k8s.io *",
        "list authorizationpolicies.security.istio.io *",
        "watch peerauthentications.security.istio.io *",
        "list serviceentries.networking.istio.io *",
        "watch workloadentries.networking.istio.io *",
        "list gateways.gateway.networking.k8s.io *",
        "watch gatewayclasses.gateway.networking.k8s.io *",
        "list customresourcedefinitions.apiextensions.k8s.io *",
        "watch customresourcedefinitions.apiextensions.k8s.io *",
        "create tokenreviews.authentication.k8s.io *",
        "patch services/status shop/web",
        "patch authorizationpolicies.security.istio.io/status shop/p",
        "patch serviceentries.networking.istio.io/status shop/e",
        "patch workloadentries.networking.istio.io/status shop/e",
        "list configmaps */istio-ca-root-cert",
        "watch configmaps */istio-ca-crl",
        "create configmaps shop",
        "patch configmaps shop/istio-ca-root-cert",
        "patch configmaps shop/istio-ca-crl",
        "list configmaps ambit-system/istio",
        "watch configmaps ambit-system/istio",
        "get secrets ambit-system/cacerts",
        "get secrets ambit-system/istio-ca-secret",
        "create secrets ambit-system",
        "list secrets ambit-system/istio-ca-secret",
        "watch secrets ambit-system/cacerts",
        "update secrets ambit-system/istio-ca-secret",
        "patch secrets ambit-system/istio-ca-secret",
        "get leases.coordination.k8s.io ambit-system/l",
        "create leases.coordination.k8s.io ambit-system",
        "update leases.coordination.k8s.io ambit-system/l",
    ];
    let may_not = [
        "get secrets shop/s",
        "list secrets *",
        "list secrets ambit-system",
        "get secrets ambit-system/other",
        "delete secrets ambit-system/istio-ca-secret",
        "list configmaps *",
        "get configmaps shop/settings",
        "patch configmaps shop/settings",
        "delete configmaps shop/istio-ca-root-cert",
        "create configmaps/x shop",
        "patch services shop/web",
        "patch pods shop/p",
        "create pods shop",
        "get pods/log shop/p",
        "patch authorizationpolicies.security.istio.io shop/p",
        "create leases.coordination.k8s.io shop",
        "create serviceaccounts/token ambit-system/ambit-control",
    ];
    check("ambit-control", &does, &may_not).await;
}

#[tokio::test]
async fn the_node_agent_may_do_what_it_does_and_changes_nothing_but_what_is_said_of_pods() {
    let does = [
        "get pods shop/p",
        "list pods *",
        "watch pods *",
        "get namespaces shop/shop",
        "list namespaces *",
        "watch namespaces *",
        "patch pods/status shop/p",
        "create events.events.k8s.io shop",
        "patch events.events.k8s.io shop/e",
        "list peerauthentications.security.istio.io *",
        "watch peerauthentications.security.istio.io *",
        "get daemonsets.apps ambit-system/ambit-agent",
        "create serviceaccounts/token ambit-system/ambit-cni",
    ];
    let may_not = [
        "patch pods shop/p",
        "create pods shop",
        "delete pods shop/p",
        "create pods/exec shop/p",
        "get secrets shop/s",
        "list secrets *",
        "get configmaps shop/c",
        "patch namespaces shop/shop",
        "patch nodes */n",
        "get nodes */n",
        "patch daemonsets.apps ambit-system/ambit-agent",
        "create serviceaccounts/token ambit-system/ambit-control",
        "create serviceaccounts/token ambit-system/ambit-agent",
        "create serviceaccounts/token shop/default",
    ];
    check("ambit-agent", &does, &may_not).await;
}

/// Its token lies on every node.
#[tokio::test]
async fn the_cni_plugin_may_look_at_pods_and_namespaces_by_name_and_nothing_else() {
    let may_not = [
        "list pods *",
        "watch pods *",
        "list namespaces *",
        "patch pods/status shop/p",
        "create pods/exec shop/p",
        "get secrets shop/s",
        "get configmaps shop/c",
        "get nodes */n",
        "create events.events.k8s.io shop",
        "get daemonsets.apps ambit-system/ambit-agent",
        "create serviceaccounts/token ambit-system/ambit-cni",
    ];
    check("ambit-cni", &["get pods shop/p", "get namespaces shop/shop"], &may_not).await;
}

#[tokio::test]
async fn the_observer_may_look_and_ask_and_the_node_proxy_may_nothing() {
    let does = [
        "list pods *",
        "watch pods *",
        "list nodes *",
        "watch nodes *",
        "list namespaces *",
        "watch namespaces *",
        "create tokenreviews.authentication.k8s.io *",
        "create subjectaccessreviews.authorization.k8s.io *",
    ];
    let may_not = [
        "get secrets shop/s",
        "list configmaps *",
        "list services *",
        "get pods/log shop/p",
        "patch pods/status shop/p",
    ];
    check("ambit-observe", &does, &may_not).await;
    check("ambit-proxy", &[], &does).await;
}

#[tokio::test]
async fn conditions_of_other_writers_stay_beside_those_of_the_mesh() {
    let (server, client) = installed().await;
    let kinds = [
        ("security.istio.io", "AuthorizationPolicy", "authorizationpolicies"),
        ("security.istio.io", "PeerAuthentication", "peerauthentications"),
        ("networking.istio.io", "ServiceEntry", "serviceentries"),
        ("networking.istio.io", "WorkloadEntry", "workloadentries"),
    ];
    for (group, kind, plural) in kinds {
        let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, "v1", kind), plural);
        let api = Api::<DynamicObject>::namespaced_with(client.clone(), SHOP, &resource);
        let object = DynamicObject::new("one", &resource).within(SHOP);
        api.create(&PostParams::default(), &object).await.unwrap();
        for (manager, of) in [("mesh", "ZtunnelAccepted"), ("other", "Reviewed"), ("mesh", "ZtunnelAccepted")]
        {
            let status = json!({ "conditions": [{ "type": of, "status": "True", "reason": manager }] });
            apply_status(&api, &resource, manager, status).await;
        }
        assert_eq!(types(&api).await, ["ZtunnelAccepted", "Reviewed"], "{kind}");
        // Whoever takes back what was said takes back only that.
        apply_status(&api, &resource, "mesh", json!(null)).await;
        assert_eq!(types(&api).await, ["Reviewed"], "{kind}");
    }
    server.shutdown().await;
}

async fn apply_status(api: &Api<DynamicObject>, resource: &ApiResource, manager: &str, status: Value) {
    let mut object = json!({
        "apiVersion": resource.api_version, "kind": resource.kind, "metadata": { "name": "one" },
    });
    if !status.is_null() {
        object["status"] = status;
    }
    let params = PatchParams::apply(manager).force();
    api.patch_status("one", &params, &Patch::Apply(&object)).await.unwrap();
}

async fn types(api: &Api<DynamicObject>) -> Vec<String> {
    let object = api.get("one").await.unwrap();
    let conditions = object.data["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().map(|condition| condition["type"].as_str().unwrap_or_default().to_owned()).collect()
}
