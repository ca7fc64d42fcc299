//! One stream of one proxy: its dictionary, and how its batches are counted exactly once.

use std::collections::HashMap;
use std::sync::Arc;

use super::proxy::{Lost, Proxy, ProxyId};
use super::{AHEAD, LaneRef, Store};
use crate::directory::Directory;
use crate::flow::{Definition, End, Millis, Reporter, Row, Text};
use crate::store::history::bucket;

/// Streams that one proxy may have open: the one that breaks may not be seen to end before the next begins.
const STREAMS: u32 = 4;

/// How a proxy introduces itself; `identity` is what its certificate proved.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub struct Greeting {
    pub node: Text,
    pub pod: Text,
    pub identity: Text,
    pub version: Text,
    pub epoch: u64,
    pub clock: Millis,
}

/// What it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Welcome {
    pub known: bool,
    pub applied: u64,
    pub max_pairs: u32,
}

/// A batch, read and within bounds.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Batch {
    pub sequence: u64,
    pub from: Millis,
    pub to: Millis,
    pub baseline: bool,
    pub definitions: Vec<(u32, Arc<Definition>)>,
    pub rows: Vec<Row>,
    pub forgotten: Vec<u32>,
    pub lost: Lost,
    /// Rows and definitions that could not be read, and the first reason.
    pub unreadable: (u32, Option<String>),
}

/// What became of a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// All batches up to this one are applied.
    pub sequence: u64,
    /// Rows of it that were refused.
    pub refused: u32,
    /// Why the first of them was.
    pub reason: Option<String>,
}

/// Why a stream is ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Data from the future would be shown as if it were now.
    #[error(
        "the clock of node {node} is {ahead_ms} ms ahead of the observer's, at most {AHEAD} are accepted: set the clocks right (NTP)"
    )]
    ClockAhead {
        /// Its node.
        node: Text,
        /// By how much.
        ahead_ms: u64,
    },
    /// There are too many.
    #[error(
        "{max} node proxies are known already, and node {node} is one more: is something inventing nodes?"
    )]
    TooManyProxies {
        /// Its node.
        node: Text,
        /// The bound.
        max: usize,
    },
    /// One proxy needs one stream, and another while it reconnects.
    #[error("the proxy on node {node} has {STREAMS} streams open already, one is enough")]
    TooManyStreams {
        /// Its node.
        node: Text,
    },
    /// A newer stream of the same proxy has taken over.
    #[error("another process of the proxy on node {node} has introduced itself since")]
    Replaced {
        /// Its node.
        node: Text,
    },
    /// A batch is missing between this and the last.
    #[error(
        "batch {got} of node {node} follows batch {applied}: what was dropped must be counted, not skipped"
    )]
    Gap {
        /// Its node.
        node: Text,
        /// The last one applied.
        applied: u64,
        /// What came.
        got: u64,
    },
}

/// The store's end of a stream.
#[derive(Debug)]
pub struct Session {
    proxy: ProxyId,
    epoch: u64,
    dictionary: HashMap<u32, (Arc<Definition>, Option<LaneRef>)>,
    closed: bool,
}

impl Store {
    /// A proxy introduces itself.
    pub fn greet(&mut self, greeting: &Greeting, now: Millis) -> Result<(Session, Welcome), Refused> {
        let ahead_ms = greeting.clock.saturating_sub(now);
        if ahead_ms > AHEAD {
            // Named also when it was never heard before: an operator must see it.
            let id = self.proxy_of(greeting, now)?;
            self.proxies[id as usize].tried = now;
            self.proxies[id as usize].skew_ms = skew(greeting.clock, now);
            return Err(Refused::ClockAhead { node: greeting.node.clone(), ahead_ms });
        }
        let id = self.proxy_of(greeting, now)?;
        let proxy = &mut self.proxies[id as usize];
        if proxy.connected >= STREAMS {
            return Err(Refused::TooManyStreams { node: greeting.node.clone() });
        }
        let applied = proxy.applied(greeting.epoch);
        proxy.begin(greeting.epoch);
        proxy.identity = greeting.identity.clone();
        proxy.version = greeting.version.clone();
        proxy.skew_ms = skew(greeting.clock, now);
        proxy.heard = now;
        proxy.connected += 1;
        let welcome = Welcome {
            known: applied.is_some(),
            applied: applied.unwrap_or_default(),
            max_pairs: self.limits.lanes_per_proxy,
        };
        let session = Session { proxy: id, epoch: greeting.epoch, dictionary: HashMap::new(), closed: false };
        Ok((session, welcome))
    }

    fn proxy_of(&mut self, greeting: &Greeting, now: Millis) -> Result<ProxyId, Refused> {
        let key = (greeting.node.clone(), greeting.pod.clone());
        if let Some(&id) = self.by_pod.get(&key) {
            return Ok(id);
        }
        // Every restart is another pod; who was not heard of for an hour and left nothing gives its place.
        let old = |proxy: &Proxy| {
            proxy.lanes == 0 && proxy.connected == 0 && proxy.heard.max(proxy.tried) + super::FORGET < now
        };
        if let Some(id) = self.proxies.iter().position(old) {
            self.by_pod.retain(|_, known| *known as usize != id);
            self.proxies[id] = Proxy::new(greeting.node.clone(), greeting.pod.clone());
            self.by_pod.insert(key, id as ProxyId);
            return Ok(id as ProxyId);
        }
        if self.proxies.len() >= self.limits.proxies {
            return Err(Refused::TooManyProxies { node: greeting.node.clone(), max: self.limits.proxies });
        }
        let id = self.proxies.len() as ProxyId;
        self.proxies.push(Proxy::new(greeting.node.clone(), greeting.pod.clone()));
        self.by_pod.insert(key, id);
        Ok(id)
    }

