//! What the commands do.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::packages;

/// Builds the release and runs its demo.
pub fn demo(args: &[String]) -> anyhow::Result<()> {
    packages::ready_machine()?;
    run(cargo().args(["build", "--release", "--package", "ambit"]))?;
    run(Command::new(target_directory()?.join("release/ambit")).arg("demo").args(args))
}

/// All tests: with nextest where it is installed, with cargo's own runner otherwise.
pub fn test(args: &[String]) -> anyhow::Result<()> {
    packages::ready_machine()?;
    // The end-to-end tests start this binary.
    run(cargo().args(["build", "--workspace", "--all-targets"]))?;
    if succeeds(cargo().args(["nextest", "--version"])) {
        run(cargo().args(["nextest", "run", "--workspace"]).args(args))?;
    } else {
        run(cargo().args(["test", "--workspace", "--all-targets", "--"]).args(args).arg("--test-threads=1"))?;
    }
    if args.is_empty() {
        run(cargo().args(["test", "--workspace", "--doc"]))?;
    }
    Ok(())
}

/// Format, lints, and licences and advisories of the dependencies where `cargo deny` is installed.
pub fn lint() -> anyhow::Result<()> {
    run(cargo().args(["fmt", "--all", "--check"]))?;
    run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "--deny", "warnings"]))?;
    if succeeds(cargo().args(["deny", "--version"])) {
        run(cargo().args(["deny", "check", "licenses", "bans", "sources"]))?;
    } else {
        eprintln!("cargo deny is not installed: licences and advisories are not checked");
    }
    Ok(())
}

/// Cargo, in the repository.
/// Cargo, at the root of the workspace.
pub fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// The repository.
/// The root of the workspace.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where cargo puts what it builds.
/// Where cargo puts what it builds.
pub fn target_directory() -> anyhow::Result<PathBuf> {
    let output = cargo().args(["metadata", "--format-version", "1", "--no-deps"]).output()?;
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let directory =
        metadata["target_directory"].as_str().context("cargo metadata names no target directory")?;
    Ok(directory.into())
}

/// Whether a command can be started and succeeds; what it prints is not shown.
pub fn succeeds(command: &mut Command) -> bool {
    command.output().is_ok_and(|output| output.status.success())
}

/// Runs a command, its output going where ours goes.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let shown = format!("{} {}", command.get_program().display(), words(command));
    let status = command.status().with_context(|| format!("cannot start {shown}"))?;
    if !status.success() {
        bail!("{shown} failed ({status})");
    }
    Ok(())
}

fn words(command: &Command) -> String {
    command.get_args().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
}
