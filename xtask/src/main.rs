//! Developer commands: `cargo xtask demo`, `cargo xtask test`, `cargo xtask ci`.
//!
//! They need a Rust toolchain and nothing by hand: what is missing of Debian's packages they install themselves and
//! say so. This crate stays free of heavy dependencies, so that its commands start at once.

mod bench;
mod commands;
mod fuzz;
mod packages;
mod ui;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Developer commands of Ambit")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build, bring up a lab, and show Prometheus' scrapes becoming mutual TLS by two labels
    Demo {
        /// Arguments of `ambit demo`, such as --once --report FILE
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Run all tests
    Test {
        /// Arguments for the test runner, such as a filter
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// Measure
    Bench {
        #[command(subcommand)]
        what: bench::Bench,
    },
    /// Fuzz everything that reads from a peer
    Fuzz {
        /// Seconds for each target
        #[arg(long, default_value_t = 600)]
        seconds: u32,
        /// Names of targets; none: all
        targets: Vec<String>,
    },
    /// Let a lab run under load while pods come and go and the control plane is killed, and look for leaks
    Soak {
        /// How long
        #[arg(long, default_value_t = 10)]
        minutes: u32,
    },
    /// Check format, lints and dependencies
    Lint,
    /// Build and test the web UI, and compare the build with the committed one
    Ui,
    /// Look at the web UI's pages in a browser, over made-up clusters and over the real mesh of a lab
    View,
    /// Everything that CI runs: lint, ui, test, view
    Ci,
}

fn main() -> std::process::ExitCode {
    let result = match Cli::parse().command {
        Command::Demo { args } => commands::demo(&args),
        Command::Test { args } => commands::test(&args),
        Command::Bench { what } => bench::bench(&what),
        Command::Fuzz { seconds, targets } => fuzz::fuzz(seconds, &targets),
        Command::Soak { minutes } => fuzz::soak(minutes),
        Command::Lint => commands::lint(),
        Command::Ui => ui::ui(),
        Command::View => ui::view(),
        Command::Ci => commands::lint()
            .and_then(|()| ui::ui())
            .and_then(|()| commands::test(&[]))
            .and_then(|()| ui::view()),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
