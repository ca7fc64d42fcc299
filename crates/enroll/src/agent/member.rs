//! One pod: what is wanted of it, what was done, and the steps between the two.
//!
//! Into the mesh: namespace → proxy (its listeners are bound) → rules → probes → annotation → older connections.
//! Listeners come before rules, so a running pod never meets a closed port. Without a proxy a running pod is left
//! as it is; a pod that was enrolled before keeps its rules (its traffic waits rather than leaks).
//!
//! Out of it: [`leave`](super::leave). Every step may be done again; what failed brings the pod back.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use netns::NetNs;

use super::announce::set_annotation;
use super::leave::{Left, forget, leave};
use super::plugin::Told;
use super::wish::{Wish, annotation, info, ips, namespace_labels, wish};
use super::{Node, events, told_by_rules};
use crate::eligibility::{MODE_AMBIENT, MODE_LABEL, Reason};
use crate::firewall::Backend;
use crate::netns_of::addresses;
use crate::netns_of::remembered::Record;
use crate::older::sweep;
use crate::redirect::{self, Options};
use crate::strict::{self, Strictness};
use crate::zds::{self, Workload};

/// What was done for a pod.
#[derive(Clone, Debug, Default)]
pub(super) struct Member {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) netns: Option<NetNs>,
    /// Path of the namespace, where CNI ADD told one.
    path: Option<String>,
    /// The rules that are in place in that namespace.
    pub(super) rules: Option<Options>,
    pub(super) ips: Vec<IpAddr>,
    /// What the annotation was last set to by us.
    pub(super) announced: bool,
    /// Where plaintext is illegal, as the sweeper was told.
    strict: Option<Strictness>,
    /// The reason why it is out of the mesh, logged when it changes.
    pub(super) waiting_for: Option<String>,
}

impl Member {
    /// A pod for which nothing was done yet, with what is known of its namespace.
    pub(super) fn found(pod: &Pod, netns: Option<NetNs>, path: Option<String>) -> Self {
        let namespace = pod.namespace().unwrap_or_default();
        Self { namespace, name: pod.name_any(), netns, path, ..Self::default() }
    }

    pub(super) fn is_enrolled(&self) -> bool {
        self.rules.is_some() && self.announced
    }
}

/// Brings one pod to what is wanted of it. An error brings it back later.
pub(super) async fn converge(node: &Arc<Node>, uid: &str) -> anyhow::Result<()> {
    let mut member = node.members.lock().remove(uid).unwrap_or_default();
    let mut told = node.told.lock().remove(uid);
    let (keep, result) = match wish(node, uid, told.as_ref()) {
        Wish::In(pod) => (true, join(node, uid, &pod, &mut member, &mut told).await),
        Wish::Out(pod, reason) => {
            explain(node, uid, &pod, &reason);
            match leave(node, uid, &pod, &mut member, &reason).await {
                Ok(left) => (left == Left::WantedAgain, Ok(())),
                Err(error) => (true, Err(error)),
            }
        }
        Wish::Ended(pod) => {
            node.explained.lock().remove(uid);
            let result = forget(node, uid, pod.as_deref(), &mut member).await;
            (result.is_err(), result)
        }
        Wish::Unknown => (true, Ok(())),
    };
    if let Some(told) = told {
        let _ = told.done.send(Err("its labels have changed meanwhile".to_owned()));
    }
    if let Err(error) = &result {
        let text = format!("{error:#}");
        if member.waiting_for.as_ref() != Some(&text) {
            if let (true, Some(pod)) = (keep && !member.is_enrolled(), node.pod(uid)) {
                node.events.failed(&pod, &text);
            }
            tracing::warn!(
                namespace = member.namespace,
                pod = member.name,
                reason = text,
                "pod is not as it should be yet"
            );
            member.waiting_for = Some(text);
        }
    } else {
        member.waiting_for = None;
    }
    if keep {
        node.members.lock().insert(uid.to_owned(), member);
    }
    node.outside_changed.notify_one();
    result
}

