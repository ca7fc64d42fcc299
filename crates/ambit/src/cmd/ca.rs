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

use crate::install::cluster::ClusterArgs;

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Show what signs, what is trusted, and how a rotation goes
    Status(Mesh),
    /// Replace the root certificate, in stages that refuse no connection
    Rotate(RotateArgs),
}

#[derive(clap::Args)]
struct Mesh {
    /// Namespace of the mesh
    #[arg(long, short = 'n', default_value = "ambit-system")]
    namespace: String,
    #[command(flatten)]
    cluster: ClusterArgs,
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
    #[command(flatten)]
    mesh: Mesh,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    super::block_on(async {
        let (Command::Status(mesh) | Command::Rotate(RotateArgs { mesh, .. })) = &args.command;
        let namespace = &mesh.namespace;
        let secrets = Api::<Secret>::namespaced(mesh.cluster.client().await?, namespace);
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
        match &args.command {
            Command::Status(_) => print!("{}", text(&secret, &progress)?),
            Command::Rotate(rotate) => {
                let request = request(rotate.next, rotate.cancel, progress.stage)?;
                let patch = serde_json::json!({ "metadata": { "annotations": { REQUEST: request } } });
                secrets.patch(store::SECRET, &PatchParams::default(), &Patch::Merge(&patch)).await?;
                println!("Asked for. `ambit ca status` shows how it goes.");
            }
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// What to ask for, if it makes sense now.
fn request(next: bool, cancel: bool, stage: Stage) -> anyhow::Result<&'static str> {
    match (next, cancel, stage) {
        (false, false, Stage::Settled) => Ok("rotate"),
        (true, _, Stage::Distributing | Stage::Retiring) => Ok("next"),
        (_, true, Stage::Distributing) => Ok("cancel"),
        (false, false, stage) => bail!("a rotation is under way ({}); see `ambit ca status`", stage.word()),
        (_, true, Stage::Retiring) => {
            bail!("the new root signs already; let the rotation end and start another")
        }
        (_, _, Stage::Settled) => bail!("no rotation is under way; start one with `ambit ca rotate`"),
    }
}

fn text(secret: &Secret, progress: &Progress) -> anyhow::Result<String> {
    let authority =
        store::read(secret).map_err(|reason| anyhow::anyhow!("the Secret cannot be used: {reason}"))?;
    let date = |time| jiff::Timestamp::try_from(time).map(|time| time.strftime("%F %T UTC").to_string());
    let mut lines =
        vec![format!("SIGNING  sha256:{}  ends {}", authority.digest(), date(authority.not_after())?)];
    lines.extend(authority.root_digests().iter().map(|root| format!("TRUSTED  sha256:{root}")));
    let meaning = match progress.stage {
        Stage::Settled => None,
        Stage::Distributing => Some("the old root signs until every certificate of before has ended"),
        Stage::Retiring => Some("the old root is trusted until its last certificate has ended"),
    };
    lines.push(match meaning {
        None => "ROTATION none".to_owned(),
        Some(meaning) => {
            format!("ROTATION {} since {}; {meaning}", progress.stage.word(), date(progress.since)?)
        }
    });
    lines.extend(progress.request.iter().map(|request| format!("ASKED    {request}")));
    Ok(lines.join("\n") + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_makes_sense_in_a_stage_can_be_asked_for() {
        let ask = |next, cancel, stage| request(next, cancel, stage).ok();
        assert_eq!(ask(false, false, Stage::Settled), Some("rotate"));
        assert_eq!(ask(false, false, Stage::Distributing), None);
        assert_eq!(ask(true, false, Stage::Distributing), Some("next"));
        assert_eq!(ask(true, false, Stage::Settled), None);
        assert_eq!(ask(false, true, Stage::Distributing), Some("cancel"));
        assert_eq!(ask(false, true, Stage::Retiring), None);
    }

    #[test]
    fn the_status_names_who_signs_who_is_trusted_and_how_far_a_rotation_is() {
        let authority =
            control::ca::Authority::self_signed("cluster.local", std::time::SystemTime::now()).unwrap();
        let secret = store::secret("ambit-system", &authority);
        let settled = text(&secret, &Progress::read(&secret)).unwrap();
        assert!(
            settled.starts_with(&format!("SIGNING  sha256:{}  ends 20", authority.digest())),
            "{settled}"
        );
        assert!(
            settled.contains(&format!("\nTRUSTED  sha256:{}\n", authority.root_digests()[0])),
            "{settled}"
        );
        assert!(settled.ends_with("\nROTATION none\n") && !settled.contains("PRIVATE"), "{settled}");

        let mut asked = secret;
        asked.metadata.annotations = Some([(REQUEST.to_owned(), "rotate".to_owned())].into());
        let asked = text(&asked, &Progress::read(&asked)).unwrap();
        assert!(asked.ends_with("\nROTATION none\nASKED    rotate\n"), "{asked}");
    }
}
