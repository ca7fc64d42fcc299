//! Giving memory back to the system after a burst of connections.
//!
//! The allocator keeps what was freed, and a proxy that once held thousands of connections would look as if it still
//! did. Asking it to return pages walks through all that it has, so that is done once a burst, never once a connection.

/// Connections that must have ended since the last time.
const BURST: i64 = 500;

/// How far the connections that are open have fallen from where they were most.
#[derive(Default)]
pub(crate) struct Tide {
    most: i64,
}

impl Tide {
    /// Takes in how many are `open` now; whether a burst has ended.
    pub(crate) fn has_ebbed(&mut self, open: i64) -> bool {
        self.most = self.most.max(open);
        let ebbed = self.most - open >= BURST;
        if ebbed {
            self.most = open;
        }
        ebbed
    }
}

/// Returns what the allocator keeps and nobody uses.
#[cfg(target_env = "gnu")]
pub(crate) fn give_back() {
    // SAFETY: malloc_trim has no preconditions, and glibc lets any thread call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Other allocators do so by themselves.
#[cfg(not(target_env = "gnu"))]
pub(crate) fn give_back() {}

#[cfg(test)]
mod tests {
    use super::Tide;

    #[test]
    fn memory_is_given_back_once_for_each_burst_that_ends() {
        let mut tide = Tide::default();
        let ebbed: Vec<i64> = [0, 400, 5, 2000, 1501, 1500, 1400, 1000, 3000, 0, 0]
            .into_iter()
            .filter(|open| tide.has_ebbed(*open))
            .collect();
        assert_eq!(ebbed, [1500, 1000, 0]);
    }
}
