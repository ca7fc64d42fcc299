//! What runs on the node at this moment, for those who ask from outside the loop.
//!
//! Workers write their pod's entry; the kubelet server reads. Nobody holds the lock longer than a look.

use std::collections::HashMap;

use netns::NetNs;
use parking_lot::RwLock;

use crate::node::border::{ContainerRef, PodError, Pods};
use crate::node::layout;

/// One pod as the kubelet server needs it.
#[derive(Clone, Debug, Default)]
pub struct Entry {
    /// The pod's UID: a pod of the same name may follow before this one has left.
    pub uid: String,
    /// The container meant when none is named.
    pub default: Option<String>,
    /// Its containers by name, init containers last.
    pub containers: Vec<(String, ContainerRef)>,
    /// Its network namespace while its sandbox stands.
    pub netns: Option<NetNs>,
}

/// All pods of the node.
#[derive(Debug, Default)]
pub struct Registry(RwLock<HashMap<(String, String), Entry>>);

impl Registry {
    /// Writes a pod's entry.
    pub fn set(&self, namespace: &str, name: &str, entry: Entry) {
        self.0.write().insert((namespace.to_owned(), name.to_owned()), entry);
    }

    /// Forgets a pod unless another one has taken its name.
    pub fn remove(&self, namespace: &str, name: &str, uid: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut pods = self.0.write();
        if pods.get(&key).is_some_and(|e| e.uid == uid) {
            pods.remove(&key);
        }
    }

    fn get(&self, namespace: &str, pod: &str) -> Result<Entry, PodError> {
        let key = (namespace.to_owned(), pod.to_owned());
        self.0.read().get(&key).cloned().ok_or(PodError::NoSuchPod)
    }
}

impl Pods for Registry {
    fn container(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
    ) -> Result<ContainerRef, PodError> {
        let entry = self.get(namespace, pod)?;
        let wanted = container.map(str::to_owned).or_else(|| entry.default.clone());
        let found = match &wanted {
            Some(name) => entry.containers.iter().find(|(n, _)| n == name),
            None => entry.containers.first(),
        };
        found
            .map(|(_, reference)| reference.clone())
            .ok_or_else(|| PodError::NoSuchContainer(wanted.unwrap_or_default()))
    }

    fn netns(&self, namespace: &str, pod: &str) -> Result<NetNs, PodError> {
        let entry = self.get(namespace, pod)?;
        entry.netns.ok_or_else(|| PodError::NotRunning("the pod has no sandbox".to_owned()))
    }
}

/// A container that never ran.
pub fn never_ran(log: std::path::PathBuf) -> ContainerRef {
    ContainerRef {
        id: String::new(),
        runc_root: layout::RUNC_ROOT.into(),
        running: false,
        log,
        previous_log: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(uid: &str) -> Entry {
        let containers = ["a", "b"].map(|n| (n.to_owned(), never_ran(format!("/{n}").into())));
        Entry { uid: uid.to_owned(), default: Some("b".into()), containers: containers.into(), netns: None }
    }

    #[test]
    fn an_unnamed_container_is_the_default_one() {
        let pods = Registry::default();
        pods.set("n", "p", entry("1"));
        assert_eq!(pods.container("n", "p", None).unwrap().log.to_str(), Some("/b"));
        assert_eq!(pods.container("n", "p", Some("a")).unwrap().log.to_str(), Some("/a"));
        assert_eq!(pods.container("n", "p", Some("x")), Err(PodError::NoSuchContainer("x".into())));
        assert_eq!(pods.container("n", "q", None), Err(PodError::NoSuchPod));
        assert!(matches!(pods.netns("n", "p"), Err(PodError::NotRunning(_))));
    }

    #[test]
    fn a_leaving_pod_does_not_take_its_successor_along() {
        let pods = Registry::default();
        pods.set("n", "p", entry("2"));
        pods.remove("n", "p", "1");
        assert!(pods.container("n", "p", None).is_ok());
    }
}
