//! The node authorizer: which identities a node proxy may hold (reference/control-plane.md §4.2, stricter).
//!
//! A proxy may hold its own identity and those of the pods on its own node that are in the mesh, and no other: whoever
//! breaks into one node gets no more than what the mesh carried there.

use std::sync::Arc;

use mesh::Identity;

use crate::auth::Caller;
use crate::input::Key;
use crate::state::Pods;

/// Why a proxy may not have a certificate in somebody's name. Told to the operator, not to the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// The account is not that of a node proxy.
    #[error("{0} is not the account of a node proxy (CA_TRUSTED_NODE_ACCOUNTS)")]
    NotTrusted(String),
    /// The identity cannot exist here.
    #[error("{0:?} is no identity")]
    NoIdentity(String),
    /// The identity belongs to another trust domain.
    #[error("{identity} is not of trust domain {trust_domain}")]
    TrustDomain {
        /// What was asked for.
        identity: Identity,
        /// Ours.
        trust_domain: Arc<str>,
    },
    /// The token is not bound to a pod.
    #[error("the caller's token is not bound to a pod")]
    NoPod,
    /// The caller's pod is not known.
    #[error("the caller's pod {0} is not known (yet)")]
    UnknownPod(Key),
    /// The token is of an earlier pod of that name.
    #[error("the caller's token is of another incarnation of pod {0}")]
    StalePod(Key),
    /// The pod runs under another account.
    #[error("pod {pod} runs as {account}, not as the token's account")]
    OtherAccount {
        /// Caller's pod.
        pod: Key,
        /// Its account.
        account: Arc<str>,
    },
    /// The pod has ended, and its token with it.
    #[error("the caller's pod {0} has finished")]
    FinishedPod(Key),
    /// The node runs nobody of that identity who is in the mesh.
    #[error("no pod of {identity} that is in the mesh on node {node}")]
    NotOnNode {
        /// What was asked for.
        identity: Identity,
        /// The caller's node.
        node: Arc<str>,
    },
}

impl Refused {
    /// Whether the next thing heard from Kubernetes may change it: a pod is on its node before word of it is here.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::UnknownPod(_) | Self::StalePod(_) | Self::NotOnNode { .. })
    }
}

/// Whether `caller` may have a certificate in the name of `wanted`.
pub fn may_impersonate(
    pods: &Pods,
    caller: &Caller,
    trusted: bool,
    wanted: &str,
    trust_domain: &Arc<str>,
) -> Result<Identity, Refused> {
    if !trusted {
        return Err(Refused::NotTrusted(caller.account.to_string()));
    }
    let identity: Identity =
        wanted.parse().map_err(|_| Refused::NoIdentity(wanted.chars().take(512).collect()))?;
    if identity.trust_domain() != &**trust_domain {
        return Err(Refused::TrustDomain { identity, trust_domain: trust_domain.clone() });
    }
    let (name, uid) = caller.pod.as_ref().ok_or(Refused::NoPod)?;
    let key = Key::new(caller.account.namespace.clone(), name.clone());
    let pod = pods.get(&key).ok_or_else(|| Refused::UnknownPod(key.clone()))?;
    if pod.uid != *uid {
        return Err(Refused::StalePod(key));
    }
    if pod.service_account != caller.account.name {
        return Err(Refused::OtherAccount { pod: key, account: pod.service_account.clone() });
    }
    if pod.finished() {
        return Err(Refused::FinishedPod(key));
    }
    // Who it is itself, it has proven; nobody carries its own traffic for it.
    if identity.namespace() == &*key.namespace && identity.service_account() == &*pod.service_account {
        return Ok(identity);
    }
    if pod.node.is_empty() || !pods.runs(&pod.node, identity.namespace(), identity.service_account()) {
        return Err(Refused::NotOnNode { identity, node: pod.node.clone() });
    }
    Ok(identity)
}
