//! The Node object: registering it, its status, and the Lease that says the node lives.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{Node, NodeSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::node::config::Config;

/// How often the Lease is renewed; it is good for four times as long.
const LEASE_EVERY: Duration = Duration::from_secs(10);
/// How many renewals pass between two reports of the status.
const STATUS_EVERY: u32 = 6;
/// How long a call may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// What it passes for; the API it speaks is that of this version.
const VERSION: &str = "v1.33.0";

/// Registers the node and keeps it alive for as long as the task runs.
pub async fn keep(config: Config, client: Client, port: Option<u16>) {
    let mut ticks = tokio::time::interval(LEASE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut uid = None;
    let mut since_status = 0;
    loop {
        ticks.tick().await;
        let beat = async {
            if uid.is_none() || since_status >= STATUS_EVERY {
                uid = Some(register(&config, &client, port).await?);
                since_status = 0;
            }
            since_status += 1;
            renew(&config, &client, uid.as_deref().unwrap_or_default()).await
        };
        let outcome = tokio::time::timeout(TIMEOUT, beat).await;
        if let Err(error) = outcome.unwrap_or_else(|_| Err(anyhow::anyhow!("the API server does not answer")))
        {
            tracing::warn!(node = %config.name, error = format!("{error:#}"), "cannot report the node");
            uid = None;
            ticks.reset_after(Duration::from_secs(1));
        }
    }
}

/// Makes the Node object if it is not there, and reports its labels and status; answers its UID.
async fn register(config: &Config, client: &Client, port: Option<u16>) -> anyhow::Result<String> {
    let nodes: Api<Node> = Api::all(client.clone());
    let found = nodes.get_opt(&config.name).await.context("cannot read the Node")?;
    if found.is_none() {
        let cidr = config.pod_cidr.trunc().to_string();
        let node = Node {
            metadata: ObjectMeta {
                name: Some(config.name.clone()),
                labels: Some(labels(config)),
                ..ObjectMeta::default()
            },
            spec: Some(NodeSpec {
                pod_cidr: Some(cidr.clone()),
                pod_cidrs: Some(vec![cidr]),
                ..NodeSpec::default()
            }),
            status: None,
        };
        match nodes.create(&PostParams::default(), &node).await {
            Ok(_) => tracing::info!(node = %config.name, "registered"),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error).context("cannot register the Node"),
        }
    } else {
        let patch = Patch::Merge(json!({"metadata": {"labels": labels(config)}}));
        nodes.patch(&config.name, &PatchParams::default(), &patch).await.context("cannot label the Node")?;
    }
    let patch = Patch::Merge(json!({"status": status(config, port, found.as_ref(), Timestamp::now())}));
    let node = nodes
        .patch_status(&config.name, &PatchParams::default(), &patch)
        .await
        .context("cannot report the Node's status")?;
    node.metadata.uid.context("the API server gave the Node no UID")
}

fn labels(config: &Config) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::from(
        [
            ("kubernetes.io/hostname", config.name.as_str()),
            ("kubernetes.io/os", "linux"),
            ("kubernetes.io/arch", arch()),
            ("ambit.dev/lab", config.lab.as_str()),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned())),
    );
    labels.extend(config.labels.clone());
    labels
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The status; conditions that have not changed keep their time, and those of others are kept.
fn status(config: &Config, port: Option<u16>, before: Option<&Node>, now: Timestamp) -> Value {
    let old = before.and_then(|n| n.status.as_ref()).and_then(|s| s.conditions.clone()).unwrap_or_default();
    let own = [
        ("Ready", "True", "KubeletReady", "the lab's kubelet runs pods"),
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "the lab does not evict"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "the lab does not evict"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "the lab does not evict"),
    ];
    let mut conditions: Vec<Value> = own
        .iter()
        .map(|(kind, status, reason, message)| {
            let since = old
                .iter()
                .find(|c| c.type_ == *kind && c.status == *status)
                .and_then(|c| c.last_transition_time.as_ref())
                .map_or(now, |t| t.0);
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                "lastHeartbeatTime": format!("{now:.0}"), "lastTransitionTime": format!("{since:.0}")})
        })
        .collect();
    conditions.extend(
        old.iter()
            .filter(|c| own.iter().all(|(kind, ..)| c.type_ != *kind))
            .filter_map(|c| serde_json::to_value(c).ok()),
    );
    let capacity = json!({
        "cpu": cpus().to_string(),
        "memory": format!("{}Ki", memory_ki()),
        "ephemeral-storage": "100Gi",
        "pods": "250",
    });
    let mut status = json!({
        "addresses": [
            {"type": "InternalIP", "address": config.ip.to_string()},
            // Where an API server on this machine finds the kubelet's port.
            {"type": "Hostname", "address": "127.0.0.1"},
        ],
        "capacity": capacity,
        "allocatable": capacity,
        "conditions": conditions,
        "nodeInfo": {
            "architecture": arch(),
            "operatingSystem": "linux",
            "osImage": os_image(),
            "kernelVersion": read("/proc/sys/kernel/osrelease"),
            "kubeletVersion": VERSION,
            "kubeProxyVersion": VERSION,
            "containerRuntimeVersion": "runc://1.1",
            "machineID": read("/etc/machine-id"),
            "systemUUID": read("/etc/machine-id"),
            "bootID": read("/proc/sys/kernel/random/boot_id"),
        },
    });
    if let Some(port) = port {
        status["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": port}});
    }
    status
}

