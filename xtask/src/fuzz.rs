//! Long runs that CI only has in short: fuzzing and the soak.
//!
//! Fuzzing, coverage-guided: builds the targets of `fuzz/` and runs one after the other.
//!
//! No sanitizer is used: what is fuzzed is safe Rust, and without one neither nightly nor a second build of the C code
//! is needed. Overflows and failed assertions are found all the same. What CI runs instead: `docs/decisions/0007-fuzzing-in-two-ways.md`.

use anyhow::bail;

use crate::commands::{cargo, root, run, succeeds};
use crate::packages;

/// Runs the targets named, or all of them, for `seconds` each. A finding stays in `fuzz/artifacts`.
pub fn fuzz(seconds: u32, names: &[String]) -> anyhow::Result<()> {
    if !succeeds(cargo().args(["fuzz", "--version"])) {
        eprintln!("Installing cargo-fuzz from crates.io");
        run(cargo().args(["install", "cargo-fuzz", "--locked"]))?;
    }
    let known = targets()?;
    if let Some(unknown) = names.iter().find(|name| !known.contains(name)) {
        bail!("there is no fuzz target {unknown:?}; there are {}", known.join(", "));
    }
    run(cargo().args(["fuzz", "build", "--sanitizer", "none"]))?;
    for name in if names.is_empty() { &known } else { names } {
        eprintln!("{name}: {seconds} s");
        run(cargo().args(["fuzz", "run", "--sanitizer", "none", name, "--"]).args([
            &format!("-max_total_time={seconds}"),
            "-timeout=10",
            "-print_final_stats=1",
        ]))?;
    }
    Ok(())
}

/// The test `soak` for so many minutes, with what it prints.
pub fn soak(minutes: u32) -> anyhow::Result<()> {
    packages::ready_machine()?;
    run(cargo()
        .args(["test", "--package", "ambit", "--test", "soak", "--", "--nocapture"])
        .env("AMBIT_SOAK_SECONDS", (60 * minutes).to_string()))
}

fn targets() -> anyhow::Result<Vec<String>> {
    let mut names = Vec::new();
    for file in std::fs::read_dir(root().join("fuzz/fuzz_targets"))? {
        let path = file?.path();
        names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}
