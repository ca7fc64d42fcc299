//! The handshake, driven by hand.

use std::net::SocketAddr;

use mesh::Identity;
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, InsufficientSizeError, UnbufferedStatus};
use rustls::{ExtractedSecrets, ProtocolVersion};
use rustls_pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use super::{Kernel, Keys, Opener, Sealer, Secured};
use crate::Settings;
use crate::tls::{self, Credential, HandshakeError, PeerFault, Presented, Side, identities};

/// A flight of a handshake with long certificate chains fits.
const MAX_RECEIVED: usize = 256 << 10;
const CHUNK: usize = 4 << 10;

/// Makes the client's handshake with `peer`, which must prove to be one of `expected`.
pub async fn client<IO: AsyncRead + AsyncWrite + Unpin>(
    io: &mut IO,
    peer: SocketAddr,
    credential: &Credential,
    expected: &[Identity],
    settings: &Settings,
) -> Result<Secured, HandshakeError> {
    let config = tls::client_config(credential, expected, &settings.rules)?;
    // Goes nowhere: SNI is switched off and the verifier looks at identities only.
    let name = ServerName::IpAddress(peer.ip().into());
    let connection = UnbufferedClientConnection::new(config, name).map_err(HandshakeError::configuration)?;
    let made = Handshake::new(io, peer, connection).make(settings).await?;
    let wanted = |identity: &Identity| expected.contains(identity);
    made.secured(peer, wanted, credential, settings, Side::Server)
}

/// Makes the server's handshake; the client must prove an identity of our own trust domain.
pub async fn server<IO: AsyncRead + AsyncWrite + Unpin>(
    io: &mut IO,
    peer: SocketAddr,
    credential: &Credential,
    settings: &Settings,
) -> Result<Secured, HandshakeError> {
    let config = tls::server_config(credential, &settings.rules)?;
    let connection = UnbufferedServerConnection::new(config).map_err(HandshakeError::configuration)?;
    let made = Handshake::new(io, peer, connection).make(settings).await?;
    let own = credential.identity().trust_domain();
    made.secured(peer, |identity| identity.trust_domain() == own, credential, settings, Side::Client)
}

/// A handshake that went well, whichever end made it.
struct Made<C> {
    connection: C,
    early: Vec<u8>,
    received: Vec<u8>,
}

impl<C: Unbuffered> Made<C> {
    /// Names the peer, the first of whose identities that is `wanted` counts, and takes the secrets out.
    fn secured(
        self,
        peer: SocketAddr,
        wanted: impl Fn(&Identity) -> bool,
        credential: &Credential,
        settings: &Settings,
        presented_by: Side,
    ) -> Result<Secured, HandshakeError> {
        let Self { connection, early, received } = self;
        let chain = connection.peer_chain().to_vec();
        let identity = identities(Some(&chain)).into_iter().find(|identity| wanted(identity));
        let identity = identity.ok_or(HandshakeError::Peer { peer, fault: PeerFault::NoIdentity })?;
        let presented = Presented::new(Some(&chain), credential.roots(), &settings.rules, presented_by);
        let (secrets, kernel, version) = connection.into_kernel().map_err(HandshakeError::configuration)?;
        let tls12 = version == ProtocolVersion::TLSv1_2;
        let unknown = || HandshakeError::configuration("a cipher suite that was not offered");
        Ok(Secured {
            identity,
            sealer: Sealer::new(&secrets.tx, tls12).ok_or_else(unknown)?,
            opener: Opener::new(&secrets.rx, tls12).ok_or_else(unknown)?,
            keys: Keys { kernel: Box::new(kernel), tls12, partial: Vec::new() },
            early,
            received,
            presented,
        })
    }
}

/// Both ends' connections, which rustls keeps as two types.
trait Unbuffered {
    type Data;
    fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data>;
    fn is_done(&self) -> bool;
    fn alpn(&self) -> Option<&[u8]>;
    fn peer_chain(&self) -> &[CertificateDer<'static>];
    fn into_kernel(self) -> Result<(ExtractedSecrets, Kernel, ProtocolVersion), rustls::Error>;
}

macro_rules! unbuffered {
    ($connection:ty, $data:ty, $kernel:path) => {
        impl Unbuffered for $connection {
            type Data = $data;

            fn process<'c, 'i>(&'c mut self, incoming: &'i mut [u8]) -> UnbufferedStatus<'c, 'i, Self::Data> {
                self.process_tls_records(incoming)
            }

            fn is_done(&self) -> bool {
                !self.is_handshaking()
            }

            fn alpn(&self) -> Option<&[u8]> {
                self.alpn_protocol()
            }

            fn peer_chain(&self) -> &[CertificateDer<'static>] {
                self.peer_certificates().unwrap_or_default()
            }

            fn into_kernel(self) -> Result<(ExtractedSecrets, Kernel, ProtocolVersion), rustls::Error> {
                let (secrets, kernel) = self.dangerous_into_kernel_connection()?;
                let version = kernel.protocol_version();
                Ok((secrets, $kernel(kernel), version))
            }
        }
    };
}

unbuffered!(UnbufferedClientConnection, rustls::client::ClientConnectionData, Kernel::Client);
unbuffered!(UnbufferedServerConnection, rustls::server::ServerConnectionData, Kernel::Server);

struct Handshake<'a, IO, C> {
    io: &'a mut IO,
    peer: SocketAddr,
    connection: C,
    received: Vec<u8>,
    outgoing: Vec<u8>,
    early: Vec<u8>,
}

