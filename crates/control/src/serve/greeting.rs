//! A connection whose client must begin to speak in time.
//!
//! HTTP/2 asks a silent client whether it is still there only once it has said that it speaks HTTP/2. One that never
//! says so would hold a descriptor as long as connections live, and nobody knows yet who it is.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tonic::transport::server::Connected;

/// Time a client has for its greeting.
pub(super) const GREETING: Duration = Duration::from_secs(10);
/// Bytes of a greeting (RFC 9113, 3.4).
const LENGTH: usize = 24;

/// A connection that fails when its client does not greet in time.
#[derive(Debug)]
pub struct Greeting<S> {
    stream: S,
    /// Until when, and how many bytes are still to come; nothing once they have.
    waiting: Option<(Pin<Box<Sleep>>, usize)>,
}

impl<S> Greeting<S> {
    /// Time runs from now.
    pub(super) fn of(stream: S) -> Self {
        Self { stream, waiting: Some((Box::pin(tokio::time::sleep(GREETING)), LENGTH)) }
    }
}

impl<S: Connected> Connected for Greeting<S> {
    type ConnectInfo = S::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Greeting<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let Some((until, missing)) = &mut self.waiting else { return read };
        if read.is_pending() {
            ready!(until.as_mut().poll(context));
            let reason = "the client did not begin to speak HTTP/2 in time";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, reason)));
        }
        *missing = missing.saturating_sub(buffer.filled().len() - before);
        if *missing == 0 {
            self.waiting = None;
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Greeting<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
    use tokio::time::Instant;

    use super::*;

    /// What RFC 9113 has a client say first: the preface, and settings, here none.
    const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

    /// The client's end of a connection to a server as it runs.
    fn client() -> DuplexStream {
        let (near, far) = tokio::io::duplex(1 << 16);
        let routes = tonic::service::Routes::default();
        let server = tonic::transport::Server::builder().add_routes(routes);
        let incoming = futures::stream::iter([Ok::<_, io::Error>(Greeting::of(far))]);
        tokio::spawn(server.serve_with_incoming(incoming));
        near
    }

    /// When the server ends the connection.
    async fn end(mut client: DuplexStream) -> Duration {
        let begun = Instant::now();
        let mut said = Vec::new();
        let all = tokio::time::timeout(Duration::from_secs(3600), client.read_to_end(&mut said)).await;
        all.map_or(Duration::MAX, |_| begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_says_nothing_or_only_begins_to_is_let_go_in_time() {
        let mut silent = client();
        assert!((GREETING..GREETING * 2).contains(&end(silent).await));
        silent = client();
        silent.write_all(&HELLO[..20]).await.unwrap();
        assert!((GREETING..GREETING * 2).contains(&end(silent).await));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_greeted_may_be_silent_as_long_as_it_likes() {
        let mut slow = client();
        for byte in HELLO {
            slow.write_all(&[*byte]).await.unwrap();
            tokio::time::sleep(GREETING / 30).await;
        }
        assert_eq!(end(slow).await, Duration::MAX);
    }
}
