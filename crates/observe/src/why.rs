//! Why something is not proven, and what cures it: one code, one sentence, one command. Never just a missing padlock.

mod outside;

pub use outside::{code_outside, outside};

use serde::Serialize;

use crate::directory::{Directory, Pod};
use crate::flow::{Reporter, Text};
use crate::model::Why;
use crate::store::place::Place;

/// The codes, as `docs/reference/observe.md` explains them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
pub enum Code {
    SrcNotEnrolled,
    DstNotEnrolled,
    SrcHostNetwork,
    DstHostNetwork,
    NodeProbe,
    SrcOutside,
    DstOutside,
    NotEnrolled,
    HostNetwork,
    OptedOut,
    Sidecar,
    NamespaceExcluded,
    ProxyDown,
    PodPredatesEnrolment,
    PortExcluded,
    PassthroughService,
    PermissiveFallback,
    MeshComponent,
    NotReported,
    IdentityMismatch,
    ReportsDisagree,
    DeniedByPolicy,
    ConnectFailed,
    TlsFailed,
    PodFinished,
    AnsweredByAnother,
    TargetSpeaksHttp,
    TargetUnknown,
    NotScrapedYet,
    ScraperUnknown,
    ViaProxy,
    NoFlow,
    Loopback,
    SameNode,
    Unknown,
}

/// What is needed to say why.
pub struct Case<'a> {
    /// Who called.
    pub source: &'a Place,
    /// Who was called.
    pub target: &'a Place,
    /// The proxy's reason code.
    pub reason: &'a str,
    /// The cluster.
    pub directory: &'a Directory,
    /// Whether the proxy of a node reports at this moment.
    pub reporting: &'a dyn Fn(&str) -> bool,
}

impl Case<'_> {
    fn pod<'a>(&'a self, place: &Place) -> Option<&'a Pod> {
        self.directory.pod(&place.end.namespace, &place.end.pod).map(|pod| &**pod)
    }

    /// Why traffic that a proxy saw in plaintext is plaintext: the first obstacle on its way.
    pub fn plaintext(&self) -> Code {
        match self.reason {
            "predates_enrolment" => return Code::PodPredatesEnrolment,
            "port_excluded" => return Code::PortExcluded,
            "passthrough_service" => return Code::PassthroughService,
            _ => {}
        }
        if let Some(code) = self.source_obstacle().or_else(|| self.target_obstacle()) {
            return code;
        }
        if !(self.reporting)(&self.source.end.node) {
            return Code::ProxyDown;
        }
        Code::PermissiveFallback
    }

    fn source_obstacle(&self) -> Option<Code> {
        let end = &self.source.end;
        if !self.source.is_inside() {
            let node = end.address.and_then(|address| self.directory.node_at(address));
            return Some(match node {
                Some(node) if *node == self.target.end.node => Code::NodeProbe,
                Some(_) => Code::SrcHostNetwork,
                None => Code::SrcOutside,
            });
        }
        match self.pod(self.source) {
            Some(pod) => outside::obstacle(pod, Code::SrcHostNetwork, Code::SrcNotEnrolled),
            None => (!end.enrolled).then_some(Code::SrcNotEnrolled),
        }
    }

    fn target_obstacle(&self) -> Option<Code> {
        if !self.target.is_inside() {
            return Some(Code::DstOutside);
        }
        let known = match self.pod(self.target) {
            Some(pod) => outside::obstacle(pod, Code::DstHostNetwork, Code::DstNotEnrolled),
            None => (!self.target.end.enrolled).then_some(Code::DstNotEnrolled),
        };
        if known.is_some() {
            return known;
        }
        match self.reason {
            "host_network" => Some(Code::DstHostNetwork),
            "not_enrolled" => Some(Code::DstNotEnrolled),
            "unknown_destination" => Some(Code::DstOutside),
            _ => None,
        }
    }

    /// Why one side said nothing.
    pub fn silence(&self, silent: Option<Reporter>) -> Code {
        let place = match silent {
            Some(Reporter::Source) => self.source,
            Some(Reporter::Destination) => self.target,
            None => return Code::NotReported,
        };
        if (self.reporting)(&place.end.node) { Code::NotReported } else { Code::ProxyDown }
    }
}

