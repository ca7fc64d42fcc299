//! What all parts of the observer share: the store, the cluster, the Prometheis, and judged snapshots of them that are
//! made once and read by many.
//!
//! The store's lock is held for a batch or for one pass over the pairs, never across an await and never while an
//! answer is written: a slow reader holds an [`Arc`] and nothing else.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::directory::Directory;
use crate::flow::Millis;
use crate::model::{Prometheus, Target};
use crate::proof::{Facts, Scraper, prove, summary};
use crate::store::{Limits, Store};
use crate::table::{Table, Window};
use crate::unseen::Unseen;

/// How long a judged snapshot is good.
const FRESH: Millis = 1_000;
/// How long the proof of all targets is good: Prometheis are not asked more often than every five seconds.
const PROVEN: Millis = 3_000;
/// Snapshots of different windows kept at once.
const TABLES: usize = 8;

/// Reads a clock.
pub type Clock = Box<dyn Fn() -> Millis + Send + Sync>;

/// The proof of all targets at one moment.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Proofs {
    pub at: Millis,
    pub prometheis: Vec<Prometheus>,
    pub targets: Vec<Target>,
    /// Scrapes that no node proxy saw.
    pub unseen: Vec<Unseen>,
}

/// Length of a window in seconds, and its end if that is not now.
type Span = (u64, Option<Millis>);
/// A snapshot, and when it was made.
type Made<T> = (Millis, Arc<T>);

/// See the module.
pub struct Observer {
    store: Mutex<Store>,
    directory: RwLock<Arc<Directory>>,
    scrapers: RwLock<Arc<Vec<Scraper>>>,
    tables: Mutex<HashMap<Span, Made<Table>>>,
    proofs: Mutex<Option<Made<Proofs>>>,
    clock: Clock,
    /// Counters for `/metrics`.
    pub counters: Counters,
}

/// What happened since the start.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Counters {
    pub streams_live: AtomicU64,
    pub turns_dropped: AtomicU64,
    /// Streams of proxies that were not let in, or ended, by reason.
    pub streams_refused: Mutex<std::collections::BTreeMap<&'static str, u64>>,
}

impl Counters {
    /// A stream was refused.
    pub fn refuse_stream(&self, reason: &'static str) {
        *self.streams_refused.lock().entry(reason).or_default() += 1;
    }

    /// Adds to a counter.
    pub fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

impl Observer {
    /// An observer that has seen nothing.
    pub fn new(limits: Limits, clock: Clock) -> Self {
        Self {
            store: Mutex::new(Store::new(limits)),
            directory: RwLock::default(),
            scrapers: RwLock::default(),
            tables: Mutex::default(),
            proofs: Mutex::default(),
            clock,
            counters: Counters::default(),
        }
    }

    /// The wall clock, in milliseconds since 1970.
    pub fn wall_clock() -> Clock {
        Box::new(|| {
            let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
            since.map(|since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX)).unwrap_or_default()
        })
    }

    /// Now.
    pub fn now(&self) -> Millis {
        (self.clock)()
    }

    /// The cluster, as known now.
    pub fn directory(&self) -> Arc<Directory> {
        self.directory.read().clone()
    }

    /// The cluster has changed.
    pub fn set_directory(&self, directory: Arc<Directory>) {
        *self.directory.write() = directory;
    }

    /// The Prometheis, as last polled.
    pub fn scrapers(&self) -> Arc<Vec<Scraper>> {
        self.scrapers.read().clone()
    }

    /// The Prometheis were polled. Their targets are judged at once, so that no page waits for it: with ten thousand
    /// targets this takes some tens of milliseconds.
    pub fn set_scrapers(&self, scrapers: Vec<Scraper>) {
        *self.scrapers.write() = Arc::new(scrapers);
        let mut proofs = self.proofs.lock();
        *proofs = Some(self.judged());
    }

    /// Works on the store. Short work only: proxies are waiting.
    pub fn with_store<T>(&self, work: impl FnOnce(&mut Store) -> T) -> T {
        work(&mut self.store.lock())
    }

    /// What only time brings about.
    pub fn tick(&self) {
        let (now, directory) = (self.now(), self.directory());
        self.with_store(|store| store.tick(now, &directory));
    }

    /// All pairs of a window, judged; at most a second old. `at` none is now.
    pub fn table(&self, seconds: u64, at: Option<Millis>) -> Arc<Table> {
        let now = self.now();
        let key = (seconds, at);
        // Held while judging, so that many readers of one window cost one pass.
        let mut tables = self.tables.lock();
        if let Some((made, table)) = tables.get(&key)
            && now.saturating_sub(*made) < FRESH
        {
            return table.clone();
        }
        tables.retain(|_, (made, _)| now.saturating_sub(*made) < FRESH);
        if tables.len() >= TABLES {
            tables.clear();
        }
        let window = Window { seconds, at: at.unwrap_or(now), live: at.is_none() };
        let directory = self.directory();
        // What Prometheus knows is of now, so it belongs to no window of the past; and as it is asked now and then only,
        // what was judged when it last was is as new as can be.
        let proofs = self.proofs.lock().as_ref().filter(|_| window.live).map(|(_, proofs)| proofs.clone());
        let unseen = proofs.as_ref().map_or(&[][..], |proofs| &proofs.unseen);
        let table = Arc::new(Table::of(&self.store.lock(), &directory, unseen, window, now));
        tables.insert(key, (now, table.clone()));
        table
    }

    /// All targets, judged; at most some seconds old.
    pub fn proofs(&self) -> Arc<Proofs> {
        let now = self.now();
        let mut proofs = self.proofs.lock();
        if let Some((made, proofs)) = &*proofs
            && now.saturating_sub(*made) < PROVEN
        {
            return proofs.clone();
        }
        let (made, all) = self.judged();
        *proofs = Some((made, all.clone()));
        all
    }

    /// Judges all targets now.
    fn judged(&self) -> Made<Proofs> {
        let now = self.now();
        let (scrapers, directory) = (self.scrapers(), self.directory());
        let mut all = Proofs { at: now, ..Proofs::default() };
        for scraper in scrapers.iter() {
            let (targets, unseen) = {
                let store = self.store.lock();
                prove(scraper, &Facts { store: &store, directory: &directory, now })
            };
            all.prometheis.push(summary(scraper, &targets, &directory));
            all.targets.extend(targets);
            all.unseen.extend(unseen);
        }
        all.targets.sort_by(|a, b| {
            (a.proof, &a.namespace, &a.pod, &a.id).cmp(&(b.proof, &b.namespace, &b.pod, &b.id))
        });
        (now, Arc::new(all))
    }
}
