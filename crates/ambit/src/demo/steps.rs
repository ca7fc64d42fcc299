//! The chapters of the demo.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams};
use kube::{Client, ResourceExt};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::capture::{Overheard, eavesdrop};
use super::prometheus::{Prometheus, Target};
use super::proof::{Counters, Scraped, Seen, judge};
use super::report::{Proof, QUERY, Report, Row};
use super::{ENROLLED, MANIFESTS, PATIENCE, SCRAPE_INTERVAL, chapter, say};
use crate::cmd::dashboard;
use crate::install::cluster::ClusterArgs;
use crate::port_forward;

const MESH_NAMESPACE: &str = "ambit-system";
const SCRAPER: &str = "spiffe://cluster.local/ns/monitoring/sa/prometheus";
const NODES: usize = 2;

/// The lab of the demo, driven by the commands that users have.
pub struct Lab {
    name: String,
    binary: PathBuf,
    kubeconfig: PathBuf,
    manifests: PathBuf,
}

impl Lab {
    /// A lab that is not up yet; `directory` holds its files.
    pub fn new(name: &str, directory: &Path) -> anyhow::Result<Self> {
        let manifests = directory.join("demo.yaml");
        std::fs::write(&manifests, MANIFESTS)?;
        Ok(Self {
            name: name.to_owned(),
            binary: std::env::current_exe()?,
            kubeconfig: directory.join("kubeconfig"),
            manifests,
        })
    }

    /// Runs `ambit …` and lets its progress be seen.
    async fn ambit(&self, args: &[&str]) -> anyhow::Result<()> {
        say(&format!("$ ambit {}", args.join(" ")));
        let status = Command::new(&self.binary).args(args).stdin(Stdio::null()).status().await?;
        if !status.success() {
            bail!("`ambit {}` failed", args.join(" "));
        }
        Ok(())
    }

    async fn up(&self) -> anyhow::Result<()> {
        let (kubeconfig, manifests) = (self.kubeconfig.to_string_lossy(), self.manifests.to_string_lossy());
        let nodes = NODES.to_string();
        self.ambit(&[
            "lab",
            "up",
            "--name",
            &self.name,
            "--nodes",
            &nodes,
            "--kubeconfig",
            &kubeconfig,
            "-f",
            &manifests,
        ])
        .await
    }

    /// Takes it down, whatever state it is in.
    pub async fn down(&self) -> anyhow::Result<()> {
        self.ambit(&["lab", "down", "--name", &self.name]).await
    }

    fn node_namespaces(&self) -> Vec<String> {
        (1..=NODES).map(|node| format!("ambit-{}-node{node}", self.name)).collect()
    }
}

/// The demo while it is told.
pub struct Story<'a> {
    lab: &'a Lab,
    client: Client,
    prometheus: Prometheus,
    prometheus_pod: String,
    prometheus_node: String,
    report: Report,
    /// Pods by name with UID and restarts, before the labels.
    pods_before: BTreeMap<String, (String, i32)>,
    labelled_at: Instant,
}

impl<'a> Story<'a> {
    /// The lab comes up, and Prometheus scrapes everything in plaintext.
    pub async fn begin(lab: &'a Lab) -> anyhow::Result<Self> {
        let start = Instant::now();
        chapter("A cluster of two nodes on this machine");
        lab.up().await?;
        let cluster = ClusterArgs { kubeconfig: Some(lab.kubeconfig.clone()), context: None };
        let client = cluster.client().await?;
        say("Waiting for the pods");
        let pod = wait("every pod to be ready", || async {
            let pods = Api::<Pod>::all(client.clone()).list(&ListParams::default()).await?;
            let waiting: Vec<String> =
                pods.iter().filter(|pod| !ready(pod)).map(ResourceExt::name_any).collect();
            let prometheus = pods.items.into_iter().find(|pod| app(pod) == "prometheus");
            match prometheus {
                Some(pod) if waiting.is_empty() => Ok(Ok(pod)),
                _ => Ok(Err(format!("waiting for {}", waiting.join(", ")))),
            }
        })
        .await?;
        let prometheus_pod = pod.name_any();
        let prometheus_node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
        let prometheus =
            Prometheus::new(Api::namespaced(client.clone(), "monitoring"), prometheus_pod.clone());
        let mut story = Self {
            lab,
            client,
            prometheus,
            prometheus_pod,
            prometheus_node,
            report: Report::default(),
            pods_before: BTreeMap::new(),
            labelled_at: Instant::now(),
        };
        say("Waiting for Prometheus to scrape them all");
        let targets = story.all_up().await?;
        story.report.targets = targets.len();
        story.report.seconds.lab = start.elapsed().as_secs_f64();
        say(&format!("Prometheus scrapes {} pods by IP, all up", targets.len()));
        Ok(story)
    }

