//! `ambit`: one binary for the whole mesh. Each subcommand is one module in [`cmd`].

use clap::{Parser, Subcommand};

mod cmd;
mod demo;
mod install;
mod logging;
mod port_forward;

/// The system's, which can tell what holds memory (`/debug/pprof/heap` of the node proxy).
#[global_allocator]
static ALLOCATOR: proxy::Sampling = proxy::Sampling;

#[derive(Parser)]
#[command(name = "ambit", version, about = "An ambient layer-4 service mesh", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A whole cluster on this machine: pods are network namespaces, the Kubernetes API is in memory
    Lab(cmd::lab::Args),
    /// Show it: a lab in which Prometheus' scrapes become mutual TLS by two labels
    Demo(cmd::demo::Args),
    /// Install the mesh into the cluster of the current kubeconfig
    Install(cmd::install::InstallArgs),
    /// Remove the mesh; pods go on working in plaintext
    Uninstall(cmd::install::UninstallArgs),
    /// Open the live graph and the scrape proof of the mesh in a browser
    Dashboard(cmd::dashboard::Args),
    /// Why something is as it is: `ambit explain pod NAMESPACE/NAME`
    Explain(cmd::explain::Args),
    /// The mesh's certificate authority: where its root stands, and its rotation
    Ca(cmd::ca::Args),
    /// Run the control plane
    Control(cmd::control::Args),
    /// Run the node agent
    Agent(cmd::agent::Args),
    /// The CNI plugin (called by the container runtime)
    Cni(cmd::cni::Args),
    /// Run the observer: flows, graph, scrape proof, web UI
    Observe(cmd::observe::Args),
    /// Run the node proxy
    Proxy(cmd::proxy::Args),
}

fn main() -> std::process::ExitCode {
    // The only provider that is compiled in; choosing it again is no error.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    if cmd::cni::called_as_plugin() {
        return exit(cmd::cni::run(cmd::cni::Args {}));
    }
    exit(match Cli::parse().command {
        Command::Lab(args) => cmd::lab::run(args),
        Command::Demo(args) => cmd::demo::run(args),
        Command::Install(args) => cmd::install::install(args),
        Command::Uninstall(args) => cmd::install::uninstall(args),
        Command::Dashboard(args) => cmd::dashboard::run(args),
        Command::Explain(args) => cmd::explain::run(args),
        Command::Ca(args) => cmd::ca::run(args),
        Command::Control(args) => cmd::control::run(args),
        Command::Agent(args) => cmd::agent::run(args),
        Command::Cni(args) => cmd::cni::run(args),
        Command::Observe(args) => cmd::observe::run(args),
        Command::Proxy(args) => cmd::proxy::run(args),
    })
}

fn exit(result: anyhow::Result<std::process::ExitCode>) -> std::process::ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
