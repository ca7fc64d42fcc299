//! One TCP connection inside a tunnel: bytes both ways, half-close, reset, flow control.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

/// More than this is not promised to one write, so that one stream cannot claim the window of a whole tunnel.
const MAX_WRITE: usize = 256 << 10;

/// Frames that were under way when a stream was reset are forgiven for so many streams; otherwise each would count
/// as an error, and a tunnel that lives long enough would be closed for them.
pub(crate) const REMEMBERED_RESETS: usize = 2000;

/// An application that writes byte by byte to one that does not read may fill this much before the tunnel is closed
/// for it; each small frame counts some 256 bytes of it until it is read.
pub(crate) const SMALL_FRAMES: usize = 64 << 20;

/// A carried connection. Dropping it before both ends were closed resets it (CANCEL), so that a truncated transfer
/// never looks complete.
#[derive(Debug)]
pub struct Stream {
    /// What the peer sends.
    pub recv: RecvHalf,
    /// What the peer gets.
    pub send: SendHalf,
}

impl Stream {
    pub(crate) fn new(send: SendStream<Bytes>, recv: RecvStream) -> Self {
        Self { recv: RecvHalf { recv, chunk: Bytes::new() }, send: SendHalf { send, ended: false } }
    }

    /// Ends both directions at once; the peer sees a reset.
    pub fn reset(&mut self) {
        self.send.send.send_reset(Reason::CANCEL);
    }
}

/// The receiving half. [`AsyncBufRead`] hands the received bytes out without a copy; window is given back to the
/// peer as they are consumed.
#[derive(Debug)]
pub struct RecvHalf {
    recv: RecvStream,
    chunk: Bytes,
}

impl AsyncBufRead for RecvHalf {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        while this.chunk.is_empty() {
            match ready!(this.recv.poll_data(cx)) {
                Some(Ok(chunk)) => this.chunk = chunk,
                Some(Err(error)) => match recv_error(&error) {
                    Some(error) => return Poll::Ready(Err(error)),
                    None => break,
                },
                None => break,
            }
        }
        Poll::Ready(Ok(&this.chunk))
    }

    fn consume(self: Pin<&mut Self>, amount: usize) {
        let this = self.get_mut();
        let amount = amount.min(this.chunk.len());
        this.chunk.advance(amount);
        // Fails only when more is released than was received.
        let _ = this.recv.flow_control().release_capacity(amount);
    }
}

impl AsyncRead for RecvHalf {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let data = ready!(self.as_mut().poll_fill_buf(cx))?;
        let amount = data.len().min(buf.remaining());
        buf.put_slice(&data[..amount]);
        self.consume(amount);
        Poll::Ready(Ok(()))
    }
}

/// The sending half. Shutting it down is half-close: the peer's application reads end of file.
#[derive(Debug)]
pub struct SendHalf {
    send: SendStream<Bytes>,
    ended: bool,
}

impl SendHalf {
    /// Resolves when the peer resets the stream, with what a socket would have said.
    pub fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let error = match ready!(self.send.poll_reset(cx)) {
            // It wants no more, but what it has sent is still to be read.
            Ok(Reason::NO_ERROR) => return Poll::Pending,
            Ok(reason) => reset_error(reason),
            Err(error) => connection_error(&error),
        };
        Poll::Ready(error)
    }

    fn broken(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(reason)) => reset_error(reason),
            Poll::Ready(Err(error)) => connection_error(&error),
            Poll::Pending => io::ErrorKind::BrokenPipe.into(),
        }
    }
}

impl AsyncWrite for SendHalf {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        this.send.reserve_capacity(buf.len().min(MAX_WRITE));
        while this.send.capacity() == 0 {
            match ready!(this.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(connection_error(&error))),
                None => return Poll::Ready(Err(this.broken(cx))),
            }
        }
        let amount = this.send.capacity().min(buf.len()).min(MAX_WRITE);
        match this.send.send_data(Bytes::copy_from_slice(&buf[..amount]), false) {
            Ok(()) => Poll::Ready(Ok(amount)),
            Err(_) => Poll::Ready(Err(this.broken(cx))),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.ended {
            this.ended = true;
            if this.send.send_data(Bytes::new(), true).is_err() {
                return Poll::Ready(Err(this.broken(cx)));
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.recv).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.send).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.send).poll_shutdown(cx)
    }
}

/// A peer that resets with NO_ERROR has simply had enough: that reads as the end. Everything else is an error.
fn recv_error(error: &h2::Error) -> Option<io::Error> {
    match error.reason() {
        Some(Reason::NO_ERROR) if error.is_reset() => None,
        Some(reason) if error.is_reset() => Some(reset_error(reason)),
        _ => Some(connection_error(error)),
    }
}

fn reset_error(reason: Reason) -> io::Error {
    let kind = match reason {
        Reason::NO_ERROR | Reason::STREAM_CLOSED => io::ErrorKind::BrokenPipe,
        _ => io::ErrorKind::ConnectionReset,
    };
    io::Error::new(kind, format!("the peer reset the stream: {reason}"))
}

fn connection_error(error: &h2::Error) -> io::Error {
    match error.reason() {
        Some(reason) if error.is_reset() => reset_error(reason),
        _ => io::Error::new(io::ErrorKind::ConnectionAborted, format!("the tunnel broke: {error}")),
    }
}
