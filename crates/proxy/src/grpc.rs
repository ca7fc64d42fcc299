//! gRPC to the control plane: TLS roots and token are read anew, so that both may be rotated under a running proxy.

use std::time::Duration;

use ::http::Uri;
use tonic::metadata::{MetadataKey, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

use crate::config::{Remote, Root, Token};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Why the control plane cannot even be dialled.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum RemoteError {
    #[error("cannot read the root certificates for {address} from {path}: {reason}")]
    Roots { address: String, path: String, reason: String },
    #[error("cannot read the token for {address} from {path}: {reason}")]
    Token { address: String, path: String, reason: String },
    #[error("cannot reach {address}: {reason}")]
    Connect { address: String, reason: String },
    #[error(
        "the token or a header for {address} cannot be sent: it holds characters that no header may have"
    )]
    Header { address: String },
}

/// A gRPC server as configured.
#[derive(Clone, Debug)]
pub(crate) struct Connector {
    remote: Remote,
    cluster: String,
}

impl Connector {
    pub(crate) fn new(remote: Remote, cluster: String) -> Self {
        Self { remote, cluster }
    }

    pub(crate) fn address(&self) -> &str {
        &self.remote.address
    }

    /// The PEM text that the server is checked against at this moment; none without TLS.
    pub(crate) async fn roots(&self) -> Result<Option<String>, RemoteError> {
        if self.remote.address.starts_with("http://") {
            return Ok(None);
        }
        let path = match &self.remote.root {
            Root::Pem(pem) => return Ok(Some(pem.clone())),
            Root::File(path) => path.clone(),
            Root::System => SYSTEM_ROOTS.into(),
        };
        let read = tokio::fs::read_to_string(&path).await;
        read.map(Some).map_err(|error| RemoteError::Roots {
            address: self.remote.address.clone(),
            path: path.display().to_string(),
            reason: error.to_string(),
        })
    }

    /// A new connection, checked against `roots`.
    pub(crate) async fn connect(&self, roots: Option<&str>) -> Result<Channel, RemoteError> {
        let failed = |reason: String| RemoteError::Connect { address: self.remote.address.clone(), reason };
        let mut endpoint = Endpoint::from_shared(self.remote.address.clone())
            .map_err(|error| failed(text_of(&error)))?
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            // Only beside a running call: Istio's control plane (grpc-go, without PermitWithoutStream) ends a connection
            // on which nothing but pings arrives, and tells its client to calm down.
            .http2_keep_alive_interval(Duration::from_secs(30))
            .keep_alive_timeout(Duration::from_secs(10));
        if let Some(roots) = roots {
            let uri: Option<Uri> = self.remote.address.parse().ok();
            let host = uri.as_ref().and_then(Uri::host).map(|host| host.trim_matches(['[', ']']));
            let name = self.remote.alt_hostname.as_deref().or(host).unwrap_or_default();
            let tls = ClientTlsConfig::new()
                .ca_certificate(Certificate::from_pem(roots))
                .domain_name(name)
                .timeout(CONNECT_TIMEOUT);
            endpoint = endpoint.tls_config(tls).map_err(|error| failed(text_of(&error)))?;
        }
        let connected = tokio::time::timeout(2 * CONNECT_TIMEOUT, endpoint.connect()).await;
        connected
            .map_err(|_| failed(format!("no answer within {:?}", 2 * CONNECT_TIMEOUT)))?
            .map_err(|error| failed(text_of(&error)))
    }

    /// A request with our token and headers.
    pub(crate) async fn request<T>(&self, message: T) -> Result<tonic::Request<T>, RemoteError> {
        let invalid = || RemoteError::Header { address: self.remote.address.clone() };
        let mut request = tonic::Request::new(message);
        let metadata = request.metadata_mut();
        if let Some(token) = self.token().await? {
            let value: MetadataValue<_> = format!("Bearer {token}").parse().map_err(|_| invalid())?;
            metadata.insert("authorization", value);
        }
        let cluster: MetadataValue<_> = self.cluster.parse().map_err(|_| invalid())?;
        metadata.insert("clusterid", cluster);
        for (name, value) in &self.remote.headers.0 {
            let name = MetadataKey::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
            let value: MetadataValue<_> = value.parse().map_err(|_| invalid())?;
            metadata.insert(name, value);
        }
        Ok(request)
    }

    async fn token(&self) -> Result<Option<String>, RemoteError> {
        match &self.remote.token {
            Token::None => Ok(None),
            Token::Literal(token) => Ok(Some(token.clone())),
            Token::File(path) => match tokio::fs::read_to_string(path).await {
                Ok(token) => Ok(Some(token.trim().to_owned())),
                // Without TLS nobody should be sent a token, and tests have none.
                Err(_) if self.remote.address.starts_with("http://") => Ok(None),
                Err(error) => Err(RemoteError::Token {
                    address: self.remote.address.clone(),
                    path: path.display().to_string(),
                    reason: error.to_string(),
                }),
            },
        }
    }
}

/// An error with its causes: what transport libraries say at the top is rarely what happened.
pub(crate) fn text_of(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn roots_and_token_are_read_anew_for_each_call_and_their_loss_is_told_with_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let (root, token) = (directory.path().join("root.pem"), directory.path().join("token"));
        let remote = Remote {
            address: "https://control:15012".into(),
            root: Root::File(root.clone()),
            alt_hostname: None,
            token: Token::File(token.clone()),
            headers: crate::config::Headers(vec![("x-more".into(), "1".into())]),
        };
        let connector = Connector::new(remote, "east".into());
        for round in ["first", "second"] {
            std::fs::write(&root, round).unwrap();
            std::fs::write(&token, format!("{round}\n")).unwrap();
            assert_eq!(connector.roots().await.unwrap().as_deref(), Some(round));
            let request = connector.request(()).await.unwrap();
            let said = |name: &str| request.metadata().get(name).unwrap().to_str().unwrap().to_owned();
            assert_eq!(said("authorization"), format!("Bearer {round}"));
            assert_eq!((said("clusterid"), said("x-more")), ("east".into(), "1".into()));
        }
        for path in [&root, &token] {
            std::fs::remove_file(path).unwrap();
        }
        let lost = connector.roots().await.unwrap_err().to_string();
        assert!(lost.contains("root.pem"), "{lost}");
        let lost = connector.request(()).await.unwrap_err().to_string();
        assert!(lost.contains("token"), "{lost}");
    }
}
