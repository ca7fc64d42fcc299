//! Who may do what: Roles and ClusterRoles and their bindings, read as the real server reads them. Rules only add;
//! nothing forbids. Pure apart from what it looks up in the store.
//!
//! What the real server knows beyond it is not here: that nobody grants more than they have, aggregated ClusterRoles,
//! and the node authorizer.

use serde_json::{Value, json};

use super::auth::User;
use super::failure::Failure;
use super::object::{array_at, namespace, str_at, strings_at};
use super::registry::resource_name;
use super::store::Inner;

/// The group that may do everything, whatever the roles say.
const MASTERS: &str = "system:masters";
const GROUP: &str = "rbac.authorization.k8s.io";

/// What somebody wants to do, in the words of access reviews.
#[derive(Clone, Debug, Default)]
pub struct Wish<'a> {
    /// `get`, `list`, `patch`, …
    pub verb: &'a str,
    /// API group, "" for core.
    pub group: &'a str,
    /// Plural name.
    pub resource: &'a str,
    /// Part of the object, "" for the object itself.
    pub subresource: &'a str,
    /// "" for all namespaces, and for what has none.
    pub namespace: &'a str,
    /// "" for all objects.
    pub name: &'a str,
}

impl Wish<'_> {
    /// `pods/status`.
    fn combined(&self) -> String {
        if self.subresource.is_empty() {
            self.resource.to_owned()
        } else {
            format!("{}/{}", self.resource, self.subresource)
        }
    }

    fn refusal(&self, user: &User) -> Failure {
        let place = match self.namespace {
            "" => "at the cluster scope".to_owned(),
            namespace => format!("in the namespace {namespace:?}"),
        };
        let why = format!(
            "User {:?} cannot {} resource {:?} in API group {:?} {place}",
            user.name,
            self.verb,
            self.combined(),
            self.group
        );
        let resource = resource_name(self.group, self.resource);
        let mut failure = Failure::forbidden(&resource, self.name, &why);
        if self.name.is_empty() {
            failure.message = format!("{resource} is forbidden: {why}");
        }
        failure
    }
}

/// Refuses what no role grants.
pub fn check(inner: &Inner, user: &User, wish: &Wish<'_>) -> Result<(), Failure> {
    if allows(inner, user, wish) { Ok(()) } else { Err(wish.refusal(user)) }
}

/// Whether a role grants it.
pub fn allows(inner: &Inner, user: &User, wish: &Wish<'_>) -> bool {
    is_master(user) || rules(inner, user, wish.namespace).iter().any(|rule| grants(rule, wish))
}

/// Whether a role grants a request that is not about objects.
pub fn allows_path(inner: &Inner, user: &User, verb: &str, path: &str) -> bool {
    let matches = |pattern: &str| match pattern.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix),
        None => path == pattern,
    };
    is_master(user)
        || rules(inner, user, "").iter().any(|rule| {
            has(rule, "/verbs", verb) && strings_at(rule, "/nonResourceURLs").iter().any(|p| matches(p))
        })
}

fn is_master(user: &User) -> bool {
    user.groups.iter().any(|group| group == MASTERS)
}

/// The rules that hold for a user in a namespace, or for the whole cluster.
pub fn rules(inner: &Inner, user: &User, of: &str) -> Vec<Value> {
    let everywhere = inner.list("clusterrolebindings.rbac.authorization.k8s.io", None);
    let here = (!of.is_empty()).then(|| inner.list("rolebindings.rbac.authorization.k8s.io", Some(of)));
    let bindings = everywhere.chain(here.into_iter().flatten());
    let meant = bindings.filter(|binding| {
        array_at(binding, "/subjects").iter().any(|subject| is(user, subject, namespace(binding)))
    });
    let granted = meant.filter_map(|binding| {
        let name = str_at(binding, "/roleRef/name");
        match str_at(binding, "/roleRef/kind") {
            "ClusterRole" => inner.get("clusterroles.rbac.authorization.k8s.io", "", name),
            "Role" => inner.get("roles.rbac.authorization.k8s.io", namespace(binding), name),
            _ => None,
        }
    });
    granted.flat_map(|role| array_at(&role, "/rules").to_vec()).collect()
}

