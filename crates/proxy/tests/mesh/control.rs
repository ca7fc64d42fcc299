//! A control plane for tests: what is put into it is sent to every proxy; it signs every certificate request unless
//! told to be away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use mesh::{Policy, Service, Workload};
use prost::Message;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, IsCa, Issuer,
    KeyPair, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_stream::Stream;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};
use wire::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use wire::ca::{IstioCertificateRequest, IstioCertificateResponse};
use wire::xds::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use wire::xds::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse, Resource,
};

const TYPES: [&str; 2] = [wire::type_url::ADDRESS, wire::type_url::AUTHORIZATION];

#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

/// Version and encoding of a resource.
type Versioned = (String, Vec<u8>);

struct Shared {
    /// By type and name.
    resources: Mutex<BTreeMap<(&'static str, String), Versioned>>,
    changed: watch::Sender<u64>,
    /// Whether streams are served; those that there are end when it becomes false.
    up: watch::Sender<bool>,
    /// Bytes of resources that were sent.
    sent: AtomicUsize,
    ca: Mutex<Ca>,
    nacks: Mutex<Vec<String>>,
    /// What was asked for by name.
    asked: Mutex<Vec<String>>,
}

/// What a client that asks by name is to have.
struct Demand {
    node: String,
    names: BTreeSet<String>,
}

impl Demand {
    fn new(request: &DeltaDiscoveryRequest, names: &[String]) -> Self {
        use prost_types::value::Kind;
        let metadata = request.node.as_ref().and_then(|node| node.metadata.as_ref()).unwrap();
        let node = match &metadata.fields["NODE_NAME"].kind {
            Some(Kind::StringValue(node)) => node.clone(),
            other => panic!("{other:?}"),
        };
        Self { node, names: names.iter().cloned().collect() }
    }

    /// Leaves in `all` what the client is to have, and in `asked` what leads nowhere.
    fn narrow(&self, all: &mut BTreeMap<String, Versioned>, asked: &mut Vec<String>) {
        let read = |bytes: &[u8]| wire::workload::Address::decode(bytes).ok()?.try_into().ok();
        let aliases = |address: &wire::Address| -> Vec<String> {
            match address {
                wire::Address::Workload(w) => {
                    w.addresses.iter().map(|ip| format!("{}/{ip}", w.network)).collect()
                }
                wire::Address::Service(s) => s.vips.iter().map(ToString::to_string).collect(),
            }
        };
        let objects: BTreeMap<String, wire::Address> =
            all.iter().filter_map(|(name, (_, bytes))| Some((name.clone(), read(bytes)?))).collect();
        let goes_by = |name: &str, object: &wire::Address, wanted: &dyn Fn(&str) -> bool| {
            wanted(name) || aliases(object).iter().any(|alias| wanted(alias))
        };
        let named = |name: &str| goes_by(name, &objects[name], &|wanted| self.names.contains(wanted));
        let mut kept: BTreeSet<String> = objects.keys().filter(|name| named(name)).cloned().collect();
        for (name, object) in &objects {
            let wire::Address::Workload(workload) = object else { continue };
            let with_service = workload.services.keys().any(|key| kept.contains(&key.to_string()));
            if *workload.node == *self.node || with_service {
                kept.insert(name.clone());
            }
        }
        asked.retain(|name| {
            !objects.iter().any(|(own, object)| goes_by(own, object, &|wanted| wanted == name))
        });
        all.retain(|name, _| kept.contains(name));
    }
}

struct Ca {
    issuer: Issuer<'static, KeyPair>,
    root: String,
    /// What it answers instead of a certificate.
    failing: Option<Status>,
    /// Whom it names instead of who asks.
    lying: Option<String>,
    lifetime: i64,
    issued: usize,
}

impl Control {
    pub async fn start() -> (Self, SocketAddr) {
        Self::start_on("127.0.0.1:0").await
    }

    pub async fn start_on(address: &str) -> (Self, SocketAddr) {
        let (issuer, root) = authority();
        let ca = Ca { issuer, root, failing: None, lying: None, lifetime: 86400, issued: 0 };
        let control = Self {
            shared: Arc::new(Shared {
                resources: Mutex::default(),
                changed: watch::Sender::new(0),
                up: watch::Sender::new(true),
                sent: AtomicUsize::new(0),
                ca: Mutex::new(ca),
                nacks: Mutex::default(),
                asked: Mutex::default(),
            }),
        };
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder()
            .add_service(AggregatedDiscoveryServiceServer::new(control.clone()))
            .add_service(IstioCertificateServiceServer::new(control.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        (control, address)
    }

    /// The certificate of the authority, PEM.
    pub fn root(&self) -> String {
        self.shared.ca.lock().unwrap().root.clone()
    }

    /// Goes over to another authority, which shares nothing with the one before.
    pub fn replace_root(&self) {
        let mut ca = self.shared.ca.lock().unwrap();
        (ca.issuer, ca.root) = authority();
    }

    /// A certificate for a server at this address, and its key.
    pub fn serving_certificate(&self, address: IpAddr) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(address)];
        let certificate = params.signed_by(&key, &self.shared.ca.lock().unwrap().issuer).unwrap();
        (certificate.der().clone(), PrivateKeyDer::Pkcs8(key.serialize_der().into()))
    }

