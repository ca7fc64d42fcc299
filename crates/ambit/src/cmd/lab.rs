//! `ambit lab`: the command line of the lab. Everything it does is in the `lab` crate.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use lab::up::{self, Exec, LabName, Manifests, Options, Progress, Ready, Status};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::logging;

/// A whole cluster on this machine.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Start a lab and point kubectl at it
    Up(UpArgs),
    /// Take a lab down, also after a crash
    Down(NameArgs),
    /// Show whether a lab is up, its nodes and its pods
    Status(StatusArgs),
    /// Run a command in a pod
    Exec(ExecArgs),
    /// Run only the Kubernetes API and its controllers, until Ctrl-C
    Api(ApiArgs),
    /// The process that carries a lab in the background
    #[command(hide = true)]
    Carry(CarryArgs),
    /// The process of one node
    #[command(hide = true)]
    Node(NodeArgs),
    /// The application of the demo
    #[command(hide = true)]
    App(AppArgs),
    /// Pods as targets for a Prometheus without Kubernetes discovery
    #[command(hide = true)]
    Discover(DiscoverArgs),
}

#[derive(clap::Args)]
struct DiscoverArgs {
    /// Where to serve `/pods`
    #[arg(long, default_value = "127.0.0.1:9900")]
    listen: std::net::SocketAddr,
}

#[derive(clap::Args)]
struct NameArgs {
    /// The lab's name
    #[arg(long, default_value = "lab")]
    name: LabName,
}

#[derive(clap::Args)]
struct UpArgs {
    #[command(flatten)]
    lab: NameArgs,
    /// How many nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=50))]
    nodes: u8,
    /// Manifests to apply once the nodes are ready: files, directories or - for standard input
    #[arg(short = 'f', long = "filename", value_name = "MANIFESTS", num_args = 1..)]
    manifests: Vec<PathBuf>,
    /// Write the kubeconfig to this file instead of merging it into your own
    #[arg(long, value_name = "PATH", conflicts_with = "join")]
    kubeconfig: Option<PathBuf>,
    /// The port of the API on 127.0.0.1 [default: a free one]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..), conflicts_with = "join")]
    port: Option<u16>,
    /// Stay in the foreground and take everything down at Ctrl-C
    #[arg(long)]
    foreground: bool,
    /// Start only nodes, which join the cluster of this kubeconfig
    #[arg(long, value_name = "KUBECONFIG")]
    join: Option<PathBuf>,
}

#[derive(clap::Args)]
struct ApiArgs {
    #[command(flatten)]
    lab: NameArgs,
    /// Write the kubeconfig to this file instead of merging it into your own
    #[arg(long, value_name = "PATH")]
    kubeconfig: Option<PathBuf>,
    /// The port of the API on 127.0.0.1 [default: a free one]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    port: Option<u16>,
}

#[derive(clap::Args)]
struct CarryArgs {
    #[command(flatten)]
    lab: NameArgs,
    #[arg(long)]
    nodes: u8,
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    #[arg(long)]
    port: Option<u16>,
    #[arg(long)]
    join: Option<PathBuf>,
}

#[derive(clap::Args)]
struct StatusArgs {
    #[command(flatten)]
    lab: NameArgs,
    /// The form of the answer
    #[arg(short, long, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(clap::Args)]
struct ExecArgs {
    #[command(flatten)]
    lab: NameArgs,
    /// The pod, as NAMESPACE/POD
    #[arg(value_name = "NS/POD", value_parser = parse_pod)]
    pod: (String, String),
    /// The container, if the pod has several
    #[arg(short, long)]
    container: Option<String>,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(clap::Args)]
struct NodeArgs {
    #[arg(long)]
    config: PathBuf,
}

#[derive(clap::Args)]
struct AppArgs {
    /// The service it stands in for
    #[arg(long)]
    name: String,
    /// The port it listens on
    #[arg(long, default_value_t = 9080)]
    port: u16,
    /// A service to call, http://HOST:PORT/PATH; may be repeated
    #[arg(long = "call", value_name = "URL", value_parser = parse_target)]
    calls: Vec<http::Uri>,
    /// How often to call each of them
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    every: Duration,
}

fn parse_pod(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((namespace, pod)) if !namespace.is_empty() && !pod.is_empty() && !pod.contains('/') => {
            Ok((namespace.to_owned(), pod.to_owned()))
        }
        _ => Err("write it as NAMESPACE/POD".to_owned()),
    }
}

