//! SPDY/3.1 as Kubernetes uses it, the server's side: the client opens streams, both write, no flow control.
//!
//! [`Connection`] turns a byte stream into [`Stream`]s. Frames and headers are pure, in their own modules. This
//! exists because `kubectl port-forward`, and API servers towards kubelets, still speak it.

mod frame;
mod headers;

use std::collections::HashMap;
use std::io;

use bytes::{Bytes, BytesMut};
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use super::upgrade::goodbye;
use frame::{Frame, Malformed};

/// Streams open at once on one connection; each forwarded TCP connection takes two.
const MOST_STREAMS: usize = 512;
const REFUSED: u32 = 3;

/// A stream the client opened.
pub(super) struct Stream {
    headers: headers::Headers,
    /// What the client sends, to its end.
    pub data: mpsc::Receiver<Bytes>,
    /// The way back.
    pub writer: Writer,
}

impl Stream {
    /// The value of a header; names are lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// Writes on one stream.
#[derive(Clone)]
pub(super) struct Writer {
    stream: u32,
    frames: mpsc::Sender<Bytes>,
}

impl Writer {
    /// Sends data; an error when the connection is gone.
    pub async fn send(&self, data: &[u8]) -> io::Result<()> {
        self.put(frame::data(self.stream, false, data)).await
    }

    /// Says that no more data will come.
    pub async fn finish(&self) -> io::Result<()> {
        self.put(frame::data(self.stream, true, &[])).await
    }

