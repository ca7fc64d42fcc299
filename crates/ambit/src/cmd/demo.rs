//! `ambit demo`.

use std::path::PathBuf;
use std::process::ExitCode;

use crate::demo::{self, Options};

#[derive(clap::Args)]
pub struct Args {
    /// Name of the lab it makes
    #[arg(long, default_value = "demo")]
    name: String,
    /// End when the proof is done, with status 0 only if everything held
    #[arg(long)]
    once: bool,
    /// Write what was measured as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    crate::logging::init();
    let options = Options { name: args.name, once: args.once, report: args.report };
    let held = super::block_on(demo::run(options))?;
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
