//! The live graph as server-sent events.
//!
//! A stream is pulled, not pushed: only when the browser has taken what was sent is the next difference made, between
//! what it has and what is. So a slow reader costs one remembered graph, never a queue, and what it misses is counted.
//! Graphs that were sent lately stay for a minute after a stream breaks, so that the next one can go on from there.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::Stream;
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::params::{GraphParams, Query as Params};
use super::{Api, Problem, bad, blocking};
use crate::flow::Millis;
use crate::graph::{self, Query, Visible, changes};
use crate::model::{Delta, Graph, Snapshot};
use crate::observer::{Counters, Observer};

/// Streams at once.
const STREAMS: usize = 64;
const TURN: Duration = Duration::from_secs(1);
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Graphs kept for streams that break, altogether; and how long.
const KEPT: usize = 64;
const KEEP: Millis = 60_000;
/// Of each stream the last few: the browser may not have got what was sent last.
const HISTORY: usize = 3;
/// Edges of a graph of which only the last is kept.
const LARGE: usize = 2_000;
/// Edges that all streams may hold together. With what waits in their sockets an edge costs some 3 KiB.
const EDGES: usize = 150_000;
/// Edges that are kept for streams that break.
const EDGES_KEPT: usize = 100_000;

/// All streams.
pub(super) struct Streams {
    live: AtomicUsize,
    /// Edges that live streams remember.
    edges: AtomicUsize,
    sequence: AtomicU64,
    /// Tells sequences of this process from those of the one before.
    instance: u32,
    kept: Mutex<VecDeque<Kept>>,
}

struct Kept {
    sequence: String,
    question: Question,
    graph: Arc<Graph>,
    at: Millis,
}

#[derive(Clone, PartialEq, Eq)]
struct Question {
    query: Query,
    seconds: u64,
    visible: Visible,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            live: AtomicUsize::new(0),
            edges: AtomicUsize::new(0),
            sequence: AtomicU64::new(0),
            instance: rand::random(),
            kept: Mutex::default(),
        }
    }
}

impl Streams {
    fn next(&self) -> String {
        format!("{:08x}-{}", self.instance, self.sequence.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn recall(&self, sequence: &str, question: &Question, now: Millis) -> Option<Arc<Graph>> {
        let kept = self.kept.lock();
        let found = kept.iter().find(|kept| {
            kept.sequence == sequence && kept.question == *question && now.saturating_sub(kept.at) < KEEP
        });
        found.map(|kept| kept.graph.clone())
    }
}

/// One browser's place among the streams; given back when it goes.
struct Seat {
    streams: Arc<Streams>,
    observer: Arc<Observer>,
    question: Question,
    /// What was sent last, newest at the end.
    sent: VecDeque<(String, Arc<Graph>)>,
    dropped: u64,
    /// Made to see whether it fits, and not sent yet.
    first: Option<Graph>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.streams.live.fetch_sub(1, Ordering::Relaxed);
        self.observer.counters.streams_live.fetch_sub(1, Ordering::Relaxed);
        let at = self.observer.now();
        let mut kept = self.streams.kept.lock();
        for (sequence, graph) in self.sent.drain(..) {
            self.streams.edges.fetch_sub(graph.edges.len(), Ordering::Relaxed);
            kept.push_back(Kept { sequence, question: self.question.clone(), graph, at });
        }
        let mut edges: usize = kept.iter().map(|kept| kept.graph.edges.len()).sum();
        while let Some(oldest) = kept.front() {
            let old = at.saturating_sub(oldest.at) >= KEEP;
            if !old && kept.len() <= KEPT && edges <= EDGES_KEPT {
                break;
            }
            edges -= oldest.graph.edges.len();
            kept.pop_front();
        }
    }
}

impl Seat {
    fn take(api: &Api, question: Question) -> Result<Self, Problem> {
        let seats = |live: usize| (live < STREAMS).then_some(live + 1);
        if api.streams.live.fetch_update(Ordering::Relaxed, Ordering::Relaxed, seats).is_err() {
            let text =
                format!("{STREAMS} live streams are open already; close some or ask for /api/v1/graph");
            return Err(Problem(StatusCode::SERVICE_UNAVAILABLE, text));
        }
        api.observer.counters.streams_live.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            streams: api.streams.clone(),
            observer: api.observer.clone(),
            question,
            sent: VecDeque::new(),
            dropped: 0,
            first: None,
        })
    }

    fn graph(&self) -> Graph {
        let table = self.observer.table(self.question.seconds, None);
        graph::build(&table, &self.question.query, &self.question.visible)
    }

    fn remember(&mut self, sequence: String, graph: Arc<Graph>) {
        let edges = &self.streams.edges;
        edges.fetch_add(graph.edges.len(), Ordering::Relaxed);
        let most = if graph.edges.len() > LARGE { 1 } else { HISTORY };
        self.sent.push_back((sequence, graph));
        while self.sent.len() > most {
            if let Some((_, forgotten)) = self.sent.pop_front() {
                edges.fetch_sub(forgotten.edges.len(), Ordering::Relaxed);
            }
        }
    }

    /// Whether its picture fits beside those of all others.
    fn fits(mut self) -> Result<Self, Problem> {
        let held = self.streams.edges.load(Ordering::Relaxed);
        let graph = self.graph();
        let edges = graph.edges.len();
        if held + edges <= EDGES {
            self.first = Some(graph);
            return Ok(self);
        }
        let text = format!(
            "live streams hold {held} edges already and this one has {edges}; choose a higher level or fewer namespaces"
        );
        Err(Problem(StatusCode::SERVICE_UNAVAILABLE, text))
    }

    /// The next event, if there is anything to tell.
    fn turn(&mut self) -> Option<Event> {
        let new = Arc::new(self.first.take().unwrap_or_else(|| self.graph()));
        let sequence = self.streams.next();
        let text = match self.sent.back() {
            None => serde_json::to_string(&Snapshot { sequence: &sequence, graph: &new }),
            // Another level is another picture.
            Some((_, old)) if old.level != new.level => {
                serde_json::to_string(&Snapshot { sequence: &sequence, graph: &new })
            }
            Some((since, old)) => {
                let changes = changes(old, &new);
                if changes.is_empty() {
                    return None;
                }
                let delta = Delta {
                    sequence: &sequence,
                    since,
                    at: new.at,
                    nodes: changes.nodes,
                    edges: changes.edges,
                    removed_nodes: changes.removed_nodes,
                    removed_edges: changes.removed_edges,
                    coverage: &new.coverage,
                    proxies: changes.proxies.then_some(&new.proxies),
                    limits: changes.limits.then_some(&new.limits),
                    dropped: self.dropped,
                };
                return self.event("delta", serde_json::to_string(&delta), sequence, new);
            }
        };
        self.event("snapshot", text, sequence, new)
    }

    fn event(
        &mut self,
        kind: &str,
        text: serde_json::Result<String>,
        sequence: String,
        graph: Arc<Graph>,
    ) -> Option<Event> {
        match text {
            Ok(text) => {
                let event =
                    Event::default().event(kind).id(&sequence).retry(Duration::from_secs(2)).data(text);
                self.remember(sequence, graph);
                Some(event)
            }
            Err(error) => {
                tracing::error!(%error, "an event could not be written as JSON");
                None
            }
        }
    }
}

