//! A work queue of keys: what every controller stands on.
//!
//! It exists so that many events about one object become one piece of work, that no two workers ever handle the
//! same key at once, and that failures come back later and later. It owns the order of work and the back-off;
//! it never knows what a key means, and it reads no clock: the time is always passed in.

use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What [`Queue::take`] found.
#[derive(Debug, PartialEq, Eq)]
pub enum Next<K> {
    /// Work on this key, then call [`Queue::done`].
    Key(K),
    /// Nothing is due before this moment.
    At(Instant),
    /// Nothing is waiting at all.
    Idle,
}

/// How the work on a key ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The key is as it should be until something changes.
    Settled,
    /// The key is worth another look after this long, whatever happens.
    Again(Duration),
    /// The work failed and comes back after a growing delay.
    Failed,
}

/// Keys waiting, keys due later, keys in work.
#[derive(Debug)]
pub struct Queue<K> {
    ready: VecDeque<K>,
    waiting: HashSet<K>,
    later: HashMap<K, Instant>,
    running: HashSet<K>,
    dirty: HashSet<K>,
    failures: HashMap<K, u32>,
}

impl<K: Clone + Eq + Hash> Default for Queue<K> {
    fn default() -> Self {
        Queue {
            ready: VecDeque::new(),
            waiting: HashSet::new(),
            later: HashMap::new(),
            running: HashSet::new(),
            dirty: HashSet::new(),
            failures: HashMap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash> Queue<K> {
    /// Asks for work on `key`. A key that is being worked on is worked on again afterwards.
    pub fn add(&mut self, key: K) {
        if self.running.contains(&key) {
            self.dirty.insert(key);
        } else if self.waiting.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    /// Asks for work on `key` at `when`; an earlier date wins.
    pub fn add_at(&mut self, key: K, when: Instant) {
        let due = self.later.entry(key).or_insert(when);
        *due = (*due).min(when);
    }

    /// The next key to work on, if one is due at `now`.
    pub fn take(&mut self, now: Instant) -> Next<K> {
        let due: Vec<K> =
            self.later.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        for key in due {
            self.later.remove(&key);
            self.add(key);
        }
        if let Some(key) = self.ready.pop_front() {
            self.waiting.remove(&key);
            self.running.insert(key.clone());
            return Next::Key(key);
        }
        self.later.values().min().map_or(Next::Idle, |at| Next::At(*at))
    }

    /// Ends the work on `key`.
    pub fn done(&mut self, key: &K, outcome: Outcome, now: Instant) {
        self.running.remove(key);
        let dirty = self.dirty.remove(key);
        match outcome {
            Outcome::Failed => {
                let failures = self.failures.entry(key.clone()).or_insert(0);
                let delay = FIRST_RETRY.saturating_mul(1 << (*failures).min(16)).min(LAST_RETRY);
                *failures += 1;
                self.add_at(key.clone(), now + delay);
                return;
            }
            Outcome::Again(delay) => self.add_at(key.clone(), now + delay),
            Outcome::Settled => {}
        }
        self.failures.remove(key);
        if dirty {
            self.add(key.clone());
        }
    }
}

#[cfg(test)]
mod tests;
