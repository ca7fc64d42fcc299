//! `ambit install` and `ambit uninstall`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use crate::install::cluster::ClusterArgs;
use crate::install::{self, Leaving, render, values::Values};

#[derive(clap::Args)]
pub struct InstallArgs {
    /// A value of the installation, such as profile=ambient or image=NAME
    #[arg(long, short = 's', value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the objects as YAML instead of applying them
    #[arg(long)]
    dry_run: bool,
    /// How many seconds the mesh may take to become ready
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    readiness_timeout: Duration,
    /// Accepted for familiarity: installing never asks
    #[arg(long, short = 'y')]
    skip_confirmation: bool,
    #[command(flatten)]
    cluster: ClusterArgs,
}

#[derive(clap::Args)]
pub struct UninstallArgs {
    /// The values it was installed with
    #[arg(long, short = 's', value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Do not ask
    #[arg(long, short = 'y')]
    skip_confirmation: bool,
    /// Go on although a policy demands mutual TLS that nobody will enforce any more
    #[arg(long)]
    ignore_strict: bool,
    /// Accepted for familiarity: everything is removed anyway
    #[arg(long)]
    purge: bool,
    /// How many seconds the removal may take
    #[arg(long, value_name = "SECONDS", default_value = "180", value_parser = seconds)]
    timeout: Duration,
    #[command(flatten)]
    cluster: ClusterArgs,
}

/// `300` or `300s`.
fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    number.parse().map(Duration::from_secs).map_err(|_| format!("{text:?} is no number of seconds"))
}

pub fn install(args: InstallArgs) -> anyhow::Result<ExitCode> {
    let components = render::render(&Values::new(&args.set)?)?;
    if args.dry_run {
        print!("{}", render::to_yaml(&components)?);
        return Ok(ExitCode::SUCCESS);
    }
    super::block_on(async {
        let client = args.cluster.client().await?;
        let progress = |component: &render::Component| eprintln!("✔ {} installed", component.title);
        install::apply(client, &components, args.readiness_timeout, progress).await?;
        eprintln!("✔ Installation complete");
        eprintln!("Next: kubectl label namespace NAME istio.io/dataplane-mode=ambient");
        Ok(ExitCode::SUCCESS)
    })
}

pub fn uninstall(args: UninstallArgs) -> anyhow::Result<ExitCode> {
    let components = render::render(&Values::new(&args.set)?)?;
    super::block_on(async {
        let client = args.cluster.client().await?;
        let leaving = install::leaving(&client).await?;
        report(&leaving);
        if !leaving.strict.is_empty() && !args.ignore_strict {
            anyhow::bail!(
                "{} demand mutual TLS, which nobody enforces without the mesh: remove them first, or give --ignore-strict",
                leaving.strict.join(", ")
            );
        }
        if !args.skip_confirmation && !confirmed()? {
            eprintln!("Nothing was removed");
            return Ok(ExitCode::FAILURE);
        }
        let progress = |title: &str, kept: &[String]| match kept {
            [] => eprintln!("✔ {title} removed"),
            kept => eprintln!("✔ {title} removed, except what is in use: {}", kept.join(", ")),
        };
        install::remove(client, &components, args.timeout, progress).await?;
        eprintln!("✔ Uninstall complete");
        Ok(ExitCode::SUCCESS)
    })
}

fn report(leaving: &Leaving) {
    if !leaving.pods.is_empty() {
        eprintln!("{} pods become plaintext: {}", leaving.pods.len(), leaving.pods.join(", "));
    }
    if !leaving.labelled.is_empty() {
        eprintln!(
            "These namespaces keep your label istio.io/dataplane-mode=ambient: {}",
            leaving.labelled.join(", ")
        );
    }
}

/// Asks on a terminal; a program that does not say -y means it.
fn confirmed() -> anyhow::Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Ok(true);
    }
    eprint!("The mesh will be removed from the cluster. Proceed? (y/N) ");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
