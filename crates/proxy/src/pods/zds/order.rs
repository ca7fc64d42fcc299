//! What a message of the node agent means and whether it may come now: pure, so that it can be tried with anything.
//!
//! First comes a snapshot (add and keep, ended once), then changes (add and delete). Add, and nothing else, carries a
//! descriptor.

use std::collections::BTreeSet;

use prost::Message;
use wire::zds::WorkloadRequest;
use wire::zds::workload_request::Payload;

use super::super::PodInfo;

/// How far a connection's snapshot is.
#[derive(Debug)]
pub(super) struct Order {
    /// Pods named by the snapshot so far; nothing once it is complete.
    listed: Option<BTreeSet<String>>,
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Serve the pod of this UID in the namespace that came along.
    Add(String, PodInfo),
    /// Nothing: the pod is named only so that it is not stopped.
    Keep,
    /// Stop serving the pod of this UID.
    Stop(String),
    /// Stop serving every pod but these.
    Complete(BTreeSet<String>),
}

impl Default for Order {
    fn default() -> Self {
        Self { listed: Some(BTreeSet::new()) }
    }
}

impl Order {
    /// Takes a message; says in the agent's words why it breaks the protocol.
    pub(super) fn take(&mut self, bytes: &[u8], with_descriptor: bool) -> Result<Step, String> {
        let unreadable = |text: &str| Err(format!("failure to read message : {text}"));
        let broken = |text: &str| Err(format!("failure to process message : {text}"));
        let payload = match WorkloadRequest::decode(bytes) {
            Ok(request) => request.payload,
            Err(error) => return unreadable(&error.to_string()),
        };
        if with_descriptor != matches!(payload, Some(Payload::Add(_))) {
            return unreadable("add, and only add, carries a descriptor");
        }
        match payload {
            Some(Payload::Add(add)) => {
                let Some(info) = add.workload_info else { return broken("add without workload_info") };
                if let Some(listed) = &mut self.listed {
                    listed.insert(add.uid.clone());
                }
                let info = PodInfo {
                    name: info.name,
                    namespace: info.namespace,
                    service_account: info.service_account,
                };
                Ok(Step::Add(add.uid, info))
            }
            Some(Payload::Keep(keep)) => match &mut self.listed {
                Some(listed) => {
                    listed.insert(keep.uid);
                    Ok(Step::Keep)
                }
                None => broken("keep after the snapshot"),
            },
            Some(Payload::Del(del)) => {
                if let Some(listed) = &mut self.listed {
                    listed.remove(&del.uid);
                }
                Ok(Step::Stop(del.uid))
            }
            Some(Payload::SnapshotSent(_)) => match self.listed.take() {
                Some(listed) => Ok(Step::Complete(listed)),
                None => broken("the snapshot was complete before"),
            },
            None => unreadable("it says nothing that is known here"),
        }
    }
}
