//! `cargo xtask bench micro`: instructions by callgrind, in which no noise of the machine shows.
//!
//! Counted is only what happens within the program's `repeat`, not what made a step ready.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::commands::{cargo, root, run, target_directory};

/// What is compared.
#[derive(clap::Args)]
pub struct Args {
    /// Check in what is counted now
    #[arg(long)]
    update: bool,
    /// Also say how long each step takes
    #[arg(long)]
    time: bool,
}

/// How many more instructions than those checked in are an error, in percent: hash seeds differ from run to run, and
/// libraries and compilers by small steps.
const TOLERANCE: f64 = 5.0;
const COUNT: u64 = 200;

/// Counts, and compares.
pub fn bench(args: &Args) -> anyhow::Result<()> {
    if Command::new("valgrind").arg("--version").output().is_err() {
        bail!("valgrind is not installed: on Debian, `apt-get install valgrind`");
    }
    run(cargo().args(["build", "--release", "--package", "ambit-proxy", "--example", "micro"]))?;
    let program = target_directory()?.join("release/examples/micro");
    if args.time {
        run(Command::new(&program).arg("time"))?;
    }
    let listed = Command::new(&program).arg("list").output()?;
    let names = String::from_utf8(listed.stdout)?;
    let mut counts = BTreeMap::new();
    for name in names.lines() {
        counts.insert(name, count(&program, name)? / COUNT);
    }
    if args.update {
        let lines = counts.iter().map(|(name, count)| format!("{name} {count}\n"));
        return std::fs::write(table(), lines.collect::<String>()).context("cannot write the table");
    }
    let known = std::fs::read_to_string(table()).context("there are no counts yet: run with --update")?;
    let known: BTreeMap<&str, u64> = known
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(a, b)| Some((a, b.parse().ok()?)))
        .collect();
    let mut worse = Vec::new();
    for (name, count) in &counts {
        let Some(before) = known.get(name) else {
            worse.push(format!("{name} is not in the table"));
            continue;
        };
        let change = (*count as f64 / *before as f64 - 1.0) * 100.0;
        println!("{name:<28} {count:>9} instructions, {before:>9} checked in, {change:+.1} %");
        if change > TOLERANCE {
            worse.push(format!("{name} takes {change:.1} % more instructions"));
        }
    }
    if !worse.is_empty() {
        bail!("{}; if that is meant, run `cargo xtask bench micro --update`", worse.join("; "));
    }
    Ok(())
}

fn table() -> PathBuf {
    root().join("crates/proxy/examples/micro/counts.txt")
}

/// Instructions of a step, run so often.
fn count(program: &Path, name: &str) -> anyhow::Result<u64> {
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*micro*repeat*"])
        .arg(program);
    let output = command.args(["run", name, &COUNT.to_string()]).output().context("cannot start valgrind")?;
    let words = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{name} under callgrind: {words}");
    }
    let line =
        words.lines().find_map(|line| line.split_once("Collected : ")).map(|(_, number)| number.trim());
    line.and_then(|number| number.parse().ok()).with_context(|| format!("callgrind counted nothing: {words}"))
}
