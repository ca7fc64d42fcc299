//! Whom a redirected datagram was sent to.
//!
//! TCP sockets know their original destination; datagrams have to be looked up in the connection tracking of their
//! namespace (ctnetlink). The kernel answers within the call that asks, so nothing here waits.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};

use super::{Sockets, canonical};

const HEADER: usize = 16;
const GENERIC: usize = 4;
const ERROR: u16 = 2;
/// `NFNL_SUBSYS_CTNETLINK`, `IPCTNL_MSG_CT_NEW` and `_GET`.
const FOUND: u16 = 1 << 8;
const GET: u16 = 1 << 8 | 1;
const REQUEST: u16 = 1;
const NESTED: u16 = 0x8000;
const KIND: u16 = 0x3fff;
const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTO: u16 = 2;
const V4: (u16, u16) = (1, 2);
const V6: (u16, u16) = (3, 4);
const PROTO_NUMBER: u16 = 1;
const PROTO_SOURCE: u16 = 2;
const PROTO_DESTINATION: u16 = 3;

/// The connection tracking of a namespace.
#[derive(Debug)]
pub(crate) struct Conntrack(OwnedFd);

impl Sockets {
    /// Opens the connection tracking.
    pub(crate) fn conntrack(&self) -> io::Result<Conntrack> {
        self.enter(|| {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let protocol = SockProtocol::NetlinkNetFilter;
            Ok(Conntrack(socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?))
        })
    }
}

impl Conntrack {
    /// Where the datagram that `client` sent and that arrived at `local` was sent to. None: it is not known, or it was
    /// sent to `local` itself.
    pub(crate) fn original_destination(&self, client: SocketAddr, local: SocketAddr) -> Option<SocketAddr> {
        let question = question(client, local)?;
        let mut buffer = [0; 4096];
        // What an earlier question left behind is not the answer to this one.
        while recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).is_ok() {}
        let kernel = NetlinkAddr::new(0, 0);
        sendto(self.0.as_raw_fd(), &question, &kernel, MsgFlags::MSG_DONTWAIT).ok()?;
        let length = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).ok()?;
        original(&buffer[..length]).map(canonical).filter(|found| *found != local)
    }
}

/// Asks for the entry whose answers go from `local` to `client`.
fn question(client: SocketAddr, local: SocketAddr) -> Option<Vec<u8>> {
    let (family, (source, destination)) = match (local, client) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => (libc::AF_INET, V4),
        (SocketAddr::V6(_), SocketAddr::V6(_)) => (libc::AF_INET6, V6),
        _ => return None,
    };
    let mut ip = attribute(source, &octets(local.ip()));
    ip.extend(attribute(destination, &octets(client.ip())));
    let mut proto = attribute(PROTO_NUMBER, &[libc::IPPROTO_UDP as u8]);
    proto.extend(attribute(PROTO_SOURCE, &local.port().to_be_bytes()));
    proto.extend(attribute(PROTO_DESTINATION, &client.port().to_be_bytes()));
    let mut tuple = attribute(TUPLE_IP | NESTED, &ip);
    tuple.extend(attribute(TUPLE_PROTO | NESTED, &proto));
    let tuple = attribute(TUPLE_REPLY | NESTED, &tuple);
    let length = u32::try_from(HEADER + GENERIC + tuple.len()).ok()?;
    let mut message = Vec::with_capacity(length as usize);
    message.extend(length.to_ne_bytes());
    message.extend(GET.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.extend([0; 8]);
    message.extend([family as u8, 0, 0, 0]);
    message.extend(tuple);
    Some(message)
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// An attribute, padded.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(value.len() + 8);
    bytes.extend((value.len() as u16 + 4).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// The original destination in the kernel's answer.
fn original(message: &[u8]) -> Option<SocketAddr> {
    let kind = u16::from_ne_bytes([*message.get(4)?, *message.get(5)?]);
    if kind == ERROR || kind != FOUND {
        return None;
    }
    let tuple = find(message.get(HEADER + GENERIC..)?, TUPLE_ORIGINAL)?;
    let ip = find(tuple, TUPLE_IP)?;
    let ip: IpAddr = match (find(ip, V4.1), find(ip, V6.1)) {
        (Some(octets), _) => <[u8; 4]>::try_from(octets).ok()?.into(),
        (None, Some(octets)) => <[u8; 16]>::try_from(octets).ok()?.into(),
        (None, None) => return None,
    };
    let port = find(find(tuple, TUPLE_PROTO)?, PROTO_DESTINATION)?;
    Some(SocketAddr::new(ip, u16::from_be_bytes(port.try_into().ok()?)))
}

/// The value of the first attribute of a kind.
fn find(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16::from_ne_bytes([*attributes.first()?, *attributes.get(1)?]));
        let kind = u16::from_ne_bytes([*attributes.get(2)?, *attributes.get(3)?]);
        let value = attributes.get(4..length)?;
        if kind & KIND == wanted {
            return Some(value);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(kind: u16, tuple: u16, client: SocketAddr, asked: SocketAddr) -> Vec<u8> {
        // The kernel's answer has the form of our question, with the tuple the other way round.
        let mut message = question(asked, client).unwrap();
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[22..24].copy_from_slice(&(tuple | NESTED).to_ne_bytes());
        message
    }

    #[test]
    fn the_original_destination_is_found_in_the_kernels_answer() {
        for (client, asked) in [("10.0.0.2:4000", "10.96.0.10:53"), ("[fd00::2]:4000", "[fd96::a]:53")] {
            let (client, asked) = (client.parse().unwrap(), asked.parse().unwrap());
            assert_eq!(original(&answer(FOUND, TUPLE_ORIGINAL, client, asked)), Some(asked));
            assert_eq!(original(&answer(FOUND, TUPLE_REPLY, client, asked)), None);
            assert_eq!(original(&answer(ERROR, TUPLE_ORIGINAL, client, asked)), None);
        }
        assert_eq!(question("10.0.0.2:1".parse().unwrap(), "[::1]:2".parse().unwrap()), None);
    }

    proptest! {
        #[test]
        fn no_answer_panics(mut bytes in proptest::collection::vec(any::<u8>(), 0..100), known: bool) {
            if known && bytes.len() > 6 {
                bytes[4..6].copy_from_slice(&FOUND.to_ne_bytes());
            }
            original(&bytes);
        }
    }
}
