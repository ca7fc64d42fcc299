//! What plugin and agent tell each other: JSON of `enrolment.md` §4.3, readable for foreign ones too.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Plugin to agent, `POST /cmdadd`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// `CNI_NETNS`, a path on the node.
    #[serde(rename = "Netns", alias = "netns")]
    pub netns: String,
    /// Name of the pod.
    #[serde(rename = "PodName", alias = "podName", alias = "podname")]
    pub pod_name: String,
    /// Namespace of the pod.
    #[serde(rename = "PodNamespace", alias = "podNamespace", alias = "podnamespace")]
    pub pod_namespace: String,
    /// UID of the pod, where the runtime says it. Ours; foreign plugins do not send it.
    #[serde(rename = "PodUID", default, skip_serializing_if = "String::is_empty")]
    pub pod_uid: String,
    /// Its addresses.
    #[serde(rename = "IPs", alias = "ips", default)]
    pub ips: Option<Vec<IpConfig>>,
}

/// One address of the pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpConfig {
    /// Index of the interface in the previous result.
    #[serde(rename = "Interface", default)]
    pub interface: Option<i64>,
    /// The address.
    #[serde(rename = "Address")]
    pub address: IpMask,
    /// The gateway, empty if none.
    #[serde(rename = "Gateway", default)]
    pub gateway: Option<String>,
}

/// Address and mask; the mask is the base64 of its bytes and nobody reads it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpMask {
    /// The address as text.
    #[serde(rename = "IP")]
    pub ip: String,
    /// The mask.
    #[serde(rename = "Mask", default)]
    pub mask: Option<String>,
}

/// Agent to plugin. Foreign agents answer with an empty body, which means enrolled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Whether the pod is in the mesh now.
    pub enrolled: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Event {
    /// The pod's addresses. One that cannot be read is left out.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let all = self.ips.iter().flatten();
        all.filter_map(|config| config.address.ip.parse::<IpAddr>().ok())
            .map(|ip| ip.to_canonical())
            .collect()
    }

    /// What is wrong with it, if anything: it comes over a socket that others may reach too.
    pub fn fault(&self) -> Option<&'static str> {
        let dns = |text: &str| {
            (1..=253).contains(&text.len())
                && text
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.'))
        };
        if !dns(&self.pod_name) || !dns(&self.pod_namespace) {
            return Some("PodName and PodNamespace must be names of Kubernetes objects");
        }
        let path = std::path::Path::new(&self.netns);
        let plain = path.components().all(|c| !matches!(c, std::path::Component::ParentDir));
        (!path.is_absolute() || !plain || self.netns.len() > 4096).then_some("Netns must be an absolute path")
    }
}
