//! `ambit ca`: the mesh's certificate authority: where its root stands, and its rotation.
//!
//! Nothing is done here: a rotation is asked for in an annotation of the root's Secret, and the control plane's leader
//! carries it out. Whoever may not write that Secret cannot ask for it.

use std::process::ExitCode;

use anyhow::{Context, bail};
use control::ca::rotation::{Progress, REQUEST, Stage};
use control::ca::{plugin, store};
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{Patch, PatchParams};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
    /// Namespace of the control plane
    #[arg(long, short = 'i', global = true, default_value = "ambit-system")]
    istio_namespace: String,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show what signs, what is trusted, and how a rotation goes
    Status,
    /// Replace the root certificate, in stages that refuse no connection
    Rotate(RotateArgs),
}

#[derive(clap::Args)]
struct RotateArgs {
    /// Go on to the next stage without waiting for certificates of before to end: connections between workloads that
    /// have not renewed yet may be refused
    #[arg(long, conflicts_with = "cancel")]
    next: bool,
    /// Call the rotation off, as long as the old root signs
    #[arg(long)]
    cancel: bool,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = kube::Client::try_default().await.context("no Kubernetes API; set KUBECONFIG")?;
        let secrets = Api::<Secret>::namespaced(client, &args.istio_namespace);
        let namespace = &args.istio_namespace;
        if secrets.get_opt(plugin::SECRET).await?.is_some() {
            println!("The authority was plugged in: Secret {namespace}/{}.", plugin::SECRET);
            if let Command::Rotate(_) = args.command {
                bail!("a plugged-in authority is rotated where it was made; see docs/operations/ca.md");
            }
            return Ok(ExitCode::SUCCESS);
        }
        let found = secrets.get_opt(store::SECRET).await?;
        let secret = found.with_context(|| {
            format!("there is no Secret {namespace}/{}; is the mesh installed there?", store::SECRET)
        })?;
        let progress = Progress::read(&secret);
        match args.command {
            Command::Status => show(&secret, &progress)?,
            Command::Rotate(rotate) => {
                let request = request(&rotate, progress.stage)?;
                let patch = serde_json::json!({ "metadata": { "annotations": { REQUEST: request } } });
                secrets.patch(store::SECRET, &PatchParams::default(), &Patch::Merge(&patch)).await?;
                println!("Asked for. `ambit ca status` shows how it goes.");
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// What to ask for, if it makes sense now.
fn request(rotate: &RotateArgs, stage: Stage) -> anyhow::Result<&'static str> {
    match (rotate.next, rotate.cancel, stage) {
        (false, false, Stage::Settled) => Ok("rotate"),
        (true, _, Stage::Distributing | Stage::Retiring) => Ok("next"),
        (_, true, Stage::Distributing) => Ok("cancel"),
        (false, false, stage) => bail!("a rotation is under way ({}); see `ambit ca status`", stage.word()),
        (_, true, Stage::Retiring) => bail!("the new root signs already; let the rotation end and start another"),
        (_, _, Stage::Settled) => bail!("no rotation is under way; start one with `ambit ca rotate`"),
    }
}

fn show(secret: &Secret, progress: &Progress) -> anyhow::Result<()> {
    let authority = store::read(secret).map_err(|reason| anyhow::anyhow!("the Secret cannot be used: {reason}"))?;
    let date = |time| jiff::Timestamp::try_from(time).map(|time| time.strftime("%F %T UTC").to_string());
    println!("SIGNING  sha256:{}  ends {}", &authority.digest(), date(authority.not_after())?);
    for root in authority.root_digests() {
        println!("TRUSTED  sha256:{root}");
    }
    match progress.stage {
        Stage::Settled => println!("ROTATION none"),
        stage => println!(
            "ROTATION {} since {}; {}",
            stage.word(),
            date(progress.since)?,
            match stage {
                Stage::Distributing => "the old root signs until every certificate of before has ended",
                _ => "the old root is trusted until its last certificate has ended",
            }
        ),
    }
    if let Some(request) = &progress.request {
        println!("ASKED    {request}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_makes_sense_in_a_stage_can_be_asked_for() {
        let ask = |next, cancel, stage| request(&RotateArgs { next, cancel }, stage).ok();
        assert_eq!(ask(false, false, Stage::Settled), Some("rotate"));
        assert_eq!(ask(false, false, Stage::Distributing), None);
        assert_eq!(ask(true, false, Stage::Distributing), Some("next"));
        assert_eq!(ask(true, false, Stage::Settled), None);
        assert_eq!(ask(false, true, Stage::Distributing), Some("cancel"));
        assert_eq!(ask(false, true, Stage::Retiring), None);
    }
}
