//! The TLS of the flow stream: 1.3, client certificates of the mesh, HTTP/2.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use mesh::Identity;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once.
const HANDSHAKES: usize = 256;
/// Connections at once: a cluster's nodes, and some to spare.
const CONNECTIONS: usize = 12_000;

/// Who is at the other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What its certificate names.
    pub identities: Vec<Identity>,
    /// Where it calls from.
    pub address: SocketAddr,
}

/// A server's configuration: proves `chain`, accepts clients that chain to `roots`.
pub fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: &[CertificateDer<'static>],
) -> Result<Arc<ServerConfig>, String> {
    let mut store = RootCertStore::empty();
    let (added, _) = store.add_parsable_certificates(roots.iter().cloned());
    if added == 0 {
        return Err("no root certificate came with the observer's own, so no proxy could be checked".into());
    }
    let provider = hbone::tls::provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(store), provider.clone()).build();
    let verifier = verifier.map_err(|error| error.to_string())?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| error.to_string())?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| error.to_string())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

/// A connection after its handshake.
pub struct Accepted {
    stream: TlsStream<TcpStream>,
    peer: Peer,
    /// Given back when the connection ends.
    _place: tokio::sync::OwnedSemaphorePermit,
}

/// Accepts connections with the newest configuration and hands them on after their handshake, until nobody listens.
pub async fn accept(
    listener: TcpListener,
    configs: watch::Receiver<Option<Arc<ServerConfig>>>,
    connections: mpsc::Sender<Result<Accepted, std::io::Error>>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let Ok(turn) = handshakes.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.closed() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: connections must end before another can begin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(config) = configs.borrow().clone() else {
            tracing::debug!(%address, "no certificate yet, connection closed");
            continue;
        };
        let connections = connections.clone();
        tokio::spawn(async move {
            let _turn = turn;
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE, TlsAcceptor::from(config).accept(stream)).await {
                Ok(Ok(stream)) => {
                    let identities = hbone::tls::identities(stream.get_ref().1.peer_certificates());
                    let peer = Peer { identities, address };
                    let _ = connections.send(Ok(Accepted { stream, peer, _place: place })).await;
                }
                Ok(Err(error)) => tracing::info!(%address, %error, "a handshake failed"),
                Err(_) => tracing::info!(%address, "a handshake took longer than {HANDSHAKE:?}"),
            }
        });
    }
}

impl Connected for Accepted {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
