//! `ambit proxy`: the node proxy, configured by its environment.

use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

/// All configuration comes from the environment (docs/reference/proxy.md), so that existing manifests work; what
/// they put behind the name of the program is accepted and ignored.
#[derive(clap::Args)]
pub struct Args {
    /// Ignored, for manifests written for other proxies
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
    ignored: Vec<String>,
}

pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let _ = args.ignored;
    let config = proxy::Config::from_env()?;
    let log = proxy::logging::init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.workers)
        .enable_all()
        .build()
        .context("cannot start the proxy's threads")?;
    let result = runtime.block_on(async {
        let shutdown = shutdown()?;
        proxy::run_with_log(config, log, shutdown).await.map_err(anyhow::Error::from)
    });
    // Nothing that is still running is worth waiting for: connections have had their time to end.
    runtime.shutdown_background();
    result.map(|()| ExitCode::SUCCESS)
}

/// Resolves on the first SIGTERM or SIGINT; a second SIGINT exits at once.
fn shutdown() -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {
                tokio::spawn(async move {
                    interrupt.recv().await;
                    std::process::exit(0);
                });
            }
        }
    })
}
