//! While nobody of the mesh answers: what waits, what starts, and what can still be said.

use std::path::Path;
use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ContainerState, Namespace, Pod, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{TestLab, eventually, netns_of, processes};
use crate::{NAMESPACE, all_ready, app, create, footprint, is_enrolled, is_ready, lab_with_mesh, pods, said};

const MESH: &str = "ambit-system";

/// Agents that neither run nor end, until this goes.
struct Stopped(Vec<Pid>);

impl Stopped {
    fn stop(lab: &TestLab) -> Self {
        let stopped = Self(processes(lab, "agent").into_iter().map(Pid::from_raw).collect());
        assert_eq!(stopped.0.len(), 2, "one agent on each node");
        stopped.0.iter().for_each(|pid| kill(*pid, Signal::SIGSTOP).unwrap());
        stopped
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for pid in &self.0 {
            let _ = kill(*pid, Signal::SIGCONT);
        }
    }
}

fn explained(lab: &TestLab, pod: &str) -> (String, Value) {
    let pod = format!("{NAMESPACE}/{pod}");
    let text = lab.must(&["explain", "pod", &pod]);
    println!("{text}");
    (text, serde_json::from_str(&lab.must(&["explain", "pod", &pod, "-o", "json"])).unwrap())
}

async fn ready(client: &Client, name: &str) -> Pod {
    eventually(&format!("{name} to be ready"), || async {
        let pod = pods(client).await.remove(name).ok_or("it is not there")?;
        if is_ready(&pod) { Ok(pod) } else { Err(format!("{:?}", pod.status)) }
    })
    .await
}

/// Nothing was known of the namespace when the agents stopped answering: neither it nor any pod in it was in.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_pod_with_a_label_of_its_own_waits_for_agents_that_hang_and_nobody_else_does() {
    let (lab, client) = lab_with_mesh("e2a").await;
    let stopped = Stopped::stop(&lab);
    let mode = |mode: &str| json!({"labels": {"istio.io/dataplane-mode": mode}});
    create(&client, &app("first", mode("ambient"), &[])).await;
    create(&client, &app("plain", json!({}), &[])).await;
    create(&client, &app("opted-out", mode("none"), &[])).await;
    said_by_kubelet(&client, "first", "is to be in the mesh and must wait for the Ambit node agent").await;
    ready(&client, "plain").await;
    ready(&client, "opted-out").await;
    let waits = pods(&client).await.remove("first").unwrap();
    assert!(!has_run(&waits), "nothing of it has run: {:?}", waits.status);

    let (text, value) = explained(&lab, "first");
    assert!(text.contains("its annotation does not say so"), "{text}");
    assert!(text.contains("no answer within") && text.contains("what the API alone shows"), "{text}");
    assert_eq!((&value["annotated"], &value["wanted"]), (&false.into(), &true.into()), "{value}");
    assert!(value.get("carried").is_none() && value.get("agent").is_none(), "{value}");

    drop(stopped);
    let all = all_ready(&client, 3).await;
    until_announced(&client, "first").await;
    assert!(footprint(&netns_of(&all["first"]).unwrap()).contains("redirect to :15001"));
    for name in ["plain", "opted-out"] {
        assert!(!footprint(&netns_of(&all[name]).unwrap()).contains("istio"), "{name}");
    }
}

