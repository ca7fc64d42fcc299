//! The controllers against the Kubernetes API, with a kubelet that only pretends.

mod controllers_support;

use std::collections::BTreeSet;

use controllers_support::{Cluster, eventually};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

fn template(app: &str, labels: &[(&str, &str)]) -> Value {
    let mut all = json!({"app": app});
    labels.iter().for_each(|(name, value)| all[*name] = json!(value));
    let container = json!({"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 8080}]});
    json!({"metadata": {"labels": all}, "spec": {"containers": [container]}})
}

fn deployment(name: &str, replicas: i32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}}, "template": template(name, &[]),
        },
    })
}

async fn available(cluster: &Cluster, name: &str, wanted: i32) -> Deployment {
    eventually("an available deployment", async || {
        let found = cluster.api::<Deployment>().get(name).await.unwrap();
        let status = found.status.clone().unwrap_or_default();
        let settled = status.observed_generation == found.metadata.generation
            && status.updated_replicas.unwrap_or(0) == wanted
            && status.replicas.unwrap_or(0) == wanted
            && status.available_replicas.unwrap_or(0) == wanted;
        settled.then_some(found)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_namespace_is_furnished_and_an_ended_one_is_emptied() {
    let cluster = Cluster::start(&["n1"]).await;
    cluster.namespace("guest").await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "guest");
    let ca = eventually("the CA", async || maps.get_opt("kube-root-ca.crt").await.unwrap()).await;
    assert_eq!(ca.data.unwrap()["ca.crt"], "the CA");

    let deployments: Api<Deployment> = Api::namespaced(cluster.client.clone(), "guest");
    let web = serde_json::from_value(deployment("web", 2)).unwrap();
    deployments.create(&PostParams::default(), &web).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), "guest");
    let all = ListParams::default();
    eventually("pods", async || (pods.list(&all).await.unwrap().items.len() == 2).then_some(())).await;

    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces.delete("guest", &DeleteParams::default()).await.unwrap();
    eventually("the end", async || namespaces.get_opt("guest").await.unwrap().is_none().then_some(())).await;
    assert!(pods.list(&all).await.unwrap().items.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_runs_on_all_nodes_and_its_service_has_endpoints() {
    let cluster = Cluster::start(&["n1", "n2"]).await;
    let _: Service = cluster
        .create(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
        }))
        .await;
    let _: Deployment = cluster.create(deployment("web", 4)).await;
    available(&cluster, "web", 4).await;
    let pods = cluster.pods("app=web").await;
    let nodes: Vec<_> = pods.iter().filter_map(|pod| pod.spec.as_ref()?.node_name.clone()).collect();
    assert_eq!(nodes.iter().filter(|node| *node == "n1").count(), 2, "{nodes:?}");
    assert_eq!(nodes.iter().filter(|node| *node == "n2").count(), 2, "{nodes:?}");

    let of_web = ListParams::default().labels("kubernetes.io/service-name=web");
    let slices = cluster.api::<EndpointSlice>();
    let endpoints = eventually("four ready endpoints", async || {
        let found = slices.list(&of_web).await.unwrap().items;
        let endpoints: Vec<_> = found.into_iter().flat_map(|slice| slice.endpoints).collect();
        let ready = |endpoint: &k8s_openapi::api::discovery::v1::Endpoint| {
            endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
        };
        (endpoints.len() == 4 && endpoints.iter().all(ready)).then_some(endpoints)
    })
    .await;
    let uids: BTreeSet<_> = pods.iter().filter_map(ResourceExt::uid).collect();
    for endpoint in &endpoints {
        assert!(uids.contains(endpoint.target_ref.as_ref().unwrap().uid.as_ref().unwrap()));
        let zone = format!("zone-of-{}", endpoint.node_name.as_ref().unwrap());
        assert_eq!(endpoint.zone.as_ref(), Some(&zone));
    }
    let legacy = eventually("legacy endpoints", async || {
        let found = cluster.api::<Endpoints>().get_opt("web").await.unwrap()?.subsets?;
        (found.first()?.addresses.as_ref()?.len() == 4).then_some(found)
    })
    .await;
    assert_eq!(legacy[0].ports.as_ref().unwrap()[0].port, 8080);

    cluster.api::<Service>().delete("web", &DeleteParams::default()).await.unwrap();
    eventually("no endpoints", async || {
        let slices = slices.list(&of_web).await.unwrap().items;
        let legacy = cluster.api::<Endpoints>().get_opt("web").await.unwrap();
        (slices.is_empty() && legacy.is_none()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_template_replaces_every_pod_and_a_broken_one_none_that_serves() {
    let cluster = Cluster::start(&["n1"]).await;
    let _: Deployment = cluster.create(deployment("web", 3)).await;
    available(&cluster, "web", 3).await;
    let before: BTreeSet<_> = cluster.pods("app=web").await.iter().filter_map(ResourceExt::uid).collect();

    let api = cluster.api::<Deployment>();
    let change = |labels: &[(&str, &str)]| json!({"spec": {"template": template("web", labels)}});
    let patch = |change: Value| Patch::Merge(change);
    api.patch("web", &PatchParams::default(), &patch(change(&[("release", "2")]))).await.unwrap();
    let rolled = available(&cluster, "web", 3).await;
    assert_eq!(rolled.annotations()["deployment.kubernetes.io/revision"], "2");
    let after: BTreeSet<_> = eventually("three new pods", async || {
        let pods = cluster.pods("app=web").await;
        (pods.len() == 3).then(|| pods.iter().filter_map(ResourceExt::uid).collect::<BTreeSet<_>>())
    })
    .await;
    assert!(before.is_disjoint(&after));
    assert_eq!(cluster.pods("release=2").await.len(), 3);

    api.patch("web", &PatchParams::default(), &patch(change(&[("release", "3"), ("broken", "yes")])))
        .await
        .unwrap();
    eventually("a broken pod", async || (cluster.pods("release=3").await.len() == 1).then_some(())).await;
    eventually("an honest status", async || {
        let status = api.get("web").await.unwrap().status.unwrap();
        (status.updated_replicas == Some(1) && status.available_replicas == Some(3)).then_some(())
    })
    .await;
    assert_eq!(cluster.pods("release=2").await.len(), 3);

    // Back to the second template, then to none.
    let back =
        json!([{"op": "replace", "path": "/spec/template", "value": template("web", &[("release", "2")])}]);
    let back = serde_json::from_value(back).unwrap();
    api.patch("web", &PatchParams::default(), &Patch::Json::<()>(back)).await.unwrap();
    let restored = available(&cluster, "web", 3).await;
    assert_eq!(restored.annotations()["deployment.kubernetes.io/revision"], "4");
    api.patch("web", &PatchParams::default(), &patch(json!({"spec": {"replicas": 0}}))).await.unwrap();
    eventually("no pods", async || cluster.pods("app=web").await.is_empty().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_runs_on_every_node_also_on_one_that_comes_later() {
    let cluster = Cluster::start(&["n1", "n2"]).await;
    let _: DaemonSet = cluster
        .create(json!({
            "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent"},
            "spec": {"selector": {"matchLabels": {"app": "agent"}}, "template": template("agent", &[])},
        }))
        .await;
    let ready = async |wanted: i32| {
        eventually("daemons", async || {
            let status = cluster.api::<DaemonSet>().get("agent").await.unwrap().status.unwrap_or_default();
            (status.desired_number_scheduled == wanted && status.number_ready == wanted).then_some(())
        })
        .await;
    };
    ready(2).await;
    cluster.add_node("n3").await;
    ready(3).await;
    let on: BTreeSet<_> =
        cluster.pods("app=agent").await.into_iter().filter_map(|pod| pod.spec?.node_name).collect();
    assert_eq!(on, BTreeSet::from(["n1", "n2", "n3"].map(String::from)));

    Api::<Node>::all(cluster.client.clone()).delete("n3", &DeleteParams::default()).await.unwrap();
    ready(2).await;
    eventually("two pods", async || (cluster.pods("app=agent").await.len() == 2).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_members_of_a_stateful_set_keep_their_names() {
    let cluster = Cluster::start(&["n1"]).await;
    let _: StatefulSet = cluster
        .create(json!({
            "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "db"},
            "spec": {
                "replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
                "template": template("db", &[]),
            },
        }))
        .await;
    let names = async |wanted: &[&str]| {
        eventually("the members", async || {
            let mut names: Vec<_> = cluster.pods("app=db").await.iter().map(ResourceExt::name_any).collect();
            names.sort();
            (names == wanted).then_some(())
        })
        .await;
    };
    names(&["db-0", "db-1", "db-2"]).await;
    let first = cluster.api::<Pod>().get("db-1").await.unwrap();
    assert_eq!(first.spec.as_ref().unwrap().hostname.as_deref(), Some("db-1"));
    cluster.api::<Pod>().delete("db-1", &DeleteParams::default()).await.unwrap();
    eventually("a successor of the same name", async || {
        let found = cluster.api::<Pod>().get_opt("db-1").await.unwrap()?;
        (found.uid() != first.uid()).then_some(())
    })
    .await;
    let scale = Patch::Merge(json!({"spec": {"replicas": 1}}));
    cluster.api::<StatefulSet>().patch("db", &PatchParams::default(), &scale).await.unwrap();
    names(&["db-0"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_when_enough_of_its_pods_did() {
    let cluster = Cluster::start(&["n1"]).await;
    let mut template = template("work", &[]);
    template["spec"]["restartPolicy"] = json!("Never");
    let _: Job = cluster
        .create(json!({
            "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "work"},
            "spec": {"completions": 3, "parallelism": 2, "template": template},
        }))
        .await;
    let status = eventually("the end of the job", async || {
        let status = cluster.api::<Job>().get("work").await.unwrap().status?;
        let complete = |condition: &k8s_openapi::api::batch::v1::JobCondition| {
            condition.type_ == "Complete" && condition.status == "True"
        };
        status.conditions.iter().flatten().any(complete).then_some(status)
    })
    .await;
    assert_eq!(status.succeeded, Some(3));
    assert!(status.completion_time.is_some());
    assert_eq!(cluster.pods("job-name=work").await.len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dependents_go_with_their_owner_before_it_or_not_at_all() {
    let cluster = Cluster::start(&["n1"]).await;
    for (name, params) in [("behind", DeleteParams::background()), ("before", DeleteParams::foreground())] {
        let _: Deployment = cluster.create(deployment(name, 2)).await;
        available(&cluster, name, 2).await;
        cluster.api::<Deployment>().delete(name, &params).await.unwrap();
        eventually(name, async || {
            // The owner first: what depends on it must be gone whenever it is.
            let owner = cluster.api::<Deployment>().get_opt(name).await.unwrap();
            let sets = cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items;
            let pods = cluster.pods(&format!("app={name}")).await;
            if owner.is_none() && name == "before" {
                assert!(sets.is_empty() && pods.is_empty(), "its owner did not wait");
            }
            (owner.is_none() && sets.is_empty() && pods.is_empty()).then_some(())
        })
        .await;
    }
    let _: Deployment = cluster.create(deployment("left", 2)).await;
    available(&cluster, "left", 2).await;
    cluster.api::<Deployment>().delete("left", &DeleteParams::orphan()).await.unwrap();
    let set = eventually("an orphan", async || {
        let gone = cluster.api::<Deployment>().get_opt("left").await.unwrap().is_none();
        let sets = cluster.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap().items;
        gone.then(|| sets.into_iter().next().unwrap())
    })
    .await;
    assert!(set.owner_references().is_empty());
    assert_eq!(cluster.pods("app=left").await.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_that_start_anew_find_a_settled_cluster_and_write_nothing() {
    let mut cluster = Cluster::start(&["n1", "n2"]).await;
    let _: Service = cluster
        .create(json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
        }))
        .await;
    let _: Deployment = cluster.create(deployment("web", 2)).await;
    available(&cluster, "web", 2).await;
    let slices = cluster.api::<EndpointSlice>();
    eventually("endpoints", async || {
        let found =
            slices.list(&ListParams::default().labels("kubernetes.io/service-name=web")).await.unwrap();
        (found.items.iter().map(|slice| slice.endpoints.len()).sum::<usize>() == 2).then_some(())
    })
    .await;
    let endpoints = cluster.api::<Endpoints>();
    eventually("the older kind of them", async || {
        let found = endpoints.get_opt("web").await.unwrap()?.subsets?;
        let ready = found.iter().map(|subset| subset.addresses.as_ref().map_or(0, Vec::len));
        (ready.sum::<usize>() == 2).then_some(())
    })
    .await;
    let versions = async |cluster: &Cluster| {
        let all = ListParams::default();
        let mut versions: Vec<Option<String>> = Vec::new();
        let list = cluster.api::<Deployment>().list(&all).await.unwrap();
        versions.extend(list.iter().map(ResourceExt::resource_version));
        versions.extend(
            cluster.api::<ReplicaSet>().list(&all).await.unwrap().iter().map(ResourceExt::resource_version),
        );
        versions
            .extend(cluster.api::<Pod>().list(&all).await.unwrap().iter().map(ResourceExt::resource_version));
        versions.extend(
            cluster
                .api::<EndpointSlice>()
                .list(&all)
                .await
                .unwrap()
                .iter()
                .map(ResourceExt::resource_version),
        );
        versions.extend(
            cluster.api::<Endpoints>().list(&all).await.unwrap().iter().map(ResourceExt::resource_version),
        );
        versions
    };
    // The second deployment shows that all that had been asked before is done.
    let before = versions(&cluster).await;
    cluster.restart_controllers().await;
    cluster.namespace("marker").await;
    assert_eq!(versions(&cluster).await, before);

    let _: Deployment = cluster.create(deployment("more", 1)).await;
    available(&cluster, "more", 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_wait_for_a_node_that_fits_and_say_why() {
    let cluster = Cluster::start(&[]).await;
    let _: Pod = cluster
        .create(json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "labels": {"app": "p"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]},
        }))
        .await;
    eventually("a reason", async || {
        let status = cluster.api::<Pod>().get("p").await.unwrap().status?;
        let condition = status.conditions?.into_iter().find(|condition| condition.type_ == "PodScheduled")?;
        condition.message.filter(|message| message.contains("no nodes"))
    })
    .await;
    cluster.add_node("n1").await;
    eventually("a node", async || {
        let spec = cluster.api::<Pod>().get("p").await.unwrap().spec?;
        spec.node_name.filter(|node| node == "n1")
    })
    .await;
}
