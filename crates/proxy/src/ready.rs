//! What must have happened before the proxy is ready.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// The tasks that are still pending. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, usize>>>);

/// As long as this is held, the proxy is not ready.
#[derive(Debug)]
pub struct Pending {
    tasks: Readiness,
    name: &'static str,
}

impl Readiness {
    /// Not ready until the result is dropped.
    pub fn pending(&self, name: &'static str) -> Pending {
        *self.0.lock().entry(name).or_default() += 1;
        Pending { tasks: self.clone(), name }
    }

    /// What is pending, sorted; nothing: ready.
    pub fn list(&self) -> Vec<&'static str> {
        self.0.lock().keys().copied().collect()
    }

    /// Waits until `name` is no longer pending.
    pub(crate) fn is_pending(&self, name: &str) -> bool {
        self.0.lock().contains_key(name)
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let mut tasks = self.tasks.0.lock();
        if let Some(count) = tasks.get_mut(self.name) {
            *count -= 1;
            if *count == 0 {
                tasks.remove(self.name);
            }
        }
    }
}
