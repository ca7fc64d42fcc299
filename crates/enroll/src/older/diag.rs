//! `NETLINK_SOCK_DIAG`: listing and destroying the TCP sockets of one network namespace.
//!
//! Decoding is pure and refuses nothing: what is too short to be a socket is left out. The socket it speaks over
//! belongs to the namespace, so nothing of another namespace can be seen or ended through it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use netns::NetNs;
use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

use crate::netlink::{Netlink, attributes, u32_at};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const TCPDIAG_GETSOCK: u16 = 18;
const INET_DIAG_INFO: u16 = 2;
const INET_DIAG_MARK: u16 = 15;
const V4: u8 = libc::AF_INET as u8;
const V6: u8 = libc::AF_INET6 as u8;
const TCP: u8 = libc::IPPROTO_TCP as u8;
/// Length of `inet_diag_msg`, and where its `inet_diag_sockid` begins and ends.
const MESSAGE: usize = 72;
const ID: std::ops::Range<usize> = 4..52;

/// State of a TCP socket, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It dials.
    SynSent,
    /// It is being dialled.
    SynReceived,
    /// Both ends are connected.
    Established,
    /// One end has finished sending.
    HalfClosed,
    /// It listens.
    Listen,
}

impl State {
    const ALL: [(u8, Self); 7] = [
        (1, Self::Established),
        (2, Self::SynSent),
        (3, Self::SynReceived),
        (4, Self::HalfClosed),
        (5, Self::HalfClosed),
        (8, Self::HalfClosed),
        (10, Self::Listen),
    ];

    fn of(code: u8) -> Option<Self> {
        // 12 is the kernel's own name for a handshake that has no socket yet.
        let code = if code == 12 { 3 } else { code };
        Self::ALL.iter().find(|(known, _)| *known == code).map(|(_, state)| *state)
    }

    /// The states to ask for, as the kernel's bit set.
    fn mask() -> u32 {
        Self::ALL.iter().fold(1 << 12, |mask, (code, _)| mask | 1 << code)
    }

    /// Whether there is (or is about to be) another end.
    pub fn connected(self) -> bool {
        self != Self::Listen
    }
}

/// One TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Socket {
    /// The kernel's name of it, cookie included.
    pub id: Id,
    /// Its state.
    pub state: State,
    /// Its own address.
    pub local: SocketAddr,
    /// The other end's address.
    pub remote: SocketAddr,
    /// `SO_MARK`.
    pub mark: u32,
    /// Bytes the program has not read.
    pub unread: u32,
    /// Bytes not sent or not acknowledged.
    pub unsent: u32,
    /// Segments not acknowledged.
    pub unacked: u32,
    /// Time since data was last sent.
    pub since_sent: Duration,
    /// Time since data was last received.
    pub since_received: Duration,
}

/// The kernel's name of a socket: family and `inet_diag_sockid`, kept as it came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id {
    family: u8,
    bytes: [u8; ID.end - ID.start],
}

impl Id {
    /// An identifier made up by a test.
    #[cfg(test)]
    pub(super) fn of_test(number: u8) -> Self {
        Self { family: V4, bytes: [number; ID.end - ID.start] }
    }
}

/// A view on the sockets of one namespace.
pub struct Diag(Netlink);

impl Diag {
    /// Opens it. Needs `CAP_NET_ADMIN` for marks and for ending sockets.
    pub fn open(namespace: &NetNs) -> io::Result<Self> {
        Ok(Self(Netlink::open(namespace, SockProtocol::NetlinkSockDiag)?))
    }

