use std::os::fd::OwnedFd;

use netns::seqpacket::SeqPacket;
use prost::Message;
use wire::zds::workload_request::Payload;
use wire::zds::{Ack, WorkloadRequest, WorkloadResponse, ZdsHello, workload_response};

use super::*;

fn workload(uid: &str) -> Workload {
    let info = WorkloadInfo { name: "a".into(), namespace: "shop".into(), service_account: "default".into() };
    Workload { uid: uid.into(), info, netns: Some(NetNs::current().unwrap()) }
}

/// A proxy of the test: connects, says hello, and answers what the test tells it to.
struct Proxy(SeqPacket);

impl Proxy {
    async fn connect(path: &std::path::Path) -> Self {
        let proxy = Self(SeqPacket::connect(path).await.unwrap());
        proxy.0.send(&ZdsHello { version: 1 }.encode_to_vec(), None).await.unwrap();
        proxy
    }

    async fn next(&self) -> (Payload, Option<OwnedFd>) {
        let (bytes, fd) = self.0.recv().await.unwrap();
        (WorkloadRequest::decode(bytes.as_slice()).unwrap().payload.unwrap(), fd)
    }

    async fn ack(&self, error: &str) {
        let payload = Some(workload_response::Payload::Ack(Ack { error: error.into() }));
        self.0.send(&WorkloadResponse { payload }.encode_to_vec(), None).await.unwrap();
    }

    /// Takes the snapshot and gives the UIDs that were in it.
    async fn snapshot(&self) -> Vec<String> {
        let mut uids = Vec::new();
        loop {
            let (payload, fd) = self.next().await;
            self.ack("").await;
            match payload {
                Payload::Add(add) => {
                    NetNs::from_fd(fd.unwrap()).unwrap();
                    uids.push(add.uid);
                }
                Payload::Keep(keep) => uids.push(format!("keep {}", keep.uid)),
                Payload::SnapshotSent(_) => return uids,
                Payload::Del(del) => panic!("{} is not to be deleted in a snapshot", del.uid),
            }
        }
    }
}

struct Served {
    zds: Zds,
    path: std::path::PathBuf,
    live: watch::Receiver<usize>,
    _dir: tempfile::TempDir,
    _stop: tokio_util::sync::DropGuard,
}

fn serve(zds: Zds) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("z.sock");
    let listener = SeqPacketListener::bind(&path, 0o660).unwrap();
    let stop = CancellationToken::new();
    let server = zds.clone();
    let token = stop.clone();
    tokio::spawn(async move { server.serve(listener, token).await });
    Served { live: zds.live(), zds, path, _dir: dir, _stop: stop.drop_guard() }
}

impl Served {
    async fn live(&mut self, count: usize) {
        self.live.wait_for(|live| *live == count).await.unwrap();
    }
}

#[tokio::test]
async fn a_proxy_gets_the_snapshot_and_then_each_change_with_its_descriptor() {
    let zds = Zds::default();
    zds.prepare(workload("one"));
    zds.prepare(Workload { netns: None, ..workload("lost") });
    let mut served = serve(zds);
    let proxy = Proxy::connect(&served.path).await;
    let mut uids = proxy.snapshot().await;
    uids.sort();
    assert_eq!(uids, ["keep lost", "one"]);
    served.live(1).await;
    assert!(served.zds.carried("one", &NetNs::current().unwrap()));

    let (result, ()) = tokio::join!(served.zds.add(workload("two")), async {
        let (payload, fd) = proxy.next().await;
        assert!(matches!(payload, Payload::Add(add) if add.uid == "two" && add.workload_info.is_some()));
        assert!(fd.is_some());
        proxy.ack("").await;
    });
    result.unwrap();
    let (result, ()) = tokio::join!(served.zds.del("two"), async {
        let (payload, fd) = proxy.next().await;
        assert!(matches!(payload, Payload::Del(del) if del.uid == "two"));
        assert!(fd.is_none());
        proxy.ack("").await;
    });
    result.unwrap();
    drop(proxy);
    served.live(0).await;
    assert!(!served.zds.carried("one", &NetNs::current().unwrap()));
}

#[tokio::test]
async fn without_a_proxy_an_add_fails_and_the_next_proxy_gets_the_pod() {
    let mut served = serve(Zds::default());
    assert!(matches!(served.zds.add(workload("one")).await, Err(Error::NoProxy)));
    let proxy = Proxy::connect(&served.path).await;
    assert_eq!(proxy.snapshot().await, ["one"]);
    served.live(1).await;
    served.zds.add(workload("one")).await.unwrap();
}

#[tokio::test]
async fn a_pod_that_a_proxy_refuses_is_owed_until_it_takes_it() {
    let mut served = serve(Zds::default());
    let proxy = Proxy::connect(&served.path).await;
    proxy.snapshot().await;
    served.live(1).await;
    let (result, ()) = tokio::join!(served.zds.add(workload("bad")), async {
        proxy.next().await;
        proxy.ack("failure to start proxy : 15008 is taken").await;
    });
    assert!(matches!(result, Err(Error::Refused(text)) if text.contains("15008")));
    assert_eq!(served.zds.owed(), ["bad"]);
    let (result, ()) = tokio::join!(served.zds.add(workload("bad")), async {
        proxy.next().await;
        proxy.ack("").await;
    });
    result.unwrap();
    assert!(served.zds.owed().is_empty());
}

#[tokio::test]
async fn during_an_upgrade_both_proxies_get_what_changes() {
    let mut served = serve(Zds::default());
    let old = Proxy::connect(&served.path).await;
    old.snapshot().await;
    let new = Proxy::connect(&served.path).await;
    new.snapshot().await;
    served.live(2).await;
    let take = async |proxy: &Proxy| {
        assert!(matches!(proxy.next().await.0, Payload::Add(_)));
        proxy.ack("").await;
    };
    let (result, (), ()) = tokio::join!(served.zds.add(workload("one")), take(&old), take(&new));
    result.unwrap();
    drop(old);
    served.live(1).await;
    assert!(served.zds.carried("one", &NetNs::current().unwrap()));
}

#[tokio::test]
async fn a_proxy_that_speaks_unasked_or_nonsense_is_dropped_and_others_go_on() {
    let mut served = serve(Zds::default());
    let good = Proxy::connect(&served.path).await;
    good.snapshot().await;
    let bad = Proxy::connect(&served.path).await;
    bad.snapshot().await;
    served.live(2).await;
    bad.ack("").await;
    served.live(1).await;
    let garbage = SeqPacket::connect(&served.path).await.unwrap();
    garbage.send(&[0xff; 64], None).await.unwrap();
    assert!(garbage.recv().await.is_err());
    let (result, ()) = tokio::join!(served.zds.add(workload("one")), async {
        good.next().await;
        good.ack("").await;
    });
    result.unwrap();
}
