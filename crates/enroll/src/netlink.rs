//! The few netlink messages that enrolment needs: framing, acknowledgements and dumps, over a socket that belongs
//! to a pod's network namespace for as long as it is open.
//!
//! Blocking on purpose: the kernel answers within the call, and a namespace is entered only while the socket is
//! made. Every receive has a time limit. What the bodies mean is the business of the callers.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use netns::NetNs;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket,
    sockopt::ReceiveTimeout,
};
use nix::sys::time::{TimeVal, TimeValLike};

const HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_DUMP: u16 = 0x300;

/// `NLM_F_REPLACE`.
pub const REPLACE: u16 = 0x100;
/// `NLM_F_EXCL`.
pub const EXCLUSIVE: u16 = 0x200;
/// `NLM_F_CREATE`.
pub const CREATE: u16 = 0x400;

/// A netlink socket.
pub struct Netlink {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Opens a socket of `protocol` that acts in `namespace`.
    pub fn open(namespace: &NetNs, protocol: SockProtocol) -> io::Result<Self> {
        let fd = namespace
            .try_run(|| Ok(socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?))
            .map_err(io::Error::other)?;
        setsockopt(&fd, ReceiveTimeout, &TimeVal::seconds(2))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; 64 * 1024] })
    }

    /// Sends one request and waits for its acknowledgement. A refusal is the kernel's error number.
    pub fn request(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK | flags, body)?;
        self.receive(|_, _| ())
    }

    /// Asks for one thing and hands its body to `each`. A refusal is the kernel's error number.
    pub fn ask(&mut self, kind: u16, body: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_ACK, body)?;
        self.receive(|_, body| each(body))
    }

    /// Asks for all of something and hands each answer's body to `each`.
    pub fn dump(&mut self, kind: u16, body: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<()> {
        self.send(kind, NLM_F_REQUEST | NLM_F_DUMP, body)?;
        self.receive(|_, body| each(body))
    }

    fn send(&mut self, kind: u16, flags: u16, body: &[u8]) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = Vec::with_capacity(HEADER + body.len());
        message.extend_from_slice(&((HEADER + body.len()) as u32).to_ne_bytes());
        message.extend_from_slice(&kind.to_ne_bytes());
        message.extend_from_slice(&flags.to_ne_bytes());
        message.extend_from_slice(&self.sequence.to_ne_bytes());
        message.extend_from_slice(&0u32.to_ne_bytes());
        message.extend_from_slice(body);
        sendto(self.fd.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        Ok(())
    }

    fn receive(&mut self, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        loop {
            let length = recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty())?;
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while let Some((message, after)) = split(rest) {
                rest = after;
                // An answer to an earlier request that timed out.
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    NLMSG_DONE => return finished(message.body, message.flags),
                    NLMSG_ERROR => return finished(message.body, 0),
                    kind => each(kind, message.body),
                }
            }
        }
    }
}

struct Message<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    body: &'a [u8],
}

fn split(bytes: &[u8]) -> Option<(Message<'_>, &[u8])> {
    let length = u32_at(bytes, 0)? as usize;
    let body = bytes.get(HEADER..length)?;
    let next = length.next_multiple_of(4).min(bytes.len());
    let message =
        Message { kind: u16_at(bytes, 4)?, flags: u16_at(bytes, 6)?, sequence: u32_at(bytes, 8)?, body };
    Some((message, bytes.get(next..).unwrap_or_default()))
}

fn finished(body: &[u8], flags: u16) -> io::Result<()> {
    match u32_at(body, 0).map(|code| code as i32) {
        Some(code) if code < 0 => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ if flags & NLM_F_DUMP_INTR != 0 => Err(io::ErrorKind::Interrupted.into()),
        _ => Ok(()),
    }
}

/// A native-endian `u16` of a message.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_ne_bytes(*chunk))
}

/// A native-endian `u32` of a message.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_ne_bytes(*chunk))
}

/// Appends an attribute.
pub fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
    body.resize(body.len().next_multiple_of(4), 0);
}

/// The attributes of a message from `at` on.
pub fn attributes(body: &[u8], at: usize) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = body.get(at..).unwrap_or_default();
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_off_messages_end_the_reading_and_never_panic() {
        let mut message = Vec::new();
        message.extend_from_slice(&24u32.to_ne_bytes());
        message.extend_from_slice(&[0; 12]);
        put(&mut message, 7, &[1, 2]);
        for end in 0..message.len() {
            assert!(split(&message[..end]).is_none());
        }
        assert!(split(&message).is_some());
        assert_eq!(attributes(&message, 16).collect::<Vec<_>>(), vec![(7, &[1u8, 2][..])]);
        assert_eq!(attributes(&[3, 0, 1, 0], 0).count(), 0);
        assert_eq!(attributes(&[], 99).count(), 0);
    }
}
