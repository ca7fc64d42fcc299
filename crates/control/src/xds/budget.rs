//! How many bytes of large pushes are under way at once.
//!
//! A push is copied into one message for each client. When all clients come back at the same time, each wants the whole
//! mesh: unbounded, that would be the mesh's size times the number of clients in memory.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes under way at once, in units of [`UNIT`].
const ROOM: u32 = 1024;
/// What is counted.
const UNIT: usize = 64 << 10;
/// A client that reads this slowly does not hold up the others any longer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Room for large pushes.
#[derive(Clone, Debug)]
pub struct Budget {
    room: Arc<Semaphore>,
    patience: Duration,
}

impl Default for Budget {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(ROOM as usize)), patience: PATIENCE }
    }
}

/// Room that a push takes; given back when the client has taken it, or after a while.
#[derive(Debug)]
pub struct Taken {
    _done: tokio::sync::oneshot::Sender<()>,
}

impl Budget {
    /// Waits for room for a push of so many bytes; small ones need none.
    pub async fn take(&self, bytes: usize) -> Option<Taken> {
        let units = u32::try_from(bytes / UNIT).unwrap_or(ROOM).min(ROOM);
        if units == 0 {
            return None;
        }
        let permit: OwnedSemaphorePermit = self.room.clone().acquire_many_owned(units).await.ok()?;
        let (done, ended) = tokio::sync::oneshot::channel();
        let patience = self.patience;
        tokio::spawn(async move {
            let _ = tokio::time::timeout(patience, ended).await;
            drop(permit);
        });
        Some(Taken { _done: done })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn large_pushes_wait_for_each_other_but_not_for_ever_and_small_ones_for_nobody() {
        let budget = Budget::default();
        let whole = budget.take(1 << 30).await;
        assert!(whole.is_some() && budget.take(100).await.is_none());
        let mut second = Box::pin(budget.take(1 << 30));
        assert!(futures::poll!(&mut second).is_pending());
        drop(whole);
        let second = second.await;
        assert!(second.is_some());
        drop(second);
        // A client that never takes what it was sent, and no patience: the next one gets its turn all the same.
        let budget = Budget { patience: Duration::ZERO, ..budget };
        let first = budget.take(1 << 30).await;
        let next = budget.take(1 << 30).await;
        assert!(first.is_some() && next.is_some());
    }
}
