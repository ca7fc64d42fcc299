//! The foreign proxy gets everything it needs: readiness, state, certificates, pods, and all of it again after a death.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Api, Patch, PatchParams};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::{eventually, processes};
use crate::traffic::{answering, ask, pair};
use crate::world::{NAMESPACE, PORT, Side, World};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// The names in a list of a dump.
fn names(dump: &Value, list: &str, key: &str) -> BTreeSet<String> {
    let items = dump[list].as_array().unwrap_or_else(|| panic!("{list} is a list"));
    items.iter().map(|item| item[key].as_str().unwrap_or_default().to_owned()).collect()
}

/// Accounts with a certificate in hand.
fn certified(dump: &Value) -> BTreeSet<String> {
    let all = dump["certificates"].as_array().expect("certificates is a list");
    let good = all.iter().filter(|one| one["state"] == "Available");
    good.map(|one| one["identity"].as_str().unwrap().to_owned()).collect()
}

/// Names of pods whose listeners stand.
fn up(dump: &Value) -> BTreeSet<String> {
    let all = dump["workloadState"].as_object().expect("workloadState is an object");
    let up = all.values().filter(|pod| pod["state"] == "Up");
    up.map(|pod| pod["info"]["name"].as_str().unwrap().to_owned()).collect()
}

fn set(items: &[&str]) -> BTreeSet<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

async fn scale(world: &World, replicas: i32) {
    let sets = Api::<Deployment>::namespaced(world.client.clone(), "ambit-system");
    let patch = json!({"spec": {"replicas": replicas}});
    sets.patch("ambit-control", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    eventually("the control plane to be scaled", || async {
        let ready = sets.get("ambit-control").await.unwrap().status.and_then(|status| status.ready_replicas);
        let alive = processes(&world.lab, "control").len();
        if ready.unwrap_or(0) == replicas && alive == usize::try_from(replicas).unwrap() {
            Ok(())
        } else {
            Err(format!("{ready:?} ready, {alive} alive"))
        }
    })
    .await;
}

/// Waits until what the foreign proxy knows of this list is what ours knows.
async fn both_know(world: &World, list: &str, key: &str) -> BTreeSet<String> {
    eventually(&format!("both proxies to know the same {list}"), || async {
        let [foreign, ours] = [
            names(&world.dump(Side::Foreign).await, list, key),
            names(&world.dump(Side::Ours).await, list, key),
        ];
        if foreign == ours { Ok(ours) } else { Err(format!("foreign {foreign:?}, ours {ours:?}")) }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a foreign proxy in AMBIT_FOREIGN_PROXY"]
async fn a_foreign_proxy_is_given_state_certificates_and_pods() {
    let mut world = World::new("z1f").await;
    let workloads = both_know(&world, "workloads", "uid").await;
    for name in ["foreign-0", "foreign-1", "ours-0", "ours-1"] {
        assert!(workloads.contains(&format!("Kubernetes//Pod/{NAMESPACE}/{name}")), "{workloads:?}");
    }
    let services = both_know(&world, "services", "hostname").await;
    assert!(services.contains(&format!("foreign.{NAMESPACE}.svc.cluster.local")), "{services:?}");

    let dump = world.dump(Side::Foreign).await;
    assert_eq!(up(&dump), set(&["foreign-0", "foreign-1"]));
    for number in 0..2 {
        let identity = world.place(Side::Foreign, number).identity();
        assert!(certified(&dump).contains(&identity), "{:?}", certified(&dump));
    }

    // A pod that comes later, and goes again.
    world.start(Side::Foreign, "late").await;
    let identity = world.named("late").identity();
    eventually("the late pod's listeners and certificate", || async {
        let dump = world.dump(Side::Foreign).await;
        let there = up(&dump).contains("late") && certified(&dump).contains(&identity);
        if there { Ok(()) } else { Err(format!("{:?} {:?}", up(&dump), certified(&dump))) }
    })
    .await;
    world.delete("late").await;
    eventually("the late pod to be forgotten", || async {
        let dump = world.dump(Side::Foreign).await;
        if up(&dump) == set(&["foreign-0", "foreign-1"]) && !certified(&dump).contains(&identity) {
            Ok(())
        } else {
            Err(format!("{:?} {:?}", up(&dump), certified(&dump)))
        }
    })
    .await;
    let refused: Vec<_> = refusals(&world.log(Side::Foreign).await);
    assert!(refused.is_empty(), "the foreign proxy refused what it was sent: {refused:#?}");
}

/// What a ztunnel logs when it rejects a resource or a message.
fn refusals(log: &str) -> Vec<String> {
    let says = |line: &&str| {
        ["rejected", "NACK", "nack", "protocol error", "failed to read message"]
            .iter()
            .any(|word| line.contains(word))
    };
    log.lines().filter(says).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs a foreign proxy in AMBIT_FOREIGN_PROXY"]
async fn a_foreign_proxy_outlives_the_deaths_of_control_plane_and_agent() {
    let mut world = World::new("z1d").await;
    let [foreign, ours] = Side::BOTH.map(|side| world.place(side, 0));
    let _answering = [answering(foreign.listen(PORT)), answering(ours.listen(PORT))];
    let listener = foreign.listen(9000);
    let (mut client, mut server) = pair(ours, foreign.at(9000), &listener).await;

    // While there is no control plane, what is known goes on, and what goes meanwhile is not missed.
    scale(&world, 0).await;
    world.delete("foreign-1").await;
    assert_eq!(ask(world.place(Side::Foreign, 0), ours.at(PORT), "no control").await.unwrap(), "NO CONTROL");
    assert_eq!(ask(world.place(Side::Ours, 0), foreign.at(PORT), "plane").await.unwrap(), "PLANE");
    scale(&world, 1).await;
    let gone = format!("Kubernetes//Pod/{NAMESPACE}/foreign-1");
    eventually("what went meanwhile to be forgotten", || async {
        let known = names(&world.dump(Side::Foreign).await, "workloads", "uid");
        if known.contains(&gone) { Err(format!("{known:?}")) } else { Ok(()) }
    })
    .await;
    both_know(&world, "workloads", "uid").await;

    // Agents die: nothing that runs notices, and pods join as before once they are back.
    let victims = processes(&world.lab, "agent");
    assert!(!victims.is_empty());
    for pid in &victims {
        kill(Pid::from_raw(*pid), Signal::SIGKILL).unwrap();
    }
    eventually("the agents to come back", || async {
        let now = processes(&world.lab, "agent");
        let fresh = now.len() == victims.len() && now.iter().all(|pid| !victims.contains(pid));
        if fresh { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    client.write_all(b"still").await.unwrap();
    let mut heard = [0; 5];
    server.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still", "the connection from before is the same");
    let ours = ours.at(PORT);
    let late = world.start(Side::Foreign, "late").await;
    let answer = ask(late, ours, "late").await;
    assert_eq!(answer.unwrap(), "LATE", "{}", world.log(Side::Foreign).await);
    assert!(world.log(Side::Foreign).await.lines().all(|line| !line.contains("panicked")));
}
