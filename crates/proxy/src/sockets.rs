//! Sockets inside and outside of pods, with the options that the mesh needs on them (reference/enrolment.md §5.6).
//!
//! A socket is made inside its pod's namespace and used from anywhere. Nothing here waits except [`connect`], which
//! is bounded.

mod conntrack;
mod dns;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use netns::NetNs;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::config::{Config, Keepalive};

/// How long a TCP connection may take to be established.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const BACKLOG: i32 = 1024;

/// Where and how sockets are made: in a pod's namespace with its mark, or in our own.
#[derive(Clone, Debug)]
pub(crate) struct Sockets {
    netns: Option<NetNs>,
    mark: Option<u32>,
    port_reuse: bool,
    original_source: Option<bool>,
    ipv6: bool,
    keepalive: Keepalive,
}

/// A listener, and whether it can pass on the addresses of clients.
pub(crate) struct Listener {
    pub(crate) tcp: TcpListener,
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
        }
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

    /// Listens on all addresses.
    pub(crate) fn listen(&self, port: u16) -> io::Result<Listener> {
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
        Ok(Listener { tcp: TcpListener::from_std(socket.into())?, transparent })
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
        let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        Ok(socket)
    }

    /// Connects to `to`; with `from`, as if from that address.
    pub(crate) async fn connect(
        &self,
        to: SocketAddr,
        from: Option<IpAddr>,
    ) -> Result<TcpStream, ConnectError> {
        let failed = |error| ConnectError::Failed { to, error };
        let socket = self.enter(|| {
            let socket = self.socket(Domain::for_address(to))?;
            // A socket cannot talk to itself under a borrowed address.
            if let Some(from) = from.filter(|from| *from != to.ip() && from.is_ipv4() == to.is_ipv4())
                && let Err(error) = borrow_address(&socket, from)
            {
                tracing::debug!(%error, %from, "the client's address cannot be passed on");
            }
            Ok(socket)
        });
        let socket = TcpSocket::from_std_stream(socket.map_err(failed)?.into());
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(to)).await;
        let stream = connected.map_err(|_| ConnectError::Timeout { to })?.map_err(failed)?;
        self.tune(&stream, true);
        Ok(stream)
    }

    /// Options of a connection; failing to set one never fails the connection.
    pub(crate) fn tune(&self, stream: &TcpStream, keepalive: bool) {
        let _ = stream.set_nodelay(true);
        let Keepalive { enabled, time, interval, retries, user_timeout } = self.keepalive;
        if !(enabled && keepalive) {
            return;
        }
        let socket = SockRef::from(stream);
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
        IpAddr::V4(_) => {
            socket.set_ip_transparent_v4(true)?;
            socket.set_freebind_v4(true)?;
        }
        IpAddr::V6(_) => {
            socket.set_ip_transparent_v6(true)?;
            socket.set_freebind_v6(true)?;
        }
    }
    socket.bind(&SocketAddr::new(from, 0).into())
}

/// Where a redirected connection wanted to go.
pub(crate) fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let found = socket.original_dst_v4().or_else(|_| socket.original_dst_v6());
    match found.ok().and_then(|address| address.as_socket()) {
        Some(address) => Ok(canonical(address)),
        None => stream.local_addr().map(canonical),
    }
}

/// IPv4 addresses are never written as IPv6 ones.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// From now on closing the socket resets the connection: what was truncated must not look complete.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
