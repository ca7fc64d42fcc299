//! The scrape proof: Prometheus' own list of targets, joined with what both node proxies saw.
//!
//! Pure: targets, flows, cluster and time go in, one row a target comes out. The rule: *proven* is said only when,
//! around the last scrape, bytes moved between this very Prometheus pod and the very pod that the target names, on
//! mutual TLS, in the reports of both proxies, with the same two identities, and nothing moved otherwise. Whatever
//! falls short is called what it is.

mod csv;
pub mod prometheus;

use std::net::IpAddr;
use std::sync::Arc;

use crate::directory::{Directory, Pod};
use crate::flow::{End, Millis, Reporter, Security, Text, Verdict};
use crate::judge::{Said, judge};
use crate::model::{self, Evidence, Proof, State, Target, Why};
use crate::store::place::{Place, PlaceKey};
use crate::store::{Pair, Store};
use crate::table::{Window, code, records, reporting_nodes, said};
use crate::unseen::Unseen;
use crate::why::{Case, Code, explain};
pub use csv::csv;
use prometheus::RawTarget;

/// How long after a scrape its flows may still be on their way here.
const SETTLE: Millis = 3_000;
/// Clocks of Prometheus and the proxies may differ by this.
const BEFORE: Millis = 1_000;
/// As `BEFORE`; a report may also be a little later than the bytes.
const AFTER: Millis = 2_000;

/// A Prometheus, as far as it is known.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Scraper {
    /// `namespace/pod`, or the URL.
    pub id: Text,
    pub url: String,
    /// Empty when its pod is not known.
    pub namespace: Text,
    pub pod: Text,
    /// When it last answered.
    pub polled: Option<Millis>,
    /// Why it does not answer.
    pub error: String,
    /// Its targets at `polled`.
    pub targets: Arc<Vec<RawTarget>>,
}

/// What the proof is made from.
#[allow(missing_docs)]
pub struct Facts<'a> {
    pub store: &'a Store,
    pub directory: &'a Directory,
    pub now: Millis,
}

/// Judges all targets of a Prometheus, and names those of its scrapes that no proxy saw.
pub fn prove(scraper: &Scraper, facts: &Facts<'_>) -> (Vec<Target>, Vec<Unseen>) {
    let reporting = reporting_nodes(facts.store, facts.now);
    let is_reporting = |node: &str| reporting.contains(node);
    let mut unseen = Vec::new();
    let targets = scraper.targets.iter().map(|raw| one(raw, scraper, facts, &is_reporting, &mut unseen));
    (targets.collect(), unseen)
}

/// A Prometheus for the API; its identity is the one that its proven scrapes show.
pub fn summary(scraper: &Scraper, targets: &[Target], directory: &Directory) -> model::Prometheus {
    let mut summary = model::ProofCounts::default();
    targets.iter().for_each(|target| summary.add(target.proof, target.health == "up"));
    let identity = targets.iter().find(|target| target.proof == Proof::Proven);
    model::Prometheus {
        id: scraper.id.clone(),
        url: scraper.url.clone(),
        namespace: scraper.namespace.clone(),
        pod: scraper.pod.clone(),
        identity: identity.map(|target| target.source_identity.clone()).unwrap_or_default(),
        enrolled: directory.pod(&scraper.namespace, &scraper.pod).map(|pod| pod.enrolled),
        reachable: scraper.error.is_empty() && scraper.polled.is_some(),
        error: scraper.error.clone(),
        polled_at: scraper.polled,
        summary,
    }
}

/// What was concluded of one target.
struct Verdictum {
    proof: Proof,
    code: Option<Code>,
    reason: Text,
    policy: Text,
    text: String,
    /// It answered, and no proxy saw it.
    unseen: bool,
}