    /// Counts a batch, once.
    pub fn apply(
        &mut self,
        session: &mut Session,
        batch: &Batch,
        now: Millis,
        directory: &Directory,
    ) -> Result<Applied, Refused> {
        let proxy = &mut self.proxies[session.proxy as usize];
        let node = proxy.node.clone();
        if !proxy.is_current(session.epoch) {
            return Err(Refused::Replaced { node });
        }
        let ahead_ms = batch.to.saturating_sub(now);
        if ahead_ms > AHEAD {
            proxy.skew_ms = skew(batch.to, now);
            return Err(Refused::ClockAhead { node, ahead_ms });
        }
        proxy.heard = now;
        let applied = proxy.applied(session.epoch).unwrap_or_default();
        // Definitions hold for the stream, whether or not the batch that brings them was counted before.
        for (id, definition) in &batch.definitions {
            self.define(session, *id, definition.clone());
        }
        let mut refused = batch.unreadable.0;
        let mut reason = batch.unreadable.1.clone();
        if batch.sequence > applied {
            if applied > 0 && batch.sequence != applied + 1 && batch.lost == Lost::default() {
                return Err(Refused::Gap { node, applied, got: batch.sequence });
            }
            if batch.baseline {
                self.close_all(session);
            }
            for row in &batch.rows {
                let to = batch.to.min(now);
                // The moment that counts for the row: when its bytes moved, as far as the interval reaches.
                let length = to.saturating_sub(batch.from).max(1);
                let at = to.saturating_sub(row.activity_ago.clamp(1, length));
                if let Err(why) = self.count(session, row, at, now, directory) {
                    refused = refused.saturating_add(1);
                    reason.get_or_insert(why);
                }
            }
            let proxy = &mut self.proxies[session.proxy as usize];
            proxy.advance(session.epoch, batch.sequence, batch.lost);
            proxy.rows_refused += u64::from(refused);
            if let Some(reason) = &reason {
                proxy.last_refusal = Some(reason.clone());
            }
            self.taken.0 += 1;
            self.taken.1 += batch.rows.len() as u64;
        }
        for id in &batch.forgotten {
            session.dictionary.remove(id);
        }
        Ok(Applied { sequence: applied.max(batch.sequence), refused, reason })
    }

    fn define(&mut self, session: &mut Session, id: u32, definition: Arc<Definition>) {
        let full = session.dictionary.len() >= self.limits.lanes_per_proxy as usize;
        if full && !session.dictionary.contains_key(&id) {
            self.proxies[session.proxy as usize].pairs_refused += 1;
            return;
        }
        session.dictionary.insert(id, (definition, None));
    }

    fn count(
        &mut self,
        session: &mut Session,
        row: &Row,
        at: Millis,
        now: Millis,
        directory: &Directory,
    ) -> Result<(), String> {
        let Some((definition, known)) = session.dictionary.get_mut(&row.pair) else {
            return Err(format!(
                "a row names pair {}, which was never defined or is beyond the bound",
                row.pair
            ));
        };
        let reference = match known.filter(|reference| self.recorded(*reference).is_some()) {
            Some(reference) => reference,
            None => {
                let node = self.proxies[session.proxy as usize].node.clone();
                let own: &End = match definition.lane.reporter {
                    Reporter::Source => &definition.source,
                    Reporter::Destination => &definition.destination,
                };
                if !directory.may_speak(&node, own, at) {
                    return Err(format!(
                        "the proxy of node {node} speaks for {}/{}, which runs on another node",
                        own.namespace, own.pod
                    ));
                }
                let Some(reference) = self.lane(session.proxy, &definition.clone(), now) else {
                    self.proxies[session.proxy as usize].pairs_refused += 1;
                    return Err(format!(
                        "no room for more pairs of node {node}: at most {} a proxy, {} altogether, {} between two pods",
                        self.limits.lanes_per_proxy, self.limits.lanes, self.limits.lanes_per_pair
                    ));
                };
                *known = Some(reference);
                reference
            }
        };
        let epoch = session.epoch;
        let Some(recorded) = self.recorded(reference) else { return Ok(()) };
        recorded.total.add(&row.counts);
        recorded.history.add(bucket(at), &row.counts);
        recorded.open_now = row.open_now;
        recorded.epoch = epoch;
        if !row.counts.is_zero() {
            recorded.last_activity = recorded.last_activity.max(at);
        }
        Ok(())
    }

    /// A baseline follows: what it does not name is not open.
    fn close_all(&mut self, session: &Session) {
        for pair in self.pairs.iter_mut().flatten() {
            for recorded in pair.lanes.iter_mut().filter(|recorded| recorded.proxy == session.proxy) {
                recorded.open_now = 0;
            }
        }
    }

    /// A stream had to be ended for this; it is shown with the proxy's name.
    pub fn blame(&mut self, session: &Session, reason: String) {
        if let Some(proxy) = self.proxies.get_mut(session.proxy as usize) {
            proxy.rows_refused += 1;
            proxy.last_refusal = Some(reason);
        }
    }

    /// The stream has ended.
    pub fn leave(&mut self, mut session: Session) {
        if !std::mem::replace(&mut session.closed, true)
            && let Some(proxy) = self.proxies.get_mut(session.proxy as usize)
        {
            proxy.connected = proxy.connected.saturating_sub(1);
        }
    }
}

fn skew(theirs: Millis, ours: Millis) -> i64 {
    let (theirs, ours) = (i128::from(theirs), i128::from(ours));
    i64::try_from(theirs - ours).unwrap_or(i64::MAX)
}
