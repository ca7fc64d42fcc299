use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;

use super::fields::FieldSet;
use super::managed::{self, Operation};
use super::schema::Schema;
use super::*;
use crate::api::registry::Registry;

fn kind(group: &str, plural: &str) -> Arc<Kind> {
    Registry::new(std::iter::empty()).find(group, "v1", plural).expect("built in")
}

fn strategic(plural: &str, target: Value, patch: Value) -> Value {
    let kind = kind("", plural);
    Patch::Strategic(patch).apply(&kind, &target).expect("applies")
}

fn applied(kind: &Kind, live: &Value, manager: &str, config: Value, force: bool) -> Result<Value, Failure> {
    apply::apply(kind, live, &config, &Operation::apply(manager), force)
}

fn owners(object: &Value, path: &str) -> Vec<String> {
    managed::entries(object)
        .iter()
        .filter(|e| e.fields.paths().iter().any(|p| p == path))
        .map(|e| e.manager.clone())
        .collect()
}

#[test]
fn strategic_merge_finds_list_elements_by_their_keys() {
    let pod = json!({"spec": {"containers": [
        {"name": "a", "image": "1", "env": [{"name": "X", "value": "1"}], "args": ["old", "list"]},
        {"name": "b", "image": "1"},
    ]}});
    let patch = json!({"spec": {"containers": [
        {"name": "a", "image": "2", "env": [{"name": "Y", "value": "2"}], "args": ["new"]},
        {"name": "c", "image": "3"},
    ]}});
    let want = json!({"spec": {"containers": [
        {"name": "a", "image": "2", "env": [{"name": "X", "value": "1"}, {"name": "Y", "value": "2"}], "args": ["new"]},
        {"name": "b", "image": "1"},
        {"name": "c", "image": "3"},
    ]}});
    assert_eq!(strategic("pods", pod, patch), want);
}

#[test]
fn strategic_merge_keys_ports_by_their_kind() {
    let service = json!({"spec": {"ports": [{"port": 80, "name": "a"}]}});
    let patched = strategic(
        "services",
        service,
        json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}, {"port": 81}]}}),
    );
    assert_eq!(
        patched,
        json!({"spec": {"ports": [{"port": 80, "name": "a", "targetPort": 8080}, {"port": 81}]}})
    );
}

#[test]
fn strategic_merge_obeys_its_directives() {
    let pod = || {
        json!({
            "metadata": {"finalizers": ["a", "b"], "labels": {"x": "1", "y": "2"}},
            "spec": {"volumes": [{"name": "v", "emptyDir": {}}, {"name": "w", "emptyDir": {}}], "nodeSelector": {"a": "b"}},
        })
    };
    let spec = |patch: Value| strategic("pods", pod(), json!({ "spec": patch }))["spec"].clone();
    assert_eq!(
        spec(json!({"volumes": [{"$patch": "delete", "name": "v"}]}))["volumes"],
        json!([{"name": "w", "emptyDir": {}}])
    );
    assert_eq!(
        spec(json!({"volumes": [{"$patch": "replace"}, {"name": "z"}]}))["volumes"],
        json!([{"name": "z"}])
    );
    assert_eq!(
        spec(
            json!({"volumes": [{"name": "v", "$retainKeys": ["name", "hostPath"], "hostPath": {"path": "/"}}]})
        )["volumes"][0],
        json!({"name": "v", "hostPath": {"path": "/"}})
    );
    assert_eq!(
        spec(json!({"nodeSelector": {"$patch": "replace", "c": "d"}}))["nodeSelector"],
        json!({"c": "d"})
    );
    assert_eq!(spec(json!({"nodeSelector": {"$patch": "delete"}})).get("nodeSelector"), None);
    assert_eq!(
        spec(json!({"$setElementOrder/volumes": [{"name": "w"}, {"name": "v"}]}))["volumes"][0]["name"],
        json!("w")
    );
    let metadata = |patch: Value| strategic("pods", pod(), json!({ "metadata": patch }))["metadata"].clone();
    assert_eq!(metadata(json!({"$deleteFromPrimitiveList/finalizers": ["a"]}))["finalizers"], json!(["b"]));
    assert_eq!(metadata(json!({"finalizers": ["c", "a"]}))["finalizers"], json!(["a", "b", "c"]));
    assert_eq!(metadata(json!({"labels": {"x": null}}))["labels"], json!({"y": "2"}));
}

#[test]
fn a_strategic_element_without_its_key_is_refused() {
    let patch = Patch::Strategic(json!({"spec": {"containers": [{"image": "x"}]}}));
    assert_eq!(patch.apply(&kind("", "pods"), &json!({})).expect_err("no key").code, 400);
}

