//! The workload API's client: delta ADS to the control plane, and the one owner of the [`mesh::View`]
//! (reference/control-plane.md §3.4, §3.5).
//!
//! Each resource of a response is judged alone: what cannot be understood is reported back (NACK) and the object
//! that was known before is kept. After a lost stream everything known is named to the server, which sends only
//! what has changed. What is known stays in force while the control plane is away.

mod demand;
mod known;
mod stats;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use mesh::Identity;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code;
use wire::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use wire::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};

use crate::config::Config;
use crate::grpc::{Connector, text_of};
use crate::ready::Pending;
use crate::views::Views;
use known::Known;

pub(crate) use demand::{Demand, WAIT as DISCOVERY_WAIT};
pub use known::exercise;
pub(crate) use stats::{End, Stats};

/// Istio's control plane refuses nothing smaller; a mesh of 100,000 workloads comes in one message.
const MAX_MESSAGE: usize = 200 << 20;
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LAST_RETRY: Duration = Duration::from_secs(15);
/// The stream itself is silent for long; HTTP/2 PINGs watch the connection.
const OPEN_TIMEOUT: Duration = Duration::from_secs(30);

/// The client. [`Client::run`] is its life.
pub(crate) struct Client {
    connector: Connector,
    node: Node,
    known: Known,
    views: Views,
    ready: Option<Pending>,
    answered: BTreeSet<&'static str>,
    stats: Arc<Stats>,
    retry: Duration,
    demand: Demand,
}

/// Both subscriptions are to everything; that to addresses is to names where the mesh is not followed as a whole.
const TYPES: [&str; 2] = [wire::type_url::ADDRESS, wire::type_url::AUTHORIZATION];

impl Client {
    /// A client of the control plane that `config` names; nothing when it is switched off. What `local` holds is known
    /// from the start. The receiver tells the identities of this node's workloads.
    pub(crate) fn new(
        config: &Config,
        local: wire::Local,
        views: Views,
        demand: Demand,
        ready: Pending,
        stats: Arc<Stats>,
    ) -> (Option<Self>, watch::Receiver<Arc<BTreeSet<Identity>>>) {
        let (mut known, identities) = Known::new(config.node.as_deref());
        if demand.is_on() {
            known.on_demand();
        }
        known.take_in(local);
        views.publish(known.view());
        let client = config.xds.clone().map(|remote| Self {
            connector: Connector::new(remote, config.cluster_id.clone()),
            node: node(config),
            known,
            views,
            ready: Some(ready),
            answered: BTreeSet::new(),
            stats,
            retry: FIRST_RETRY,
            demand,
        });
        (client, identities)
    }

    /// Stays connected for ever.
    pub(crate) async fn run(mut self) {
        loop {
            let ended = self.session().await;
            self.stats.ended(ended.0);
            let address = self.connector.address();
            match ended {
                Ended(_, None) => tracing::debug!(address, "the control plane closed the stream"),
                Ended(_, Some(reason)) => tracing::warn!(address, reason, "no stream from the control plane"),
            }
            let pause = self.retry.mul_f64(0.8 + 0.4 * rand::random::<f64>());
            tokio::time::sleep(pause).await;
            self.retry = (self.retry * 2).min(LAST_RETRY);
        }
    }

