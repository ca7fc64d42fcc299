//! watch: initial state, then changes, bookmarks and a clean end.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use serde_json::{Value, json};
use tokio::time::{Instant, Interval};

use super::{Call, read};
use crate::api::failure::Failure;
use crate::api::http::{self as wire, Accept, Answer, Format, Shape};
use crate::api::selector::Selector;
use crate::api::store::{Change, Gone, Seen, Watcher};
use crate::api::{convert, table};

const BOOKMARK_EVERY: Duration = Duration::from_secs(30);
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// Starts a watch; its answer streams until the timeout, the client or the server ends it.
pub fn watch(call: Call) -> Result<Answer, Failure> {
    let accept = Accept::of(&call.headers)?;
    if accept.format != Format::Json {
        return Err(Failure::not_acceptable());
    }
    let selector = read::selector(&call)?;
    let timeout = call.params.number("timeoutSeconds")?.filter(|n| *n > 0);
    // Without a limit of the client's own the real server picks one of 30 to 60 minutes.
    let timeout = Duration::from_secs(timeout.unwrap_or_else(|| rand::random_range(1800..3600)).min(86_400));
    let bookmarks = call.params.flag("allowWatchBookmarks");
    let initial = call.params.flag("sendInitialEvents");
    let version = call.params.get("resourceVersion").to_owned();
    if initial && call.params.get("resourceVersionMatch") != "NotOlderThan" {
        return Err(Failure::invalid(
            "meta.k8s.io",
            "ListOptions",
            "",
            &[crate::api::failure::Cause::forbidden(
                "resourceVersionMatch",
                "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            )],
        ));
    }
    let since: u64 = match version.as_str() {
        "" | "0" => 0,
        text => text.parse().map_err(|_| {
            Failure::bad_request(format!("resourceVersion: Invalid value: {text:?}: must be a number"))
        })?,
    };
    let mut stream = Stream {
        columns: true,
        shape: accept.shape,
        selector,
        pending: VecDeque::new(),
        watcher: None,
        bookmarks: bookmarks
            .then(|| tokio::time::interval_at(Instant::now() + BOOKMARK_EVERY, BOOKMARK_EVERY)),
        deadline: Instant::now() + timeout,
        finished: false,
        call,
    };
    stream.start(since, initial);
    let body = StreamBody::new(futures::stream::unfold(stream, |mut stream| async move {
        let line = stream.next().await?;
        Some((Ok::<_, Infallible>(Frame::data(line)), stream))
    }));
    let mut answer = wire::reply(200, "application/json", Bytes::new());
    *answer.body_mut() = body.boxed_unsync();
    Ok(answer)
}

struct Stream {
    call: Call,
    shape: Shape,
    /// Whether the next table names its columns: only the first does.
    columns: bool,
    selector: Selector,
    pending: VecDeque<Bytes>,
    watcher: Option<Watcher>,
    bookmarks: Option<Interval>,
    deadline: Instant,
    finished: bool,
}

impl Stream {
    /// Queues the initial state, if one is wanted, and takes the place from which changes follow.
    fn start(&mut self, since: u64, initial: bool) {
        let storage = self.call.kind.storage.clone();
        let namespace = self.call.target.namespace.clone();
        let started = self.call.api.store.with(|inner| {
            if initial && since > inner.revision() {
                return Err(Gone { asked: since, oldest: inner.revision() });
            }
            if since != 0 && !initial {
                return inner.watch(&storage, since).map(|watcher| (Vec::new(), watcher, since));
            }
            let objects: Vec<Arc<Value>> = inner.list(&storage, namespace.as_deref()).cloned().collect();
            let now = inner.revision();
            inner.watch(&storage, now).map(|watcher| (objects, watcher, now))
        });
        match started {
            Ok((objects, watcher, revision)) => {
                for object in objects {
                    let object = convert::served(&self.call.kind, &object);
                    if self.selector.matches(&object) {
                        self.push("ADDED", &object);
                    }
                }
                if initial && self.bookmarks.is_some() {
                    self.bookmark(revision, true);
                }
                self.watcher = Some(watcher);
            }
            Err(gone) => self.gone(gone),
        }
    }

    /// The next line, or the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if !self.pending.is_empty() {
                // One frame for all that is there.
                let lines: Vec<Bytes> = self.pending.drain(..).collect();
                return Some(if lines.len() == 1 { lines[0].clone() } else { lines.concat().into() });
            }
            if self.finished {
                return None;
            }
            let mut watcher = self.watcher.take()?;
            match watcher.drain(&self.call.api.store) {
                Ok((changes, _)) => changes.iter().for_each(|change| self.change(change)),
                Err(gone) => self.gone(gone),
            }
            if !self.pending.is_empty() || self.finished {
                self.watcher = Some(watcher);
                continue;
            }
            let closing = self.call.api.closing.clone();
            let bookmarks = &mut self.bookmarks;
            let mark = async {
                match bookmarks {
                    Some(interval) => drop(interval.tick().await),
                    None => std::future::pending().await,
                }
            };
            let mut due = false;
            tokio::select! {
                () = closing.cancelled() => self.finished = true,
                () = tokio::time::sleep_until(self.deadline) => self.finished = true,
                alive = watcher.wait() => self.finished = !alive,
                () = mark => due = true,
            }
            if due {
                // Whatever happened until now comes first, or the bookmark would promise too much.
                match watcher.drain(&self.call.api.store) {
                    Ok((changes, upto)) => {
                        changes.iter().for_each(|change| self.change(change));
                        self.bookmark(upto, false);
                    }
                    Err(gone) => self.gone(gone),
                }
            }
            self.watcher = Some(watcher);
        }
    }

    fn change(&mut self, change: &Change) {
        let namespace = self.call.target.namespace.clone();
        let kind = self.call.kind.clone();
        let seen = if kind.storage == kind.resource {
            change.seen(namespace.as_deref(), &self.selector)
        } else {
            // Selectors speak of the served form.
            Change {
                revision: change.revision,
                before: change.before.as_ref().map(|o| convert::served(&kind, o)),
                now: convert::served(&kind, &change.now),
                deleted: change.deleted,
            }
            .seen(namespace.as_deref(), &self.selector)
        };
        match seen {
            Some(Seen::Added(object)) => self.push("ADDED", &convert::served(&kind, &object)),
            Some(Seen::Modified(object)) => self.push("MODIFIED", &convert::served(&kind, &object)),
            Some(Seen::Deleted(object)) => self.push("DELETED", &convert::served(&kind, &object)),
            None => {}
        }
    }

    fn push(&mut self, what: &str, object: &Value) {
        let shown = match self.shape {
            Shape::Object => object.clone(),
            Shape::Metadata => convert::metadata_only(object),
            Shape::Table => {
                let first = std::mem::take(&mut self.columns);
                let mut table =
                    table::of(&self.call.kind, [object].into_iter(), read::include(&self.call), first);
                let version = crate::api::object::resource_version(object);
                table["metadata"] = json!({ "resourceVersion": version });
                table
            }
        };
        self.line(what, shown);
    }

    fn line(&mut self, what: &str, object: Value) {
        let mut line = json!({ "type": what, "object": object }).to_string();
        line.push('\n');
        self.pending.push_back(line.into());
    }

    fn bookmark(&mut self, revision: u64, initial_end: bool) {
        let mut metadata = json!({ "resourceVersion": revision.to_string() });
        if initial_end {
            metadata["annotations"] = json!({ INITIAL_END: "true" });
        }
        let object = json!({
            "kind": self.call.kind.kind, "apiVersion": self.call.kind.api_version(), "metadata": metadata,
        });
        match self.shape {
            Shape::Object => self.line("BOOKMARK", object),
            Shape::Metadata => self.line("BOOKMARK", convert::metadata_only(&object)),
            Shape::Table => {
                let table = json!({
                    "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                    "columnDefinitions": [], "rows": [],
                });
                self.line("BOOKMARK", table);
            }
        }
    }

    fn gone(&mut self, gone: Gone) {
        let failure = Failure::expired(format!("too old resource version: {} ({})", gone.asked, gone.oldest));
        self.line("ERROR", failure.status());
        self.finished = true;
    }
}