pub(super) async fn stream(
    State(api): State<Api>,
    Extension(visible): Extension<Visible>,
    headers: HeaderMap,
    Params(params): Params<GraphParams>,
) -> Result<Response, Problem> {
    let question = Question {
        query: params.query().map_err(bad)?,
        seconds: params.window.seconds().map_err(bad)?,
        visible,
    };
    let last = headers.get("last-event-id").and_then(|id| id.to_str().ok()).map(ToOwned::to_owned);
    let last = last.or(params.last_event_id);
    let seat = Seat::take(&api, question)?;
    let mut seat = blocking(move || seat.fits()).await??;
    if let Some(last) = last
        && let Some(graph) = api.streams.recall(&last, &seat.question, api.observer.now())
    {
        seat.remember(last, graph);
    }
    let events = Sse::new(events(seat)).keep_alive(KeepAlive::new().interval(HEARTBEAT).text("alive"));
    Ok(events.into_response())
}

/// Turns that went by while the reader was busy with what it had got.
fn missed(busy: Duration) -> u64 {
    busy.as_secs() / TURN.as_secs().max(1)
}

fn events(seat: Seat) -> impl Stream<Item = Result<Event, Infallible>> {
    let mut clock = interval_at(Instant::now(), TURN);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    futures::stream::unfold((seat, clock, None::<Instant>), |(mut seat, mut clock, mut asked)| async move {
        loop {
            // How long nobody asked for the next event: so many turns has this reader missed.
            if let Some(before) = asked.take() {
                let missed = missed(before.elapsed());
                seat.dropped += missed;
                Counters::add(&seat.observer.counters.turns_dropped, missed);
            }
            clock.tick().await;
            let worked = blocking(move || {
                let event = seat.turn();
                (seat, event)
            });
            let Ok((back, event)) = worked.await else { return None };
            seat = back;
            if let Some(event) = event {
                return Some((Ok(event), (seat, clock, Some(Instant::now()))));
            }
        }
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn a_reader_that_was_busy_for_ten_seconds_has_missed_ten_turns() {
        assert_eq!(missed(Duration::from_millis(900)), 0);
        assert_eq!(missed(Duration::from_millis(10_500)), 10);
    }

    /// A stream as a test pulls it.
    pub(in crate::api) struct Pulled(Seat);

    impl Pulled {
        pub(in crate::api) fn new(api: &Api, seconds: u64, query: Query) -> Self {
            let question = Question { query, seconds, visible: Visible::All };
            Self(Seat::take(api, question).map_err(|problem| problem.1).unwrap())
        }

        pub(in crate::api) fn resume(&mut self, last: &str) -> bool {
            let found = self.0.streams.recall(last, &self.0.question, self.0.observer.now());
            let known = found.is_some();
            if let Some(graph) = found {
                self.0.remember(last.into(), graph);
            }
            known
        }

        pub(in crate::api) fn turn(&mut self) -> Option<String> {
            self.0.turn().map(|event| format!("{event:?}"))
        }

        pub(in crate::api) fn last(&self) -> Option<(String, Arc<Graph>)> {
            self.0.sent.back().cloned()
        }
    }
}
