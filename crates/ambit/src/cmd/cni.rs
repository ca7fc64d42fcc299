//! `ambit cni`: the CNI plugin. The container runtime calls it by the name `ambit-cni` and without arguments.

use std::ffi::OsStr;
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use enroll::cni::plugin::{Env, MAX_INPUT, run as run_plugin};

/// It takes no arguments: everything comes by environment and standard input.
#[derive(clap::Args)]
pub struct Args {}

/// Whether this process was started as the plugin.
pub fn called_as_plugin() -> bool {
    let name = std::env::args_os().next();
    name.as_deref().and_then(|name| Path::new(name).file_name()) == Some(OsStr::new(enroll::install::PLUGIN))
}

/// Runs one call of the plugin: the result or the error as one JSON object on standard output.
pub fn run(_args: Args) -> anyhow::Result<ExitCode> {
    let env = Env::of_process();
    let mut input = Vec::new();
    if !std::io::stdin().is_terminal() {
        std::io::stdin()
            .take(MAX_INPUT)
            .read_to_end(&mut input)
            .context("cannot read the network configuration")?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(run_plugin(&env, &input));
    if let Some(value) = outcome.stdout {
        writeln!(std::io::stdout(), "{value}").context("cannot write the result")?;
    }
    Ok(ExitCode::from(outcome.status))
}