fn is(user: &User, subject: &Value, of_binding: &str) -> bool {
    let name = str_at(subject, "/name");
    match str_at(subject, "/kind") {
        "User" => user.name == name,
        "Group" => user.groups.iter().any(|group| group == name),
        "ServiceAccount" => {
            let own = str_at(subject, "/namespace");
            let namespace = if own.is_empty() { of_binding } else { own };
            user.name == format!("system:serviceaccount:{namespace}:{name}")
        }
        _ => false,
    }
}

fn has(rule: &Value, list: &str, wanted: &str) -> bool {
    strings_at(rule, list).iter().any(|item| *item == "*" || *item == wanted)
}

fn grants(rule: &Value, wish: &Wish<'_>) -> bool {
    let combined = wish.combined();
    let resource = |item: &&str| {
        let part = item.strip_prefix("*/").is_some_and(|part| part == wish.subresource);
        *item == "*" || *item == combined || (part && !wish.subresource.is_empty())
    };
    let names = strings_at(rule, "/resourceNames");
    has(rule, "/verbs", wish.verb)
        && has(rule, "/apiGroups", wish.group)
        && strings_at(rule, "/resources").iter().any(resource)
        && (names.is_empty() || names.contains(&wish.name))
}

/// What every cluster has: kinds of objects and the objects themselves.
pub fn defaults() -> Vec<(&'static str, Value)> {
    let role =
        |name: &str, rules: Value| ("clusterroles", json!({ "metadata": { "name": name }, "rules": rules }));
    let binding = |name: &str, group: &str| {
        let object = json!({
            "metadata": { "name": name },
            "roleRef": { "apiGroup": GROUP, "kind": "ClusterRole", "name": name },
            "subjects": [{ "apiGroup": GROUP, "kind": "Group", "name": group }],
        });
        ("clusterrolebindings", object)
    };
    let seen = json!([
        "configmaps",
        "endpoints",
        "events",
        "limitranges",
        "namespaces",
        "persistentvolumeclaims",
        "pods",
        "pods/log",
        "pods/status",
        "replicationcontrollers",
        "resourcequotas",
        "serviceaccounts",
        "services",
        "services/status",
        "daemonsets",
        "deployments",
        "deployments/scale",
        "replicasets",
        "statefulsets",
        "statefulsets/scale",
        "jobs",
        "cronjobs",
        "endpointslices",
        "ingresses",
        "networkpolicies",
        "poddisruptionbudgets",
        "horizontalpodautoscalers",
    ]);
    let groups = json!([
        "",
        "apps",
        "autoscaling",
        "batch",
        "discovery.k8s.io",
        "events.k8s.io",
        "networking.k8s.io",
        "policy",
    ]);
    let view = json!({ "apiGroups": groups, "resources": seen, "verbs": ["get", "list", "watch"] });
    let writes = ["create", "update", "patch", "delete", "deletecollection"];
    let edit = json!({ "apiGroups": groups, "resources": seen, "verbs": writes });
    let inside = json!({
        "apiGroups": [""],
        "resources": ["secrets", "pods/exec", "pods/attach", "pods/portforward", "pods/eviction"],
        "verbs": ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"],
    });
    let grant = json!({ "apiGroups": [GROUP], "resources": ["roles", "rolebindings"], "verbs": ["*"] });
    let discovery = json!([
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/"
    ]);
    vec![
        role(
            "cluster-admin",
            json!([
                { "apiGroups": ["*"], "resources": ["*"], "verbs": ["*"] },
                { "nonResourceURLs": ["*"], "verbs": ["*"] },
            ]),
        ),
        binding("cluster-admin", MASTERS),
        role("view", json!([view])),
        role("edit", json!([view, edit, inside])),
        role("admin", json!([view, edit, inside, grant])),
        role("system:discovery", json!([{ "nonResourceURLs": discovery, "verbs": ["get"] }])),
        binding("system:discovery", "system:authenticated"),
        role(
            "system:basic-user",
            json!([
                { "apiGroups": ["authorization.k8s.io"], "verbs": ["create"],
                  "resources": ["selfsubjectaccessreviews", "selfsubjectrulesreviews"] },
                { "apiGroups": ["authentication.k8s.io"], "verbs": ["create"], "resources": ["selfsubjectreviews"] },
            ]),
        ),
        binding("system:basic-user", "system:authenticated"),
    ]
}

#[cfg(test)]
mod tests;
