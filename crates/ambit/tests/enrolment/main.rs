//! Enrolment as users meet it: many pods in and out under load, agents that die while pods start, and the plugin
//! called the way container runtimes call it.
//!
//! Sizes are those that two cores bear within CI's time; `AMBIT_TEST_PODS` makes them larger.

mod away;
mod curl;
mod eavesdropper;
mod load;
mod names;
mod plugin;
mod rights;
#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use eavesdropper::Eavesdropper;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use load::Load;
use support::{PATIENCE, TestLab, eventually, netns_of, processes};

const NAMESPACE: &str = "crowd";
const PORT: u16 = 8080;
/// How long a capture goes on in which nothing may be readable.
const WINDOW: Duration = Duration::from_secs(10);

fn pods_wanted(default: usize) -> usize {
    std::env::var("AMBIT_TEST_PODS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A lab with the mesh and one empty namespace.
async fn lab_with_mesh(purpose: &str) -> (TestLab, Client) {
    let lab = TestLab::new(purpose);
    lab.must(&["lab", "up", "--name", &lab.name]);
    lab.must(&["install"]);
    let client = lab.client().await;
    let namespace = serde_json::json!({"metadata": {"name": NAMESPACE}});
    let namespaces = Api::<Namespace>::all(client.clone());
    namespaces.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
    (lab, client)
}

fn app(name: &str, metadata: serde_json::Value, more: &[&str]) -> Pod {
    let port = PORT.to_string();
    let args: Vec<&str> =
        ["lab", "app", "--name", name, "--port", &port].into_iter().chain(more.iter().copied()).collect();
    let mut pod = serde_json::json!({
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "app", "image": "ambit", "args": args,
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 2}}],
        },
    });
    for (key, value) in metadata.as_object().unwrap() {
        pod["metadata"][key] = value.clone();
    }
    serde_json::from_value(pod).unwrap()
}

