//! Looking for namespaces: a look walks over the whole node, so one look serves all pods that wait for one.

use std::net::IpAddr;

use netns::NetNs;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::netns_of::{Finder, Wanted};

struct Waiting {
    uid: String,
    ips: Vec<IpAddr>,
    tell: oneshot::Sender<Option<NetNs>>,
}

/// Who waits for the next look.
#[derive(Default)]
pub(super) struct Finds {
    waiting: Mutex<Vec<Waiting>>,
    /// Held while somebody looks.
    turn: tokio::sync::Mutex<()>,
}

impl Finds {
    /// The namespace of the pod `uid`, which must carry one of `ips`.
    pub(super) async fn find(&self, finder: &Finder, uid: &str, ips: &[IpAddr]) -> Option<NetNs> {
        let (tell, told) = oneshot::channel();
        self.waiting.lock().push(Waiting { uid: uid.to_owned(), ips: ips.to_vec(), tell });
        {
            let _turn = self.turn.lock().await;
            // Empty when whoever had the turn before looked for this pod too.
            let waiting = std::mem::take(&mut *self.waiting.lock());
            if !waiting.is_empty() {
                let finder = finder.clone();
                let wanted: Wanted = waiting.iter().map(|one| (one.uid.clone(), one.ips.clone())).collect();
                let found = tokio::task::spawn_blocking(move || finder.find(&wanted)).await;
                let found = found.unwrap_or_default();
                for one in waiting {
                    let _ = one.tell.send(found.get(&one.uid).cloned());
                }
            }
        }
        told.await.ok().flatten()
    }
}