fn parse_target(text: &str) -> Result<http::Uri, String> {
    let uri: http::Uri = text.parse().map_err(|error| format!("{error}"))?;
    if uri.scheme_str() == Some("http") && uri.authority().is_some() {
        Ok(uri)
    } else {
        Err("write it as http://HOST:PORT/PATH".to_owned())
    }
}

fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let number: u64 = number.parse().map_err(|_| "write it as 500ms, 2s or 1m".to_owned())?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err("write it as 500ms, 2s or 1m".to_owned()),
    }
}

/// Runs the subcommand.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    // Only one provider is compiled in; a second installation is no trouble.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.enable_all().build().context("cannot start the runtime")?;
    let result = runtime.block_on(dispatch(args.command));
    // A read of standard input that nobody needs any more must not keep the process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Up(args) => bring_up(args).await,
        Command::Down(args) => take_down(args.name).await,
        Command::Status(args) => show_status(&args).await,
        Command::Exec(args) => {
            let (namespace, pod) = args.pod;
            let exec = Exec { namespace, pod, container: args.container, command: args.command };
            up::exec(&args.lab.name, &exec).await.map(ExitCode::from)
        }
        Command::Api(args) => {
            let options = Options {
                name: args.lab.name,
                nodes: 0,
                manifests: Manifests::default(),
                kubeconfig: args.kubeconfig.map(std::path::absolute).transpose()?,
                port: args.port,
                join: None,
            };
            in_foreground(options).await
        }
        Command::Carry(args) => carry(args).await,
        Command::Node(args) => {
            logging::init();
            let text = std::fs::read(&args.config)
                .with_context(|| format!("cannot read the node's configuration {}", args.config.display()))?;
            lab::node::run(serde_json::from_slice(&text)?).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Discover(args) => {
            logging::init();
            lab::discover::serve(kube::Client::try_default().await?, args.listen).await?;
            Ok(ExitCode::SUCCESS)
        }
        Command::App(args) => {
            logging::init();
            let config =
                lab::app::Config { name: args.name, port: args.port, calls: args.calls, every: args.every };
            lab::app::run(config, stop_signals()?).await?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Cancelled by Ctrl-C and by SIGTERM.
fn stop_signals() -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let token = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        token.cancel();
    });
    Ok(stop)
}

fn progress() -> Progress {
    Arc::new(|text| eprintln!("  {text}"))
}

async fn bring_up(args: UpArgs) -> anyhow::Result<ExitCode> {
    let options = Options {
        manifests: Manifests::read(&args.manifests)?,
        name: args.lab.name,
        nodes: args.nodes,
        kubeconfig: args.kubeconfig.map(std::path::absolute).transpose()?,
        port: args.port,
        join: args.join.map(std::path::absolute).transpose()?,
    };
    if args.foreground {
        return in_foreground(options).await;
    }
    let name = options.name.clone();
    let ready = up::in_background(options, progress(), stop_signals()?).await?;
    announce(&name, &ready);
    eprintln!("take it down with `ambit lab down{}`", name_flag(&name));
    Ok(ExitCode::SUCCESS)
}

async fn in_foreground(options: Options) -> anyhow::Result<ExitCode> {
    logging::init();
    let name = options.name.clone();
    let ready = |ready: &Ready| {
        announce(&name, ready);
        eprintln!("Ctrl-C takes it down");
    };
    up::run(options, progress(), ready, stop_signals()?).await?;
    Ok(ExitCode::SUCCESS)
}

fn announce(name: &LabName, ready: &Ready) {
    eprintln!("the lab `{name}` is up: {}", ready.api);
    eprintln!("kubectl context `{}` in {}", ready.context, ready.kubeconfig.display());
}

