//! The node agent tells which pods to serve (reference/enrolment.md §5).
//!
//! Exactly one connection, exactly one answer a message. Whatever the agent sends, the process goes on: a message
//! that breaks the protocol is answered with an error and the connection is made anew.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use netns::NetNs;
use netns::seqpacket::{RecvError, SeqPacket};
use prost::Message;
use tokio_util::sync::CancellationToken;
use wire::zds::workload_request::Payload;
use wire::zds::{Ack, AddWorkload, Version, WorkloadRequest, WorkloadResponse, ZdsHello, workload_response};

use super::{Manager, PodInfo};
use crate::ready::{Pending, Readiness};

const FIRST_RETRY: Duration = Duration::from_millis(20);
/// Looking for a local socket costs nothing, and while nobody has found it no pod of this node can start.
const LAST_RETRY: Duration = Duration::from_secs(1);
const POD_RETRY: Duration = Duration::from_secs(5);
const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// The agent's buffer; a longer error text would be cut by the socket.
const MAX_ERROR: usize = 900;

/// Name of the task that readiness waits for.
pub(crate) const TASK: &str = "workload proxy manager";

/// Talks to the agent until `stop`.
pub(crate) async fn run(
    path: std::path::PathBuf,
    manager: &mut Manager,
    readiness: &Readiness,
    first: Pending,
    stop: &CancellationToken,
) {
    let mut pending = Some(first);
    let mut pause = FIRST_RETRY;
    loop {
        let session = async {
            match SeqPacket::connect(&path).await {
                Ok(socket) => {
                    let session = Session { socket, listed: Some(BTreeSet::new()) };
                    let reason = session.run(manager, &mut pending).await;
                    tracing::warn!(reason, "the node agent's connection ended");
                    true
                }
                Err(error) => {
                    tracing::debug!(path = %path.display(), %error, "the node agent is not there");
                    // Pods that could not be served are tried again in any case.
                    manager.retry();
                    false
                }
            }
        };
        let Some(connected) = stop.run_until_cancelled(session).await else { return };
        pending.get_or_insert_with(|| readiness.pending(TASK));
        if connected {
            pause = FIRST_RETRY;
        }
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
        pause = (pause * 2).min(LAST_RETRY);
    }
}

struct Session {
    socket: SeqPacket,
    /// Pods named by the snapshot so far; nothing once it is complete.
    listed: Option<BTreeSet<String>>,
}

/// What became of a message.
enum Handled {
    Done,
    /// It could not be carried out; the connection goes on.
    Failed(String),
    /// It broke the protocol; the connection does not go on.
    Broken(String),
}

impl Session {
    async fn run(mut self, manager: &mut Manager, pending: &mut Option<Pending>) -> String {
        let hello = ZdsHello { version: Version::V1.into() }.encode_to_vec();
        if let Err(reason) = self.send(&hello).await {
            return reason;
        }
        loop {
            let received = if manager.has_failed() {
                match tokio::time::timeout(POD_RETRY, self.socket.recv()).await {
                    Ok(received) => received,
                    Err(_) => {
                        manager.retry();
                        continue;
                    }
                }
            } else {
                self.socket.recv().await
            };
            let handled = match received {
                Ok((bytes, fd)) => self.handle(&bytes, fd, manager, pending),
                Err(error @ (RecvError::Closed | RecvError::Io(_))) => return error.to_string(),
                Err(error) => Handled::Broken(format!("failure to read message : {error}")),
            };
            let (error, end) = match handled {
                Handled::Done => (String::new(), None),
                Handled::Failed(error) => (error, None),
                Handled::Broken(error) => (error.clone(), Some(error)),
            };
            if let Err(reason) = self.answer(error).await {
                return reason;
            }
            if let Some(reason) = end {
                return reason;
            }
        }
    }

    async fn answer(&self, mut error: String) -> Result<(), String> {
        let mut end = error.len().min(MAX_ERROR);
        while !error.is_char_boundary(end) {
            end -= 1;
        }
        error.truncate(end);
        let response = WorkloadResponse { payload: Some(workload_response::Payload::Ack(Ack { error })) };
        self.send(&response.encode_to_vec()).await
    }

    async fn send(&self, bytes: &[u8]) -> Result<(), String> {
        match tokio::time::timeout(SEND_TIMEOUT, self.socket.send(bytes, None)).await {
            Ok(result) => result.map_err(|error| error.to_string()),
            Err(_) => Err(format!("the node agent took nothing for {SEND_TIMEOUT:?}")),
        }
    }

    fn handle(
        &mut self,
        bytes: &[u8],
        fd: Option<OwnedFd>,
        manager: &mut Manager,
        pending: &mut Option<Pending>,
    ) -> Handled {
        let broken = |text: &str| Handled::Broken(format!("failure to process message : {text}"));
        let payload = match WorkloadRequest::decode(bytes) {
            Ok(request) => request.payload,
            Err(error) => return Handled::Broken(format!("failure to read message : {error}")),
        };
        if fd.is_some() != matches!(payload, Some(Payload::Add(_))) {
            return Handled::Broken(
                "failure to read message : add, and only add, carries a descriptor".into(),
            );
        }
        match payload {
            Some(Payload::Add(add)) => match fd {
                Some(fd) => self.add(add, fd, manager),
                None => broken("add without a network namespace"),
            },
            Some(Payload::Keep(keep)) => match &mut self.listed {
                Some(listed) => {
                    listed.insert(keep.uid);
                    Handled::Done
                }
                None => broken("keep after the snapshot"),
            },
            Some(Payload::Del(del)) => {
                if let Some(listed) = &mut self.listed {
                    listed.remove(&del.uid);
                }
                manager.stop(&del.uid);
                Handled::Done
            }
            Some(Payload::SnapshotSent(_)) => match self.listed.take() {
                Some(listed) => {
                    manager.reconcile(&listed);
                    // One pod that cannot be served is reported; it does not make the node unready.
                    *pending = None;
                    Handled::Done
                }
                None => broken("the snapshot was complete before"),
            },
            None => Handled::Broken("failure to read message : it says nothing that is known here".into()),
        }
    }

    fn add(&mut self, add: AddWorkload, fd: OwnedFd, manager: &mut Manager) -> Handled {
        let Some(info) = add.workload_info else {
            return Handled::Broken("failure to process message : add without workload_info".into());
        };
        if let Some(listed) = &mut self.listed {
            listed.insert(add.uid.clone());
        }
        let netns = match NetNs::from_fd(fd) {
            Ok(netns) => netns,
            Err(error) => return Handled::Failed(format!("failure to start proxy : {error}")),
        };
        let info =
            PodInfo { name: info.name, namespace: info.namespace, service_account: info.service_account };
        match manager.add(&add.uid, info, netns) {
            Ok(()) => Handled::Done,
            Err(reason) => Handled::Failed(format!("failure to start proxy : {reason}")),
        }
    }
}
