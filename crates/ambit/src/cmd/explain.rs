//! `ambit explain pod`: whether a pod is in the mesh, why, since when, and what is really there.
//!
//! The node agent is asked, through the API server, since it alone has looked into the pod. Where none answers, what
//! the API shows is told, and said to be no more than that: an annotation is no proof.

use std::fmt::Write as _;
use std::process::ExitCode;

use anyhow::{Context, bail};
use enroll::config::STATUS_PORT;
use enroll::eligibility::{
    DEFAULT_EXCLUDED, REDIRECTION_ANNOTATION, Rules, Verdict, chosen_by, default_selectors, judge,
};
use enroll::status::PodStatus;
use k8s_openapi::api::core::v1::{Event, Namespace, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};
use serde::Serialize;
use serde_json::Value;

use crate::install::cluster::ClusterArgs;
use crate::port_forward;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Whether a pod is in the mesh, why, since when, and which plaintext connections it still has
    Pod(PodArgs),
}

#[derive(clap::Args)]
struct PodArgs {
    /// The pod, as NAMESPACE/NAME
    pod: String,
    /// How to print it
    #[arg(long, short = 'o', default_value = "text")]
    output: Output,
    /// Namespace of the mesh
    #[arg(long, short = 'n', default_value = "ambit-system")]
    namespace: String,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// All that is known of a pod.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Explanation {
    /// Who says it: the node agent's pod, or nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    agent: Option<String>,
    /// Why no node agent says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    no_agent: Option<String>,
    #[serde(flatten)]
    status: PodStatus,
    /// What the node agent has said in events, the latest last.
    events: Vec<Said>,
}

#[derive(Serialize)]
struct Said {
    #[serde(skip_serializing_if = "Option::is_none")]
    time: Option<Timestamp>,
    reason: String,
    note: String,
}

