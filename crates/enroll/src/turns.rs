//! Work that one does for all who wait for it: many want a change, each change carries everything that was wanted
//! when it began, and so most of those who waited for their turn find theirs done.

use std::sync::atomic::{AtomicU64, Ordering};

/// How far the work is. What is wanted is counted by whoever owns it, in generations that grow.
#[derive(Debug, Default)]
pub struct Turns {
    /// Held while the work is done.
    turn: tokio::sync::Mutex<()>,
    done: AtomicU64,
}

impl Turns {
    /// Returns once what was wanted at `generation` is done. `work` does all that is wanted when it begins and answers
    /// which generation that was; it is not begun when somebody else did it meanwhile. Work that failed is not done:
    /// the next one tries again.
    pub async fn reach<E>(
        &self,
        generation: u64,
        work: impl Future<Output = Result<u64, E>>,
    ) -> Result<(), E> {
        let done = || self.done.load(Ordering::Acquire) >= generation;
        if done() {
            return Ok(());
        }
        let _turn = self.turn.lock().await;
        if done() {
            return Ok(());
        }
        let reached = work.await?;
        self.done.store(reached, Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use futures::future::join_all;

    use super::*;

    #[tokio::test]
    async fn one_piece_of_work_serves_all_who_wait_and_a_failed_one_nobody() {
        let (turns, wanted, begun) = (Turns::default(), AtomicU64::new(0), AtomicU64::new(0));
        let change = |fails: bool| {
            let generation = wanted.fetch_add(1, Ordering::Relaxed) + 1;
            let (wanted, begun) = (&wanted, &begun);
            turns.reach(generation, async move {
                begun.fetch_add(1, Ordering::Relaxed);
                let generation = wanted.load(Ordering::Relaxed);
                tokio::task::yield_now().await;
                if fails { Err(()) } else { Ok(generation) }
            })
        };
        let results = join_all((0..100).map(|n| change(n == 0))).await;
        // The first fails for itself alone; the second does it for everybody.
        assert_eq!(results.iter().filter(|result| result.is_err()).count(), 1);
        assert_eq!(begun.load(Ordering::Relaxed), 2);
    }
}
