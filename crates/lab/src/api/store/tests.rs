use serde_json::json;

use super::watcher::Seen;
use super::*;
use crate::api::selector::Selector;

fn pod(namespace: &str, name: &str, app: &str) -> Value {
    json!({"metadata": {"namespace": namespace, "name": name, "labels": {"app": app}}})
}

fn seen(changes: &[Change], namespace: Option<&str>, labels: &str) -> Vec<String> {
    let selector = Selector::parse(labels, "").expect("selector");
    let text = |what: &str, o: &Value| format!("{what} {}", object::name(o));
    changes
        .iter()
        .filter_map(|change| change.seen(namespace, &selector))
        .map(|seen| match seen {
            Seen::Added(o) => text("ADDED", &o),
            Seen::Modified(o) => text("MODIFIED", &o),
            Seen::Deleted(o) => text("DELETED", &o),
        })
        .collect()
}

#[test]
fn a_list_of_a_namespace_holds_only_that_namespace() {
    let store = Store::new(10);
    store.with(|s| {
        s.put("pods", pod("b", "x", ""));
        s.put("pods", pod("a", "y", ""));
        s.put("pods", pod("a", "x", ""));
        s.put("pods", pod("ab", "x", ""));
        s.put("services", pod("a", "z", ""));
    });
    let names = |ns| store.list("pods", ns).0.iter().map(|o| object::name(o).to_owned()).collect::<Vec<_>>();
    assert_eq!(names(Some("a")), ["x", "y"]);
    assert_eq!(names(None).len(), 4);
    assert_eq!(names(Some("zz")).len(), 0);
}

#[test]
fn revisions_grow_across_resources_and_are_written_into_objects() {
    let store = Store::new(10);
    let (a, b) = store.with(|s| (s.put("pods", pod("a", "x", "")), s.put("services", pod("a", "x", ""))));
    let version = |o: &Value| object::resource_version(o).parse::<u64>().expect("a number");
    assert_eq!(version(&b), version(&a) + 1);
    let gone = store.with(|s| s.remove("pods", "a", "x")).expect("removed");
    assert_eq!(version(&gone), version(&b) + 1);
}

#[test]
fn a_watch_replays_what_happened_since_and_nothing_else() {
    let store = Store::new(10);
    store.with(|s| s.put("pods", pod("a", "old", "web")));
    let since = store.with(|s| s.revision());
    let mut watcher = store.watch("pods", since).expect("recent");
    store.with(|s| {
        s.put("pods", pod("a", "new", "web"));
        s.put("services", pod("a", "svc", "web"));
        s.put("pods", pod("a", "new", "db"));
        s.remove("pods", "a", "old");
        s.put("pods", pod("b", "else", "web"));
    });
    let (changes, upto) = watcher.drain(&store).expect("in history");
    assert_eq!(upto, store.with(|s| s.revision()));
    assert_eq!(seen(&changes, Some("a"), ""), ["ADDED new", "MODIFIED new", "DELETED old"]);
    assert_eq!(seen(&changes, None, "app=web"), ["ADDED new", "DELETED new", "DELETED old", "ADDED else"]);
    assert_eq!(seen(&changes, None, "app=db"), ["ADDED new"]);
    assert!(watcher.drain(&store).expect("in history").0.is_empty());
}

#[test]
fn a_version_that_fell_out_of_history_is_gone_for_watches_old_and_new() {
    let store = Store::new(2);
    let since = store.with(|s| s.revision());
    let mut slow = store.watch("pods", since).expect("recent");
    for n in 0..3 {
        store.with(|s| s.put("pods", pod("a", &n.to_string(), "")));
    }
    assert!(slow.drain(&store).is_err());
    assert!(store.watch("pods", since).is_err());
    assert!(store.watch("services", since).is_ok(), "another resource has its own history");
    let newest = store.with(|s| s.revision());
    assert!(store.watch("pods", newest).is_ok());
}

/// As after a restore from a backup: versions went back, and who goes on from the last one heard is told of nothing.
#[test]
fn a_watch_from_the_future_is_silent_until_that_has_been_reached() {
    let store = Store::new(10);
    let newest = store.with(|s| s.revision());
    let mut early = store.watch("pods", newest + 2).expect("it is taken");
    for name in ["a", "b"] {
        store.with(|s| s.put("pods", pod("n", name, "")));
        assert!(early.drain(&store).expect("in history").0.is_empty());
    }
    store.with(|s| s.put("pods", pod("n", "c", "")));
    let (changes, upto) = early.drain(&store).expect("in history");
    assert_eq!((seen(&changes, None, ""), upto), (vec!["ADDED c".to_owned()], newest + 3));
}

#[test]
fn an_idle_watch_is_not_outrun_by_other_resources() {
    let store = Store::new(1);
    let since = store.with(|s| s.revision());
    let mut idle = store.watch("pods", since).expect("recent");
    for n in 0..5 {
        store.with(|s| s.put("leases", pod("a", &n.to_string(), "")));
    }
    assert!(idle.drain(&store).expect("still there").0.is_empty());
}

#[tokio::test]
async fn dropping_a_resource_deletes_its_objects_and_ends_its_watches() {
    let store = Store::new(10);
    store.with(|s| s.put("things", pod("a", "x", "")));
    let since = store.with(|s| s.revision());
    let mut watcher = store.watch("things", since).expect("recent");
    store.with(|s| s.drop_resource("things"));
    while watcher.wait().await {}
    assert!(store.list("things", None).0.is_empty());
}