async fn renew(config: &Config, client: &Client, uid: &str) -> anyhow::Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let now = MicroTime(Timestamp::now());
    let patch = Patch::Merge(json!({"spec": {"renewTime": now, "holderIdentity": config.name}}));
    match leases.patch(&config.name, &PatchParams::default(), &patch).await {
        Ok(_) => return Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(error).context("cannot renew the Lease"),
    }
    let lease = Lease {
        metadata: ObjectMeta {
            name: Some(config.name.clone()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: config.name.clone(),
                uid: uid.to_owned(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(config.name.clone()),
            lease_duration_seconds: Some(40),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    };
    match leases.create(&PostParams::default(), &lease).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        Err(error) => Err(error).context("cannot make the Lease"),
    }
}

/// What the node has of a resource, in thousandths.
pub fn capacity(resource: &str) -> Option<i128> {
    match resource {
        "cpu" => Some(i128::from(cpus()) * 1000),
        "memory" => Some(i128::from(memory_ki()) * 1024 * 1000),
        "ephemeral-storage" => Some((100i128 << 30) * 1000),
        _ => None,
    }
}

fn cpus() -> u64 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u64)
}

fn memory_ki() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemTotal:"));
    line.and_then(|l| l.split_whitespace().next()).and_then(|n| n.parse().ok()).unwrap_or(0)
}

fn os_image() -> String {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    name.map_or_else(|| "Linux".to_owned(), |n| n.trim_matches('"').to_owned())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            lab: "l".into(),
            name: "node-1".into(),
            netns: "/run/netns/ambit-l-node-1".into(),
            ip: "10.89.0.2".parse().unwrap(),
            pod_cidr: "10.244.0.0/24".parse().unwrap(),
            cluster_cidr: "10.244.0.0/16".parse().unwrap(),
            service_cidr: "10.96.0.0/16".parse().unwrap(),
            dns_ip: "10.96.0.10".parse().unwrap(),
            kubeconfig: "/nowhere".into(),
            state_dir: "/nowhere".into(),
            binary: "/nowhere".into(),
            labels: BTreeMap::from([("topology.kubernetes.io/zone".to_owned(), "a".to_owned())]),
        }
    }

    #[test]
    fn a_node_says_where_it_is_and_that_it_is_ready() {
        let status = status(&config(), Some(4242), None, Timestamp::UNIX_EPOCH);
        assert_eq!(status["addresses"][0], json!({"type": "InternalIP", "address": "10.89.0.2"}));
        assert_eq!(status["daemonEndpoints"]["kubeletEndpoint"]["Port"], 4242);
        assert_eq!(status["conditions"][0]["type"], "Ready");
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
    }

    #[test]
    fn conditions_keep_their_time_and_those_of_others_stay() {
        let before: Node = serde_json::from_value(json!({"metadata": {}, "status": {"conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"},
            {"type": "Other", "status": "True"}]}}))
        .unwrap();
        let status = status(&config(), None, Some(&before), Timestamp::UNIX_EPOCH);
        assert_eq!(status["conditions"][0]["lastTransitionTime"], "2026-01-01T00:00:00Z");
        assert_eq!(status["conditions"][4]["type"], "Other");
    }

    #[test]
    fn a_node_carries_the_labels_it_was_given() {
        let labels = labels(&config());
        assert_eq!(labels["topology.kubernetes.io/zone"], "a");
        assert_eq!(labels["kubernetes.io/hostname"], "node-1");
    }
}
