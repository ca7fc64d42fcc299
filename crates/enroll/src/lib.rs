//! Enrolment: how a pod gets into the mesh and out of it, on one node, without being restarted.
//!
//! The **node agent** ([`run`]) watches the pods of its node and makes the node agree with what their labels say:
//! it hands a pod's network namespace to the node proxy over ZDS ([`zds`]), redirects the pod's TCP to the proxy
//! inside that namespace ([`redirect`]), exempts the kubelet's probes ([`probes`]), says so in the pod's
//! annotation, and ends the connections that are older than the enrolment ([`older`]). The **CNI plugin**
//! ([`cni`]) asks the agent for the same before a new pod's first packet, and fails closed.
//!
//! Decisions are pure functions over plain data ([`eligibility::judge`], [`redirect::rules`], [`older::due`],
//! [`cni::offline`], [`install::conflist`]); the rest is edges around them.
//!
//! What never happens here: no byte of a pod's traffic passes through this crate, nothing is written into a
//! pod's namespace but the mesh's own tables, one rule and one route, and a pod that is not to be enrolled is
//! not touched at all.

pub mod agent;
pub mod cni;
pub mod config;
pub mod eligibility;
pub mod firewall;
pub mod install;
pub mod metrics;
mod netlink;
pub mod netns_of;
pub mod older;
pub mod privileges;
pub mod probes;
pub mod redirect;
pub mod status;
pub mod strict;
mod turns;
pub mod zds;

pub use agent::{cleanup, run};
pub use config::Config;
pub use tokio_util::sync::CancellationToken;