/// A code in words, for these two ends.
pub fn explain(
    code: Code,
    source: &Place,
    target: &Place,
    reason: &Text,
    policy: &str,
    directory: &Directory,
) -> Why {
    let (from, to) = (source.name(), target.name());
    let namespace = |place: &Place| shell(&place.end.namespace);
    let label = |place: &Place| {
        format!("kubectl label namespace {} istio.io/dataplane-mode=ambient", namespace(place))
    };
    let is = |place: &Place, what: fn(&Pod) -> bool| {
        directory.pod(&place.end.namespace, &place.end.pod).is_some_and(|pod| what(pod))
    };
    let labelled = |place: &Place| {
        is(place, |pod| pod.opted_in)
            || directory.namespaces.get(&place.end.namespace).copied().unwrap_or(false)
    };
    // Which of the two ends it is about.
    let one = |what: fn(&Pod) -> bool| if is(source, what) { source } else { target };
    let enrol = |place: &Place| -> (String, String) {
        if labelled(place) {
            (
                "a label asks for it, so the node agent should have enrolled it: ask the agent of its node why".into(),
                format!("ambit explain pod {}/{}", namespace(place), shell(&place.end.pod)),
            )
        } else {
            ("enrol its namespace; nothing is restarted".into(), label(place))
        }
    };
    let say = |text: String, fix: &str, command: String| (text, fix.to_owned(), command);
    let none = String::new;
    let (text, fix, command) = match code {
        Code::SrcNotEnrolled | Code::NotEnrolled => {
            let (fix, command) = enrol(source);
            (format!("{from} is not in the mesh"), fix, command)
        }
        Code::DstNotEnrolled => {
            let (fix, command) = enrol(target);
            (format!("{to} is not in the mesh"), fix, command)
        }
        Code::SrcHostNetwork | Code::HostNetwork => say(
            format!("{from} uses the network of its node, which cannot be enrolled"),
            "run it without hostNetwork, or accept it as plaintext",
            none(),
        ),
        Code::DstHostNetwork => say(
            format!("{to} uses the network of its node, which cannot be enrolled"),
            "run it without hostNetwork, or accept it as plaintext",
            none(),
        ),
        Code::NodeProbe => say(format!("a probe of the kubelet, from the node itself, to {to}"), "", none()),
        Code::SrcOutside => say(
            format!("{from} is outside the mesh: no workload has this address"),
            "let it in through a gateway that is in the mesh, or accept it as plaintext",
            none(),
        ),
        Code::DstOutside => say(
            format!("{to} is outside the mesh: no workload has this address"),
            "send it through an egress gateway that is in the mesh, or accept it as plaintext",
            none(),
        ),
        Code::OptedOut => {
            let place = one(|pod| pod.opted_out);
            say(
                format!("{} is labelled istio.io/dataplane-mode=none", place.name()),
                "remove that label from its pod template",
                format!(
                    "kubectl label pod -n {} {} istio.io/dataplane-mode-",
                    shell(&place.end.namespace),
                    shell(&place.end.pod)
                ),
            )
        }
        Code::Sidecar => {
            let place = one(|pod| pod.sidecar);
            say(
                format!("{} has a sidecar, and beside one nothing is enrolled", place.name()),
                "stop injecting sidecars into its namespace, label that for the mesh, and restart its pods",
                format!("kubectl label namespace {} istio-injection- istio.io/rev-", namespace(place)),
            )
        }
        Code::NamespaceExcluded => say(
            format!(
                "{} is in a namespace that the node agents leave out, whatever its labels are",
                one(|pod| pod.excluded).name()
            ),
            "take it off EXCLUDE_NAMESPACES of the node agents and of the observer, or accept it as plaintext",
            none(),
        ),
        Code::ProxyDown => say(
            format!(
                "the node proxy of {} or {} is silent",
                or_unknown(&source.end.node),
                or_unknown(&target.end.node)
            ),
            "look at the node proxies",
            "kubectl get pods -n ambit-system -l app=ztunnel -o wide".into(),
        ),
        Code::PodPredatesEnrolment => say(
            format!("a connection of {from} is older than its enrolment"),
            "it is ended as soon as it is idle; restarting the client ends it now",
            format!("kubectl delete pod -n {} {}", shell(&source.end.namespace), shell(&source.end.pod)),
        ),
        Code::PortExcluded => say(
            format!("an annotation excludes this port of {from} or {to} from the mesh"),
            "remove the annotation traffic.sidecar.istio.io/exclude…Ports",
            none(),
        ),
        Code::PassthroughService => say(
            "the service that was called asks that its original destination be kept".into(),
            "remove PASSTHROUGH from its traffic policy",
            none(),
        ),
        Code::PermissiveFallback => say(
            format!("{from} and {to} are both in the mesh, and still this came in as plaintext"),
            "demand mutual TLS, so that it is refused and its sender becomes visible",
            format!(
                "kubectl apply -f - <<'END'\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: strict, namespace: {}}}\nspec: {{mtls: {{mode: STRICT}}}}\nEND",
                shell(&target.end.namespace)
            ),
        ),
        Code::MeshComponent => say(
            format!("{from} or {to} is part of the mesh itself, which never carries its own traffic"),
            "",
            none(),
        ),
        Code::NotReported => say(
            format!("only one of the two node proxies of {from} and {to} has reported this"),
            "look at the proxy that is missing",
            "kubectl get pods -n ambit-system -l app=ztunnel -o wide".into(),
        ),
        Code::IdentityMismatch => say(
            format!("the two node proxies of {from} and {to} name different identities"),
            "compare their records; one of them is wrong or lies",
            none(),
        ),
        Code::ReportsDisagree => say(
            format!("the two node proxies of {from} and {to} disagree on how this was secured"),
            "compare their records; one of them is wrong or lies",
            none(),
        ),
        Code::DeniedByPolicy => denied(&from, &to, target, policy),
        Code::ConnectFailed => say(
            format!("{to} could not be reached{}", in_brackets(reason)),
            "see whether it listens, and whether a NetworkPolicy is in the way of port 15008",
            none(),
        ),
        Code::TlsFailed => say(
            format!("mutual TLS between {from} and {to} failed{}", in_brackets(reason)),
            "see the log of both node proxies for what was wrong with which certificate",
            "kubectl logs -n ambit-system daemonset/ambit-proxy".into(),
        ),
        Code::PodFinished | Code::AnsweredByAnother => say(
            "answered by another workload: the pod has finished".into(),
            "drop finished pods from this scrape job by a relabelling rule",
            "- source_labels: [__meta_kubernetes_pod_phase]\n  regex: Succeeded|Failed\n  action: drop"
                .into(),
        ),
        Code::TargetSpeaksHttp => say(
            "tunnel proven; scrape fails because the target speaks HTTP: remove scheme and tlsConfig".into(),
            "remove scheme and tlsConfig (tls_config) from the scrape job: the mesh does the TLS",
            none(),
        ),
        Code::TargetUnknown => say(
            format!("no pod of this cluster has the address of {to}"),
            "scrape it through a gateway, or accept it as outside the mesh",
            none(),
        ),
        Code::NotScrapedYet => say("it has not been scraped yet".into(), "", none()),
        Code::ScraperUnknown => say(
            "it is not known which pod this Prometheus is".into(),
            "name it: --prometheus NAMESPACE/POD=URL",
            none(),
        ),
        Code::ViaProxy => say(
            "this job scrapes through a proxy (proxy_url), so the path to the target cannot be seen".into(),
            "remove proxy_url",
            none(),
        ),
        Code::NoFlow => say(
            format!("no node proxy saw bytes of this scrape between {from} and {to}"),
            "see whether both are in the mesh and both node proxies report",
            "kubectl get pods -n ambit-system -l app=ztunnel -o wide".into(),
        ),
        Code::Loopback => say(format!("{to} scrapes itself: this is on no wire"), "", none()),
        Code::SameNode => say(
            format!(
                "{from} and {to} run on one node, whose proxy joins them without encryption (SAME_NODE=splice)"
            ),
            "encrypt within nodes, too",
            "kubectl set env -n ambit-system daemonset/ambit-proxy SAME_NODE=encrypt".into(),
        ),
        Code::Unknown => say(format!("it cannot be said{}", in_brackets(reason)), "", none()),
    };
    Why { code, reason: reason.clone(), text, fix, command, count: 1 }
}

fn denied(from: &str, to: &str, target: &Place, policy: &str) -> (String, String, String) {
    let by =
        if policy.is_empty() { "no policy allows it".to_owned() } else { format!("policy {policy} decides") };
    let name = policy.split('#').next().unwrap_or_default();
    let command = match name.split_once('/') {
        Some((namespace, name)) => {
            format!("kubectl describe authorizationpolicy -n {} {}", shell(namespace), shell(name))
        }
        None => format!("kubectl get authorizationpolicy -n {}", shell(&target.end.namespace)),
    };
    let fix = "allow the caller's principal in a policy with a selector; one that is bound to a Service needs a waypoint \
               and does not cover calls to a pod's own address";
    (format!("{from} may not call {to}: {by}"), fix.into(), command)
}

fn in_brackets(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

fn or_unknown(text: &str) -> &str {
    if text.is_empty() { "an unknown node" } else { text }
}

/// A name for a command line. Names of Kubernetes pass as they are; anything else is not offered for pasting.
fn shell(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    if !name.is_empty() && !name.starts_with('-') && name.chars().all(plain) {
        name.into()
    } else {
        "NAME".into()
    }
}

#[cfg(test)]
mod tests;
