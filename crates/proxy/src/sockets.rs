//! Sockets inside and outside of pods, with the options that the mesh needs on them (reference/enrolment.md §5.6).
//!
//! A socket is made inside its pod's namespace and used from anywhere. Nothing here waits except [`connect`], which
//! is bounded.

mod conntrack;
mod dns;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use netns::NetNs;
use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

use crate::config::{Config, Keepalive};
use crate::engine::Loop;

/// How long a TCP connection may take to be established.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 1024;
/// Sockets made in a namespace at once.
const MADE_AT_ONCE: usize = 8;
/// Inside a pod nothing is gained by pacing, and much is lost (docs/performance.md).
const LOCAL_CONGESTION: &[u8] = b"cubic";

/// Where and how sockets are made: in a pod's namespace with its mark, or in our own.
#[derive(Clone, Debug)]
pub(crate) struct Sockets {
    netns: Option<NetNs>,
    mark: Option<u32>,
    port_reuse: bool,
    original_source: Option<bool>,
    ipv6: bool,
    keepalive: Keepalive,
    /// Made before they were asked for; shared by all copies.
    spare: Arc<Mutex<Vec<Socket>>>,
}

/// A listener, whose connections inherit its options, and whether it can pass on the addresses of clients.
pub(crate) struct Listener {
    pub(crate) socket: Socket,
    pub(crate) transparent: bool,
}

impl Sockets {
    /// Inside the namespace of a pod.
    pub(crate) fn inside(netns: NetNs, config: &Config) -> Self {
        Self {
            netns: Some(netns),
            mark: Some(config.mark),
            port_reuse: config.port_reuse,
            original_source: config.original_source,
            ipv6: config.ipv6,
            keepalive: config.keepalive,
            spare: Arc::default(),
        }
    }

    /// In the proxy's own namespace: no mark, no borrowed addresses.
    pub(crate) fn own(config: &Config) -> Self {
        Self {
            netns: None,
            mark: None,
            port_reuse: false,
            original_source: Some(false),
            ipv6: config.ipv6,
            keepalive: config.keepalive,
            spare: Arc::default(),
        }
    }

    /// Whether the application may be called from its clients' own addresses.
    pub(crate) fn may_borrow_addresses(&self) -> bool {
        self.original_source != Some(false)
    }

    fn enter<T>(&self, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match &self.netns {
            Some(netns) => netns.try_run(work).map_err(|error| match error {
                netns::Error::Io(error) => error,
                other => io::Error::other(other),
            }),
            None => work(),
        }
    }

