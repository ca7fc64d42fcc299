//! The client's end of a tunnel.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::StatusCode;
use mesh::Identity;
use rustls_pki_types::ServerName;
use std::net::SocketAddr;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;

use crate::keepalive::Keepalive;
use crate::stream::{REMEMBERED_RESETS, SMALL_FRAMES};
use crate::tls::{self, Credential, HandshakeError, Presented, Side, identities};
use crate::{Baggage, Head, HeadError, Settings, Stream, connect};

/// What a peer may say of itself in headers.
const MAX_HEADER_LIST: u32 = 16 << 10;
const SEND_BUFFER: usize = 4 << 20;
/// Until the peer has said how many streams it allows.
const FIRST_STREAMS: usize = 100;

/// A tunnel to another proxy. Clones share it; when the last clone and the last stream are gone it closes.
#[derive(Clone, Debug)]
pub struct Tunnel {
    requests: SendRequest<Bytes>,
    peer: SocketAddr,
    identity: Identity,
    answer_timeout: Duration,
    closed: watch::Receiver<bool>,
    cut: Arc<Notify>,
    presented: Presented,
}

/// A stream that the peer has accepted.
#[derive(Debug)]
pub struct Opened {
    /// The bytes.
    pub stream: Stream,
    /// What the peer says of the workload it serves.
    pub baggage: Option<Baggage>,
}

/// Why a stream was not opened.
#[derive(Clone, Debug, thiserror::Error)]
pub enum OpenError {
    /// The peer answered, and it was a no.
    #[error("http status: {status}")]
    Refused {
        /// As answered.
        status: StatusCode,
    },
    /// The tunnel takes no more streams; the request was not looked at, another tunnel may be tried.
    #[error("the tunnel to {0} takes no new streams")]
    Closing(SocketAddr),
    /// The tunnel broke or the stream was reset before the answer.
    #[error("the tunnel to {peer} failed before CONNECT was answered: {reason}")]
    Broken {
        /// The peer.
        peer: SocketAddr,
        /// What happened.
        reason: String,
    },
    /// No answer in time.
    #[error(
        "{peer} did not answer CONNECT within {within:?}; does the application behind it accept connections?"
    )]
    Timeout {
        /// The peer.
        peer: SocketAddr,
        /// The limit.
        within: Duration,
    },
    /// The destination cannot be written into a request.
    #[error(transparent)]
    Head(#[from] HeadError),
}

