//! The flow store: what both proxies said of every pair of pods, for an hour, in bounded memory.
//!
//! It owns places, pairs, lanes and the knowledge of who reports. It takes batches ([`Store::apply`]) exactly once
//! each, refuses what is beyond its bounds and says of whom, and answers sums over spans of time. It never judges
//! (that is [`crate::judge`]), never waits, and reads no clock: `now` is an argument everywhere.

pub mod history;
pub mod place;
pub mod proxy;
mod session;
mod texts;

use std::collections::HashMap;
use std::sync::Arc;

use crate::directory::Directory;
use crate::flow::{Counts, Lane, Millis, Reporter, Text};
use history::{History, bucket};
use place::{Place, PlaceId, PlaceKey, Places};
use proxy::{Proxy, ProxyId};
pub use session::{Applied, Batch, Greeting, Refused, Session, Welcome};
pub use texts::Texts;

/// A proxy that was not heard of for this long is silent, and its data old.
pub const SILENT: Millis = 10_000;
/// After this long nobody believes its connections to be open.
const GONE: Millis = 60_000;
/// A pair on which nothing happened for this long is forgotten.
const FORGET: Millis = 3_600_000;
/// How far a proxy's clock may be ahead.
pub const AHEAD: Millis = 10_000;

/// Bounds of the store. A lane costs up to some 4 KiB when something happens on it all the time, so the default stays
/// below a gigabyte in the worst case; ten thousand pods with three peers each fill a third of it.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Lanes altogether.
    pub lanes: usize,
    /// Lanes that one proxy may fill.
    pub lanes_per_proxy: u32,
    /// Lanes between two places on one port.
    pub lanes_per_pair: usize,
    /// Node proxies.
    pub proxies: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { lanes: 200_000, lanes_per_proxy: 65_536, lanes_per_pair: 16, proxies: 10_000 }
    }
}

/// What two places have to do with each other on one port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PairKey {
    /// Who called.
    pub source: PlaceId,
    /// Who was called.
    pub destination: PlaceId,
    /// On which port.
    pub port: u16,
}

/// One pair with its lanes.
#[derive(Debug)]
pub struct Pair {
    /// Who and where.
    pub key: PairKey,
    generation: u32,
    /// What the proxies said.
    pub lanes: Vec<Recorded>,
}

/// A lane and what was counted on it.
#[derive(Debug)]
pub struct Recorded {
    /// How it was carried.
    pub lane: Lane,
    /// Who says so.
    pub proxy: ProxyId,
    /// Whether that proxy may speak for the pod: it serves the pod's node, as far as the cluster is known.
    pub believed: bool,
    /// Counted since it is known.
    pub total: Counts,
    /// Open at the last report.
    pub open_now: u32,
    /// When bytes last moved, or a connection was opened, closed or refused.
    pub last_activity: Millis,
    history: History,
    /// The life of the proxy that reported `open_now`.
    epoch: u64,
}

/// Where a lane is; worthless once the pair was forgotten.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LaneRef {
    pair: u32,
    generation: u32,
    lane: u16,
}

/// See the module.
#[derive(Debug)]
pub struct Store {
    limits: Limits,
    /// Shared texts, for who parses batches.
    pub texts: Texts,
    places: Places,
    pairs: Vec<Option<Pair>>,
    free: Vec<u32>,
    by_key: HashMap<PairKey, u32>,
    proxies: Vec<Proxy>,
    by_pod: HashMap<(Text, Text), ProxyId>,
    generation: u32,
    lanes: usize,
    /// Batches and rows taken.
    pub taken: (u64, u64),
}