#[test]
fn apply_owns_what_it_sets_and_removes_what_it_no_longer_wants() {
    let kind = kind("apps", "deployments");
    let first = json!({"spec": {"replicas": 1, "template": {"spec": {"containers": [
        {"name": "a", "image": "x", "ports": [{"containerPort": 80}]}, {"name": "b", "image": "y"},
    ]}}}, "metadata": {"labels": {"k": "v"}}});
    let live = applied(&kind, &json!({}), "me", first, false).expect("nothing there");
    assert_eq!(owners(&live, ".spec.replicas"), ["me"]);
    let second = json!({"spec": {"template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}}});
    let live = applied(&kind, &live, "me", second, false).expect("all mine");
    assert_eq!(live["spec"], json!({"template": {"spec": {"containers": [{"name": "a", "image": "x"}]}}}));
    assert!(live["metadata"].get("labels").is_none());
}

#[test]
fn apply_conflicts_with_other_owners_unless_forced_or_of_one_mind() {
    let kind = kind("apps", "deployments");
    let live = applied(&kind, &json!({}), "one", json!({"spec": {"replicas": 1}}), false).expect("new");
    let same = applied(&kind, &live, "two", json!({"spec": {"replicas": 1}}), false)
        .expect("the same value is shared");
    assert_eq!(owners(&same, ".spec.replicas"), ["one", "two"]);
    let refused =
        applied(&kind, &live, "two", json!({"spec": {"replicas": 2}}), false).expect_err("owned by one");
    assert_eq!(refused.code, 409);
    assert_eq!(
        refused.message,
        r#"Apply failed with 1 conflict: conflict with "one" using apps/v1: .spec.replicas"#
    );
    let forced = applied(&kind, &live, "two", json!({"spec": {"replicas": 2}}), true).expect("forced");
    assert_eq!(owners(&forced, ".spec.replicas"), ["two"]);
    let kept = applied(&kind, &same, "two", json!({"spec": {}}), false).expect("gives it up");
    assert_eq!(
        (kept["spec"]["replicas"].clone(), owners(&kept, ".spec.replicas")),
        (json!(1), vec!["one".to_owned()])
    );
}

#[test]
fn an_update_takes_the_fields_that_it_changes() {
    let kind = kind("", "configmaps");
    let live = applied(&kind, &json!({}), "one", json!({"data": {"a": "1", "b": "1"}}), false).expect("new");
    let mut new = live.clone();
    new["data"] = json!({"a": "2", "c": "3"});
    managed::track(&kind, Some(&live), &mut new, &Operation::update("two"));
    assert_eq!(owners(&new, ".data.a"), ["two"]);
    assert_eq!(owners(&new, ".data.c"), ["two"]);
    assert!(owners(&new, ".data.b").is_empty());
}

#[test]
fn an_element_that_others_own_a_part_of_stays() {
    let kind = kind("", "pods");
    let mine = json!({"spec": {"containers": [{"name": "a", "image": "x"}]}});
    let theirs = json!({"spec": {"containers": [{"name": "a", "workingDir": "/"}]}});
    let live = applied(&kind, &json!({}), "me", mine, false).expect("new");
    let live = applied(&kind, &live, "they", theirs, false).expect("another field");
    let live = applied(&kind, &live, "me", json!({"spec": {}}), false).expect("gone");
    assert_eq!(live["spec"]["containers"], json!([{"name": "a", "workingDir": "/"}]));
}

fn objects() -> impl Strategy<Value = Value> {
    let leaf =
        prop_oneof![Just(json!(1)), Just(json!("x")), Just(json!(true)), Just(json!({})), Just(json!([]))];
    let container =
        (0..3u8, 0..3u8).prop_map(|(n, i)| json!({"name": n.to_string(), "image": i.to_string()}));
    let containers = proptest::collection::vec(container, 0..4).prop_map(|mut list| {
        list.sort_by_key(|c| c["name"].to_string());
        list.dedup_by_key(|c| c["name"].to_string());
        json!(list)
    });
    let labels = proptest::collection::btree_map("[ab]", "[xy]", 0..3).prop_map(|m| json!(m));
    (leaf.clone(), containers, labels, leaf)
        .prop_map(|(a, c, l, b)| json!({"spec": {"containers": c, "a": a, "nested": {"b": b}}, "metadata": {"labels": l}}))
}

proptest! {
    #[test]
    fn field_sets_survive_the_wire(object in objects()) {
        let set = FieldSet::of(Schema::of(&kind("", "pods")), &object);
        prop_assert_eq!(FieldSet::parse(&set.wire()), set);
    }

    #[test]
    fn applying_twice_is_applying_once(live in objects(), config in objects()) {
        let kind = kind("", "pods");
        let once = applied(&kind, &live, "me", config.clone(), true).expect("forced");
        let twice = applied(&kind, &once, "me", config, false).expect("all mine");
        prop_assert!(managed::same_but_for_times(&once, &twice));
    }

    #[test]
    fn what_is_applied_is_there(live in objects(), config in objects()) {
        let kind = kind("", "pods");
        let merged = applied(&kind, &live, "me", config.clone(), true).expect("forced");
        let (wanted, have) = (managed::owned(&kind, &config), managed::owned(&kind, &merged));
        // An empty map or list is a value only until something is in it.
        let missing: Vec<String> = wanted.minus(&have).paths();
        for path in missing {
            prop_assert!(have.paths().iter().any(|p| p.starts_with(&path)), "{} is missing", path);
        }
    }

    #[test]
    fn a_strategic_merge_with_itself_changes_nothing(object in objects()) {
        let merged = strategic("pods", object.clone(), object.clone());
        prop_assert_eq!(merged, object);
    }
}