    fn put(&self, type_url: &'static str, name: String, value: Vec<u8>) {
        let mut resources = self.shared.resources.lock().unwrap();
        let changes = *self.shared.changed.borrow();
        if resources.get(&(type_url, name.clone())).is_none_or(|(_, known)| *known != value) {
            resources.insert((type_url, name), (format!("v{changes}"), value));
        }
        drop(resources);
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// Takes a workload, service or policy away.
    pub fn remove(&self, name: &str) {
        self.shared.resources.lock().unwrap().retain(|(_, known), _| known != name);
        self.shared.changed.send_modify(|n| *n += 1);
    }

    /// Ends all streams and serves none until it is up again.
    pub fn down(&self) {
        self.shared.up.send_replace(false);
    }

    /// Serves streams again. A fresh one has never seen a version of the one before.
    pub fn up(&self, fresh: bool) {
        if fresh {
            for (version, _) in self.shared.resources.lock().unwrap().values_mut() {
                version.insert(0, 'n');
            }
        }
        self.shared.up.send_replace(true);
    }

    /// Bytes of resources sent so far, over all streams.
    pub fn sent(&self) -> usize {
        self.shared.sent.load(Ordering::SeqCst)
    }

    pub fn workload(&self, workload: &Workload) {
        let bytes = wire::workload::Address::from(workload).encode_to_vec();
        self.put(wire::type_url::ADDRESS, workload.uid.to_string(), bytes);
    }

    pub fn service(&self, service: &Service) {
        let bytes = wire::workload::Address::from(service).encode_to_vec();
        self.put(wire::type_url::ADDRESS, service.key.to_string(), bytes);
    }

    pub fn policy(&self, policy: &Policy) {
        let bytes = wire::security::Authorization::from(policy).encode_to_vec();
        self.put(wire::type_url::AUTHORIZATION, policy.key().to_string(), bytes);
    }

    /// Something that no proxy can understand.
    pub fn garbage(&self, name: &str) {
        self.put(wire::type_url::ADDRESS, name.into(), vec![0xff; 7]);
    }

    /// What proxies have asked for by name after the beginning.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap().clone()
    }

    pub fn nacks(&self) -> Vec<String> {
        self.shared.nacks.lock().unwrap().clone()
    }

    /// A credential for whoever wants to speak to a proxy himself.
    pub fn credential(&self, identity: &mesh::Identity) -> hbone::Credential {
        let ca = self.shared.ca.lock().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
        let leaf = params.signed_by(&key, &ca.issuer).unwrap().der().clone();
        let roots = hbone::tls::pem_certificates(&ca.root).unwrap();
        let key = rustls_pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        hbone::Credential::new(identity.clone(), vec![leaf], key, roots).unwrap()
    }

    /// Certificate, key and root of an identity in PEM.
    pub fn pem(&self, identity: &mesh::Identity) -> (String, String, String) {
        self.pem_with(identity, |_| {})
    }