/// Lets the agents run on no node, or on each; those that are there go at once.
async fn place_agents(client: &Client, nowhere: bool) {
    let sets = Api::<DaemonSet>::namespaced(client.clone(), MESH);
    let selector = if nowhere { json!({"ambit.test/nowhere": "yes"}) } else { Value::Null };
    let patch = json!({"spec": {"template": {"spec": {"nodeSelector": selector}}}});
    sets.patch("ambit-agent", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let agents = Api::<Pod>::namespaced(client.clone(), MESH);
    for agent in agents.list(&ListParams::default().labels("app=ambit-agent")).await.unwrap() {
        let _ = agents.delete(&agent.name_any(), &DeleteParams::default().grace_period(0)).await;
    }
}

/// Makes a pod in a namespace that is made for it.
async fn create_aside(client: &Client, namespace: &str, labels: Value, pod: &str) -> Api<Pod> {
    let namespaces = Api::<Namespace>::all(client.clone());
    let made = json!({"metadata": {"name": namespace, "labels": labels}});
    namespaces.create(&PostParams::default(), &serde_json::from_value(made).unwrap()).await.unwrap();
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let mut object = app(pod, json!({}), &[]);
    object.metadata.namespace = Some(namespace.to_owned());
    // The service account of a new namespace comes a moment after it.
    eventually("the pod to be made", || async {
        pods.create(&PostParams::default(), &object).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
    pods
}

async fn ready_aside(pods: &Api<Pod>, name: &str) -> Pod {
    eventually(&format!("{name} to be ready"), || async {
        let pod = pods.get(name).await.map_err(|error| error.to_string())?;
        if is_ready(&pod) { Ok(pod) } else { Err(format!("{:?}", pod.status)) }
    })
    .await
}

/// Between an agent's pod and its successor the API server still knows the plugin: what is labelled in just that time
/// is held back. Where it knows it no more, the list does it; and the agents come back through the plugin that waits for
/// them.
#[tokio::test(flavor = "multi_thread")]
async fn while_agents_are_gone_pods_outside_start_and_those_inside_wait_though_labelled_since() {
    let (lab, client) = lab_with_mesh("e2o").await;
    lab.label(NAMESPACE, "ambient").await;
    create(&client, &app("there", json!({}), &[])).await;
    let there = until_announced(&client, "there").await;
    place_agents(&client, true).await;
    eventually("the agents to be gone", || async {
        let left = processes(&lab, "agent");
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;

    let labels = json!({"istio.io/dataplane-mode": "ambient"});
    let since = create_aside(&client, "labelled-since", labels, "late").await;
    let outside = create_aside(&client, "aside", json!({}), "plain").await;
    ready_aside(&outside, "plain").await;
    let events = Api::<Event>::namespaced(client.clone(), "labelled-since");
    eventually("the pod to be held back", || async {
        let all = events.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let notes: Vec<String> = all.into_iter().filter_map(|event| event.note).collect();
        let held = notes.iter().any(|note| note.contains("late is to be in the mesh and must wait"));
        if held { Ok(()) } else { Err(format!("{notes:?}")) }
    })
    .await;
    let late = since.get("late").await.unwrap();
    assert!(!has_run(&late), "nothing of it has run: {:?}", late.status);

    // From here on nobody answers to the token that is left.
    let accounts = Api::<ServiceAccount>::namespaced(client.clone(), MESH);
    accounts.delete("ambit-cni", &DeleteParams::default()).await.unwrap();
    create(&client, &app("waits", json!({}), &[])).await;
    let outside = create_aside(&client, "aside-too", json!({}), "plain").await;
    ready_aside(&outside, "plain").await;
    said_by_kubelet(&client, "waits", "the API server cannot tell either").await;
    let waits = pods(&client).await.remove("waits").unwrap();
    assert!(!has_run(&waits), "nothing of it has run: {:?}", waits.status);
    let (text, value) = explained(&lab, "there");
    assert!(text.contains("its annotation says so, which is no proof"), "{text}");
    let node = there.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap();
    assert!(text.contains(&format!("no node agent runs on node {node}")), "{text}");
    assert_eq!((&value["annotated"], value.get("enrolled")), (&true.into(), None), "{value}");

    place_agents(&client, false).await;
    until_announced(&client, "waits").await;
    let pods = [ready(&client, "waits").await, ready_aside(&since, "late").await];
    for pod in pods {
        assert!(footprint(&netns_of(&pod).unwrap()).contains("redirect to :15001"), "{}", pod.name_any());
    }
}

/// Whether a container of it has ever been started. A process of its sandbox may be there, for as long as an attempt lasts.
fn has_run(pod: &Pod) -> bool {
    let containers = pod.status.iter().flat_map(|status| status.container_statuses.iter().flatten());
    containers.into_iter().any(|container| {
        let ran = |state: &ContainerState| state.running.is_some() || state.terminated.is_some();
        container.container_id.is_some() || container.state.iter().chain(&container.last_state).any(ran)
    })
}

async fn until_announced(client: &Client, name: &str) -> Pod {
    eventually(&format!("{name} to be announced"), || async {
        let pod = pods(client).await.remove(name).ok_or("it is not there")?;
        if is_enrolled(&pod) { Ok(pod) } else { Err(format!("{:?}", pod.metadata.annotations)) }
    })
    .await
}

/// An event of the kubelet on a pod.
async fn said_by_kubelet(client: &Client, pod: &str, note: &str) {
    said(client, pod, "FailedCreatePodSandBox", note).await;
}

/// Both nodes with all their rules, and the namespace of a pod that opted out beside one on the node's network.
#[tokio::test(flavor = "multi_thread")]
async fn pods_that_must_not_be_touched_leave_pod_and_node_as_they_are_byte_for_byte() {
    let (lab, client) = lab_with_mesh("e2h").await;
    let mut hosted = app("hosted", json!({"labels": {"istio.io/dataplane-mode": "ambient"}}), &[]);
    hosted.spec.as_mut().unwrap().host_network = Some(true);
    create(&client, &hosted).await;
    create(&client, &app("opted-out", json!({"labels": {"istio.io/dataplane-mode": "none"}}), &[])).await;
    let all = all_ready(&client, 2).await;
    let names = ["node1", "node2"].map(|node| format!("ambit-{}-{node}", lab.name));
    let mut places: Vec<netns::NetNs> =
        names.iter().map(|name| netns::NetNs::open(Path::new("/run/netns").join(name)).unwrap()).collect();
    places.push(netns_of(&all["opted-out"]).unwrap());
    let look = || -> Vec<String> { places.iter().map(|place| footprint(place) + &routes(place)).collect() };
    let before = look();
    lab.label(NAMESPACE, "ambient").await;
    said(&client, "hosted", "NotEnrolled", "it uses the network of its host").await;
    said(&client, "opted-out", "NotEnrolled", "its label istio.io/dataplane-mode is none").await;
    assert_eq!(look(), before, "in a namespace that is labelled");
    lab.label(NAMESPACE, "").await;
    assert_eq!(look(), before, "and no more");
    let after = pods(&client).await;
    assert!(
        after.values().all(|pod| !pod
            .metadata
            .annotations
            .iter()
            .flatten()
            .any(|(key, _)| key.contains("istio")))
    );
}

fn routes(place: &netns::NetNs) -> String {
    let show = || Command::new("ip").args(["route", "show", "table", "all"]).output();
    let output = place.run(show).unwrap().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // It shows both families. Link-local addresses come when the kernel has made sure of them.
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().filter(|line| !line.contains("fe80::")).collect::<Vec<_>>().join("\n")
}