    /// All TCP sockets of the namespace. The kernel walks those of the whole machine for it, so it is asked in its older
    /// words, in which one walk answers for both families.
    pub fn list(&mut self) -> io::Result<Vec<Socket>> {
        let mut sockets = Vec::new();
        // An `inet_diag_req`.
        let mut body = vec![V4, 0, 0, 1 << (INET_DIAG_INFO - 1)];
        body.extend_from_slice(&[0; ID.end - ID.start]);
        body.extend_from_slice(&State::mask().to_ne_bytes());
        body.extend_from_slice(&0u32.to_ne_bytes());
        match self.0.dump(TCPDIAG_GETSOCK, &body, |body| sockets.extend(decode(body))) {
            // A kernel that has forgotten them.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => {}
            result => return result.map(|()| sockets),
        }
        sockets.clear();
        for family in [V4, V6] {
            self.0.dump(SOCK_DIAG_BY_FAMILY, &request(family, State::mask(), &[0; 48]), |body| {
                sockets.extend(decode(body));
            })?;
        }
        Ok(sockets)
    }

    /// One socket as it is now; nothing when it is gone. Listing walks the sockets of the whole machine to find those
    /// of a namespace; this looks up one.
    pub fn get(&mut self, id: &Id) -> io::Result<Option<Socket>> {
        let mut socket = None;
        let body = request(id.family, u32::MAX, &id.bytes);
        match self.0.ask(SOCK_DIAG_BY_FAMILY, &body, |body| socket = decode(body)) {
            // A younger socket that has its ports is another one.
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(None),
            Err(error) => Err(error),
            Ok(()) => Ok(socket.filter(|socket| socket.id == *id)),
        }
    }

    /// Ends a socket. One that is gone already is no error.
    pub fn destroy(&mut self, id: &Id) -> io::Result<()> {
        match self.0.request(SOCK_DESTROY, 0, &request(id.family, u32::MAX, &id.bytes)) {
            Err(error) if error.raw_os_error() == Some(Errno::ENOENT as i32) => Ok(()),
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel cannot end sockets (CONFIG_INET_DIAG_DESTROY is off)",
            )),
            result => result,
        }
    }
}

/// An `inet_diag_req_v2`.
fn request(family: u8, states: u32, id: &[u8]) -> Vec<u8> {
    let mut body = vec![family, TCP, 1 << (INET_DIAG_INFO - 1), 0];
    body.extend_from_slice(&states.to_ne_bytes());
    body.extend_from_slice(id);
    body
}

fn decode(body: &[u8]) -> Option<Socket> {
    let family = *body.first()?;
    let bytes: [u8; 48] = body.get(ID)?.try_into().ok()?;
    let port = |at: usize| Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
    let address = |at: usize| -> Option<IpAddr> {
        let rest = bytes.get(at..)?;
        if family == V4 {
            Some(Ipv4Addr::from(*rest.first_chunk::<4>()?).into())
        } else {
            Some(IpAddr::from(Ipv6Addr::from(*rest.first_chunk::<16>()?)).to_canonical())
        }
    };
    let mut socket = Socket {
        id: Id { family, bytes },
        state: State::of(*body.get(1)?)?,
        local: SocketAddr::new(address(4)?, port(0)?),
        remote: SocketAddr::new(address(20)?, port(2)?),
        mark: 0,
        unread: u32_at(body, 56)?,
        unsent: u32_at(body, 60)?,
        unacked: 0,
        since_sent: Duration::ZERO,
        since_received: Duration::ZERO,
    };
    for (kind, value) in attributes(body, MESSAGE) {
        match kind {
            INET_DIAG_MARK => socket.mark = u32_at(value, 0)?,
            INET_DIAG_INFO => {
                let millis = |at| u32_at(value, at).map(|ms| Duration::from_millis(ms.into()));
                socket.unacked = u32_at(value, 24)?;
                socket.since_sent = millis(44)?;
                socket.since_received = millis(52)?;
            }
            _ => {}
        }
    }
    Some(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_off_answers_are_left_out() {
        let mut body = vec![0u8; MESSAGE];
        body[0] = V4;
        body[1] = 1;
        assert!(decode(&body).is_some());
        for end in 0..64 {
            assert!(decode(&body[..end]).is_none(), "{end}");
        }
        body[1] = 7;
        assert!(decode(&body).is_none());
    }
}