    /// Listens on all addresses. `local`: those who connect live in the same namespace.
    pub(crate) fn listen(&self, port: u16, local: bool) -> io::Result<Listener> {
        let (socket, transparent) = self.enter(|| {
            if self.ipv6 {
                // A namespace without IPv6 is served on IPv4 alone.
                match self.bind(Domain::IPV6, SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
                    Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
                    Err(error) => tracing::debug!(%error, port, "no IPv6 here, listening on IPv4 alone"),
                    bound => return bound,
                }
            }
            self.bind(Domain::IPV4, SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))
        })?;
        self.tune(&socket, port != mesh::HBONE_PORT);
        if local {
            let _ = socket.set_tcp_congestion(LOCAL_CONGESTION);
        }
        Ok(Listener { socket, transparent })
    }

    fn bind(&self, domain: Domain, address: SocketAddr) -> io::Result<(Socket, bool)> {
        let socket = self.socket(domain)?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        if self.port_reuse {
            if let Err(error) = socket.set_reuse_port(true) {
                tracing::warn!(%error, "SO_REUSEPORT refused: another proxy cannot take over while this one runs");
            }
        } else {
            socket.set_reuse_address(true)?;
        }
        let transparent = match self.original_source {
            Some(false) => false,
            Some(true) => {
                socket.set_ip_transparent_v4(true)?;
                true
            }
            None => socket.set_ip_transparent_v4(true).is_ok(),
        };
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok((socket, transparent))
    }

    fn socket(&self, domain: Domain) -> io::Result<Socket> {
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new_raw(domain, kind, Some(Protocol::TCP))?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        Ok(socket)
    }

    /// Connects to `to`.
    pub(crate) async fn connect(&self, to: SocketAddr) -> Result<TcpStream, ConnectError> {
        let failed = |error| ConnectError::Failed { to, error };
        let socket = TcpSocket::from_std_stream(self.outgoing(to, None).map_err(failed)?.into());
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(to)).await;
        connected.map_err(|_| ConnectError::Timeout { to })?.map_err(failed)
    }

    /// Connects to `to` on a worker; with `from`, as if from that address.
    pub(crate) async fn connect_on(
        &self,
        worker: &Loop,
        to: SocketAddr,
        from: Option<IpAddr>,
    ) -> Result<Held, ConnectError> {
        let failed = |error| ConnectError::Failed { to, error };
        let socket = self.outgoing(to, from).map_err(failed)?;
        let _ = socket.set_tcp_congestion(LOCAL_CONGESTION);
        // Within a pod the answer is there as soon as the first call has returned, and the second one finds it.
        for _ in 0..2 {
            match socket.connect(&to.into()) {
                Ok(()) => return Ok(Held::new(socket)),
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINPROGRESS | libc::EALREADY)) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        let watched = worker.watch(socket).map_err(failed)?;
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, watched.writable()).await;
        connected.map_err(|_| ConnectError::Timeout { to })?;
        if let Some(error) = watched.get().take_error().map_err(failed)? {
            return Err(failed(error));
        }
        let socket = watched.into_inner().ok_or_else(|| failed(io::ErrorKind::NotConnected.into()))?;
        Ok(Held::new(socket))
    }

    fn outgoing(&self, to: SocketAddr, from: Option<IpAddr>) -> io::Result<Socket> {
        let socket = match to {
            SocketAddr::V4(_) => self.next_v4()?,
            SocketAddr::V6(_) => self.enter(|| self.socket(Domain::IPV6))?,
        };
        self.tune(&socket, true);
        // A socket cannot talk to itself under a borrowed address.
        if let Some(from) = from.filter(|from| *from != to.ip() && from.is_ipv4() == to.is_ipv4())
            && let Err(error) = borrow_address(&socket, from)
        {
            tracing::debug!(%error, %from, "the client's address cannot be passed on");
        }
        Ok(socket)
    }

    /// The next socket of IPv4. Entering a namespace costs as much as making several sockets, so some are made at once.
    fn next_v4(&self) -> io::Result<Socket> {
        if let Some(socket) = self.spare.lock().pop() {
            return Ok(socket);
        }
        let (socket, more) = self.enter(|| {
            let socket = self.socket(Domain::IPV4)?;
            // Where nothing is entered, nothing is saved.
            let ahead = if self.netns.is_some() { MADE_AT_ONCE - 1 } else { 0 };
            let more: Vec<Socket> = (0..ahead).map_while(|_| self.socket(Domain::IPV4).ok()).collect();
            Ok((socket, more))
        })?;
        self.spare.lock().extend(more);
        Ok(socket)
    }

    /// Options of a connection, or of a listener that hands them on to its connections; failing to set one never fails
    /// the connection.
    fn tune(&self, socket: &Socket, keepalive: bool) {
        let _ = socket.set_tcp_nodelay(true);
        let Keepalive { enabled, time, interval, retries, user_timeout } = self.keepalive;
        if !(enabled && keepalive) {
            return;
        }
        let options = TcpKeepalive::new().with_time(time).with_interval(interval).with_retries(retries);
        let _ = socket.set_tcp_keepalive(&options);
        if user_timeout {
            let _ = socket.set_tcp_user_timeout(Some(time + interval * retries));
        }
    }
}

/// Why a connection was not established.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    #[error("cannot connect to {to}: {error}")]
    Failed { to: SocketAddr, error: io::Error },
    #[error("{to} did not answer within {CONNECT_TIMEOUT:?}")]
    Timeout { to: SocketAddr },
}

fn borrow_address(socket: &Socket, from: IpAddr) -> io::Result<()> {
    match from {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    // The kernel gives odd ports first to who binds, and even ones to who connects. Left to connect(2)
    // (IP_BIND_ADDRESS_NO_PORT), the port would often be one that the client itself has in use towards the same
    // application, and its redirected connection and this one would be the same to the pod's conntrack.
    socket.bind(&SocketAddr::new(from, 0).into())
}

/// Where a redirected connection wanted to go.
pub(crate) fn original_destination(socket: &impl AsFd) -> io::Result<SocketAddr> {
    let socket = SockRef::from(socket);
    let found = socket.original_dst_v4().or_else(|_| socket.original_dst_v6());
    match found.ok().and_then(|address| address.as_socket()) {
        Some(address) => Ok(canonical(address)),
        None => local_address(&socket),
    }
}

/// The socket's own address.
pub(crate) fn local_address(socket: &Socket) -> io::Result<SocketAddr> {
    let address = socket.local_addr()?.as_socket();
    address.map(canonical).ok_or_else(|| io::Error::other("not an address of the internet"))
}

/// IPv4 addresses are never written as IPv6 ones.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// From now on closing the socket resets the connection: what was truncated must not look complete.
pub(crate) fn reset_on_close(socket: &impl AsFd) {
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// A connection that nobody carries yet; dropped, it is reset.
#[derive(Debug)]
pub(crate) struct Held(Option<Socket>);

impl Held {
    pub(crate) fn new(socket: Socket) -> Self {
        Self(Some(socket))
    }

    pub(crate) fn get(&self) -> Option<&Socket> {
        self.0.as_ref()
    }

    /// Hands it to whoever carries it.
    pub(crate) fn take(mut self) -> io::Result<Socket> {
        self.0.take().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Some(socket) => socket.as_fd(),
            None => unreachable!("taken only by value"),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(socket) = &self.0 {
            reset_on_close(socket);
        }
    }
}
