//! Who exists in the cluster, as Kubernetes says: the judge of what proxies claim, and the source of what the mesh
//! itself cannot see. A snapshot, pure; filled by [`crate::cluster`].

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use crate::flow::{End, Millis, Text};

/// What is known of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Pod {
    pub namespace: Text,
    pub name: Text,
    pub node: Text,
    pub addresses: Vec<IpAddr>,
    pub workload: Text,
    pub workload_type: Text,
    pub service_account: Text,
    /// It has ended (Succeeded or Failed): its address may be another's by now.
    pub finished: bool,
    pub running: bool,
    pub host_network: bool,
    /// The node agent says that it is captured.
    pub enrolled: bool,
    /// Labelled to stay out.
    pub opted_out: bool,
    /// Its own label asks for the mesh, whatever that of its namespace says.
    pub opted_in: bool,
    /// It has a sidecar, beside which nothing is enrolled.
    pub sidecar: bool,
    /// Its namespace is left out by the node agents' settings.
    pub excluded: bool,
    /// Part of the mesh itself.
    pub mesh: bool,
    /// When it was started.
    pub started: Millis,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    /// Whether the cluster is known at all; without it, proxies are believed as far as their certificates reach.
    pub synced: bool,
    pods: HashMap<(Text, Text), Arc<Pod>>,
    /// Pods that have an address of their own and have not finished.
    by_address: HashMap<IpAddr, Arc<Pod>>,
    nodes: HashMap<IpAddr, Text>,
    /// Namespaces, and whether they are labelled for the mesh.
    pub namespaces: BTreeMap<Text, bool>,
}

impl Directory {
    /// A directory of these pods, node addresses and namespaces.
    pub fn new(
        pods: impl IntoIterator<Item = Pod>,
        nodes: impl IntoIterator<Item = (IpAddr, Text)>,
        namespaces: impl IntoIterator<Item = (Text, bool)>,
    ) -> Self {
        let mut directory = Self { synced: true, ..Self::default() };
        directory.nodes.extend(nodes);
        directory.namespaces.extend(namespaces);
        for pod in pods {
            let pod = Arc::new(pod);
            if !pod.finished && !pod.host_network {
                for address in &pod.addresses {
                    // Of two pods with one address the younger has it.
                    let older =
                        directory.by_address.get(address).is_some_and(|other| other.started > pod.started);
                    if !older {
                        directory.by_address.insert(*address, pod.clone());
                    }
                }
            }
            directory.pods.insert((pod.namespace.clone(), pod.name.clone()), pod);
        }
        directory
    }

    /// A pod by its name.
    pub fn pod(&self, namespace: &Text, name: &Text) -> Option<&Arc<Pod>> {
        self.pods.get(&(namespace.clone(), name.clone()))
    }

    /// The living pod that has an address for itself.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.by_address.get(&address)
    }

    /// The node that has an address.
    pub fn node_at(&self, address: IpAddr) -> Option<&Text> {
        self.nodes.get(&address)
    }

    /// Whether a node exists; true as long as nodes are not known.
    pub fn has_node(&self, name: &str) -> bool {
        self.nodes.is_empty() || self.nodes.values().any(|node| **node == *name)
    }

    /// All pods.
    pub fn pods(&self) -> impl Iterator<Item = &Arc<Pod>> {
        self.pods.values()
    }

    /// Whether the proxy of `node` may speak for what happened at `end` at some moment. A proxy speaks for pods only;
    /// a pod that is not known (yet, or any more) is nobody's lie; one that runs elsewhere, and did so at that
    /// moment, is.
    pub fn may_speak(&self, node: &str, end: &End, at: Millis) -> bool {
        if !self.synced {
            return true;
        }
        if end.pod.is_empty() {
            return false;
        }
        match self.pod(&end.namespace, &end.pod) {
            Some(pod) => pod.node.is_empty() || &*pod.node == node || at < pod.started,
            None => true,
        }
    }

    /// Completes an end of which a proxy only knows the address.
    pub fn complete(&self, end: End) -> End {
        if !end.pod.is_empty() {
            return end;
        }
        let Some(pod) = end.address.and_then(|address| self.pod_at(address)) else { return end };
        End {
            namespace: pod.namespace.clone(),
            pod: pod.name.clone(),
            workload: pod.workload.clone(),
            workload_type: pod.workload_type.clone(),
            node: pod.node.clone(),
            enrolled: pod.enrolled,
            ..end
        }
    }
}
