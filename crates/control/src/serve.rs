//! The gRPC port: TLS with a certificate of our own authority, renewed while serving.

mod greeting;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::KeyPair;
use rustls::RootCertStore;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

pub use greeting::Greeting;

use crate::Error;
use crate::ca::{Authority, AuthorityError};

/// Life of the serving certificate.
const LIFE: Duration = Duration::from_secs(7 * 24 * 3600);
/// Time a client has for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once; more wait in the kernel's queue.
const HANDSHAKES: usize = 512;

/// The certificate that is served now.
#[derive(Debug)]
pub struct Serving {
    names: Vec<String>,
    key: KeyPair,
    current: ArcSwap<CertifiedKey>,
    renew_at: ArcSwap<SystemTime>,
}

impl Serving {
    /// A fresh key and certificate for these names.
    pub fn new(authority: &Authority, names: Vec<String>, now: SystemTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let (certified, renew_at) = certify(authority, &key, &names, now)?;
        Ok(Self {
            names,
            key,
            current: ArcSwap::from_pointee(certified),
            renew_at: ArcSwap::from_pointee(renew_at),
        })
    }

    /// Whether it is time for another certificate: half of the life of this one is over.
    pub fn due(&self, now: SystemTime) -> bool {
        now >= **self.renew_at.load()
    }

    /// Replaces the certificate; connections that are open keep theirs.
    pub fn renew(&self, authority: &Authority, now: SystemTime) -> Result<(), AuthorityError> {
        let (certified, renew_at) = certify(authority, &self.key, &self.names, now)?;
        self.current.store(Arc::new(certified));
        self.renew_at.store(Arc::new(renew_at));
        Ok(())
    }
}

fn certify(
    authority: &Authority,
    key: &KeyPair,
    names: &[String],
    now: SystemTime,
) -> Result<(CertifiedKey, SystemTime), AuthorityError> {
    let certificate = authority.serving(key, names, LIFE, now)?;
    let signing = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&signing)
        .map_err(|error| AuthorityError::Root(error.to_string()))?;
    let ends = (now + LIFE).min(authority.not_after());
    let half = ends.duration_since(now).unwrap_or_default() / 2;
    let chain = std::iter::once(certificate).chain(authority.intermediates().iter().cloned()).collect();
    Ok((CertifiedKey::new(chain, signing), now + half))
}

impl ResolvesServerCert for Serving {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

/// TLS 1.3, or 1.2 for who cannot; a client certificate is not asked for twice but must be ours when given.
pub fn tls(serving: Arc<Serving>, root_bundle: &str) -> Result<TlsAcceptor, Error> {
    let wrong =
        |reason: String| Error::Setting(format!("the root certificates cannot be used for TLS: {reason}"));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    for root in CertificateDer::pem_slice_iter(root_bundle.as_bytes()) {
        let root = root.map_err(|error| wrong(error.to_string()))?;
        roots.add(root).map_err(|error| wrong(error.to_string()))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| wrong(error.to_string()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| wrong(error.to_string()))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(serving);
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Takes an address without answering on it yet: a port that is taken is said at once, and nobody connects before
/// there is something to say.
pub(crate) fn reserve(address: SocketAddr) -> std::io::Result<socket2::Socket> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

/// Starts to answer on a reserved address.
pub(crate) fn listen(socket: socket2::Socket) -> std::io::Result<TcpListener> {
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}

/// Accepts connections and hands on those that have shaken hands, until nobody takes them any more.
pub async fn accept(
    listener: TcpListener,
    tls: watch::Receiver<TlsAcceptor>,
    connections: mpsc::Sender<std::io::Result<Greeting<TlsStream<TcpStream>>>>,
) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    loop {
        let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = connections.closed() => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the peer gave up while queued: the queue is still there in a moment.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (tls, connections) = (tls.borrow().clone(), connections.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let _ = stream.set_nodelay(true);
            match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                Ok(Ok(stream)) => {
                    let _ = connections.send(Ok(Greeting::of(stream))).await;
                }
                Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_serving_certificate_is_renewed_at_half_of_its_life_and_not_before() {
        let now = SystemTime::now();
        let authority = Authority::self_signed("cluster.local", now).unwrap();
        let serving = Serving::new(&authority, vec!["ambit-control.ambit-system.svc".into()], now).unwrap();
        let before = serving.current.load_full().cert[0].clone();
        assert!(!serving.due(now + LIFE / 2 - Duration::from_secs(1)));
        let later = now + LIFE / 2 + Duration::from_secs(1);
        assert!(serving.due(later));
        serving.renew(&authority, later).unwrap();
        assert!(!serving.due(later));
        assert_ne!(before, serving.current.load_full().cert[0]);
    }

    #[tokio::test]
    async fn a_taken_port_is_noticed_before_anything_else_happens() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(reserve(taken.local_addr().unwrap()).is_err());
    }

    #[tokio::test]
    async fn a_reserved_port_refuses_connections_until_it_listens() {
        let socket = reserve("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
        let _listener = listen(socket).unwrap();
        assert!(TcpStream::connect(address).await.is_ok());
    }
}
