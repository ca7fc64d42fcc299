//! What a node proxy does: follows the mesh, and asks for certificates.

use super::*;

pub fn authorized<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(format!("Bearer {token}")).unwrap();
    request.metadata_mut().insert("authorization", value);
    request.metadata_mut().insert("clusterid", MetadataValue::from_static("Kubernetes"));
    request
}

/// A client that keeps what it is told, as a proxy does.
pub struct Proxy {
    pub requests: mpsc::Sender<DeltaDiscoveryRequest>,
    pub responses: Streaming<DeltaDiscoveryResponse>,
    pub addresses: BTreeMap<String, (String, wire::workload::Address)>,
    pub policies: BTreeMap<String, String>,
}

impl Proxy {
    pub async fn connect(
        channel: Channel,
        token: &str,
        known: BTreeMap<String, String>,
    ) -> Result<Self, Status> {
        let (requests, sent) = mpsc::channel(16);
        let node = Node {
            id: "ztunnel~10.0.0.2~proxy-n1.ambit-system~ambit-system.svc.cluster.local".into(),
            ..Node::default()
        };
        let first = |type_url: &str, known: BTreeMap<String, String>| DeltaDiscoveryRequest {
            node: Some(node.clone()),
            type_url: type_url.into(),
            initial_resource_versions: known,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(first(ADDRESS, known)).await.unwrap();
        requests.send(first(AUTHORIZATION, BTreeMap::new())).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let stream = client.delta_aggregated_resources(authorized(ReceiverStream::new(sent), token));
        let responses = soon("an answer", stream).await?.into_inner();
        Ok(Self { requests, responses, addresses: BTreeMap::new(), policies: BTreeMap::new() })
    }

    /// Takes in the next response and acknowledges it.
    pub async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        use prost::Message;
        let response = soon("a response", self.responses.message()).await?.expect("the stream goes on");
        for resource in &response.resources {
            let any = resource.resource.as_ref().unwrap();
            assert_eq!(any.type_url, response.type_url);
            if response.type_url == ADDRESS {
                let address = wire::workload::Address::decode(&any.value[..]).unwrap();
                self.addresses.insert(resource.name.clone(), (resource.version.clone(), address));
            } else {
                self.policies.insert(resource.name.clone(), resource.version.clone());
            }
        }
        for name in &response.removed_resources {
            if response.type_url == ADDRESS {
                self.addresses.remove(name);
            } else {
                self.policies.remove(name);
            }
        }
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(ack).await.unwrap();
        Ok(response)
    }

    pub async fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        soon(what, async {
            while !done(self) {
                self.next().await.unwrap();
            }
        })
        .await;
    }
}

pub async fn certificate(
    channel: Channel,
    token: &str,
    identity: &str,
) -> Result<(IstioCertificateResponse, rcgen::KeyPair), Status> {
    let key = rcgen::KeyPair::generate().unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let text =
        |text: &str| prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.into())) };
    let metadata =
        prost_types::Struct { fields: BTreeMap::from([("ImpersonatedIdentity".into(), text(identity))]) };
    let request = IstioCertificateRequest { csr, validity_duration: 86_400, metadata: Some(metadata) };
    let mut client = IstioCertificateServiceClient::new(channel);
    let answer = soon("a certificate", client.create_certificate(authorized(request, token))).await?;
    Ok((answer.into_inner(), key))
}
