//! Network namespaces: hold one, compare two, and run code or make sockets inside one.
//!
//! A socket belongs for ever to the namespace of the thread that created it, so it is enough to enter a
//! namespace for the moment of `socket(2)` and `bind(2)`; afterwards the socket may be used from any thread.
//! [`NetNs::run`] does exactly that: enter, run a closure that must not await, and come back.
//!
//! Entering needs `CAP_SYS_ADMIN`. This crate never creates or deletes namespaces.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};

pub mod seqpacket;

/// What went wrong with a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The path cannot be opened or inspected.
    #[error("cannot open network namespace {path}: {source}")]
    Open {
        /// The path that was tried.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file exists but is no network namespace.
    #[error("{path} is not a network namespace")]
    NotANamespace {
        /// The path or description of the file.
        path: PathBuf,
    },
    /// `setns(2)` refused.
    #[error("cannot enter the network namespace (CAP_SYS_ADMIN is needed): {0}")]
    Enter(io::Error),
    /// The closure that ran inside failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What identifies a network namespace while it lives: inode and device of its file on nsfs.
///
/// Inodes are reused after a namespace is gone; compare only while holding a [`NetNs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NetNsId {
    /// Inode number.
    pub ino: u64,
    /// Device number.
    pub dev: u64,
}

/// A held network namespace: it lives at least as long as this handle. Clones share one descriptor.
#[derive(Clone, Debug)]
pub struct NetNs {
    fd: Arc<OwnedFd>,
    id: NetNsId,
}

impl NetNs {
    /// Opens the namespace behind `path`, such as `/run/netns/x` or `/proc/1/ns/net`.
    ///
    /// The path may come from a hostile place: it is opened without following the target into anything but a
    /// read-only descriptor, and what is not a network namespace is refused.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        Self::from_fd_named(file.into(), path)
    }

    /// The namespace of the calling thread.
    pub fn current() -> Result<Self, Error> {
        Self::open("/proc/thread-self/ns/net")
    }

    /// Takes a descriptor received from elsewhere (SCM_RIGHTS); refuses what is no network namespace.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, Error> {
        Self::from_fd_named(fd, Path::new("the received descriptor"))
    }

    fn from_fd_named(fd: OwnedFd, path: &Path) -> Result<Self, Error> {
        if namespace_type(fd.as_fd()) != Some(libc::CLONE_NEWNET) {
            return Err(Error::NotANamespace { path: path.to_owned() });
        }
        let stat = nix::sys::stat::fstat(&fd)
            .map_err(|e| Error::Open { path: path.to_owned(), source: e.into() })?;
        Ok(Self { fd: Arc::new(fd), id: NetNsId { ino: stat.st_ino, dev: stat.st_dev } })
    }

    /// Which namespace this is.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// Runs `work` on this thread inside the namespace and comes back, also when `work` panics.
    ///
    /// `work` must not block for long and cannot await. If the thread cannot come back to its own namespace the
    /// process is aborted: going on would put other people's sockets into a pod.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, Error> {
        let home = Self::current()?;
        if home.id == self.id {
            return Ok(work());
        }
        setns(self.fd.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|e| Error::Enter(e.into()))?;
        let _back = Back(home);
        Ok(work())
    }

    /// Whether this process may enter namespaces at all: it enters its own, which changes nothing and needs the same
    /// privileges as any other. For a check at start.
    pub fn may_enter() -> Result<(), Error> {
        setns(Self::current()?.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|e| Error::Enter(e.into()))
    }

    /// [`NetNs::run`] for a closure that can fail with an [`io::Error`].
    pub fn try_run<T>(&self, work: impl FnOnce() -> io::Result<T>) -> Result<T, Error> {
        self.run(work)?.map_err(Error::Io)
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

struct Back(NetNs);

impl Drop for Back {
    fn drop(&mut self) {
        if let Err(error) = setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET) {
            eprintln!("cannot return to the own network namespace: {error}; aborting");
            std::process::abort();
        }
    }
}

/// `NS_GET_NSTYPE` of a descriptor: the `CLONE_NEW*` flag, or nothing when it is no namespace at all.
fn namespace_type(fd: BorrowedFd<'_>) -> Option<i32> {
    const NS_GET_NSTYPE: libc::c_ulong = 0xb703;
    // SAFETY: NS_GET_NSTYPE takes no argument and writes nothing; the descriptor is borrowed for the call.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    (kind >= 0).then_some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_returns_to_its_namespace() {
        let home = NetNs::current().unwrap();
        let before = home.id();
        assert_eq!(home.run(|| 7).unwrap(), 7);
        assert_eq!(NetNs::current().unwrap().id(), before);
    }

    #[test]
    fn what_is_not_a_network_namespace_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(matches!(NetNs::open(file.path()), Err(Error::NotANamespace { .. })));
        assert!(matches!(NetNs::open("/proc/self/ns/mnt"), Err(Error::NotANamespace { .. })));
        assert!(matches!(NetNs::open("/nonexistent"), Err(Error::Open { .. })));
    }
}
