//! The node agent tells which pods to serve (reference/enrolment.md §5).
//!
//! Exactly one connection, exactly one answer a message. Whatever the agent sends, the process goes on: a message
//! that breaks the protocol is answered with an error and the connection is made anew. What a message means is decided
//! in [`order`]; here it is carried out.

mod exercise;
mod order;

use std::os::fd::OwnedFd;
use std::time::Duration;

use netns::NetNs;
use netns::seqpacket::{RecvError, SeqPacket};
use prost::Message;
use tokio_util::sync::CancellationToken;
use wire::zds::{Ack, Version, WorkloadResponse, ZdsHello, workload_response};

use super::{Manager, PodInfo};
use crate::ready::{Pending, Readiness};
use order::{Order, Step};

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
                    let session = Session { socket, order: Order::default() };
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
    order: Order,
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
        let step = match self.order.take(bytes, fd.is_some()) {
            Ok(step) => step,
            Err(error) => return Handled::Broken(error),
        };
        match (step, fd) {
            (Step::Add(uid, info), Some(fd)) => return add(&uid, info, fd, manager),
            (Step::Add(..), None) => {
                return Handled::Broken(
                    "failure to process message : add without a network namespace".into(),
                );
            }
            (Step::Keep, _) => {}
            (Step::Stop(uid), _) => manager.stop(&uid),
            (Step::Complete(listed), _) => {
                manager.reconcile(&listed);
                // One pod that cannot be served is reported; it does not make the node unready.
                *pending = None;
            }
        }
        Handled::Done
    }
}

fn add(uid: &str, info: PodInfo, fd: OwnedFd, manager: &mut Manager) -> Handled {
    let netns = match NetNs::from_fd(fd) {
        Ok(netns) => netns,
        Err(error) => return Handled::Failed(format!("failure to start proxy : {error}")),
    };
    match manager.add(uid, info, netns) {
        Ok(()) => Handled::Done,
        Err(reason) => Handled::Failed(format!("failure to start proxy : {reason}")),
    }
}

pub use exercise::exercise;
