//! Where plaintext is illegal: what PeerAuthentications say of a pod's ports. Pure.
//!
//! The proxies enforce it on new connections; the agent needs it for connections that are older than the enrolment,
//! which no proxy sees: those to a port that demands mutual TLS are ended at once, busy or not. Order of precedence
//! is that of `control-plane.md` §2: workload (oldest selector that matches), namespace, mesh; a port of a workload
//! before the workload.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::Deserialize;

/// A mode as written; whatever is not known counts as unset, as the control plane reads it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Inherited.
    #[default]
    Unset,
    /// Plaintext is accepted.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

impl Mode {
    fn read(text: Option<&str>) -> Self {
        match text {
            Some("STRICT") => Self::Strict,
            Some("PERMISSIVE" | "DISABLE") => Self::Permissive,
            _ => Self::Unset,
        }
    }

    fn or(self, inherited: bool) -> bool {
        match self {
            Self::Strict => true,
            Self::Permissive => false,
            Self::Unset => inherited,
        }
    }
}

/// One PeerAuthentication, as much of it as counts here.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Peer {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// When it was made: the oldest of its kind counts.
    pub created: Option<Time>,
    /// The labels it selects pods by; none for all pods of its namespace.
    pub labels: BTreeMap<String, String>,
    /// Mode of the workload, the namespace or the mesh.
    pub mode: Mode,
    /// Modes of single ports; they count with a selector only.
    pub ports: BTreeMap<u16, Mode>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    selector: Option<Selector>,
    mtls: Option<Mtls>,
    port_level_mtls: BTreeMap<String, Mtls>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Selector {
    match_labels: BTreeMap<String, String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Mtls {
    mode: Option<String>,
}

impl Peer {
    /// Reads the `spec` of an object; what cannot be understood counts as unset.
    pub fn read(namespace: &str, name: &str, created: Option<Time>, spec: &serde_json::Value) -> Self {
        let spec: Spec = serde_json::from_value(spec.clone()).unwrap_or_default();
        let mode = |mtls: &Mtls| Mode::read(mtls.mode.as_deref());
        let ports = spec.port_level_mtls.iter();
        Self {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            created,
            labels: spec.selector.map(|selector| selector.match_labels).unwrap_or_default(),
            mode: spec.mtls.as_ref().map(mode).unwrap_or_default(),
            ports: ports.filter_map(|(port, mtls)| Some((port.parse().ok()?, mode(mtls)))).collect(),
        }
    }
}

/// On which ports of one pod plaintext is illegal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Strictness {
    all: bool,
    ports: BTreeMap<u16, bool>,
}

impl Strictness {
    /// Whether plaintext to `port` is illegal.
    pub fn refuses(&self, port: u16) -> bool {
        self.ports.get(&port).copied().unwrap_or(self.all)
    }

    /// Whether plaintext to any port may be illegal.
    pub fn any(&self) -> bool {
        self.all || self.ports.values().any(|strict| *strict)
    }
}

/// What holds for a pod of `namespace` with `labels`. `root` is the mesh's own namespace.
pub fn of_pod(peers: &[Peer], root: &str, namespace: &str, labels: &BTreeMap<String, String>) -> Strictness {
    let level = |of: &str| {
        let all = peers.iter().filter(|peer| peer.namespace == of && peer.labels.is_empty());
        oldest(all).map_or(Mode::Unset, |peer| peer.mode)
    };
    let mesh = level(root).or(false);
    let inherited = if namespace == root { mesh } else { level(namespace).or(mesh) };
    // A selector in the mesh's own namespace selects pods of that namespace only.
    let own = peers.iter().filter(|peer| {
        peer.namespace == namespace
            && !peer.labels.is_empty()
            && peer.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
    });
    let Some(own) = oldest(own) else { return Strictness { all: inherited, ports: BTreeMap::new() } };
    let all = own.mode.or(inherited);
    Strictness { all, ports: own.ports.iter().map(|(port, mode)| (*port, mode.or(all))).collect() }
}

fn oldest<'a>(peers: impl Iterator<Item = &'a Peer>) -> Option<&'a Peer> {
    let key = |peer: &&Peer| (peer.created.is_none(), peer.created.as_ref().map(|t| t.0), peer.name.clone());
    peers.min_by_key(key)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn peer(namespace: &str, name: &str, spec: serde_json::Value) -> Peer {
        Peer::read(namespace, name, None, &spec)
    }

    fn labels(app: &str) -> BTreeMap<String, String> {
        BTreeMap::from([("app".to_owned(), app.to_owned())])
    }

    #[test]
    fn the_nearest_word_counts() {
        let all = vec![
            peer("mesh", "default", json!({"mtls": {"mode": "STRICT"}})),
            peer("open", "default", json!({"mtls": {"mode": "PERMISSIVE"}})),
            peer("silent", "default", json!({"mtls": {"mode": "UNSET"}})),
            peer(
                "open",
                "web",
                json!({"selector": {"matchLabels": {"app": "web"}}, "portLevelMtls": {"9100": {"mode": "STRICT"}}}),
            ),
            peer(
                "silent",
                "db",
                json!({"selector": {"matchLabels": {"app": "db"}}, "mtls": {"mode": "STRICT"},
                    "portLevelMtls": {"9100": {"mode": "DISABLE"}, "x": {"mode": "STRICT"}}}),
            ),
        ];
        let refuses = |namespace, app, port| of_pod(&all, "mesh", namespace, &labels(app)).refuses(port);
        assert!(refuses("other", "a", 80));
        assert!(refuses("mesh", "a", 80));
        assert!(refuses("silent", "a", 80));
        assert!(!refuses("open", "a", 80));
        assert!(!refuses("open", "web", 80));
        assert!(refuses("open", "web", 9100));
        assert!(refuses("silent", "db", 80));
        assert!(!refuses("silent", "db", 9100));
        assert!(!of_pod(&[], "mesh", "other", &labels("a")).any());
    }

    #[test]
    fn what_cannot_be_understood_changes_nothing() {
        for spec in [json!(null), json!([]), json!({"mtls": 7}), json!({"mtls": {"mode": "LOUD"}})] {
            let all = [peer("mesh", "default", spec)];
            assert!(!of_pod(&all, "mesh", "other", &labels("a")).any());
        }
    }
}
