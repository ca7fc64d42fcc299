//! Kinds that a cluster may or may not have: watched as long as their definition exists.

use futures::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::watcher;
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};

use super::{follow, pump};
use crate::input::ObjectError;
use crate::state::{Delta, Event, Keyed};

/// A kind that may be absent.
#[derive(Clone, Copy, Debug)]
pub struct CustomKind {
    group: &'static str,
    version: &'static str,
    kind: &'static str,
    plural: &'static str,
}

/// AuthorizationPolicy.
pub const AUTHORIZATION_POLICIES: CustomKind = CustomKind {
    group: "security.istio.io",
    version: "v1",
    kind: "AuthorizationPolicy",
    plural: "authorizationpolicies",
};

/// PeerAuthentication.
pub const PEER_AUTHENTICATIONS: CustomKind = CustomKind {
    group: "security.istio.io",
    version: "v1",
    kind: "PeerAuthentication",
    plural: "peerauthentications",
};

/// ServiceEntry.
pub const SERVICE_ENTRIES: CustomKind = CustomKind {
    group: "networking.istio.io",
    version: "v1",
    kind: "ServiceEntry",
    plural: "serviceentries",
};

/// WorkloadEntry.
pub const WORKLOAD_ENTRIES: CustomKind = CustomKind {
    group: "networking.istio.io",
    version: "v1",
    kind: "WorkloadEntry",
    plural: "workloadentries",
};

/// Gateway.
pub const GATEWAYS: CustomKind =
    CustomKind { group: "gateway.networking.k8s.io", version: "v1", kind: "Gateway", plural: "gateways" };

/// GatewayClass.
pub const GATEWAY_CLASSES: CustomKind = CustomKind {
    group: "gateway.networking.k8s.io",
    version: "v1",
    kind: "GatewayClass",
    plural: "gatewayclasses",
};

impl CustomKind {
    /// As the API client wants it.
    pub fn resource(&self) -> ApiResource {
        let kind = GroupVersionKind::gvk(self.group, self.version, self.kind);
        ApiResource::from_gvk_with_plural(&kind, self.plural)
    }

    fn definition(&self) -> String {
        format!("{}.{}", self.plural, self.group)
    }

    /// Whether a definition is established and serves our version.
    fn served_by(&self, definition: &CustomResourceDefinition) -> bool {
        let established = definition
            .status
            .iter()
            .flat_map(|status| status.conditions.iter().flatten())
            .any(|condition| condition.type_ == "Established" && condition.status == "True");
        established
            && definition.spec.versions.iter().any(|version| version.name == self.version && version.served)
    }
}

/// Watches objects of a kind while its definition exists, and tells that there are none while it does not.
pub(super) async fn watch<T>(
    client: Client,
    kind: CustomKind,
    events: mpsc::Sender<Event>,
    wrap: fn(Delta<T>) -> Event,
) where
    T: TryFrom<DynamicObject, Error = ObjectError> + Keyed + Send + 'static,
{
    // None until the definitions have been listed once.
    let (exists, mut existence) = watch::channel(None::<bool>);
    let definitions = follow_definition(client.clone(), kind, exists);
    let objects = async {
        loop {
            let now = *existence.borrow_and_update();
            let changed = match now {
                Some(true) => {
                    let api = Api::<DynamicObject>::all_with(client.clone(), &kind.resource());
                    let start = || watcher(api.clone(), watcher::Config::default());
                    let read = |object: DynamicObject| match T::try_from(object) {
                        Ok(object) => Some(object),
                        Err(error) => {
                            tracing::warn!(%error, "object ignored; its last readable form stays in force");
                            None
                        }
                    };
                    tokio::select! {
                        () = pump(start, kind.plural, read, super::key, &events, wrap) => return,
                        changed = existence.changed() => changed,
                    }
                }
                Some(false) => {
                    if events.send(wrap(Delta::All(Vec::new()))).await.is_err() {
                        return;
                    }
                    existence.changed().await
                }
                None => existence.changed().await,
            };
            if changed.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = definitions => {}
        () = objects => {}
    }
}

/// Says whether the definition of a kind exists, whenever that changes.
async fn follow_definition(client: Client, kind: CustomKind, exists: watch::Sender<Option<bool>>) {
    let config = watcher::Config::default().fields(&format!("metadata.name={}", kind.definition()));
    let api = Api::<CustomResourceDefinition>::all(client);
    let mut stream = std::pin::pin!(follow(|| watcher(api.clone(), config.clone())));
    let name = kind.definition();
    let ours = |definition: &CustomResourceDefinition| definition.metadata.name.as_deref() == Some(&name);
    let tell = |now: bool| {
        exists.send_if_modified(|before| {
            let changed = *before != Some(now);
            *before = Some(now);
            changed
        })
    };
    let (mut listed, mut failing) = (false, false);
    while let Some(heard) = stream.next().await {
        match heard {
            Ok(watcher::Event::Init) => listed = false,
            Ok(watcher::Event::InitApply(definition)) => {
                listed |= ours(&definition) && kind.served_by(&definition);
            }
            Ok(watcher::Event::InitDone) => {
                failing = false;
                if tell(listed) {
                    tracing::info!(
                        definition = name,
                        exists = listed,
                        "custom resource definition looked up"
                    );
                }
            }
            Ok(watcher::Event::Apply(definition)) if ours(&definition) => {
                tell(kind.served_by(&definition));
            }
            Ok(watcher::Event::Delete(definition)) if ours(&definition) => {
                tell(false);
            }
            Ok(watcher::Event::Apply(_) | watcher::Event::Delete(_)) => {}
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    super::complain("customresourcedefinitions", &error);
                }
            }
        }
    }
}