    async fn session(&mut self) -> Ended {
        let opened = tokio::time::timeout(OPEN_TIMEOUT, self.open()).await;
        let (requests, mut responses) = match opened {
            Ok(Ok(stream)) => stream,
            Ok(Err(reason)) => return Ended(End::ConnectionError, Some(reason)),
            Err(_) => return Ended(End::ConnectionError, Some(format!("no answer within {OPEN_TIMEOUT:?}"))),
        };
        loop {
            let answer = tokio::select! {
                message = responses.message() => match message {
                    Ok(Some(response)) => {
                        self.retry = FIRST_RETRY;
                        self.receive(response)
                    }
                    Ok(None) => return Ended(End::Complete, None),
                    // How a server ends a stream that has lived long enough.
                    Err(status) if matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded) => {
                        return Ended(End::Reconnect, None);
                    }
                    Err(status) => return Ended(End::Error, Some(text_of(&status))),
                },
                () = self.demand.news() => {
                    self.known.ask(self.demand.take());
                    None
                }
            };
            for request in answer.into_iter().chain(self.questions()) {
                if requests.send(request).await.is_err() {
                    return Ended(End::Complete, None);
                }
            }
        }
    }

    /// What the control plane has not been asked yet.
    fn questions(&mut self) -> Option<DeltaDiscoveryRequest> {
        let (subscribe, unsubscribe) = self.known.questions()?;
        tracing::debug!(subscribe = subscribe.len(), unsubscribe = unsubscribe.len(), "asking by name");
        Some(DeltaDiscoveryRequest {
            type_url: wire::type_url::ADDRESS.to_owned(),
            resource_names_subscribe: subscribe,
            resource_names_unsubscribe: unsubscribe,
            ..DeltaDiscoveryRequest::default()
        })
    }

    async fn open(
        &mut self,
    ) -> Result<(mpsc::Sender<DeltaDiscoveryRequest>, tonic::Streaming<DeltaDiscoveryResponse>), String> {
        let roots = self.connector.roots().await.map_err(|error| error.to_string())?;
        let channel = self.connector.connect(roots.as_deref()).await.map_err(|error| error.to_string())?;
        let (requests, queue) = mpsc::channel(16);
        // Both are queued before the headers of the answer are waited for: Istio's control plane sends those only
        // with its first message.
        for type_url in TYPES {
            let mut request = DeltaDiscoveryRequest {
                node: Some(self.node.clone()),
                type_url: type_url.to_owned(),
                initial_resource_versions: self.known.versions(type_url),
                ..DeltaDiscoveryRequest::default()
            };
            if type_url == wire::type_url::ADDRESS && self.demand.is_on() {
                self.known.ask(self.demand.take());
                let names = self.known.all_questions().unwrap_or_default();
                // Everything, and not everything: nothing but what is named (reference/control-plane.md §3.4).
                request.resource_names_subscribe = std::iter::once("*".to_owned()).chain(names).collect();
                request.resource_names_unsubscribe = vec!["*".to_owned()];
            }
            requests.try_send(request).map_err(|error| error.to_string())?;
        }
        let request =
            self.connector.request(ReceiverStream::new(queue)).await.map_err(|error| error.to_string())?;
        let mut client =
            AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let answer = client.delta_aggregated_resources(request).await.map_err(|status| text_of(&status))?;
        Ok((requests, answer.into_inner()))
    }

    /// Takes a response in; the answer is an ACK or a NACK.
    fn receive(&mut self, response: DeltaDiscoveryResponse) -> Option<DeltaDiscoveryRequest> {
        let type_url = TYPES.into_iter().find(|known| *known == response.type_url)?;
        self.stats.received(type_url, prost::Message::encoded_len(&response) as u64);
        let nonce = response.nonce.clone();
        let (resources, removed) = (response.resources.len(), response.removed_resources.len());
        let rejected = self.known.apply(type_url, response);
        self.views.publish(self.known.view());
        tracing::debug!(type_url, resources, removed, rejected = rejected.len(), "received");
        let error_detail = (!rejected.is_empty()).then(|| {
            let message = rejected.join("; ");
            tracing::warn!(type_url, message, "resources refused; what was known of them is kept");
            wire::xds::Status { code: 0, message, details: Vec::new() }
        });
        // A refused resource must not keep a whole node out of service: the rest is known and in force.
        self.answered.insert(type_url);
        if self.answered.len() == TYPES.len() {
            self.ready.take();
        }
        Some(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            response_nonce: nonce,
            error_detail,
            ..DeltaDiscoveryRequest::default()
        })
    }
}

/// How a stream ended, and why if that is worth a warning.
struct Ended(End, Option<String>);

/// Who we are, in the form that Istio's control plane demands.
fn node(config: &Config) -> Node {
    let own = &config.own;
    let ip = own.ip.map_or("127.0.0.1".to_owned(), |ip| ip.to_string());
    let name = own.name.as_deref().unwrap_or("ambit-proxy");
    let namespace = own.namespace.as_deref().unwrap_or("ambit-system");
    let text = |text: &str| prost_types::Value {
        kind: Some(prost_types::value::Kind::StringValue(text.to_owned())),
    };
    let mut metadata = BTreeMap::from([
        ("NAME".to_owned(), text(name)),
        ("NAMESPACE".to_owned(), text(namespace)),
        ("INSTANCE_IPS".to_owned(), text(&ip)),
        ("CLUSTER_ID".to_owned(), text(&config.cluster_id)),
    ]);
    if let Some(node) = &config.node {
        metadata.insert("NODE_NAME".to_owned(), text(node));
    }
    if let Some(account) = &own.service_account {
        metadata.insert("SERVICE_ACCOUNT".to_owned(), text(account));
    }
    Node {
        id: format!("ztunnel~{ip}~{name}.{namespace}~{namespace}.svc.{}", config.cluster_domain),
        metadata: Some(prost_types::Struct { fields: metadata }),
        ..Node::default()
    }
}
