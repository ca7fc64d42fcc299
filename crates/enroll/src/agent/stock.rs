//! Before anybody is served: which pods are to be in the mesh, and where their network namespaces are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::ResourceExt;

use super::Node;
use super::member::{Member, remembered};
use super::wish::{annotation, info, ips, namespace_labels};
use crate::eligibility::{Verdict, judge};
use crate::firewall::Backend;
use crate::netns_of::Wanted;
use crate::probes;
use crate::zds::Workload;

/// An earlier agent may have written the node's probe rules with other tools. Those of the pods go one by one, each
/// once its new rules stand.
async fn change_of_firewall(node: &Node) {
    let now = node.config.firewall.to_string();
    let before: BTreeSet<String> =
        node.remembered.all().into_values().flat_map(|record| record.written_by).collect();
    for name in before.into_iter().filter(|name| *name != now) {
        let Some(backend) = Backend::named(&name) else { continue };
        match probes::remove_all(backend).await {
            Ok(()) => tracing::info!(before = name, now, "the node's rules are written with other tools now"),
            Err(error) => tracing::warn!(before = name, %error, "cannot remove the earlier probe rules"),
        }
    }
}

/// Before anybody is served: finds the namespaces of all pods that are to be in the mesh, in one pass, and lists
/// those that an earlier agent enrolled, so that a proxy's snapshot is complete and probes go on without a gap.
pub(super) async fn take(node: &Arc<Node>) {
    let mut wanted = Wanted::new();
    let mut pods = Vec::new();
    for pod in node.pods.state() {
        let Some(namespace) = namespace_labels(node, &pod) else { continue };
        if judge(&node.rules, &pod, &namespace) == Verdict::Enrol
            && let Some(uid) = pod.uid()
        {
            wanted.insert(uid, ips(&pod));
            pods.push(pod);
        }
    }
    let mut found = BTreeMap::new();
    for (uid, ips) in &wanted {
        if let Some((netns, path)) = remembered(node, uid, ips) {
            found.insert(uid.clone(), (netns, Some(path)));
        }
    }
    let missing: Wanted = wanted.into_iter().filter(|(uid, _)| !found.contains_key(uid)).collect();
    let finder = node.finder.clone();
    match tokio::task::spawn_blocking(move || finder.find(&missing)).await {
        Ok(more) => found.extend(more.into_iter().map(|(uid, netns)| (uid, (netns, None)))),
        Err(error) => tracing::error!(%error, "cannot look for network namespaces"),
    }
    let mut exempt = Vec::new();
    for pod in &pods {
        let Some(uid) = pod.uid() else { continue };
        let (netns, path) = found.remove(&uid).map_or((None, None), |(netns, path)| (Some(netns), path));
        // The annotation is no proof of anything, but a proxy must not drop what it may be serving.
        if annotation(pod).is_some() {
            node.zds.prepare(Workload { uid: uid.clone(), info: info(pod), netns: netns.clone() });
            exempt.push((uid.clone(), ips(pod)));
        }
        node.members.lock().insert(uid, Member::found(pod, netns, path));
    }
    change_of_firewall(node).await;
    tracing::info!(to_enrol = pods.len(), enrolled_before = exempt.len(), "took stock of the node's pods");
    if let Err(error) = node.probes.reset(exempt).await {
        tracing::error!(%error, "cannot exempt probes; enrolled pods may become unready under strict policies");
    }
}
