use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::client::Body;
use kube::runtime::watcher::Event;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::*;

/// An API that answers each question with the next of these and never once they are used up; and what it was asked:
/// `list`, or from where a watch was to begin.
fn script(answers: impl IntoIterator<Item = (u16, Value)>) -> (kube::Client, Arc<Mutex<Vec<String>>>) {
    let answers = Arc::new(Mutex::new(answers.into_iter().collect::<VecDeque<_>>()));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = asked.clone();
    let service = tower::service_fn(move |request: http::Request<Body>| {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let from = query.split('&').find_map(|one| one.strip_prefix("resourceVersion="));
        let watch = query.split('&').any(|one| one == "watch=true");
        heard.lock().push(if watch { from.unwrap_or_default().to_owned() } else { "list".to_owned() });
        let answer = answers.lock().pop_front();
        async move {
            let Some((status, body)) = answer else { return std::future::pending().await };
            let body = Body::from(format!("{body}\n").into_bytes());
            Ok::<_, std::convert::Infallible>(http::Response::builder().status(status).body(body).unwrap())
        }
    });
    (kube::Client::new(service, "default"), asked)
}

fn list(version: &str, name: &str) -> (u16, Value) {
    let item = json!({"metadata": {"name": name, "resourceVersion": version}});
    (200, json!({"metadata": {"resourceVersion": version}, "items": [item]}))
}

fn failure(code: u16) -> (u16, Value) {
    (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": "x", "message": "x"}))
}

/// Versions went back from 100 to 7: a watch from 100 on would hear nothing, for a long time or ever.
#[tokio::test]
async fn an_api_that_was_away_is_listed_anew_whatever_it_counts_from_now() {
    let (client, asked) = script([list("100", "new"), failure(503), list("7", "old")]);
    let mut heard = follow(Api::<Namespace>::all(client), watcher::Config::default());
    let mut names = Vec::new();
    while names.len() < 2 {
        if let Ok(Event::InitApply(namespace)) = heard.next().await.expect("it goes on") {
            names.push(namespace.name_any());
        }
    }
    assert_eq!(names, ["new", "old"]);
    assert_eq!(asked.lock()[..3], ["list", "100", "list"]);
}

/// As a proxy before the API may do that passes lists on and cuts watches.
#[tokio::test(start_paused = true)]
async fn an_api_that_answers_lists_and_no_watch_is_not_asked_without_a_pause() {
    let begun = tokio::time::Instant::now();
    let (client, _) = script([list("1", "a"), failure(503), list("2", "b"), failure(503), list("3", "c")]);
    let mut heard = follow(Api::<Namespace>::all(client), watcher::Config::default());
    for (name, pauses) in [("a", 0), ("b", 1), ("c", 2)] {
        while !matches!(heard.next().await, Some(Ok(Event::InitApply(found))) if found.name_any() == name) {}
        assert!(begun.elapsed() >= pauses * Duration::from_millis(500), "{name} after {:?}", begun.elapsed());
    }
}

/// A list of a large cluster is dear: it is not asked for because a watch was refused.
#[tokio::test]
async fn a_watch_that_was_refused_goes_on_where_it_was() {
    let added = json!({"type": "ADDED", "object": {"metadata": {"name": "b", "resourceVersion": "101"}}});
    let (client, asked) = script([list("100", "a"), failure(403), (200, added)]);
    let mut heard = follow(Api::<Namespace>::all(client), watcher::Config::default());
    loop {
        if let Ok(Event::Apply(namespace)) = heard.next().await.expect("it goes on") {
            assert_eq!(namespace.name_any(), "b");
            break;
        }
    }
    assert_eq!(asked.lock()[..3], ["list", "100", "100"]);
}