impl Tunnel {
    /// Makes a tunnel of a connection to `peer`, which must prove to be one of `expected`.
    ///
    /// Returns only once the peer has answered inside the tunnel: by then it has accepted our certificate, and its
    /// limit of streams is known.
    pub async fn handshake<IO>(
        io: IO,
        peer: SocketAddr,
        credential: &Credential,
        expected: &[Identity],
        settings: &Settings,
    ) -> Result<Self, HandshakeError>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let within = settings.handshake_timeout;
        let config = tls::client_config(credential, expected, &settings.rules)?;
        // Goes nowhere: SNI is switched off and the verifier looks at identities only.
        let name = ServerName::IpAddress(peer.ip().into());
        let connect = tokio_rustls::TlsConnector::from(config).connect(name, io);
        let stream =
            timeout(within, connect).await.map_err(|_| HandshakeError::TlsTimeout { peer, within })?;
        let stream = stream.map_err(|error| HandshakeError::from_io(peer, error))?;
        let identity = identities(stream.get_ref().1.peer_certificates())
            .into_iter()
            .find(|identity| expected.contains(identity))
            .ok_or(HandshakeError::Peer { peer, fault: tls::PeerFault::NoIdentity })?;
        let chain = stream.get_ref().1.peer_certificates();
        let presented = Presented::new(chain, credential.roots(), &settings.rules, Side::Server);
        let http2 = async {
            let (requests, mut connection) = h2::client::Builder::new()
                .initial_window_size(settings.stream_window)
                .initial_connection_window_size(settings.connection_window)
                .max_frame_size(settings.frame_size)
                .max_header_list_size(MAX_HEADER_LIST)
                .max_send_buffer_size(SEND_BUFFER)
                .initial_max_send_streams(FIRST_STREAMS)
                .max_concurrent_reset_streams(REMEMBERED_RESETS)
                .data_frame_budget(SMALL_FRAMES)
                .enable_push(false)
                .handshake(stream)
                .await?;
            let mut pings = connection.ping_pong();
            if let Some(pings) = &mut pings {
                pings.send_ping(h2::Ping::opaque())?;
                poll_fn(|cx| {
                    if let Poll::Ready(Err(error)) = Pin::new(&mut connection).poll(cx) {
                        return Poll::Ready(Err(error));
                    }
                    pings.poll_pong(cx).map(|answer| answer.map(drop))
                })
                .await?;
            }
            Ok::<_, h2::Error>((requests, connection, pings))
        };
        let done = timeout(within, http2).await.map_err(|_| HandshakeError::Http2Timeout { peer, within })?;
        let (requests, mut connection, pings) =
            done.map_err(|error| HandshakeError::from_h2(peer, &error))?;
        let (closing, closed) = watch::channel(false);
        let mut keepalive =
            pings.map(|pings| Keepalive::new(pings, settings.ping_interval, settings.ping_timeout));
        let cut = Arc::new(Notify::new());
        let told = cut.clone();
        tokio::spawn(async move {
            let running = poll_fn(|cx| {
                if let Poll::Ready(result) = Pin::new(&mut connection).poll(cx) {
                    return Poll::Ready(result.err().map(|error| error.to_string()));
                }
                match &mut keepalive {
                    Some(keepalive) => keepalive.poll_dead(cx).map(|()| Some("no answer to PING".into())),
                    None => Poll::Pending,
                }
            });
            let ended = tokio::select! {
                ended = running => ended,
                () = told.notified() => Some("cut".into()),
            };
            tracing::debug!(%peer, reason = ended.as_deref().unwrap_or("closed"), "tunnel ended");
            let _ = closing.send(true);
        });
        Ok(Self { requests, peer, identity, answer_timeout: settings.answer_timeout, closed, cut, presented })
    }

    /// Asks the peer to connect to what `head` names. The answer is waited for, within the limit of the settings.
    pub async fn open(&self, head: &Head) -> Result<Opened, OpenError> {
        let request = head.request()?;
        let answer = self.exchange(request);
        let within = self.answer_timeout;
        timeout(within, answer).await.map_err(|_| OpenError::Timeout { peer: self.peer, within })?
    }

    async fn exchange(&self, request: http::Request<()>) -> Result<Opened, OpenError> {
        // A peer that closes has not seen the request; later failures may have had an effect.
        let closing = |_| OpenError::Closing(self.peer);
        let mut requests = self.requests.clone().ready().await.map_err(closing)?;
        let (response, send) = requests.send_request(request, false).map_err(closing)?;
        let response = response.await.map_err(|error| {
            let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
            if refused || (error.is_go_away() && error.is_remote()) {
                return OpenError::Closing(self.peer);
            }
            OpenError::Broken { peer: self.peer, reason: error.to_string() }
        })?;
        if response.status() != StatusCode::OK {
            return Err(OpenError::Refused { status: response.status() });
        }
        let baggage = connect::baggage_of(response.headers());
        Ok(Opened { stream: Stream::new(send, response.into_body()), baggage })
    }

    /// Streams that the peer allows at once, at this moment.
    pub fn max_streams(&self) -> usize {
        self.requests.current_max_send_streams()
    }

    /// Whether the tunnel is gone.
    pub fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// Whether the peer's certificate has been revoked since.
    pub fn is_revoked(&self) -> bool {
        self.presented.is_revoked()
    }

    /// Ends the tunnel and all its streams at once.
    pub fn cut(&self) {
        self.cut.notify_one();
    }

    /// Waits until the tunnel is gone.
    pub fn closed(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut closed = self.closed.clone();
        async move {
            let _ = closed.wait_for(|closed| *closed).await;
        }
    }

    /// The identity that the peer proved.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where the tunnel leads.
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }
}
