//! The body of a delta stream: pushes, written a piece at a time.
//!
//! When all clients come back at once, each wants the whole mesh. A message that is written at once would stand in
//! memory once for each of them; here only a piece of it does, made when the connection can take it, from the bytes
//! that all clients share.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use futures::StreamExt;
use futures::stream::BoxStream;
use http_body::{Body, Frame};
use tonic::Status;

use super::Push;

/// A piece, at least, unless the push ends before.
const PIECE: usize = 64 << 10;

/// A push that is being written.
#[derive(Debug)]
pub(super) struct Writing {
    push: Push,
    /// Length of the message; to be found once, not for each piece.
    length: usize,
    started: bool,
    resources: usize,
    removed: usize,
}

impl Writing {
    /// Nothing of it is written yet.
    pub fn new(push: Push) -> Self {
        let length = push.len();
        Self { push, length, started: false, resources: 0, removed: 0 }
    }

    /// The next piece; nothing when all is written. The pieces together are one gRPC message.
    pub fn piece(&mut self) -> Option<Bytes> {
        let mut out = BytesMut::with_capacity(PIECE.min(self.length + 5) + 1024);
        if !self.started {
            self.started = true;
            // Not compressed, and the length of what follows.
            out.put_u8(0);
            out.put_u32(u32::try_from(self.length).unwrap_or(u32::MAX));
            self.push.write_head(&mut out);
        }
        while out.len() < PIECE {
            if let Some(resource) = self.push.resources.get(self.resources) {
                self.push.write_resource(resource, &mut out);
                self.resources += 1;
            } else if let Some(name) = self.push.removed.get(self.removed) {
                Push::write_removed(name, &mut out);
                self.removed += 1;
            } else {
                break;
            }
        }
        (!out.is_empty()).then(|| out.freeze())
    }
}

/// The body of a stream of pushes; it ends with trailers that say how.
pub(super) struct Pushes {
    stream: BoxStream<'static, Result<Push, Status>>,
    writing: Option<Writing>,
    ended: bool,
}

impl Pushes {
    pub fn new(stream: BoxStream<'static, Result<Push, Status>>) -> Self {
        Self { stream, writing: None, ended: false }
    }
}

impl Body for Pushes {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            if let Some(piece) = self.writing.as_mut().and_then(Writing::piece) {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            self.writing = None;
            let status = match ready!(self.stream.poll_next_unpin(context)) {
                Some(Ok(push)) => {
                    self.writing = Some(Writing::new(push));
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            self.ended = true;
            let mut trailers = http::HeaderMap::new();
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
    }
}
