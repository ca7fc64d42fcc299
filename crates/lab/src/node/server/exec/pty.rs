//! A pseudo-terminal whose master side is used asynchronously. The `unsafe` of terminals is here: setting
//! the size, and registering the descriptor.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The master side.
pub(super) struct Terminal(AsyncFd<OwnedFd>);

/// Opens a pair: the master, and the side a program takes for its terminal.
pub(super) fn open() -> io::Result<(Terminal, OwnedFd)> {
    let pair = nix::pty::openpty(None, None)?;
    for fd in [&pair.master, &pair.slave] {
        // A copy in some other child would keep the terminal from ever hanging up.
        fcntl(fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    let flags = OFlag::from_bits_retain(fcntl(&pair.master, FcntlArg::F_GETFL)?);
    fcntl(&pair.master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // SAFETY: the registration owns the descriptor, which so stays open and the same for as long as it lasts.
    let master = unsafe { AsyncFd::register(pair.master)? };
    Ok((Terminal(master), pair.slave))
}

impl Terminal {
    pub async fn read(&self, into: &mut [u8]) -> io::Result<usize> {
        self.0.async_io(Interest::READABLE, |fd| Ok(nix::unistd::read(fd, into)?)).await
    }

    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let written =
                self.0.async_io(Interest::WRITABLE, |fd| Ok(nix::unistd::write(fd, bytes)?)).await?;
            bytes = &bytes[written..];
        }
        Ok(())
    }

    /// Sets the size; the kernel tells the programs on the other side.
    pub fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads one winsize from the pointer, which lives for the call; the descriptor is open.
        let done = unsafe { libc::ioctl(self.0.get_ref().as_raw_fd(), libc::TIOCSWINSZ, &size) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Stdio;

    use super::*;

    #[tokio::test]
    async fn a_program_sees_the_terminals_size() {
        let (terminal, slave) = open().unwrap();
        terminal.resize(132, 43).unwrap();
        let mut child = tokio::process::Command::new("stty")
            .arg("size")
            .stdin(slave.try_clone().unwrap())
            .stdout(Stdio::from(slave))
            .spawn()
            .unwrap();
        let mut shown = [0; 64];
        let length = terminal.read(&mut shown).await.unwrap();
        assert!(child.wait().await.unwrap().success());
        assert_eq!(shown[..length].trim_ascii(), b"43 132");
    }
}
