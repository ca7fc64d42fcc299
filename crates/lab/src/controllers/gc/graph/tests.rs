use super::*;

fn item(uid: &str, owners: &[&str]) -> Item {
    let owner = |uid: &&str| OwnerReference {
        uid: (*uid).into(),
        block_owner_deletion: Some(true),
        ..OwnerReference::default()
    };
    Item { uid: uid.into(), owners: owners.iter().map(owner).collect(), ..Item::default() }
}

fn going(mut item: Item, finalizer: &str) -> Item {
    item.deleting = true;
    item.finalizers = vec![finalizer.into()];
    item
}

fn uids(items: &[Item]) -> Vec<&str> {
    items.iter().map(|item| item.uid.as_str()).collect()
}

#[test]
fn the_end_of_an_owner_concerns_its_dependents() {
    let mut graph = Graph::default();
    graph.put(item("owner", &[]));
    assert_eq!(graph.put(item("child", &["owner"])), ["child"]);
    assert_eq!(graph.decide("child"), Decision::Nothing);
    assert_eq!(graph.remove("owner"), ["child"]);
    assert!(matches!(graph.decide("child"), Decision::CheckOwners { .. }));
}

#[test]
fn an_owner_seen_after_its_dependent_is_no_reason_to_delete() {
    let mut graph = Graph::default();
    graph.put(item("child", &["owner"]));
    assert!(matches!(graph.decide("child"), Decision::CheckOwners { .. }));
    graph.put(item("owner", &[]));
    assert_eq!(graph.decide("child"), Decision::Nothing);
}

#[test]
fn one_owner_that_is_not_known_is_enough_to_ask() {
    let mut graph = Graph::default();
    graph.put(item("alive", &[]));
    graph.put(item("child", &["alive", "gone"]));
    let Decision::CheckOwners { item } = graph.decide("child") else { panic!("not checked") };
    assert_eq!(item.uid, "child");
    graph.put(Item { uid: "gone".into(), ..Item::default() });
    assert_eq!(graph.decide("child"), Decision::Nothing);
}

#[test]
fn foreground_deletion_takes_dependents_first_and_then_lets_the_owner_go() {
    let mut graph = Graph::default();
    graph.put(item("owner", &[]));
    graph.put(item("child", &["owner"]));
    assert_eq!(graph.put(going(item("owner", &[]), FOREGROUND)), ["owner"]);
    let Decision::DeleteFirst { dependents } = graph.decide("owner") else {
        panic!("dependents are not deleted")
    };
    assert_eq!(uids(&dependents), ["child"]);

    let mut ending = item("child", &["owner"]);
    ending.deleting = true;
    graph.put(ending);
    assert_eq!(graph.decide("owner"), Decision::DeleteFirst { dependents: vec![] }, "it still waits");
    assert_eq!(graph.remove("child"), ["owner"]);
    assert!(matches!(graph.decide("owner"), Decision::Release { finalizer: FOREGROUND, .. }));
}

#[test]
fn a_dependent_made_while_its_owner_goes_goes_too() {
    let mut graph = Graph::default();
    graph.put(going(item("owner", &[]), FOREGROUND));
    graph.put(item("late", &["owner"]));
    let Decision::DeleteFirst { dependents } = graph.decide("late") else { panic!("it stays") };
    assert_eq!(uids(&dependents), ["late"]);
}

#[test]
fn orphans_are_let_go_before_their_owner() {
    let mut graph = Graph::default();
    graph.put(item("child", &["owner"]));
    graph.put(going(item("owner", &[]), ORPHAN));
    let Decision::Orphan { dependents, .. } = graph.decide("owner") else { panic!("no orphans") };
    assert_eq!(uids(&dependents), ["child"]);
    graph.put(item("child", &[]));
    let Decision::Orphan { dependents, .. } = graph.decide("owner") else { panic!("no orphans") };
    assert!(dependents.is_empty());
    assert_eq!(graph.decide("child"), Decision::Nothing);
}

#[test]
fn nothing_is_left_in_the_graph_of_what_is_gone() {
    let mut graph = Graph::default();
    graph.put(item("owner", &[]));
    graph.put(item("child", &["owner"]));
    graph.remove("child");
    graph.remove("owner");
    assert!(graph.items.is_empty() && graph.dependents.is_empty());
}