    /// One command.
    pub async fn install(&mut self) -> anyhow::Result<()> {
        let start = Instant::now();
        chapter("One command installs the mesh");
        let kubeconfig = self.lab.kubeconfig.to_string_lossy();
        self.lab.ambit(&["install", "--set", "profile=ambient", "--kubeconfig", &kubeconfig]).await?;
        self.report.seconds.install = start.elapsed().as_secs_f64();
        Ok(())
    }

    /// The state before the labels: what an eavesdropper reads.
    pub async fn before(&mut self) -> anyhow::Result<()> {
        chapter("Before: what an eavesdropper on the nodes' links reads");
        self.all_up().await?;
        let (overheard, seen) = tokio::try_join!(self.eavesdrop(), self.watch(SCRAPE_INTERVAL * 3))?;
        match &overheard.readable {
            Some(line) => say(&format!("{} bytes captured, readable: {line}", overheard.bytes)),
            None => say(&format!("{} bytes captured, nothing readable", overheard.bytes)),
        }
        self.report.wire_readable_before = overheard.readable.is_some();
        self.report.mtls_before = seen.values().filter(|seen| seen.proven()).count();
        say(&format!("scrapes in mutual TLS: {} of {}", self.report.mtls_before, self.report.targets));
        self.pods_before = self.pods().await?;
        Ok(())
    }

