//! The mesh as it is known now: one owner publishes, everybody reads.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh::View;
use tokio::sync::watch;

/// The latest [`View`], and word of changes. Clones share it.
#[derive(Clone, Debug)]
pub struct Views {
    view: Arc<ArcSwap<View>>,
    changes: Arc<watch::Sender<u64>>,
}

impl Default for Views {
    fn default() -> Self {
        Self {
            view: Arc::new(ArcSwap::from_pointee(View::default())),
            changes: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Views {
    /// What is known now.
    pub fn load(&self) -> Arc<View> {
        self.view.load_full()
    }

    /// Replaces what is known. For the one owner.
    pub fn publish(&self, view: View) {
        self.view.store(Arc::new(view));
        self.changes.send_modify(|epoch| *epoch += 1);
    }

    /// Changes whenever something is published.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until `find` finds what it looks for, at most for `within`.
    pub async fn wait<T>(&self, within: Duration, find: impl Fn(&View) -> Option<T>) -> Option<T> {
        if let Some(found) = find(&self.load()) {
            return Some(found);
        }
        let mut changes = self.changes();
        let search = async {
            loop {
                // Looked at after subscribing, so that nothing published in between is missed.
                if let Some(found) = find(&self.load()) {
                    return Some(found);
                }
                changes.changed().await.ok()?;
            }
        };
        tokio::time::timeout(within, search).await.ok().flatten()
    }
}