async fn create(client: &Client, pod: &Pod) {
    let api = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    // The service account of a new namespace comes a moment after it.
    eventually("the pod to be made", || async {
        api.create(&PostParams::default(), pod).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

async fn pods(client: &Client) -> BTreeMap<String, Pod> {
    let list = Api::<Pod>::namespaced(client.clone(), NAMESPACE).list(&ListParams::default()).await.unwrap();
    list.into_iter().map(|pod| (pod.name_any(), pod)).collect()
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn is_enrolled(pod: &Pod) -> bool {
    pod.annotations().get("ambient.istio.io/redirection").is_some_and(|value| value == "enabled")
}

async fn all_ready(client: &Client, count: usize) -> BTreeMap<String, Pod> {
    eventually("all pods to be ready", || async {
        let pods = pods(client).await;
        let late: Vec<&String> =
            pods.iter().filter(|(_, pod)| !is_ready(pod)).map(|(name, _)| name).collect();
        if pods.len() == count && late.is_empty() {
            Ok(pods)
        } else {
            Err(format!("{} of {count}: {late:?}", pods.len()))
        }
    })
    .await
}

/// Waits until each of `names` is in the mesh, or out of it; answers how long each took. It listens and does not ask:
/// to list all pods again and again would be a good part of the work that is measured.
async fn until_enrolled(client: &Client, names: &BTreeSet<String>, wanted: bool) -> Vec<Duration> {
    let start = Instant::now();
    let mut took = BTreeMap::new();
    let api = Api::<Pod>::namespaced(client.clone(), NAMESPACE);
    let mut seen = watcher(api, watcher::Config::default()).boxed();
    while took.len() < names.len() {
        let next = tokio::time::timeout(PATIENCE.saturating_sub(start.elapsed()), seen.next()).await;
        let Ok(event) = next else {
            panic!("only {} of {} pods within {PATIENCE:?}", took.len(), names.len());
        };
        let (Ok(watcher::Event::Apply(pod)) | Ok(watcher::Event::InitApply(pod))) =
            event.expect("a watch has no end")
        else {
            continue;
        };
        let name = pod.name_any();
        if names.contains(&name) && is_enrolled(&pod) == wanted {
            took.entry(name).or_insert_with(|| start.elapsed());
        }
    }
    let mut took: Vec<Duration> = took.into_values().collect();
    took.sort();
    took
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)]
}

/// Waits until curl, which had dialled `before` times, was made to dial once more.
async fn dials_anew(curl: &curl::Curl, before: usize) {
    eventually("curl to dial anew", || async {
        let (answered, dialled) = curl.answered();
        if dialled > before { Ok(()) } else { Err(format!("{answered} requests over {dialled} connections")) }
    })
    .await;
}

/// What a namespace has that nobody but its owner may change.
fn footprint(netns: &netns::NetNs) -> String {
    let run = |command: &[&str]| {
        let mut child = std::process::Command::new(command[0]);
        let output = netns.run(|| child.args(&command[1..]).output()).unwrap().unwrap();
        assert!(output.status.success(), "{command:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    run(&["nft", "list", "ruleset"]) + &run(&["ip", "rule"]) + &run(&["ip", "-6", "rule"])
}

/// Many pods under continuous requests join, leave and join again. No request fails; once they are in, nothing of
/// theirs is readable on any link of the nodes; pods that must not be touched stay as they are, byte for byte.
#[tokio::test(flavor = "multi_thread")]
async fn many_pods_join_and_leave_under_requests_and_none_is_lost() {
    let (lab, client) = lab_with_mesh("e2m").await;
    let count = pods_wanted(32);
    let crowd: BTreeSet<String> = (0..count).map(|n| format!("p{n:03}")).collect();
    for name in &crowd {
        create(&client, &app(name, serde_json::json!({"labels": {"app": name}}), &[])).await;
    }
    let out = serde_json::json!({"labels": {"istio.io/dataplane-mode": "none"}});
    create(&client, &app("opted-out", out, &[])).await;
    let sidecar = serde_json::json!({"annotations": {"sidecar.istio.io/status": ""}});
    create(&client, &app("sidecar", sidecar, &[])).await;
    let ready = all_ready(&client, count + 2).await;

    let mut untouched = Vec::new();
    for name in ["opted-out", "sidecar"] {
        let netns = netns_of(&ready[name]).unwrap();
        // Rules of its own, as a program in it would make them.
        let own = "add table inet own { chain c { type filter hook input priority 5; tcp dport 7 drop; }; }";
        let added = netns.run(|| std::process::Command::new("nft").arg(own).status()).unwrap().unwrap();
        assert!(added.success());
        untouched.push((name, footprint(&netns), netns));
    }
    let of_nodes = |nodes: &[String]| -> Vec<String> {
        let rules = |node: &String| {
            let ns = netns::NetNs::open(format!("/run/netns/{node}")).unwrap();
            ns.run(|| std::process::Command::new("ip").arg("rule").output()).unwrap().unwrap().stdout
        };
        nodes.iter().map(|node| String::from_utf8(rules(node)).unwrap()).collect()
    };
    let nodes = ["node1", "node2"].map(|node| format!("ambit-{}-{node}", lab.name));
    let rules_of_nodes = of_nodes(&nodes);

    // Each calls two others, by pod IP, over connections that it keeps open.
    let members: Vec<&Pod> = crowd.iter().map(|name| &ready[name]).collect();
    let load = Load::start(&members, PORT);
    let ip_of = |pod: &Pod| pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap();
    let curl = curl::Curl::start(&netns_of(members[0]).unwrap(), &ip_of(members[1]), PORT);
    let ears = Eavesdropper::listen(&nodes, lab.home()).await;
    load.say("word-before");
    eventually("plaintext to be readable before", || async { ears.heard("word-before") }).await;

    for (round, quiet) in [(1, "hush-first"), (2, "hush-again")] {
        let start = Instant::now();
        let (_, dialled) = curl.answered();
        lab.label(NAMESPACE, "ambient").await;
        let took = until_enrolled(&client, &crowd, true).await;
        println!(
            "round {round}: {count} pods from label to enrolled: p50 {:?}, p99 {:?}, all {:?}",
            percentile(&took, 50),
            percentile(&took, 99),
            took.last().unwrap()
        );
        // Connections older than the enrolment end one after the other, as they become idle.
        let silent = until_silent(&load, &ears, &format!("word-old-{round}")).await;
        println!("round {round}: nothing readable {:?} after the label", silent.duration_since(start));
        dials_anew(&curl, dialled).await;
        load.say(quiet);
        let before = load.requests();
        tokio::time::sleep(WINDOW).await;
        assert!(load.requests() > before + count as u64, "the requests go on");
        load.say("word-pause");
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(ears.heard(quiet).is_err(), "{quiet} was readable: {:#?}", shown(&ears.who(quiet)));

        explained(&lab, crowd.first().unwrap());
        for (name, before, netns) in &untouched {
            assert_eq!(&footprint(netns), before, "{name} was touched");
        }
        let (_, dialled) = curl.answered();
        lab.label(NAMESPACE, "").await;
        let took = until_enrolled(&client, &crowd, false).await;
        println!("round {round}: all out after {:?}", took.last().unwrap());
        let word = format!("word-out-{round}");
        load.say(&word);
        eventually("plaintext to be readable again", || async { ears.heard(&word) }).await;
        dials_anew(&curl, dialled).await;
    }
    assert_eq!(of_nodes(&nodes), rules_of_nodes);

    let (answered, connections) = curl.stop();
    println!("curl: {answered} requests over {connections} connections, none failed");
    assert!(answered > 50, "it asked all the while");
    let result = load.stop().await;
    println!(
        "{} requests, {} over a connection dialled anew, {} of pools, {} failed",
        result.requests,
        result.again,
        result.pooled,
        result.failed.len()
    );
    assert!(result.pooled > 50, "the pools were used");
    assert!(result.failed.is_empty(), "{:#?}", shown(&result.failed));
    // The annotation goes first, the rest when the connections that the proxy held are idle.
    let last = pods(&client).await;
    for name in &crowd {
        let netns = netns_of(&last[name]).unwrap();
        eventually(&format!("{name} to be as it was"), || async {
            let left = footprint(&netns);
            if left.contains("istio") || left.contains("0x111") { Err(left) } else { Ok(()) }
        })
        .await;
    }
    said(&client, "opted-out", "NotEnrolled", "its label istio.io/dataplane-mode is none").await;
    said(&client, "sidecar", "NotEnrolled", "it has a sidecar").await;
    said(&client, crowd.first().unwrap(), "Enrolled", "the node proxy carries").await;
}

/// `ambit explain pod` tells of a pod that is in what is really there, and of one that is out why.
fn explained(lab: &TestLab, name: &str) {
    let ask = |name: &str| -> serde_json::Value {
        let text = lab.must(&["explain", "pod", &format!("{NAMESPACE}/{name}"), "-o", "json"]);
        serde_json::from_str(&text).unwrap()
    };
    let inside = ask(name);
    assert!(inside["agent"].as_str().is_some_and(|agent| agent.starts_with("ambit-agent")), "{inside}");
    assert_eq!((&inside["enrolled"], &inside["carried"]), (&true.into(), &true.into()), "{inside}");
    assert_eq!(inside["why"], "the label istio.io/dataplane-mode of its namespace is ambient");
    assert_eq!(inside["rules"].as_array().unwrap().len(), 3, "{inside}");
    assert!(inside["listeners"].as_array().unwrap().len() >= 3 && inside["since"].is_u64(), "{inside}");
    assert!(inside["events"].as_array().unwrap().iter().any(|said| said["reason"] == "Enrolled"), "{inside}");
    let out = ask("opted-out");
    assert_eq!((&out["enrolled"], &out["rules"]), (&false.into(), &serde_json::json!([])), "{out}");
    assert_eq!(out["why"], "its label istio.io/dataplane-mode is none");
    println!("{}", lab.must(&["explain", "pod", &format!("{NAMESPACE}/{name}")]));
    println!("{}", lab.must(&["explain", "pod", &format!("{NAMESPACE}/opted-out")]));
}

/// Says a new word again and again until one of them is not heard for a while.
async fn until_silent(load: &Arc<Load>, ears: &Eavesdropper, word: &str) -> Instant {
    let start = Instant::now();
    for round in 0.. {
        let since = Instant::now();
        let word = format!("{word}-{round}-");
        load.say(&word);
        tokio::time::sleep(Duration::from_secs(3)).await;
        let Ok(()) = ears.heard(&word) else { return since };
        assert!(start.elapsed() < PATIENCE, "still readable: {word}");
    }
    unreachable!("the loop has no end of its own")
}

/// As much of a list as anybody reads.
fn shown(all: &[String]) -> &[String] {
    &all[..all.len().min(20)]
}

/// An event on a pod.
async fn said(client: &Client, pod: &str, reason: &str, note: &str) {
    let events = Api::<Event>::namespaced(client.clone(), NAMESPACE);
    eventually(&format!("the event {reason} on {pod}"), || async {
        let all = events.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let of_pod =
            |event: &&Event| event.regarding.as_ref().is_some_and(|of| of.name.as_deref() == Some(pod));
        let mut notes = Vec::new();
        for event in all.iter().filter(of_pod) {
            let text = event.note.clone().unwrap_or_default();
            if event.reason.as_deref() == Some(reason) && text.contains(note) {
                return Ok(());
            }
            notes.push(text);
        }
        Err(format!("{notes:?}"))
    })
    .await;
}

/// Pods start while agents die at random. Each of them calls a pod that is in the mesh from its first moment on:
/// nothing of that is ever readable, and in the end all of them run.
#[tokio::test(flavor = "multi_thread")]
async fn pods_that_start_while_agents_die_never_speak_plaintext_and_all_run_in_the_end() {
    let (lab, client) = lab_with_mesh("e2r").await;
    let count = pods_wanted(16);
    lab.label(NAMESPACE, "ambient").await;
    create(&client, &app("sink", serde_json::json!({}), &[])).await;
    let sink = all_ready(&client, 1).await.remove("sink").unwrap();
    until_enrolled(&client, &["sink".to_owned()].into(), true).await;
    let ip = sink.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap();
    let nodes = ["node1", "node2"].map(|node| format!("ambit-{}-{node}", lab.name));
    let ears = Eavesdropper::listen(&nodes, lab.home()).await;

    let target = format!("http://{ip}:{PORT}/word-of-the-race");
    let mut seed = std::process::id();
    println!("seed {seed}");
    let mut random = move |below: u32| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (seed >> 8) % below
    };
    // A crash first, which the kubelet makes up for after a while; then pods that vanish, which are replaced at once.
    for pid in processes(&lab, "agent") {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    }
    let system = Api::<Pod>::namespaced(client.clone(), "ambit-system");
    let agents = ListParams::default().labels("app=ambit-agent");
    let mut gone = 0;
    for n in 0..count {
        let name = format!("r{n:03}");
        create(&client, &app(&name, serde_json::json!({}), &["--call", &target, "--every", "100ms"])).await;
        tokio::time::sleep(Duration::from_millis(u64::from(random(700)))).await;
        if random(3) == 0 {
            let there = system.list(&agents).await.unwrap().items;
            if !there.is_empty() {
                let victim = &there[random(there.len() as u32) as usize];
                let killed =
                    system.delete(&victim.name_any(), &DeleteParams::default().grace_period(0)).await;
                gone += usize::from(killed.is_ok());
            }
        }
    }
    let all = all_ready(&client, count + 1).await;
    until_enrolled(&client, &all.keys().cloned().collect(), true).await;
    eventually("everybody to have called", || async {
        // The sink counts what it has answered.
        let netns = netns_of(&sink).ok_or("no namespace")?;
        let text = load::get(&netns, &ip, PORT, "/metrics").await?;
        let line =
            text.lines().find(|line| line.starts_with("app_requests_total")).ok_or("no count")?.to_owned();
        let answered: u64 = line.rsplit(' ').next().and_then(|n| n.parse().ok()).ok_or("no number")?;
        if answered > 10 * count as u64 { Ok(()) } else { Err(line) }
    })
    .await;
    let who = ears.who("word-of-the-race");
    assert!(
        ears.heard("word-of-the-race").is_err(),
        "plaintext from the mesh into the mesh: {:#?}",
        shown(&who)
    );
    println!(
        "{count} pods started while agents died, 2 by a crash and {gone} with their pods; {} bytes overheard, none readable",
        ears.bytes()
    );
}
