//! Policies: what is published of them, and which of them a workload lists.

use std::collections::BTreeSet;
use std::sync::Arc;

use mesh::PolicyKey;

use super::State;
use super::resource::Resource;
use super::status::{StatusKind, StatusOf};
use crate::input::{Key, Labels, PeerAuthentication, Pod, selects};
use crate::model;

impl State {
    pub(super) fn flush_authorization(&mut self, key: &Key) {
        let input = self.authorizations.get(key).cloned();
        self.targeted.remove(key);
        let Some(input) = input.filter(|_| self.discovers(&key.namespace)) else {
            self.unwanted(&StatusOf { kind: StatusKind::AuthorizationPolicy, key: key.clone() });
            return self.remove_policy(&key.to_string());
        };
        if !input.targets.is_empty() {
            self.targeted.insert(key.clone());
        }
        let policy = model::authorization(&self.settings, &input);
        self.policy_status(&input, policy.as_ref().err());
        match policy {
            Ok(policy) => {
                let effect = model::effect(&input);
                if effect.lost || effect.wider || !effect.invalid.is_empty() {
                    tracing::warn!(
                        policy = %key, http_attributes = ?effect.http, not_understood = ?effect.invalid,
                        no_effect = effect.dead, "policy not enforced as written; see its status"
                    );
                }
                self.put_policy(&policy);
            }
            Err(omitted) => {
                tracing::info!(policy = %key, reason = %omitted, "policy not enforced by node proxies");
                self.remove_policy(&key.to_string());
            }
        }
    }

    pub(super) fn flush_peers(&mut self) {
        let ours = || self.peers.values().map(|peer| &**peer).filter(|peer| self.takes_peer(peer));
        let mut policies: Vec<mesh::Policy> =
            ours().filter_map(|peer| model::converted(&self.settings, ours(), peer)).collect();
        if ours().next().is_some() {
            policies.push(model::static_strict(&self.settings));
        }
        let names: BTreeSet<PolicyKey> = policies.iter().map(mesh::Policy::key).collect();
        let lost: Vec<PolicyKey> = self.peer_policies.difference(&names).cloned().collect();
        for policy in &policies {
            self.put_policy(policy);
        }
        for name in lost {
            self.remove_policy(&name);
        }
        self.peer_policies = names;
    }

    /// Policies bound to a pod.
    pub(super) fn policies_of(&self, pod: &Pod) -> Vec<PolicyKey> {
        self.policies_bound(&pod.key.namespace, &pod.labels)
    }

    /// Policies bound by selector, then those of PeerAuthentications.
    pub(super) fn policies_bound(&self, namespace: &Arc<str>, labels: &Labels) -> Vec<PolicyKey> {
        let namespaces = [&self.settings.root_namespace, namespace];
        let same = namespaces[0] == namespaces[1];
        let mut keys: Vec<PolicyKey> = namespaces[usize::from(same)..]
            .iter()
            .flat_map(|namespace| self.authorizations.of(namespace))
            .filter(|policy| policy.selector.as_ref().is_some_and(|selector| selects(selector, labels)))
            .map(|policy| PolicyKey::from(policy.key.to_string()))
            // Only what is published: a client skips a policy that it is told of and does not have.
            .filter(|policy| self.snapshot.policies.get(policy).is_some())
            .collect();
        keys.sort();
        let ours = self.peers.values().map(|peer| &**peer).filter(|peer| self.takes_peer(peer));
        keys.extend(model::peer_keys(&self.settings, ours, namespace, labels));
        keys
    }

    fn takes_peer(&self, peer: &PeerAuthentication) -> bool {
        self.settings.in_revision(peer.revision.as_deref()) && self.discovers(&peer.key.namespace)
    }

    pub(super) fn put_policy(&mut self, policy: &mesh::Policy) {
        let at = self.snapshot.change + 1;
        if self.snapshot.policies.put(at, Resource::policy(policy)) {
            self.snapshot.change = at;
        }
    }

    pub(super) fn remove_policy(&mut self, name: &str) {
        let at = self.snapshot.change + 1;
        if self.snapshot.policies.remove(at, name) {
            self.snapshot.change = at;
        }
    }
}
