//! `ambit install` and `ambit uninstall`.
use std::process::ExitCode;

#[derive(clap::Args)]
pub struct InstallArgs {}
#[derive(clap::Args)]
pub struct UninstallArgs {}

pub fn install(_args: InstallArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
pub fn uninstall(_args: UninstallArgs) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not built yet")
}