impl Store {
    /// An empty store.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            texts: Texts::default(),
            places: Places::default(),
            pairs: Vec::new(),
            free: Vec::new(),
            by_key: HashMap::new(),
            proxies: Vec::new(),
            by_pod: HashMap::new(),
            generation: 0,
            lanes: 0,
            taken: (0, 0),
        }
    }

    /// All pairs.
    pub fn pairs(&self) -> impl Iterator<Item = &Pair> {
        self.pairs.iter().flatten()
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// How many places there are.
    pub fn places(&self) -> usize {
        self.places.count()
    }

    /// The place with a number.
    pub fn place(&self, id: PlaceId) -> Option<&Arc<Place>> {
        self.places.get(id)
    }

    /// The pair of two places on a port.
    pub fn find(&self, source: &PlaceKey, destination: &PlaceKey, port: u16) -> Option<&Pair> {
        let (source, destination) = (self.places.find(source)?, self.places.find(destination)?);
        let index = *self.by_key.get(&PairKey { source, destination, port })?;
        self.pairs.get(index as usize)?.as_ref()
    }

    /// All node proxies that were ever heard of.
    pub fn proxies(&self) -> &[Proxy] {
        &self.proxies
    }

    /// The proxy with a number.
    pub fn proxy(&self, id: ProxyId) -> Option<&Proxy> {
        self.proxies.get(id as usize)
    }

    /// Memory that the store takes, estimated from its parts.
    pub fn heap_bytes(&self) -> usize {
        let lanes = |pair: &Pair| {
            let histories: usize = pair.lanes.iter().map(|recorded| recorded.history.heap_bytes()).sum();
            pair.lanes.capacity() * size_of::<Recorded>() + histories
        };
        self.pairs().map(lanes).sum::<usize>()
            + self.pairs.capacity() * size_of::<Option<Pair>>()
            + self.by_key.capacity() * (size_of::<PairKey>() + 5)
            + self.places.heap_bytes()
            + self.texts.heap_bytes()
    }

    /// The lane of a definition, made if there is room.
    fn lane(&mut self, proxy: ProxyId, definition: &crate::flow::Definition, now: Millis) -> Option<LaneRef> {
        let source = self.places.acquire(&definition.source);
        let destination = self.places.acquire(&definition.destination);
        let key = PairKey { source, destination, port: definition.port };
        if let Some(&index) = self.by_key.get(&key) {
            self.places.release(source);
            self.places.release(destination);
            return self.lane_of(index, proxy, &definition.lane, now);
        }
        if !self.has_room(proxy) {
            self.places.release(source);
            self.places.release(destination);
            return None;
        }
        self.generation = self.generation.wrapping_add(1);
        let pair = Some(Pair { key, generation: self.generation, lanes: Vec::with_capacity(2) });
        let index = match self.free.pop() {
            Some(index) => {
                self.pairs[index as usize] = pair;
                index
            }
            None => {
                self.pairs.push(pair);
                (self.pairs.len() - 1) as u32
            }
        };
        self.by_key.insert(key, index);
        self.lane_of(index, proxy, &definition.lane, now)
    }

    fn has_room(&self, proxy: ProxyId) -> bool {
        let of_proxy = self.proxy(proxy).map_or(0, |proxy| proxy.lanes);
        self.lanes < self.limits.lanes && of_proxy < self.limits.lanes_per_proxy
    }

    fn lane_of(&mut self, index: u32, proxy: ProxyId, lane: &Lane, now: Millis) -> Option<LaneRef> {
        let room = self.has_room(proxy);
        let pair = self.pairs.get_mut(index as usize)?.as_mut()?;
        let reference = |at: usize| LaneRef { pair: index, generation: pair.generation, lane: at as u16 };
        if let Some(at) = pair.lanes.iter().position(|known| known.proxy == proxy && known.lane == *lane) {
            return Some(reference(at));
        }
        let recorded = Recorded {
            lane: lane.clone(),
            proxy,
            believed: true,
            total: Counts::default(),
            open_now: 0,
            last_activity: now,
            history: History::default(),
            epoch: 0,
        };
        if pair.lanes.len() < self.limits.lanes_per_pair {
            if !room {
                return None;
            }
            let reference = reference(pair.lanes.len());
            pair.lanes.push(recorded);
            self.lanes += 1;
            self.proxies[proxy as usize].lanes += 1;
            return Some(reference);
        }
        // Full: the lane that was quiet for longest makes room, if it was quiet for longer than anybody shows by
        // default. Others may still hold its number, so the pair gets a new generation.
        let quiet = pair.lanes.iter().enumerate().filter(|(_, lane)| lane.open_now == 0);
        let (at, oldest) = quiet.min_by_key(|(_, lane)| lane.last_activity)?;
        if oldest.last_activity + 600_000 > now {
            return None;
        }
        let before = std::mem::replace(&mut pair.lanes[at], recorded).proxy;
        self.generation = self.generation.wrapping_add(1);
        pair.generation = self.generation;
        let reference = LaneRef { pair: index, generation: pair.generation, lane: at as u16 };
        self.proxies[before as usize].lanes -= 1;
        self.proxies[proxy as usize].lanes += 1;
        Some(reference)
    }

    fn recorded(&mut self, reference: LaneRef) -> Option<&mut Recorded> {
        let pair = self.pairs.get_mut(reference.pair as usize)?.as_mut()?;
        if pair.generation != reference.generation {
            return None;
        }
        pair.lanes.get_mut(reference.lane as usize)
    }

    /// What only time brings about: old pairs are forgotten, connections of silent proxies are no longer open, and
    /// proxies are no longer believed for pods that turn out to be on other nodes. To be called every few seconds.
    pub fn tick(&mut self, now: Millis, directory: &Directory) {
        let gone: Vec<bool> =
            self.proxies.iter().map(|proxy| now.saturating_sub(proxy.heard) > GONE).collect();
        for index in 0..self.pairs.len() {
            let Some(pair) = &mut self.pairs[index] else { continue };
            let (source, destination) =
                (self.places.get(pair.key.source), self.places.get(pair.key.destination));
            for recorded in &mut pair.lanes {
                let proxy = &self.proxies[recorded.proxy as usize];
                if gone[recorded.proxy as usize] || !proxy.is_current(recorded.epoch) {
                    recorded.open_now = 0;
                }
                let place = match recorded.lane.reporter {
                    Reporter::Source => source,
                    Reporter::Destination => destination,
                };
                let Some(place) = place else { continue };
                recorded.believed = directory.may_speak(&proxy.node, &place.end, recorded.last_activity);
            }
            let idle = |lane: &Recorded| lane.open_now == 0 && lane.last_activity + FORGET < now;
            if pair.lanes.iter().all(idle) {
                let pair = self.pairs[index].take();
                if let Some(pair) = pair {
                    for recorded in &pair.lanes {
                        self.proxies[recorded.proxy as usize].lanes -= 1;
                    }
                    self.lanes -= pair.lanes.len();
                    self.by_key.remove(&pair.key);
                    self.places.release(pair.key.source);
                    self.places.release(pair.key.destination);
                    self.free.push(index as u32);
                }
            }
        }
        self.texts.collect();
    }
}

impl Recorded {
    /// What was counted within `[from, to]`, to the bucket.
    pub fn within(&self, from: Millis, to: Millis) -> Counts {
        self.history.sum(bucket(from), bucket(to))
    }

    /// Calls `visit` with every bucket's beginning and counts within `[from, to]`.
    pub fn each(&self, from: Millis, to: Millis, mut visit: impl FnMut(Millis, &Counts)) {
        self.history.each(bucket(from), bucket(to), |bucket, counts| {
            visit(Millis::from(bucket) * history::BUCKET, counts);
        });
    }
}

#[cfg(test)]
mod tests;
