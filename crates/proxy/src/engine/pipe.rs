//! Bytes that go from one socket to another without being copied into this process: splice(2) through a pipe.
//!
//! A pipe is borrowed for as long as there are bytes in it, so that few serve all connections of a worker, and an idle
//! connection has none.

use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use socket2::Socket;

/// What a pipe holds at most, bytes.
const ROOM: usize = 1 << 20;
/// Pipes that are kept for later.
const KEPT: usize = 4;

/// A pipe and what is in it.
pub(super) struct Pipe {
    read: OwnedFd,
    write: OwnedFd,
    holds: usize,
}

impl Pipe {
    fn new() -> io::Result<Self> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Where that much is not granted, a smaller one does too.
        let _ = fcntl_setpipe_size(&write, ROOM);
        Ok(Self { read, write, holds: 0 })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.holds == 0
    }

    /// Fills the pipe, which is empty, from the socket. Nothing: the socket has nothing now; 0: it has ended.
    pub(super) fn fill(&mut self, from: &Socket) -> io::Result<Option<usize>> {
        let filled = moved(splice(from, None, &self.write, None, ROOM, SpliceFlags::NONBLOCK))?;
        self.holds += filled.unwrap_or(0);
        Ok(filled)
    }

    /// Empties it into the socket as far as that takes it. Nothing: it takes nothing now.
    pub(super) fn drain(&mut self, to: &Socket) -> io::Result<Option<usize>> {
        let flags = SpliceFlags::NONBLOCK;
        match moved(splice(&self.read, None, to, None, self.holds, flags))? {
            Some(0) => Err(io::ErrorKind::WriteZero.into()),
            Some(drained) => {
                self.holds -= drained.min(self.holds);
                Ok(Some(drained))
            }
            None => Ok(None),
        }
    }
}

fn moved(result: rustix::io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(bytes) => Ok(Some(bytes)),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Empty pipes.
#[derive(Default)]
pub(super) struct Pipes(Vec<Pipe>);

impl Pipes {
    /// One that is empty.
    pub(super) fn take(&mut self) -> io::Result<Pipe> {
        self.0.pop().map_or_else(Pipe::new, Ok)
    }

    /// Takes one back. With bytes in it, it is of no use to anybody else.
    pub(super) fn give_back(&mut self, pipe: Pipe) {
        if pipe.is_empty() && self.0.len() < KEPT {
            self.0.push(pipe);
        }
    }
}