/// Brings a pod into the mesh. What CNI ADD told is used up here, and ADD gets its answer.
async fn join(
    node: &Arc<Node>,
    uid: &str,
    pod: &Pod,
    member: &mut Member,
    told: &mut Option<Told>,
) -> anyhow::Result<()> {
    member.namespace = pod.namespace().unwrap_or_default();
    member.name = pod.name_any();
    let done = told.take().map(|told| {
        if member.netns.as_ref().map(NetNs::id) != Some(told.netns.id()) {
            member.rules = None;
        }
        (member.netns, member.path, member.ips) = (Some(told.netns), Some(told.path), told.ips);
        told.done
    });
    let starting = done.is_some();
    let result = join_steps(node, uid, pod, member, starting).await;
    if let Some(done) = done {
        // The plugin may have given up meanwhile; the runtime will call it again.
        let _ = done.send(result.as_ref().map(|_| ()).map_err(|error| format!("{error:#}")));
    }
    if result.is_err() && starting {
        // The runtime takes the namespace down and comes with another one; nothing may hold on to this one.
        *member =
            Member { namespace: member.namespace.clone(), name: member.name.clone(), ..Member::default() };
        if let Err(error) = node.zds.del(uid).await {
            tracing::debug!(uid, %error, "a proxy did not let go of a pod that cannot start");
        }
    }
    result
}

async fn join_steps(
    node: &Arc<Node>,
    uid: &str,
    pod: &Pod,
    member: &mut Member,
    starting: bool,
) -> anyhow::Result<()> {
    // The status may still show the address of an earlier sandbox; what counts is what the namespace carries.
    let mut candidates = ips(pod);
    candidates.extend(member.ips.iter().copied().filter(|ip| !candidates.contains(ip)).collect::<Vec<_>>());
    if candidates.is_empty() {
        anyhow::ensure!(!starting, "the plugins before ours gave it no address");
        // It has no network yet: CNI ADD or the next status brings it here again.
        return Ok(());
    }
    let Some(netns) = namespace(node, uid, member, &candidates).await else {
        if annotation(pod).is_some() {
            announce(node, pod, member, None).await?;
        }
        anyhow::bail!("its network namespace was not found on this node");
    };
    let there = addresses(&netns)?;
    member.ips = candidates.into_iter().filter(|ip| there.contains(ip)).collect();

    if !node.zds.carried(uid, &netns) {
        let workload = Workload { uid: uid.to_owned(), info: info(pod), netns: Some(netns.clone()) };
        match node.zds.add(workload).await {
            Ok(()) => {}
            // Its listeners come with the proxy's next snapshot. Until then its traffic waits, and does not leak.
            Err(zds::Error::NoProxy)
                if !starting && (member.rules.is_some() || annotation(pod) == Some("enabled")) => {}
            Err(error) => return Err(error).context("it cannot be handed to a node proxy"),
        }
    }
    let (options, warnings) = node.options.of_pod(pod.annotations());
    if member.rules.as_ref() != Some(&options) {
        for warning in warnings {
            tracing::warn!(
                namespace = member.namespace,
                pod = member.name,
                warning,
                "ignoring an annotation"
            );
        }
        let earlier = earlier_tools(node, uid);
        remember(node, uid, member, &netns, &earlier).await;
        member.strict = None;
        told_by_rules(
            redirect::apply(&netns, &options, node.config.firewall).await,
            "its traffic cannot be redirected",
        )?;
        for tools in &earlier {
            // The new rules stand: at no moment was the pod without.
            told_by_rules(
                redirect::remove_rules(&netns, *tools).await,
                "its earlier rules cannot be removed",
            )?;
        }
        member.rules = Some(options);
        tracing::info!(namespace = member.namespace, pod = member.name, uid, ips = ?member.ips, "pod is redirected");
    }
    sweep_older(node, uid, pod, member, &netns);
    node.probes.set(uid, &member.ips).await.context("its probes cannot be exempted")?;
    if annotation(pod) == Some("enabled") {
        member.announced = true;
    } else {
        announce(node, pod, member, Some("enabled")).await?;
        node.events.enrolled(pod);
    }
    remember(node, uid, member, &netns, &[]).await;
    Ok(())
}

/// Has the pod's older connections ended: after its rules were written, and when what its policy forbids has changed.
fn sweep_older(node: &Arc<Node>, uid: &str, pod: &Pod, member: &mut Member, netns: &NetNs) {
    let strict = strict::of_pod(&node.peers.load(), &node.config.namespace, &member.namespace, pod.labels());
    if member.strict.as_ref() == Some(&strict) {
        return;
    }
    let names =
        sweep::Pod { uid: uid.to_owned(), namespace: member.namespace.clone(), name: member.name.clone() };
    if let Err(error) = node.sweeper.track(names, netns, strict.clone()) {
        tracing::warn!(namespace = member.namespace, pod = member.name, %error, "cannot look for older connections");
    }
    member.strict = Some(strict);
}

