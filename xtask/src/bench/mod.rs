//! `cargo xtask bench`: measurements, each a program of the crate that it measures.

mod micro;
mod proxy;

use std::process::Command;

use clap::Subcommand;

use crate::commands::run;

/// What is measured.
#[derive(Subcommand)]
pub enum Bench {
    /// The control plane: first sync, change to last client, bytes, processor time, memory, at several sizes
    Control {
        /// `secure` for TLS and tokens, number of clients, then sizes in pods; 500 clients at 1000, 10000 and 100000 pods
        /// when not given
        args: Vec<String>,
    },
    /// The node proxy: against the bare network, a floor and another proxy, in pods of its own (docs/performance.md)
    Proxy(proxy::Args),
    /// Single steps of the data path: their instructions, compared with what is checked in
    Micro(micro::Args),
}

/// Measures.
pub fn bench(what: &Bench) -> anyhow::Result<()> {
    match what {
        Bench::Control { args } => {
            run(Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
                .args(["run", "--release", "--package", "ambit-control", "--example", "bench", "--"])
                .args(args))
        }
        Bench::Proxy(args) => proxy::bench(args),
        Bench::Micro(args) => micro::bench(args),
    }
}
