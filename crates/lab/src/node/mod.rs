//! A node of the lab: sandboxes, containers, volumes and the kubelet loop that drives them.
//!
//! It knows the Kubernetes API and nothing of who serves it, so it joins a real API server as well as the lab's.
//! [`spawn`] starts a node as a process tree of its own; [`run`] is the body of that process. What a node makes
//! (mounts, processes, pod namespaces) lives in the namespaces of that tree and ends with it; only cgroups
//! outlive it, see [`remove_cgroups`].

pub mod border;
mod config;
mod fields;
mod kubelet;
mod layout;
pub mod net;
mod runtime;
mod sandbox;
pub mod server;
mod spawn;
mod stage;
mod volumes;

pub use config::Config;
pub use spawn::{remove_cgroups, spawn};

/// Runs a node: the body of the hidden `ambit lab node --config FILE`, to be started by [`spawn`] only.
///
/// The same command runs three times, each time in another place: first it furnishes the node's mount namespace,
/// then it stays as the init process in the node's network namespace, and its child in the network namespace of
/// the host is the kubelet. Returns when the node is told to end.
pub async fn run(config: Config) -> anyhow::Result<()> {
    match stage::Stage::current()? {
        stage::Stage::Furnish => stage::furnish(&config),
        stage::Stage::Init => tokio::task::spawn_blocking(move || stage::init(&config)).await?,
        stage::Stage::Kubelet => kubelet::run(config).await,
    }
}