fn one(
    raw: &RawTarget,
    scraper: &Scraper,
    facts: &Facts<'_>,
    reporting: &dyn Fn(&str) -> bool,
    unseen: &mut Vec<Unseen>,
) -> Target {
    let directory = facts.directory;
    let claimed = directory.pod(&raw.namespace, &raw.pod);
    let actual = raw.ip.and_then(|ip| directory.pod_at(ip));
    let source = Place::new(end_of(
        directory.pod(&scraper.namespace, &scraper.pod),
        &scraper.namespace,
        &scraper.pod,
        None,
    ));
    // Whom the address leads to; a host-network pod has no address of its own and is known by its labels alone.
    let host_network = claimed.filter(|pod| pod.host_network);
    let answering = actual.or(host_network);
    let target = match answering {
        Some(pod) => Place::new(end_of(Some(pod), &pod.namespace, &pod.name, raw.ip)),
        None if !directory.synced && !raw.pod.is_empty() => {
            Place::new(end_of(None, &raw.namespace, &raw.pod, raw.ip))
        }
        None => Place::new(End { address: raw.ip, ..End::default() }),
    };
    let (from, to) = span(raw, facts.now);
    let pair = facts.store.find(&PlaceKey::of(&source.end), &PlaceKey::of(&target.end), raw.port);
    let window = from.zip(to).map(|(from, to)| window(from, to, facts.now));
    let evidence = pair
        .zip(window)
        .map(|(pair, window)| (pair, window, believed(pair, window, &source, &target, facts)));

    let mut verdict = match excluded(raw, scraper, claimed, actual, directory) {
        Some(verdict) => verdict,
        None => {
            let case = Case { source: &source, target: &target, reason: "", directory, reporting };
            match &evidence {
                Some((_, _, said)) => from_flows(raw, said, &case),
                None => without_flows(raw, &case),
            }
        }
    };
    // A target that another pod answers has neither identities nor records: they are not its own.
    let own = !matches!(verdict.code, Some(Code::PodFinished | Code::AnsweredByAnother));
    let identities =
        evidence.as_ref().filter(|_| own).and_then(|(_, _, said)| identities(said, verdict.proof));
    let (source_identity, destination_identity) = identities.unwrap_or_else(|| ("".into(), "".into()));
    let records = match (&evidence, own) {
        (Some((pair, window, _)), true) => records(facts.store, pair, *window),
        _ => Vec::new(),
    };
    let say =
        |code: Code, reason: &Text, policy: &Text| explain(code, &source, &target, reason, policy, directory);
    let why = verdict.code.map(|code| say(code, &verdict.reason, &verdict.policy));
    let mut notes: Vec<Why> = Vec::new();
    if speaks_http(raw) {
        notes.push(say(Code::TargetSpeaksHttp, &"".into(), &"".into()));
        if verdict.proof == Proof::Proven {
            verdict.text =
                "tunnel proven; scrape fails because the target speaks HTTP: remove scheme and tlsConfig"
                    .into();
        }
    }
    if let (true, Some(code), Some(at)) = (verdict.unseen, verdict.code, raw.last_scrape) {
        let (source, target) = (Arc::new(source), Arc::new(target.clone()));
        unseen.push(Unseen { source, target, port: raw.port, code, at });
    }
    let named = if own { answering.or(claimed) } else { claimed };
    Target {
        id: format!("{}|{}|{}|{}/{}", scraper.id, raw.pool, raw.scrape_url, raw.namespace, raw.pod),
        prometheus: scraper.id.clone(),
        pool: raw.pool.clone(),
        scrape_url: raw.scrape_url.clone(),
        address: raw.address.clone(),
        health: raw.health,
        last_error: raw.last_error.clone(),
        last_scrape: raw.last_scrape,
        last_scrape_duration_ms: raw.duration_ms,
        scrape_interval_ms: raw.interval,
        proof: verdict.proof,
        namespace: named.map_or_else(|| raw.namespace.clone(), |pod| pod.namespace.clone()),
        pod: named.map_or_else(|| raw.pod.clone(), |pod| pod.name.clone()),
        workload: named.map(|pod| pod.workload.clone()).unwrap_or_else(|| pair_workload(pair, facts.store)),
        node: named.map(|pod| pod.node.clone()).unwrap_or_default(),
        target_id: if own && target.is_inside() { target.id.clone() } else { "".into() },
        source_identity,
        destination_identity,
        why,
        notes,
        evidence: Evidence { from, to, records, text: verdict.text },
    }
}

/// What the proxies said, believed by what is known of the cluster now rather than at the last tick of the store.
fn believed<'a>(
    pair: &'a Pair,
    window: Window,
    source: &Place,
    target: &Place,
    facts: &Facts<'_>,
) -> Vec<Said<'a>> {
    let mut said = said(pair, window);
    for (said, recorded) in said.iter_mut().zip(&pair.lanes) {
        let own = match recorded.lane.reporter {
            Reporter::Source => source,
            Reporter::Destination => target,
        };
        let node = facts.store.proxy(recorded.proxy).map(|proxy| &*proxy.node).unwrap_or_default();
        said.believed = facts.directory.may_speak(node, &own.end, recorded.last_activity);
    }
    said
}

