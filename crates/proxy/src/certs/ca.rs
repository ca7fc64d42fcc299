//! Asks the certificate authority for a certificate (reference/data-plane.md §11, control-plane.md §4.1).

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use hbone::Credential;
use hbone::tls::pem_certificates;
use mesh::Identity;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::sync::Mutex;
use tonic::transport::Channel;
use wire::ca::IstioCertificateRequest;
use wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;

use super::CertError;
use crate::grpc::{Connector, text_of};

const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A client of the certificate authority.
pub(super) struct Authority {
    connector: Connector,
    ttl: Duration,
    /// The connection, and the roots it was checked against.
    channel: Mutex<Option<(Option<String>, Channel)>>,
}

impl Authority {
    pub(super) fn new(connector: Connector, ttl: Duration) -> Self {
        Self { connector, ttl, channel: Mutex::new(None) }
    }

    /// A new key and a certificate for it. Every wait is bounded.
    pub(super) async fn issue(&self, identity: &Identity) -> Result<Credential, CertError> {
        let within = 3 * CALL_TIMEOUT;
        match tokio::time::timeout(within, self.try_issue(identity)).await {
            Ok(Ok(credential)) => Ok(credential),
            Ok(Err(reason)) => {
                // Next time a new connection: this one may lead to a dead or changed server.
                *self.channel.lock().await = None;
                Err(CertError::Authority { address: self.connector.address().into(), reason })
            }
            Err(_) => {
                let reason = format!("no answer within {within:?}");
                Err(CertError::Authority { address: self.connector.address().into(), reason })
            }
        }
    }

    async fn try_issue(&self, identity: &Identity) -> Result<Credential, String> {
        let (csr, key) = signing_request(identity).map_err(|error| error.to_string())?;
        let impersonated =
            prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(identity.to_string())) };
        let message = IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(self.ttl.as_secs()).unwrap_or(i64::MAX),
            metadata: Some(prost_types::Struct {
                fields: BTreeMap::from([("ImpersonatedIdentity".to_owned(), impersonated)]),
            }),
        };
        let mut client = IstioCertificateServiceClient::new(self.channel().await?);
        let request = self.connector.request(message).await.map_err(|error| error.to_string())?;
        let answer = tokio::time::timeout(CALL_TIMEOUT, client.create_certificate(request)).await;
        let answer = answer.map_err(|_| format!("no answer within {CALL_TIMEOUT:?}"))?;
        let chain = answer.map_err(|status| text_of(&status))?.into_inner().cert_chain;
        let credential = assemble(identity, &chain, key)?;
        if !credential.validity().holds_at(SystemTime::now()) {
            return Err("the certificate is not valid now: are the clocks right?".into());
        }
        Ok(credential)
    }

    async fn channel(&self) -> Result<Channel, String> {
        let roots = self.connector.roots().await.map_err(|error| error.to_string())?;
        let mut cached = self.channel.lock().await;
        if let Some((checked, channel)) = &*cached
            && *checked == roots
        {
            return Ok(channel.clone());
        }
        let channel = self.connector.connect(roots.as_deref()).await.map_err(|error| error.to_string())?;
        *cached = Some((roots, channel.clone()));
        Ok(channel)
    }
}

/// A request for `identity` alone: one critical URI name, no subject.
fn signing_request(identity: &Identity) -> Result<(String, KeyPair), rcgen::Error> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.to_string().try_into()?)];
    let request = params.serialize_request(&key)?;
    Ok((request.pem()?, key))
}

/// Leaf first, then intermediates, last the roots; of each but the last only the first certificate counts.
fn assemble(identity: &Identity, answer: &[String], key: KeyPair) -> Result<Credential, String> {
    let (roots, certificates) = match answer {
        [certificates @ .., roots] if !certificates.is_empty() => (roots, certificates),
        _ => {
            return Err(format!(
                "the answer holds {} certificates, a leaf and roots are needed",
                answer.len()
            ));
        }
    };
    let first = |pem: &String| {
        let all = pem_certificates(pem).map_err(|error| error.to_string())?;
        all.into_iter().next().ok_or_else(|| "an element of the answer holds no certificate".to_owned())
    };
    let chain: Result<Vec<_>, String> = certificates.iter().map(first).collect();
    let roots = pem_certificates(roots).map_err(|error| error.to_string())?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Credential::new(identity.clone(), chain?, key, roots).map_err(|error| error.to_string())
}
