//! One connected node proxy: hello, snapshot, then changes, one message in flight at a time.
//!
//! A session ends when the proxy closes, breaks the order of the protocol or lets an ack wait too long; the
//! proxy comes back by itself and gets a new snapshot. It never outlives its socket.

use std::os::fd::AsFd;

use netns::seqpacket::{RecvError, SeqPacket};
use prost::Message;
use tokio::sync::mpsc;
use wire::zds::workload_request::Payload;
use wire::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadRequest, WorkloadResponse, ZdsHello,
    workload_response,
};

use super::{ACK_PATIENCE, Change, Error, MAX_SESSIONS, Session, Workload, Zds};

/// Why a session ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("it closed the connection")]
    Closed,
    #[error("it did not say hello within {} s", ACK_PATIENCE.as_secs())]
    NoHello,
    #[error("it did not acknowledge within {} s", ACK_PATIENCE.as_secs())]
    NoAck,
    #[error("it sent {0}")]
    Protocol(&'static str),
    #[error(transparent)]
    Socket(#[from] RecvError),
    #[error("cannot send: {0}")]
    Send(#[from] std::io::Error),
}

pub(super) async fn run(zds: &Zds, socket: SeqPacket) {
    let mut registration = None;
    let ended = serve(zds, &socket, &mut registration).await;
    let id = registration.as_ref().map(|registration| registration.id);
    match ended {
        Ended::Closed => tracing::info!(session = id, "node proxy disconnected"),
        fault => tracing::warn!(session = id, reason = %fault, "ended the connection of a node proxy"),
    }
}

/// A session's place in the table; given up on drop, whatever ended it.
struct Registration<'a> {
    zds: &'a Zds,
    id: u64,
}

impl Drop for Registration<'_> {
    fn drop(&mut self) {
        let mut table = self.zds.inner.table.lock();
        table.sessions.remove(&self.id);
        for entry in table.entries.values_mut() {
            entry.acked.remove(&self.id);
        }
        let live = table.sessions.values().filter(|session| session.live).count();
        drop(table);
        self.zds.inner.live.send_replace(live);
    }
}

async fn serve<'a>(zds: &'a Zds, socket: &SeqPacket, registration: &mut Option<Registration<'a>>) -> Ended {
    match session(zds, socket, registration).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    }
}

async fn session<'a>(
    zds: &'a Zds,
    socket: &SeqPacket,
    registration: &mut Option<Registration<'a>>,
) -> Result<std::convert::Infallible, Ended> {
    let hello = tokio::time::timeout(ACK_PATIENCE, receive(socket)).await.map_err(|_| Ended::NoHello)??;
    ZdsHello::decode(hello.as_slice()).map_err(|_| Ended::Protocol("a hello that cannot be decoded"))?;

    // Registered and listed in one step: what changes from here on is queued and comes after the snapshot.
    let (id, snapshot, mut changes) = register(zds);
    *registration = Some(Registration { zds, id });
    tracing::info!(session = id, pods = snapshot.len(), "node proxy connected");
    for workload in snapshot {
        let uid = workload.uid.clone();
        let answer = match &workload.netns {
            Some(_) => add(socket, &workload).await?,
            None => exchange(socket, Payload::Keep(KeepWorkload { uid: uid.clone() }), None).await?,
        };
        match answer {
            Ok(()) => acked(zds, id, &workload),
            Err(error) => tracing::warn!(session = id, uid, %error, "node proxy cannot serve a pod"),
        }
    }
    if let Err(error) = exchange(socket, Payload::SnapshotSent(SnapshotSent {}), None).await? {
        tracing::warn!(session = id, %error, "node proxy refused the end of the snapshot");
    }
    go_live(zds, id);

    loop {
        tokio::select! {
            biased;
            packet = receive(socket) => {
                packet?;
                return Err(Ended::Protocol("a message that nothing was asked for"));
            }
            change = changes.recv() => match change {
                Some(Change::Add(workload, answer)) => {
                    let result = add(socket, &workload).await;
                    if matches!(result, Ok(Ok(()))) {
                        acked(zds, id, &workload);
                    }
                    reply(answer, result)?;
                }
                Some(Change::Del(uid, answer)) => {
                    let result = exchange(socket, Payload::Del(DelWorkload { uid }), None).await;
                    reply(answer, result)?;
                }
                None => return Err(Ended::Closed),
            },
        }
    }
}

/// Tells the caller; an answer that never came ends the session after that.
fn reply(answer: super::Answer, result: Result<Result<(), Error>, Ended>) -> Result<(), Ended> {
    match result {
        Ok(result) => {
            // The caller may have given up meanwhile; the proxy's state is in the table either way.
            let _ = answer.send(result);
            Ok(())
        }
        Err(ended) => {
            let _ = answer.send(Err(Error::NoAnswer(ended.to_string())));
            Err(ended)
        }
    }
}

fn register(zds: &Zds) -> (u64, Vec<Workload>, mpsc::Receiver<Change>) {
    let (changes, queue) = mpsc::channel(16 * MAX_SESSIONS);
    let mut table = zds.inner.table.lock();
    let id = table.next;
    table.next += 1;
    table.sessions.insert(id, Session { changes, live: false });
    (id, table.entries.values().map(|entry| entry.workload.clone()).collect(), queue)
}

fn go_live(zds: &Zds, id: u64) {
    let live = {
        let mut table = zds.inner.table.lock();
        if let Some(session) = table.sessions.get_mut(&id) {
            session.live = true;
        }
        table.sessions.values().filter(|session| session.live).count()
    };
    zds.inner.live.send_replace(live);
}

fn acked(zds: &Zds, id: u64, workload: &Workload) {
    let mut table = zds.inner.table.lock();
    if let Some(entry) = table.entries.get_mut(&workload.uid)
        && super::same_netns(&entry.workload, workload)
    {
        entry.acked.insert(id);
    }
}

async fn add(socket: &SeqPacket, workload: &Workload) -> Result<Result<(), Error>, Ended> {
    let message = AddWorkload { uid: workload.uid.clone(), workload_info: Some(workload.info.clone()) };
    exchange(socket, Payload::Add(message), workload.netns.as_ref()).await
}

/// Sends one message and waits for its ack.
async fn exchange(
    socket: &SeqPacket,
    payload: Payload,
    netns: Option<&netns::NetNs>,
) -> Result<Result<(), Error>, Ended> {
    let bytes = WorkloadRequest { payload: Some(payload) }.encode_to_vec();
    let work = async {
        socket.send(&bytes, netns.map(|namespace| namespace.as_fd())).await?;
        receive(socket).await
    };
    let packet = tokio::time::timeout(ACK_PATIENCE, work).await.map_err(|_| Ended::NoAck)??;
    let response = WorkloadResponse::decode(packet.as_slice())
        .map_err(|_| Ended::Protocol("an answer that cannot be decoded"))?;
    match response.payload {
        Some(workload_response::Payload::Ack(ack)) if ack.error.is_empty() => Ok(Ok(())),
        Some(workload_response::Payload::Ack(ack)) => Ok(Err(Error::Refused(ack.error))),
        None => Err(Ended::Protocol("an answer that is no ack")),
    }
}

/// The next packet; a descriptor that came along is closed.
async fn receive(socket: &SeqPacket) -> Result<Vec<u8>, Ended> {
    match socket.recv().await {
        Ok((bytes, _)) => Ok(bytes),
        Err(RecvError::Closed) => Err(Ended::Closed),
        Err(RecvError::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionReset => {
            Err(Ended::Closed)
        }
        Err(error) => Err(error.into()),
    }
}