fn pair_workload(pair: Option<&Pair>, store: &Store) -> Text {
    let place = pair.and_then(|pair| store.place(pair.key.destination));
    place.map(|place| place.end.workload.clone()).unwrap_or_default()
}

/// The span in which bytes of the last scrape moved. While reports of it may be under way, the one before is taken in:
/// it is then the last that can be judged.
fn span(raw: &RawTarget, now: Millis) -> (Option<Millis>, Option<Millis>) {
    let Some(begin) = raw.last_scrape else { return (None, None) };
    let end = begin + raw.duration_ms.max(0.0) as Millis;
    let from = if now < end + SETTLE { begin.saturating_sub(raw.interval) } else { begin };
    (Some(from.saturating_sub(BEFORE)), Some(end + AFTER))
}

/// The same as a window, which ends with the bucket of its end.
fn window(from: Millis, to: Millis, now: Millis) -> Window {
    use crate::store::history::BUCKET;
    let begin = from / BUCKET * BUCKET;
    let end = to / BUCKET * BUCKET + BUCKET;
    Window { seconds: (end - begin) / 1000, at: to.min(now.max(from)), live: false }
}

fn end_of(pod: Option<&Arc<Pod>>, namespace: &Text, name: &Text, address: Option<IpAddr>) -> End {
    let Some(pod) = pod else {
        return End {
            namespace: namespace.clone(),
            pod: name.clone(),
            address,
            enrolled: true,
            ..End::default()
        };
    };
    End {
        namespace: pod.namespace.clone(),
        pod: pod.name.clone(),
        workload: pod.workload.clone(),
        workload_type: pod.workload_type.clone(),
        node: pod.node.clone(),
        address: address.or_else(|| pod.addresses.first().copied()),
        enrolled: pod.enrolled,
        ..End::default()
    }
}

fn unproven(code: Code, text: impl Into<String>) -> Verdictum {
    Verdictum {
        proof: Proof::Unproven,
        code: Some(code),
        reason: "".into(),
        policy: "".into(),
        text: text.into(),
        unseen: false,
    }
}

/// What cannot be judged by flows at all.
fn excluded(
    raw: &RawTarget,
    scraper: &Scraper,
    claimed: Option<&Arc<Pod>>,
    actual: Option<&Arc<Pod>>,
    directory: &Directory,
) -> Option<Verdictum> {
    if let Some(pod) = claimed.filter(|pod| pod.finished) {
        let by = actual
            .map(|pod| format!("; {}/{} has its address now", pod.namespace, pod.name))
            .unwrap_or_default();
        return Some(unproven(Code::PodFinished, format!("{}/{} has finished{by}", pod.namespace, pod.name)));
    }
    let names_a_pod = !raw.pod.is_empty() && directory.synced;
    if let (true, Some(actual)) = (names_a_pod, actual)
        && (actual.namespace != raw.namespace && !raw.namespace.is_empty() || actual.name != raw.pod)
    {
        return Some(unproven(
            Code::AnsweredByAnother,
            format!(
                "its labels name {}/{}, its address is that of {}/{}",
                raw.namespace, raw.pod, actual.namespace, actual.name
            ),
        ));
    }
    if raw.last_scrape.is_none() {
        return Some(unproven(Code::NotScrapedYet, "Prometheus has not scraped it yet"));
    }
    if scraper.pod.is_empty() {
        return Some(unproven(Code::ScraperUnknown, "no pod of the cluster is known to be this Prometheus"));
    }
    let own_address = actual.is_some_and(|pod| pod.namespace == scraper.namespace && pod.name == scraper.pod);
    let loopback = raw.ip.is_some_and(|ip| ip.is_loopback()) || raw.address.starts_with("localhost:");
    if own_address || loopback {
        let text = "it scrapes itself, which is on no wire and in no tunnel";
        return Some(Verdictum { proof: Proof::Plaintext, ..unproven(Code::Loopback, text) });
    }
    if raw.ip.is_none() {
        return Some(unproven(
            Code::TargetUnknown,
            format!("{} is a name that leads to no known pod", raw.address),
        ));
    }
    None
}