/// What to do next, once the connection is no longer borrowed.
enum Next {
    Again,
    Send,
    Receive,
    Done,
    Ended,
}

impl<'a, IO: AsyncRead + AsyncWrite + Unpin, C: Unbuffered> Handshake<'a, IO, C> {
    fn new(io: &'a mut IO, peer: SocketAddr, connection: C) -> Self {
        Self { io, peer, connection, received: Vec::new(), outgoing: Vec::new(), early: Vec::new() }
    }

    /// Makes it, within the limit of the settings.
    async fn make(mut self, settings: &Settings) -> Result<Made<C>, HandshakeError> {
        let (peer, within) = (self.peer, settings.handshake_timeout);
        timeout(within, self.run()).await.map_err(|_| HandshakeError::TlsTimeout { peer, within })??;
        let Self { connection, early, received, .. } = self;
        Ok(Made { connection, early, received })
    }

    async fn run(&mut self) -> Result<(), HandshakeError> {
        let peer = self.peer;
        let io = |error: std::io::Error| HandshakeError::Tls { peer, reason: error.to_string() };
        loop {
            match self.step() {
                Ok(Next::Again) => {}
                Ok(Next::Send) => {
                    self.io.write_all(&self.outgoing).await.map_err(io)?;
                    self.outgoing.clear();
                }
                Ok(Next::Receive) => {
                    if self.received.len() > MAX_RECEIVED {
                        return Err(io(std::io::Error::other("its handshake is too long")));
                    }
                    self.received.reserve(CHUNK);
                    if self.io.read_buf(&mut self.received).await.map_err(io)? == 0 {
                        return Err(io(std::io::ErrorKind::UnexpectedEof.into()));
                    }
                }
                Ok(Next::Done) => {
                    return match self.connection.alpn() {
                        Some(crate::ALPN) => Ok(()),
                        _ => Err(HandshakeError::Tls { peer, reason: "it does not speak HTTP/2".into() }),
                    };
                }
                Ok(Next::Ended) => return Err(io(std::io::ErrorKind::UnexpectedEof.into())),
                Err(error) => {
                    // The peer is told why, as far as it still listens.
                    self.encode_alert();
                    let _ = self.io.write_all(&self.outgoing).await;
                    return Err(HandshakeError::from_tls(peer, &error));
                }
            }
        }
    }

    fn step(&mut self) -> Result<Next, rustls::Error> {
        let UnbufferedStatus { mut discard, state } = self.connection.process(&mut self.received);
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                self.received.drain(..discard);
                return Err(error);
            }
        };
        let next = match state {
            ConnectionState::EncodeTlsData(mut data) => {
                encode(&mut self.outgoing, |buffer| data.encode(buffer))?;
                Next::Again
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                Next::Send
            }
            ConnectionState::BlockedHandshake => Next::Receive,
            ConnectionState::WriteTraffic(_) => Next::Done,
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = record?;
                    discard += record.discard;
                    self.early.extend_from_slice(record.payload);
                }
                Next::Again
            }
            // Early data was not offered.
            ConnectionState::PeerClosed | ConnectionState::Closed => Next::Ended,
            _ => return Err(rustls::Error::General("an unexpected state of the handshake".into())),
        };
        self.received.drain(..discard);
        // What is left belongs to the tunnel.
        if matches!(next, Next::Done) && !self.connection.is_done() { Ok(Next::Receive) } else { Ok(next) }
    }

    fn encode_alert(&mut self) {
        // The fault itself has been reported; here is only what is left to be told.
        for _ in 0..4 {
            let UnbufferedStatus { discard, state } = self.connection.process(&mut self.received);
            match state {
                Ok(ConnectionState::EncodeTlsData(mut data)) => {
                    if encode(&mut self.outgoing, |buffer| data.encode(buffer)).is_err() {
                        return;
                    }
                }
                Ok(ConnectionState::TransmitTlsData(data)) => data.done(),
                _ => return,
            }
            self.received.drain(..discard);
        }
    }
}

fn encode(
    outgoing: &mut Vec<u8>,
    mut write: impl FnMut(&mut [u8]) -> Result<usize, EncodeError>,
) -> Result<(), rustls::Error> {
    let start = outgoing.len();
    let mut size = CHUNK;
    for _ in 0..2 {
        outgoing.resize(start + size, 0);
        match write(&mut outgoing[start..]) {
            Ok(written) => {
                outgoing.truncate(start + written);
                return Ok(());
            }
            Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) => {
                size = required_size
            }
            Err(error) => return Err(rustls::Error::General(error.to_string())),
        }
    }
    Err(rustls::Error::General("a handshake message grew while it was written".into()))
}
