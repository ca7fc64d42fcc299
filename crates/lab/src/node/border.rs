//! The border between the kubelet and the kubelet server: what `logs`, `exec` and `port-forward` may ask.
//!
//! The server never sees pods, runtimes or volumes; it gets the few facts it needs to reach into one container
//! or one network namespace, as they are at the moment of the question.

use std::path::PathBuf;

use netns::NetNs;

/// What the kubelet server asks of the kubelet.
pub trait Pods: Send + Sync + 'static {
    /// The container `container` of a pod; `None` means its only container, or the one that
    /// `kubectl.kubernetes.io/default-container` names, or the first one.
    fn container(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
    ) -> Result<ContainerRef, PodError>;

    /// The network namespace of a pod: the node's own for a `hostNetwork` pod.
    fn netns(&self, namespace: &str, pod: &str) -> Result<NetNs, PodError>;
}

/// Why the kubelet cannot answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    /// No pod of that name runs on this node.
    #[error("no such pod runs on this node")]
    NoSuchPod,
    /// The pod has no container of that name.
    #[error("the pod has no container {0:?}")]
    NoSuchContainer(String),
    /// The container or sandbox exists but does not run; the text says in what state it is.
    #[error("not running: {0}")]
    NotRunning(String),
}

/// How to reach one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRef {
    /// The identifier runc knows it by; empty when it never ran.
    pub id: String,
    /// The `--root` directory of runc.
    pub runc_root: PathBuf,
    /// Whether it runs at this moment.
    pub running: bool,
    /// The log file of the latest run, lines in CRI format: `<RFC3339Nano> stdout|stderr F <line>`.
    pub log: PathBuf,
    /// The log file of the run before, when there was one.
    pub previous_log: Option<PathBuf>,
}
