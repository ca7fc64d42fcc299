//! What is asked of the API after each way in which a watch can end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;
use crate::fixtures;

/// An API that answers each list and each watch with the next of these, and never when there is none left; and what it
/// was asked: `list`, or from where a watch was to begin.
struct Script {
    asked: Arc<Mutex<Vec<String>>>,
    events: mpsc::Receiver<Event>,
    _watch: JoinSet<()>,
}

impl Script {
    fn run(answers: impl IntoIterator<Item = (u16, Value)>) -> Self {
        let answers = Mutex::new(answers.into_iter().collect::<VecDeque<_>>());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        let client = fixtures::api(move |_, uri| {
            let query = uri.query().unwrap_or_default();
            let from = query.split('&').find_map(|one| one.strip_prefix("resourceVersion="));
            let watch = query.split('&').any(|one| one == "watch=true");
            heard.lock().push(if watch { from.unwrap_or_default().to_string() } else { "list".into() });
            answers.lock().pop_front()
        });
        let (tell, events) = mpsc::channel(16);
        let mut watch = JoinSet::new();
        watch.spawn(builtin::<core::Node, _>(client, "nodes", tell, Event::Nodes));
        Self { asked, events, _watch: watch }
    }

    /// Names of the nodes of the next event, which is a whole list.
    async fn listed(&mut self) -> Vec<String> {
        match self.events.recv().await {
            Some(Event::Nodes(Delta::AllBut(nodes, _))) => {
                nodes.iter().map(|node| node.name.to_string()).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().clone()
    }
}

fn node(name: &str, version: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name, "resourceVersion": version } })
}

fn list(version: &str, names: &[&str]) -> (u16, Value) {
    let items: Vec<Value> = names.iter().map(|name| node(name, version)).collect();
    let meta = json!({ "resourceVersion": version });
    (200, json!({ "apiVersion": "v1", "kind": "NodeList", "metadata": meta, "items": items }))
}

fn failure(code: u16) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": "x", "message": "x" })
}

/// Versions went back from 100 to 7: a watch from 100 on would hear nothing, for a long time or ever.
#[tokio::test(start_paused = true)]
async fn an_api_that_was_away_is_listed_anew_whatever_it_counts_from_now() {
    let restored = list("7", &["old"]);
    let mut script = Script::run([list("100", &["new"]), (503, failure(503)), restored]);
    assert_eq!(script.listed().await, ["new"]);
    assert_eq!(script.listed().await, ["old"]);
    assert_eq!(script.asked()[..3], ["list", "100", "list"]);
}

/// As a proxy before the API may do that passes lists on and cuts watches.
#[tokio::test(start_paused = true)]
async fn an_api_that_answers_lists_and_no_watch_is_not_asked_without_a_pause() {
    let begun = tokio::time::Instant::now();
    let mut script = Script::run([
        list("1", &["a"]),
        (503, failure(503)),
        list("2", &["b"]),
        (503, failure(503)),
        list("3", &["c"]),
    ]);
    for (name, pauses) in [("a", 0), ("b", 1), ("c", 2)] {
        assert_eq!(script.listed().await, [name]);
        assert!(begun.elapsed() >= pauses * Duration::from_millis(500), "{name} after {:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn an_api_that_no_longer_remembers_is_listed_anew() {
    let gone = json!({ "type": "ERROR", "object": failure(410) });
    let mut script = Script::run([list("100", &["a"]), (200, gone), list("200", &["b"])]);
    assert_eq!(script.listed().await, ["a"]);
    assert_eq!(script.listed().await, ["b"]);
    assert_eq!(script.asked()[..3], ["list", "100", "list"]);
}

/// A list of a large cluster is dear: it is not asked for because a watch has come to its usual end, or was refused.
#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_goes_on_where_it_was() {
    let added = json!({ "type": "ADDED", "object": node("b", "101") });
    let again = json!({ "type": "ADDED", "object": node("c", "102") });
    let mut script = Script::run([list("100", &["a"]), (200, added), (403, failure(403)), (200, again)]);
    assert_eq!(script.listed().await, ["a"]);
    for name in ["b", "c"] {
        match script.events.recv().await {
            Some(Event::Nodes(Delta::Put(node))) => assert_eq!(&*node.name, name),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(script.asked()[..4], ["list", "100", "101", "101"]);
}
