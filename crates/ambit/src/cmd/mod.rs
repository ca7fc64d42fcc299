//! The subcommands, one module each.
pub mod agent;
pub mod ca;
pub mod cni;
pub mod control;
pub mod dashboard;
pub mod demo;
pub mod explain;
pub mod install;
pub mod lab;
pub mod observe;
pub mod proxy;

/// Runs a command that talks to a cluster.
pub fn block_on<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}
