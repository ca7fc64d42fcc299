//! The observer's own certificate: from the mesh's authority, renewed at half life, kept while the authority is away.
//! The key lives in memory only.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hbone::tls::{Credential, pem_certificates};
use mesh::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::ServerConfig;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::watch;
use tonic::metadata::MetadataValue;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use wire::ca::IstioCertificateRequest;
use wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;

use crate::ingest::server_config;

const PATIENCE: Duration = Duration::from_secs(10);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);
const LIFE: Duration = Duration::from_secs(86_400);

/// Where certificates come from.
#[derive(Clone, Debug)]
pub struct Authority {
    /// `https://host:port`.
    pub address: String,
    /// PEM of the roots that the authority is checked against.
    pub root: PathBuf,
    /// The token that says who we are.
    pub token: PathBuf,
    /// Name of the cluster that the token is of.
    pub cluster: String,
}

/// Keeps a serving configuration for `identity`, for as long as somebody listens.
pub async fn keep(
    authority: Authority,
    identity: Identity,
    publish: watch::Sender<Option<Arc<ServerConfig>>>,
) {
    let mut retry = FIRST_RETRY;
    let mut valid_until: Option<SystemTime> = None;
    while !publish.is_closed() {
        let pause = match authority.issue(&identity).await {
            Ok(Issued { config, not_after }) => {
                retry = FIRST_RETRY;
                valid_until = Some(not_after);
                let left = not_after.duration_since(SystemTime::now()).unwrap_or_default();
                tracing::info!(%identity, renewed_in = ?(left / 2), "certificate issued");
                publish.send_replace(Some(config));
                (left / 2).max(FIRST_RETRY)
            }
            Err(reason) => {
                let still = valid_until.is_some_and(|until| SystemTime::now() < until);
                tracing::warn!(%identity, reason, authority = authority.address, still_valid = still, "no certificate");
                if !still {
                    publish.send_replace(None);
                }
                let pause = retry;
                retry = (retry * 2).min(LAST_RETRY);
                pause
            }
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = publish.closed() => return,
        }
    }
}

struct Issued {
    config: Arc<ServerConfig>,
    not_after: SystemTime,
}

impl Authority {
    async fn issue(&self, identity: &Identity) -> Result<Issued, String> {
        let within = 3 * PATIENCE;
        let asked = tokio::time::timeout(within, self.ask(identity)).await;
        asked.map_err(|_| format!("no answer within {within:?}"))?
    }

    async fn ask(&self, identity: &Identity) -> Result<Issued, String> {
        let (csr, key) = signing_request(identity).map_err(|error| error.to_string())?;
        let message = IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(LIFE.as_secs()).unwrap_or(i64::MAX),
            metadata: None,
        };
        let path = self.token.display();
        let token = tokio::fs::read_to_string(&self.token).await;
        let token = token.map_err(|error| format!("cannot read the token {path}: {error}"))?;
        let mut request = tonic::Request::new(message);
        let header =
            |text: String| MetadataValue::try_from(text).map_err(|_| "a header holds impossible characters");
        request.metadata_mut().insert("authorization", header(format!("Bearer {}", token.trim()))?);
        request.metadata_mut().insert("clusterid", header(self.cluster.clone())?);
        let mut client = IstioCertificateServiceClient::new(self.connect().await?);
        let answer =
            client.create_certificate(request).await.map_err(|status| status.message().to_owned())?;
        assemble(identity, &answer.into_inner().cert_chain, &key)
    }

    async fn connect(&self) -> Result<Channel, String> {
        let text = |error: tonic::transport::Error| {
            use std::error::Error;
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            text
        };
        let mut endpoint =
            Endpoint::from_shared(self.address.clone()).map_err(text)?.connect_timeout(PATIENCE);
        if self.address.starts_with("https://") {
            let path = self.root.display();
            let roots = tokio::fs::read_to_string(&self.root).await;
            let roots =
                roots.map_err(|error| format!("cannot read the root certificates {path}: {error}"))?;
            let host = endpoint.uri().host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(roots)).domain_name(host);
            endpoint = endpoint.tls_config(tls).map_err(text)?;
        }
        endpoint.connect().await.map_err(text)
    }
}

/// A request for `identity` alone: one URI name, no subject.
fn signing_request(identity: &Identity) -> Result<(String, KeyPair), rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    let request = params.serialize_request(&key)?;
    Ok((request.pem()?, key))
}

/// Leaf first, then intermediates, last the roots.
fn assemble(identity: &Identity, answer: &[String], key: &KeyPair) -> Result<Issued, String> {
    let (roots, certificates) = match answer {
        [certificates @ .., roots] if !certificates.is_empty() => (roots, certificates),
        _ => {
            return Err(format!(
                "the answer holds {} certificates, a leaf and roots are needed",
                answer.len()
            ));
        }
    };
    let mut chain: Vec<CertificateDer<'static>> = Vec::new();
    for pem in certificates {
        chain.extend(pem_certificates(pem).map_err(|error| error.to_string())?);
    }
    let roots = pem_certificates(roots).map_err(|error| error.to_string())?;
    let der = || PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    // Checks what came: the identity, the key, the dates.
    let credential = Credential::new(identity.clone(), chain.clone(), der(), roots.clone());
    let validity = credential.map_err(|error| error.to_string())?.validity();
    if !validity.holds_at(SystemTime::now()) {
        return Err("the certificate is not valid now: are the clocks right?".into());
    }
    Ok(Issued { config: server_config(chain, der(), &roots)?, not_after: validity.not_after })
}
