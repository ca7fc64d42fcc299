//! Unix sockets of type `SOCK_SEQPACKET` that carry at most one file descriptor a packet.
//!
//! Node agent and node proxy speak ZDS over such a socket: one protobuf message is one packet, and the message
//! that adds a pod brings the descriptor of its network namespace along (`SCM_RIGHTS`). This module owns the
//! framing rules that hold for both ends: a packet is at most [`MAX_PACKET`] bytes, a longer one is reported and
//! never handed on cut short, a packet of no bytes is the end of the connection, and a descriptor that nobody
//! asked for is closed. It knows nothing of what the packets mean, and it never waits without the caller being
//! able to drop the future: put a timeout around [`SeqPacket::send`] and [`SeqPacket::recv`].

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr,
    accept4, bind, connect, listen, recvmsg, sendmsg, socket, socketpair,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The longest packet either side may send. A foreign peer has a buffer of exactly this size.
pub const MAX_PACKET: usize = 1024;

/// Linux passes at most this many descriptors in one packet; room for all of them means that none is lost
/// inside the kernel and each one can be closed.
const SCM_MAX_FD: usize = 253;

/// Why nothing could be received.
#[derive(Debug, thiserror::Error)]
pub enum RecvError {
    /// The peer is gone (or sent a packet of no bytes, which reads the same).
    #[error("the connection was closed by its peer")]
    Closed,
    /// The packet was longer than [`MAX_PACKET`]; its rest is lost, the connection is not.
    #[error("truncated message: the peer sent a packet of more than {MAX_PACKET} bytes")]
    Truncated,
    /// More descriptors than one came with a packet; all of them were closed.
    #[error("the peer sent {0} file descriptors in one packet, at most one is allowed")]
    TooManyDescriptors(usize),
    /// The descriptors were cut off, most likely since this process may not open more files.
    #[error("the descriptor sent by the peer was lost: has this process reached its limit of open files?")]
    DescriptorsLost,
    /// The kernel refused.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One end of a connected `SOCK_SEQPACKET` socket.
#[derive(Debug)]
pub struct SeqPacket {
    io: AsyncFd<OwnedFd>,
}

impl SeqPacket {
    /// Two connected ends, for tests.
    pub fn pair() -> io::Result<(Self, Self)> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?;
        Ok((Self::new(a)?, Self::new(b)?))
    }

    /// Connects to the listener at `path`. Never blocks: a listener whose queue is full is an error
    /// (`WouldBlock`), as is one that is not there.
    pub async fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        let fd = new_socket()?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path.as_ref())?)?;
        Self::new(fd)
    }

    fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { io: register(fd)? })
    }

    /// Sends one packet, with a descriptor when given. Refuses to send what the peer could not receive: no bytes
    /// at all, or more than [`MAX_PACKET`].
    pub async fn send(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if bytes.is_empty() || bytes.len() > MAX_PACKET {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a packet has 1 to {MAX_PACKET} bytes, this one has {}", bytes.len()),
            ));
        }
        let raw: Vec<RawFd> = fd.iter().map(AsRawFd::as_raw_fd).collect();
        self.io
            .async_io(Interest::WRITABLE, |socket| {
                let rights = [ControlMessage::ScmRights(&raw)];
                let control = if raw.is_empty() { &[][..] } else { &rights[..] };
                let sent = sendmsg::<UnixAddr>(
                    socket.as_raw_fd(),
                    &[IoSlice::new(bytes)],
                    control,
                    MsgFlags::MSG_NOSIGNAL,
                    None,
                )?;
                if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
            })
            .await
    }

    /// Receives one packet and the descriptor that came with it.
    ///
    /// After [`RecvError::Truncated`], [`RecvError::TooManyDescriptors`] or [`RecvError::DescriptorsLost`] the
    /// connection still works; whether to go on with such a peer is the caller's choice.
    pub async fn recv(&self) -> Result<(Vec<u8>, Option<OwnedFd>), RecvError> {
        let received = self.io.async_io(Interest::READABLE, |socket| Ok(receive(socket.as_fd())?)).await?;
        let Received { bytes, mut fds, truncated, lost } = received;
        if bytes.is_empty() && !truncated {
            return Err(RecvError::Closed);
        }
        if truncated {
            return Err(RecvError::Truncated);
        }
        if lost {
            return Err(RecvError::DescriptorsLost);
        }
        if fds.len() > 1 {
            return Err(RecvError::TooManyDescriptors(fds.len()));
        }
        Ok((bytes, fds.pop()))
    }
}

struct Received {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
    truncated: bool,
    lost: bool,
}

fn receive(socket: BorrowedFd<'_>) -> nix::Result<Received> {
    let mut buffer = [0u8; MAX_PACKET];
    let mut control = cmsg_space!([RawFd; SCM_MAX_FD]);
    let mut iov = [IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut iov, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let truncated = message.flags.contains(MsgFlags::MSG_TRUNC);
    let lost = message.flags.contains(MsgFlags::MSG_CTRUNC);
    let length = message.bytes;
    let mut fds = Vec::new();
    if !lost {
        for part in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = part {
                // SAFETY: the kernel has just made these descriptors for us; nobody else owns them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
    }
    Ok(Received { bytes: buffer[..length.min(MAX_PACKET)].to_vec(), fds, truncated, lost })
}

/// A listening `SOCK_SEQPACKET` socket. Dropping it removes its path, unless somebody else has taken the path.
#[derive(Debug)]
pub struct SeqPacketListener {
    io: AsyncFd<OwnedFd>,
    path: PathBuf,
    made: (u64, u64),
}

impl SeqPacketListener {
    /// Listens at `path` with the file mode `mode`. A socket that is there already is replaced (it was left by a
    /// predecessor, or the predecessor is being replaced); anything that is not a socket is left alone and is an
    /// error.
    pub fn bind(path: impl AsRef<Path>, mode: u32) -> io::Result<Self> {
        let path = path.as_ref();
        match std::fs::symlink_metadata(path) {
            Ok(there) if there.file_type().is_socket() => std::fs::remove_file(path)?,
            Ok(_) => {
                let text = format!("{} exists and is not a socket", path.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let fd = new_socket()?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
        listen(&fd, Backlog::new(16)?)?;
        let made = identity(path)?;
        Ok(Self { io: register(fd)?, path: path.to_owned(), made })
    }

    /// Waits for the next peer.
    pub async fn accept(&self) -> io::Result<SeqPacket> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let raw = self
            .io
            .async_io(Interest::READABLE, |listener| {
                accept4(listener.as_raw_fd(), flags).map_err(|e| match e {
                    // The peer gave up between connecting and being accepted: wait for the next one.
                    Errno::ECONNABORTED | Errno::EINTR => Errno::EAGAIN.into(),
                    other => io::Error::from(other),
                })
            })
            .await?;
        // SAFETY: accept4 has just made this descriptor for us; nobody else owns it.
        SeqPacket::new(unsafe { OwnedFd::from_raw_fd(raw) })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SeqPacketListener {
    fn drop(&mut self) {
        // A successor may be listening at the same path by now; its socket is not ours to remove.
        if identity(&self.path).is_ok_and(|there| there == self.made) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|m| (m.dev(), m.ino()))
}

fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd names the same open descriptor from its creation to its drop, which is what is asked.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

#[cfg(test)]
mod tests;
