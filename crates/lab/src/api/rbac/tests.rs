use super::*;
use crate::api::store::Store;

/// A store with these objects of the group, by plural.
fn with(objects: &[(&str, Value)]) -> Store {
    let store = Store::new(10);
    store.with(|inner| {
        for (plural, object) in objects.iter().cloned().chain(defaults()) {
            inner.put(&resource_name(GROUP, plural), object);
        }
    });
    store
}

fn account(namespace: &str, name: &str) -> User {
    let groups = ["system:serviceaccounts".to_owned(), format!("system:serviceaccounts:{namespace}")];
    User {
        name: format!("system:serviceaccount:{namespace}:{name}"),
        groups: groups.into_iter().chain(["system:authenticated".to_owned()]).collect(),
        ..User::default()
    }
}

fn role(kind: &str, namespace: &str, rules: Value) -> (&'static str, Value) {
    let plural = if kind == "Role" { "roles" } else { "clusterroles" };
    let mut metadata = json!({ "name": "r" });
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    (plural, json!({ "metadata": metadata, "rules": rules }))
}

fn binding(namespace: &str, to: &str, subject: Value) -> (&'static str, Value) {
    let plural = if namespace.is_empty() { "clusterrolebindings" } else { "rolebindings" };
    let mut metadata = json!({ "name": "b" });
    if !namespace.is_empty() {
        metadata["namespace"] = namespace.into();
    }
    (plural, json!({ "metadata": metadata, "roleRef": { "kind": to, "name": "r" }, "subjects": [subject] }))
}

fn wish<'a>(verb: &'a str, resource: &'a str, namespace: &'a str, name: &'a str) -> Wish<'a> {
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    Wish { verb, group: "", resource, subresource, namespace, name }
}

#[test]
fn a_rule_grants_its_verbs_on_its_resources_and_nothing_else() {
    let rules =
        json!([{ "apiGroups": [""], "resources": ["pods", "services/status"], "verbs": ["get", "patch"] }]);
    let subject = json!({ "kind": "ServiceAccount", "name": "a", "namespace": "n" });
    let store = with(&[role("ClusterRole", "", rules), binding("", "ClusterRole", subject)]);
    let may = |user: User, wish: &Wish<'_>| store.with(|inner| allows(inner, &user, wish));
    let a = || account("n", "a");
    assert!(
        may(a(), &wish("get", "pods", "x", "p")) && may(a(), &wish("patch", "services/status", "x", "s"))
    );
    for refused in [
        wish("list", "pods", "x", ""),
        wish("patch", "services", "x", "s"),
        wish("get", "pods/status", "x", "p"),
        wish("get", "secrets", "x", "s"),
        Wish { group: "apps", ..wish("get", "pods", "x", "p") },
    ] {
        assert!(!may(a(), &refused), "{refused:?}");
    }
    assert!(!may(account("n", "b"), &wish("get", "pods", "x", "p")));
    assert!(!may(account("m", "a"), &wish("get", "pods", "x", "p")));
}

#[test]
fn a_role_holds_in_its_namespace_and_for_the_names_it_has() {
    let rules =
        json!([{ "apiGroups": [""], "resources": ["secrets"], "resourceNames": ["ca"], "verbs": ["*"] }]);
    let subject = json!({ "kind": "ServiceAccount", "name": "a" });
    let store = with(&[role("Role", "n", rules), binding("n", "Role", subject)]);
    let may = |wish: &Wish<'_>| store.with(|inner| allows(inner, &account("n", "a"), wish));
    assert!(may(&wish("get", "secrets", "n", "ca")) && may(&wish("watch", "secrets", "n", "ca")));
    assert!(!may(&wish("get", "secrets", "n", "other")) && !may(&wish("get", "secrets", "m", "ca")));
    // Whoever lists all of them, or creates one, names none.
    assert!(!may(&wish("list", "secrets", "n", "")) && !may(&wish("create", "secrets", "n", "")));
}

#[test]
fn everybody_may_ask_what_they_may_and_administrators_may_everything() {
    let store = with(&[]);
    let admin = User { name: "x".into(), groups: vec![MASTERS.into()], ..User::default() };
    let ask = Wish { group: "authorization.k8s.io", ..wish("create", "selfsubjectaccessreviews", "", "") };
    store.with(|inner| {
        assert!(
            allows(inner, &account("n", "a"), &ask)
                && allows_path(inner, &account("n", "a"), "get", "/apis/apps")
        );
        assert!(!allows_path(inner, &account("n", "a"), "get", "/metrics"));
        assert!(!allows(inner, &account("n", "a"), &wish("list", "pods", "", "")));
        assert!(
            allows(inner, &admin, &wish("delete", "nodes", "", "n"))
                && allows_path(inner, &admin, "get", "/metrics")
        );
    });
}

#[test]
fn a_refusal_names_who_what_and_where() {
    let store = with(&[]);
    let refusal = |wish: &Wish<'_>| store.with(|inner| check(inner, &account("n", "a"), wish)).unwrap_err();
    let failure = refusal(&wish("patch", "services/status", "shop", "s"));
    assert_eq!((failure.code, failure.reason), (403, "Forbidden"));
    assert_eq!(
        failure.message,
        "services \"s\" is forbidden: User \"system:serviceaccount:n:a\" cannot patch resource \"services/status\" in \
         API group \"\" in the namespace \"shop\""
    );
    let all = refusal(&Wish { group: "coordination.k8s.io", ..wish("list", "leases", "", "") });
    assert!(all.message.starts_with("leases.coordination.k8s.io is forbidden: User "), "{}", all.message);
    assert!(all.message.ends_with("in API group \"coordination.k8s.io\" at the cluster scope"));
}
