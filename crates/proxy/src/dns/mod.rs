//! DNS for captured pods: what a pod asks its resolver arrives here, on loopback inside its own namespace.
//!
//! What the mesh knows is answered at once from the view ([`answer`]); everything else is relayed, unchanged, to the
//! name servers ([`relay`]). [`message`] is the only place that understands bytes, [`serve`] the only one that knows
//! the pod's sockets. A pod that asks much, and a name server that answers late, hurt nobody else
//! (reference/data-plane.md §8).

mod aliases;
mod answer;
mod health;
mod message;
mod relay;
mod resolvers;
mod serve;
mod stats;

use std::sync::Arc;

pub use message::exercise;
pub(crate) use serve::{open, serve};

use crate::config::Config;

/// Where pods' questions are redirected to.
pub(crate) const PORT: u16 = 15053;

/// What all pods share.
pub(crate) struct Dns {
    rules: answer::Rules,
    resolvers: Arc<resolvers::Resolvers>,
    stats: stats::Stats,
}

impl Dns {
    pub(crate) fn new(config: &Config) -> Self {
        let domain = config.cluster_domain.trim_matches('.').to_ascii_lowercase();
        Self {
            rules: answer::Rules {
                domain: domain.into(),
                ipv6: config.ipv6,
                preferred_namespace: config.dns.preferred_namespace.as_deref().map(Into::into),
            },
            resolvers: Arc::new(resolvers::Resolvers::new(config.dns.resolv_conf.clone())),
            stats: stats::Stats::default(),
        }
    }

    /// The metrics in OpenMetrics text.
    pub(crate) fn encode(&self, out: &mut String) {
        self.stats.encode(out);
    }
}
