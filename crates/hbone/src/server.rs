//! The server's end of a tunnel.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{Response, StatusCode};
use mesh::Identity;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_rustls::server::TlsStream;

use crate::keepalive::Keepalive;
use crate::stream::{REMEMBERED_RESETS, SMALL_FRAMES};
use crate::tls::{self, Credential, HandshakeError, PeerFault, Presented, Side, identities};
use crate::{Baggage, Head, HeadError, Settings, Stream, connect};

const MAX_HEADER_LIST: u32 = 64 << 10;
const SEND_BUFFER: usize = 400 << 10;
/// Clients that give up all at once are no attack yet; ten times as many are.
const PENDING_RESETS: usize = 500;

/// A tunnel that a client has made to us. Nothing moves in it unless [`Server::next`] is being awaited.
pub struct Server<IO> {
    connection: h2::server::Connection<TlsStream<IO>, Bytes>,
    keepalive: Option<Keepalive>,
    identity: Identity,
    peer: SocketAddr,
    presented: Presented,
}

/// A stream that the client asks for.
#[derive(Debug)]
pub struct Request {
    /// Where to; or why that cannot be understood, to be refused with status 400.
    pub head: Result<Head, HeadError>,
    /// The answer to give.
    pub responder: Responder,
}

/// Answers one request. Dropped without an answer, the request is reset.
#[derive(Debug)]
pub struct Responder {
    response: SendResponse<Bytes>,
    body: RecvStream,
}

impl<IO> Server<IO>
where
    IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    /// Makes a tunnel of an accepted connection; the client must prove an identity of our own trust domain.
    pub async fn handshake(
        io: IO,
        peer: SocketAddr,
        credential: &Credential,
        settings: &Settings,
    ) -> Result<Self, HandshakeError> {
        let within = settings.handshake_timeout;
        let config = tls::server_config(credential, &settings.rules)?;
        let accept = tokio_rustls::TlsAcceptor::from(config).accept(io);
        let stream =
            timeout(within, accept).await.map_err(|_| HandshakeError::TlsTimeout { peer, within })?;
        let stream = stream.map_err(|error| HandshakeError::from_io(peer, error))?;
        let identity = identities(stream.get_ref().1.peer_certificates())
            .into_iter()
            .find(|identity| identity.trust_domain() == credential.identity().trust_domain())
            .ok_or(HandshakeError::Peer { peer, fault: PeerFault::NoIdentity })?;
        let chain = stream.get_ref().1.peer_certificates();
        let presented = Presented::new(chain, credential.roots(), &settings.rules, Side::Client);
        let http2 = h2::server::Builder::new()
            .initial_window_size(settings.stream_window)
            .initial_connection_window_size(settings.connection_window)
            .max_frame_size(settings.frame_size)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_send_buffer_size(SEND_BUFFER)
            .max_concurrent_streams(settings.max_streams)
            .max_concurrent_reset_streams(REMEMBERED_RESETS)
            .data_frame_budget(SMALL_FRAMES)
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .handshake(stream);
        let http2 =
            timeout(within, http2).await.map_err(|_| HandshakeError::Http2Timeout { peer, within })?;
        let mut connection = http2.map_err(|error| HandshakeError::from_h2(peer, &error))?;
        let keepalive = connection
            .ping_pong()
            .map(|pings| Keepalive::new(pings, settings.ping_interval, settings.ping_timeout));
        Ok(Self { connection, keepalive, identity, peer, presented })
    }

    /// The next request; nothing once the tunnel has ended. Must be awaited for as long as streams are in use,
    /// since it also moves their bytes. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Request> {
        match poll_fn(|cx| self.poll_next(cx)).await? {
            Ok((request, response)) => {
                let head = Head::parse(&request);
                Some(Request { head, responder: Responder { response, body: request.into_body() } })
            }
            Err(error) => {
                tracing::debug!(peer = %self.peer, %error, "tunnel failed");
                None
            }
        }
    }

    #[allow(clippy::type_complexity)]
    fn poll_next(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<(http::Request<RecvStream>, SendResponse<Bytes>), h2::Error>>> {
        if let Some(keepalive) = &mut self.keepalive
            && keepalive.poll_dead(cx).is_ready()
        {
            tracing::debug!(peer = %self.peer, "no answer to PING, closing the tunnel");
            self.connection.abrupt_shutdown(Reason::NO_ERROR);
            self.keepalive = None;
        }
        self.connection.poll_accept(cx)
    }

    /// Asks the client to open no more streams here; running ones go on. [`Server::next`] must still be awaited.
    pub fn graceful_shutdown(&mut self) {
        self.connection.graceful_shutdown();
    }

    /// Whether the client's certificate has been revoked since.
    pub fn is_revoked(&self) -> bool {
        self.presented.is_revoked()
    }

    /// The identity that the client proved.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Address of the client.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }
}

impl Responder {
    /// The stream is connected: status 200, with a description of the workload that serves it.
    pub fn accept(mut self, baggage: Option<&Baggage>) -> Result<Stream, h2::Error> {
        let mut response = Response::new(());
        if let Some(baggage) = baggage {
            connect::put_baggage(response.headers_mut(), baggage);
        }
        let send = self.response.send_response(response, false)?;
        Ok(Stream::new(send, self.body))
    }

    /// The stream is refused.
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        // An error means that the client is gone, and nobody is left to be refused.
        let _ = self.response.send_response(response, true);
    }

    /// Resolves when the client gives up before it was answered.
    pub async fn abandoned(&mut self) {
        let _ = poll_fn(|cx| self.response.poll_reset(cx)).await;
    }
}