    /// The same; the certificate is a bit different.
    pub fn pem_with(
        &self,
        identity: &mesh::Identity,
        change: impl FnOnce(&mut CertificateParams),
    ) -> (String, String, String) {
        let ca = self.shared.ca.lock().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into().unwrap())];
        change(&mut params);
        let leaf = params.signed_by(&key, &ca.issuer).unwrap().pem();
        (leaf, key.serialize_pem(), ca.root.clone())
    }

    /// A list that revokes this credential's certificate, in PEM.
    pub fn revoke(&self, credential: &hbone::Credential) -> String {
        use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};
        let (_, leaf) = x509_parser::parse_x509_certificate(&credential.chain()[0]).unwrap();
        let params = CertificateRevocationListParams {
            this_update: now(),
            next_update: now() + std::time::Duration::from_secs(3600),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: vec![RevokedCertParams {
                serial_number: SerialNumber::from_slice(leaf.raw_serial()),
                revocation_time: now(),
                reason_code: None,
                invalidity_date: None,
            }],
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.shared.ca.lock().unwrap().issuer).unwrap().pem().unwrap()
    }

    pub fn ca_fails(&self, status: Option<Status>) {
        self.shared.ca.lock().unwrap().failing = status;
    }

    pub fn ca_lies(&self, identity: Option<&str>) {
        self.shared.ca.lock().unwrap().lying = identity.map(str::to_owned);
    }

    pub fn certificate_lifetime(&self, seconds: i64) {
        self.shared.ca.lock().unwrap().lifetime = seconds;
    }

    pub fn issued(&self) -> usize {
        self.shared.ca.lock().unwrap().issued
    }

    async fn serve(
        self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        out: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) {
        let mut changed = self.shared.changed.subscribe();
        let mut up = self.shared.up.subscribe();
        let mut sent: BTreeMap<&'static str, BTreeMap<String, String>> = BTreeMap::new();
        let mut nonce = 0;
        let mut demand: Option<Demand> = None;
        loop {
            let mut asked = Vec::new();
            tokio::select! {
                () = async { drop(up.wait_for(|up| !up).await) } => return,
                request = requests.message() => {
                    let Ok(Some(request)) = request else { return };
                    if let Some(error) = &request.error_detail {
                        self.shared.nacks.lock().unwrap().push(error.message.clone());
                    }
                    let named = request.resource_names_subscribe.iter().filter(|name| *name != "*").cloned();
                    if request.resource_names_unsubscribe.iter().any(|name| name == "*") {
                        asked = named.collect();
                        demand = Some(Demand::new(&request, &asked));
                        sent.insert(TYPES[0], request.initial_resource_versions);
                    } else if let Some(demand) = &mut demand
                        && request.type_url == TYPES[0]
                        && request.response_nonce.is_empty()
                    {
                        asked = named.collect();
                        self.shared.asked.lock().unwrap().extend(asked.iter().cloned());
                        demand.names.extend(asked.iter().cloned());
                        for name in &request.resource_names_unsubscribe {
                            demand.names.remove(name);
                        }
                    } else if request.response_nonce.is_empty() {
                        let type_url = TYPES.into_iter().find(|t| *t == request.type_url).unwrap();
                        sent.insert(type_url, request.initial_resource_versions);
                    } else {
                        continue;
                    }
                }
                _ = changed.changed() => {}
            }
            for (type_url, sent) in &mut sent {
                let mut now: BTreeMap<String, Versioned> = {
                    let all = self.shared.resources.lock().unwrap();
                    let of_type = all.iter().filter(|((t, _), _)| t == type_url);
                    of_type.map(|((_, name), value)| (name.clone(), value.clone())).collect()
                };
                let mut nowhere = Vec::new();
                if let (Some(demand), true) = (&demand, *type_url == TYPES[0]) {
                    nowhere = std::mem::take(&mut asked);
                    demand.narrow(&mut now, &mut nowhere);
                }
                let news = now.iter().filter(|(name, (version, _))| sent.get(*name) != Some(version));
                let resources: Vec<Resource> = news
                    .map(|(name, (version, value))| Resource {
                        name: name.clone(),
                        version: version.clone(),
                        resource: Some(prost_types::Any {
                            type_url: (*type_url).into(),
                            value: value.clone(),
                        }),
                        ..Resource::default()
                    })
                    .collect();
                let gone = sent.keys().filter(|name| !now.contains_key(*name)).cloned();
                let removed_resources: Vec<String> = gone.chain(nowhere).collect();
                let first = nonce < 2;
                if resources.is_empty() && removed_resources.is_empty() && !first {
                    continue;
                }
                nonce += 1;
                let bytes: usize = resources.iter().map(Message::encoded_len).sum();
                self.shared.sent.fetch_add(bytes, Ordering::SeqCst);
                *sent = now.into_iter().map(|(name, (version, _))| (name, version)).collect();
                let response = DeltaDiscoveryResponse {
                    type_url: (*type_url).into(),
                    nonce: nonce.to_string(),
                    resources,
                    removed_resources,
                    ..DeltaDiscoveryResponse::default()
                };
                if out.send(Ok(response)).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[tonic::async_trait]
impl AggregatedDiscoveryService for Control {
    type StreamAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("delta only"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        if !*self.shared.up.borrow() {
            return Err(Status::unavailable("down"));
        }
        let (out, responses) = mpsc::channel(16);
        tokio::spawn(self.clone().serve(request.into_inner(), out));
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

#[tonic::async_trait]
impl IstioCertificateService for Control {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let request = request.into_inner();
        let metadata = request.metadata.unwrap_or_default();
        let identity = match &metadata.fields["ImpersonatedIdentity"].kind {
            Some(prost_types::value::Kind::StringValue(identity)) => identity.clone(),
            _ => return Err(Status::invalid_argument("no ImpersonatedIdentity")),
        };
        let mut ca = self.shared.ca.lock().unwrap();
        if let Some(status) = &ca.failing {
            return Err(status.clone());
        }
        let mut csr = CertificateSigningRequestParams::from_pem(&request.csr)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        assert_eq!(csr.params.subject_alt_names, vec![SanType::URI(identity.clone().try_into().unwrap())]);
        csr.params.distinguished_name = DistinguishedName::new();
        csr.params.not_before = now() - std::time::Duration::from_secs(120);
        csr.params.not_after = now() + std::time::Duration::from_secs(ca.lifetime as u64);
        if let Some(other) = &ca.lying {
            csr.params.subject_alt_names = vec![SanType::URI(other.clone().try_into().unwrap())];
        }
        let leaf = csr.signed_by(&ca.issuer).unwrap().pem();
        ca.issued += 1;
        Ok(Response::new(IstioCertificateResponse { cert_chain: vec![leaf, ca.root.clone()] }))
    }
}

/// A new root: what signs, and its certificate in PEM.
fn authority() -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), root)
}

fn now() -> time::OffsetDateTime {
    time::OffsetDateTime::now_utc()
}
