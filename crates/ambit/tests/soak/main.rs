//! The mesh under everything at once: requests as fast as they go between stable pods, while other pods are created,
//! relabelled and deleted without pause and the control plane is killed again and again. No request fails, and
//! afterwards proxies and agents hold no more memory and descriptors than before.
//!
//! `AMBIT_SOAK_SECONDS` says how long; the short default is for every day, `cargo xtask soak` runs ten minutes.

mod load;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use load::Load;
use netns::NetNs;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use support::{PATIENCE, TestLab, eventually, processes};

const STABLE: &str = "steady";
const CROWD: &str = "crowd";
const PORT: u16 = 8080;
const MODE: &str = "istio.io/dataplane-mode";
/// Descriptors that may differ: a connection that is just being made, a file that is just being read.
const DESCRIPTORS: usize = 20;
/// What an allocator keeps for later, in MiB, beside a quarter of what there was.
const KEPT: u64 = 24;

fn app(namespace: &str, name: &str) -> Pod {
    let port = PORT.to_string();
    let args = ["lab", "app", "--name", name, "--port", &port];
    let pod = serde_json::json!({
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "app", "image": "ambit", "args": args,
                "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 1}}],
        },
    });
    serde_json::from_value(pod).unwrap()
}

/// A namespace in the mesh.
async fn namespace(client: &Client, name: &str) {
    let namespace = serde_json::json!({"metadata": {"name": name, "labels": {MODE: "ambient"}}});
    let api = Api::<Namespace>::all(client.clone());
    api.create(&PostParams::default(), &serde_json::from_value(namespace).unwrap()).await.unwrap();
}

async fn create(pods: &Api<Pod>, pod: &Pod) {
    eventually("the pod to be made", || async {
        pods.create(&PostParams::default(), pod).await.map(drop).map_err(|error| error.to_string())
    })
    .await;
}

async fn until(pods: &Api<Pod>, name: &str, what: &str, holds: impl Fn(&Pod) -> bool) -> Pod {
    eventually(&format!("{name} to be {what}"), || async {
        match pods.get(name).await {
            Ok(pod) if holds(&pod) => Ok(pod),
            Ok(pod) => Err(format!("{:?} {:?}", pod.annotations(), pod.status)),
            Err(error) => Err(error.to_string()),
        }
    })
    .await
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn is_enrolled(pod: &Pod) -> bool {
    pod.annotations().get("ambient.istio.io/redirection").is_some_and(|value| value == "enabled")
}

fn ip_of(pod: &Pod) -> std::net::IpAddr {
    pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()).unwrap().parse().unwrap()
}

