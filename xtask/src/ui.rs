//! The web UI: built and compared with what is committed; and its pages in a browser.

use std::process::Command;

use anyhow::{Context, bail};

use crate::commands::{cargo, root, run, succeeds, target_directory};
use crate::packages;

/// What is committed must be what its sources give, byte for byte; model, layout and stream are tested.
pub fn ui() -> anyhow::Result<()> {
    install()?;
    run(npm().args(["run", "build"]))?;
    let mut changed = Command::new("git");
    changed.current_dir(root()).args(["status", "--porcelain", "--", "crates/observe/ui-dist"]);
    let changed = changed.output().context("cannot ask git what has changed")?;
    if !changed.stdout.is_empty() {
        bail!(
            "crates/observe/ui-dist is not what ui/ gives: run `npm run build` in ui/ and commit the result"
        );
    }
    run(npm().arg("test"))
}

/// The pages in Debian's Chromium: against a cluster that does not exist, made by the generator, and over the real mesh
/// of a lab.
pub fn view() -> anyhow::Result<()> {
    packages::ready_browser()?;
    install()?;
    // As `cargo xtask test` builds, so that what is there already is taken.
    run(cargo().args(["build", "--workspace", "--all-targets"]))?;
    let built = target_directory()?.join("debug");
    run(npm().args(["run", "test:pages"]).env("AMBIT_GENERATOR", built.join("examples/generator")))?;
    run(npm().args(["run", "test:lab"]).env("AMBIT", built.join("ambit")))
}

/// The packages of `package-lock.json`, as they are locked. A browser of their own is never downloaded.
fn install() -> anyhow::Result<()> {
    if !succeeds(npm().arg("--version")) {
        bail!("npm is not installed: the web UI is built with Node.js (`cargo build` itself needs none)");
    }
    run(npm().args(["ci", "--prefer-offline", "--no-audit", "--no-fund"]))
}

fn npm() -> Command {
    let mut command = Command::new("npm");
    command.current_dir(root().join("ui")).env("PLAYWRIGHT_SKIP_BROWSER_DOWNLOAD", "1");
    command
}
