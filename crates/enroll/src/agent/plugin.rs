//! CNI ADD: a pod that is about to start is enrolled before its first packet, or does not start.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{Api, ResourceExt};
use netns::NetNs;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Node;
use crate::cni::access::is_meant;
use crate::cni::event::{Answer, Event};
use crate::cni::server::{self, Failure, Question};
use crate::eligibility::{Verdict, judge};
use crate::netns_of::addresses;

/// How long the plugin may wait for us in all; it gives up a little later itself.
const PATIENCE: Duration = Duration::from_secs(22);
/// How long the plugin may wait to hear whether a pod is to be in the mesh; it gives up a little later itself.
const JUDGE_PATIENCE: Duration = Duration::from_millis(3500);
/// How long to wait for the first look at the node's pods.
const SYNC_PATIENCE: Duration = Duration::from_secs(3);
/// How long to wait for a node proxy that restarts: its pause between two tries grows up to this.
const PROXY_PATIENCE: Duration = Duration::from_secs(15);
/// How long one question to the API server may take.
const API_PATIENCE: Duration = Duration::from_secs(5);

/// What CNI ADD told of a pod.
pub(super) struct Told {
    pub(super) path: String,
    pub(super) netns: NetNs,
    pub(super) ips: Vec<IpAddr>,
    /// The pod as the API server showed it, for the case that the watch has not brought it yet.
    pub(super) pod: Arc<Pod>,
    pub(super) namespace: Arc<Namespace>,
    /// The plugin waits for this.
    pub(super) done: oneshot::Sender<Result<(), String>>,
}

pub(super) fn serve(node: &Arc<Node>, stop: CancellationToken) -> std::io::Result<()> {
    let metrics = node.metrics.clone();
    let socket = node.config.event_socket();
    let node = node.clone();
    let handler: server::Handler = Arc::new(move |question, event| {
        let node = node.clone();
        Box::pin(async move {
            let (namespace, pod) = (event.pod_namespace.clone(), event.pod_name.clone());
            let result = match question {
                Question::Judge => {
                    let late = || Err(Failure::CannotTell("the API server is slow".to_owned()));
                    let answer = tokio::time::timeout(JUDGE_PATIENCE, judged(&node, &event)).await;
                    match answer.unwrap_or_else(|_| late()) {
                        // It will ask again at once, and hear more then.
                        Ok(Judged { reason: None, .. }) => {
                            return Ok(Answer { enrolled: true, reason: None });
                        }
                        Ok(Judged { reason, .. }) => Ok(Answer { enrolled: false, reason }),
                        Err(failure) => Err(failure),
                    }
                }
                Question::Enrol => {
                    let late =
                        || Err(Failure::NotEnrolled(format!("not done within {} s", PATIENCE.as_secs())));
                    tokio::time::timeout(PATIENCE, added(&node, event)).await.unwrap_or_else(|_| late())
                }
            };
            match &result {
                Ok(answer) => {
                    tracing::info!(
                        namespace,
                        pod,
                        enrolled = answer.enrolled,
                        reason = answer.reason,
                        "pod starts"
                    );
                }
                Err(Failure::NotEnrolled(reason)) => {
                    tracing::warn!(namespace, pod, reason, "pod cannot start in the mesh yet");
                }
                Err(Failure::CannotTell(reason)) => {
                    tracing::warn!(
                        namespace,
                        pod,
                        reason,
                        "cannot tell yet whether the pod is to be in the mesh"
                    );
                }
            }
            result
        })
    });
    server::serve(&socket, handler, metrics, stop)
}

/// A pod that is about to start, and why it is not to be in the mesh, if it is not.
struct Judged {
    pod: Arc<Pod>,
    namespace: Arc<Namespace>,
    reason: Option<String>,
}

async fn judged(node: &Arc<Node>, event: &Event) -> Result<Judged, Failure> {
    let mut synced = node.synced.clone();
    let look = async { synced.wait_for(|synced| *synced).await.is_ok() };
    if !tokio::time::timeout(SYNC_PATIENCE, look).await.unwrap_or(false) {
        return Err(Failure::CannotTell("it has not seen the node's pods yet".to_owned()));
    }
    let (pod, namespace) = look_up(node, event).await.map_err(Failure::CannotTell)?;
    let reason = match judge(&node.rules, &pod, namespace.labels()) {
        Verdict::Enrol => None,
        Verdict::Not(reason) => Some(reason.to_string()),
    };
    Ok(Judged { pod, namespace, reason })
}

async fn added(node: &Arc<Node>, event: Event) -> Result<Answer, Failure> {
    let Judged { pod, namespace, reason } = judged(node, &event).await?;
    if reason.is_some() {
        return Ok(Answer { enrolled: false, reason });
    }
    enrol(node, event, pod, namespace).await.map_err(Failure::NotEnrolled)?;
    Ok(Answer { enrolled: true, reason: None })
}

async fn enrol(
    node: &Arc<Node>,
    event: Event,
    pod: Arc<Pod>,
    namespace: Arc<Namespace>,
) -> Result<(), String> {
    let uid = pod.uid().ok_or("the pod has no UID")?;
    let netns = node.finder.open(&event.netns).map_err(|error| error.to_string())?;
    let mut live = node.zds.live();
    // When none comes the work says so itself.
    let proxy = async { live.wait_for(|live| *live > 0).await.is_ok() };
    let _ = tokio::time::timeout(PROXY_PATIENCE, proxy).await;
    let mut ips = event.addresses();
    if ips.is_empty() {
        // In a configuration of its own the plugin hears nothing of the others; the namespace shows what they did.
        let there = addresses(&netns).map_err(|error| error.to_string())?;
        ips = there.into_iter().filter(|ip| !ip.is_loopback() && !is_link_local(ip)).collect();
    }
    let (waiter, outcome) = oneshot::channel();
    let told = Told { path: event.netns, netns, ips, pod, namespace, done: waiter };
    node.told.lock().insert(uid.clone(), told);
    node.push(uid);
    outcome.await.map_err(|_| "a later call for the same pod took its place, or the node agent is ending")?
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

/// The pod and its namespace: what the watches show, else what the API server says. The kubelet may be faster
/// than our watch, and then waiting would only guess how much.
async fn look_up(node: &Node, event: &Event) -> Result<(Arc<Pod>, Arc<Namespace>), String> {
    let (name, namespace) = (event.pod_name.as_str(), event.pod_namespace.as_str());
    let same = |pod: &Pod| is_meant(pod, &event.pod_uid);
    let cached =
        node.pods.find(|pod| pod.name_any() == name && pod.namespace().as_deref() == Some(namespace));
    let pod = match cached.filter(|pod| same(pod)) {
        Some(pod) => pod,
        None => {
            let api = Api::<Pod>::namespaced(node.client.clone(), namespace);
            ask(api.get_opt(name)).await?.filter(|pod| same(pod)).ok_or("there is no such pod")?
        }
    };
    let labels = match node.namespaces.find(|object| object.name_any() == namespace) {
        Some(object) => object,
        None => {
            let api = Api::<Namespace>::all(node.client.clone());
            ask(api.get_opt(namespace)).await?.ok_or("there is no such namespace")?
        }
    };
    Ok((pod, labels))
}

async fn ask<T>(
    question: impl Future<Output = Result<Option<T>, kube::Error>>,
) -> Result<Option<Arc<T>>, String> {
    match tokio::time::timeout(API_PATIENCE, question).await {
        Ok(answer) => answer.map(|object| object.map(Arc::new)).map_err(|error| error.to_string()),
        Err(_) => Err(format!("the API server did not answer within {} s", API_PATIENCE.as_secs())),
    }
}
