//! Sockets for DNS: on loopback towards the pod, and datagrams towards name servers.

use std::io;
use std::net::SocketAddr;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};

use super::{BACKLOG, Sockets};

impl Sockets {
    /// Takes datagrams at `address`.
    pub(crate) fn listen_datagrams(&self, address: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.enter(|| {
            let socket = self.datagrams(address)?;
            if self.port_reuse {
                socket.set_reuse_port(true)?;
            }
            socket.bind(&address.into())?;
            Ok(socket)
        })?;
        UdpSocket::from_std(socket.into())
    }

    /// Takes connections at `address` alone.
    pub(crate) fn listen_at(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = self.enter(|| {
            let socket = self.socket(Domain::for_address(address))?;
            if address.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            if self.port_reuse {
                socket.set_reuse_port(true)?;
            } else {
                socket.set_reuse_address(true)?;
            }
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket)
        })?;
        TcpListener::from_std(socket.into())
    }

    /// Exchanges datagrams with `to` alone, from a port that the kernel draws.
    pub(crate) fn datagrams_to(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let socket = self.enter(|| {
            let socket = self.datagrams(to)?;
            socket.connect(&to.into())?;
            Ok(socket)
        })?;
        UdpSocket::from_std(socket.into())
    }

    fn datagrams(&self, peer: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(peer), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        if peer.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        Ok(socket)
    }
}
