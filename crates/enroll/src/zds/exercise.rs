//! What must hold for anything that a node proxy sends: for fuzzing.

use netns::NetNs;
use netns::seqpacket::SeqPacket;
use wire::zds::WorkloadInfo;

use super::{Workload, Zds, session};

/// Serves a proxy that sends `packets` one after the other and goes away, while it has a pod to be told of and another
/// one to be kept. Panics where a promise is broken.
pub async fn exercise<'a>(packets: impl IntoIterator<Item = &'a [u8]>) {
    let (Ok((agent, proxy)), Ok(netns)) = (SeqPacket::pair(), NetNs::current()) else { return };
    let zds = Zds::default();
    for (uid, netns) in [("a", Some(netns)), ("b", None)] {
        let info = WorkloadInfo { name: uid.into(), ..WorkloadInfo::default() };
        zds.prepare(Workload { uid: uid.into(), info, netns });
    }
    // Far fewer than what a socket holds.
    for packet in packets.into_iter().take(16) {
        if proxy.send(packet, None).await.is_err() {
            break;
        }
    }
    drop(proxy);
    session::run(&zds, agent).await;
    assert_eq!(*zds.live().borrow(), 0, "a proxy that is gone counts");
    let table = zds.inner.table.lock();
    assert!(table.sessions.is_empty(), "a session without a socket");
    assert!(table.entries.values().all(|entry| entry.acked.is_empty()), "carried by a proxy that is gone");
    assert_eq!(table.entries.len(), 2, "whatever a proxy says, the list is the agent's");
}