    /// Two labels.
    pub async fn enrol(&mut self) -> anyhow::Result<()> {
        chapter("Two labels");
        self.labelled_at = Instant::now();
        for namespace in ENROLLED {
            say(&format!("$ kubectl label namespace {namespace} istio.io/dataplane-mode=ambient"));
            let patch = serde_json::json!({"metadata": {"labels": {"istio.io/dataplane-mode": "ambient"}}});
            let namespaces = Api::<Namespace>::all(self.client.clone());
            namespaces.patch(namespace, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        say("Waiting until both proxies have seen every scrape as mutual TLS");
        let earlier = self.counters().await?;
        wait("every scrape to be mutual TLS", || async {
            let seen = self.judge(&earlier, &self.counters().await?).await?;
            let open = seen.iter().filter(|(_, seen)| !seen.proven());
            let open: Vec<&str> = open.map(|(pod, _)| pod.pod.as_str()).collect();
            Ok(if open.is_empty() { Ok(()) } else { Err(format!("not proven yet: {}", open.join(", "))) })
        })
        .await?;
        self.report.seconds.enrol = self.labelled_at.elapsed().as_secs_f64();
        say(&format!("Done after {:.1} s", self.report.seconds.enrol));
        Ok(())
    }

    /// The state after them, measured anew over some scrape intervals.
    pub async fn after(&mut self) -> anyhow::Result<Report> {
        chapter("After: the same, measured again");
        let (overheard, seen) = tokio::try_join!(self.eavesdrop(), self.watch(SCRAPE_INTERVAL * 3))?;
        if overheard.tunnel_bytes == 0 {
            bail!("the eavesdropper saw no tunnel traffic at all: the capture proves nothing");
        }
        match &overheard.readable {
            Some(line) => say(&format!("{} bytes captured, still readable: {line}", overheard.bytes)),
            None => say(&format!(
                "{} bytes captured, {} of them in tunnels, nothing of a scrape readable",
                overheard.bytes, overheard.tunnel_bytes
            )),
        }
        let targets = self.prometheus.targets("pods").await?;
        let up: BTreeSet<&str> =
            targets.iter().filter(|target| target.health == "up").map(|target| target.label("pod")).collect();
        let report = &mut self.report;
        report.wire_readable_after = overheard.readable.is_some();
        report.targets = targets.len();
        report.up = up.len();
        report.mtls_after =
            seen.iter().filter(|(pod, seen)| seen.proven() && up.contains(pod.pod.as_str())).count();
        report.plaintext_after = seen.values().filter(|seen| seen.plaintext > 0.0).count();
        for (pod, seen) in seen.iter().filter(|(_, seen)| !seen.proven() || seen.plaintext > 0.0) {
            say(&format!("{}/{} on {}: {seen:?}", pod.namespace, pod.pod, pod.node));
        }
        let now = self.pods().await?;
        self.report.pods_restarted =
            self.pods_before.iter().filter(|(pod, was)| now.get(*pod) != Some(was)).count();
        let window = self.labelled_at.elapsed().as_secs() + 1;
        let failed = format!(
            "sum(count_over_time(up{{job=\"pods\"}}[{window}s])) - sum(sum_over_time(up{{job=\"pods\"}}[{window}s]))"
        );
        self.report.scrapes_failed_while_enrolling = self.prometheus.number(&failed).await? as u64;
        self.report.query = self.query().await?;
        self.report.proof = self.proof().await?;
        Ok(self.report.clone())
    }

    /// Everything stays up until Ctrl-C.
    pub async fn stay(&self) -> anyhow::Result<()> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), "monitoring");
        let port = port_forward::forward(pods, self.prometheus_pod.clone(), 9090).await?;
        chapter("The lab stays up until Ctrl-C");
        let mesh = Api::<Pod>::namespaced(self.client.clone(), MESH_NAMESPACE);
        let observer = dashboard::observer(&mesh).await?;
        let pages = port_forward::forward(mesh, observer, dashboard::PORT).await?;
        say(&format!("Ambit        http://127.0.0.1:{pages}/"));
        say(&format!("Prometheus   http://127.0.0.1:{port}/graph"));
        say(&format!("kubectl      export KUBECONFIG={}", self.lab.kubeconfig.display()));
        std::future::pending().await
    }

    /// The targets of the applications, once all of them are up and there is one for each annotated pod.
    async fn all_up(&self) -> anyhow::Result<Vec<Target>> {
        let wanted = self.scraped().await?.len();
        wait("every target to be up", || async {
            let targets = self.prometheus.targets("pods").await?;
            let down = targets.iter().find(|target| target.health != "up");
            Ok(match down {
                None if targets.len() == wanted => Ok(targets),
                None => Err(format!("{} of {wanted} targets known", targets.len())),
                Some(down) => Err(format!("{} is {}: {}", down.label("pod"), down.health, down.last_error)),
            })
        })
        .await
    }

    async fn eavesdrop(&self) -> anyhow::Result<Overheard> {
        eavesdrop(&self.lab.node_namespaces(), SCRAPE_INTERVAL * 3).await
    }

    /// What both proxies see of every scrape within `duration`.
    async fn watch(&self, duration: Duration) -> anyhow::Result<BTreeMap<Scraped, Seen>> {
        let before = self.counters().await?;
        sleep(duration).await;
        self.judge(&before, &self.counters().await?).await
    }

    async fn judge(
        &self,
        before: &BTreeMap<String, Counters>,
        now: &BTreeMap<String, Counters>,
    ) -> anyhow::Result<BTreeMap<Scraped, Seen>> {
        let nothing = Counters::default();
        let grown = now.iter().map(|(node, now)| {
            let growth = now.growth(before.get(node).unwrap_or(&nothing));
            (node.clone(), growth.map(|(labels, bytes)| (labels.clone(), bytes)).collect())
        });
        Ok(judge(&self.scraped().await?, (&self.prometheus_node, SCRAPER), &grown.collect()))
    }

    /// The counters of each node's proxy.
    async fn counters(&self) -> anyhow::Result<BTreeMap<String, Counters>> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), MESH_NAMESPACE);
        let mut counters = BTreeMap::new();
        for pod in pods.list(&ListParams::default().labels("app=ztunnel")).await? {
            let text = port_forward::get(&pods, &pod.name_any(), 15020, "/metrics").await?;
            let node = pod.spec.and_then(|spec| spec.node_name).unwrap_or_default();
            counters.insert(node, Counters::parse(&text));
        }
        Ok(counters)
    }

    /// The application pods that ask to be scraped.
    async fn scraped(&self) -> anyhow::Result<BTreeSet<Scraped>> {
        let pods = Api::<Pod>::all(self.client.clone()).list(&ListParams::default()).await?;
        let asks = |pod: &&Pod| {
            pod.annotations().get("prometheus.io/scrape").is_some_and(|value| value == "true")
                && pod.namespace().as_deref() != Some(MESH_NAMESPACE)
                && pod.metadata.deletion_timestamp.is_none()
        };
        Ok(pods.iter().filter(asks).map(scraped).collect())
    }

    async fn pods(&self) -> anyhow::Result<BTreeMap<String, (String, i32)>> {
        let pods = Api::<Pod>::all(self.client.clone()).list(&ListParams::default()).await?;
        let restarts = |pod: &Pod| {
            let containers = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
            containers.into_iter().flatten().map(|container| container.restart_count).sum()
        };
        let of_applications = pods.iter().filter(|pod| pod.namespace().as_deref() != Some(MESH_NAMESPACE));
        Ok(of_applications
            .map(|pod| (pod.name_any(), (pod.uid().unwrap_or_default(), restarts(pod))))
            .collect())
    }

    /// The observer's scrape proof. What it saw in plaintext just before the labels is still within its window for
    /// some seconds.
    async fn proof(&self) -> anyhow::Result<Proof> {
        let pods = Api::<Pod>::namespaced(self.client.clone(), MESH_NAMESPACE);
        let observer = dashboard::observer(&pods).await?;
        wait("the observer to prove every scrape", || async {
            let text = port_forward::get(&pods, &observer, dashboard::PORT, "/api/v1/targets").await?;
            let mut targets: serde_json::Value = serde_json::from_str(&text)?;
            let proof: Proof = serde_json::from_value(targets["summary"].take())?;
            let all = proof.total > self.report.targets as u64 && proof.proven == proof.total;
            Ok(if all { Ok(proof) } else { Err(format!("{proof:?}")) })
        })
        .await
    }

    /// The query of the article, once Prometheus' own scrapes of the proxies have brought it every workload.
    async fn query(&self) -> anyhow::Result<Vec<Row>> {
        let wanted: BTreeSet<String> = self.scraped().await?.into_iter().map(|pod| pod.workload).collect();
        wait("Prometheus to know every workload", || async {
            let samples = self.prometheus.query(QUERY).await?;
            let label = |sample: &super::prometheus::Sample, name: &str| {
                sample.labels.get(name).cloned().unwrap_or_default()
            };
            let rows: Vec<Row> = samples
                .iter()
                .map(|sample| Row {
                    destination_workload: label(sample, "destination_workload"),
                    connection_security_policy: label(sample, "connection_security_policy"),
                    bytes: sample.value as u64,
                })
                .collect();
            let known: BTreeSet<String> = rows.iter().map(|row| row.destination_workload.clone()).collect();
            Ok(match wanted.difference(&known).next() {
                None => Ok(sorted(rows)),
                Some(missing) => Err(format!("no series for {missing} yet")),
            })
        })
        .await
    }
}

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by(|a, b| a.destination_workload.cmp(&b.destination_workload));
    rows
}

