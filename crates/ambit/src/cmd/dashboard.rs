//! `ambit dashboard`: the observer's pages on a loopback port, through the API server.

use std::process::{Command, ExitCode, Stdio};

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};

use crate::install::cluster::ClusterArgs;
use crate::port_forward;

/// The observer's API and pages, on loopback in its pod.
pub const PORT: u16 = 15030;

#[derive(clap::Args)]
pub struct Args {
    /// Namespace of the mesh
    #[arg(long, short = 'n', default_value = "ambit-system")]
    namespace: String,
    /// Only print the address
    #[arg(long)]
    no_browser: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    super::block_on(async {
        let pods = Api::<Pod>::namespaced(args.cluster.client().await?, &args.namespace);
        let pod = observer(&pods).await.with_context(|| {
            format!("no observer in namespace {}: is the mesh installed (`ambit install`)?", args.namespace)
        })?;
        let port = port_forward::forward(pods, pod, PORT).await?;
        let url = format!("http://127.0.0.1:{port}/");
        println!("{url}");
        eprintln!("Serving until Ctrl-C");
        if !args.no_browser {
            // On a machine without a desktop there is none to be opened; the address is printed anyway.
            let opened =
                Command::new("xdg-open").arg(&url).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
            drop(opened);
        }
        tokio::signal::ctrl_c().await?;
        Ok(ExitCode::SUCCESS)
    })
}

/// The name of the observer's pod.
pub async fn observer(pods: &Api<Pod>) -> anyhow::Result<String> {
    let list = pods.list(&ListParams::default().labels("app=ambit-observe")).await?;
    let running =
        |pod: &&Pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
    list.iter()
        .find(running)
        .map(ResourceExt::name_any)
        .context("no pod with the label app=ambit-observe runs")
}
