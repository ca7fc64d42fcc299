//! What is wanted of a pod: the pod as it is now and its namespace's labels, judged. Reads, never acts.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use wire::zds::WorkloadInfo;

use super::Node;
use super::plugin::Told;
use crate::eligibility::{REDIRECTION_ANNOTATION, Reason, Verdict, finished, judge};

/// The addresses of a pod as its status says.
pub(super) fn ips(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return vec![] };
    let all = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).chain(status.pod_ip.as_deref());
    let mut ips: Vec<IpAddr> =
        all.filter_map(|ip| ip.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical()).collect();
    ips.sort();
    ips.dedup();
    ips
}

/// What the pod's annotation says of its redirection.
pub(super) fn annotation(pod: &Pod) -> Option<&str> {
    pod.annotations().get(REDIRECTION_ANNOTATION).map(String::as_str)
}

/// The labels of the pod's namespace, once the watch has brought it.
pub(super) fn namespace_labels(node: &Node, pod: &Pod) -> Option<BTreeMap<String, String>> {
    let name = pod.namespace()?;
    let namespace = node.namespaces.find(|namespace| namespace.name_any() == name)?;
    Some(namespace.labels().clone())
}

/// The pod as a proxy is told of it.
pub(super) fn info(pod: &Pod) -> WorkloadInfo {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    WorkloadInfo {
        name: pod.name_any(),
        namespace: pod.namespace().unwrap_or_default(),
        service_account: account.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".to_owned()),
    }
}

/// What is wanted of a pod.
pub(super) enum Wish {
    In(Arc<Pod>),
    Out(Arc<Pod>, Reason),
    /// It has ended; its object may still be there.
    Ended(Option<Arc<Pod>>),
    /// Its namespace is not known yet; the watch will bring it.
    Unknown,
}

/// What is wanted of the pod `uid`, of which CNI ADD may just have told.
pub(super) fn wish(node: &Node, uid: &str, told: Option<&Told>) -> Wish {
    let Some(pod) = node.pod(uid).or_else(|| told.map(|told| told.pod.clone())) else {
        return Wish::Ended(None);
    };
    if finished(&pod) {
        return Wish::Ended(Some(pod));
    }
    let labels = namespace_labels(node, &pod).or_else(|| told.map(|told| told.namespace.labels().clone()));
    match labels.map(|labels| judge(&node.rules, &pod, &labels)) {
        None => Wish::Unknown,
        Some(Verdict::Enrol) => Wish::In(pod),
        Some(Verdict::Not(reason)) => Wish::Out(pod, reason),
    }
}
