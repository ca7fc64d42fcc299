//! Whatever node agent and node proxy send each other over ZDS: the same packets at either end.

use prost::Message;
use wire::zds::workload_request::Payload;
use wire::zds::{
    Ack, AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest,
    WorkloadResponse, ZdsHello, workload_response,
};

use super::{joined, pieces, runtime};

pub fn run(input: &[u8]) {
    let pieces = pieces(input);
    proxy::exercise_zds(pieces.iter().copied());
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = runtime();
    }
    let packets = pieces.iter().map(|(_, piece)| *piece).filter(|piece| !piece.is_empty());
    RUNTIME.with(|runtime| runtime.block_on(enroll::zds::exercise(packets)));
}

pub fn examples() -> Vec<Vec<u8>> {
    let uid = || "uid-a".to_owned();
    let info = WorkloadInfo { name: "a".into(), namespace: "shop".into(), service_account: "web".into() };
    let agent = [
        Payload::Keep(KeepWorkload { uid: uid() }),
        Payload::Add(AddWorkload { uid: uid(), workload_info: Some(info) }),
        Payload::SnapshotSent(SnapshotSent {}),
        Payload::Del(DelWorkload { uid: uid() }),
    ];
    let agent = agent.map(|payload| {
        let add = matches!(payload, Payload::Add(_));
        (add, WorkloadRequest { payload: Some(payload) }.encode_to_vec())
    });
    let ack = |error: &str| {
        let payload = Some(workload_response::Payload::Ack(Ack { error: error.into() }));
        (false, WorkloadResponse { payload }.encode_to_vec())
    };
    let proxy = [(false, ZdsHello { version: 1 }.encode_to_vec()), ack("no"), ack("x"), ack("no more")];
    [agent, proxy].iter().map(|packets| joined(packets.iter().map(|(fd, bytes)| (*fd, &bytes[..])))).collect()
}
