//! Where things are inside a node: the paths that node agents know from real nodes, and the node's own corner.
//!
//! All of them are private to the node, since its mount namespace has its own `/run`, `/etc`, `/opt` and `/var`.

/// The node's own corner on its private `/run`.
pub const OWN: &str = "/run/ambit-node";
/// runc's `--root`.
pub const RUNC_ROOT: &str = "/run/ambit-node/runc";
/// One directory a container: bundle and writable layer.
pub const CONTAINERS: &str = "/run/ambit-node/containers";
/// The network namespace of the host, until the kubelet has entered it.
pub const HOST_NETNS: &str = "/run/ambit-node/host-netns";
/// The network namespace of the node.
pub const NODE_NETNS: &str = "/run/ambit-node/netns";
/// The `resolv.conf` of the host.
pub const RESOLV_CONF: &str = "/run/ambit-node/resolv.conf";
/// Bind mounts of pod network namespaces, called as container runtimes call them: node agents look for just this path
/// below their mount of the host.
pub const NETNS_DIR: &str = "/var/run/netns";
/// CNI configurations.
pub const CNI_CONF: &str = "/etc/cni/net.d";
/// CNI plugins.
pub const CNI_BIN: &str = "/opt/cni/bin";
/// One directory a pod, by UID: volumes and generated `/etc` files.
pub const PODS: &str = "/var/lib/kubelet/pods";
/// Container logs, `<namespace>_<pod>_<uid>/<container>/<n>.log`.
pub const POD_LOGS: &str = "/var/log/pods";
/// Links to the latest log of each container.
pub const CONTAINER_LOGS: &str = "/var/log/containers";