/// Runs the command.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let What::Pod(args) = args.what;
    let Some((namespace, name)) =
        args.pod.split_once('/').filter(|(ns, name)| !ns.is_empty() && !name.is_empty())
    else {
        bail!("{:?} names no pod: write NAMESPACE/NAME", args.pod);
    };
    super::block_on(async {
        let client = args.cluster.client().await?;
        let explanation = explain(&client, &args.namespace, namespace, name).await?;
        match args.output {
            Output::Json => println!("{:#}", json(&explanation)?),
            Output::Text => print!("{}", text(&explanation)),
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn explain(client: &Client, mesh: &str, namespace: &str, name: &str) -> anyhow::Result<Explanation> {
    let pods = Api::<Pod>::namespaced(client.clone(), namespace);
    let pod = pods.get_opt(name).await?.with_context(|| format!("there is no pod {namespace}/{name}"))?;
    let events = events(client, &pod).await?;
    match ask_agent(client, mesh, &pod).await {
        Ok((agent, status)) => Ok(Explanation { agent: Some(agent), no_agent: None, status, events }),
        Err(error) => {
            let status = from_api(client, mesh, &pod).await?;
            Ok(Explanation { agent: None, no_agent: Some(format!("{error:#}")), status, events })
        }
    }
}

/// The agent of the pod's node, and what it says.
async fn ask_agent(client: &Client, mesh: &str, pod: &Pod) -> anyhow::Result<(String, PodStatus)> {
    let node = node_of(pod).context("the pod has no node yet")?;
    let agents = Api::<Pod>::namespaced(client.clone(), mesh);
    let list = agents.list(&ListParams::default().labels("app=ambit-agent")).await?;
    let agent = list
        .iter()
        .find(|agent| node_of(agent) == Some(node) && agent.metadata.deletion_timestamp.is_none())
        .with_context(|| {
            format!("no node agent runs on node {node} (namespace {mesh}, label app=ambit-agent)")
        })?
        .name_any();
    let path = format!("/pods/{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    let answer = port_forward::get(&agents, &agent, STATUS_PORT, &path).await?;
    let status: PodStatus =
        serde_json::from_str(&answer).context("the node agent's answer is not understood")?;
    anyhow::ensure!(
        Some(&status.uid) == pod.metadata.uid.as_ref(),
        "the node agent still speaks of an earlier pod of that name"
    );
    Ok((agent, status))
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref()
}

/// What the API alone shows: what is wanted by the usual rules, and what was announced.
async fn from_api(client: &Client, mesh: &str, pod: &Pod) -> anyhow::Result<PodStatus> {
    let namespace = pod.namespace().unwrap_or_default();
    let of = Api::<Namespace>::all(client.clone()).get(&namespace).await?;
    let rules = Rules::new(&default_selectors(), &[DEFAULT_EXCLUDED.to_owned()], mesh)?;
    let (wanted, why) = match judge(&rules, pod, of.labels()) {
        Verdict::Enrol => (true, chosen_by(&rules, pod, of.labels())),
        Verdict::Not(reason) => (false, reason.to_string()),
    };
    Ok(PodStatus {
        namespace,
        name: pod.name_any(),
        uid: pod.uid().unwrap_or_default(),
        node: node_of(pod).unwrap_or_default().to_owned(),
        wanted,
        why,
        enrolled: pod.annotations().get(REDIRECTION_ANNOTATION).is_some_and(|value| value == "enabled"),
        ..PodStatus::default()
    })
}

async fn events(client: &Client, pod: &Pod) -> anyhow::Result<Vec<Said>> {
    let api = Api::<Event>::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let of_pod = ListParams::default().fields(&format!("involvedObject.name={}", pod.name_any()));
    let list = api.list(&of_pod).await?;
    let by_agent = |event: &&Event| {
        event.involved_object.uid == pod.metadata.uid
            && event.reporting_component.as_deref() == Some("ambit-agent")
    };
    let mut said: Vec<Said> = list
        .iter()
        .filter(by_agent)
        .map(|event| {
            let latest = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref());
            let first = event.event_time.as_ref().or(latest).map(|time| time.0);
            Said {
                time: latest
                    .map(|time| time.0)
                    .or(first)
                    .or(event.last_timestamp.as_ref().map(|time| time.0)),
                reason: event.reason.clone().unwrap_or_default(),
                note: event.message.clone().unwrap_or_default(),
            }
        })
        .collect();
    said.sort_by_key(|said| said.time);
    Ok(said)
}

/// For programs: what nobody has looked at is not there, rather than there and false.
fn json(explanation: &Explanation) -> anyhow::Result<Value> {
    let mut value = serde_json::to_value(explanation)?;
    if let (None, Some(all)) = (&explanation.agent, value.as_object_mut()) {
        for unseen in ["changing", "firewall", "rules", "listeners", "carried", "probes", "olderConnections"]
        {
            all.remove(unseen);
        }
        if let Some(said) = all.remove("enrolled") {
            all.insert("annotated".to_owned(), said);
        }
    }
    Ok(value)
}

fn text(explanation: &Explanation) -> String {
    let status = &explanation.status;
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<12}{value}");
    };
    let place =
        if status.node.is_empty() { "no node yet".to_owned() } else { format!("node {}", status.node) };
    line("pod", &format!("{}/{} on {place}", status.namespace, status.name));
    let since = status
        .since
        .and_then(|seconds| Timestamp::from_second(i64::try_from(seconds).ok()?).ok())
        .map(|time| format!(", since {time}"))
        .unwrap_or_default();
    let how = match (status.enrolled, &explanation.agent) {
        (true, Some(_)) => format!("yes{since}"),
        (false, Some(_)) if status.changing => "no, the node agent is at it at this moment".to_owned(),
        (false, Some(_)) => "no".to_owned(),
        (true, None) => "its annotation says so, which is no proof".to_owned(),
        (false, None) => "its annotation does not say so".to_owned(),
    };
    line("in the mesh", &how);
    line("wanted", &format!("{}: {}", if status.wanted { "yes" } else { "no" }, status.why));
    if let Some(problem) = &status.problem {
        line("problem", problem);
    }
    if let Some(why) = &explanation.no_agent {
        line("no agent", &format!("{why}; this is what the API alone shows, judged by the usual rules"));
    } else {
        let list = |all: Vec<String>| if all.is_empty() { "none".to_owned() } else { all.join(", ") };
        line("rules", &format!("{} ({})", list(status.rules.clone()), status.firewall));
        line("listeners", &list(status.listeners.iter().map(ToString::to_string).collect()));
        line("node proxy", if status.carried { "serves it" } else { "does not serve it" });
        line("probes", &format!("exempt: {}", list(status.probes.iter().map(ToString::to_string).collect())));
        let older = &status.older_connections;
        match older.len() {
            0 => line("plaintext", "no connection older than the enrolment is open"),
            n => line("plaintext", &format!("{n} connections older than the enrolment are open")),
        }
        for connection in older {
            let (arrow, who) =
                if connection.dialled { ("->", "dialled by the pod") } else { ("<-", "dialled by the peer") };
            line("", &format!("{} {arrow} {}, {who}", connection.local, connection.peer));
        }
    }
    for said in &explanation.events {
        let time = said.time.map(|time| format!("{time:.0} ")).unwrap_or_default();
        line("event", &format!("{time}{}: {}", said.reason, said.note));
    }
    out
}

#[cfg(test)]
mod tests;
