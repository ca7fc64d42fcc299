//! The work queue: each pod at most once, one worker a pod, and a pause that grows after each failure. Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
struct Item {
    /// When it is to be worked on; nothing while it is not wanted.
    due: Option<Instant>,
    working: bool,
    failures: u32,
}

/// Pods to work on, by UID.
#[derive(Debug, Default)]
pub(super) struct Queue {
    items: HashMap<String, Item>,
}

impl Queue {
    /// Wants a pod to be worked on now; if it is being worked on, once more after that.
    pub(super) fn push(&mut self, uid: String, now: Instant) {
        self.items.entry(uid).or_default().due = Some(now);
    }

    /// Whether a pod is being worked on or is to be at once.
    pub(super) fn is_working(&self, uid: &str) -> bool {
        self.items.get(uid).is_some_and(|item| item.working || (item.due.is_some() && item.failures == 0))
    }

    /// The pod that has waited longest, if one is due. It stays with the caller until [`Queue::done`].
    pub(super) fn pop(&mut self, now: Instant) -> Option<String> {
        let (uid, item) = self
            .items
            .iter_mut()
            .filter(|(_, item)| !item.working && item.due.is_some_and(|due| due <= now))
            .min_by_key(|(_, item)| item.due)?;
        item.due = None;
        item.working = true;
        Some(uid.clone())
    }

    /// The pod was worked on. A failure brings it back by itself, later each time.
    pub(super) fn done(&mut self, uid: &str, success: bool, now: Instant) {
        let Some(item) = self.items.get_mut(uid) else { return };
        item.working = false;
        if success {
            item.failures = 0;
            if item.due.is_none() {
                self.items.remove(uid);
            }
            return;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << item.failures.min(10)).min(LONGEST_PAUSE);
        item.failures += 1;
        // What was pushed meanwhile is news and does not wait.
        item.due.get_or_insert(now + pause);
    }

    /// When the next pod is due that nobody works on.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.items.values().filter(|item| !item.working).filter_map(|item| item.due).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_with_one_worker_at_a_time_and_news_is_not_lost() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.push("a".into(), now);
        queue.push("a".into(), now);
        assert_eq!(queue.pop(now).as_deref(), Some("a"));
        assert_eq!(queue.pop(now), None);
        queue.push("a".into(), now);
        assert_eq!(queue.pop(now), None);
        queue.done("a", true, now);
        assert_eq!(queue.pop(now).as_deref(), Some("a"));
        queue.done("a", true, now);
        assert_eq!(queue.next_due(), None);
    }

    #[test]
    fn a_failing_pod_comes_back_later_each_time_and_holds_nobody_up() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.push("bad".into(), now);
        let mut pauses = Vec::new();
        let mut time = now;
        for _ in 0..12 {
            assert_eq!(queue.pop(time).as_deref(), Some("bad"));
            queue.done("bad", false, time);
            let due = queue.next_due().unwrap();
            pauses.push(due - time);
            assert_eq!(queue.pop(time), None);
            time = due;
        }
        assert_eq!(pauses[0], FIRST_PAUSE);
        assert!(pauses.is_sorted());
        assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
        queue.push("good".into(), now);
        assert_eq!(queue.pop(now).as_deref(), Some("good"));
        queue.push("bad".into(), now);
        assert_eq!(queue.pop(now).as_deref(), Some("bad"));
    }
}
