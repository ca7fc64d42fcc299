//! One pod out of the mesh: capture ends → annotation → probes → the connections the proxy holds become idle → proxy
//! → the rest of the rules. Every step is tried; whatever failed brings the pod back.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use netns::NetNs;

use super::member::{Member, announce, namespace, remove_all};
use super::wish::{Wish, annotation, ips, wish};
use super::{Node, told_by_rules};
use crate::eligibility::Reason;
use crate::older::Policy;
use crate::older::sweep::{self, Drained};
use crate::redirect;

/// How long peers get at least to learn that a pod has left the mesh before its listeners go.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the connections of a leaving pod may take to become idle.
const LINGER: Duration = Duration::from_secs(20);

/// How far a pod that is to leave has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Nothing of it is left.
    Whole,
    /// Something else is wanted of it meanwhile: its connections were left alone, and it is to be looked at anew.
    WantedAgain,
}

/// Takes a running pod out of the mesh.
pub(super) async fn leave(
    node: &Arc<Node>,
    uid: &str,
    pod: &Pod,
    member: &mut Member,
    reason: &Reason,
) -> anyhow::Result<Left> {
    member.namespace = pod.namespace().unwrap_or_default();
    member.name = pod.name_any();
    let touched = member.rules.is_some() || annotation(pod).is_some() || node.remembered.get(uid).is_some();
    if !touched {
        // It may be listed for a proxy that never took it.
        node.zds.del(uid).await.context("a node proxy did not let go of it")?;
        return Ok(Left::Whole);
    }
    node.sweeper.forget(uid);
    let mut failed = Vec::new();
    let pod_ips = if ips(pod).is_empty() { member.ips.clone() } else { ips(pod) };
    let netns = namespace_of_leaving(node, uid, member, &pod_ips).await;
    if let Some(netns) = &netns {
        member.rules = None;
        note(
            &mut failed,
            told_by_rules(
                redirect::stop_capturing(netns, node.config.firewall).await,
                "its redirection cannot be ended",
            ),
        );
    }
    if annotation(pod).is_some() || member.announced {
        note(&mut failed, announce(node, pod, member, None).await);
    }
    note(&mut failed, node.probes.remove(uid).await.context("its probe exemption cannot be removed"));
    if let Some(netns) = &netns
        && *node.zds.live().borrow() > 0
    {
        let policy = Policy::with_grace(node.config.older_grace);
        // A pod that comes back, or ends, meanwhile does not wait for its own leaving.
        let changed = || !matches!(wish(node, uid, None), Wish::Out(..));
        match sweep::drain(netns, &node.exempt, &policy, SETTLE..LINGER, changed).await {
            Ok(Drained::Idle) => {}
            Ok(Drained::CalledOff) => return Ok(Left::WantedAgain),
            Ok(Drained::Busy(busy)) => {
                tracing::warn!(
                    namespace = member.namespace,
                    pod = member.name,
                    busy,
                    "connections are cut while the pod leaves the mesh"
                );
            }
            Err(error) => note(&mut failed, Err(error).context("its connections cannot be listed")),
        }
    }
    note(&mut failed, node.zds.del(uid).await.context("a node proxy did not let go of it"));
    if let Some(netns) = &netns {
        note(&mut failed, told_by_rules(remove_all(node, uid, netns).await, "its rules cannot be removed"));
    }
    finish(node, uid, failed).await?;
    node.events.not_enrolled(pod, reason);
    tracing::info!(namespace = member.namespace, pod = member.name, uid, %reason, "pod has left the mesh");
    Ok(Left::Whole)
}

async fn namespace_of_leaving(
    node: &Arc<Node>,
    uid: &str,
    member: &mut Member,
    ips: &[IpAddr],
) -> Option<NetNs> {
    if member.netns.is_some() {
        return member.netns.clone();
    }
    namespace(node, uid, member, ips).await
}

/// A pod has ended: its namespace is gone or about to go, what remains is what others hold of it.
pub(super) async fn forget(
    node: &Arc<Node>,
    uid: &str,
    pod: Option<&Pod>,
    member: &mut Member,
) -> anyhow::Result<()> {
    node.sweeper.forget(uid);
    let mut failed = Vec::new();
    note(&mut failed, node.probes.remove(uid).await.context("its probe exemption cannot be removed"));
    note(&mut failed, node.zds.del(uid).await.context("a node proxy did not let go of it"));
    if let Some(pod) = pod.filter(|pod| annotation(pod).is_some()) {
        note(&mut failed, announce(node, pod, member, None).await);
    }
    finish(node, uid, failed).await
}

fn note(failed: &mut Vec<String>, result: anyhow::Result<()>) {
    failed.extend(result.err().map(|error| format!("{error:#}")));
}

async fn finish(node: &Node, uid: &str, mut failed: Vec<String>) -> anyhow::Result<()> {
    if failed.is_empty()
        && let Err(error) = node.remembered.remove(uid).await
    {
        failed.push(format!("cannot forget it: {error}"));
    }
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
    Ok(())
}
