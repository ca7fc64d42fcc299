//! Waypoints: which Gateways are some, who is bound to them, and what their changes touch.

use std::sync::Arc;

use super::State;
use super::dirty::Dirty;
use crate::input::{Attachment, EntryVisibility, Gateway, Key, Namespace, Pod, Service, ServiceEntry, Wants};
use crate::model::{self, Bindable, Bound, Candidate, Unbound};

/// Label of the instances of a Gateway.
const INSTANCE: &str = "gateway.networking.k8s.io/gateway-name";

impl State {
    /// A namespace.
    pub(super) fn namespace_named(&self, name: &Arc<str>) -> Option<&Arc<Namespace>> {
        self.namespaces.get(&Key::new("", name.clone()))
    }

    /// Whether objects of a namespace are of the mesh. The root namespace always is: its policies hold for all.
    pub(super) fn discovers(&self, namespace: &Arc<str>) -> bool {
        self.mesh.discovery.is_empty()
            || *namespace == self.settings.root_namespace
            || self.namespace_named(namespace).is_some_and(|one| self.mesh.discovers(&one.labels))
    }

    fn bind(
        &self,
        attachment: &Attachment,
        namespace: &Arc<str>,
        what: Bindable,
        private: bool,
    ) -> Result<Option<Bound>, Unbound> {
        let says = self.namespace_named(namespace);
        let candidate = Candidate {
            attachment,
            namespace,
            namespace_says: says.map(|one| (&one.attachment, &one.labels)),
            what,
            private,
        };
        model::bind(candidate, |key| self.waypoints.get(key).cloned())
    }

    pub(super) fn bind_service(&self, service: &Service) -> Result<Option<Bound>, Unbound> {
        self.bind(&service.attachment, &service.key.namespace, Bindable::Service, false)
    }

    pub(super) fn bind_entry(&self, entry: &ServiceEntry) -> Result<Option<Bound>, Unbound> {
        let private = self.visibility_of(entry) == EntryVisibility::Namespace;
        self.bind(&entry.attachment, &entry.key.namespace, Bindable::Service, private)
    }

    pub(super) fn bind_workload(
        &self,
        attachment: &Attachment,
        namespace: &Arc<str>,
    ) -> Result<Option<Bound>, Unbound> {
        self.bind(attachment, namespace, Bindable::Workload, false)
    }

    /// The waypoint of a pod, and how it takes what tunnels carry when it is an instance of one itself.
    pub(super) fn waypoint_of(&self, pod: &Pod) -> (Option<mesh::Gateway>, Option<mesh::ApplicationTunnel>) {
        let namespace = &pod.key.namespace;
        if let Some(name) = pod.labels.get(INSTANCE)
            && let Some(waypoint) = self.waypoints.get(&Key::new(namespace.clone(), name.as_str()))
        {
            return (None, waypoint.tunnel);
        }
        let inherits =
            self.namespace_named(namespace).is_some_and(|one| one.attachment.wants != Wants::Inherit);
        if !inherits && !pod.labels.contains_key("istio.io/use-waypoint") {
            return (None, None);
        }
        let attachment = Attachment::read(Some(&pod.labels), None, namespace);
        match self.bind_workload(&attachment, namespace) {
            Ok(bound) => (bound.map(|bound| bound.primary.gateway.clone()), None),
            Err(unbound) => {
                tracing::debug!(pod = %pod.key, reason = %unbound, "pod not bound to a waypoint");
                (None, None)
            }
        }
    }

    /// A Gateway, if it is ours to look at.
    pub(super) fn our_gateway(&self, key: &Key) -> Option<&Arc<Gateway>> {
        self.gateways.get(key).filter(|gateway| {
            self.settings.in_revision(gateway.revision.as_deref()) && self.discovers(&key.namespace)
        })
    }

    /// Finds out whether a Gateway is a waypoint, and touches whoever names it when that has changed.
    pub(super) fn flush_gateway(&mut self, network: &Arc<str>, key: &Key, dirty: &mut Dirty) {
        let waypoint = self.our_gateway(key).and_then(|gateway| {
            let class = self.classes.get(&Key::new("", gateway.class.clone()));
            model::waypoint(gateway, class.map(|class| &**class), network)
        });
        if waypoint.as_ref() == self.waypoints.get(key).map(|waypoint| &**waypoint) {
            return;
        }
        match waypoint {
            Some(waypoint) => drop(self.waypoints.insert(key.clone(), Arc::new(waypoint))),
            None => drop(self.waypoints.remove(key)),
        }
        let namespaces = self.namespaces.values().filter(|one| one.attachment.names(key));
        for namespace in namespaces.map(|one| one.name.clone()).collect::<Vec<_>>() {
            self.touch_namespace(&namespace, dirty);
        }
        let services = self.services.values().filter(|one| one.attachment.names(key));
        dirty.services.extend(services.map(|one| one.key.clone()));
        let entries = self.entries.values().filter(|one| one.attachment.names(key));
        dirty.hosts.extend(entries.flat_map(|one| one.hosts.iter().cloned()));
        let inline = self.entries.values().filter(|one| !one.endpoints.is_empty());
        dirty.entries.extend(inline.map(|one| one.key.clone()));
        let written = self.written.values().filter(|one| one.attachment.names(key));
        dirty.written.extend(written.map(|one| one.key.clone()));
        let concerned = |pod: &&Arc<Pod>| {
            pod.labels.get("istio.io/use-waypoint").is_some_and(|name| *name == *key.name)
                || (pod.key.namespace == key.namespace
                    && pod.labels.get(INSTANCE).is_some_and(|name| *name == *key.name))
        };
        dirty.pods.extend(self.snapshot.pods.all().filter(concerned).map(|pod| pod.key.clone()));
        dirty.authorizations.extend(self.targeted.iter().cloned());
    }

    /// Touches everything in a namespace.
    pub(super) fn touch_namespace(&self, namespace: &Arc<str>, dirty: &mut Dirty) {
        dirty.pods.extend(self.snapshot.pods.of(namespace).map(|pod| pod.key.clone()));
        dirty.services.extend(self.services.of(namespace).map(|one| one.key.clone()));
        dirty.slices.extend(self.slices.of(namespace).map(|one| one.key.clone()));
        dirty.written.extend(self.written.of(namespace).map(|one| one.key.clone()));
        for entry in self.entries.of(namespace) {
            dirty.entries.insert(entry.key.clone());
            dirty.hosts.extend(entry.hosts.iter().cloned());
        }
    }

    /// Touches everything: the network, the root namespace or what is discovered has changed.
    pub(super) fn touch_all(&self, dirty: &mut Dirty) {
        dirty.gateways.extend(self.gateways.keys().cloned());
        dirty.authorizations.extend(self.authorizations.keys().cloned());
        dirty.peers = true;
        dirty.pods.extend(self.snapshot.pods.all().map(|pod| pod.key.clone()));
        dirty.services.extend(self.services.keys().cloned());
        dirty.slices.extend(self.slices.keys().cloned());
        dirty.written.extend(self.written.keys().cloned());
        dirty.entries.extend(self.entries.keys().cloned());
        dirty.hosts.extend(self.entries_of_host.keys().cloned());
    }
}
