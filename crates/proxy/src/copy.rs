//! Bytes in both directions between two ends of a connection: half-close respected, resets passed on.
//!
//! No buffer is held while a direction is idle. Which end is a socket and which a stream of a tunnel makes no
//! difference here; the byte counters of the flow grow with each successful write.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncBufRead, AsyncWrite, Interest};
use tokio::net::TcpStream;

use crate::sockets::reset_on_close;

/// One end of a carried connection.
pub(crate) trait End {
    /// Bytes that the end has sent; empty: it will send no more.
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>>;
    /// The first `amount` bytes of them have been passed on.
    fn consume(&mut self, amount: usize);
    /// Passes bytes to the end.
    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>>;
    /// The end will get no more bytes.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Ready when the end is known to be gone, even if nobody reads or writes.
    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error>;
    /// The connection is over, and it must not look like a proper end.
    fn reset(&mut self);
}

/// Counts bytes as they are passed on.
pub(crate) trait Meter {
    fn client_to_server(&self, bytes: u64);
    fn server_to_client(&self, bytes: u64);
}

/// Copies until both directions have ended or one end fails; then both are reset.
pub(crate) async fn both_ways(
    client: &mut impl End,
    server: &mut impl End,
    meter: &impl Meter,
) -> io::Result<()> {
    let mut up = Direction::Copying;
    let mut down = Direction::Copying;
    let result = poll_fn(|cx| {
        let up = up.poll(cx, client, server, |bytes| meter.client_to_server(bytes))?;
        let down = down.poll(cx, server, client, |bytes| meter.server_to_client(bytes))?;
        if up.is_ready() && down.is_ready() {
            return Poll::Ready(Ok(()));
        }
        if let Poll::Ready(error) = client.poll_gone(cx) {
            return Poll::Ready(Err(error));
        }
        if let Poll::Ready(error) = server.poll_gone(cx) {
            return Poll::Ready(Err(error));
        }
        Poll::Pending
    })
    .await;
    if result.is_err() {
        client.reset();
        server.reset();
    }
    result
}

enum Direction {
    Copying,
    Finishing,
    Done,
}

/// After so many rounds others get a turn.
const ROUNDS: usize = 32;

impl Direction {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut impl End,
        to: &mut impl End,
        count: impl Fn(u64),
    ) -> Result<Poll<()>, io::Error> {
        for _ in 0..ROUNDS {
            match self {
                Self::Copying => {
                    let Poll::Ready(data) = from.poll_data(cx) else { return Ok(Poll::Pending) };
                    let data = data?;
                    if data.is_empty() {
                        *self = Self::Finishing;
                        continue;
                    }
                    let Poll::Ready(written) = to.poll_write(cx, data) else { return Ok(Poll::Pending) };
                    let written = written?;
                    count(written as u64);
                    from.consume(written);
                }
                Self::Finishing => {
                    let Poll::Ready(finished) = to.poll_finish(cx) else { return Ok(Poll::Pending) };
                    finished?;
                    *self = Self::Done;
                }
                Self::Done => return Ok(Poll::Ready(())),
            }
        }
        cx.waker().wake_by_ref();
        Ok(Poll::Pending)
    }
}

/// A socket as an end.
pub(crate) struct Tcp<'a> {
    socket: &'a TcpStream,
    buffer: Vec<u8>,
    start: usize,
    moved: u64,
    ended: bool,
    gone: Pin<Box<dyn Future<Output = io::Error> + Send + 'a>>,
}

impl<'a> Tcp<'a> {
    pub(crate) fn new(socket: &'a TcpStream) -> Self {
        Self { socket, buffer: Vec::new(), start: 0, moved: 0, ended: false, gone: Box::pin(gone(socket)) }
    }

    /// Buffers grow with what the connection has moved (reference/data-plane.md §9).
    fn size(&self) -> usize {
        match self.moved {
            0..0x2_0000 => 8 << 10,
            0x2_0000..0xa0_0000 => 64 << 10,
            _ => 256 << 10,
        }
    }
}

/// A reset shows even while nobody reads or writes.
async fn gone(socket: &TcpStream) -> io::Error {
    if socket.ready(Interest::ERROR).await.is_ok()
        && let Ok(Some(error)) = socket.take_error()
    {
        return error;
    }
    // The error has been seen by a read or a write, which reports it.
    std::future::pending().await
}

impl End for Tcp<'_> {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        while self.start == self.buffer.len() && !self.ended {
            self.start = 0;
            self.buffer.clear();
            match self.socket.poll_read_ready(cx) {
                Poll::Ready(ready) => ready?,
                Poll::Pending => {
                    self.buffer = Vec::new();
                    return Poll::Pending;
                }
            }
            let size = self.size();
            if self.buffer.capacity() < size {
                self.buffer = Vec::with_capacity(size);
            }
            match self.socket.try_read_buf(&mut self.buffer) {
                Ok(0) => {
                    self.ended = true;
                    self.buffer = Vec::new();
                }
                Ok(read) => self.moved += read as u64,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(&self.buffer[self.start..]))
    }

    fn consume(&mut self, amount: usize) {
        self.start = (self.start + amount).min(self.buffer.len());
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_write(data) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn poll_finish(&mut self, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = socket2::SockRef::from(self.socket).shutdown(std::net::Shutdown::Write);
        Poll::Ready(match result {
            // The peer has closed everything already: there is nothing left to be told.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
            result => result,
        })
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.gone.as_mut().poll(cx)
    }

    fn reset(&mut self) {
        reset_on_close(self.socket);
    }
}

/// A stream of a tunnel as an end.
impl End for hbone::Stream {
    fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        Pin::new(&mut self.recv).poll_fill_buf(cx)
    }

    fn consume(&mut self, amount: usize) {
        Pin::new(&mut self.recv).consume(amount);
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write(cx, data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_shutdown(cx)
    }

    fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        self.send.poll_broken(cx)
    }

    fn reset(&mut self) {
        hbone::Stream::reset(self);
    }
}

#[cfg(test)]
mod tests;