    async fn put(&self, frame: Bytes) -> io::Result<()> {
        self.frames.send(frame).await.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// A connection; dropping it ends reading, and closes it once what was written is sent.
pub(super) struct Connection {
    /// Streams as they are opened; ends with the connection.
    pub streams: mpsc::Receiver<Stream>,
    reader: JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Connection {
    /// Speaks SPDY on `io`.
    pub fn new(io: impl AsyncRead + AsyncWrite + Send + 'static) -> Self {
        let (read, write) = tokio::io::split(io);
        let (opened, streams) = mpsc::channel(16);
        let (frames, to_write) = mpsc::channel(16);
        tokio::spawn(write_frames(write, to_write));
        let reader = tokio::spawn(async move {
            if let Err(error) = read_frames(read, opened, frames).await {
                tracing::debug!("SPDY connection ended: {error}");
            }
        });
        Self { streams, reader }
    }

    /// Speaks SPDY within the binary messages of a WebSocket (`SPDY/3.1+portforward.k8s.io`).
    pub fn tunnelled<S>(socket: WebSocketStream<S>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        tokio::spawn(tunnel(socket, theirs));
        Self::new(ours)
    }
}

async fn write_frames(mut io: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Bytes>) {
    while let Some(frame) = frames.recv().await {
        if io.write_all(&frame).await.is_err() || (frames.is_empty() && io.flush().await.is_err()) {
            return;
        }
    }
    let _ = io.shutdown().await;
}

async fn read_frames(
    mut io: impl AsyncRead + Unpin,
    opened: mpsc::Sender<Stream>,
    frames: mpsc::Sender<Bytes>,
) -> io::Result<()> {
    let malformed = |error: Malformed| io::Error::new(io::ErrorKind::InvalidData, error);
    let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
    let mut streams: HashMap<u32, mpsc::Sender<Bytes>> = HashMap::new();
    let (mut reader, mut writer) = (headers::Reader::new(), headers::Writer::new());
    let mut read = BytesMut::with_capacity(32 * 1024);
    loop {
        while let Some(frame) = frame::next(&mut read).map_err(malformed)? {
            match frame {
                Frame::Open { stream, fin, headers } => {
                    let headers = reader.read(&headers).map_err(malformed)?;
                    streams.retain(|_, data| !data.is_closed());
                    if stream % 2 == 0 || streams.contains_key(&stream) {
                        return Err(malformed(Malformed("a stream has an identifier it cannot have")));
                    }
                    if streams.len() >= MOST_STREAMS {
                        frames.send(frame::reset(stream, REFUSED)).await.map_err(gone)?;
                        continue;
                    }
                    let (sender, data) = mpsc::channel(16);
                    if !fin {
                        streams.insert(stream, sender);
                    }
                    frames.send(frame::reply(stream, &writer.write(&[]))).await.map_err(gone)?;
                    let writer = Writer { stream, frames: frames.clone() };
                    if opened.send(Stream { headers, data, writer }).await.is_err() {
                        return Ok(());
                    }
                }
                Frame::Headers { stream, fin, headers } => {
                    reader.read(&headers).map_err(malformed)?;
                    if fin {
                        streams.remove(&stream);
                    }
                }
                Frame::Data { stream, fin, data } => {
                    // Data for a stream whose reader is done is dropped, as after a reset.
                    if let Some(to) = streams.get(&stream)
                        && !data.is_empty()
                    {
                        let _ = to.send(data).await;
                    }
                    if fin {
                        streams.remove(&stream);
                    }
                }
                Frame::Reset { stream } => {
                    streams.remove(&stream);
                }
                // Even identifiers would be answers to pings that are never sent from here.
                Frame::Ping { id } if id % 2 == 1 => frames.send(frame::pong(id)).await.map_err(gone)?,
                Frame::Ping { .. } | Frame::GoAway | Frame::Ignored => {}
            }
        }
        if io.read_buf(&mut read).await? == 0 {
            return Ok(());
        }
    }
}

async fn tunnel<S>(socket: WebSocketStream<S>, io: DuplexStream)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let (mut sink, mut stream) = socket.split();
    let (mut read, mut write) = tokio::io::split(io);
    let inwards = async {
        while let Some(Ok(message)) = stream.next().await {
            let done = match message {
                Message::Binary(bytes) => write.write_all(&bytes).await,
                Message::Close(_) => break,
                _ => Ok(()),
            };
            if done.is_err() {
                break;
            }
        }
        let _ = write.shutdown().await;
    };
    let outwards = async {
        let mut block = BytesMut::with_capacity(32 * 1024);
        while read.read_buf(&mut block).await.is_ok_and(|length| length > 0) {
            if sink.send(Message::Binary(block.split().freeze())).await.is_err() {
                return;
            }
            block.reserve(32 * 1024);
        }
        let _ = sink.send(goodbye()).await;
    };
    // Inwards ends when the client is gone, outwards when the session has let go of the connection.
    tokio::select! { () = inwards => {}, () = outwards => {} }
}

/// A client, as far as tests need one.
#[cfg(test)]
pub(super) mod client {
    use super::*;

    /// Opens streams and collects what comes back.
    pub struct Client<T> {
        io: T,
        headers: headers::Writer,
        next: u32,
        read: BytesMut,
    }

    impl<T: AsyncRead + AsyncWrite + Unpin> Client<T> {
        pub fn new(io: T) -> Self {
            Self { io, headers: headers::Writer::new(), next: 1, read: BytesMut::new() }
        }

        pub async fn open(&mut self, fin: bool, headers: &[(&str, &str)]) -> u32 {
            let stream = self.next;
            self.next += 2;
            let block = self.headers.write(headers);
            self.io.write_all(&frame::open(stream, fin, &block)).await.unwrap();
            stream
        }

        pub async fn send(&mut self, stream: u32, fin: bool, data: &[u8]) {
            self.io.write_all(&frame::data(stream, fin, data)).await.unwrap();
        }

        /// Data by stream, until the streams in `until` have all ended.
        pub async fn collect(&mut self, until: &[u32]) -> HashMap<u32, Vec<u8>> {
            let (mut got, mut ended) = (HashMap::<u32, Vec<u8>>::new(), Vec::new());
            loop {
                while let Some(frame) = frame::next(&mut self.read).unwrap() {
                    if let Frame::Data { stream, fin, data } = frame {
                        got.entry(stream).or_default().extend_from_slice(&data);
                        if fin {
                            ended.push(stream);
                        }
                    }
                }
                if until.iter().all(|stream| ended.contains(stream)) {
                    return got;
                }
                assert_ne!(self.io.read_buf(&mut self.read).await.unwrap(), 0, "the connection ended early");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn streams_carry_data_both_ways_and_end_one_by_one() {
        let (ours, theirs) = tokio::io::duplex(1024);
        let mut connection = Connection::new(ours);
        let mut client = client::Client::new(theirs);
        let id = client.open(false, &[("StreamType", "data")]).await;
        client.send(id, true, b"ping").await;
        let mut stream = connection.streams.recv().await.unwrap();
        assert_eq!(stream.header("streamtype"), Some("data"));
        assert_eq!(stream.data.recv().await.as_deref(), Some(&b"ping"[..]));
        assert_eq!(stream.data.recv().await, None);
        stream.writer.send(b"pong").await.unwrap();
        stream.writer.finish().await.unwrap();
        assert_eq!(client.collect(&[id]).await[&id], b"pong");
    }

    #[tokio::test]
    async fn what_was_written_is_sent_before_the_connection_closes() {
        let (ours, theirs) = tokio::io::duplex(16);
        let mut connection = Connection::new(ours);
        let mut client = client::Client::new(theirs);
        let id = client.open(true, &[]).await;
        let collected = async {
            let stream = connection.streams.recv().await.unwrap();
            stream.writer.send(&[b'x'; 4000]).await.unwrap();
            stream.writer.finish().await.unwrap();
            drop(connection);
        };
        let until = [id];
        let (got, ()) = futures::join!(client.collect(&until), collected);
        assert_eq!(got[&id].len(), 4000);
    }

    #[tokio::test]
    async fn a_peer_that_speaks_something_else_ends_only_its_own_connection() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let mut connection = Connection::new(ours);
        theirs.write_all(b"GET / HTTP/1.1\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff").await.unwrap();
        drop(theirs);
        assert!(connection.streams.recv().await.is_none());
    }
}