fn name_flag(name: &LabName) -> String {
    if name.as_str() == "lab" { String::new() } else { format!(" --name {name}") }
}

async fn carry(args: CarryArgs) -> anyhow::Result<ExitCode> {
    let options = Options {
        manifests: Manifests::read(&[PathBuf::from("-")])?,
        name: args.lab.name,
        nodes: args.nodes,
        kubeconfig: args.kubeconfig,
        port: args.port,
        join: args.join,
    };
    // What went wrong has been reported to whoever started this.
    let result = up::carry(options, stop_signals()?, logging::init).await;
    Ok(if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn take_down(name: LabName) -> anyhow::Result<ExitCode> {
    let lab = name.clone();
    let existed = tokio::task::spawn_blocking(move || up::down(&lab, &progress())).await??;
    if existed {
        eprintln!("the lab `{name}` is down");
    } else {
        eprintln!("there is no lab `{name}`, and nothing of one was left");
    }
    Ok(ExitCode::SUCCESS)
}

async fn show_status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let status = up::status(&args.lab.name).await;
    match args.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Output::Table => print!("{}", table(&status)),
    }
    Ok(if status.up { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn table(status: &Status) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12}{value}");
    };
    line("LAB", &status.name);
    line("STATE", if status.up { "up" } else { "down" });
    if let Some(reason) = &status.reason {
        line("REASON", reason);
    }
    if let Some(api) = &status.api {
        line("API", api);
    }
    if let Some(path) = &status.kubeconfig {
        line("KUBECONFIG", path);
    }
    if let Some(age) = status.age_seconds {
        line("AGE", &age_text(age));
    }
    line("PODS", &format!("{}/{} ready", status.pods_ready, status.pods));
    if !status.nodes.is_empty() {
        let _ = writeln!(text, "\n{:<16}{:<10}{:<16}PODS", "NODE", "STATUS", "ADDRESS");
    }
    for node in &status.nodes {
        let ready = if node.ready { "Ready" } else { "NotReady" };
        let _ = writeln!(
            text,
            "{:<16}{ready:<10}{:<16}{}/{} ready",
            node.name, node.ip, node.pods_ready, node.pods
        );
    }
    text
}

fn age_text(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{seconds}s"),
        120..7200 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lab_that_is_up_is_shown_with_its_nodes() {
        let node = |name: &str, ready, pods_ready| lab::up::NodeStatus {
            name: name.into(),
            ready,
            ip: "10.98.0.11".into(),
            pods_ready,
            pods: 3,
        };
        let status = Status {
            name: "lab".into(),
            reason: Some("not ready: node2".into()),
            api: Some("https://127.0.0.1:6443".into()),
            age_seconds: Some(130),
            nodes: vec![node("node1", true, 3), node("node2", false, 0)],
            pods_ready: 3,
            pods: 6,
            ..Status::default()
        };
        insta::assert_snapshot!(table(&status), @r"
        LAB         lab
        STATE       down
        REASON      not ready: node2
        API         https://127.0.0.1:6443
        AGE         2m10s
        PODS        3/6 ready

        NODE            STATUS    ADDRESS         PODS
        node1           Ready     10.98.0.11      3/3 ready
        node2           NotReady  10.98.0.11      0/3 ready
        ");
    }

    #[test]
    fn pods_targets_and_durations_are_parsed_at_the_border() {
        assert_eq!(parse_pod("ns/pod"), Ok(("ns".into(), "pod".into())));
        for bad in ["pod", "/pod", "ns/", "a/b/c"] {
            assert!(parse_pod(bad).is_err(), "{bad}");
        }
        assert!(parse_target("http://details:9080/").is_ok());
        assert!(parse_target("details:9080").is_err() && parse_target("https://details/").is_err());
        assert_eq!(parse_duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1m"), Ok(Duration::from_secs(60)));
        assert!(parse_duration("soon").is_err() && parse_duration("5").is_err());
    }
}