/// Pods live, change and die, one after the other, until `end`; how many did.
async fn churn(client: Client, from: NetNs, lane: usize, end: Instant) -> usize {
    let pods = Api::<Pod>::namespaced(client, CROWD);
    let mut count = 0;
    while Instant::now() < end {
        let name = format!("p{lane}-{count}");
        create(&pods, &app(CROWD, &name)).await;
        let pod = until(&pods, &name, "ready and enrolled", |pod| is_ready(pod) && is_enrolled(pod)).await;
        // It is called, so that tunnels to it must go with it.
        let to = std::net::SocketAddr::new(ip_of(&pod), PORT);
        // While there is no control plane nobody can have heard of it: then the first answer comes a bit later.
        eventually("an answer of the new pod", || load::once(&from, to)).await;
        let relabel = async |value: serde_json::Value| {
            let patch =
                serde_json::json!({"metadata": {"labels": {MODE: value, "round": count.to_string()}}});
            pods.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        };
        relabel("none".into()).await;
        until(&pods, &name, "out of the mesh", |pod| !is_enrolled(pod)).await;
        relabel(serde_json::Value::Null).await;
        until(&pods, &name, "in the mesh again", is_enrolled).await;
        pods.delete(&name, &DeleteParams::default()).await.unwrap();
        eventually("it to be gone", || async {
            match pods.get_opt(&name).await {
                Ok(None) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
        count += 1;
    }
    count
}

/// The control plane dies without a word, and its pod with it: a new one takes over. How often.
async fn killer(lab: &TestLab, client: &Client, every: Duration, end: Instant) -> usize {
    let pods = Api::<Pod>::namespaced(client.clone(), "ambit-system");
    let mut count = 0;
    while Instant::now() + every < end {
        tokio::time::sleep(every).await;
        let victims = processes(lab, "control");
        for pid in &victims {
            // Gone already is as good.
            let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
        }
        // A container that is killed again and again is started later each time; a new pod is not.
        let list = pods.list(&ListParams::default().labels("app=ambit-control")).await.unwrap();
        assert!(!list.items.is_empty(), "the control plane has a pod");
        for pod in list {
            let _ = pods.delete(&pod.name_any(), &DeleteParams::default().grace_period(0)).await;
        }
        eventually("another control plane", || async {
            let now = processes(lab, "control");
            let fresh = !now.is_empty() && now.iter().all(|pid| !victims.contains(pid));
            if fresh { Ok(()) } else { Err(format!("{now:?}")) }
        })
        .await;
        count += 1;
    }
    count
}

/// Memory and descriptors of a process.
#[derive(Clone, Debug)]
struct Holds {
    descriptors: usize,
    mib: u64,
}

/// What proxies and agents hold, by name and process id: one that was replaced is another.
fn holdings(lab: &TestLab) -> BTreeMap<(&'static str, i32), Holds> {
    let mut all = BTreeMap::new();
    for name in ["proxy", "agent"] {
        for pid in processes(lab, name) {
            let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count);
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
            let kib = resident.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u64>().ok());
            all.insert((name, pid), Holds { descriptors, mib: kib.unwrap_or_default() / 1024 });
        }
    }
    all
}

/// A while of everything at once; what the load did.
async fn storm(
    lab: &TestLab,
    client: &Client,
    stable: &[Pod],
    time: Duration,
    every: Duration,
) -> load::Outcome {
    let netns: Vec<NetNs> =
        stable.iter().map(|pod| support::netns_of(pod).expect("it has a process")).collect();
    let load = Load::start(&netns, &stable.iter().map(ip_of).collect::<Vec<_>>(), PORT);
    let end = Instant::now() + time;
    let lanes = (0..2).map(|lane| tokio::spawn(churn(client.clone(), netns[lane].clone(), lane, end)));
    let (lanes, killed) = tokio::join!(futures::future::join_all(lanes), killer(lab, client, every, end));
    tokio::time::sleep(end.saturating_duration_since(Instant::now())).await;
    let lived: usize = lanes.into_iter().map(|lane| lane.expect("the churn goes on")).sum();
    let outcome = load.stop().await;
    println!(
        "{:?}: {} requests on kept and {} on new connections, {} failed; {lived} pods lived and died; the control \
         plane was killed {killed} times",
        time,
        outcome.kept,
        outcome.new,
        outcome.failed.len()
    );
    assert!(lived > 0 && killed > 0, "something happens meanwhile");
    outcome
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_to_a_stable_pod_fails_and_nothing_leaks_while_everything_else_changes() {
    let seconds = std::env::var("AMBIT_SOAK_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    let time = Duration::from_secs(seconds);
    let every = if seconds >= 120 { Duration::from_secs(30) } else { Duration::from_secs(10) };
    let lab = TestLab::new("p2s");
    lab.must(&["lab", "up", "--name", &lab.name]);
    lab.must(&["install"]);
    let client = lab.client().await;
    namespace(&client, STABLE).await;
    namespace(&client, CROWD).await;
    let pods = Api::<Pod>::namespaced(client.clone(), STABLE);
    let mut stable = Vec::new();
    for name in ["s0", "s1", "s2", "s3"] {
        create(&pods, &app(STABLE, name)).await;
    }
    for name in ["s0", "s1", "s2", "s3"] {
        stable.push(until(&pods, name, "ready and enrolled", |pod| is_ready(pod) && is_enrolled(pod)).await);
    }

    // Once through everything, so that what is compared is two states after load, not a cold and a warm one.
    let warm = storm(&lab, &client, &stable, Duration::from_secs(15), Duration::from_secs(6)).await;
    assert!(warm.failed.is_empty(), "{:#?}", &warm.failed[..warm.failed.len().min(20)]);
    let before = settled(&lab).await;
    let outcome = storm(&lab, &client, &stable, time, every).await;
    assert!(outcome.failed.is_empty(), "{:#?}", &outcome.failed[..outcome.failed.len().min(20)]);
    assert!(outcome.kept + outcome.new > 10 * seconds, "the requests go on");

    let within = |before: &Holds, now: &Holds| {
        now.descriptors <= before.descriptors + DESCRIPTORS && now.mib <= before.mib + before.mib / 4 + KEPT
    };
    eventually("memory and descriptors to be back", || async {
        let now = holdings(&lab);
        let back = now.len() == before.len()
            && before.iter().all(|(who, held)| now.get(who).is_some_and(|now| within(held, now)));
        if back { Ok(()) } else { Err(format!("before {before:#?}, now {now:#?}")) }
    })
    .await;
    for (who, now) in holdings(&lab) {
        let was = &before[&who];
        println!(
            "{} {}: {} descriptors before, {} after; {} MiB before, {} MiB after",
            who.0, who.1, was.descriptors, now.descriptors, was.mib, now.mib
        );
    }
    for pod in &stable {
        let now = pods.get(&pod.name_any()).await.unwrap();
        assert!(
            is_enrolled(&now) && is_ready(&now) && now.uid() == pod.uid(),
            "{} is as it was",
            pod.name_any()
        );
    }
}

/// What is held once descriptors no longer change.
async fn settled(lab: &TestLab) -> BTreeMap<(&'static str, i32), Holds> {
    let start = Instant::now();
    let count = |all: &BTreeMap<_, Holds>| all.values().map(|held| held.descriptors).sum::<usize>();
    let mut last = holdings(lab);
    loop {
        tokio::time::sleep(Duration::from_secs(2)).await;
        let now = holdings(lab);
        if count(&now) == count(&last) || start.elapsed() > PATIENCE {
            return now;
        }
        last = now;
    }
}
