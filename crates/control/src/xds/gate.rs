//! How many clients are at the beginning of their streams at once.
//!
//! A client that comes back names everything it has, and is told whatever is new: for a moment that is the whole mesh
//! in memory, once for it. When all clients come back at the same time (a restart, a node that cut the network) they
//! go through one after the other, each until it has answered what it was sent; before their turn not even their
//! requests are read. A client that is slow at it holds up no other for longer than [`PATIENCE`].

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

/// Clients inside at once.
const ROOM: usize = 16;
/// How long one stays inside, at most.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where clients pass through one after the other.
#[derive(Clone, Debug)]
pub(super) struct Gate {
    room: Arc<Semaphore>,
    patience: Duration,
}

impl Default for Gate {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(ROOM)), patience: PATIENCE }
    }
}

/// A client inside; others may follow once it is dropped, or after a while.
#[derive(Debug)]
pub(super) struct Inside {
    _done: oneshot::Sender<()>,
}

impl Gate {
    /// Waits for a turn.
    pub async fn enter(&self) -> Option<Inside> {
        let permit = self.room.clone().acquire_owned().await.ok()?;
        let (done, ended) = oneshot::channel::<()>();
        let patience = self.patience;
        tokio::spawn(async move {
            let _ = tokio::time::timeout(patience, ended).await;
            drop(permit);
        });
        Some(Inside { _done: done })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn clients_pass_one_after_the_other_and_none_blocks_the_gate_for_ever() {
        let gate = Gate { room: Arc::new(Semaphore::new(1)), ..Gate::default() };
        let first = gate.enter().await;
        let mut second = Box::pin(gate.enter());
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await);
        // One that never gets on, and no patience: the next one gets its turn all the same.
        let gate = Gate { patience: Duration::ZERO, ..gate };
        let (stuck, next) = (gate.enter().await, gate.enter().await);
        assert!(stuck.is_some() && next.is_some());
    }
}
