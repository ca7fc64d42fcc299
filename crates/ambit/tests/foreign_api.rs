//! The mesh on a Kubernetes API of others: two nodes of a lab join the cluster whose kubeconfig `AMBIT_FOREIGN_API` names,
//! an administrator's, and everything runs there under the accounts of our manifests.
//!
//! Such a cluster is not built here, so the test is ignored unless it is asked for. It needs the usual controllers and a
//! scheduler, no other node, and nothing of a mesh:
//!
//! ```text
//! AMBIT_FOREIGN_API=/path/to/kubeconfig cargo nextest run -p ambit --test foreign_api --run-ignored only
//! ```
//!
//! What was met this way is in `docs/reference/interoperability.md`.

mod support;

use std::collections::BTreeMap;
use std::path::PathBuf;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::json;

use support::{TestLab, eventually};

const NAMESPACE: &str = "ambit-foreign";
/// What an installation consists of.
const KINDS: [(&str, &str, &str); 9] = [
    ("", "v1", "ServiceAccount"),
    ("", "v1", "Service"),
    ("apps", "v1", "Deployment"),
    ("apps", "v1", "DaemonSet"),
    ("rbac.authorization.k8s.io", "v1", "Role"),
    ("rbac.authorization.k8s.io", "v1", "RoleBinding"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRole"),
    ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding"),
    ("apiextensions.k8s.io", "v1", "CustomResourceDefinition"),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "AMBIT_FOREIGN_API must name the kubeconfig of a cluster of others"]
async fn the_mesh_comes_works_and_goes_on_an_api_server_of_others() {
    let kubeconfig = PathBuf::from(std::env::var_os("AMBIT_FOREIGN_API").expect("AMBIT_FOREIGN_API"));
    let lab = TestLab::new("api");
    std::fs::create_dir_all(lab.kubeconfig().parent().unwrap()).unwrap();
    std::fs::copy(&kubeconfig, lab.kubeconfig()).unwrap();
    let client = lab.client().await;
    assert!(ours(&client).await.is_empty(), "there is something of a mesh in that cluster");
    lab.must(&["lab", "up", "--name", &lab.name, "--join", kubeconfig.to_str().unwrap()]);

    lab.must(&["install"]);
    let first = ours(&client).await;
    lab.must(&["install"]);
    // What is in place is not written again; controllers count on in the status of what they roll out.
    let differing: Vec<_> =
        ours(&client).await.into_iter().filter(|one| first.get(&one.0) != Some(&one.1)).collect();
    assert!(differing.is_empty(), "{differing:?}");
    assert!(lab.must(&["ca", "status"]).contains("ROTATION none"));

    let namespace =
        json!({"metadata": {"name": NAMESPACE, "labels": {"istio.io/dataplane-mode": "ambient"}}});
    let namespaces = Api::<Namespace>::all(client.clone());
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
    let pod = json!({
        "metadata": {"name": "app"},
        "spec": {"terminationGracePeriodSeconds": 1,
            "containers": [{"name": "app", "image": "ambit", "args": ["lab", "app", "--name", "app"]}]},
    });
    let pods = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    eventually("an account for the pod", async || {
        let pod = serde_json::from_value(pod.clone()).unwrap();
        pods.create(&PostParams::default(), &pod).await.map_err(|error| error.to_string())
    })
    .await;
    eventually("the pod to be in the mesh", async || {
        let pod = pods.get("app").await.map_err(|error| error.to_string())?;
        let said = pod.annotations().get("ambient.istio.io/redirection").cloned();
        (said.as_deref() == Some("enabled")).then_some(()).ok_or(format!("{said:?} {:?}", pod.status))
    })
    .await;
    let explained = lab.must(&["explain", "pod", &format!("{NAMESPACE}/app")]);
    assert!(explained.contains("in the mesh yes") && explained.contains(" Enrolled: "), "{explained}");

    let gvk = GroupVersionKind::gvk("security.istio.io", "v1", "AuthorizationPolicy");
    let resource = ApiResource::from_gvk_with_plural(&gvk, "authorizationpolicies");
    let policies = Api::<DynamicObject>::namespaced_with(client.clone(), NAMESPACE, &resource);
    let policy =
        DynamicObject::new("all", &resource).data(json!({"spec": {"action": "ALLOW", "rules": [{}]}}));
    policies.create(&PostParams::default(), &policy).await.unwrap();
    let conditions = async || policies.get("all").await.unwrap().data["status"]["conditions"].clone();
    eventually("the policy to be accepted", async || {
        let said = conditions().await;
        if said[0]["type"] == "ZtunnelAccepted" { Ok(()) } else { Err(said.to_string()) }
    })
    .await;

    lab.must(&["uninstall", "-y"]);
    let left = ours(&client).await;
    // Its one policy keeps the definition, and says no more that anybody enforces it.
    let kept: Vec<&str> = left.keys().map(String::as_str).collect();
    assert_eq!(kept, ["CustomResourceDefinition authorizationpolicies.security.istio.io"]);
    assert!(conditions().await.as_array().is_none_or(Vec::is_empty), "{}", conditions().await);
    assert!(!pods.get("app").await.unwrap().annotations().contains_key("ambient.istio.io/redirection"));
    let maps = Api::<ConfigMap>::all(client.clone()).list(&ListParams::default()).await.unwrap();
    let maps: Vec<String> =
        maps.iter().map(ResourceExt::name_any).filter(|name| name.starts_with("istio-")).collect();
    assert!(maps.is_empty(), "{maps:?}");

    namespaces.delete(NAMESPACE, &DeleteParams::default()).await.unwrap();
    eventually("the namespace to be gone", async || match namespaces.get_opt(NAMESPACE).await {
        Ok(None) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    lab.must(&["uninstall", "-y"]);
    assert!(ours(&client).await.is_empty());
}

/// What carries the label of an installation: kind and name, and the generation or, where none is counted, the version.
async fn ours(client: &Client) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for (group, version, kind) in KINDS {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api = Api::<DynamicObject>::all_with(client.clone(), &resource);
        let list =
            api.list(&ListParams::default().labels("app.kubernetes.io/managed-by=ambit")).await.unwrap();
        found.extend(list.into_iter().map(|object| {
            let generation = object.metadata.generation.map(|generation| format!("generation {generation}"));
            let version = generation.or(object.metadata.resource_version.clone()).unwrap_or_default();
            (format!("{kind} {}", object.name_any()), version)
        }));
    }
    found
}