fn from_flows(raw: &RawTarget, said: &[Said<'_>], case: &Case<'_>) -> Verdictum {
    let judgement = judge(said);
    let telling = |security: Option<Security>, verdict: Verdict| {
        let telling = said.iter().filter(|said| {
            said.lane.verdict == verdict
                && security.is_none_or(|security| said.lane.security == security)
                && !said.counts.is_zero()
        });
        // The caller's proxy is told that it was refused, not by which policy.
        telling.max_by_key(|said| !said.lane.policy.is_empty())
    };
    let lane = match judgement.state {
        State::Denied => telling(None, Verdict::Denied),
        State::Failed => telling(None, Verdict::Failed),
        State::Plaintext | State::Mixed => telling(Some(Security::Plaintext), Verdict::Allowed),
        _ => None,
    };
    let reason: Text = lane.map(|said| said.lane.reason.clone()).unwrap_or_default();
    let policy: Text = lane.map(|said| said.lane.policy.clone()).unwrap_or_default();
    let case = Case { reason: &reason, ..*case };
    let code = code(&judgement, &case);
    let moved = |reporter: Reporter| -> u64 {
        let mutual = said.iter().filter(|said| {
            said.believed && said.lane.reporter == reporter && said.lane.security == Security::MutualTls
        });
        mutual.map(|said| said.counts.bytes()).sum()
    };
    let (source, destination) = (moved(Reporter::Source), moved(Reporter::Destination));
    let bytes = format!("the source's proxy saw {source} bytes, the destination's {destination}");
    let (proof, code, text) = match judgement.state {
        State::Proven if source > 0 && destination > 0 => {
            (Proof::Proven, None, format!("mutual TLS, seen by both proxies: {bytes} around the last scrape"))
        }
        State::Proven if source == 0 && destination == 0 => (
            Proof::Unproven,
            Some(Code::NoFlow),
            "a tunnel is open, but no byte moved around the last scrape".into(),
        ),
        State::Proven | State::OneSided => (
            Proof::OneSided,
            code.or(Some(Code::NotReported)),
            format!("only one proxy saw mutual TLS: {bytes}"),
        ),
        State::Contradiction => (Proof::Unproven, code, "what the two proxies say contradicts itself".into()),
        State::Mixed => (Proof::Plaintext, code, format!("some of it was plaintext; on mutual TLS {bytes}")),
        State::Plaintext => (Proof::Plaintext, code, "a proxy saw this scrape in plaintext".into()),
        State::Denied => (
            Proof::Denied,
            code,
            format!("refused {} times around the last scrape", judgement.connections.denied),
        ),
        State::Failed => (Proof::Unproven, code, "the connection could not be carried".into()),
        State::NodeLocal if case.source.id == case.target.id => {
            (Proof::Plaintext, Some(Code::Loopback), "it was on no wire".into())
        }
        State::NodeLocal => {
            (Proof::Plaintext, Some(Code::SameNode), "it was on no wire, and not encrypted".into())
        }
        State::Idle => return without_flows(raw, &case),
    };
    Verdictum { proof, code, reason, policy, text, unseen: false }
}

/// No proxy saw anything around the last scrape.
fn without_flows(raw: &RawTarget, case: &Case<'_>) -> Verdictum {
    let up = raw.health == "up";
    let obstacle = case.plaintext();
    // Answered, seen by nobody, and an end is outside: it went past the mesh.
    let past = !matches!(obstacle, Code::PermissiveFallback | Code::ProxyDown);
    match (up, past) {
        (true, true) => Verdictum {
            proof: Proof::Plaintext,
            unseen: true,
            ..unproven(obstacle, "the scrape succeeded, and went past the mesh: no proxy saw it")
        },
        (true, false) => {
            let code = if obstacle == Code::ProxyDown { obstacle } else { Code::NoFlow };
            unproven(code, "the scrape succeeded, and no proxy has reported bytes of it")
        }
        (false, _) => unproven(Code::NoFlow, "the scrape fails, and no proxy saw bytes of it"),
    }
}

fn speaks_http(raw: &RawTarget) -> bool {
    raw.https && raw.health != "up" && raw.last_error.contains("server gave HTTP response to HTTPS client")
}

/// The identities that were proven; of a part of the proof, those that the one side names.
fn identities(said: &[Said<'_>], proof: Proof) -> Option<(Text, Text)> {
    if !matches!(proof, Proof::Proven | Proof::OneSided | Proof::Denied) {
        return None;
    }
    let proven = said.iter().find(|said| {
        said.believed && (said.lane.security == Security::MutualTls) && !said.counts.is_zero()
    })?;
    Some((proven.lane.source_identity.clone(), proven.lane.destination_identity.clone()))
}

#[cfg(test)]
mod tests;