fn app(pod: &Pod) -> &str {
    pod.labels().get("app").map_or("", String::as_str)
}

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

fn scraped(pod: &Pod) -> Scraped {
    let namespace = pod.namespace().unwrap_or_default();
    let spec = pod.spec.clone().unwrap_or_default();
    let account = spec.service_account_name.unwrap_or_else(|| "default".to_owned());
    let owner = pod.owner_references().first().map_or_else(|| pod.name_any(), |owner| owner.name.clone());
    let hash = pod.labels().get("pod-template-hash").map(|hash| format!("-{hash}"));
    let workload = hash.and_then(|hash| owner.strip_suffix(&hash).map(str::to_owned)).unwrap_or(owner);
    Scraped {
        pod: pod.name_any(),
        workload,
        identity: format!("spiffe://cluster.local/ns/{namespace}/sa/{account}"),
        node: spec.node_name.unwrap_or_default(),
        namespace,
    }
}

/// Asks until the answer is there; when patience is over, says what was still missing.
async fn wait<T, F>(what: &str, mut ask: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = anyhow::Result<Result<T, String>>>,
{
    let deadline = Instant::now() + PATIENCE;
    let mut said = String::new();
    loop {
        let missing = match ask().await {
            Ok(Ok(answer)) => return Ok(answer),
            Ok(Err(missing)) => missing,
            // The pod may not serve yet.
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() > deadline {
            return Err(anyhow::anyhow!(missing)).with_context(|| format!("no longer waiting for {what}"));
        }
        if missing != said {
            tracing::debug!(what, missing, "waiting");
            said = missing;
        }
        sleep(Duration::from_millis(500)).await;
    }
}
