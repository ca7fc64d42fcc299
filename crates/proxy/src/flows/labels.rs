//! Who talks to whom, as labels (reference/data-plane.md §10, control-plane.md §8.2).

use std::fmt::Write;
use std::sync::Arc;

use hbone::Baggage;
use mesh::{Identity, Service, Workload};

/// Which end reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Reporter {
    Source,
    Destination,
}

impl Reporter {
    /// The label value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    /// The direction in the access log.
    pub fn direction(self) -> &'static str {
        match self {
            Self::Source => "outbound",
            Self::Destination => "inbound",
        }
    }
}

/// How a flow was secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Security {
    /// Both ends have proven their identities, and nobody in between can read it.
    MutualTls,
    /// Within one pod; or within the node on the word of one proxy, which holds the certificates of both ends.
    NodeLocal,
    /// In plaintext.
    Plaintext,
}

impl Security {
    /// The value of `connection_security_policy`.
    fn policy(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::NodeLocal => "node_local",
            Self::Plaintext => "unknown",
        }
    }
}

/// One end of a flow. Empty texts are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Side {
    pub workload: Arc<str>,
    pub canonical: Arc<str>,
    pub revision: Arc<str>,
    pub namespace: Arc<str>,
    pub app: Arc<str>,
    pub cluster: Arc<str>,
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub principal: Option<Identity>,
}

impl Side {
    /// As the control plane describes the workload; `principal` as far as it may be claimed.
    pub fn of(workload: &Workload, principal: Option<Identity>) -> Self {
        Self {
            workload: workload.workload_name.clone(),
            canonical: workload.canonical_name.clone(),
            revision: workload.canonical_revision.clone(),
            namespace: workload.namespace.clone(),
            app: workload.canonical_name.clone(),
            cluster: workload.cluster.clone(),
            region: workload.locality.region.clone(),
            zone: workload.locality.zone.clone(),
            principal,
        }
    }

    /// The labels that all metrics have of an end: `<prefix>_workload="…",…`.
    pub(crate) fn render(&self, prefix: &str) -> String {
        let mut text = String::with_capacity(512);
        let principal = self.principal.as_ref().map(ToString::to_string).unwrap_or_default();
        for (name, value) in [
            ("workload", &*self.workload),
            ("canonical_service", &*self.canonical),
            ("canonical_revision", &*self.revision),
            ("workload_namespace", &*self.namespace),
            ("principal", &*principal),
            ("app", &*self.app),
            ("version", &*self.revision),
            ("cluster", &*self.cluster),
        ] {
            label(&mut text, &format!("{prefix}_{name}"), value);
        }
        text
    }

    /// As the peer describes itself.
    pub fn from_baggage(baggage: &Baggage, principal: Option<Identity>) -> Self {
        let text = |text: &Option<Arc<str>>| text.clone().unwrap_or_default();
        let workload = baggage.workload.as_ref().map(|(_, name)| name.clone()).unwrap_or_default();
        Self {
            app: workload.clone(),
            workload,
            canonical: text(&baggage.service),
            revision: text(&baggage.version),
            namespace: text(&baggage.namespace),
            cluster: text(&baggage.cluster),
            region: text(&baggage.region),
            zone: text(&baggage.zone),
            principal,
        }
    }
}

/// The service that was called. Empty texts are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct ServiceLabels {
    pub host: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
}

impl ServiceLabels {
    /// For a call to a service; or else to `destination` itself, whose namespace is named in any case, so that both
    /// ends report alike (reference/graph-ui.md §1.5).
    pub fn of(service: Option<&Service>, destination: Option<&Workload>) -> Self {
        match (service, destination) {
            (Some(service), _) => Self {
                host: service.key.hostname.clone(),
                name: service.name.clone(),
                namespace: service.key.namespace.clone(),
            },
            (None, Some(workload)) => Self { namespace: workload.namespace.clone(), ..Self::default() },
            (None, None) => Self::default(),
        }
    }
}

/// All labels of a flow but the flag.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub struct Labels {
    pub reporter: Reporter,
    pub source: Side,
    pub destination: Side,
    pub service: ServiceLabels,
    pub security: Security,
}

impl Labels {
    /// `name="value",…`, without the flag.
    pub(super) fn render(&self) -> String {
        let mut text = String::with_capacity(1024);
        label(&mut text, "reporter", self.reporter.as_str());
        for (prefix, side) in [("source", &self.source), ("destination", &self.destination)] {
            text.push(',');
            text.push_str(&side.render(prefix));
        }
        let mut put = |name: &str, value: &str| label(&mut text, name, value);
        put("destination_service", &self.service.host);
        put("destination_service_namespace", &self.service.namespace);
        put("destination_service_name", &self.service.name);
        put("request_protocol", "tcp");
        put("connection_security_policy", self.security.policy());
        for (prefix, side) in [("source", &self.source), ("destination", &self.destination)] {
            put(&format!("{prefix}_region"), &side.region);
            put(&format!("{prefix}_zone"), &side.zone);
        }
        text
    }
}

/// Adds a label; an empty value is unknown.
fn label(text: &mut String, name: &str, value: &str) {
    if !text.is_empty() {
        text.push(',');
    }
    let _ = write!(text, "{name}=\"");
    escape(text, if value.is_empty() { "unknown" } else { value });
    text.push('"');
}

/// Escapes a label value as the text formats demand.
pub(crate) fn escape(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}