/// The pod's namespace: the one that is held, if it still carries the pod's address, or else one that is found.
pub(super) async fn namespace(
    node: &Arc<Node>,
    uid: &str,
    member: &mut Member,
    ips: &[IpAddr],
) -> Option<NetNs> {
    if let Some(held) = &member.netns
        && has_any(held, ips)
    {
        return Some(held.clone());
    }
    member.rules = None;
    member.netns = None;
    if let Some((netns, path)) = remembered(node, uid, ips) {
        (member.netns, member.path) = (Some(netns), Some(path));
        return member.netns.clone();
    }
    member.path = None;
    member.netns = node.finds.find(&node.finder, uid, ips).await;
    member.netns.clone()
}

fn has_any(netns: &NetNs, ips: &[IpAddr]) -> bool {
    addresses(netns).is_ok_and(|there| ips.iter().any(|ip| there.contains(ip)))
}

/// What CNI ADD told an earlier agent, if it is still true.
pub(super) fn remembered(node: &Node, uid: &str, ips: &[IpAddr]) -> Option<(NetNs, String)> {
    let record = node.remembered.get(uid)?;
    let path = record.path.clone()?;
    let netns = node.finder.open(&path).ok()?;
    (record.is(netns.id()) && has_any(&netns, ips)).then_some((netns, path))
}

/// What an earlier agent wrote this pod's rules with, if it was something else.
fn earlier_tools(node: &Node, uid: &str) -> Vec<Backend> {
    let names = node.remembered.get(uid).map(|record| record.written_by).unwrap_or_default();
    let all = names.iter().filter_map(|name| Backend::named(name));
    all.filter(|tools| *tools != node.config.firewall).collect()
}

/// Takes all rules and the routing out of a namespace, whatever they were written with.
pub(super) async fn remove_all(node: &Node, uid: &str, netns: &NetNs) -> Result<(), redirect::Error> {
    for tools in earlier_tools(node, uid) {
        redirect::remove_rules(netns, tools).await?;
    }
    redirect::remove(netns, node.config.firewall).await
}

async fn remember(node: &Node, uid: &str, member: &Member, netns: &NetNs, earlier: &[Backend]) {
    let before = node.remembered.get(uid);
    let same = before.filter(|record| record.is(netns.id()));
    let since = same.and_then(|record| record.since).or_else(|| member.announced.then(now));
    let record = Record {
        namespace: member.namespace.clone(),
        name: member.name.clone(),
        ips: member.ips.clone(),
        path: member.path.clone(),
        ino: netns.id().ino,
        dev: netns.id().dev,
        since,
        written_by: earlier.iter().chain([&node.config.firewall]).map(Backend::to_string).collect(),
    };
    if let Err(error) = node.remembered.put(uid, record).await {
        tracing::warn!(namespace = member.namespace, pod = member.name, %error, "cannot remember the pod");
    }
}

fn now() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| now.as_secs())
}

/// Says once why a pod is out that looks as if it were in.
fn explain(node: &Node, uid: &str, pod: &Pod, reason: &Reason) {
    let ambient =
        |labels: &BTreeMap<String, String>| labels.get(MODE_LABEL).is_some_and(|m| m == MODE_AMBIENT);
    let suggested =
        ambient(pod.labels()) || namespace_labels(node, pod).is_some_and(|labels| ambient(&labels));
    if !events::is_surprising(reason, suggested) {
        node.explained.lock().remove(uid);
    } else if node.explained.lock().insert(uid.to_owned(), reason.clone()).as_ref() != Some(reason) {
        node.events.not_enrolled(pod, reason);
    }
}

/// Writes the annotation that tells everybody whether the pod is in the mesh.
pub(super) async fn announce(
    node: &Node,
    pod: &Pod,
    member: &mut Member,
    value: Option<&str>,
) -> anyhow::Result<()> {
    let namespace = pod.namespace().unwrap_or_default();
    set_annotation(&node.client, &namespace, &pod.name_any(), value).await?;
    member.announced = value.is_some();
    Ok(())
}
