//! Measures the node proxy against the bare network and against the floor of what any proxy that copies must pay.
//!
//! `bench run` makes the pods, starts the proxies and the floor's relay, and takes every figure for all of them in
//! turns; `bench check` only looks whether bytes come through unharmed. The other subcommands are its parts, run inside
//! the pods' namespaces. See docs/performance.md.

#[path = "../../tests/mesh/control.rs"]
#[allow(dead_code)]
mod control;
mod figures;
mod floor;
mod front;
mod lanes;
mod load;
mod many;
mod memory;
mod options;
mod report;
mod serve;
mod system;

use options::Options;

fn main() -> anyhow::Result<()> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    system::many_descriptors();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let rest = args.get(1..).unwrap_or_default();
    match args.first().map(String::as_str) {
        Some("serve") => serve::run(rest),
        Some("load") => load::run(rest),
        Some("floor") => floor::run(rest),
        Some("check") => figures::check_only(&Options::parse(rest)?),
        Some("run") => figures::run(&Options::parse(rest)?),
        _ => anyhow::bail!("usage: {}", options::USAGE),
    }
}
