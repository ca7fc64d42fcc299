//! `cargo xtask bench proxy`.

use std::path::PathBuf;
use std::process::Command;

use crate::commands::{cargo, run, target_directory};
use crate::packages;

/// What is measured, and how long.
#[derive(clap::Args)]
pub struct Args {
    /// Five figures, three rounds of a second each
    #[arg(long)]
    quick: bool,
    /// These figures and no others, separated by commas
    #[arg(long, value_name = "FIGURE,…")]
    only: Option<String>,
    /// Rounds of each figure
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each round
    #[arg(long)]
    seconds: Option<f64>,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The proxy; the release of this tree when not given
    #[arg(long, value_name = "PATH")]
    proxy: Option<PathBuf>,
    /// Another proxy to be measured side by side, such as an older `ambit` or a ztunnel
    #[arg(long, value_name = "PATH")]
    against: Option<PathBuf>,
    /// A further variable of the proxy, such as `SAME_NODE=splice`
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Only look whether bytes come through unharmed
    #[arg(long)]
    check: bool,
}

/// Builds what is needed, and measures.
pub fn bench(args: &Args) -> anyhow::Result<()> {
    packages::ready_machine()?;
    run(cargo().args(["build", "--release", "--package", "ambit-proxy", "--example", "bench"]))?;
    let release = target_directory()?.join("release");
    let proxy = match &args.proxy {
        Some(proxy) => proxy.clone(),
        None => {
            run(cargo().args(["build", "--release", "--package", "ambit"]))?;
            release.join("ambit")
        }
    };
    let mut command = Command::new(release.join("examples/bench"));
    command.arg(if args.check { "check" } else { "run" }).arg("--proxy").arg(proxy);
    if args.quick {
        command.arg("--quick");
    }
    for (name, value) in [("--json", &args.json), ("--against", &args.against)] {
        if let Some(value) = value {
            command.arg(name).arg(value);
        }
    }
    let numbers = [
        ("--rounds", args.rounds.map(|n| n.to_string())),
        ("--seconds", args.seconds.map(|n| n.to_string())),
    ];
    for (name, value) in numbers.into_iter().chain([("--only", args.only.clone())]) {
        if let Some(value) = value {
            command.arg(name).arg(value);
        }
    }
    for variable in &args.set {
        command.arg("--set").arg(variable);
    }
    run(&mut command)
}
